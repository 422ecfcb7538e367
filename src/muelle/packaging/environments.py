"""Build virtual environments for versions that need other libraries than the server has.

One environment per set of requirements, shared by its digest, below a store's `environments/`. Made
of wheels only (building a source distribution would run its code), from a local folder or from
whatever index pip is configured for. The server's own environment is never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from muelle.core.errors import ArtifactError
from muelle.repository.environments import READY, environment_folder, find_environment

WORKER_NEEDS = ("msgspec", "numpy", "orjson")
"""What a worker itself imports, beside its runtime's libraries."""

_MAX_FILE_BYTES = 1024 * 1024
_HASH = re.compile(r"\s--hash=(sha256|sha384|sha512):([0-9a-f]+)")
_BROKEN_VALUES = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""How PyYAML fails on values that are not of the form that they claim."""

_COMMENT = re.compile(r"(^|\s)#.*$")


@dataclass(frozen=True, slots=True)
class Environment:
    """A finished environment."""

    digest: str
    python: Path
    lines: tuple[str, ...]


class _Ready(msgspec.Struct):
    """What the file that is written last says."""

    lines: tuple[str, ...]
    python: str
    installed: dict[str, str]


def read_requirements(path: Path) -> tuple[str, ...]:
    """Read a `requirements.txt`, or the pip part of a `conda.yaml`, as normalised lines.

    Only names with versions, extras, markers and hashes: options, addresses, paths and editable
    installs would fetch and run what nobody looked at. Raise ArtifactError with file and line.
    """
    text = _text(path)
    if path.suffix.lower() in (".yaml", ".yml"):
        return tuple(_normal(line, path.name) for line in _from_conda(text, path.name))
    joined = re.sub(r"\\\r?\n", " ", text)
    lines = ((n, _COMMENT.sub("", line).strip()) for n, line in enumerate(joined.splitlines(), 1))
    return tuple(_normal(line, f"{path.name}:{n}") for n, line in lines if line)


def environment_digest(lines: Sequence[str], *, python: str = "", machine: str = "") -> str:
    """Return `sha256:<hex>` of what decides how an environment turns out. Pure but for defaults."""
    facts = {
        "lines": sorted(lines),
        "python": python or f"{platform.python_implementation()} {platform.python_version()}",
        "machine": machine or sysconfig.get_platform(),
        "needs": list(WORKER_NEEDS),
    }
    return "sha256:" + hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()


def build_environment(
    root: Path,
    requirements: Sequence[str],
    *,
    wheels: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Environment:
    """Build the environment of these requirements, or return the one that is there.

    `wheels` is a folder to install from, without any index. `progress` gets pip's lines. Two
    builders at once make one environment; one that was cut off is made anew. Raise ArtifactError.
    """
    # Also what a record from elsewhere says: it was written by whoever exported it.
    lines = tuple(_normal(line, "requirements") for line in requirements)
    digest = environment_digest(lines)
    folder = environment_folder(root, digest)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(root / f"{folder.name}.lock"):
        python = find_environment(root, digest)
        if python is None:
            if folder.exists():
                shutil.rmtree(folder)
            python = _build(folder, lines, wheels, progress or (lambda line: None))
    return Environment(digest, python, lines)


def installed(root: Path, digest: str) -> dict[str, str]:
    """Return distribution -> version of a finished environment. Raise ArtifactError."""
    try:
        text = (environment_folder(root, digest) / READY).read_bytes()
        return msgspec.json.decode(text, type=_Ready).installed
    except (OSError, msgspec.MsgspecError) as exc:
        raise ArtifactError(f"the environment {digest[:19]}… is not finished: {exc}") from exc


# --- reading ---


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as stream:
            raw = stream.read(_MAX_FILE_BYTES + 1)
        if len(raw) > _MAX_FILE_BYTES:
            raise ArtifactError(f"{path.name}: larger than {_MAX_FILE_BYTES} bytes")
        return raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise ArtifactError(f"{path.name}: cannot be read: {exc}") from exc


def _normal(line: str, where: str) -> str:
    """Return a requirement in one way of writing, hashes sorted behind it."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    if line.startswith("-"):
        raise ArtifactError(
            f"{where}: {line.split()[0]}: options are not taken; keep names and versions, and give "
            "a folder of wheels with --wheels where an index will not do"
        )
    hashes = sorted(f"--hash={kind}:{value}" for kind, value in _HASH.findall(f" {line}"))
    try:
        wanted = Requirement(_HASH.sub("", f" {line}").strip())
        marker = f" ; {wanted.marker}" if wanted.marker is not None else ""
    except (InvalidRequirement, ValueError, RecursionError) as exc:
        raise ArtifactError(
            f"{where}: {line[:80]!r} is no requirement such as name==1.2: "
            f"{str(exc).splitlines()[0]}"
        ) from exc
    if wanted.url is not None:
        raise ArtifactError(f"{where}: {wanted.name}: an address is not taken; name a version")
    extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
    text = f"{canonicalize_name(wanted.name)}{extras}{wanted.specifier}{marker}"
    if not text.isprintable() or "${" in text:
        # A marker's text may spell a line break as \n, behind which pip would read options; and pip
        # puts the values of environment variables in.
        raise ArtifactError(f"{where}: {line[:80]!r}: control characters and ${{…}} are not taken")
    return " ".join([text, *hashes])


