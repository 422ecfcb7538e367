"""Large requests in parts: the whole is the sum of the parts, settled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.core.errors import ModelFailed, QueueFull
from muelle.core.request import (
    BatchOutput,
    Done,
    InferRequest,
    InferResponse,
    OutputTensor,
    Tensor,
    decode_bytes_tensor,
    encode_bytes_tensor,
)
from muelle.scheduling.split import SplitRequest, row_slices

Result = InferResponse | Exception


class Queue:
    """Takes parts as a pool does, and answers one when told to."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.parts: list[tuple[InferRequest, Done]] = []
        self.cancelled = 0
        self.taken = 0
        self._room = room

    def submit(self, part: InferRequest, done: Done) -> Callable[[], None]:
        """Queue a part, or raise as a full queue does."""
        if self.taken >= self._room:
            raise QueueFull("m", self._room)
        self.taken += 1
        self.parts.append((part, done))
        return self._cancel

    def _cancel(self) -> None:
        self.cancelled += 1

    def answer(self, index: int = 0) -> None:
        """Answer a waiting part with its own inputs, one row of another caller before them."""
        part, done = self.parts.pop(index)
        tensors = []
        for tensor in part.inputs:
            before = Tensor.raw(tensor.name, tensor.datatype, (1, *tensor.shape[1:]), b"")
            memory = _first_row(before) + bytes(tensor.memory())
            shape = (part.n_rows + 1, *tensor.shape[1:])
            output = BatchOutput(tensor.name, tensor.datatype, shape, memory)
            tensors.append(OutputTensor(output, 1, part.n_rows + 1))
        done(InferResponse("m", "7", tensors))


def _first_row(tensor: Tensor) -> bytes:
    count = int(np.prod(tensor.shape, dtype=int))
    if tensor.datatype == "BYTES":
        return encode_bytes_tensor([b"other"] * count)
    return np.full(count, 99, dtype="<i4").tobytes()


def whole_request(n_rows: int) -> tuple[InferRequest, list[int], list[bytes | None]]:
    """A request with a list of numbers and a column pair of strings, with a missing one."""
    numbers = list(range(n_rows * 3))
    texts: list[bytes | None] = [b"x" * (i % 5) for i in range(n_rows * 2)]
    texts[1] = None
    request = InferRequest(
        [
            Tensor.flat("n", "INT32", (n_rows, 3), numbers),
            Tensor.raw("t", "BYTES", (n_rows, 2), encode_bytes_tensor(texts)),
        ],
        n_rows,
    )
    return request, numbers, texts


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.data())
def test_the_parts_make_the_whole(n_rows: int, size: int, window: int, draw: Any) -> None:
    """Numbers and strings come back in order, whatever order the parts end in."""
    request, numbers, texts = whole_request(n_rows)
    parts = row_slices(request, size)
    assert sum(part.n_rows for part in parts) == n_rows
    assert all(part.n_rows <= size for part in parts)
    queue, results = Queue(), list[Result]()
    SplitRequest(parts, queue.submit, results.append, window)
    while queue.parts:
        assert len(queue.parts) <= window
        assert not results
        queue.answer(draw.draw(st.integers(0, len(queue.parts) - 1)))
    [answer] = results
    assert isinstance(answer, InferResponse)
    assert (answer.model, answer.version) == ("m", "7")
    n, t = answer.outputs
    assert n.array().tolist() == np.reshape(numbers, (n_rows, 3)).tolist()
    assert t.shape == (n_rows, 2)
    assert decode_bytes_tensor(t.raw(), n_rows * 2) == texts


def test_a_raw_column_is_cut_like_a_listed_one() -> None:
    """The two forms of a tensor's data give the same parts."""
    numbers = np.arange(10, dtype="<i4").reshape(5, 2)
    raw = Tensor.raw("n", "INT32", (5, 2), numbers.tobytes())
    flat = Tensor.flat("n", "INT32", (5, 2), numbers.reshape(-1).tolist())
    for a, b in zip(
        row_slices(InferRequest([raw], 5), 2), row_slices(InferRequest([flat], 5), 2), strict=True
    ):
        assert bytes(a.inputs[0].memory()) == bytes(b.inputs[0].memory())
        assert a.inputs[0].nbytes == b.inputs[0].nbytes == len(a.inputs[0].memory())


def split(queue: Queue, n_rows: int = 6, window: int = 2) -> tuple[SplitRequest, list[Result]]:
    """Start a request in parts of two rows."""
    results: list[Result] = []
    parts = row_slices(whole_request(n_rows)[0], 2)
    return SplitRequest(parts, queue.submit, results.append, window), results


def test_an_error_in_one_part_is_the_answer() -> None:
    """The first error is told once; the other parts are cancelled and their answers unheard."""
    queue = Queue()
    _, results = split(queue)
    (_, first), (_, second) = queue.parts
    error = ModelFailed("bad row")
    first(error)
    assert results == [error]
    assert queue.cancelled == 1
    second(ModelFailed("another"))
    assert results == [error]
    assert queue.taken == 2


def test_a_caller_who_leaves_cancels_every_part() -> None:
    """Parts that are queued are dropped, parts that are not never come."""
    queue = Queue()
    request, results = split(queue)
    request.cancel()
    assert queue.cancelled == 2
    queue.answer()
    assert queue.taken == 2 and not results


def test_a_queue_that_fills_up_on_the_way_is_the_answer() -> None:
    """A later part finds the queue full: the caller is told so, once."""
    queue = Queue(room=2)
    _, results = split(queue)
    queue.answer()
    [error] = results
    assert isinstance(error, QueueFull)
    assert queue.cancelled == 1


def test_a_queue_that_is_full_at_the_start_is_told_once() -> None:
    """The second part does not fit: the caller gets the exception, and no callback beside it."""
    queue = Queue(room=1)
    results: list[Result] = []
    with pytest.raises(QueueFull):
        SplitRequest(row_slices(whole_request(6)[0], 2), queue.submit, results.append, 2)
    assert queue.cancelled == 1
    queue.answer()
    assert not results and queue.taken == 1


def test_answers_of_unequal_shapes_are_refused() -> None:
    """A free axis that differs between the parts cannot be joined: an error, no garbage."""
    queue = Queue()
    _, results = split(queue, n_rows=4)
    for width, (part, done) in enumerate(queue.parts[:2], start=1):
        data = bytes(part.n_rows * width)
        output = BatchOutput("y", "UINT8", (part.n_rows, width), data)
        done(InferResponse("m", "1", [OutputTensor(output, 0, part.n_rows)]))
    [error] = results
    assert isinstance(error, ModelFailed)
    assert "unequal shapes" in str(error)
