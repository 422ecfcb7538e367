"""Messages of the gRPC protocols, from the .proto files beside this one.

They live in a descriptor pool of our own: a process may import an official client, whose messages
have the same names, beside Muelle. Not for reading or writing them: codecs do that.
"""

from __future__ import annotations

import base64
from functools import cache
from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from muelle.protos.compiled import FILES


@cache
def pool() -> DescriptorPool:
    """Return the pool that holds every file. Made when first asked for."""
    made = DescriptorPool()
    for text in (FILES[name] for name in _in_order()):
        made.AddSerializedFile(base64.b64decode(text))
    return made


@cache
def message(full_name: str) -> Any:
    """Return a message's class by its full name: `inference.ModelInferRequest`.

    Raise KeyError when no file has it.
    """
    return GetMessageClass(pool().FindMessageTypeByName(full_name))


def _in_order() -> list[str]:
    """A file comes after those that it imports."""
    first = "muelle/protos/model_config.proto"
    return [first, *(name for name in FILES if name != first)]
