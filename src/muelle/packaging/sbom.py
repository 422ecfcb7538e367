"""The list of parts of an image or a bundle, as CycloneDX 1.6: packages, models, base. Pure.

The same parts give the same text: no clock, no random number. Not for finding vulnerabilities.
"""

from __future__ import annotations

import uuid
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any

from muelle import __version__
from muelle.core.errors import ArtifactError
from muelle.core.records import VersionRecord
from muelle.packaging.wheels import LockedWheel
from muelle.runtimes.libraries import library

NAME = "sbom.cdx.json"


@dataclass(frozen=True, slots=True)
class PackagePart:
    """A Python package. `sha256` is that of its wheel."""

    name: str
    version: str
    sha256: str
    licence: str = ""


@dataclass(frozen=True, slots=True)
class ModelPart:
    """A model's version; `digest` over its files, which come with their own."""

    model: str
    version: int
    digest: str
    format: str
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class BasePart:
    """The image that all lies on."""

    name: str
    digest: str = ""


Part = PackagePart | ModelPart | BasePart


def build_sbom(parts: Sequence[Part], *, name: str, epoch: int) -> bytes:
    """Return the list as JSON. `name` is the image's or bundle's, `epoch` seconds since 1970."""
    model = library("cyclonedx.model.bom", "build")
    component = library("cyclonedx.model.component", "build")
    output = library("cyclonedx.output", "build")
    schema = library("cyclonedx.schema", "build")
    components = [_component(part) for part in parts]
    bom = model.Bom(components=components)
    bom.metadata.timestamp = datetime.fromtimestamp(epoch, UTC)
    bom.metadata.component = component.Component(
        type=component.ComponentType.APPLICATION, name=name, version=__version__, bom_ref="root"
    )
    bom.register_dependency(bom.metadata.component, components)
    text = "\n".join(sorted(map(repr, parts)))
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_OID, f"{name}\n{epoch}\n{text}")
    made = output.make_outputter(bom, schema.OutputFormat.JSON, schema.SchemaVersion.V1_6)
    written: str = made.output_as_string(indent=1)
    return written.encode()


def package_parts(wheels: Iterable[LockedWheel]) -> list[PackagePart]:
    """Return the packages of wheels, with the licences that their metadata names."""
    return [PackagePart(w.name, w.version, w.sha256, _licence(w.path)) for w in wheels]


def model_parts(records: Iterable[VersionRecord]) -> list[ModelPart]:
    """Return the models of versions."""
    return [
        ModelPart(
            r.model, r.version, r.digest, r.format, tuple((f.path, f.sha256) for f in r.files)
        )
        for r in records
    ]


def _component(part: Part) -> Any:
    model = library("cyclonedx.model", "build")
    component = library("cyclonedx.model.component", "build")
    kinds = component.ComponentType
    if isinstance(part, PackagePart):
        purl = library("packageurl", "build").PackageURL("pypi", None, part.name, part.version)
        return component.Component(
            type=kinds.LIBRARY,
            name=part.name,
            version=part.version,
            purl=purl,
            bom_ref=f"pypi:{part.name}@{part.version}",
            hashes=[_hash(part.sha256)],
            licenses=_licences(part.licence),
        )
    if isinstance(part, ModelPart):
        reference = f"model:{part.model}:{part.version}"
        return component.Component(
            type=kinds.MACHINE_LEARNING_MODEL,
            name=part.model,
            version=str(part.version),
            bom_ref=reference,
            properties=[
                model.Property(name="muelle:digest", value=part.digest),
                model.Property(name="muelle:format", value=part.format),
            ],
            components=[
                component.Component(
                    type=kinds.FILE, name=path, bom_ref=f"{reference}/{path}", hashes=[_hash(sha)]
                )
                for path, sha in part.files
            ],
        )
    hashes = [_hash(part.digest.rpartition(":")[2])] if part.digest else []
    return component.Component(
        type=kinds.CONTAINER, name=part.name, bom_ref=f"base:{part.name}", hashes=hashes
    )


def _hash(sha256: str) -> Any:
    model = library("cyclonedx.model", "build")
    return model.HashType(alg=model.HashAlgorithm.SHA_256, content=sha256)


def _licences(text: str) -> list[Any]:
    if not text:
        return []
    factory = library("cyclonedx.contrib.license.factories", "build").LicenseFactory()
    return [factory.make_from_string(text)]


def _licence(wheel: Path) -> str:
    """Return what a wheel's metadata says: an SPDX expression, else one line of text."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            headers = BytesHeaderParser().parsebytes(archive.read(name))
    except (OSError, zipfile.BadZipFile, StopIteration) as exc:
        raise ArtifactError(f"{wheel.name}: not a wheel whose metadata can be read") from exc
    text = str(headers.get("License-Expression") or "")
    if not text:
        classifiers = [str(c) for c in headers.get_all("Classifier") or ()]
        found = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License ::")]
        own = str(headers.get("License") or "").strip()
        text = own if own and "\n" not in own and len(own) < 60 else ", ".join(found)
    return text
