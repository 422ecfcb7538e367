"""Build an image with an engine: context, build, name. Not for deciding what is inside."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from muelle.core.errors import ArtifactError
from muelle.packaging.context import write_context
from muelle.packaging.engines import Engine, EngineImage
from muelle.packaging.images import ImagePlan
from muelle.packaging.targets import Target
from muelle.packaging.wheels import cache_folder

HOST = "host"
"""As --base: a base made of this machine's own Python."""

Lines = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Built:
    """An image that is there. Sizes in bytes; 0 where the engine does not tell."""

    id: str
    size: int
    parts: Mapping[str, int]
    """What it is made of: `base`, `packages`, a version's `fraud:3`, `app`."""
    digest: str = ""
    """The manifest's digest, where Muelle wrote it itself."""
    path: str = ""


def default_base(target: Target) -> str:
    """Return the base that most people have: Debian's slim image with Python."""
    return f"python:{target.python}-slim"


def check_base(engine: Engine, base: str, target: Target) -> EngineImage:
    """Return the base as the engine knows it. Raise ArtifactError when it will not do."""
    found = engine.find(base)
    if found is None:
        raise ArtifactError(
            f"the base image {base} is not in {engine.name}; load it there ({engine.name} load), "
            "name another with --base, or make one of this machine's Python: --base host"
        )
    if found.architecture and found.architecture != target.architecture:
        raise ArtifactError(
            f"the base image {base} is for {found.architecture}, not for {target.platform}; name "
            "a base for that platform, or another --platform"
        )
    if found.python and found.python != target.python:
        raise ArtifactError(
            f"the base image {base} has Python {found.python}, the wheels are for {target.python}; "
            f"add --python {found.python}"
        )
    return found


def build_with_engine(
    plan: ImagePlan, engine: Engine, env: Mapping[str, str], lines: Lines
) -> Built:
    """Build and name it. Raise ArtifactError or StoreError; then nothing has the name."""
    base = check_base(engine, plan.base, plan.lock.target)
    cache = cache_folder(env)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as work:
        context = Path(work) / "context"
        write_context(plan, context)
        image = engine.build(context, plan.lock.target, lines)
    engine.name_it(image, plan.name)
    return Built(image.id, image.size, sizes(plan, base.size, image.size))


def sizes(plan: ImagePlan, base: int, whole: int) -> dict[str, int]:
    """Return the size of each part; what is neither base nor named is packages."""
    found = {"base": base, "packages": 0}
    for part in plan.versions:
        found[f"{part.record.model}:{part.record.version}"] = sum(
            len(c) if isinstance(c, bytes) else c.stat().st_size for c in part.files.values()
        )
    if plan.app is not None:
        found["app"] = sum(path.stat().st_size for path in plan.app.files.values())
    found["packages"] = max(whole - sum(found.values()), 0) if whole else 0
    return found
