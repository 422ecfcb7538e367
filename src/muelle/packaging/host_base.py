"""Make a minimal base image from the Python that runs here, for sites without any registry.

It holds the interpreter, its standard library, the shared libraries that both need, the machine's
certificates and the users root and `muelle`: no shell, no package manager, no compiler. Not for
other platforms than this machine's; and what is old on the machine is as old in the image.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from muelle.core.errors import ImageError
from muelle.packaging.host_libraries import Libraries, libraries_of
from muelle.packaging.oci.blobs import Blob, digest_of, digest_of_chunks, written_file
from muelle.packaging.oci.images import Base
from muelle.packaging.oci.layers import Entry, Layer, folder_entries, write_layer
from muelle.packaging.oci.layout import dump_json, host_platform, platform_document

USER_ID = 10001
"""Of the user `muelle`, as whom images run: a number that no system gives to a person."""

_FORMAT = 1
"""Part of the cache's key: another way of making the layer must not find an old one."""

_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_CERTIFICATES_THERE = "/etc/ssl/certs/ca-certificates.crt"

_SKIPPED_FOLDERS = re.compile(
    r"site-packages|dist-packages|tests?|idlelib|tkinter|turtledemo|ensurepip|lib2to3|pydoc_data"
    r"|curses|config-.*|__pycache__"
)
_SKIPPED_FILES = re.compile(
    r"turtle\.py|sitecustomize\.py|usercustomize\.py|EXTERNALLY-MANAGED|.*\.(a|exe|pyc|pth)"
    r"|(_tkinter|_curses.*|readline|_test.*|_ctypes_test|_xx.*|xx.*|nis|ossaudiodev)\..*so"
)
_PASSWD = (
    "root:x:0:0:root:/root:/sbin/nologin\n"
    f"muelle:x:{USER_ID}:{USER_ID}:muelle:/home/muelle:/sbin/nologin\n"
)
_GROUP = f"root:x:0:\nmuelle:x:{USER_ID}:\n"
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"


class _Kept(msgspec.Struct, frozen=True):
    """What the cache knows of a layer that it keeps."""

    digest: str
    diff_id: str
    media_type: str
    size: int
    unpacked_size: int


def host_base(folder: Path, *, epoch: int) -> Base:
    """Return a base made of this machine's Python, keeping its layer in `folder`.

    The same Python and libraries give the same digest; a layer made before is taken again. `epoch`
    (s since 1970) is the time that every file gets. Raise ImageError.
    """
    python = Path(os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable))
    library = Path(sysconfig.get_path("stdlib"))
    sources = sorted(_standard_library(library))
    modules = [path for path in sources if path.name.endswith(".so")]
    libraries = libraries_of(python, modules)
    kept = [path for path in sources if path not in set(libraries.broken)]
    place = f"usr/local/{library.relative_to(sys.base_prefix).as_posix()}"
    system = [*_system_entries(python, libraries), *_certificates()]
    key = _key(system, library, kept, epoch)
    layer = _cached(folder, key)
    if layer is None:
        layer = _made(folder, key, system, (library, kept, place, python), epoch)
    return _base(layer, epoch)


