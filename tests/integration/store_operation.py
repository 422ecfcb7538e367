"""One operation on a store, as a program: what the fault sweep kills and lies to.

`python store_operation.py OPERATION STORE SOURCE`. Exit code: 0 it is done, 1 it failed and nothing
has changed, 3 the store says that it cannot know. The `broken-…` operations are negative controls:
each breaks one promise, and the sweep must find it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from muelle.core.errors import MuelleError, StoreError
from muelle.core.records import RouteSpec, StoredFile, VersionRecord
from muelle.repository.store import Store
from muelle.repository.store.checkouts import tree_of
from muelle.repository.store.database import Unsettled

MODEL, WHO = "fraud", "ana"
DONE, FAILED, UNSETTLED = 0, 1, 3

Operation = Callable[[Store, Path], None]


def draft_of(files: tuple[StoredFile, ...], note: str = "") -> VersionRecord:
    """Return a record for these files, as a push would make it."""
    return VersionRecord(
        model=MODEL,
        version=0,
        digest=f"sha256:{tree_of(files)}",
        artifact=files[0].path,
        runtime="onnx",
        format="onnx",
        files=files,
        note=note,
    )


def push(store: Store, source: Path) -> None:
    """Publish two files and let a label name them."""
    files = store.add_files(source)
    store.checkout(files, f"sha256:{tree_of(files)}")
    store.publish(draft_of(files), label="canary", who=WHO)


def label(store: Store, source: Path) -> None:
    """Move a label."""
    store.set_label(MODEL, "stable", 3, who=WHO)


def rollback(store: Store, source: Path) -> None:
    """Move it back."""
    store.rollback(MODEL, who=WHO)


def rm(store: Store, source: Path) -> None:
    """Take a version away."""
    store.remove(MODEL, 3, who=WHO)


def route(store: Store, source: Path) -> None:
    """Share the traffic."""
    store.set_route(MODEL, RouteSpec(weights={"stable": 95, "3": 5}), who=WHO)


def gc(store: Store, source: Path) -> None:
    """Remove a blob, a checkout, half a copy and a dead lease."""
    store.gc(grace_s=0)


def broken_two_steps(store: Store, source: Path) -> None:
    """Publish and label in two transactions: in between it is neither old nor new."""
    files = store.add_files(source)
    store.publish(draft_of(files), label="", who=WHO)
    store.set_label(MODEL, "canary", store.versions(MODEL)[0].version, who=WHO)


def broken_in_place(store: Store, source: Path) -> None:
    """Write a content into its place, and not beside it: half of it may stand there."""
    content = (source / "model.onnx").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    place = store.folder / "blobs" / "sha256" / sha256[:2] / sha256
    place.parent.mkdir(exist_ok=True)
    with open(place, "wb", buffering=0) as file:
        for at in range(0, len(content), 1000):
            file.write(content[at : at + 1000])
    push(store, source)


def broken_blob_later(store: Store, source: Path) -> None:
    """Take the blob away while the version is published already."""
    push(store, source)
    sha256 = hashlib.sha256((source / "model.onnx").read_bytes()).hexdigest()
    place = store.folder / "blobs" / "sha256" / sha256[:2] / sha256
    os.rename(place, store.folder / "incoming" / "late")
    os.rename(store.folder / "incoming" / "late", place)


def broken_success(store: Store, source: Path) -> None:
    """Say that it is done, whatever happened."""
    try:
        label(store, source)
    except StoreError:
        pass


OPERATIONS: Mapping[str, Operation] = {
    "push": push,
    "label": label,
    "rollback": rollback,
    "rm": rm,
    "route": route,
    "gc": gc,
}
BROKEN: Mapping[str, Operation] = {
    "broken-two-steps": broken_two_steps,
    "broken-in-place": broken_in_place,
    "broken-blob-later": broken_blob_later,
    "broken-success": broken_success,
}


def main(name: str, store_folder: str, source: str) -> int:
    """Run one operation; return the exit code."""
    try:
        store = Store.open(Path(store_folder))
    except MuelleError:
        return FAILED
    try:
        {**OPERATIONS, **BROKEN}[name](store, Path(source))
    except Unsettled:
        return UNSETTLED
    except MuelleError:
        return FAILED
    finally:
        store.close()
    return DONE


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
