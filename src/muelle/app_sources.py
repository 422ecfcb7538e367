"""Composition root, first part: what the server serves, from its settings. Decides nothing else."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from muelle.config.sections import ServeConfig
from muelle.control.shipped import ShippedSource
from muelle.control.sources import FileSource, NoModels, StoreSource
from muelle.control.wanted import Source
from muelle.core.errors import ArtifactError, ConfigError
from muelle.core.records import VersionRecord
from muelle.packaging.signing import read_signatures
from muelle.packaging.signing_policy import (
    mark_with_signature,
    policy_of,
    shipped_signatures,
)
from muelle.repository.environments import find_environment
from muelle.repository.layout import list_artifacts, split_spec
from muelle.repository.shipped import is_shipped
from muelle.repository.store import Store, default_store
from muelle.runtimes.interface import Format, Runtime
from muelle.runtimes.registry import Registry, missing_libraries, missing_message

log = logging.getLogger("muelle")


def new_source(config: ServeConfig) -> Source:
    """Return where the models come from. Raise ArtifactError or ConfigError."""
    if config.models:
        if config.store and config.select:
            raise ConfigError("name either files or --models of a store, not both")
        if len(config.models) == 1 and is_shipped(Path(config.models[0]).expanduser()):
            return _shipped_source(config, Path(config.models[0]).expanduser())
        return _file_source(config)
    folder = Path(config.store).expanduser() if config.store else default_store(os.environ)
    if not config.store and not (folder / "store.db").exists():
        if config.app.target:
            return NoModels()
        raise ConfigError(
            "nothing to serve: name a model file or a folder, push a model to the store "
            "(muelle push FILE --name NAME), or try `muelle demo`"
        )
    return _store_source(config, folder)


def _store_source(config: ServeConfig, folder: Path) -> StoreSource:
    missing = _missing_for(Registry())
    policy = policy_of(config.security.require_signature)

    def refuse(record: VersionRecord) -> str:
        reason = policy.refusal(record, read_signatures(folder, record.digest)) if policy else ""
        return reason or missing(record)

    def check(record: VersionRecord, place: Path) -> None:
        if policy is not None:
            policy.check_version(record, place, read_signatures(folder, record.digest))

    def find_python(root: Path, digest: str) -> str:
        python = find_environment(root / "environments", digest)
        if python is None:
            raise ArtifactError(
                f"its environment {digest[:19]}… is not there; push it again on this machine"
            )
        return str(python)

    return StoreSource(
        Store.open(folder), config.select, refuse=refuse, find_python=find_python, check=check
    )


def _missing_for(registry: Registry) -> Callable[[VersionRecord], str]:
    """Return what says why a version cannot be loaded with what is installed here."""

    def refuse(record: VersionRecord) -> str:
        if record.environment:
            return ""  # Its libraries lie there, not here.
        try:
            runtime = registry.by_name(record.runtime)
        except ArtifactError as exc:
            return exc.message
        form = next((f for f in runtime.formats if f.name == record.format), None)
        missing = missing_libraries(runtime, form) if form is not None else []
        return missing_message(runtime, form, missing) if form is not None and missing else ""

    return refuse


def _shipped_source(config: ServeConfig, folder: Path) -> ShippedSource:
    registry = Registry()
    missing = _missing_for(registry)
    policy = policy_of(config.security.require_signature)

    def refuse(record: VersionRecord, place: Path) -> str:
        if policy and (reason := policy.refusal(record, shipped_signatures(folder, record))):
            return reason
        # The record is only what somebody wrote: what the file is, the file itself says.
        runtime, form = registry.find_format(place)
        if (runtime.name, form.name) != (record.runtime, record.format):
            return f"{place.name}: the record says {record.format}, the file is {form.name}"
        code = form.runs_code or bool(record.environment)
        if code and not config.trust:
            return (
                f"{record.model} is {form.name}: loading it runs code that came with it; if you "
                "trust where it comes from, add --trust"
            )
        return missing(record)

    def check(record: VersionRecord, place: Path) -> None:
        if policy is not None:
            policy.check_version(record, place, shipped_signatures(folder, record))

    return ShippedSource(folder, config.select, refuse=refuse, check=check)


def _file_source(config: ServeConfig) -> FileSource:
    specs = _named(config)
    registry = Registry()
    policy = policy_of(config.security.require_signature)
    return FileSource(
        lambda: list_artifacts(specs, is_artifact_folder=_is_folder_format(registry)),
        _examine(config, registry),
        named=[split_spec(spec)[1] for spec in specs],
        watched=config.lifecycle.control == "poll",
        look=None if policy is None else mark_with_signature,
        check=_unchecked if policy is None else policy.check_path,
    )


def _unchecked(path: Path) -> None:
    """Without the policy every artifact may be loaded."""


def _is_folder_format(registry: Registry) -> Callable[[Path], bool]:
    def is_artifact(path: Path) -> bool:
        try:
            registry.find_format(path)
        except ArtifactError:
            return False
        return path.is_dir()

    return is_artifact


def _examine(config: ServeConfig, registry: Registry) -> Callable[[Path], tuple[str, str, str]]:
    def examine(path: Path) -> tuple[str, str, str]:
        runtime, form = registry.find_format(path)
        return runtime.name, form.name, _refused(config, path, runtime, form)

    return examine


def _refused(config: ServeConfig, path: Path, runtime: Runtime, form: Format) -> str:
    missing = missing_libraries(runtime, form)
    if form.runs_code and not config.trust:
        return (
            f"{path.name} is {form.name}: loading it runs code from the file; "
            "if you trust where it comes from, add --trust"
        )
    return missing_message(runtime, form, missing) if missing else ""


def _named(config: ServeConfig) -> tuple[str, ...]:
    """Give the one model the name that --name asks for."""
    if config.name is None:
        return config.models
    if len(config.models) != 1:
        raise ConfigError("--name goes with one model; write NAME=PATH for several")
    _, path = split_spec(config.models[0])
    return (f"{config.name}={path}",)
