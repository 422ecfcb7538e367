"""Make a running server of a bundle with nothing but Python: `python3 X.muelle install-server`.

A copy of this file is the `__main__.py` of every bundle; `muelle install-server` runs the same
code. Everything is checked before anything is written, each step leaves a mark, and a second run
goes on where the first was cut off. Not for taking versions into a store: the Muelle that comes
out of the bundle does that itself. Standard library only.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - in a bundle, any Python may run this.
    sys.exit(
        f"muelle: this is Python {sys.version_info[0]}.{sys.version_info[1]}, Muelle needs 3.11 or "
        f"newer; run it with a newer one, for example: python3.11 {' '.join(sys.argv)}"
    )

import argparse
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__:
    from muelle.packaging import bundle_format as form
    from muelle.packaging import bundle_read as read
    from muelle.packaging import bundle_start as service
    from muelle.packaging import bundle_wheels as unpacked
else:  # In a bundle they lie side by side.
    import bundle_format as form  # type: ignore[import-not-found,no-redef]
    import bundle_read as read  # type: ignore[import-not-found,no-redef]
    import bundle_start as service  # type: ignore[import-not-found,no-redef]
    import bundle_wheels as unpacked  # type: ignore[import-not-found,no-redef]

MARK = ".muelle-server"
"""Stands in a folder that we made: nothing else is ever written over or removed."""
_COMPLETE = ".complete"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_GLIBC = re.compile(r"manylinux_(\d+)_(\d+)_")
_OLD_GLIBC = {"manylinux2014": (2, 17), "manylinux2010": (2, 12), "manylinux1": (2, 5)}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What `install-server` is asked for."""

    bundle: Path
    folder: Path
    host: str = "127.0.0.1"
    port: int = 8080
    start: bool = True
    foreground: bool = False
    wait_s: float = 120.0


class InstallError(form.BundleError):
    """A server cannot be made here: one line that says why, and what to do."""


def install(options: Options, say: Say, texts: service.Texts) -> int:
    """Make the server, start it if asked for; return the exit code. Raise BundleError."""
    bundle = options.bundle.absolute()
    say(texts("checking", name=bundle.name))
    index = read.verify_bundle(bundle)
    wheels = [Path(entry.name).name for entry in index.of_kind("wheel")]
    refuse_misfit(bundle.name, index, wheels, this_machine())
    folder = options.folder.resolve()
    try:
        _claim(folder)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            home = make_environment(bundle, index, folder, say, texts)
            import_versions(bundle, index, folder, home, say, texts)
            # Only now: a server that starts by itself finds the whole.
            changed = _point(folder / "venv", home.relative_to(folder))
            plan = service.Plan(folder, home, options.host, options.port, changed)
            service.write_files(plan)
        finally:
            os.close(lock)
    except OSError as exc:
        raise InstallError(
            f"{exc.filename or folder}: {exc.strerror or exc}; free some space or choose another "
            "folder with --to, then run the same command again"
        ) from exc
    if options.foreground:
        service.run_here(plan)
    if options.start:
        service.start(plan, say, texts, wait_s=options.wait_s)
    else:
        say(texts("not_started", start=folder / "start"))
    say(texts("systemd", unit=folder / "muelle.service"))
    return 0


# --- does it fit? ---


@dataclass(frozen=True)
class Machine:
    """What a machine can run. `glibc` is (0, 0) when its C library is another."""

    platform: str
    python: str
    implementation: str
    glibc: tuple[int, int]


def this_machine() -> Machine:
    """Return what this one can run."""
    name = platform.machine().lower()
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        text = ""
    numbers = re.findall(r"\d+", text)
    return Machine(
        f"{sys.platform}/{_MACHINES.get(name, name)}",
        "{}.{}".format(*sys.version_info),
        platform.python_implementation(),
        (int(numbers[0]), int(numbers[1])) if len(numbers) >= 2 else (0, 0),
    )


