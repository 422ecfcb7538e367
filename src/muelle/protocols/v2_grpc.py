"""Open Inference Protocol v2 over gRPC: ModelInferRequest to request, answers to messages.

Pure functions over one model version, as `v2` is for REST; both read inputs with the same rules.
Large contents are never parsed: they are taken out of the message where they lie. Source: Open
Inference Protocol v2, "gRPC"; Triton's `protocol` documents (spec page, sections 18 and 19).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from muelle import protos
from muelle.core.errors import BadRequest, MuelleError
from muelle.core.request import (
    BatchOutput,
    Buffer,
    InferResponse,
    OutputTensor,
    encode_bytes_tensor,
)
from muelle.core.signature import Signature, row_bytes
from muelle.core.tensor import DATATYPES, element_count
from muelle.protocols.http import Answer, HttpRequest
from muelle.protocols.protobuf_wire import field, take_out, varint
from muelle.protocols.status import GRPC_STATUS
from muelle.protocols.v2 import _read_parameters
from muelle.protocols.v2_inputs import InputPlan, clipped, read_tensors
from muelle.protocols.v2_outputs import (
    OutputForm,
    V2Request,
    binary_bytes,
    by_name,
    classify,
    wanted_outputs,
)
from muelle.protocols.v2_wire import WireInput, WireOutput

TAKE_OUT_FROM = 16 * 1024
"""Smaller messages are parsed whole: that is quicker than looking for their contents."""
RAW_INPUT, RAW_OUTPUT, OUTPUTS = 7, 6, 5
EMPTY_FINAL = "triton_enable_empty_final_response"
FINAL = "triton_final_response"
MAX_PLANS = 64

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class GrpcRequest(V2Request):
    """A request with what a stream's answers need."""

    __slots__ = ("empty_final",)

    empty_final: bool
    """Whether the caller wants to be told that no more answers come, in an answer of its own."""


class GrpcCodec:
    """ModelInfer of one model version. Immutable after construction."""

    protocol = "v2_grpc"
    streams = False

    def __init__(self, model: str, version: str, signature: Signature) -> None:
        self.model = model
        self.version = version
        self.signature = signature
        self._has_rows = signature.has_rows
        self._plans = {spec.name: InputPlan(spec) for spec in signature.inputs}
        self._specs = {spec.name: spec for spec in signature.outputs}
        self._parse = protos.message("inference.ModelInferRequest").FromString
        self._parameter = protos.message("inference.InferParameter")
        self._names = field(1, model.encode()) + field(2, version.encode())

    # --- request ---

    def decode(self, request: HttpRequest) -> GrpcRequest:
        """Read a serialized ModelInferRequest. Raise BadRequest, which names the tensor."""
        body = request.body
        raws: Sequence[Buffer]
        if len(body) >= TAKE_OUT_FROM:
            rest, spans = take_out(body, RAW_INPUT)
            message = self._parsed(rest)
            view = memoryview(body)
            raws = [view[start:stop] for start, stop in spans]
        else:
            message = self._parsed(body)
            raws = message.raw_input_contents
        if message.model_name != self.model:
            raise BadRequest("model_name: is given more than once")
        inputs, n_rows = read_tensors(self.signature, self._plans, _with_data(message, raws))
        empty_final = False
        found: dict[str, Any] = {}
        for key, value in message.parameters.items():
            if key == EMPTY_FINAL:
                empty_final = bool(value.bool_param)
            else:
                found[key] = parameter_value(key, value)
        forms: Sequence[OutputForm] = ()
        if message.outputs:
            wires = [
                WireOutput(o.name, {"binary_data": True, **_parameters(o.parameters)})
                for o in message.outputs
            ]
            forms = wanted_outputs(self.signature, wires)
        result = GrpcRequest(inputs, n_rows, message.id, forms, True)
        _, result.timeout_s, result.parameters = _read_parameters(found)
        result.streams = self.streams
        result.empty_final = empty_final
        return result

    def _parsed(self, body: bytes) -> Any:
        try:
            return self._parse(body)
        except Exception:
            raise BadRequest("the message is no ModelInferRequest") from None

    # --- answer ---

    def encode(self, request: GrpcRequest, response: InferResponse) -> Answer:
        """Write a serialized ModelInferResponse. Call it while the response is valid."""
        return Answer(0, b"", b"".join(self._response(request, response)))

    def _response(self, request: GrpcRequest, response: InferResponse) -> list[Buffer]:
        parts: list[Buffer] = [self._names]
        if request.id:
            parts.append(field(3, request.id.encode()))
        for key, value in (response.parameters or {}).items():
            parts.append(self._parameter_field(key, value))
        raws: list[Buffer] = []
        forms = request.forms or [OutputForm(t.name, True, 0) for t in response.outputs]
        for form in forms:
            tensor = by_name(response.outputs, form.name)
            if form.classes:
                spec = self._specs[form.name]
                shape, texts = classify(tensor, form.classes, spec, self._has_rows)
                raw: Buffer = encode_bytes_tensor([t.encode() for t in texts])
                head = output_head(form.name, "BYTES", shape)
            else:
                raw = _raw(tensor)
                head = output_head(form.name, tensor.datatype, tensor.shape)
            parts.append(head)
            raws += (varint(RAW_OUTPUT << 3 | 2) + varint(len(raw)), raw)
        return parts + raws

    def _parameter_field(self, key: str, value: Any) -> bytes:
        """One entry of the response's map of parameters."""
        parameter = self._parameter()
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, int):
            parameter.int64_param = value
        elif isinstance(value, float):
            parameter.double_param = value
        else:
            parameter.string_param = str(value)
        content: bytes = parameter.SerializeToString()
        return field(4, field(1, key.encode()) + field(2, content))

    def encode_error(self, error: Exception, request_id: str) -> Answer:
        """Write an error: a status code of gRPC, and its text."""
        return error_answer(error, request_id)


