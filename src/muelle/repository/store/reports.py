"""What the store says of itself: rows of lists, and what gc and verify found. Plain values."""

from __future__ import annotations

import msgspec


class VersionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One version in a list: what is known without reading its record."""

    version: int
    digest: str
    created: str
    format: str
    size: int
    note: str
    labels: tuple[str, ...]


class GcReport(msgspec.Struct, frozen=True, kw_only=True):
    """What gc removed, or would remove. Counts of files and folders; bytes of the disk."""

    blobs: int
    checkouts: int
    incoming: int
    """Files of pushes that never came to their end."""
    environments: int
    leases: int
    """Of servers that are dead."""
    bytes_freed: int
    dry_run: bool
    removed: tuple[str, ...] = ()
    """Names below the store's folder."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong in a store."""

    kind: str
    """`rotten`, `missing`, `checkout`, `record` or `database`."""
    text: str
    """What is wrong and what to do, in one line."""
    sha256: str = ""
    path: str = ""
    """The file's name in its version, "" when it is not about a file of a version."""
    versions: tuple[tuple[str, int], ...] = ()
    """The versions that it touches: (model, version)."""


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What verify looked at, and what is wrong there."""

    n_versions: int
    n_blobs: int
    size: int
    """Bytes that were hashed."""
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems
