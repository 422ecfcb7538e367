"""The list of parts: complete, valid, and the same every time (P-17)."""

from __future__ import annotations

import json
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from muelle.packaging.sbom import BasePart, ModelPart, Part, build_sbom, package_parts
from muelle.packaging.wheels import locked, repack

MODEL = ModelPart("fraud", 3, f"sha256:{'a' * 64}", "ONNX", (("m.onnx", "b" * 64),))
BASE = BasePart("python:3.11-slim", f"sha256:{'c' * 64}")


def parts(tmp_path: Path) -> list[Part]:
    """Return the parts of a small image; two packages are real wheels."""
    wheels = [locked(repack(name, tmp_path)) for name in ("click", "idna")]
    return [*package_parts(wheels), MODEL, BASE]


def test_it_is_cyclonedx(tmp_path: Path) -> None:
    """The specification's own schema takes it; the control: not once a field is wrong."""
    text = build_sbom(parts(tmp_path), name="fraud:3", epoch=1_700_000_000).decode()
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    broken = json.loads(text)
    broken["components"][0]["type"] = "nonsense"
    assert validator.validate_str(json.dumps(broken)) is not None


def test_everything_is_in_it(tmp_path: Path) -> None:
    """Packages with version, address, hash and licence; models with digest and files; the base."""
    found = json.loads(build_sbom(parts(tmp_path), name="fraud:3", epoch=1_700_000_000))
    by_name = {one["name"]: one for one in found["components"]}
    assert set(by_name) == {"click", "idna", "fraud", "python:3.11-slim"}
    assert by_name["click"]["purl"].startswith("pkg:pypi/click@")
    assert by_name["click"]["hashes"][0]["alg"] == "SHA-256"
    assert "BSD" in json.dumps(by_name["click"]["licenses"])
    assert by_name["fraud"]["type"] == "machine-learning-model"
    assert by_name["fraud"]["components"][0]["hashes"][0]["content"] == "b" * 64
    assert by_name["python:3.11-slim"]["type"] == "container"


def test_the_same_parts_give_the_same_text(tmp_path: Path) -> None:
    """No clock and no random number; another part is another text and another serial number."""
    one = build_sbom(parts(tmp_path), name="fraud:3", epoch=1_700_000_000)
    assert build_sbom(parts(tmp_path), name="fraud:3", epoch=1_700_000_000) == one
    other = build_sbom([MODEL, BASE], name="fraud:3", epoch=1_700_000_000)
    assert json.loads(other)["serialNumber"] != json.loads(one)["serialNumber"]
