"""What the Python runtime promises beyond the contract of all runtimes."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from muelle.core.errors import ArtifactError, MissingLibrary
from muelle.runtimes.interface import LoadOptions
from muelle.runtimes.python import RUNTIME

HEAD = """
import numpy as np
from muelle import Model, TensorSpec
X = [TensorSpec(name="x", datatype="FP32", shape=(-1, 2))]
Y = [TensorSpec(name="y", datatype="FP32", shape=(-1,))]
"""
GOOD = """
class Sum(Model):
    inputs, outputs, example = X, Y, {"x": [1.0, 2.0]}
    def predict(self, inputs): return {"y": inputs["x"].sum(axis=1)}
"""


def load(source: str, tmp_path: Path) -> object:
    """Load a file of that source."""
    path = tmp_path / "model.py"
    path.write_text(textwrap.dedent(HEAD) + textwrap.dedent(source))
    return RUNTIME.load(path, LoadOptions())


def test_a_good_file_loads(tmp_path: Path) -> None:
    """The control for the refusals below."""
    load(GOOD, tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a = 1", "no subclass of muelle.Model"),
        (GOOD + GOOD.replace("Sum", "Other"), r"more than one model \(Sum, Other\)"),
        (GOOD.replace("inputs, outputs", "outputs, _"), "must declare its inputs"),
        (GOOD.replace("X, Y", "X, ['y']"), "must declare its outputs"),
        (GOOD.replace("predict", "forecast"), "does not define predict"),
        (GOOD.replace('"x": [', '"z": ['), "its example has no tensor 'x'"),
        (GOOD.replace("[1.0, 2.0]", "[1.0]"), r"its example for 'x' has shape \[1, 1\]"),
        (GOOD.replace("[1.0, 2.0]", "'a'"), "its example for 'x'"),
        (GOOD.replace("axis=1", "axis=0"), r"output 'y': predict returns shape \[2\] for one row"),
        (GOOD.replace('{"y": ', '{"z": '), "output 'y': predict does not return it"),
        (GOOD.replace(".sum(axis=1)", ""), r"output 'y': predict returns shape \[1, 2\]"),
        (GOOD.replace("X, Y", "X, X"), "output 'x'"),
        (GOOD.replace('["x"].sum', '["q"].sum'), "predict on its own example failed with KeyError"),
        ("raise RuntimeError('so it is')", "importing it failed with RuntimeError: so it is"),
        ("import sys; sys.exit(3)", "importing it failed with SystemExit"),
        ("def f(:", "line 6: invalid syntax"),
        (
            GOOD + "    def load(self, folder): open(folder / 'gone')",
            "load failed with FileNotFound",
        ),
    ],
)
def test_what_is_wrong_in_the_file_is_named(source: str, message: str, tmp_path: Path) -> None:
    """Each mistake is an ArtifactError that says what and where."""
    with pytest.raises(ArtifactError, match=message) as caught:
        load(source, tmp_path)

    assert str(tmp_path) not in str(caught.value)


def test_a_missing_import_names_the_package(tmp_path: Path) -> None:
    """The file's own dependencies are named with a command."""
    with pytest.raises(MissingLibrary, match="imports no_such_package, which is not installed"):
        load("import no_such_package.part", tmp_path)


def test_modules_beside_the_file_can_be_imported(tmp_path: Path) -> None:
    """A model may be split over several files of its folder."""
    (tmp_path / "muelle_test_beside.py").write_text("FACTOR = 3\n")

    load("from muelle_test_beside import FACTOR\n" + GOOD, tmp_path)


def test_a_base_class_in_the_file_is_not_a_second_model(tmp_path: Path) -> None:
    """Only the last in a line of subclasses is served."""
    load("class Base(Model):\n    pass\n" + GOOD.replace("(Model)", "(Base)"), tmp_path)
