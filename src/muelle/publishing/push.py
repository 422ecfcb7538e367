"""Push a file or folder: check it, load it in a worker, run its examples, publish a version.

The one door for it: whatever fails before the last step, nothing is published. Blocking. Not for
labels of running servers: the caller moves those through the server, which first loads the version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from muelle.core.errors import ArtifactError, MissingLibrary, MuelleError
from muelle.core.records import STABLE, Example, StoredFile, VersionRecord
from muelle.packaging.signing import add_signature, sign_files
from muelle.packaging.signing_policy import source_signatures
from muelle.publishing.examples import Inputs, answer_twice, own_example, read_examples
from muelle.publishing.records import describe_local, params_of, remarks_of, versions_here
from muelle.publishing.requirements import Environments, Surroundings
from muelle.publishing.sources import Found, find
from muelle.repository.digest import digest_of_files
from muelle.runtimes.registry import find_format, missing_libraries, missing_message
from muelle.workers.probe import Probe

if TYPE_CHECKING:
    from muelle.packaging.signing import PrivateKey
    from muelle.packaging.signing_policy import SignaturePolicy
    from muelle.repository.store import Store

Progress = Callable[[str, int, int], None]
"""(phase, done, total): `copying` counts bytes, `examples` requests; `environment`, `loading` and
`publishing` come once, with 0 of 0."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to push. Every field has the default of the command line."""

    name: str = ""
    artifact: str = ""
    trust: bool = False
    """Whether formats may be loaded that run code from the artifact."""
    label: str | None = None
    """A label for the version; None: `stable` for a model's first; "": none."""
    move_label: bool = True
    """Whether the label moves when the version is published. Not where a server runs: the caller
    then moves it through the server, which first makes the version answer."""
    examples: Sequence[Path] = ()
    requirements: Path | None = None
    wheels: Path | None = None
    """A folder of wheels that environments are built from, without an index."""
    own_environment: bool = True
    """Whether requirements beside the artifact count."""
    note: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    rtol: float = 1e-3
    atol: float = 1e-5
    force: bool = False
    sign: PrivateKey | None = None
    """The key that signs every version, before it is published."""
    require: SignaturePolicy | None = None
    """Whose signature must lie beside what is pushed, unless `sign` is one of these keys."""
    threads: int = 1
    load_timeout_s: float = 600.0
    run_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class PushResult:
    """A version that is in the store now. `created`: whether it was not there before."""

    record: VersionRecord
    created: bool
    remarks: tuple[str, ...] = ()
    label: str = ""
    """The label that is wanted for it; it has moved, unless `move_label` was off."""


def push(
    store: Store,
    path: Path,
    options: Options,
    *,
    who: str,
    progress: Progress = lambda phase, done, total: None,
) -> tuple[PushResult, ...]:
    """Publish what the path holds; several versions when it is a repository folder, in order.

    Raise ArtifactError (not usable, not trusted, crashes), MissingLibrary, ModelFailed (fails on an
    example), Unprocessable (an example does not fit), StoreError. The version at fault is not
    published; versions before it are.
    """
    found = find(path, name=options.name, artifact=options.artifact)
    for one in found:
        _check_trust(one, options.trust)
    known = {summary.model for summary in store.models()}
    last = {one.model: one for one in found}
    results = []
    try:
        for one in found:
            label: str | None = ""
            if last[one.model] is one:
                first = options.label is None and one.model not in known
                label = STABLE if first else options.label
            results.append(_Push(store, one, options, who, progress).run(label or ""))
    finally:
        store.abandon()
    return tuple(results)


