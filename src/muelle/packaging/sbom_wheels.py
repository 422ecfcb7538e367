"""Tell what wheels are for the list of parts: licence, files. Reads their metadata, runs nothing.

Not for the list itself (`sbom`).
"""

from __future__ import annotations

import csv
import email.parser
import email.policy
import io
import zipfile
from pathlib import Path

from muelle.core.errors import ArtifactError
from muelle.packaging.sbom import PackagePart
from muelle.packaging.wheels import LockedWheel

_MAX_BYTES = 16 * 1024 * 1024
_CLASSIFIER = "License :: "


def wheel_part(wheel: LockedWheel) -> PackagePart:
    """Return a wheel as a part. Raise ArtifactError when it cannot be read."""
    try:
        with zipfile.ZipFile(wheel.path) as archive:
            info = next(n.rpartition("/")[0] for n in archive.namelist() if _is_record(n))
            metadata = _read(archive, f"{info}/METADATA", wheel.path)
            record = _read(archive, f"{info}/RECORD", wheel.path)
    except (OSError, zipfile.BadZipFile, KeyError, StopIteration, UnicodeDecodeError) as exc:
        raise ArtifactError(f"{wheel.file}: not a wheel that can be read: {exc}") from exc
    return PackagePart(
        name=wheel.name,
        version=wheel.version,
        sha256=wheel.sha256,
        licence=licence_of(metadata),
        files=tuple(sorted(row[0] for row in csv.reader(io.StringIO(record)) if row)),
    )


def licence_of(metadata: str) -> str:
    """Return the licence as a `METADATA` file tells it: expression, else text, else classifiers."""
    found = email.parser.Parser(policy=email.policy.compat32).parsestr(metadata, headersonly=True)
    for field in ("License-Expression", "License"):
        text = str(found.get(field) or "").strip()
        if text and text.upper() != "UNKNOWN":
            return text
    classifiers = [str(text) for text in found.get_all("Classifier") or ()]
    named = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith(_CLASSIFIER)]
    return ", ".join(name for name in named if name != "OSI Approved")


def _is_record(name: str) -> bool:
    return name.count("/") == 1 and name.endswith(".dist-info/RECORD")


def _read(archive: zipfile.ZipFile, name: str, path: Path) -> str:
    if archive.getinfo(name).file_size > _MAX_BYTES:
        raise ArtifactError(f"{path.name}: {name} is too large for what it is")
    return archive.read(name).decode()
