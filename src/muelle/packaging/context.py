"""Lay an image's plan out as a folder that any builder takes: Dockerfile, wheels, models, app.

Not for building. Files are linked where the disk allows it: a model of many gigabytes costs
nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from muelle.core.errors import Conflict, StoreError
from muelle.packaging.dockerfile import dockerfile
from muelle.packaging.images import ImagePlan, environment_home
from muelle.packaging.lock import LOCK, REQUIREMENTS, WHEELS

IGNORED = ".dockerignore"


def write_context(plan: ImagePlan, folder: Path, *, link: bool = True) -> None:
    """Write the folder; `link` shares files with the store (never for a folder that people edit).

    Raise Conflict when it holds something, StoreError when the disk fails.

    When it fails, nothing of it is left.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Conflict(f"{folder}: there is something already; choose an empty folder")
    text = dockerfile(plan)
    was_there = folder.is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in _files(plan, text).items():
            place(content, folder / name, link=link)
    except OSError as exc:
        shutil.rmtree(folder, ignore_errors=True)
        if was_there:
            folder.mkdir(exist_ok=True)
        raise StoreError(f"{exc.filename or folder}: cannot be written: {exc.strerror}") from exc


def place(content: Path | bytes, target: Path, *, link: bool = True) -> None:
    """Write bytes, or link a file (copy it where it lies on another disk). Raise OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        target.write_bytes(content)
        return
    if link:
        with contextlib.suppress(OSError):  # on another disk, say
            os.link(content, target)
            return
    shutil.copyfile(content, target)


def _files(plan: ImagePlan, text: str) -> Mapping[str, Path | bytes]:
    lock = plan.lock
    found: dict[str, Path | bytes] = {
        "Dockerfile": text.encode(),
        # The context holds what is needed and nothing else.
        IGNORED: b"Dockerfile\n.dockerignore\npylock.toml\n",
        LOCK: lock.pylock(),
        f"locks/{REQUIREMENTS}": lock.requirements(),
    }
    for digest in lock.environments:
        name = environment_home(digest).rpartition("/")[2]
        found[f"locks/{name}.txt"] = lock.requirements(digest)
    for wheel in lock.all_wheels():
        found[f"{WHEELS}/{wheel.file}"] = wheel.path
    for part in plan.versions:
        for path, content in part.files.items():
            found[f"models/{part.name}/{path}"] = content
    for path, content in plan.index.items():
        found[f"models/index/{path}"] = content
    for path, text_of in plan.documents.items():
        found[f"documents/{path}"] = text_of
    if plan.app is not None:
        for path, file in plan.app.files.items():
            found[f"app/{path}"] = file
    return found
