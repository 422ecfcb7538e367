"""Who we are for a registry: read from the file that `docker login` writes.

Not for keeping passwords, and programs that keep them (`credsStore`) are not run.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muelle.core.errors import RegistryError


@dataclass(frozen=True, slots=True)
class Login:
    """A name and a password. Never shown."""

    user: str
    password: str

    def __repr__(self) -> str:
        return "Login(…)"

    @property
    def basic(self) -> str:
        """The header of basic authentication."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def read_login(host: str, config: Path | None = None) -> Login | None:
    """Return who we are for a registry, from `auths` of Docker's configuration, or None.

    The file is DOCKER_CONFIG/config.json or ~/.docker/config.json. Programs that it names for
    keeping passwords are not run. Raise RegistryError when the file is broken.
    """
    folder = os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker"
    path = config or Path(folder, "config.json")
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as exc:
        raise RegistryError(f"{path}: cannot be read; repair it or log in anew") from exc
    auths = found.get("auths") if isinstance(found, dict) else None
    for key, entry in auths.items() if isinstance(auths, dict) else ():
        bare = re.sub(r"^https?://", "", str(key)).split("/")[0]
        if bare == host and isinstance(entry, dict):
            return _login(entry, path)
    return None


def _login(entry: Mapping[str, Any], path: Path) -> Login | None:
    coded, user, password = (entry.get(k) for k in ("auth", "username", "password"))
    if isinstance(user, str) and isinstance(password, str):
        return Login(user, password)
    if not isinstance(coded, str) or not coded:
        return None
    try:
        user, _, password = base64.b64decode(coded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise RegistryError(f"{path}: its auth is not base64; log in anew") from None
    return Login(user, password)