def _from_conda(text: str, where: str) -> list[str]:
    try:
        import yaml
    except ImportError:
        raise ArtifactError(
            f"{where}: reading it needs PyYAML: pip install 'muelle[mlflow]'"
        ) from None
    try:
        # Aliases make a small text large; nothing that writes these files uses them.
        if any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ArtifactError(f"{where}: aliases (*name) are not read")
        found: Any = yaml.safe_load(text)
    except (yaml.YAMLError, *_BROKEN_VALUES) as exc:
        reason = " ".join(str(exc).split())[:200]
        raise ArtifactError(f"{where}: not plain YAML: {reason}") from exc
    entries = found.get("dependencies") if isinstance(found, dict) else None
    mappings = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else None
    pips = None if mappings is None else [e["pip"] for e in mappings if "pip" in e]
    if pips is None or not all(isinstance(lines, list) for lines in pips):
        raise ArtifactError(f"{where}: dependencies, and pip below it, must be lists")
    return [str(line) for lines in pips for line in lines]


# --- building ---


def _build(
    folder: Path, lines: tuple[str, ...], wheels: Path | None, progress: Callable[[str], None]
) -> Path:
    python = folder / "bin" / "python"
    # Without pip inside: ours installs from outside, which is faster and keeps it small.
    _run([sys.executable, "-I", "-m", "venv", "--without-pip", str(folder)], progress, "")
    hashed = [line for line in lines if "--hash=" in line]
    # Named again where a line pins them: that line's marker may not hold here.
    plain = [*(line for line in lines if "--hash=" not in line), *WORKER_NEEDS]
    if hashed and len(hashed) < len(lines):
        raise ArtifactError("requirements: give hashes for all lines, or for none")
    for part, options in ((hashed, ["--require-hashes"]), (plain, [])):
        if part:
            _install(python, folder, part, [*options, *_source(wheels)], progress, wheels)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    found = {d.name: d.version for d in metadata.distributions(path=[str(site)])}
    if missing := [name for name in WORKER_NEEDS if name not in found]:
        raise ArtifactError(
            f"pip has put {', '.join(missing)} elsewhere than into the environment; look for "
            "target, prefix, root or user in its configuration (pip config list)"
        )
    ready = _Ready(lines, platform.python_version(), dict(sorted(found.items())))
    _write_durably(folder / READY, msgspec.json.encode(ready))
    return python


def _source(wheels: Path | None) -> list[str]:
    if wheels is None:
        return []
    if not wheels.is_dir():
        raise ArtifactError(f"{wheels}: no such folder of wheels")
    return ["--no-index", "--find-links", str(wheels.absolute())]


def _install(
    python: Path,
    folder: Path,
    part: Sequence[str],
    options: Sequence[str],
    progress: Callable[[str], None],
    wheels: Path | None,
) -> None:
    file = folder / "requirements.txt"
    file.write_text("".join(f"{line}\n" for line in part), "utf-8")
    where = f"in {wheels}" if wheels is not None else "in the configured index"
    command = [sys.executable, "-I", "-m", "pip", "--python", str(python), "install"]
    command += ["--disable-pip-version-check", "--no-input", "--only-binary", ":all:"]
    _run([*command, *options, "-r", str(file)], progress, where)


def _run(command: list[str], progress: Callable[[str], None], where: str) -> None:
    """Run a command, tell its lines, and turn a failure into one line."""
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            progress(line.rstrip())
    if process.returncode == 0:
        return
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    what = (errors or [line for line in lines if line] or ["no reason was given"])[0]
    if "No module named pip" in what:
        what = "this Python has no pip; install it (Debian: python3-pip, python3-venv)"
    raise ArtifactError(
        f"the environment cannot be built {where}: {what}; to build without an index, fetch the "
        "wheels where there is one (pip download -d wheels -r requirements.txt) and push with "
        "--wheels wheels"
    )


def _write_durably(path: Path, content: bytes) -> None:
    """Everything the environment holds is on the disk before the file that says so."""
    os.sync()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    parent = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
