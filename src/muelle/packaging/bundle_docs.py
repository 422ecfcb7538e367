"""The texts inside a bundle: how to install it, and a page for each version. Pure, no files.

In English and Spanish, since nobody can look anything up where it is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from muelle import __version__
from muelle.core.records import Example, StoredTensor, VersionRecord
from muelle.core.request import decode_array
from muelle.packaging.bundle import CODE, BundleHeader

_README = """\
# A Muelle bundle

Made by muelle {version}. It holds:

{versions}

## Install it: English

Needed: {needs}. No internet, no root.

    python3 NAME.muelle install-server --to muelle-server

makes a server in the folder `muelle-server`, starts it on http://127.0.0.1:8080 and says how to
stop it. Every byte is checked before the first is written. Run it again to go on where it was cut
off. A file of more than 4 GB cannot be run as it is; take the installer out of it first:

    python3 -c "import zipfile; zipfile.ZipFile('NAME.muelle').extractall('installer', {code})"
    python3 installer install-server NAME.muelle --to muelle-server

Where Muelle is installed already: `muelle import NAME.muelle` puts the versions into the store.

A bundle is a program. Before you run one that came over other people's machines, compare its
SHA-256 (`sha256sum NAME.muelle`) with what its maker told you, or check its signature where Muelle
is installed: `muelle import --check --key MAKER.pub NAME.muelle`.

Inside (it is a ZIP file): `docs/` a page for each version, `sbom.cdx.json` all parts with their
licences, `wheels/` the Python packages, `versions/` and `blobs/` the models, `image/` the container
image (`docker load -i`), `deploy/` files for your platform. Not all bundles have all of them.

## Instalarlo: español

Hace falta: {needs}. Sin internet y sin root.

    python3 NOMBRE.muelle install-server --to muelle-server

crea un servidor en la carpeta `muelle-server`, lo arranca en http://127.0.0.1:8080 y dice cómo
pararlo. Se comprueba cada byte antes de escribir el primero. Si se interrumpe, ejecútelo otra vez y
seguirá donde estaba. Un archivo de más de 4 GB no se puede ejecutar tal cual; saque antes el
instalador:

    python3 -c "import zipfile; zipfile.ZipFile('NOMBRE.muelle').extractall('instalador', {code})"
    python3 instalador install-server NOMBRE.muelle --to muelle-server

Donde Muelle ya está instalado: `muelle import NOMBRE.muelle` lleva las versiones al almacén.

Un paquete es un programa. Antes de ejecutar uno que pasó por máquinas ajenas, compare su SHA-256
(`sha256sum NOMBRE.muelle`) con el que le dijo quien lo hizo, o compruebe su firma donde Muelle está
instalado: `muelle import --check --key AUTOR.pub NOMBRE.muelle`.
"""


def readme(header: BundleHeader) -> bytes:
    """Return the `README.md` of a bundle."""
    lines = [
        f"- {v.model}:{v.version}{' @' + ', @'.join(v.labels) if v.labels else ''} `{v.digest}`"
        for v in header.versions
    ]
    needs = "Muelle itself (there are no wheels inside) / Muelle"
    if header.python:
        needs = f"Python {header.python}, {header.platform}"
    return _README.format(
        version=__version__, versions="\n".join(lines) or "-", needs=needs, code=list(CODE)
    ).encode()


def documents(records: Sequence[VersionRecord]) -> dict[str, bytes]:
    """Return name -> content of the pages below `docs/`."""
    return {f"{r.model}-{r.version}.md": _page(r).encode() for r in records}


def _page(record: VersionRecord) -> str:
    """Return what a user must know of a version to ask it."""
    facts = [
        ("digest", f"`{record.digest}`"),
        ("format", f"{record.format} ({record.runtime})"),
        ("size", f"{record.size:,} bytes, {len(record.files)} files"),
        ("created", f"{record.created} {record.who}".strip()),
        ("note", _one_line(record.note)),
        *((name, f"{value:g}") for name, value in sorted(record.metrics.items())),
        ("libraries", ", ".join(f"{n} {v}" for n, v in sorted(record.libraries.items()))),
    ]
    lines = [f"# {record.model}:{record.version}", ""]
    lines += [f"- {name}: {value}" for name, value in facts if value]
    if record.signature is not None:
        for title, specs in (
            ("Inputs / Entradas", record.signature.inputs),
            ("Outputs / Salidas", record.signature.outputs),
        ):
            lines += ["", f"## {title}", ""]
            lines += [f"- `{s.name}`: {s.datatype} {list(s.shape)}" for s in specs]
    if record.examples:
        lines += ["", "## Ask it / Preguntar", "", *_curl(record, record.examples[0])]
    return "\n".join(lines) + "\n"


def _curl(record: VersionRecord, example: Example) -> list[str]:
    """Return a request that can be copied into a terminal."""
    inputs = [_tensor(tensor) for tensor in example.inputs]
    if not all(inputs):
        return [f"POST http://127.0.0.1:8080/v2/models/{record.model}/infer"]
    body = json.dumps({"inputs": inputs}, ensure_ascii=True)
    if len(body) > 4000:
        return [f"POST http://127.0.0.1:8080/v2/models/{record.model}/infer"]
    quoted = body.replace("'", "'\\''")
    return [
        f"    curl -s http://127.0.0.1:8080/v2/models/{record.model}/infer \\",
        f"      -H 'content-type: application/json' -d '{quoted}'",
    ]


def _tensor(tensor: StoredTensor) -> dict[str, object] | None:
    """Return a tensor as the protocol's JSON, None for one that JSON cannot show."""
    try:
        values = decode_array(tensor.datatype, tensor.shape, tensor.content).ravel().tolist()
        shown = [v.decode() if isinstance(v, bytes) else v for v in values]
        json.dumps(shown, allow_nan=False)
    except (ValueError, TypeError, KeyError):
        return None
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "data": shown,
    }


def _one_line(text: str) -> str:
    return " ".join(text.split())
