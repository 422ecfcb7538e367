"""Install locked wheels into a folder as they will lie in an image. Runs nothing of them.

For images that are written without an engine. Not for this machine's own environments
(`environments`), nor for layers (`oci`).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from muelle.core.errors import ArtifactError
from muelle.packaging.targets import Target
from muelle.packaging.wheels import LockedWheel
from muelle.runtimes.libraries import library

Step = Callable[[int, int], None]


def install_wheels(
    wheels: Sequence[LockedWheel],
    root: Path,
    home: str,
    *,
    target: Target,
    step: Step = lambda done, total: None,
) -> None:
    """Install wheels below `root` as the virtual environment `home` (an absolute path inside it).

    Byte code is made where this interpreter's is the target's. Raise ArtifactError, which names
    the wheel that is broken.
    """
    for i, wheel in enumerate(wheels):
        step(i, len(wheels))
        _install(wheel, root, home, target)
    step(len(wheels), len(wheels))
    if target.numbers == sys.version_info[:2]:
        compile_folder(root, site_packages(home, target))


def site_packages(home: str, target: Target) -> str:
    """Return where packages lie in a virtual environment."""
    return f"{home}/lib/python{target.python}/site-packages"


def environment_files(home: str, python: str, target: Target) -> dict[str, bytes]:
    """Return the files that make `home` a virtual environment of `python` (a real path)."""
    folder = python.rpartition("/")[0]
    text = f"home = {folder}\ninclude-system-site-packages = false\nversion = {target.python}\n"
    return {f"{home}/pyvenv.cfg": text.encode()}


def compile_folder(root: Path, inside: str) -> None:
    """Make byte code that holds for ever: what it was made from cannot change in an image.

    One process, files in order: the same sources give the same bytes.
    """
    folder = root / inside.lstrip("/")
    if not folder.is_dir():
        return
    done = subprocess.run(
        [
            sys.executable, "-I", "-m", "compileall", "-q", "-q", "-j", "1",
            "--invalidation-mode", "unchecked-hash",
            "-s", str(folder), "-p", inside, str(folder),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={"PYTHONHASHSEED": "0"},
    )  # fmt: skip
    # Exit status 1 says that some file does not compile: packages ship such (templates, tests).
    if done.returncode not in (0, 1):
        raise ArtifactError(f"byte code cannot be made: {done.stderr.strip()[-300:]}")


def _install(wheel: LockedWheel, root: Path, home: str, target: Target) -> None:
    installer = library("installer", "build")
    destinations = library("installer.destinations", "build")
    sources = library("installer.sources", "build")
    site = str(root) + site_packages(home, target)
    scheme = {
        "purelib": site,
        "platlib": site,
        "scripts": f"{root}{home}/bin",
        "headers": f"{root}{home}/include/{wheel.name}",
        "data": f"{root}{home}",
    }
    destination = destinations.SchemeDictionaryDestination(
        scheme, interpreter=f"{home}/bin/python3", script_kind="posix"
    )
    try:
        with sources.WheelFile.open(wheel.path) as source:
            # Also that every file is listed with its hash, and that nothing lies outside.
            source.validate_record()
            installer.install(source, destination, additional_metadata={})
    except OSError as exc:
        raise ArtifactError(f"{wheel.file}: cannot be installed: {exc.strerror or exc}") from exc
    except Exception as exc:
        # A wheel is a stranger's file: whatever its reader raises, it is the wheel's fault.
        raise ArtifactError(f"{wheel.file}: not a wheel that can be installed: {exc}") from exc
