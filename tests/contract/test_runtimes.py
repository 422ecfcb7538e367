"""The contract of a runtime, over every format with its real library."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from muelle.core.errors import ArtifactError
from muelle.core.signature import Signature
from muelle.core.tensor import DATATYPES
from muelle.runtimes.interface import LoadedModel, LoadOptions
from muelle.runtimes.registry import Registry
from muelle.runtimes.tables import datatype_of
from tests import models

OPTIONS = LoadOptions(threads=1, name="under-test")


@pytest.fixture(scope="module", params=models.ALL, ids=lambda make: make.__name__)
def saved(request: pytest.FixtureRequest) -> models.Saved:
    """One saved model after the other."""
    return models.quiet(request.param)


@pytest.fixture(scope="module")
def model(saved: models.Saved) -> Iterator[LoadedModel]:
    """The model, loaded by the runtime that its content names."""
    runtime, _ = Registry().find_format(saved.path)
    loaded = runtime.load(saved.path, OPTIONS)
    yield loaded
    loaded.close()


def assert_equal(found: Any, expected: Any) -> None:
    """Numbers are equal up to float32's last digits, everything else exactly."""
    assert found.shape == expected.shape
    if found.dtype == object:
        assert found.tolist() == expected.tolist()
    else:
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_the_content_names_the_runtime(saved: models.Saved) -> None:
    """Each file is found to be of its own runtime's format."""
    runtime, format = Registry().find_format(saved.path)

    assert runtime.name == saved.runtime
    assert saved.path.suffix in format.suffixes


def test_answers_are_those_of_the_native_library(saved: models.Saved, model: LoadedModel) -> None:
    """A batch is answered as the library that made the model answers it."""
    outputs = model.run(dict(saved.inputs))

    assert outputs.keys() == saved.expected.keys()
    for name, expected in saved.expected.items():
        assert_equal(outputs[name], np.asarray(expected))


def test_a_batch_is_its_rows(saved: models.Saved, model: LoadedModel) -> None:
    """The answer to n rows is the n answers to one row each."""
    batch = model.run(dict(saved.inputs))
    n_rows = len(next(iter(saved.inputs.values())))
    for i in range(n_rows):
        row = model.run({name: array[i : i + 1] for name, array in saved.inputs.items()})
        for name, array in batch.items():
            assert_equal(row[name], array[i : i + 1])


def test_read_only_inputs_are_enough(saved: models.Saved, model: LoadedModel) -> None:
    """A runtime neither writes to its inputs nor needs to: they are views of the batch's memory."""
    frozen = {name: array.copy() for name, array in saved.inputs.items()}
    for array in frozen.values():
        array.flags.writeable = False

    outputs = model.run(frozen)

    for name, expected in saved.expected.items():
        assert_equal(outputs[name], np.asarray(expected))


def test_the_signature_says_what_is_taken_and_given(
    saved: models.Saved, model: LoadedModel
) -> None:
    """Declared names, datatypes and shapes fit the inputs and what run returns."""
    outputs = model.run(dict(saved.inputs))

    assert model.signature.has_rows
    for specs, arrays in (
        (model.signature.inputs, saved.inputs),
        (model.signature.outputs, outputs),
    ):
        assert [s.name for s in specs] == list(arrays)
        for spec in specs:
            array = arrays[spec.name]
            # BF16 travels as float32: NumPy has no bfloat16.
            assert datatype_of(array) == {"BF16": "FP32"}.get(spec.datatype, spec.datatype)
            assert array.ndim == len(spec.shape)
            assert all(d in (-1, n) for d, n in zip(spec.shape, array.shape, strict=True))
            assert not spec.columns or len(spec.columns) == array.shape[1]
            assert not spec.classes or len(spec.classes) == array.shape[1]


def test_signature_and_info_cross_the_worker_channel(model: LoadedModel) -> None:
    """Both come back equal from MessagePack, without a hook."""
    packed = msgspec.msgpack.encode(model.signature)

    assert msgspec.msgpack.decode(packed, type=Signature) == model.signature
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(dict(model.info))) == dict(model.info)
    assert model.info


def test_the_example_is_one_row_that_runs(model: LoadedModel) -> None:
    """The example has one row of each input, of its datatype, and the model answers it."""
    assert model.example is not None
    for spec in model.signature.inputs:
        array = model.example[spec.name]
        assert len(array) == 1
        if spec.datatype != "BF16":
            assert array.dtype == np.dtype(DATATYPES[spec.datatype].numpy)

    outputs = model.run(dict(model.example))

    assert {name: len(a) for name, a in outputs.items()} == dict.fromkeys(outputs, 1)


def test_a_run_gives_no_warning(saved: models.Saved, model: LoadedModel) -> None:
    """Column names and types are as the library wants them: it has nothing to complain of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.run(dict(saved.inputs))


@pytest.mark.parametrize("kept", [0.98, 0.5])
def test_a_cut_file_is_an_artifact_error(saved: models.Saved, kept: float, tmp_path: Any) -> None:
    """A file that lost its end does not load, and the error names it without its folder."""
    if saved.runtime == "python":
        pytest.skip("half a Python file can be a whole program")
    whole = saved.path.read_bytes()
    cut = tmp_path / saved.path.name
    cut.write_bytes(whole[: int(len(whole) * kept)])

    with pytest.raises(ArtifactError) as caught:
        runtime, _ = Registry().find_format(cut)
        runtime.load(cut, OPTIONS)

    assert cut.name in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