def refuse_misfit(
    name: str, index: form.BundleIndex, wheels: Sequence[str], machine: Machine
) -> None:
    """Raise InstallError when the wheels cannot run on a machine. Pure."""
    if not wheels:
        raise InstallError(
            f"{name}: it holds no wheels (it was made with --no-wheels); install Muelle here and "
            f"use: muelle import {name}"
        )
    if index.platform != machine.platform:
        raise InstallError(
            f"{name}: its wheels are for {index.platform}, this machine is {machine.platform}; "
            f"make one for it: muelle bundle --platform {machine.platform}"
        )
    if (index.python, "CPython") != (machine.python, machine.implementation):
        raise InstallError(
            f"{name}: its wheels are for Python {index.python}, this is {machine.implementation} "
            f"{machine.python}; run it with python{index.python}, or make one for this: "
            f"muelle bundle --python {machine.python}"
        )
    needed, wheel = max(((glibc_of(one), one) for one in wheels), default=((0, 0), ""))
    if needed > machine.glibc:
        has = "{}.{}".format(*machine.glibc) if any(machine.glibc) else "another C library"
        raise InstallError(
            f"{name}: {wheel} needs glibc {needed[0]}.{needed[1]}, here is {has}; use a newer "
            "system, or make the bundle with older wheels (--wheels DIR)"
        )


def glibc_of(wheel: str) -> tuple[int, int]:
    """Return the oldest C library that a wheel runs with, by its file name; (0, 0): any."""
    platforms = wheel.removesuffix(".whl").rpartition("-")[2]
    found = []
    for tag in platforms.split("."):
        match = _GLIBC.match(tag)
        if match is not None:  # No `:=`: an old Python must be able to read this file.
            found.append((int(match[1]), int(match[2])))
        for old, numbers in _OLD_GLIBC.items():
            if tag.startswith(f"{old}_"):
                found.append(numbers)
    return min(found, default=(0, 0))


# --- the folder ---


