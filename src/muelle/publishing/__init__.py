"""What `muelle push` does: from a file or folder to a version of the store that works."""

from muelle.publishing.push import Options, PushResult, push
from muelle.publishing.records import describe_local

__all__ = ["Options", "PushResult", "describe_local", "push"]
