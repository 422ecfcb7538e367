"""What a store keeps of a version, and what it says of labels and routes. Not how it keeps it."""

from __future__ import annotations

from typing import Any

import msgspec

from muelle.core.signature import Signature

STABLE = "stable"
"""The label whose version answers when neither a version nor a route is named."""


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a version. `path` is relative, with `/`; `sha256` is 64 hex digits."""

    path: str
    size: int
    sha256: str


class StoredTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor by value. `content` is in the layout of `core.request.encode_array` (C order, little
    endian; BYTES as 4-byte lengths and texts); JSON carries it as base64."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A request and the answer that the version gave when it was pushed."""

    inputs: tuple[StoredTensor, ...]
    outputs: tuple[StoredTensor, ...]
    made_up: bool = False
    """Whether the values were made up from the signature, for want of real ones."""
    repeatable: bool = True
    """Whether the same request gave the same answer twice; if not, only shapes are compared."""


class VersionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that is known of an immutable version."""

    model: str
    version: int
    digest: str
    """`sha256:<64 hex>` over the files, as `repository.digest` computes it."""
    artifact: str
    """The artifact inside the version's folder: a relative path, "" for the folder itself."""
    runtime: str
    format: str
    runs_code: bool = False
    """Whether loading runs code from the artifact; whoever pushed it said that it is trusted."""
    files: tuple[StoredFile, ...] = ()
    signature: Signature | None = None
    examples: tuple[Example, ...] = ()
    rtol: float = 1e-3
    """How far a floating-point answer may be from the stored one, relative to it."""
    atol: float = 1e-5
    """The same, absolute: an answer passes when |a - b| <= atol + rtol * |b|."""
    libraries: dict[str, str] = {}
    """Distribution -> version, as installed where the version was pushed."""
    python: str = ""
    environment: str = ""
    """Digest of the version's own environment, "" when it runs in the server's."""
    requirements: tuple[str, ...] = ()
    """The requirement lines that the environment was built from."""
    params: dict[str, Any] = {}
    """Training parameters and other facts that the artifact tells of itself."""
    metrics: dict[str, float] = {}
    note: str = ""
    source: str = ""
    """The name of the file or folder that was pushed, without its folder."""
    created: str = ""
    """When it was published: RFC 3339, UTC, seconds."""
    who: str = ""
    host: str = ""

    @property
    def size(self) -> int:
        """Bytes over all files."""
        return sum(file.size for file in self.files)


class LabelChange(msgspec.Struct, frozen=True, kw_only=True):
    """One movement of a label. `version` None: it was taken away; `previous` None: it was new."""

    model: str
    label: str
    version: int | None
    previous: int | None
    at: str
    who: str
    reason: str = ""
    """`label`, `rollback`, `rollout`, `push` or `rm`, and the words of the user, if any."""


class RouteSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a model's unpinned traffic is shared. A target is a label, or a version's number."""

    weights: dict[str, float]
    """Target -> share of the traffic; any positive scale (95 and 5, or 0.95 and 0.05)."""
    sticky: str = ""
    """`header:<name>` or `query:<name>`: requests with the same value there go to the same target.
    "": each goes to whose turn it is."""
    shadow: str = ""
    """A target that gets a copy of the traffic; its answers are compared and thrown away."""


class ModelSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `muelle list`."""

    model: str
    n_versions: int
    newest: int
    created: str
    """Of the newest version."""
    format: str
    size: int
    """Bytes of the newest version."""
    labels: dict[str, int]
    route: RouteSpec | None = None


class ServerLease(msgspec.Struct, frozen=True, kw_only=True):
    """A running server that uses the store. It holds a lock on its file while it lives."""

    id: str
    pid: int
    host: str
    socket: str
    """Path of its admin Unix socket, "" when it has none."""
    url: str
    versions: tuple[tuple[str, int], ...] = ()
    """What it has loaded: (model, version)."""
