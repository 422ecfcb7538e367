"""Compile src/muelle/protos/*.proto into src/muelle/protos/compiled.py: `make protos`.

With `--check`, write nothing and exit with 1 when the file is not what the sources give.
"""

from __future__ import annotations

import base64
import sys
import tempfile
import textwrap
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "src" / "muelle" / "protos"
HEAD = '''"""Descriptors of the .proto files here. Written by `make protos`, not by hand."""

from types import MappingProxyType

FILES = MappingProxyType(
    {
'''


def compiled() -> str:
    """Return the text of compiled.py: file name -> serialized FileDescriptorProto in base64."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from grpc_tools import protoc

    names = sorted(f"muelle/protos/{path.name}" for path in FOLDER.glob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "set"
        source = FOLDER.parents[1]
        status = protoc.main(["protoc", f"-I{source}", f"--descriptor_set_out={target}", *names])
        if status:
            raise SystemExit(status)
        found = FileDescriptorSet.FromString(target.read_bytes())
    parts = [HEAD]
    for file in sorted(found.file, key=lambda f: f.name):
        text = base64.b64encode(file.SerializeToString(deterministic=True)).decode()
        lines = [f'            "{line}"\n' for line in textwrap.wrap(text, 84)]
        parts += [f'        "{file.name}": (\n', *lines, "        ),\n"]
    return "".join([*parts, "    }\n)\n"])


def main() -> int:
    """Write compiled.py, or compare it."""
    target = FOLDER / "compiled.py"
    text = compiled()
    if "--check" not in sys.argv[1:]:
        target.write_text(text)
        return 0
    return int(target.read_text() != text)


if __name__ == "__main__":
    sys.exit(main())
