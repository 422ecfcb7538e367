"""Rows of versions, labels and routes, read and written inside a transaction of `Database`.

Functions over a connection, so that the store can do several of them in one transaction. Not for
files. What a caller got wrong raises ModelNotFound, VersionNotFound or Conflict.
"""

from __future__ import annotations

import sqlite3

import msgspec

from muelle.core.errors import ArtifactError, Conflict, ModelNotFound, VersionNotFound
from muelle.core.records import STABLE, LabelChange, ModelSummary, RouteSpec, VersionRecord
from muelle.repository.store.checkouts import tree_of
from muelle.repository.store.references import Reference, earlier, near
from muelle.repository.store.reports import VersionRow

_SHOWN = 8


# --- versions ---


def insert(c: sqlite3.Connection, record: VersionRecord) -> None:
    """Add a version whose number is new."""
    key = (record.model, record.version)
    c.execute("INSERT INTO numbers (model, version) VALUES (?, ?)", key)
    c.execute(
        "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *key,
            record.digest,
            tree_of(record.files),
            record.created,
            record.format,
            record.size,
            record.environment,
            record.note,
        ),
    )
    c.execute("INSERT INTO records VALUES (?, ?, ?)", (*key, encode_record(record)))
    c.executemany(
        "INSERT INTO files VALUES (?, ?, ?, ?, ?)",
        [(*key, file.path, file.size, file.sha256) for file in record.files],
    )


def delete(c: sqlite3.Connection, model: str, version: int, at: str, who: str) -> None:
    """Take a version away; its number stays taken."""
    c.execute("DELETE FROM versions WHERE model = ? AND version = ?", (model, version))
    c.execute(
        "UPDATE numbers SET removed_at = ?, removed_by = ? WHERE model = ? AND version = ?",
        (at, who, model, version),
    )


def free_number(c: sqlite3.Connection, model: str, wanted: int) -> int:
    """Return `wanted` when it is above 0 and was never given away, else the next number."""
    taken = "SELECT 1 FROM numbers WHERE model = ? AND version = ?"
    if wanted > 0 and c.execute(taken, (model, wanted)).fetchone() is None:
        return wanted
    query = "SELECT coalesce(max(version), 0) + 1 FROM numbers WHERE model = ?"
    return int(c.execute(query, (model,)).fetchone()[0])


def find_twin(c: sqlite3.Connection, draft: VersionRecord) -> VersionRecord | None:
    """Return the newest version that is the same: files, environment, tolerances and examples.

    Examples are the same when their requests are: the same files give the same answers.
    """
    query = (
        "SELECT record FROM records JOIN versions USING (model, version) WHERE model = ? "
        "AND digest = ? AND tree = ? AND environment = ? ORDER BY version DESC"
    )
    values = (draft.model, draft.digest, tree_of(draft.files), draft.environment)
    for (content,) in c.execute(query, values):
        record = decode_record(content)
        if _same(record, draft):
            return record
    return None


def _same(a: VersionRecord, b: VersionRecord) -> bool:
    asked_a, asked_b = [e.inputs for e in a.examples], [e.inputs for e in b.examples]
    return (a.artifact, a.runtime, a.rtol, a.atol) == (b.artifact, b.runtime, b.rtol, b.atol) and (
        asked_a == asked_b
    )


def summaries(c: sqlite3.Connection) -> tuple[ModelSummary, ...]:
    """Return one line for each model, without reading a record."""
    labels, routes = all_labels(c), all_routes(c)
    # SQLite takes the other columns from the row that has the maximum.
    query = (
        "SELECT model, count(*), max(version), created, format, size FROM versions "
        "GROUP BY model ORDER BY model"
    )
    return tuple(
        ModelSummary(
            model=model,
            n_versions=n,
            newest=newest,
            created=created,
            format=kind,
            size=size,
            labels=labels.get(model, {}),
            route=routes.get(model),
        )
        for model, n, newest, created, kind, size in c.execute(query)
    )


