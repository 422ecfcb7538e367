"""What an image will hold, as plain values: base, wheels, versions, an app, and how it starts.

Not how it is made: `dockerfile` writes it as text, `build_oci` as layers, `engines` ask an engine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from muelle import __version__
from muelle.core.errors import ConfigError
from muelle.core.records import VersionRecord
from muelle.packaging.lock import Lock
from muelle.packaging.oci import ImageName

HOME = "/opt/muelle"
"""The virtual environment of the server in the image."""
ENVIRONMENTS = "/opt/environments"
MODELS = "/srv/models"
APP = "/srv/app"
DOCUMENTS = "/srv"
USER = 10001
PORT = 8080
LAYER_TIME = 315_532_800
"""Modification time of every file in a layer (1980): what did not change stays the same layer."""
GRACE_S = 30
"""What `docker stop -t` should allow: a little more than the server's own drain time."""

_LABEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}\Z")


@dataclass(frozen=True, slots=True)
class VersionPart:
    """One version: its files below `/srv/models`, by relative path."""

    record: VersionRecord
    files: Mapping[str, Path | bytes]

    @property
    def name(self) -> str:
        """A folder name for it: `fraud-3`."""
        return f"{self.record.model}-{self.record.version}"


@dataclass(frozen=True, slots=True)
class AppPart:
    """An application: `target` as `muelle serve` takes it, files below `/srv/app`."""

    target: str
    files: Mapping[str, Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """Everything that an image is made of."""

    name: ImageName
    base: str
    """The base as it is named in the Dockerfile."""
    lock: Lock
    versions: tuple[VersionPart, ...]
    index: Mapping[str, bytes]
    """What lies at the top of `/srv/models`."""
    epoch: int
    """Seconds since 1970 that the image calls its time of creation."""
    base_digest: str = ""
    app: AppPart | None = None
    documents: Mapping[str, bytes] = field(default_factory=dict)
    """What lies in `/srv` for people and tools: the list of parts."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of the user's own."""

    @property
    def trusted(self) -> bool:
        """Whether a version runs code when it is loaded: somebody trusted it at its push."""
        records = [part.record for part in self.versions]
        return any(record.runs_code or record.environment for record in records)

    def environment(self, path: str = "") -> dict[str, str]:
        """Return the variables of the image; `path` is the base's own PATH."""
        rest = path or "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        found = {"PATH": f"{HOME}/bin:{rest}", "MUELLE_HOST": "0.0.0.0", "MUELLE_PORT": str(PORT)}
        if self.trusted:
            found["MUELLE_TRUST"] = "true"
        return found

    def entrypoint(self) -> list[str]:
        """Return the program. Isolated: neither variables nor the working folder add modules."""
        return [f"{HOME}/bin/python3", "-I", "-m", "muelle"]

    def command(self) -> list[str]:
        """Return its arguments."""
        app = [self.app.target] if self.app is not None else []
        return ["serve", *app, *([MODELS] if self.versions else [])]

    def healthcheck(self) -> list[str]:
        """Return the program that says whether it is ready."""
        return [f"{HOME}/bin/python3", "-I", "-m", "muelle.healthcheck"]

    def all_labels(self) -> dict[str, str]:
        """Return the labels: what the OCI image specification names, ours, the user's own."""
        records = [part.record for part in self.versions]
        served = " ".join(f"{r.model}:{r.version}" for r in records)
        title = self.name.path.rpartition("/")[2]
        found = {
            "org.opencontainers.image.title": title,
            "org.opencontainers.image.version": self.name.tag,
            "org.opencontainers.image.created": rfc3339(self.epoch),
            "org.opencontainers.image.base.name": self.base,
            "dev.muelle.version": __version__,
        }
        if served:
            found["org.opencontainers.image.description"] = f"Muelle serving {served}"
            found["dev.muelle.models"] = served
        if self.base_digest:
            found["org.opencontainers.image.base.digest"] = self.base_digest
        for record in records:
            found[f"dev.muelle.digest.{record.model}.{record.version}"] = record.digest
        return dict(sorted({**found, **self.labels}.items()))


def environment_home(digest: str) -> str:
    """Return where a version's own environment lies in the image."""
    return f"{ENVIRONMENTS}/{digest.rpartition(':')[2][:32]}"


def rfc3339(epoch: int) -> str:
    """Return `2026-11-23T08:00:00Z`."""
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def epoch_of(records: Sequence[VersionRecord], env: Mapping[str, str]) -> int:
    """Return SOURCE_DATE_EPOCH, else when the newest version was published. Raise ConfigError."""
    text = env.get("SOURCE_DATE_EPOCH", "").strip()
    if text:
        if not text.isdigit() or int(text) >= 2**33:
            raise ConfigError(f"SOURCE_DATE_EPOCH={text!r}: seconds since 1970, such as 1700000000")
        return int(text)
    times = [record.created for record in records if record.created]
    return max((int(datetime.fromisoformat(t).timestamp()) for t in times), default=LAYER_TIME)


def check_labels(texts: Sequence[str]) -> dict[str, str]:
    """Read `key=value`. Raise ConfigError."""
    found = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not _LABEL.match(key) or not value.isprintable():
            raise ConfigError(f"--image-label {text!r}: KEY=TEXT, for example team=risk")
        found[key] = value
    return found
