"""For which machines wheels are taken."""

from __future__ import annotations

import pytest
from packaging.utils import parse_wheel_filename

from muelle.core.errors import ConfigError
from muelle.packaging.targets import Target

FITTING = (
    "numpy-2.0-cp311-cp311-manylinux_2_27_aarch64.whl",
    "numpy-2.0-cp311-cp311-manylinux2014_aarch64.whl",
    "protobuf-7.1-cp310-abi3-manylinux2014_aarch64.whl",
    "click-8.1-py3-none-any.whl",
    "old-1.0-py2.py3-none-any.whl",
)
NOT_FITTING = (
    "numpy-2.0-cp312-cp312-manylinux_2_27_aarch64.whl",
    "numpy-2.0-cp311-cp311-manylinux_2_27_x86_64.whl",
    "numpy-2.0-cp311-cp311-manylinux_2_99_aarch64.whl",
    "numpy-2.0-cp311-cp311-musllinux_1_2_aarch64.whl",
    "numpy-2.0-cp311-cp311-macosx_11_0_arm64.whl",
    "protobuf-7.1-cp312-abi3-manylinux2014_aarch64.whl",
)


@pytest.mark.parametrize("name", FITTING)
def test_a_fitting_wheel_is_taken(name: str) -> None:
    """A wheel for that processor, that Python and a C library that is old enough is taken."""
    tags = set(Target.parse("linux/arm64", "3.11").tags())
    assert tags & parse_wheel_filename(name)[3]


@pytest.mark.parametrize("name", NOT_FITTING)
def test_another_wheel_is_not_taken(name: str) -> None:
    """A wheel for another processor, Python, C library or system is not."""
    tags = set(Target.parse("linux/arm64", "3.11").tags())
    assert not tags & parse_wheel_filename(name)[3]


@pytest.mark.parametrize("text", ["linux/mips", "windows/amd64", "amd64", "linux", "linux/amd64;x"])
def test_other_platforms_are_refused_in_words(text: str) -> None:
    """What is not known is refused, and the error says what is."""
    with pytest.raises(ConfigError, match="known are linux/amd64, linux/arm64"):
        Target.parse(text)


@pytest.mark.parametrize("text", ["3", "3.10", "2.7", "3.11.7", "latest", "3.11 "])
def test_other_pythons_are_refused_in_words(text: str) -> None:
    """A version of Python has two numbers and is new enough."""
    with pytest.raises(ConfigError, match=r"--python"):
        Target.parse("linux/amd64", text)


def test_names_of_python_are_taken_too() -> None:
    """`linux/x86_64` is `linux/amd64`; nothing at all is this machine."""
    assert Target.parse("linux/x86_64").platform == "linux/amd64"
    assert Target.parse("linux/aarch64").architecture == "arm64"
    assert Target.parse().is_here
    assert not Target.parse("linux/arm64", "3.99").is_here


def test_markers_are_those_of_the_target() -> None:
    """Requirements are read as the target would read them, not as this machine does."""
    markers = Target.parse("linux/arm64", "3.13").markers()
    assert (markers["platform_machine"], markers["python_version"]) == ("aarch64", "3.13")
