"""Find wheels in folders, fetch them with pip, or pack them anew from what is installed here.

Not for deciding which ones are needed (`lock`). Nothing of a wheel is run.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from muelle.core.errors import ArtifactError
from muelle.packaging.targets import Target

BLOCK_BYTES = 1024 * 1024
_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that a ZIP file can say: packing twice gives the same bytes."""
_NOT_PACKED = ("RECORD", "INSTALLER", "direct_url.json", "REQUESTED", "RECORD.jws", "RECORD.p7s")

Lines = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Pin:
    """A distribution and the one version of it that is wanted ("": any)."""

    name: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name}=={self.version}" if self.version else self.name


@dataclass(frozen=True, slots=True)
class LockedWheel:
    """A wheel that lies on this disk, by name and content."""

    name: str
    """Normalised: `scikit-learn`."""
    version: str
    sha256: str
    size: int
    path: Path

    @property
    def file(self) -> str:
        """Its file name."""
        return self.path.name


def cache_folder(env: Mapping[str, str]) -> Path:
    """Return where this user keeps what can be made again."""
    base = env.get("XDG_CACHE_HOME") or str(Path(env.get("HOME", "/")) / ".cache")
    return Path(base) / "muelle"


def locked(path: Path) -> LockedWheel:
    """Hash a wheel. Raise ArtifactError when its name is no wheel's, or it cannot be read."""
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
        digest = hashlib.sha256()
        size = 0
        with open(path, "rb", buffering=0) as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
                size += len(block)
    except (InvalidWheelFilename, InvalidVersion) as exc:
        raise ArtifactError(f"{path.name}: not a wheel's name: {exc}") from exc
    except OSError as exc:
        raise ArtifactError(f"{path}: cannot be read: {exc.strerror}") from exc
    return LockedWheel(name, str(version), digest.hexdigest(), size, path)


