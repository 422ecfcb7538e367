"""What server and worker say to each other: a tagged union of Structs as MessagePack arrays.

Each message is one SOCK_SEQPACKET datagram. Tensors never travel here: they lie in sealed memfd
slots that the server makes and passes as descriptors (SCM_RIGHTS) beside a message.
"""

from __future__ import annotations

from typing import Any

import msgspec

from muelle.core.records import StoredTensor
from muelle.core.signature import Signature

MAX_MESSAGE_BYTES = 160 * 1024
"""Below the kernel's default socket buffer (208 KiB), so that one datagram always fits."""


PART_BYTES = 128 * 1024
MAX_JOINED_BYTES = 64 * 1024 * 1024
"""What a worker may send in parts, together."""


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all messages."""


# --- server -> worker ---
class Load(Message, tag=1, frozen=True):
    """Load an artifact. The first message to every worker."""

    runtime: str
    path: str
    format: str
    name: str
    threads: int
    max_batch_size: int
    slots: int
    memory_limit_bytes: int
    """Limit on the worker's private memory, 0 for none."""
    examples_bytes: int = 0
    """Length of the examples to run before answering, as MessagePack of `Examples` in a memfd that
    comes with this message. 0: none."""
    version: str = ""
    settings: bytes = b""
    """MessagePack of `core.settings.ModelSettings`, empty for none."""


class TensorAt(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a tensor of a batch lies in the slot's memory."""

    index: int
    """Position in the signature's inputs (or outputs)."""
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Run(Message, tag=2, frozen=True):
    """Run the batch in a slot. `memory`: which new descriptors come along (1 in, 2 out, 3 both)."""

    slot: int
    sequence: int
    inputs: tuple[TensorAt, ...]
    memory: int = 0


class OutputMemory(Message, tag=3, frozen=True):
    """The output memory that NeedOutput asked for comes with this message as a descriptor."""

    slot: int


class Stop(Message, tag=4, frozen=True):
    """Close the model and exit."""


# --- worker -> server ---
class Loaded(Message, tag=11, frozen=True):
    """The model is in memory; what it takes and gives."""

    signature: Signature
    info: dict[str, Any]
    example: dict[str, Any] | None
    """Tensor name -> nested list of one row (BYTES as text)."""
    output_row_bytes: int
    """Expected bytes of all outputs per row, 0 when not known."""
    answers: tuple[tuple[StoredTensor, ...], ...] = ()
    """What the model answered to each of Load's examples."""
    settings: bytes = b""
    """Load's settings, completed by what the model says (MessagePack); empty: as they were."""


class LoadFailed(Message, tag=12, frozen=True):
    """Loading failed; the worker exits. `kind` is `artifact`, `library`, `example` or `crash`."""

    kind: str
    reason: str
    detail: str
    """Traceback text for the log, never for a caller."""


class RanOutput(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One output of a batch in the slot's output memory."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Ran(Message, tag=13, frozen=True):
    """A batch is done."""

    slot: int
    sequence: int
    compute_ns: int
    outputs: tuple[RanOutput, ...]


class RunFailed(Message, tag=14, frozen=True):
    """The model raised on a batch; the worker lives on. `reason` is fit for a caller."""

    slot: int
    sequence: int
    reason: str
    detail: str
    retry_alone: bool = True


class NeedOutput(Message, tag=15, frozen=True):
    """The outputs of the running batch need so many bytes; send OutputMemory or OutputRefused."""

    slot: int
    nbytes: int


class Part(Message, tag=16, frozen=True):
    """A piece of a message that is too large for one datagram (a signature with many columns)."""

    piece: bytes
    last: bool


class OutputRefused(Message, tag=5, frozen=True):
    """The outputs are over the limit: fail the batch."""

    slot: int
    limit_bytes: int


Examples = tuple[tuple[StoredTensor, ...], ...]
"""The inputs of each example."""

ToWorker = Load | Run | OutputMemory | OutputRefused | Stop
FromWorker = Loaded | LoadFailed | Ran | RunFailed | NeedOutput | Part
