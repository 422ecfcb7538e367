"""For which machine wheels and images are made: operating system, architecture, Python. Pure.

Not for finding or fetching wheels (`wheels`).
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from packaging.markers import default_environment
from packaging.tags import Tag, compatible_tags, cpython_tags

from muelle.core.errors import ConfigError

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Architecture as container tools name it -> as Python's wheels do."""
_ALSO = {"x86_64": "amd64", "aarch64": "arm64"}
GLIBC = (2, 36)
"""The newest C library that wheels may ask for: Debian 12's, which today's Python images have."""
_OLDEST_GLIBC = 5
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_PYTHON = re.compile(r"3\.(1[1-9]|[2-9][0-9])\Z")


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of machine: `platform` is `linux/amd64` or `linux/arm64`, `python` is `3.11`."""

    platform: str
    python: str

    @classmethod
    def parse(cls, platform_text: str = "", python: str = "") -> Target:
        """Read both; empty ones mean this machine. Raise ConfigError with what is known."""
        os_name, _, machine = (platform_text or this_platform()).partition("/")
        machine = _ALSO.get(machine, machine)
        if os_name != "linux" or machine not in MACHINES:
            known = ", ".join(f"linux/{name}" for name in MACHINES)
            raise ConfigError(f"--platform {platform_text!r}: known are {known}")
        version = python or "{}.{}".format(*sys.version_info)
        if not _PYTHON.match(version):
            raise ConfigError(f"--python {python!r}: a version such as 3.11, at least that")
        return cls(f"linux/{machine}", version)

    @property
    def machine(self) -> str:
        """The architecture as wheels name it: `x86_64`, `aarch64`."""
        return MACHINES[self.platform.partition("/")[2]]

    @property
    def architecture(self) -> str:
        """The architecture as images name it: `amd64`, `arm64`."""
        return self.platform.partition("/")[2]

    @property
    def is_here(self) -> bool:
        """Whether it is this machine and this interpreter's version."""
        return self == Target.parse()

    @property
    def numbers(self) -> tuple[int, int]:
        """The version of Python as numbers."""
        major, _, minor = self.python.partition(".")
        return int(major), int(minor)

    def tags(self) -> tuple[Tag, ...]:
        """Return the tags of wheels that it takes, the best first."""
        platforms = list(self.platform_tags())
        interpreter = "cp{}{}".format(*self.numbers)
        return (
            *cpython_tags(self.numbers, platforms=platforms, abis=[interpreter]),
            *compatible_tags(self.numbers, interpreter, platforms),
        )

    def platform_tags(self) -> Iterator[str]:
        """Yield the platform tags, the newest C library first."""
        major, newest = GLIBC
        for minor in range(newest, _OLDEST_GLIBC - 1, -1):
            yield f"manylinux_{major}_{minor}_{self.machine}"
            if minor in _LEGACY:
                yield f"{_LEGACY[minor]}_{self.machine}"
        yield f"linux_{self.machine}"

    def markers(self) -> dict[str, str]:
        """Return what the markers of requirements are evaluated with."""
        found = {key: str(value) for key, value in default_environment().items()}
        found |= {
            "os_name": "posix",
            "sys_platform": "linux",
            "platform_system": "Linux",
            "platform_machine": self.machine,
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
        }
        if not self.is_here:
            found |= {
                "python_version": self.python,
                "python_full_version": f"{self.python}.0",
                "implementation_version": f"{self.python}.0",
            }
        return found


def this_platform() -> str:
    """Return this machine as `linux/amd64`."""
    machine = platform.machine().lower()
    return f"{sys.platform}/{_ALSO.get(machine, machine)}"
