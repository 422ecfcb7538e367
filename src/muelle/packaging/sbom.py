"""The parts list of an image or bundle (SBOM): CycloneDX 1.6 in JSON, the same for the same parts.

Pure: parts in, bytes out. Not for finding the parts, nor for their vulnerabilities.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from muelle import __version__
from muelle.core.records import StoredFile, VersionRecord
from muelle.core.signature import Signature
from muelle.runtimes.libraries import library

NAME = "sbom.cdx.json"
"""What the list is called where it lies in an image or bundle."""

_EXTRA = "build"
_PYPI_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z")
_NAMESPACE = uuid.UUID("5e2d4c1e-6f0b-5a53-9c0a-4f2c8c1d7b10")
_LICENCE_LENGTH = 120
"""Some packages put the whole text where the name belongs."""


@dataclass(frozen=True, slots=True)
class PackagePart:
    """A Python package."""

    name: str
    version: str
    sha256: str = ""
    """64 hex digits of its wheel, "" when that is not known."""
    licence: str = ""
    """As its metadata says it: an SPDX expression or any other text."""
    files: tuple[str, ...] = ()
    """Where its files lie, relative names."""


@dataclass(frozen=True, slots=True)
class ModelPart:
    """A version of a model."""

    model: str
    version: str
    digest: str
    """`sha256:<64 hex>` over its files."""
    format: str
    files: tuple[StoredFile, ...] = ()
    signature: Signature | None = None

    @classmethod
    def of(cls, record: VersionRecord) -> ModelPart:
        """Return the part that a version of a store is."""
        return cls(
            model=record.model,
            version=str(record.version),
            digest=record.digest,
            format=record.format,
            files=record.files,
            signature=record.signature,
        )


@dataclass(frozen=True, slots=True)
class BasePart:
    """The image that another one begins with."""

    name: str
    digest: str
    """`sha256:<64 hex>` of its manifest, "" when that is not known."""


Part: TypeAlias = PackagePart | ModelPart | BasePart


def build_sbom(parts: Iterable[Part], *, epoch: int = 0, name: str = "muelle") -> bytes:
    """Return the parts list of an image or bundle of this Muelle; `name` is what it is called.

    `epoch` is its date in seconds since 1970 (SOURCE_DATE_EPOCH). The same parts in any order, at
    the same date, give the same bytes: the serial number comes from the content. Raise
    MissingLibrary without cyclonedx-python-lib.
    """
    bom = library("cyclonedx.model.bom", _EXTRA)
    component = library("cyclonedx.model.component", _EXTRA)
    ours = component.Component(
        name=name,
        version=__version__,
        type=component.ComponentType.APPLICATION,
        bom_ref="root",
        properties=_properties([("muelle:version", __version__)]),
    )
    components = [_component(part) for part in sorted(set(parts), key=_order)]

    def write(serial: uuid.UUID) -> bytes:
        made = bom.Bom(
            serial_number=serial,
            metadata=bom.BomMetaData(component=ours, timestamp=datetime.fromtimestamp(epoch, UTC)),
            components=components,
        )
        made.register_dependency(ours, components)
        return _written(library("cyclonedx.output.json", _EXTRA).JsonV1Dot6(made))

    return write(uuid.uuid5(_NAMESPACE, write(uuid.UUID(int=0)).decode()))


def _written(writer: Any) -> bytes:
    """Return the list as bytes. The library's order of occurrences is not always the same."""
    whole = json.loads(writer.output_as_string())
    for component in whole.get("components", ()):
        component.get("evidence", {}).get("occurrences", []).sort(key=lambda one: one["location"])
    return json.dumps(whole, indent=2, ensure_ascii=False).encode() + b"\n"


def _order(part: Part) -> tuple[str, str, str, str]:
    match part:
        case PackagePart():
            return ("package", part.name, part.version, part.sha256)
        case ModelPart():
            return ("model", part.model, part.version, part.digest)
        case BasePart():
            return ("base", part.name, part.digest, "")


def _component(part: Part) -> Any:
    match part:
        case PackagePart():
            return _package(part)
        case ModelPart():
            return _model(part)
        case BasePart():
            return _base(part)


def _package(part: PackagePart) -> Any:
    component = library("cyclonedx.model.component", _EXTRA)
    evidence = library("cyclonedx.model.component_evidence", _EXTRA)
    purl = _purl(part.name, part.version)
    ref = str(purl) if purl is not None else f"package:{part.name}@{part.version}"
    places = [evidence.Occurrence(location=file) for file in part.files]
    return component.Component(
        name=part.name,
        version=part.version,
        type=component.ComponentType.LIBRARY,
        # The wheels of several platforms are parts of their own.
        bom_ref=f"{ref}#{part.sha256[:16]}" if part.sha256 else ref,
        purl=purl,
        hashes=_hashes(part.sha256),
        licenses=[_licence(part.licence)] if part.licence.strip() else [],
        evidence=evidence.ComponentEvidence(occurrences=places) if places else None,
    )


def _model(part: ModelPart) -> Any:
    component = library("cyclonedx.model.component", _EXTRA)
    kinds = component.ComponentType
    ref = f"model:{part.model}:{part.version}"
    files = [
        component.Component(
            name=file.path,
            type=kinds.FILE,
            bom_ref=f"{ref}/{file.path}",
            hashes=_hashes(file.sha256),
            properties=_properties([("muelle:size", str(file.size))]),
        )
        for file in part.files
    ]
    facts = [("muelle:digest", part.digest), ("muelle:format", part.format)]
    if part.signature is not None:
        facts += [(f"muelle:input:{spec.name}", spec.describe()) for spec in part.signature.inputs]
        facts += [
            (f"muelle:output:{spec.name}", spec.describe()) for spec in part.signature.outputs
        ]
    # The digest of a lone file is that of its content; of several it is one over a list.
    whole = part.digest if len(part.files) == 1 else ""
    return component.Component(
        name=part.model,
        version=part.version,
        type=kinds.MACHINE_LEARNING_MODEL,
        bom_ref=ref,
        hashes=_hashes(whole),
        components=files,
        properties=_properties(facts),
    )


def _base(part: BasePart) -> Any:
    component = library("cyclonedx.model.component", _EXTRA)
    return component.Component(
        name=part.name,
        version=part.digest or None,
        type=component.ComponentType.CONTAINER,
        bom_ref=f"image:{part.name}@{part.digest}" if part.digest else f"image:{part.name}",
        hashes=_hashes(part.digest),
    )


def _purl(name: str, version: str) -> Any:
    """Return the package's address in PyPI's terms, None for a name that none can have there."""
    if not _PYPI_NAME.match(name):
        return None
    return library("packageurl", _EXTRA).PackageURL("pypi", name=name, version=version)


def _hashes(digest: str) -> list[Any]:
    if not digest:
        return []
    model = library("cyclonedx.model", _EXTRA)
    value = digest.removeprefix("sha256:")
    return [model.HashType(alg=model.HashAlgorithm.SHA_256, content=value)]


def _licence(text: str) -> Any:
    """Return an SPDX id or expression where the text is one, else a licence of that name."""
    line = next(line.strip() for line in text.splitlines() if line.strip())
    factory = library("cyclonedx.contrib.license.factories", _EXTRA).LicenseFactory()
    return factory.make_from_string(line[:_LICENCE_LENGTH])


def _properties(facts: Sequence[tuple[str, str]]) -> list[Any]:
    made = library("cyclonedx.model", _EXTRA).Property
    return [made(name=name, value=value) for name, value in facts]