def rows(c: sqlite3.Connection, model: str) -> tuple[VersionRow, ...]:
    """Return a model's versions, newest first, without reading a record."""
    require_model(c, model)
    names: dict[int, list[str]] = {}
    for label, version in labels_of(c, model).items():
        names.setdefault(version, []).append(label)
    query = (
        "SELECT version, digest, created, format, size, note FROM versions WHERE model = ? "
        "ORDER BY version DESC"
    )
    return tuple(
        VersionRow(
            version=version,
            digest=digest,
            created=created,
            format=kind,
            size=size,
            note=note,
            labels=tuple(names.get(version, ())),
        )
        for version, digest, created, kind, size, note in c.execute(query, (model,))
    )


def record(c: sqlite3.Connection, model: str, version: int) -> VersionRecord:
    """Return everything that is known of a version."""
    require_version(c, model, version)
    query = "SELECT record FROM records WHERE model = ? AND version = ?"
    return decode_record(c.execute(query, (model, version)).fetchone()[0])


def has_model(c: sqlite3.Connection, model: str) -> bool:
    """Whether there is a version of the model."""
    query = "SELECT 1 FROM versions WHERE model = ? LIMIT 1"
    return c.execute(query, (model,)).fetchone() is not None


def require_model(c: sqlite3.Connection, model: str) -> None:
    """Raise ModelNotFound, with near names, unless there is a version of it."""
    if not has_model(c, model):
        names = [name for (name,) in c.execute("SELECT DISTINCT model FROM versions")]
        some = "; `muelle list` shows the models" if names else "; the store is empty"
        raise ModelNotFound(f"{model}: no such model in the store{near(model, names) or some}")


def require_version(c: sqlite3.Connection, model: str, version: int) -> None:
    """Raise ModelNotFound or VersionNotFound, with what there is, unless it is there."""
    require_model(c, model)
    query = "SELECT version FROM versions WHERE model = ? ORDER BY version DESC"
    there = [number for (number,) in c.execute(query, (model,))]
    if version not in there:
        shown = ", ".join(map(str, there[:_SHOWN])) + (", …" if len(there) > _SHOWN else "")
        raise VersionNotFound(f"{model}:{version}: no such version; there are {shown}")


def resolve(c: sqlite3.Connection, reference: Reference) -> tuple[str, int]:
    """Return the model and version that are meant; a model alone means stable, else the newest."""
    model = reference.model
    require_model(c, model)
    if reference.version is not None:
        require_version(c, model, reference.version)
        return model, reference.version
    labels = labels_of(c, model)
    if reference.label is not None:
        return model, labelled(model, reference.label, labels)
    if STABLE in labels:
        return model, labels[STABLE]
    query = "SELECT max(version) FROM versions WHERE model = ?"
    return model, int(c.execute(query, (model,)).fetchone()[0])


def encode_record(value: VersionRecord) -> bytes:
    """Return the record as JSON. Raise ArtifactError when it would not read back the same."""
    content = msgspec.json.encode(value)
    try:
        again = decode_record(content)
    except ArtifactError as exc:
        raise ArtifactError(f"{value.model}: its record cannot be kept: {exc}") from exc
    if (again.files, again.examples) != (value.files, value.examples):
        raise ArtifactError(f"{value.model}: its record cannot be kept as it is")
    return content


