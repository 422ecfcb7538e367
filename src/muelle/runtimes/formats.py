"""Recognise model files by their content. Not for loading: nothing of a file is imported or run.

Each function is a `Format.sniff`: it gets the first 64 KiB and the path, and reads on only where a
sure answer needs it. The server calls these, so a hostile file must cost little and do nothing.
"""

from __future__ import annotations

import ast
import bz2
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from muelle.runtimes.protobuf import BYTES, VARINT, MalformedMessage, fields

HEAD_BYTES = 64 * 1024
_TAIL_BYTES = 4 * 1024
_MAX_PYTHON_BYTES = 1024 * 1024
_MAX_GRAPH_FIELDS = 64
_MAX_IR_VERSION = 1_000

# Field number -> wire type. Source: onnx.proto, messages ModelProto and GraphProto.
_ONNX_MODEL = {1: VARINT, 5: VARINT} | dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), BYTES)
_ONNX_GRAPH = dict.fromkeys((1, 2, 5, 10, 11, 12, 13, 14, 15, 16), BYTES)

# What may follow the PROTO opcode of a pickle. LONG1 is missing on purpose: it begins the legacy
# files of PyTorch, which are not ours.
_AFTER_PROTO = frozenset(b"\x95}](){cX\x8cUTKMJGNIq\x88\x89\x8e\x8fB\x94\x96")
_OLD_PICKLE = re.compile(rb"\(?[ci][A-Za-z_][\w.]*\r?\n[A-Za-z_][\w.]*\r?\n")

_XGBOOST_JSON = re.compile(rb'\s*\{\s*"(learner|version)"\s*:')
# A UBJSON object whose first key has a length of any integer type (or a typed, counted object).
_XGBOOST_UBJ = re.compile(rb"\{(#.{1,9})?[iUIlL][\x00-\xff]{1,8}?(learner|version)[\[{]", re.DOTALL)
_LIGHTGBM = re.compile(rb"tree\r?\nversion=v\d")


def is_onnx(head: bytes, path: Path) -> bool:
    """Whether the file is a whole ONNX ModelProto: known fields of the right wire types up to its
    last byte, an ir_version, and a graph. The format has no magic number."""
    if not head.startswith(b"\x08"):
        # Every writer serialises by field number, so ir_version (1, varint) comes first.
        return False
    with open(path, "rb") as file:
        fd, size = file.fileno(), os.fstat(file.fileno()).st_size

        def read(offset: int, n_bytes: int) -> bytes:
            return os.pread(fd, n_bytes, offset)

        has_version = has_graph = False
        try:
            for field in fields(read, 0, size):
                if _ONNX_MODEL.get(field.number) != field.wire:
                    return False
                if field.number == 1:
                    has_version = 0 < field.value < _MAX_IR_VERSION
                elif field.number == 7:
                    has_graph = True
                    inside = fields(read, field.start, field.stop)
                    for part, _ in zip(inside, range(_MAX_GRAPH_FIELDS), strict=False):
                        if _ONNX_GRAPH.get(part.number) != part.wire:
                            return False
        except MalformedMessage:
            return False
    return has_version and has_graph


def is_skops(head: bytes, path: Path) -> bool:
    """Whether the file is a zip archive that holds a skops schema."""
    if not head.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(path) as archive, archive.open("schema.json") as schema:
            return b'"__class__"' in schema.read(HEAD_BYTES)
    except (zipfile.BadZipFile, KeyError, OSError, NotImplementedError, RuntimeError, zlib.error):
        return False


def is_pickle(head: bytes, path: Path) -> bool:
    """Whether the file is a pickle, plain or compressed as joblib does (all but LZ4)."""
    start = _plain_start(head)
    if len(start) > 2 and start[0] == 0x80 and 2 <= start[1] <= 5:
        return start[2] in _AFTER_PROTO
    return _OLD_PICKLE.match(start) is not None


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


_COMPRESSED: tuple[tuple[bytes, Callable[[], _Decompressor]], ...] = (
    (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    (b"x\x01", zlib.decompressobj),
    (b"x^", zlib.decompressobj),
    (b"x\x9c", zlib.decompressobj),
    (b"x\xda", zlib.decompressobj),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\x00", lzma.LZMADecompressor),
    (b"]\x00\x00", lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=128 << 20)),
)


def _plain_start(head: bytes) -> bytes:
    """Return the first bytes of the content, decompressed if need be; at most 512."""
    for magic, decompressor in _COMPRESSED:
        if head.startswith(magic):
            try:
                return decompressor().decompress(head, 512)
            except (zlib.error, OSError, lzma.LZMAError, EOFError):
                return b""
    return head[:512]


def is_xgboost_json(head: bytes, path: Path) -> bool:
    """Whether the file is a JSON object with the keys `learner` and `version` of XGBoost."""
    return _XGBOOST_JSON.match(head) is not None and _has_both_keys(head, path)


def is_xgboost_ubj(head: bytes, path: Path) -> bool:
    """Whether the file is a UBJSON object with the keys `learner` and `version` of XGBoost."""
    return _XGBOOST_UBJ.match(head) is not None and _has_both_keys(head, path)


def _has_both_keys(head: bytes, path: Path) -> bool:
    # Keys are sorted, so `version` is at the very end of a file of any size.
    ends = head + _tail(path)
    return b"learner" in ends and b"version" in ends


def _tail(path: Path) -> bytes:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return os.pread(file.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES))


def is_lightgbm(head: bytes, path: Path) -> bool:
    """Whether the file is a LightGBM text model."""
    return _LIGHTGBM.match(head) is not None


def is_catboost(head: bytes, path: Path) -> bool:
    """Whether the file is a CatBoost binary model."""
    return head.startswith(b"CBM1")


def is_python_model(head: bytes, path: Path) -> bool:
    """Whether the file is Python source that defines a subclass of `muelle.Model`.

    The source is parsed, never executed.
    """
    if path.suffix.lower() != ".py" or b"Model" not in (source := _source(path)):
        return False
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    bases = _names_of_model(tree)
    return any(
        ast.unparse(base) in bases
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name | ast.Attribute)
    )


def _source(path: Path) -> bytes:
    with open(path, "rb") as file:
        source = file.read(_MAX_PYTHON_BYTES + 1)
    return source if len(source) <= _MAX_PYTHON_BYTES else b""


def _names_of_model(tree: ast.Module) -> set[str]:
    """Return the expressions by which the module can name `muelle.Model`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "muelle":
                    names.add(f"{alias.asname or alias.name}.Model")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "muelle":
            names.update(a.asname or a.name for a in node.names if a.name == "Model")
    return names