class StreamAnswer(Answer):
    """One answer on a stream. An error is a message, too; `code` and `text` tell it apart."""

    __slots__ = ("code", "final", "ordered", "text")

    def __init__(
        self, body: bytes, final: bool, *, ordered: bool = True, code: int = 0, text: str = ""
    ) -> None:
        super().__init__(0, b"", body)
        self.final = final
        """Whether no more answers come to the same request."""
        self.ordered = ordered
        """Whether it waits for the answers to earlier requests (not those of decoupled models)."""
        self.code = code
        self.text = text


class GrpcStreamCodec(GrpcCodec):
    """ModelStreamInfer of one model version: any number of answers to each request."""

    streams = True

    def __init__(
        self, model: str, version: str, signature: Signature, *, decoupled: bool = False
    ) -> None:
        super().__init__(model, version, signature)
        self._ordered = not decoupled

    def encode(self, request: GrpcRequest, response: InferResponse) -> Answer:
        """Write a ModelStreamInferResponse; an empty body where nothing is to be sent."""
        if response.final and not response.outputs and not request.empty_final:
            return StreamAnswer(b"", True, ordered=self._ordered)
        parameters = dict(response.parameters or {})
        parameters[FINAL] = response.final
        response.parameters = parameters
        whole = b"".join(self._response(request, response))
        return StreamAnswer(field(2, whole), response.final, ordered=self._ordered)

    def encode_error(self, error: Exception, request_id: str) -> Answer:
        """Write an error as a message: the stream goes on."""
        plain = error_answer(error, request_id)
        answer = stream_error(plain, "", self._names + self._parameter_field(FINAL, True))
        answer.ordered = self._ordered
        return answer


def stream_error(plain: Answer, id: str, known: bytes = b"") -> StreamAnswer:
    """Return a ModelStreamInferResponse that carries an error. `known` are fields of its infer
    response: names, and the final flag."""
    inner = known + (field(3, id.encode()) if id else b"")
    body = field(1, plain.body) + (field(2, inner) if inner else b"")
    return StreamAnswer(body, True, code=plain.status, text=plain.body.decode())


def error_answer(error: Exception, request_id: str) -> Answer:
    """Return an error as a status code of gRPC and a text. One without a code tells only the id."""
    if not isinstance(error, MuelleError):
        return Answer(13, b"", f"internal error, request id {request_id}".encode())
    return Answer(GRPC_STATUS[error.code], b"", error.message.encode())


def output_head(name: str, datatype: str, shape: Sequence[int]) -> bytes:
    """Return one InferOutputTensor as a field of the response."""
    dims = b"".join(varint(d) for d in shape)
    inner = field(1, name.encode()) + field(2, datatype.encode())
    if dims:
        inner += field(3, dims)
    return field(OUTPUTS, inner)


