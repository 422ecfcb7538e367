"""`muelle inspect`: what a model file is, and what is missing to run it. Changes nothing.

The file is recognised and hashed here, but loaded in a worker process, as the server would do.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muelle.cli.command import new_command

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.runtimes.interface import Format, Runtime
    from muelle.texts import Texts
    from muelle.workers.messages import Loaded

LOAD_TIMEOUT_S = 600.0


def command(texts: Texts) -> click.Command:
    """Return the command."""
    return new_command(
        "inspect",
        texts,
        run,
        [
            click.Argument(["file"], type=click.Path(path_type=Path)),
            click.Option(["--trust"], is_flag=True, help=texts("help.option.trust")),
            click.Option(["--threads"], type=click.IntRange(min=1), default=1,
                         help=texts("setting.worker.threads")),
            click.Option(["--json", "as_json"], is_flag=True, help=texts("help.option.json")),
        ],
    )  # fmt: skip


def run(cli: Cli, file: Path, trust: bool, threads: int, as_json: bool) -> int:
    """Print what the file is; exit code 1 when it is broken or of no known format."""
    from muelle.core.errors import ArtifactError
    from muelle.repository.digest import digest_artifact
    from muelle.runtimes.libraries import install_command
    from muelle.runtimes.registry import find_format, missing_libraries

    if not file.exists():
        raise ArtifactError(cli.texts("error.no_file", path=file))
    runtime, form = find_format(file)
    missing = missing_libraries(runtime, form)
    with cli.progress(cli.texts("inspect.hashing")) as progress:
        digest = digest_artifact(file, progress)
    loaded, reason = None, _reason_not_to_load(cli, form, missing, trust)
    failure = ""
    if not reason:
        try:
            loaded = _load(cli, file, runtime, form, threads)
        except ArtifactError as exc:
            # What was found out is shown all the same; the error comes after it.
            failure = reason = exc.message
    facts = {
        "path": str(file),
        "format": form.name,
        "runtime": runtime.name,
        "size_bytes": _size_of(file),
        "digest": digest,
        "runs_code": form.runs_code,
        "missing": missing,
        "mend": install_command(runtime.extra) if missing else "",
        "not_loaded": reason,
    }
    (_show_json if as_json else _show_text)(cli, facts, loaded)
    if failure:
        raise ArtifactError(failure)
    return 0


def _reason_not_to_load(cli: Cli, form: Format, missing: list[str], trust: bool) -> str:
    if missing:
        return cli.texts("inspect.needs_library", names=", ".join(missing))
    if form.runs_code and not trust:
        return cli.texts("inspect.needs_trust")
    return ""


def _load(cli: Cli, file: Path, runtime: Runtime, form: Format, threads: int) -> Loaded:
    from muelle.workers.probe import probe

    with cli.waiting(cli.texts("inspect.loading", path=file)):
        return probe(file, runtime.name, form.name, threads=threads, timeout_s=LOAD_TIMEOUT_S)


def _size_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())


def _show_json(cli: Cli, facts: dict[str, Any], loaded: Loaded | None) -> None:
    import orjson
    from msgspec import to_builtins

    found = {
        "signature": to_builtins(loaded.signature) if loaded else None,
        "info": loaded.info if loaded else None,
        "example": loaded.example if loaded else None,
    }
    cli.show(orjson.dumps(facts | found, option=orjson.OPT_INDENT_2).decode())


def _show_text(cli: Cli, facts: dict[str, Any], loaded: Loaded | None) -> None:
    texts = cli.texts
    file = shlex.quote(facts["path"])
    trust = " --trust" if facts["runs_code"] else ""
    info = dict(loaded.info) if loaded else {}
    library = info.pop("runtime", "")
    rows = [
        (texts("inspect.format"), facts["format"]),
        (texts("inspect.runtime"), facts["runtime"] + (f" ({library})" if library else "")),
        (texts("inspect.size"), readable_size(facts["size_bytes"])),
        (texts("inspect.digest"), facts["digest"]),
        (texts("inspect.runs_code"), texts("inspect.yes" if trust else "inspect.no")),
    ]
    if facts["missing"]:
        names = ", ".join(facts["missing"])
        rows.append((texts("inspect.missing"), f"{names}; {facts['mend']}"))
    elif facts["not_loaded"]:
        rows.append((texts("inspect.not_loaded"), facts["not_loaded"]))
        if trust:
            rows.append((texts("inspect.to_load"), f"muelle inspect --trust {file}"))
    if loaded is not None:
        rows += [(key, _text_of(value)) for key, value in info.items() if value]
        rows.append((texts("inspect.to_serve"), f"muelle serve{trust} {file}"))
    for line in _pairs(rows):
        cli.show(line)
    if loaded is not None:
        from muelle.cli.screens import signature_rows

        cli.show("")
        head = [texts(f"table.{k}") for k in ("direction", "tensor", "type", "columns")]
        cli.show_table(head, signature_rows(loaded.signature, texts))


def _pairs(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name.ljust(width)}  {value}" for name, value in rows]


def _text_of(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_text_of(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text_of, value))
    return str(value)


def readable_size(n_bytes: int) -> str:
    """Return `1.2 MB (1,234,567 bytes)`; powers of 1,000, as disks are sold."""
    size, unit = float(n_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{n_bytes} bytes" if unit == "bytes" else f"{size:.1f} {unit} ({n_bytes:,} bytes)"
