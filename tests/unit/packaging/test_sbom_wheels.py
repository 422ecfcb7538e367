"""What a wheel says of itself becomes a part of the list."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from muelle.core.errors import ArtifactError
from muelle.packaging.sbom_wheels import licence_of, wheel_part
from muelle.packaging.wheels import LockedWheel, locked, repack


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ("License-Expression: MIT\nLicense: old words", "MIT"),
        ("License: BSD-3-Clause", "BSD-3-Clause"),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved :: MIT License", "MIT License"),
        ("Classifier: License :: OSI Approved\nClassifier: Topic :: Math", ""),
        ("Name: x\n\nLicense: in the body, which does not count", ""),
    ],
)
def test_where_a_licence_is_told(fields: str, licence: str) -> None:
    """Expression, else text, else classifiers."""
    assert licence_of(f"Metadata-Version: 2.4\n{fields}\n") == licence


def test_a_wheel_becomes_a_part(tmp_path: Path) -> None:
    """Name, version, hash, licence, and every file that it installs."""
    wheel = locked(repack("click", tmp_path))
    part = wheel_part(wheel)
    assert (part.name, part.version, part.sha256) == ("click", wheel.version, wheel.sha256)
    assert "BSD" in part.licence
    with zipfile.ZipFile(wheel.path) as archive:
        assert set(part.files) == set(archive.namelist())


@pytest.mark.parametrize("content", [b"no zip", b""])
def test_what_is_no_wheel_is_one_line(tmp_path: Path, content: bytes) -> None:
    """A broken file, an empty one."""
    path = tmp_path / "x-1.0-py3-none-any.whl"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(ArtifactError, match="not a wheel"):
        wheel_part(LockedWheel("x", "1.0", digest, len(content), path))


def test_a_wheel_for_both_pythons_keeps_both_tags(tmp_path: Path) -> None:
    """Packed again from what is installed, `py2.py3-none-any` still fits: pip takes it."""
    info = tmp_path / "both-1.0.dist-info"
    info.mkdir()
    (tmp_path / "both.py").write_text("")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: both\nVersion: 1.0\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nTag: py2-none-any\nTag: py3-none-any\n")
    (info / "RECORD").write_text("both.py,,\nboth-1.0.dist-info/METADATA,,\n")
    import sys

    sys.path.insert(0, str(tmp_path))
    try:
        assert repack("both", tmp_path / "out").name == "both-1.0-py2.py3-none-any.whl"
    finally:
        sys.path.remove(str(tmp_path))