def parameter_value(key: str, parameter: Any) -> Any:
    """Return what an InferParameter holds. Raise BadRequest when it holds nothing."""
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        raise BadRequest(f"parameter {clipped(key)}: has no value", field=f"parameters.{key[:200]}")
    return getattr(parameter, kind)


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: parameter_value(key, value) for key, value in given.items()}


def _with_data(message: Any, raws: Sequence[Buffer]) -> list[tuple[WireInput, Buffer]]:
    """Pair each input with its elements in memory layout. Raise BadRequest."""
    found: list[tuple[WireInput, Buffer]] = []
    used = 0
    for given in message.inputs:
        parameters = _parameters(given.parameters)
        wire = WireInput(given.name, list(given.shape), given.datatype, parameters)
        if any(key.startswith("shared_memory_") for key in parameters):
            raise BadRequest(
                f"input {clipped(wire.name)}: shared memory is not offered: send its contents",
                field=wire.name[:200],
            )
        if not raws:
            found.append((wire, _typed(given)))
            continue
        if given.HasField("contents"):
            raise _bad(wire.name, "has contents, and the request raw_input_contents: send one")
        if used >= len(raws):
            raise _bad(wire.name, f"raw_input_contents has only {len(raws)} entries")
        found.append((wire, raws[used]))
        used += 1
    if used < len(raws):
        raise BadRequest(f"raw_input_contents: {len(raws)} entries for {used} inputs")
    return found


def _typed(given: Any) -> bytes:
    """Return typed contents in memory layout. Raise BadRequest."""
    wanted = _CONTENTS.get(given.datatype)
    if wanted is None:
        raise _bad(given.name, f"{clipped(given.datatype)} can only come in raw_input_contents")
    for descriptor, _ in given.contents.ListFields():
        if descriptor.name != wanted:
            raise _bad(given.name, f"{given.datatype} belongs in {wanted}, not {descriptor.name}")
    values = getattr(given.contents, wanted)
    if given.datatype == "BYTES":
        return encode_bytes_tensor(list(values))
    count = element_count([d for d in given.shape if d > 0])
    if len(values) > count:
        raise _bad(given.name, f"shape {list(given.shape)}, but {len(values)} elements")
    dtype = np.dtype(DATATYPES[given.datatype].numpy)
    array = np.array(values, dtype=np.int64 if wanted == "int_contents" else None)
    if wanted in ("int_contents", "uint_contents") and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise _bad(given.name, f"an element does not fit {given.datatype}")
    return array.astype(dtype).tobytes()


def _bad(name: str, what: str) -> BadRequest:
    return BadRequest(f"input {clipped(name)}: {what}", field=name[:200])


def _raw(tensor: OutputTensor) -> Buffer:
    """Return an output in memory layout, without a copy where that is possible."""
    batch = tensor.batch
    if batch.datatype == "BYTES":
        return binary_bytes(tensor)
    if tensor.start < 0:
        return batch.data
    n_rows = batch.shape[0]
    per_row = len(batch.data) // n_rows if n_rows else 0
    return memoryview(batch.data)[tensor.start * per_row : tensor.stop * per_row]


