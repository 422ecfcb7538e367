"""Requests with more rows than a batch: cut into parts, answered as one. No clock, no I/O.

Parts are queued one after the other, each behind what came in the meantime: a caller with ten
thousand rows does not make the others wait for all of them.
"""

from __future__ import annotations

from collections.abc import Callable

from muelle.core.errors import ModelFailed
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
from muelle.core.tensor import element_count


def row_slices(request: InferRequest, size: int) -> list[InferRequest]:
    """Cut a request into requests of at most `size` rows, in order."""
    columns = [_slices(tensor, size) for tensor in request.inputs]
    parts = []
    for index, start in enumerate(range(0, request.n_rows, size)):
        n_rows = min(size, request.n_rows - start)
        parts.append(InferRequest([column[index] for column in columns], n_rows))
    return parts


def _slices(tensor: Tensor, size: int) -> list[Tensor]:
    n_rows = tensor.shape[0]
    bounds = [(i, min(i + size, n_rows)) for i in range(0, n_rows, size)]
    if tensor.datatype != "BYTES":
        return [tensor.rows(start, stop) for start, stop in bounds]
    per_row = element_count(tensor.shape[1:])
    values = decode_bytes_tensor(tensor.data, n_rows * per_row)  # type: ignore[arg-type]
    return [
        Tensor.raw(
            tensor.name,
            "BYTES",
            (stop - start, *tensor.shape[1:]),
            encode_bytes_tensor(values[start * per_row : stop * per_row]),
        )
        for start, stop in bounds
    ]


class SplitRequest:
    """Runs the parts of one large request and settles it once.

    `submit` queues one part with a callback and returns its cancel function; it may raise. At most
    `window` parts are queued at a time.
    """

    def __init__(
        self,
        parts: list[InferRequest],
        submit: Callable[[InferRequest, Done], Callable[[], None]],
        done: Done,
        window: int,
    ) -> None:
        self._parts = parts
        self._submit = submit
        self._done: Done | None = done
        self._next = 0
        self._answers: list[list[tuple[BatchOutput, bytes]] | None] = [None] * len(parts)
        self._left = len(parts)
        self._cancels: dict[int, Callable[[], None]] = {}
        self._names = ("", "")
        try:
            for _ in range(min(window, len(parts))):
                self._start()
        except BaseException:
            # The caller learns it from the exception; a part already queued must not tell it again.
            self.cancel()
            raise

    def cancel(self) -> None:
        """The caller left: drop every part."""
        self._done = None
        for cancel in list(self._cancels.values()):
            cancel()
        self._cancels.clear()

    def _start(self) -> None:
        index = self._next
        self._next += 1

        def part_done(result: InferResponse | Exception) -> None:
            self._part(index, result)

        self._cancels[index] = self._submit(self._parts[index], part_done)

    def _part(self, index: int, result: InferResponse | Exception) -> None:
        self._cancels.pop(index, None)
        done = self._done
        if done is None:
            return
        if isinstance(result, Exception):
            self.cancel()
            done(result)
            return
        # The batch's memory is valid only now: keep a copy of this part's rows.
        self._answers[index] = [(t.batch, t.raw()) for t in result.outputs]
        self._names = (result.model, result.version)
        self._left -= 1
        if self._left == 0:
            self._done = None
            done(self._joined() or _unequal_shapes(result.model))
        elif self._next < len(self._parts):
            try:
                self._start()
            except Exception as exc:
                self.cancel()
                done(exc)

    def _joined(self) -> InferResponse | None:
        """Put the parts together. None when their rows have unequal shapes (free axes)."""
        answers = [a for a in self._answers if a is not None]
        n_rows = sum(part.n_rows for part in self._parts)
        outputs = []
        for column, (first, _) in enumerate(answers[0]):
            if any(answer[column][0].shape[1:] != first.shape[1:] for answer in answers):
                return None
            joined = b"".join(answer[column][1] for answer in answers)
            shape = (n_rows, *first.shape[1:])
            whole = BatchOutput(first.name, first.datatype, shape, joined)
            outputs.append(OutputTensor(whole, 0, n_rows))
        return InferResponse(self._names[0], self._names[1], outputs)


def _unequal_shapes(model: str) -> ModelFailed:
    return ModelFailed(
        f"{model}: the parts of this large request have answers of unequal shapes, which no one "
        "tensor can hold; send fewer rows at once"
    )