def decode_record(content: bytes) -> VersionRecord:
    """Read a record. Raise ArtifactError when it is damaged."""
    try:
        return msgspec.json.decode(content, type=VersionRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ArtifactError(f"a version's record is damaged: {exc}; run `muelle verify`") from exc


# --- labels ---


def labels_of(c: sqlite3.Connection, model: str) -> dict[str, int]:
    """Return label -> version."""
    query = "SELECT label, version FROM labels WHERE model = ? ORDER BY label"
    return dict(c.execute(query, (model,)))


def all_labels(c: sqlite3.Connection) -> dict[str, dict[str, int]]:
    """Return model -> label -> version, of the models that have labels."""
    found: dict[str, dict[str, int]] = {}
    for model, label, version in c.execute("SELECT * FROM labels ORDER BY model, label"):
        found.setdefault(model, {})[label] = version
    return found


def labelled(model: str, label: str, labels: dict[str, int]) -> int:
    """Return what a label names. Raise VersionNotFound, with near labels, when it names nothing."""
    if label not in labels:
        there = near(label, labels) or f"; it has {', '.join(labels) or 'no labels'}"
        raise VersionNotFound(f"{model}@{label}: no such label{there}")
    return labels[label]


def move(c: sqlite3.Connection, change: LabelChange, *, back: bool = False) -> None:
    """Let a label name what the change says, and write the change down."""
    key = (change.model, change.label)
    if change.version is None:
        c.execute("DELETE FROM labels WHERE model = ? AND label = ?", key)
    else:
        c.execute("INSERT OR REPLACE INTO labels VALUES (?, ?, ?)", (*key, change.version))
    c.execute(
        "INSERT INTO history (model, label, version, previous, at, who, reason, back) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*key, change.version, change.previous, change.at, change.who, change.reason, back),
    )


def history(c: sqlite3.Connection, model: str, label: str | None) -> tuple[LabelChange, ...]:
    """Return the movements of a model's labels, or of one, newest first."""
    query = (
        "SELECT model, label, version, previous, at, who, reason FROM history WHERE model = ?1 "
        "AND (?2 IS NULL OR label = ?2) ORDER BY number DESC"
    )
    found = tuple(
        LabelChange(
            model=of, label=name, version=version, previous=previous, at=at, who=who, reason=reason
        )
        for of, name, version, previous, at, who, reason in c.execute(query, (model, label))
    )
    if not found:
        require_model(c, model)
    return found


def rollback_target(c: sqlite3.Connection, model: str, label: str) -> int:
    """Return the version that a rollback would let the label name. Raise Conflict: none is left."""
    require_model(c, model)
    query = "SELECT version, back FROM history WHERE model = ? AND label = ? ORDER BY number"
    moves = [(version, bool(back)) for version, back in c.execute(query, (model, label))]
    labels = labels_of(c, model)
    now = labels.get(label)
    if not moves:
        labelled(model, label, labels)
    there = {v for (v,) in c.execute("SELECT version FROM versions WHERE model = ?", (model,))}
    for version in earlier(moves):
        if version != now and version in there:
            return version
    raise Conflict(
        f"{model}@{label}: it named no other version before that is still there; "
        f"name one: `muelle label {model}:VERSION {label}`"
    )


# --- routes ---


def all_routes(c: sqlite3.Connection) -> dict[str, RouteSpec]:
    """Return model -> route, of the models that have one."""
    query = "SELECT model, spec FROM routes ORDER BY model"
    return {model: msgspec.json.decode(spec, type=RouteSpec) for model, spec in c.execute(query)}


def route_of(c: sqlite3.Connection, model: str) -> RouteSpec | None:
    """Return the model's route."""
    found = c.execute("SELECT spec FROM routes WHERE model = ?", (model,)).fetchone()
    return None if found is None else msgspec.json.decode(found[0], type=RouteSpec)


def put_route(c: sqlite3.Connection, model: str, spec: RouteSpec | None, at: str, who: str) -> None:
    """Set or clear the model's route. Raise VersionNotFound for a target that is not there."""
    require_model(c, model)
    if spec is None:
        c.execute("DELETE FROM routes WHERE model = ?", (model,))
        return
    labels = labels_of(c, model)
    for target in targets_of(spec):
        if target.isdigit():
            require_version(c, model, int(target))
        else:
            labelled(model, target, labels)
    c.execute(
        "INSERT OR REPLACE INTO routes VALUES (?, ?, ?, ?)",
        (model, msgspec.json.encode(spec), at, who),
    )


def targets_of(spec: RouteSpec | None) -> list[str]:
    """Return what a route sends traffic to, its shadow included."""
    if spec is None:
        return []
    return [*spec.weights, spec.shadow] if spec.shadow else list(spec.weights)
