"""Which shared libraries a program of this machine needs, and where its loader found them.

Asks the machine's own dynamic loader (`ld.so --list`), which knows about caches and search paths;
nothing is run but the loader. Not for programs of other platforms, and not for strangers' files.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from muelle.core.errors import ImageError

_PT_INTERP = 3
_LINE = re.compile(r"\s*(?:(?P<name>\S+) => )?(?P<path>/.+?) \(0x[0-9a-f]+\)")
_WANTED_BY_WHEELS = (
    "libstdc++.so.6", "libgcc_s.so.1", "libgomp.so.1", "libatomic.so.1", "libz.so.1",
    "libexpat.so.1", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0", "libutil.so.1",
)  # fmt: skip
"""What the manylinux rules let a wheel expect of the system (PEP 599 and later), less graphics; and
OpenMP, which some expect all the same."""
_LOOKED_UP_BY_LIBC = ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2")
"""Opened by name when a host is looked up; the newest libc has them inside."""


@dataclass(frozen=True, slots=True)
class Libraries:
    """A closed set: each library's needs are in it."""

    loader: Path
    """Where programs expect the dynamic loader: an absolute path, the same in an image."""
    folder: str
    """Where the loader looks without being told: the folder that the C library lies in."""
    files: dict[str, Path]
    """Name that is asked for -> file of this machine."""
    broken: tuple[Path, ...]
    """What was asked about and could not be loaded here either."""


def libraries_of(program: Path, modules: Iterable[Path]) -> Libraries:
    """Return what a program and the modules that it loads need, on this machine.

    Also those that wheels take for granted, where this machine has them. Raise ImageError.
    """
    loader = elf_interpreter(program)
    found = _needs(loader, program)
    if found is None:
        raise ImageError(f"{program}: its libraries cannot be found by {loader}")
    broken = []
    for module in modules:
        needs = _needs(loader, module)
        if needs is None:
            broken.append(module)
        else:
            found = needs | found
    libc = next((p for n, p in found.items() if re.match(r"libc\.(so\.6|musl)", n)), None)
    folder = str(libc.parent) if libc is not None else "/lib"
    for name in (*_WANTED_BY_WHEELS, *_LOOKED_UP_BY_LIBC):
        path = Path(folder, name)
        if not path.is_file():
            path = Path("/usr", folder.lstrip("/"), name)
        if name not in found and path.is_file():
            found = {name: path} | (_needs(loader, path) or {}) | found
    return Libraries(loader, folder, dict(sorted(found.items())), tuple(broken))


def elf_interpreter(program: Path) -> Path:
    """Return the dynamic loader that a 64-bit ELF program names. Raise ImageError.

    Source: System V ABI, "ELF header" and "Program header" (PT_INTERP).
    """
    try:
        with open(program, "rb") as stream:
            head = stream.read(64)
            if len(head) < 64 or head[:4] != b"\x7fELF" or head[4] != 2:
                raise ImageError(
                    f"{program}: no 64-bit program of Linux; give a base image instead"
                )
            order = "<" if head[5] == 1 else ">"
            (start,) = struct.unpack_from(order + "Q", head, 32)
            size, number = struct.unpack_from(order + "HH", head, 54)
            for i in range(number):
                stream.seek(start + i * size)
                kind, _, offset, _, _, length = struct.unpack(order + "IIQQQQ", stream.read(40))
                if kind == _PT_INTERP:
                    stream.seek(offset)
                    return Path(stream.read(min(length, 4096)).rstrip(b"\0").decode())
    except (OSError, struct.error, UnicodeDecodeError) as exc:
        raise ImageError(f"{program}: cannot be read as a program: {exc}") from exc
    raise ImageError(
        f"{program}: a static program, which loads no wheels; give a base image instead"
    )


def _needs(loader: Path, file: Path) -> dict[str, Path] | None:
    """Return name -> file of all that a file needs, or None when something is missing."""
    try:
        told = subprocess.run(
            [str(loader), "--list", str(file)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
            env={},
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ImageError(f"{loader}: cannot be asked about {file}: {exc}") from exc
    text = told.stdout.decode("utf-8", "surrogateescape")
    if told.returncode or "not found" in text:
        return None
    needs = {}
    for match in map(_LINE.fullmatch, text.splitlines()):
        # A line without a name is the loader itself, which has its own place.
        if match is not None and match["name"]:
            path = Path(match["path"])
            if path.name != loader.name:
                needs[Path(match["name"]).name] = path
    return needs
