"""Install wheels into a virtual environment by unpacking them: for a bundle without pip.

Every file is compared with the wheel's own list first. Nothing of a wheel is run. Not for choosing
wheels, nor for images (`installed`). Standard library only: a copy of this file travels in every
bundle.
"""

from __future__ import annotations

import base64
import configparser
import csv
import hashlib
import io
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

if __package__:
    from muelle.packaging import bundle_format as form
else:  # In a bundle they lie side by side.
    import bundle_format as form  # type: ignore[import-not-found,no-redef]

_UNLISTED = ("RECORD", "RECORD.jws", "RECORD.p7s")
_SCRIPT = """#!{python}
import sys
from {module} import {first}
if __name__ == "__main__":
    sys.exit({name}())
"""


class WheelInvalid(form.BundleError):
    """A wheel is not what its own list says, or writes where it must not."""


def install_wheels(wheels: Sequence[Path], environment: Path, numbers: tuple[int, int]) -> None:
    """Install wheels into a virtual environment of Python `numbers`. Raise WheelInvalid, OSError.

    Where two hold the same file, the later one's stays, as with pip.
    """
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                _Wheel(wheel.name, archive, environment, numbers).install()
        except (zipfile.BadZipFile, KeyError, UnicodeDecodeError, configparser.Error) as exc:
            raise WheelInvalid(f"{wheel.name}: not a wheel: {exc}") from exc


class _Wheel:
    """One wheel on its way into an environment."""

    def __init__(
        self, name: str, archive: zipfile.ZipFile, environment: Path, numbers: tuple[int, int]
    ) -> None:
        self._name, self._archive = name, archive
        self._home = environment
        self._site = environment / "lib" / f"python{numbers[0]}.{numbers[1]}" / "site-packages"
        self._python = str(environment / "bin" / "python")
        distribution, version = name.split("-")[:2]
        self._info = f"{distribution}-{version}.dist-info"
        self._part = f"{distribution}-{version}.data/"
        self._written: list[tuple[Path, bytes]] = []

    def install(self) -> None:
        """Check all, then write all, then the list of what was written."""
        listed = self._listed()
        files = [one for one in self._archive.infolist() if not one.is_dir()]
        for one in files:
            self._check(one.filename, listed)
        for one in files:
            if one.filename != f"{self._info}/RECORD":
                executable = bool(one.external_attr >> 16 & 0o100)
                self._place(one.filename, self._archive.read(one), executable=executable)
        self._make_scripts()
        self._write(self._site / self._info / "INSTALLER", b"muelle\n")
        self._write_list()

    def _listed(self) -> dict[str, str]:
        text = self._archive.read(f"{self._info}/RECORD").decode()
        return {row[0]: row[1] for row in csv.reader(io.StringIO(text)) if len(row) >= 2}

    def _check(self, name: str, listed: dict[str, str]) -> None:
        """Raise WheelInvalid unless the file is listed, and is what the list says."""
        parts = name.split("/")
        if name.startswith("/") or "\\" in name or any(p in ("", ".", "..") for p in parts):
            raise WheelInvalid(f"{self._name}: {name!r} would be written outside")
        if parts[0] == self._info and parts[-1] in _UNLISTED:
            return
        if listed.get(name) != _digest(self._archive.read(name)):
            raise WheelInvalid(f"{self._name}: {name} is not what its list (RECORD) says")

    def _place(self, name: str, content: bytes, *, executable: bool) -> None:
        """Write one file to where its kind belongs."""
        if not name.startswith(self._part):
            self._write(self._site / name, content, executable=executable)
            return
        kind, _, rest = name[len(self._part) :].partition("/")
        if kind == "scripts":
            if content.startswith(b"#!python"):
                _, _, body = content.partition(b"\n")
                content = f"#!{self._python}\n".encode() + body
            self._write(self._home / "bin" / rest, content, executable=True)
            return
        homes = {"purelib": self._site, "platlib": self._site, "data": self._home}
        homes["headers"] = self._home / "include" / self._name.split("-")[0]
        if kind not in homes:
            raise WheelInvalid(f"{self._name}: {name}: no such kind of file")
        self._write(homes[kind] / rest, content, executable=executable)

    def _make_scripts(self) -> None:
        """Write the commands that the wheel announces."""
        try:
            text = self._archive.read(f"{self._info}/entry_points.txt").decode()
        except KeyError:
            return
        points = configparser.ConfigParser(delimiters=("=",), interpolation=None)
        points.optionxform = str  # type: ignore[assignment, method-assign]
        points.read_string(text)
        commands = points["console_scripts"] if points.has_section("console_scripts") else {}
        for command, target in commands.items():
            module, _, name = target.split("[")[0].strip().partition(":")
            words = [*module.split("."), *name.split(".")]
            if "/" in command or not all(word.isidentifier() for word in words):
                raise WheelInvalid(f"{self._name}: {command!r} is no command")
            script = _SCRIPT.format(
                python=self._python, module=module, name=name, first=name.split(".")[0]
            )
            self._write(self._home / "bin" / command, script.encode(), executable=True)

    def _write(self, target: Path, content: bytes, *, executable: bool = False) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target.unlink(missing_ok=True)
        with open(os.open(target, flags, 0o755 if executable else 0o644), "wb") as stream:
            stream.write(content)
        self._written.append((target, content))

    def _write_list(self) -> None:
        target = self._site / self._info / "RECORD"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for path, content in self._written:
            shown = os.path.relpath(path, self._site)
            writer.writerow((shown, _digest(content), len(content)))
        writer.writerow((os.path.relpath(target, self._site), "", ""))
        target.write_text(text.getvalue(), "utf-8")


def _digest(content: bytes) -> str:
    found = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
    return f"sha256={found.rstrip(b'=').decode()}"
