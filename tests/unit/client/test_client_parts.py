"""The client's pure parts: when to try again, what inputs become, what errors are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from muelle.client.calls import Reply, error_of
from muelle.client.retry import Retry
from muelle.client.tensors import decode_answer, encode_request, to_arrays
from muelle.core import errors
from muelle.core.signature import Signature, TensorSpec

TABLE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2), columns=("age", "dose")),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),),
)
MIXED = Signature(
    inputs=(
        TensorSpec(name="age", datatype="INT64", shape=(-1,)),
        TensorSpec(name="name", datatype="BYTES", shape=(-1, 1)),
        TensorSpec(name="note", datatype="BYTES", shape=(-1,), optional=True),
    ),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),),
)


@pytest.mark.parametrize(
    ("attempt", "trouble", "repeatable", "after", "delay"),
    [
        (1, "unreachable", False, None, 0.05),
        (2, "unreachable", True, None, 0.1),
        (3, "busy", True, None, 0.2),
        (4, "busy", True, None, None),
        (1, "busy", True, 2.0, 2.05),
        (1, "busy", True, 900.0, 5.05),
        (1, "busy", False, 1.0, None),
        (1, "broken", True, None, 0.05),
        (1, "broken", False, None, None),
    ],
)
def test_when_to_try_again(
    attempt: int, trouble: Any, repeatable: bool, after: float | None, delay: float | None
) -> None:
    """Doubling with chance; a change that may have been made is never made twice; the server's wish
    is the least wait, within reason."""
    found = Retry(3).delay_s(
        attempt, trouble, repeatable=repeatable, chance=0.5, retry_after_s=after
    )
    assert found == (None if delay is None else pytest.approx(delay))


def test_the_wait_is_bounded() -> None:
    """Whatever the number of attempts."""
    wait = Retry(10_000).delay_s(9_999, "busy", repeatable=True, chance=1.0)
    assert wait == 5.0


class Frame:
    """What the client asks of a DataFrame."""

    columns = ("age", "dose")

    def to_dict(self, orient: str) -> list[dict[str, float]]:
        """Return records."""
        assert orient == "records"
        return [{"dose": 2.0, "age": 1.0}, {"dose": 4.0, "age": 3.0}]


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": [[1, 2], [3, 4]]},
        {"x": np.array([[1, 2], [3, 4]], dtype=np.float64)},
        [[1, 2], [3, 4]],
        np.array([[1.0, 2.0], [3.0, 4.0]]),
        [{"age": 1, "dose": 2}, {"dose": 4, "age": 3}],
        Frame(),
    ],
)
def test_all_forms_become_the_same_array(inputs: Any) -> None:
    """A dict, rows, records and a frame, by the names of the columns."""
    (array,) = to_arrays(inputs, TABLE).values()
    assert array.dtype == np.float32
    assert array.tolist() == [[1, 2], [3, 4]]


def test_records_of_several_inputs() -> None:
    """One tensor per column, of its own datatype; an optional one may be absent everywhere."""
    arrays = to_arrays([{"age": 3, "name": "é"}, {"age": 4, "name": "b"}], MIXED)
    assert arrays["age"].tolist() == [3, 4]
    assert arrays["age"].dtype == np.int64
    assert arrays["name"].shape == (2, 1)
    assert set(arrays) == {"age", "name"}


@pytest.mark.parametrize(
    ("inputs", "signature", "told"),
    [
        ({"z": [1]}, TABLE, "no input is named 'z'; there are: x"),
        ([[1, 2]], MIXED, "several inputs (age, name, note): pass a dict"),
        ([{"age": 1}], TABLE, "a record has no 'dose'; it has: age"),
        ({"x": "text"}, TABLE, "x: wants FP32 [-1, 2]"),
        ({"age": [1.5]}, MIXED, "fractions cannot become integers"),
        ({"x": [[1, 2], [3]]}, TABLE, "x: wants FP32 [-1, 2]"),
    ],
)
def test_what_does_not_fit_is_named(inputs: Any, signature: Signature, told: str) -> None:
    """Before anything is sent."""
    with pytest.raises(errors.BadRequest) as caught:
        to_arrays(inputs, signature)
    assert told in caught.value.message


def test_a_request_is_read_back() -> None:
    """Binary tensors behind a JSON head whose length a header tells; the answer the same way."""
    arrays = to_arrays([{"age": 3, "name": "é"}], MIXED)
    body, headers = encode_request(arrays, MIXED, ("y",))
    length = headers["inference-header-content-length"]
    assert b'"outputs":[{"name":"y"' in body[: int(length)]
    assert body[int(length) :] == (3).to_bytes(8, "little") + b"\x02\x00\x00\x00" + "é".encode()
    head = (
        b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP32","shape":[2],'
        b'"parameters":{"binary_data_size":8}},{"name":"t","datatype":"BYTES","shape":[1],'
        b'"data":["a"]}]}'
    )
    answer = head + np.array([1, 2], "<f4").tobytes()
    outputs = decode_answer(answer, str(len(head)))
    assert outputs["y"].tolist() == [1, 2]
    assert outputs["t"].tolist() == ["a"]
    with pytest.raises(errors.Internal):
        decode_answer(answer[:-1], str(len(head)))


@pytest.mark.parametrize(
    ("status", "body", "kind", "told"),
    [
        (404, b'{"code":"model_not_found","detail":"no model"}', errors.ModelNotFound, "no model"),
        (400, b'{"error":"bad shape"}', errors.BadRequest, "bad shape"),
        (409, b'{"code":"conflict","detail":"labelled"}', errors.Conflict, "labelled"),
        (401, b"{}", errors.Unauthenticated, "{}"),
        (503, b"busy", errors.Unavailable, "busy"),
        (500, b"\xff", errors.Internal, "\ufffd"),
        (418, b"", errors.Internal, "status 418"),
    ],
)
def test_errors_have_their_kinds(
    status: int, body: bytes, kind: type[errors.MuelleError], told: str
) -> None:
    """By the code of problem details, else by status; v2's form and plain text are read too."""
    found = error_of(Reply(status, {"retry-after": "3"}, body))
    assert type(found) is kind
    assert found.message == told
    assert found.retry_after_s == 3.0
