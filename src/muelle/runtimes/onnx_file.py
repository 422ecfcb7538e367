"""Look into an ONNX file before onnxruntime does. Not for running it, nor for its structure.

External data is the danger: a tensor may name any file, and onnxruntime's own checks have been
passed by symlinks and hard links before. Here the rule is strict: a plain file inside the model's
folder, reached through no link, with all bytes that are asked for.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from muelle.core.errors import ArtifactError
from muelle.runtimes.protobuf import BYTES, VARINT, Field, MalformedMessage, Reader, fields

# Message -> field number -> message that lies there. Source: onnx.proto. Every way from ModelProto
# to a TensorProto is in this table.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse",
        23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_MAX_DEPTH = 200
_CLASS_ATTRIBUTES = (
    b"classlabels_strings",
    b"classlabels_int64s",
    b"classlabels_ints",
)


def check_external_data(path: Path) -> None:
    """Raise ArtifactError when a tensor's data lies in a file that the model may not read."""
    if not path.stat().st_size:
        raise ArtifactError(f"{path.name}: the file is empty")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        # No key `location` in the bytes, no external data: true of nearly every model, and the
        # search runs at memory speed, where walking a large forest takes seconds.
        if view.find(b"location") < 0:
            return

        def read(offset: int, n_bytes: int) -> bytes:
            return view[offset : offset + n_bytes]

        try:
            for entries in _external_entries(read, Field(0, BYTES, 0, 0, len(view)), "model", 0):
                _check_entries(entries, path)
        except MalformedMessage as exc:
            raise ArtifactError(f"{path.name}: not a whole ONNX file ({exc})") from exc


def class_labels(path: Path, n_classes: int) -> tuple[str | int, ...]:
    """Return the classes that a classifier node names, or () when the file does not tell.

    For people only: nothing is computed from it.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:

        def read(offset: int, n_bytes: int) -> bytes:
            return view[offset : offset + n_bytes]

        for name in _CLASS_ATTRIBUTES:
            at = view.find(name)
            if at >= 0:
                labels = _labels_after(read, at + len(name), len(view), n_classes)
                if len(labels) == n_classes:
                    return labels
    return ()


def _labels_after(read: Reader, start: int, stop: int, limit: int) -> tuple[str | int, ...]:
    """Read AttributeProto.ints (8) or .strings (9) that follow the attribute's name."""
    labels: list[str | int] = []
    try:
        for field in fields(read, start, stop):
            if field.number == 8 and field.wire == VARINT:
                value = field.value & (1 << 64) - 1
                labels.append(value - (1 << 64) if value >> 63 else value)
            elif field.number == 9 and field.wire == BYTES:
                labels.append(read(field.start, field.stop - field.start).decode())
            else:
                break
            if len(labels) > limit:
                break
    except (MalformedMessage, UnicodeDecodeError):
        pass
    return tuple(labels)


def _external_entries(
    read: Reader, message: Field, kind: str, depth: int
) -> Iterator[list[tuple[set[bytes], list[bytes]]]]:
    """Yield, per tensor, its external_data entries as (keys, values): a field may come twice."""
    if depth > _MAX_DEPTH:
        raise MalformedMessage("nested too deep")
    inside = _INSIDE[kind]
    entries = []
    for field in fields(read, message.start, message.stop):
        below = inside.get(field.number)
        if below is None:
            continue
        if field.wire != BYTES:
            raise MalformedMessage(f"field {field.number} of wire type {field.wire}")
        if below == "entry":
            entries.append(_entry(read, field))
        else:
            yield from _external_entries(read, field, below, depth + 1)
    if entries:
        yield entries


def _entry(read: Reader, message: Field) -> tuple[set[bytes], list[bytes]]:
    keys, values = set(), []
    for field in fields(read, message.start, message.stop):
        content = read(field.start, field.stop - field.start)
        if field.number == 1:
            keys.add(content)
        elif field.number == 2:
            values.append(content)
    return keys, values


def _check_entries(entries: list[tuple[set[bytes], list[bytes]]], path: Path) -> None:
    named: dict[bytes, list[bytes]] = {}
    for keys, values in entries:
        for key in keys:
            named.setdefault(key, []).extend(values or [b""])
    end = 0
    for key in (b"offset", b"length"):
        numbers = named.get(key, [])
        if not all(0 < len(n) <= 18 and n.isdigit() for n in numbers):
            raise ArtifactError(f"{path.name}: external data with an unreadable {key.decode()}")
        end += max(map(int, numbers), default=0)
    for location in named.get(b"location", []):
        _check_location(location, end, path)


def _check_location(location: bytes, end: int, path: Path) -> None:
    """Refuse everything but a plain file inside the model's folder with at least `end` bytes."""
    try:
        text = location.decode()
    except UnicodeDecodeError:
        text = ""
    parts = PurePosixPath(text).parts
    # `*` begins onnxruntime's marker for "this is an address in memory", which a file must not say.
    bad = not text or "\0" in text or "\\" in text or "*" in text or text.startswith("/")
    if bad or ".." in parts:
        raise ArtifactError(
            f"{path.name}: its external data {_shown(location)} lies outside the model's folder; "
            "save the model again with its data beside it"
        )
    place = path.parent
    for part in parts:
        place = place / part
        try:
            found = os.lstat(place)
        except OSError:
            raise ArtifactError(
                f"{path.name}: its external data {_shown(location)} is missing; "
                "copy the file into the model's folder"
            ) from None
        if stat.S_ISLNK(found.st_mode):
            raise ArtifactError(
                f"{path.name}: its external data {_shown(location)} is reached by a symbolic link; "
                "put the file itself there"
            )
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise ArtifactError(
            f"{path.name}: its external data {_shown(location)} is not a plain file of its own; "
            "put a copy there"
        )
    if end > found.st_size:
        raise ArtifactError(
            f"{path.name}: its external data {_shown(location)} is shorter than the model says; "
            "copy it again"
        )


def _shown(location: bytes) -> str:
    return repr(location[:80].decode("utf-8", "replace"))
