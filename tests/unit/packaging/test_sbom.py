"""The parts list: right by CycloneDX's own schema, complete, and the same for the same parts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import example, given
from hypothesis import strategies as st

from muelle.core.records import StoredFile, VersionRecord
from muelle.core.signature import Signature, TensorSpec
from muelle.packaging.sbom import BasePart, ModelPart, PackagePart, Part, build_sbom

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
NUMPY = PackagePart("NumPy_Like", "1.26.4", A, "BSD-3-Clause", ("numpy/a.py", "numpy/b.py"))
FRAUD = ModelPart.of(
    VersionRecord(
        model="fraud",
        version=3,
        digest=f"sha256:{B}",
        artifact="fraud.onnx",
        runtime="onnx",
        format="ONNX",
        files=(StoredFile(path="fraud.onnx", size=7, sha256=B),),
        signature=Signature(
            inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),),
            outputs=(TensorSpec(name="y", datatype="INT64", shape=(-1,)),),
        ),
    )
)
BASE = BasePart("registry.local/python:3.11", f"sha256:{C}")
PARTS: list[Part] = [NUMPY, FRAUD, BASE]


def trouble(content: bytes) -> str:
    """Return what CycloneDX's own validator says, "" when all is well."""
    found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(content.decode())
    return "" if found is None else str(found)[:300]


def components(content: bytes) -> dict[str, dict[str, Any]]:
    """Return the components by name."""
    return {one["name"]: one for one in json.loads(content)["components"]}


def test_the_list_keeps_to_the_standard() -> None:
    """CycloneDX 1.6, valid by the strict schema; Muelle itself is what the list is of."""
    made = build_sbom(PARTS, epoch=1_700_000_000)
    assert trouble(made) == ""
    whole = json.loads(made)
    assert (whole["bomFormat"], whole["specVersion"]) == ("CycloneDX", "1.6")
    assert whole["metadata"]["component"]["name"] == "muelle"
    assert whole["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"


def test_the_validator_finds_what_is_wrong() -> None:
    """Negative control: a member that the standard does not know is refused."""
    whole = json.loads(build_sbom(PARTS))
    whole["components"][0]["colour"] = "red"
    assert trouble(json.dumps(whole).encode())


def test_every_part_is_in_the_list() -> None:
    """Packages with purl, licence, wheel and files; models with digest and tensors; the base."""
    found = components(build_sbom(PARTS))
    assert set(found) == {"NumPy_Like", "fraud", "registry.local/python:3.11"}
    package, model, base = found["NumPy_Like"], found["fraud"], found[BASE.name]
    assert package["purl"] == "pkg:pypi/numpy-like@1.26.4"
    assert package["licenses"] == [{"license": {"id": "BSD-3-Clause"}}]
    assert package["hashes"] == [{"alg": "SHA-256", "content": A}]
    places = [one["location"] for one in package["evidence"]["occurrences"]]
    assert places == ["numpy/a.py", "numpy/b.py"]
    assert (model["type"], model["version"]) == ("machine-learning-model", "3")
    assert [one["name"] for one in model["components"]] == ["fraud.onnx"]
    facts = {one["name"]: one["value"] for one in model["properties"]}
    assert facts["muelle:digest"] == f"sha256:{B}"
    assert facts["muelle:format"] == "ONNX"
    assert "FP32" in facts["muelle:input:x"]
    assert "INT64" in facts["muelle:output:y"]
    assert (base["type"], base["version"]) == ("container", f"sha256:{C}")
    assert base["hashes"] == [{"alg": "SHA-256", "content": C}]


def test_all_parts_hang_on_the_whole() -> None:
    """Whoever walks the dependencies from Muelle comes to each part."""
    whole = json.loads(build_sbom(PARTS))
    graph = {one["ref"]: one.get("dependsOn", []) for one in whole["dependencies"]}
    root = whole["metadata"]["component"]["bom-ref"]
    assert sorted(graph[root]) == sorted(one["bom-ref"] for one in whole["components"])


@given(st.permutations([*PARTS, PackagePart("q", "1"), PackagePart("q", "2"), NUMPY]))
def test_order_and_repeats_do_not_matter(parts: list[Part]) -> None:
    """The same parts at the same date are the same bytes, serial number included."""
    first = build_sbom([NUMPY, PackagePart("q", "2"), FRAUD, BASE, PackagePart("q", "1")], epoch=7)
    assert build_sbom(parts, epoch=7) == first


def test_other_parts_have_another_serial_number() -> None:
    """The number names the content: another part, or another date, is another list."""
    lists = [build_sbom(PARTS), build_sbom(PARTS[:2]), build_sbom(PARTS, epoch=1)]
    assert len({json.loads(made)["serialNumber"] for made in lists}) == 3


def test_the_wheels_of_two_platforms_are_two_parts() -> None:
    """The same package with another wheel is listed beside the first."""
    made = build_sbom([NUMPY, PackagePart("NumPy_Like", "1.26.4", B)])
    assert trouble(made) == ""
    assert len(json.loads(made)["components"]) == 2


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("MIT", [{"license": {"id": "MIT"}}]),
        ("MIT OR Apache-2.0", [{"expression": "MIT OR Apache-2.0"}]),
        ("Our own words", [{"license": {"name": "Our own words"}}]),
        ("\n  BSD License\n\nCopyright\n" + "x" * 5000, [{"license": {"name": "BSD License"}}]),
        ("  \n ", None),
    ],
)
def test_licences_as_packages_write_them(licence: str, expected: Any) -> None:
    """SPDX ids and expressions are told apart from other words; whole texts are cut to a name."""
    made = build_sbom([PackagePart("p", "1", licence=licence)])
    assert components(made)["p"].get("licenses") == expected
    assert trouble(made) == ""


@example("/", "", "", [])
@given(
    st.text(max_size=30), st.text(max_size=10), st.text(max_size=200),
    st.lists(st.text(min_size=1, max_size=20), max_size=3, unique=True),
)  # fmt: skip
def test_strangers_words_keep_the_list_valid(
    name: str, version: str, licence: str, files: list[str]
) -> None:
    """Whatever a package's metadata says, the list stays valid and holds it."""
    clean = [text.encode("utf-8", "replace").decode() for text in (name, version, licence)]
    part = PackagePart(clean[0] or "p", clean[1], "", clean[2], tuple(files))
    made = build_sbom([part])
    assert trouble(made) == ""
    assert part.name in components(made)


def test_nothing_is_a_list_too() -> None:
    """No part at all: Muelle alone."""
    assert trouble(build_sbom([])) == ""
