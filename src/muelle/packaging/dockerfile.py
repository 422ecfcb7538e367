"""An image's plan as a Dockerfile. Pure; not for writing it to a disk (`context`).

Every value is quoted by the one function for its place, and commands are JSON lists: nothing that
stands in a name or a label is ever read by a shell, or as an instruction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from muelle import __version__
from muelle.core.errors import ConfigError
from muelle.packaging.images import (
    APP,
    DOCUMENTS,
    GRACE_S,
    HOME,
    LAYER_TIME,
    MODELS,
    PORT,
    USER,
    ImagePlan,
    environment_home,
)
from muelle.packaging.lock import REQUIREMENTS, WHEELS
from muelle.packaging.oci import parse_name

PACKAGES = "packages"
"""The stage that installs the wheels; only what it installed goes on."""
STAMP = "dev.muelle.stage"
"""Label of that stage's image, by which leftovers are found."""


_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


def dockerfile(plan: ImagePlan) -> str:
    """Return the Dockerfile of a context as `context.write_context` lays it out.

    Raise ConfigError when a value cannot stand in a Dockerfile.
    """
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: ImagePlan) -> Iterator[str]:
    base = quoted_base(plan.base)
    yield f"# Written by Muelle {__version__}: a service for {_comment(plan)}."
    yield "# Builds without a network: docker build --network none -t NAME ."
    yield ""
    yield "# --- the packages, from the locked wheels beside this file ---"
    yield f"FROM {base} AS {PACKAGES}"
    # The same in every build: else a new version of the model would install the packages anew.
    yield f"ARG SOURCE_DATE_EPOCH={LAYER_TIME}"
    yield _label({STAMP: PACKAGES})
    yield _copy(f"{WHEELS}/", f"/build/{WHEELS}/")
    yield _copy("locks/", "/build/")
    yield from _install(plan, HOME, REQUIREMENTS)
    for digest in plan.lock.environments:
        home = environment_home(digest)
        yield from _install(plan, home, f"{home.rpartition('/')[2]}.txt")
    yield ""
    yield "# --- the image ---"
    yield f"FROM {base}"
    yield _copy(HOME, HOME, stage=PACKAGES)
    for digest in plan.lock.environments:
        home = environment_home(digest)
        yield _copy(home, home, stage=PACKAGES)
    if plan.versions:
        yield "# One layer per version: a new one moves only its own bytes."
        for part in plan.versions:
            yield _copy(f"models/{part.name}/", f"{MODELS}/")
        yield _copy("models/index/", f"{MODELS}/")
    if plan.app is not None:
        yield _copy("app/", f"{APP}/")
    if plan.documents:
        yield _copy("documents/", f"{DOCUMENTS}/")
    yield f"ARG SOURCE_DATE_EPOCH={plan.epoch}"
    yield _label(plan.all_labels())
    yield f'ENV PATH="{HOME}/bin:$PATH"'
    own = [f"{n}={_quoted(v)}" for n, v in plan.environment().items() if n != "PATH"]
    yield "ENV " + " \\\n    ".join(own)
    yield f"WORKDIR {APP if plan.app is not None else '/srv'}"
    yield f"USER {USER}:{USER}"
    yield f"EXPOSE {PORT}"
    yield "STOPSIGNAL SIGTERM"
    yield "# The server drains for 25 s; give it a little longer: docker stop -t " + str(GRACE_S)
    yield "HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \\"
    yield f"    CMD {_json(plan.healthcheck())}"
    yield f"ENTRYPOINT {_json(plan.entrypoint())}"
    yield f"CMD {_json(plan.command())}"


def _install(plan: ImagePlan, home: str, requirements: str) -> Iterator[str]:
    assert plan.lock.pip is not None
    # pip runs out of its own wheel: neither the base nor the image has it.
    pip = [f"{home}/bin/python3", f"/build/{WHEELS}/{plan.lock.pip.file}/pip"]
    options = ["--no-index", "--no-deps", "--require-hashes", "--no-cache-dir"]
    source = [f"--find-links=/build/{WHEELS}", "-r", f"/build/{requirements}"]
    yield f"RUN {_json(['python3', '-m', 'venv', '--without-pip', home])}"
    yield f"RUN {_json([*pip, 'install', *options, *source])}"


def _comment(plan: ImagePlan) -> str:
    names = [f"{part.record.model}:{part.record.version}" for part in plan.versions]
    return ", ".join([*([plan.app.target] if plan.app is not None else []), *names]) or "no model"


def quoted_base(base: str) -> str:
    """Return a base as FROM takes it: an image's name, nothing else. Raise ConfigError."""
    name, at, digest = base.partition("@")
    if at and not _DIGEST.match(digest):
        raise ConfigError(f"{base!r}: behind @ stands sha256: and 64 hex digits")
    parse_name(name)
    return base


def _label(labels: Mapping[str, str]) -> str:
    pairs = [f"{_quoted(key)}={_quoted(value)}" for key, value in labels.items()]
    return "LABEL " + " \\\n      ".join(pairs)


def _copy(source: str, target: str, *, stage: str = "") -> str:
    option = f"--from={stage} " if stage else ""
    return f"COPY {option}{_json([source, target])}"


def _json(words: Sequence[str]) -> str:
    for word in words:
        _check(word)
    return json.dumps(list(words), ensure_ascii=False)


def _quoted(text: str) -> str:
    """Return a text as LABEL and ENV read it; nothing in it is expanded."""
    _check(text)
    for sign in ("\\", '"', "$"):
        text = text.replace(sign, f"\\{sign}")
    return f'"{text}"'


def _check(text: str) -> None:
    if not text.isprintable():
        raise ConfigError(f"{text!r}: control characters cannot stand in a Dockerfile")