class _Push:
    """One version on its way into the store."""

    def __init__(
        self, store: Store, found: Found, options: Options, who: str, progress: Progress
    ) -> None:
        self._store, self._found, self._options = store, found, options
        self._who, self._progress = who, progress
        self._remarks: list[str] = []

    def run(self, label: str) -> PushResult:
        files = self._copy()
        digest = digest_of_files([(file.path, file.sha256) for file in files])
        signatures = self._signatures(files)
        folder = self._store.checkout(files, digest)
        self._check_unchanged(folder)
        around = self._surroundings()
        draft = self._try(folder, files, digest, around)
        self._progress("publishing", 0, 0)
        # Before it is a version: a server that asks for signatures never sees it without.
        for signature in signatures:
            add_signature(self._store.folder, digest, signature)
        record, created = self._store.publish(
            draft,
            label=label if self._options.move_label else "",
            who=self._who,
            force=self._options.force,
            number=self._found.number,
        )
        return PushResult(record, created, tuple(dict.fromkeys(self._remarks)), label)

    def _copy(self) -> tuple[StoredFile, ...]:
        def progress(done: int, total: int) -> None:
            self._progress("copying", done, total)

        return self._store.add_files(self._found.source, progress)

    def _signatures(self, files: tuple[StoredFile, ...]) -> list[bytes]:
        """Return the signatures that go with the version. Raise SignatureInvalid: one is wanted."""
        options, source = self._options, self._found.source
        pairs = [(file.path, file.sha256) for file in files]
        signatures = []
        if options.sign is not None:
            signatures.append(sign_files(pairs, options.sign, name=self._found.model))
        if options.require is not None:
            beside = source_signatures(source)
            options.require.check_files(pairs, [*signatures, *beside], str(source))
            signatures = [*beside, *signatures]
        return signatures

    def _check_unchanged(self, folder: Path) -> None:
        """Look again at what was copied: trust was decided on the file before."""
        found = self._found
        _, form = find_format(folder / found.artifact if found.artifact else folder)
        if form.name != found.format.name:
            raise ArtifactError(f"{found.source.name}: it changed while it was pushed")

    def _surroundings(self) -> Surroundings:
        """Find or build the environment, if the version needs one of its own."""
        found, options = self._found, self._options
        environments = Environments(
            self._store.folder / "environments",
            options.wheels,
            lambda line: self._progress("environment", 0, 0),
        )
        beside = found.requirements if options.own_environment else None
        # MLflow names itself in every folder that it saves; few of them are loaded by it.
        needed = found.runtime.modules_by_format.get(found.format.name, found.runtime.modules)
        ignored = () if "mlflow" in needed else ("mlflow", "mlflow-skinny")
        around = environments.choose(options.requirements, beside, ignored, trusted=options.trust)
        self._remarks += around.remarks
        if not around.environment:
            missing = missing_libraries(found.runtime, found.format)
            if missing:
                raise MissingLibrary(missing_message(found.runtime, found.format, missing))
        return around

    def _try(
        self, folder: Path, files: tuple[StoredFile, ...], digest: str, around: Surroundings
    ) -> VersionRecord:
        """Load the version in a worker, run its examples, and write down what was found."""
        found, options = self._found, self._options
        self._progress("loading", 0, 0)
        place = folder / found.artifact if found.artifact else folder
        with Probe(
            place,
            found.runtime.name,
            found.format.name,
            name=found.model,
            threads=options.threads,
            timeout_s=options.load_timeout_s,
            python=around.python,
        ) as worker:
            loaded = worker.loaded
            self._remarks += remarks_of(loaded.info)
            examples = self._examples(worker)
        user, host = describe_local()
        return VersionRecord(
            model=found.model,
            version=0,
            digest=digest,
            artifact=found.artifact,
            runtime=found.runtime.name,
            format=found.format.name,
            runs_code=found.format.runs_code,
            files=files,
            signature=loaded.signature,
            examples=examples,
            rtol=options.rtol,
            atol=options.atol,
            libraries=around.libraries or versions_here(found.runtime, found.format),
            python=around.python_version,
            environment=around.environment,
            requirements=around.lines,
            params=params_of(loaded.info),
            metrics=dict(options.metrics),
            note=options.note,
            source=found.source.name,
            who=user,
            host=host,
        )

    def _examples(self, worker: Probe) -> tuple[Example, ...]:
        requests = read_examples(worker.loaded.signature, self._options.examples)
        if not requests:
            return self._own_example(worker)
        examples = []
        for i, inputs in enumerate(requests):
            self._progress("examples", i, len(requests))
            file = self._options.examples[i]
            try:
                example, trouble = self._answer(worker, inputs, made_up=False)
            except MuelleError as exc:
                raise type(exc)(f"{file}: the model fails on this example: {exc.message}") from exc
            if trouble:
                self._remarks.append(f"{file}: asked twice, it answers differently: {trouble}")
            examples.append(example)
        return tuple(examples)

    def _own_example(self, worker: Probe) -> tuple[Example, ...]:
        """Run the artifact's own example, or a made-up one, which may fail: it proves little."""
        self._progress("examples", 0, 1)
        made_up = worker.loaded.example is None
        try:
            inputs, made_up = own_example(worker.loaded.signature, worker.loaded.example)
            example, trouble = self._answer(worker, inputs, made_up=made_up)
        except (MuelleError, ValueError) as exc:
            text = exc.message if isinstance(exc, MuelleError) else str(exc)
            what = "a made-up example" if made_up else "the artifact's own example"
            self._remarks.append(f"{what} fails, so none is kept: {text}; give one: --example FILE")
            return ()
        if trouble:
            self._remarks.append(f"asked twice, it answers differently: {trouble}")
        if made_up:
            self._remarks.append("the example is made up; give a real one: --example FILE")
        return (example,)

    def _answer(self, worker: Probe, inputs: Inputs, *, made_up: bool) -> tuple[Example, str]:
        options = self._options
        return answer_twice(
            inputs,
            lambda tensors: worker.run(tensors, options.run_timeout_s),
            rtol=options.rtol,
            atol=options.atol,
            made_up=made_up,
        )


def _check_trust(found: Found, trust: bool) -> None:
    if found.format.runs_code and not trust:
        name = found.artifact or found.source.name
        raise ArtifactError(
            f"{name}: {found.format.name} runs code from the file when it is loaded; if you trust "
            "who made it, push it with --trust"
        )