def _claim(folder: Path) -> None:
    """Make the folder ours. Raise InstallError when it holds something else."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise InstallError(
            f"{folder}: there is something already that is no Muelle server; choose another folder "
            "with --to"
        )
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    (folder / MARK).write_text("made by muelle install-server\n", "utf-8")


def make_environment(
    bundle: Path, index: form.BundleIndex, folder: Path, say: Say, texts: service.Texts
) -> Path:
    """Return the virtual environment of these wheels, made when it is not there whole.

    It lies under a name of its own, made of what is in it, until it is complete: an earlier server
    goes on with the earlier one.
    """
    wanted = read.read_member(bundle, index, "requirements.txt")
    facts = f"{sys.version}\0{sys.base_prefix}\0".encode() + wanted
    home = folder / "venvs" / hashlib.sha256(facts).hexdigest()[:16]
    if (home / _COMPLETE).is_file():
        say(texts("environment_there"))
        return home
    say(texts("environment", n=len(index.of_kind("wheel"))))
    _remove(home)
    wheels = folder / "unpacked"
    _remove(wheels)
    home.parent.mkdir(exist_ok=True)
    _run([sys.executable, "-I", "-m", "venv", "--without-pip", str(home)])
    names = [entry.name for entry in index.of_kind("wheel")]
    read.extract(bundle, index, [*names, "requirements.txt"], wheels)
    _install(wheels, home, wanted.decode())
    _remove(wheels)
    os.sync()  # All that it holds is on the disk before the file that says so.
    (home / _COMPLETE).write_bytes(wanted)
    return home


def _install(wheels: Path, home: Path, wanted: str) -> None:
    """Install what is wanted: with the pip of the bundle, else by unpacking."""
    python = home / "bin" / "python"
    pips = sorted((wheels / "wheels").glob("pip-*.whl"))
    if pips:
        command = [str(python), str(pips[-1] / "pip"), "--disable-pip-version-check", "--no-input"]
        command += ["install", "--no-index", "--find-links", str(wheels / "wheels"), "--no-deps"]
        _run([*command, "--require-hashes", "-r", str(wheels / "requirements.txt")])
        return
    hashes = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", wanted))
    found = sorted((wheels / "wheels").glob("*.whl"))
    chosen = [w for w in found if hashlib.sha256(w.read_bytes()).hexdigest() in hashes]
    if len(chosen) < len(wanted.splitlines()):
        raise InstallError("requirements.txt names a wheel that is not in the bundle")
    unpacked.install_wheels(chosen, home, sys.version_info[:2])


def import_versions(
    bundle: Path,
    index: form.BundleIndex,
    folder: Path,
    home: Path,
    say: Say,
    texts: service.Texts,
) -> None:
    """Take the versions into the server's store, with the Muelle that came out of the bundle.

    Trusted: whoever runs a bundle's own program has trusted it already.
    """
    if not index.versions:
        return
    say(texts("importing", n=len(index.versions)))
    command = [str(home / "bin" / "python"), "-I", "-m", "muelle", "import", str(bundle)]
    _run([*command, "--store", str(folder / "store"), "--labels", "--trust"])


def _point(link: Path, target: Path) -> bool:
    """Let a link name its target, at once; return whether it named another.

    The environment that it named may be in use and stays; those before it go.
    """
    earlier = os.readlink(link) if link.is_symlink() else ""
    if earlier == str(target):
        return False
    part = link.with_name(f".{link.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    os.replace(part, link)
    for other in (link.parent / target).parent.iterdir():
        if other.name not in (target.name, Path(earlier).name):
            _remove(other)
    return bool(earlier)


def _remove(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)


def _run(command: Sequence[str]) -> None:
    """Run a program. Raise InstallError with the line in which it says what is wrong."""
    done = subprocess.run(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=service.clean_environment(os.environ),
        check=False,
    )
    if done.returncode:
        raise InstallError(_why(done.stdout.splitlines(), command))


def _why(lines: Iterable[str], command: Sequence[str]) -> str:
    told = [line.strip() for line in lines if line.strip()]
    marked = ("ERROR: ", "muelle: ", "Error: ")
    errors = [line.partition(": ")[2] for line in told if line.startswith(marked)]
    return (errors or told or [f"{' '.join(command[:4])} … failed and said nothing"])[-1]


# --- as a program ---


def main(arguments: Sequence[str], here: Path, env: dict[str, str]) -> int:
    """Run a bundle as a program. `here` is what Python was given: the bundle, or a folder."""
    texts = service.Texts(service.language_of(env))
    parser = argparse.ArgumentParser(prog=f"python3 {here.name}", description=texts("about"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("install-server", "check"):
        one = commands.add_parser(
            name, help=texts(f"help.{name}"), description=texts(f"help.{name}")
        )
        one.add_argument("bundle", nargs="?", type=Path, help=texts("help.bundle"))
        if name == "install-server":
            _add_options(one, texts)
    asked = parser.parse_args(list(arguments))
    bundle = asked.bundle or (None if here.is_dir() else here)
    if bundle is None:
        parser.error(texts("name_it"))

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        if asked.command == "check":
            index = read.verify_bundle(bundle)
            for version in index.versions:
                print(f"{version.model}:{version.version} {version.digest}")
            say(texts("whole", name=bundle.name, n=len(index.members), sha256=index.sha256))
            return 0
        return install(
            Options(
                bundle=bundle,
                folder=asked.to,
                host=asked.host,
                port=asked.port,
                start=not asked.no_start,
                foreground=asked.foreground,
            ),
            say,
            texts,
        )
    except form.BundleError as exc:
        say(f"muelle: {' '.join(exc.message.split())}")
        return 1
    except KeyboardInterrupt:
        return 130


def _add_options(parser: argparse.ArgumentParser, texts: service.Texts) -> None:
    parser.add_argument(
        "--to", type=Path, default=Path("muelle-server"), metavar="DIR", help=texts("help.to")
    )
    parser.add_argument("--host", default="127.0.0.1", help=texts("help.host"))
    parser.add_argument("--port", type=service.port, default=8080, help=texts("help.port"))
    parser.add_argument("--no-start", action="store_true", help=texts("help.no_start"))
    parser.add_argument("--foreground", action="store_true", help=texts("help.foreground"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(sys.argv[0]), dict(os.environ)))
