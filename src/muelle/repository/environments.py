"""Find a version's own environment in the store. Not for building one (`packaging`)."""

from __future__ import annotations

from pathlib import Path

READY = "muelle-ready.json"
"""Written last, and on the disk before a version names the environment: without it the folder is a
leftover of a build that was cut off."""


def environment_folder(root: Path, digest: str) -> Path:
    """Return where an environment lies below `root` (a store's `environments/`)."""
    return root / digest.rpartition(":")[2]


def find_environment(root: Path, digest: str) -> Path | None:
    """Return the interpreter of a finished environment, None when there is none."""
    folder = environment_folder(root, digest)
    python = folder / "bin" / "python"
    return python if (folder / READY).is_file() and python.exists() else None