def _base(layer: Layer, epoch: int) -> Base:
    version = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    env = ["PATH=/usr/local/bin", "LANG=C.UTF-8"]
    if _first(_CERTIFICATES) is not None:
        # Where OpenSSL looks by itself depends on who built it.
        env.append(f"SSL_CERT_FILE={_CERTIFICATES_THERE}")
    config = {
        **platform_document(host_platform()),
        "config": {"Env": env, "Cmd": ["/usr/local/bin/python3"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        "history": [{"created_by": f"muelle: Python {version} of the building machine"}],
    }
    name = f"host-python:{version}"
    return Base(name, digest_of(dump_json(config)), host_platform(), config, (layer,))


# --- what goes in ---


def _standard_library(library: Path) -> Iterator[Path]:
    """Yield the files of the standard library that a server may need, links followed."""
    for root, folders, files in os.walk(library):
        folders[:] = sorted(f for f in folders if not _SKIPPED_FOLDERS.fullmatch(f))
        for name in files:
            path = Path(root, name)
            if not _SKIPPED_FILES.fullmatch(name) and path.is_file():
                yield path


def _system_entries(python: Path, libraries: Libraries) -> Iterator[Entry]:
    """Yield all but the standard library."""
    minor = f"python{sys.version_info.major}.{sys.version_info.minor}"
    yield Entry(f"usr/local/bin/{minor}", python, 0o755)
    yield Entry.link("usr/local/bin/python3", minor)
    yield Entry.link("usr/local/bin/python", minor)
    yield Entry(str(libraries.loader).lstrip("/"), Path(os.path.realpath(libraries.loader)), 0o755)
    for name, path in libraries.files.items():
        yield Entry(f"{libraries.folder.strip('/')}/{name}", Path(os.path.realpath(path)))
    yield Entry("etc/passwd", _PASSWD.encode())
    yield Entry("etc/group", _GROUP.encode())
    yield Entry("etc/nsswitch.conf", _NSSWITCH.encode())
    for name in ("dev", "proc", "run", "sys"):
        yield Entry.directory(name)
    yield Entry.directory("tmp", 0o1777)
    yield Entry.directory("var/tmp", 0o1777)
    yield Entry.directory("root", 0o700)
    yield Entry.directory("home/muelle", uid=USER_ID, gid=USER_ID)
    for name in ("/etc/os-release", "/usr/share/zoneinfo/UTC"):
        if (there := _first([name])) is not None:
            yield Entry(name.lstrip("/"), there)
    if Path("/usr/lib/locale/C.utf8").is_dir():
        yield from folder_entries(Path("/usr/lib/locale/C.utf8"), "usr/lib/locale/C.utf8")


def _certificates() -> Iterator[Entry]:
    if (path := _first(_CERTIFICATES)) is not None:
        yield Entry(_CERTIFICATES_THERE.lstrip("/"), path)


def _first(paths: Sequence[str]) -> Path | None:
    return next((Path(os.path.realpath(p)) for p in paths if Path(p).is_file()), None)


# --- the layer and its cache ---


def _key(system: list[Entry], library: Path, kept: list[Path], epoch: int) -> str:
    """Return the digest of everything that the layer is made of."""
    seen = hashlib.sha256(f"{_FORMAT} {epoch} {sys.version}\n".encode())
    files = [(str(path.relative_to(library)), path) for path in kept]
    for entry in system:
        seen.update(f"{entry.path}\0{entry.bits:o}\0{entry.uid}\0".encode())
        if isinstance(entry.content, Path):
            files.append((entry.path, entry.content))
        else:
            seen.update(repr(entry.content).encode())
    for name, path in files:
        try:
            with open(path, "rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as exc:
            raise ImageError(f"{path}: cannot be read: {exc.strerror}") from exc
        seen.update(f"{name}\0{content}\n".encode())
    return seen.hexdigest()


def _cached(folder: Path, key: str) -> Layer | None:
    """Return the layer that was made before, if it is whole."""
    file, note = _places(folder, key)
    try:
        kept = msgspec.json.decode(note.read_bytes(), type=_Kept)
        blob = Blob(file, file.stat().st_size)
        if digest_of_chunks(blob.chunks()) != kept.digest:
            return None
    except (OSError, msgspec.MsgspecError):
        return None
    return _layer(kept, blob)


def _layer(kept: _Kept, blob: Blob) -> Layer:
    return Layer(
        kept.media_type,
        kept.digest,
        kept.diff_id,
        kept.size,
        blob,
        kept.unpacked_size,
        "Python of the building machine",
    )


def _places(folder: Path, key: str) -> tuple[Path, Path]:
    return folder / f"host-{key[:32]}.tar.gz", folder / f"host-{key[:32]}.json"


def _made(
    folder: Path,
    key: str,
    system: list[Entry],
    library: tuple[Path, list[Path], str, Path],
    epoch: int,
) -> Layer:
    source, kept, place, python = library
    file, note = _places(folder, key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".host-", dir=folder) as scratch:
            tree = Path(scratch)
            for path in kept:
                to = tree / path.relative_to(source)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, to)
            _compile(python, tree, place)
            entries = [*system, *folder_entries(tree, place)]
            layer = write_layer(entries, file, epoch=epoch)
    except OSError as exc:
        raise ImageError(f"{folder}: the base cannot be written: {exc.strerror or exc}") from exc
    plain = _Kept(layer.digest, layer.diff_id, layer.media_type, layer.size, layer.unpacked_size)
    with written_file(note) as stream:
        stream.write(msgspec.json.encode(plain))
    return _layer(plain, layer.blob)


def _compile(python: Path, tree: Path, place: str) -> None:
    """Write the library's byte code beside it: a read-only root could not keep what it compiles.

    In a process of its own that starts the same way every time: byte code also depends on what the
    interpreter has met before. Never checked against the source, so that no file time matters.
    """
    options = ["-q", "-f", "-j", "1", "--invalidation-mode", "unchecked-hash"]
    names = ["-s", str(tree), "-p", f"/{place}"]
    made = subprocess.run(
        [str(python), "-s", "-S", "-B", "-m", "compileall", *options, *names, str(tree)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        cwd=tree,
        env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
    )
    if made.returncode:
        words = (made.stdout + made.stderr).decode("utf-8", "replace").split()
        raise ImageError(f"{python}: cannot compile its library: {' '.join(words)[:300]}")