class GrpcPlain:
    """The plain case: one row, raw contents, all outputs, no id and no parameters.

    A client repeats its message but for the contents. What stands around them is learned from a
    message that the whole codec has read; the next ones are compared with it, and cut.
    """

    def __init__(self, codec: GrpcCodec) -> None:
        signature = codec.signature
        self._codec = codec
        self._sizes = [row_bytes((spec,)) for spec in signature.inputs]
        fits = signature.has_rows and all(self._sizes) and bool(signature.outputs)
        fits = fits and not any(spec.datatype == "BOOL" for spec in signature.inputs)
        self.read: Callable[[bytes], Sequence[Buffer] | None] | None = self._read if fits else None
        self._writable = not any(spec.datatype == "BYTES" for spec in signature.outputs)
        self._plans: dict[int, list[_Plan]] = {}
        self._n_plans = 0
        self._heads: dict[tuple[tuple[int, ...], ...], list[bytes]] = {}

    def _read(self, body: bytes) -> Sequence[Buffer] | None:
        plans = self._plans.get(len(body))
        if plans is not None:
            for plan in plans:
                if plan.fits(body):
                    return plan.cut(body)
        if self._n_plans >= MAX_PLANS:
            return None
        learned = self._learn(body)
        if learned is None:
            return None
        self._n_plans += 1
        self._plans.setdefault(len(body), []).append(learned)
        return learned.cut(body)

    def _learn(self, body: bytes) -> _Plan | None:
        """Return what repeats in a plain message; None when this one is not plain (or wrong)."""
        try:
            request = self._codec.decode(HttpRequest(b"POST", "", b"", {}, body))
            _, spans = take_out(body, RAW_INPUT)
        except MuelleError:
            return None
        names = [spec.name for spec in self._codec.signature.outputs]
        forms = [(form.name, form.classes) for form in request.forms]
        if (
            request.n_rows != 1
            or request.id
            or request.parameters
            or request.timeout_s is not None
            or request.priority
            or request.queue_timeout_us
            or request.sequence is not None
            or (forms and forms != [(name, 0) for name in names])
            or [stop - start for start, stop in spans] != self._sizes
            or [t.name for t in request.inputs] != [s.name for s in self._codec.signature.inputs]
            # Contents lie in the order of the message's inputs: that must be the signature's.
            or any(
                bytes(memoryview(body)[start:stop]) != bytes(tensor.memory())
                for (start, stop), tensor in zip(spans, request.inputs, strict=True)
            )
            or not _in_signature_order(body, self._codec)
        ):
            return None
        return _Plan(body, spans)

    def rows(self, outputs: Sequence[BatchOutput]) -> list[bytes] | None:
        """Return the answer to each row of a batch; None when a row needs more thought."""
        if not self._writable:
            return None
        shapes = tuple(output.shape[1:] for output in outputs)
        heads = self._heads.get(shapes)
        if heads is None:
            heads = self._new_heads(outputs, shapes)
        n_rows = outputs[0].shape[0]
        if len(outputs) == 1:
            (head,) = heads
            data = outputs[0].data
            size = len(data) // n_rows
            return [head + bytes(data[i : i + size]) for i in range(0, size * n_rows, size or 1)]
        columns = []
        for head, output in zip(heads, outputs, strict=True):
            data = output.data
            size = len(data) // n_rows
            columns.append([head + bytes(data[i * size : (i + 1) * size]) for i in range(n_rows)])
        return [b"".join(parts) for parts in zip(*columns, strict=True)]

    def _new_heads(
        self, outputs: Sequence[BatchOutput], shapes: tuple[tuple[int, ...], ...]
    ) -> list[bytes]:
        """What stands before the contents of each output; the first has all the metadata."""
        first = field(1, self._codec.model.encode()) + field(2, self._codec.version.encode())
        first += b"".join(output_head(o.name, o.datatype, (1, *o.shape[1:])) for o in outputs)
        heads = []
        for output in outputs:
            size = DATATYPES[output.datatype].size * element_count(output.shape[1:])
            heads.append(first + varint(RAW_OUTPUT << 3 | 2) + varint(size))
            first = b""
        if len(self._heads) >= MAX_PLANS:
            self._heads.clear()
        self._heads[shapes] = heads
        return heads


def _in_signature_order(body: bytes, codec: GrpcCodec) -> bool:
    rest, _ = take_out(body, RAW_INPUT)
    message = protos.message("inference.ModelInferRequest").FromString(rest)
    return [i.name for i in message.inputs] == [s.name for s in codec.signature.inputs]


class _Plan:
    """What a message has around its contents."""

    __slots__ = ("_first", "_others", "_spans", "_tail", "_tail_at")

    def __init__(self, body: bytes, spans: Sequence[tuple[int, int]]) -> None:
        self._spans = tuple(spans)
        self._first = body[: spans[0][0]]
        self._others = tuple((stop, body[stop:start]) for (_, stop), (start, _) in pairwise(spans))
        self._tail_at = spans[-1][1]
        self._tail = body[self._tail_at :]

    def fits(self, body: bytes) -> bool:
        """Whether a message of the same length has the same around its contents."""
        if not body.startswith(self._first):
            return False
        if self._tail and not body.endswith(self._tail):
            return False
        return all(body.startswith(piece, at) for at, piece in self._others)

    def cut(self, body: bytes) -> list[Buffer]:
        """Return the contents of each input."""
        if len(body) < TAKE_OUT_FROM:
            return [body[start:stop] for start, stop in self._spans]
        view = memoryview(body)
        return [view[start:stop] for start, stop in self._spans]
