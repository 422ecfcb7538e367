"""What a model's own configuration says about how it is served. Plain values; nothing is decided.

Written by whoever reads a configuration (a Triton repository's `config.pbtxt`), travels to the
worker, and comes back completed by what the model itself says. Sizes are in rows, times in
microseconds where the name says so. Source: Triton's "Model Configuration".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

TimeoutAction = Literal["reject", "delay"]
ControlKind = Literal["START", "END", "READY", "CORRID"]
Strategy = Literal["direct", "oldest"]


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base: immutable, and only what differs from the default travels."""


class QueuePolicy(Value, frozen=True):
    """What becomes of requests that wait at one level."""

    timeout_action: TimeoutAction = "reject"
    default_timeout_us: int = 0
    """0 for none."""
    allow_timeout_override: bool = False
    """Whether a request may ask for a shorter time than the default."""
    max_queue_size: int = 0
    """Requests that may wait, 0 for no limit of its own."""


class DynamicBatching(Value, frozen=True):
    """How requests are grouped into batches."""

    preferred_batch_sizes: tuple[int, ...] = ()
    max_delay_us: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    """Number of levels, 1 the highest; 0 for no priorities."""
    default_priority_level: int = 0
    default_queue_policy: QueuePolicy = QueuePolicy()
    priority_queue_policies: Mapping[int, QueuePolicy] = {}
    """Level -> its own policy."""


class SequenceControl(Value, frozen=True):
    """An extra input that tells the model where in its sequence a request is."""

    input: str
    kind: ControlKind
    datatype: str
    """Of the input: INT32, FP32 or BOOL; for CORRID the id's own."""
    false_true: tuple[float, float] = (0.0, 1.0)
    """What stands for no and yes; unused for CORRID."""


class SequenceState(Value, frozen=True):
    """An output that becomes an input of the sequence's next request."""

    input: str
    output: str
    datatype: str
    shape: tuple[int, ...]
    """Of one row, without the batch axis."""
    initial: bytes | None = None
    """Memory layout of the first value; None for zeros."""


class SequenceBatching(Value, frozen=True):
    """How the requests of a sequence come to the worker that has its state."""

    strategy: Strategy = "direct"
    max_idle_us: int = 1_000_000
    controls: tuple[SequenceControl, ...] = ()
    states: tuple[SequenceState, ...] = ()
    max_delay_us: int = 0
    minimum_slot_utilization: float = 0.0
    """Direct: share of the slots that must have a request, else the batch waits up to the delay."""
    max_candidate_sequences: int = 0
    """Oldest: sequences per worker at a time; 0 for as many as fit a batch."""
    preferred_batch_sizes: tuple[int, ...] = ()
    preserve_ordering: bool = False


class EnsembleStep(Value, frozen=True):
    """One model of a graph of models."""

    model: str
    version: int = -1
    """-1 for the newest that answers."""
    inputs: Mapping[str, str] = {}
    """The step's input -> the graph's tensor."""
    outputs: Mapping[str, str] = {}
    """The step's output -> the graph's tensor."""


class Ensemble(Value, frozen=True):
    """A graph of models, run by the server."""

    steps: tuple[EnsembleStep, ...]
    max_inflight: int = 0


class WarmupInput(Value, frozen=True):
    """One tensor of a warm-up sample: zeros, random numbers, or content."""

    datatype: str
    shape: tuple[int, ...]
    """Of one row, without the batch axis."""
    kind: Literal["zero", "random", "content"] = "zero"
    content: bytes = b""


class WarmupSample(Value, frozen=True):
    """A request that runs before the version takes traffic."""

    name: str
    inputs: Mapping[str, WarmupInput]
    batch_size: int = 0
    count: int = 1


class TensorSettings(Value, frozen=True):
    """What the configuration says of one input or output."""

    name: str
    datatype: str = ""
    """Empty: as the model says."""
    dims: tuple[int, ...] = ()
    """As clients see it, without the batch axis where the model batches."""
    reshape: tuple[int, ...] | None = None
    """What the model gets instead of dims."""
    optional: bool = False
    labels: tuple[str, ...] = ()
    """Of an output: the text of each class."""


class ModelSettings(Value, frozen=True):
    """The whole of it. The defaults are those of a model without a configuration."""

    max_batch_size: int | None = None
    """Rows of one batch; 0: dims are the whole shape and requests are never joined; None: not
    said, the model and the server decide."""
    inputs: tuple[TensorSettings, ...] = ()
    outputs: tuple[TensorSettings, ...] = ()
    batching: DynamicBatching | None = None
    """None: requests run alone, first come first served."""
    sequence: SequenceBatching | None = None
    ensemble: Ensemble | None = None
    instances: int | None = None
    """Workers; None for the server's default."""
    threads: int | None = None
    decoupled: bool = False
    """Whether a request may get no answer, or several."""
    response_cache: bool = False
    warmup: tuple[WarmupSample, ...] = ()
    backend: str = ""
    """What loads it: `onnxruntime`, `python`, `ensemble`, …"""
    platform: str = ""
    """As metadata tells it to clients."""
    filename: str = ""
    """The artifact inside the version's folder; empty for the backend's default."""
    parameters: Mapping[str, str] = {}
    metric_tags: Mapping[str, str] = {}
    auto_complete: bool = True
    """Whether what is missing is taken from the model."""
    config_json: str = ""
    """The whole configuration as the config endpoint shows it (JSON, snake case)."""
    notes: tuple[str, ...] = ()
    """What could not be honoured, one line each: the field, and what happens instead."""