def find_wheels(
    pins: Iterable[Pin], folders: Sequence[Path], target: Target
) -> tuple[dict[Pin, Path], list[Pin]]:
    """Return the best wheel of each pin for the target, and the pins for which there is none."""
    ranks = {tag: i for i, tag in enumerate(target.tags())}
    there: dict[str, list[tuple[Version, int, Path]]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.whl")):
            try:
                name, version, _, tags = parse_wheel_filename(path.name)
            except (InvalidWheelFilename, InvalidVersion):
                continue
            rank = min((ranks[tag] for tag in tags if tag in ranks), default=-1)
            if rank >= 0:
                there.setdefault(name, []).append((version, -rank, path))
    found: dict[Pin, Path] = {}
    missing = []
    for pin in pins:
        fitting = [
            one
            for one in there.get(canonicalize_name(pin.name), ())
            if not pin.version or one[0] == Version(pin.version)
        ]
        if fitting:
            found[pin] = max(fitting, key=lambda one: one[:2])[2]
        else:
            missing.append(pin)
    return found, missing


def fetch(pins: Sequence[Pin], folder: Path, target: Target, lines: Lines) -> None:
    """Download the wheels of these pins from the index that pip is configured for.

    Wheels only: building a source distribution would run its code. Raise ArtifactError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # pip writes into a folder of its own, so that a download that was cut off is not found later.
    with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as work:
        wanted = Path(work) / "pins.txt"
        wanted.write_text("".join(f"{pin}\n" for pin in pins), "utf-8")
        _pip(
            ["download", "--no-deps", "--only-binary", ":all:", "--dest", work]
            + [f"--platform={tag}" for tag in target.platform_tags()]
            + ["--python-version", target.python, "--implementation", "cp"]
            + [f"--abi={abi}" for abi in ("cp{}{}".format(*target.numbers), "abi3", "none")]
            + ["-r", str(wanted)],
            lines,
            target,
        )
        for path in Path(work).glob("*.whl"):
            os.replace(path, folder / path.name)


def _pip(arguments: list[str], lines: Lines, target: Target) -> None:
    command = [sys.executable, "-I", "-m", "pip", "--disable-pip-version-check", "--no-input"]
    told: list[str] = []
    with subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            told.append(line.rstrip())
            lines(line.rstrip())
    if process.returncode:
        raise ArtifactError(_why(told, target))


def _why(told: Sequence[str], target: Target) -> str:
    errors = [line.removeprefix("ERROR: ") for line in told if line.startswith("ERROR:")]
    what = (errors or [line for line in told if line] or ["no reason was given"])[-1]
    if "No module named pip" in what:
        return "this Python has no pip; install it (Debian: python3-pip), or give --wheels DIR"
    return (
        f"wheels for {target.platform}, Python {target.python}, cannot be fetched: {what}; where "
        "there is no index, give a folder that holds them: --wheels DIR"
    )


# --- packing what is installed ---


def repack(name: str, folder: Path) -> Path:
    """Pack an installed distribution into a wheel again; the same files give the same bytes.

    For this machine only, unless it is pure Python. Raise ArtifactError when it is not installed,
    or its files are not known.
    """
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError as exc:
        raise ArtifactError(f"{name} is not installed here") from exc
    files = dict(_files(found))
    info = f"{_file_name(found.name)}-{found.version}.dist-info"
    old = next((n.split("/")[0] for n in files if n.endswith(".dist-info/METADATA")), info)
    if f"{old}/METADATA" not in files:
        raise ArtifactError(f"{name}: its files are not known here; install it with pip")
    tags = _tags(found)
    members = {n.replace(old, info, 1) if n.startswith(old) else n: p for n, p in files.items()}
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{_file_name(found.name)}-{found.version}-{tags[0]}.whl"
    _write(target, members, info, tags)
    return target


def _files(found: metadata.Distribution) -> Iterable[tuple[str, Path]]:
    """Yield (name in the wheel, path) of what was installed, without what installers add."""
    names = [str(path) for path in found.files or ()]
    if found.name == "muelle" and not any(n == "muelle/__init__.py" for n in names):
        yield from _own_files(found)
        return
    for path in found.files or ():
        text = path.as_posix()
        if text.startswith("../") or "__pycache__" in path.parts:
            continue  # Scripts are made anew where the wheel is installed.
        if path.parent.name.endswith(".dist-info") and path.name in (*_NOT_PACKED, "WHEEL"):
            continue
        place = Path(str(path.locate()))
        if place.is_file():
            yield text, place


def _own_files(found: metadata.Distribution) -> Iterable[tuple[str, Path]]:
    """Yield our own package from where it lies: a source tree knows no list of files."""
    root = Path(__file__).resolve().parents[1]
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
            yield f"muelle/{path.relative_to(root).as_posix()}", path
    for path_in in found.files or ():
        if path_in.parent.name.endswith(".dist-info") and path_in.name not in (
            *_NOT_PACKED,
            "WHEEL",
        ):
            place = Path(str(path_in.locate()))
            if place.is_file():
                yield path_in.as_posix(), place


def _tags(found: metadata.Distribution) -> tuple[str, ...]:
    text = found.read_text("WHEEL") or ""
    tags = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("Tag:")]
    if found.name == "muelle" or not tags:
        return ("py3-none-any",)
    # Several tags stand for one file name: `py2.py3-none-any`, `cp311-cp311-linux_1.linux_2`.
    parts = zip(*(tag.split("-") for tag in tags), strict=True)
    return ("-".join(".".join(sorted(set(part))) for part in parts), *tags)


def _file_name(name: str) -> str:
    return canonicalize_name(name).replace("-", "_")


def _write(target: Path, members: Mapping[str, Path], info: str, tags: Sequence[str]) -> None:
    wheel = "Wheel-Version: 1.0\nGenerator: muelle\n"
    pure = tags[0].endswith("-any")
    wheel += f"Root-Is-Purelib: {'true' if pure else 'false'}\n"
    wheel += "".join(f"Tag: {tag}\n" for tag in tags[1:] or tags)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    record = []
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, path in sorted(members.items()):
                content = path.read_bytes()
                mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                record.append(_add(archive, name, content, mode))
            record.append(_add(archive, f"{info}/WHEEL", wheel.encode(), 0o644))
            record.append(f"{info}/RECORD,,")
            _add(archive, f"{info}/RECORD", "\n".join([*record, ""]).encode(), 0o644)
        os.replace(part, target)
    except OSError as exc:
        raise ArtifactError(f"{target.name}: cannot be packed: {exc.strerror}") from exc
    finally:
        part.unlink(missing_ok=True)


def _add(archive: zipfile.ZipFile, name: str, content: bytes, mode: int) -> str:
    import base64

    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = (0o100000 | mode) << 16
    archive.writestr(info, content)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    quoted = f'"{name}"' if "," in name else name
    return f"{quoted},sha256={digest},{len(content)}"
