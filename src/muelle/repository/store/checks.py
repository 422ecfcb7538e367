"""What a caller may ask of any store. Pure; not for what is in this one."""

from __future__ import annotations

import math
import re

from muelle.core.errors import ArtifactError, BadRequest
from muelle.core.ids import is_model_name, to_model_name
from muelle.core.records import RouteSpec, VersionRecord
from muelle.repository.store.references import is_label
from muelle.repository.store.sources import check_names

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_STICKY = re.compile(r"(header|query):[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")


def check_draft(draft: VersionRecord) -> None:
    """Raise BadRequest or ArtifactError for a record that cannot be a version."""
    if not is_model_name(draft.model):
        raise BadRequest(
            f"{draft.model!r} cannot be a model's name (a-z, 0-9, '.', '_' and '-', at most 63); "
            f"perhaps {to_model_name(draft.model)!r}"
        )
    if not draft.files:
        raise ArtifactError(f"{draft.model}: a version needs a file")
    check_digest(draft.digest)
    check_names(file.path for file in draft.files)
    numbers = {**draft.metrics, "rtol": draft.rtol, "atol": draft.atol}
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise BadRequest(f"{draft.model}: {name} is {value}; give a finite number")


def check_digest(digest: str) -> None:
    """Raise ArtifactError unless it is `sha256:<64 hex digits>`."""
    if not _DIGEST.match(digest):
        raise ArtifactError(f"{digest[:80]!r}: not a version's digest")


def check_label(label: str) -> None:
    """Raise BadRequest for what cannot be a label."""
    if not is_label(label):
        raise BadRequest(
            f"{label!r} cannot be a label: a-z, 0-9, '.', '_' and '-', at most 63, not only digits"
        )


def check_route(model: str, spec: RouteSpec) -> None:
    """Raise BadRequest for weights that are no shares, or a key that cannot be read."""
    if not spec.weights:
        raise BadRequest(f"{model}: a route needs a target, for example stable=95,canary=5")
    for target, weight in spec.weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise BadRequest(f"{model}: {target}={weight}; a share is a number of at least 0")
    if sum(spec.weights.values()) <= 0:
        raise BadRequest(f"{model}: all shares are 0; one target must get traffic")
    if spec.sticky and not _STICKY.match(spec.sticky):
        raise BadRequest(
            f"{model}: {spec.sticky!r}; write header:<name> or query:<name>, as in header:x-user"
        )
