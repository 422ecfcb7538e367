"""Work out an image's documents: its configuration, its manifest, its index. Pure.

Not for bytes on a disk (`write`): two plans of the same base, layers and settings are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from muelle.core.errors import ImageError
from muelle.packaging.oci.blobs import digest_of
from muelle.packaging.oci.images import Base
from muelle.packaging.oci.layers import Layer
from muelle.packaging.oci.layout import (
    CONFIG,
    FULL_NAME,
    INDEX,
    MANIFEST,
    REF_NAME,
    Descriptor,
    ImageName,
    Platform,
    dump_json,
    host_platform,
    parse_name,
    platform_document,
)

_NOTE = "org.opencontainers.image."
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Healthcheck:
    """How an engine asks a container whether it is well: a command's words, without a shell."""

    command: tuple[str, ...]
    interval_s: float = 30.0
    timeout_s: float = 5.0
    start_period_s: float = 0.0
    retries: int = 3

    def document(self) -> dict[str, Any]:
        """Return it as Docker's extension of the configuration has it (times in ns)."""
        return {
            "Test": ["CMD", *self.command],
            "Interval": round(self.interval_s * _SECOND_NS),
            "Timeout": round(self.timeout_s * _SECOND_NS),
            "StartPeriod": round(self.start_period_s * _SECOND_NS),
            "Retries": self.retries,
        }


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What a container starts with. What is empty here is taken from the base."""

    entrypoint: tuple[str, ...] = ()
    """Where it is given, the base's command falls away with the base's entry point."""
    cmd: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    workdir: str = ""
    ports: tuple[str, ...] = ()
    """Such as `8080/tcp`."""
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    """Those that begin with `org.opencontainers.image.` are the manifest's annotations as well."""
    healthcheck: Healthcheck | None = None
    """Docker obeys it; Podman only in images that are not in OCI's format."""
    stop_signal: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """All documents of an image, before a byte is written. Two plans of one image are equal."""

    name: ImageName
    config: bytes
    manifest: bytes
    layers: tuple[Layer, ...]
    platform: Platform

    @property
    def documents(self) -> tuple[bytes, bytes]:
        return self.config, self.manifest

    def index(self) -> bytes:
        notes = {REF_NAME: str(self.name), FULL_NAME: self.name.full}
        size = len(self.manifest)
        entry = Descriptor(MANIFEST, digest_of(self.manifest), size, notes, self.platform)
        return dump_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry.document()]})

    def docker_manifest(self) -> bytes:
        """What `docker load` reads first."""
        image = {
            "Config": blob_name(digest_of(self.config)),
            "RepoTags": [str(self.name)],
            "Layers": [blob_name(layer.digest) for layer in self.layers],
        }
        return dump_json([image])


def plan(
    base: Base | None,
    layers: Sequence[Layer],
    config: ImageConfig,
    *,
    name: str,
    epoch: int,
    platform: Platform | None = None,
) -> Plan:
    """Return the documents of an image. Pure but for this machine's platform. Raise ImageError."""
    runs_on = platform or (base.platform if base is not None else host_platform())
    if base is not None and not runs_on.runs(base.platform):
        raise ImageError(
            f"{base.name}: is for {base.platform}, not for {runs_on}; give a base for that platform"
        )
    called = parse_name(name)
    from_base = f"base {base.name}" if base is not None else ""
    below = tuple(
        replace(layer, comment=layer.comment or from_base)
        for layer in (base.layers if base is not None else ())
    )
    every = (*below, *layers)
    if not every:
        raise ImageError(f"{name}: an image needs at least one layer")
    created = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    raw = dump_json(_config_document(base, layers, config, runs_on, created))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": Descriptor(CONFIG, digest_of(raw), len(raw), {}).document(),
        "layers": [Descriptor(x.media_type, x.digest, x.size, {}).document() for x in every],
        "annotations": _annotations(base, config, created),
    }
    return Plan(called, raw, dump_json(manifest), every, runs_on)


def blob_name(digest: str) -> str:
    """Return where a blob lies in a layout."""
    return "blobs/sha256/" + digest.removeprefix("sha256:")


# --- documents ---


def _annotations(base: Base | None, config: ImageConfig, created: str) -> dict[str, str]:
    notes = {key: value for key, value in config.labels.items() if key.startswith(_NOTE)}
    notes[_NOTE + "created"] = created
    if base is not None:
        notes |= {_NOTE + "base.name": base.name, _NOTE + "base.digest": base.digest}
    return notes


def _config_document(
    base: Base | None,
    layers: Sequence[Layer],
    config: ImageConfig,
    platform: Platform,
    created: str,
) -> dict[str, Any]:
    below: Mapping[str, Any] = base.config if base is not None else {}
    ids = [layer.diff_id for layer in (*(base.layers if base is not None else ()), *layers)]
    history = [
        *_base_history(base, created),
        *(
            {"created": created, "created_by": "muelle build", "comment": layer.comment}
            for layer in layers
        ),
    ]
    return {
        "created": created,
        **platform_document(platform),
        # A version of the system is part of the platform on Windows only, and kept where it is.
        **{key: below[key] for key in ("os.version", "os.features") if key in below},
        "config": _settings(below.get("config") or {}, config),
        "rootfs": {"type": "layers", "diff_ids": ids},
        "history": history,
    }


def _base_history(base: Base | None, created: str) -> list[dict[str, Any]]:
    if base is None:
        return []
    told = base.config.get("history")
    entries = [e for e in told if isinstance(e, dict)] if isinstance(told, list) else []
    # Tools match the entries with layers one by one, and refuse images where the numbers differ.
    if sum(not entry.get("empty_layer") for entry in entries) == len(base.layers):
        return entries
    each = {"created": created, "created_by": f"base {base.name}"}
    return [each for _ in base.layers]


def _settings(below: Mapping[str, Any], config: ImageConfig) -> dict[str, Any]:
    kept = (
        "Env", "User", "WorkingDir", "Entrypoint", "Cmd", "Labels", "ExposedPorts", "Volumes",
        "StopSignal", "Healthcheck",
    )  # fmt: skip
    merged: dict[str, Any] = {key: below[key] for key in kept if below.get(key)}
    env = dict(str(line).partition("=")[::2] for line in merged.pop("Env", ())) | dict(config.env)
    merged["Env"] = [f"{key}={value}" for key, value in env.items()]
    merged["Labels"] = {**merged.get("Labels", {}), **config.labels}
    merged["ExposedPorts"] = {**merged.get("ExposedPorts", {}), **{p: {} for p in config.ports}}
    merged["Volumes"] = {**merged.get("Volumes", {}), **{v: {} for v in config.volumes}}
    if config.entrypoint:
        merged |= {"Entrypoint": list(config.entrypoint)}
        merged.pop("Cmd", None)
    own = {
        "Cmd": list(config.cmd),
        "User": config.user,
        "WorkingDir": config.workdir,
        "StopSignal": config.stop_signal,
        "Healthcheck": config.healthcheck.document() if config.healthcheck else None,
    }
    merged |= {key: value for key, value in own.items() if value}
    _refuse_unwritable(env)
    return {key: value for key, value in merged.items() if value}


def _refuse_unwritable(env: Mapping[str, str]) -> None:
    for key, value in env.items():
        if not key or "=" in key or "\0" in key + value:
            raise ImageError(f"{key[:100]!r}: no name for a variable of the environment")
