"""Write an image without an engine: base, wheels and versions as layers of one file or folder.

The same inputs give the same bytes. Not for the formats themselves (`oci`), nor for what an image
holds (`images`).
"""

from __future__ import annotations

import hashlib
import platform as this_machine
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from muelle import __version__
from muelle.core.errors import ArtifactError, ConfigError, StoreError
from muelle.packaging.build import HOST, Built
from muelle.packaging.engines import Engine, find_engine
from muelle.packaging.images import (
    APP,
    DOCUMENTS,
    HOME,
    LAYER_TIME,
    MODELS,
    PORT,
    USER,
    ImagePlan,
    environment_home,
)
from muelle.packaging.installed import environment_files, install_wheels
from muelle.packaging.lock import OURS
from muelle.packaging.oci import (
    Base,
    Entry,
    Healthcheck,
    ImageConfig,
    ImageName,
    Layer,
    find_python,
    folder_entries,
    names,
    parse_name,
    parse_platform,
    read_base,
    verify_layout,
    write_image,
    write_layer,
)
from muelle.packaging.targets import Target
from muelle.packaging.wheels import LockedWheel, cache_folder

Progress = Callable[[str, int, int], None]
MakePlan = Callable[[Target, str, str], ImagePlan]
"""(target, name of the base, its digest) -> the plan."""

SIGNATURE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"

_RECIPE = 1
"""Raised when the same wheels shall give other layers than before."""


class OciBuild:
    """One image, written by Muelle itself. Used once, by one thread."""

    def __init__(
        self,
        *,
        env: Mapping[str, str],
        base: str | None,
        platform: str,
        python: str,
        plan: MakePlan,
        progress: Progress,
    ) -> None:
        """`base` is a file, a layout folder, an image of the local engine, or `host` (None)."""
        self._env, self._base, self._python = env, base, python
        self._platform = Target.parse(platform).platform
        self._plan, self._progress = plan, progress
        self._cache = cache_folder(env)

    def write(self, target: Path, name: ImageName, *, verify: bool) -> tuple[Built, ImagePlan]:
        """Write the image to `target`: a `.tar`, else a folder. Nothing is left when it fails.

        With `verify` it is built a second time, without what earlier builds left, and compared.
        Raise ImageError, ArtifactError.
        """
        with self._work() as work:
            base, plan, python = self._prepare(work)
            built = self._build(base, plan, python, target, name, work / "layers", fresh=verify)
            if verify:
                self._progress("again", 0, 0)
                again = self._build(
                    base, plan, python, work / "again.tar", name, work / "again", fresh=True
                )
                if again.digest != built.digest:
                    target.unlink(missing_ok=True)
                    raise ArtifactError(
                        f"built twice, it is not the same: {built.digest} and {again.digest}"
                    )
                self._progress("checking", 0, 0)
                verify_layout(target)
        return built, plan

    def push(self, archive: Path, name: ImageName, *, insecure: bool) -> str:
        """Send what was written to its registry; return the digest there."""
        from muelle.packaging.oci.push import push

        return push(archive, str(name), insecure=insecure).digest

    def attach(self, target: Path, digest: str, signature: bytes) -> None:
        """Attach a signature to an image in a layout folder, so that it is pushed with it."""
        if target.is_dir():
            from muelle.packaging.oci.push import attach

            attach(target, digest, SIGNATURE_TYPE, signature)

    # --- steps ---

    @contextmanager
    def _work(self) -> Iterator[Path]:
        """Yield a folder that is gone afterwards."""
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._cache, prefix="oci-") as work:
                yield Path(work)
        except OSError as exc:
            where = exc.filename or self._cache
            raise StoreError(f"{where}: cannot be written: {exc.strerror}") from exc

    def _prepare(self, work: Path) -> tuple[Base, ImagePlan, str]:
        """Return the base, what to build on it, and the base's Python."""
        base = self._read_base(work)
        found = find_python(names(base))
        if found is None:
            raise ArtifactError(
                f"{base.name}: no Python in it (looked in /usr/local/bin, /usr/bin and /opt); name "
                "a base with Python 3.11 or later"
            )
        python, version = found
        if self._python and self._python != version:
            raise ConfigError(f"--python {self._python}: the base {base.name} has Python {version}")
        target = Target.parse(self._platform, version)
        return base, self._plan(target, base.name, base.digest), python

    def _read_base(self, work: Path) -> Base:
        wanted = parse_platform(self._platform)
        if self._base in (None, HOST):
            if Target.parse(self._platform).platform != Target.parse().platform:
                raise ConfigError(
                    f"--platform {self._platform}: this machine's Python is another's; name a base "
                    "for it: --base FILE (docker save, an OCI archive or layout)"
                )
            self._progress("host", 0, 0)
            from muelle.packaging.host_base import host_base

            return host_base(self._cache / "host", epoch=LAYER_TIME)
        self._progress("base", 0, 0)
        assert self._base is not None
        path = Path(self._base)
        if path.exists():
            return read_base(path, platform=wanted)
        parse_name(self._base)
        engine = find_engine("auto", self._env)
        if engine is None or engine.find(self._base) is None:
            where = f"in {engine.name}" if engine is not None else "and no engine answers"
            raise ArtifactError(
                f"--base {self._base}: no such file or folder, {where} it is not either; save it "
                "where it is (docker save) and name the file"
            )
        archive = work / "base.tar"
        engine.save(self._base, archive)
        return read_base(archive, platform=wanted, name=self._base)

    def _build(
        self,
        base: Base,
        plan: ImagePlan,
        python: str,
        target: Path,
        name: ImageName,
        work: Path,
        *,
        fresh: bool,
    ) -> Built:
        work.mkdir()
        layers = [
            *self._package_layers(plan, python, work, fresh=fresh),
            *_model_layers(plan, work, self._progress),
        ]
        written = write_image(
            target,
            base,
            layers,
            _config(base, plan),
            name=str(name),
            epoch=plan.epoch,
            platform=parse_platform(self._platform),
            form="archive" if target.suffix == ".tar" else "layout",
        )
        parts = {"base": sum(layer.size for layer in base.layers)}
        for layer in layers:
            parts[layer.comment] = parts.get(layer.comment, 0) + layer.size
        return Built(
            written.config_digest,
            sum(parts.values()),
            parts,
            written.manifest_digest,
            str(target),
        )

    def _package_layers(
        self, plan: ImagePlan, python: str, work: Path, *, fresh: bool
    ) -> Iterator[Layer]:
        """Yield the layers of what is installed: others' packages, ours, and environments."""
        target = plan.lock.target
        theirs = tuple(w for w in plan.lock.wheels if w.name != OURS)
        ours = tuple(w for w in plan.lock.wheels if w.name == OURS)
        sets = [("packages", HOME, theirs, True), ("muelle", HOME, ours, False)]
        for digest, wheels in plan.lock.environments.items():
            home = environment_home(digest)
            sets.append((f"environment {home[-32:-20]}", home, wheels, True))
        for i, (comment, home, wheels, whole) in enumerate(sets):
            yield self._installed(
                comment, home, wheels, python if whole else "", target, work / f"{i}", fresh=fresh
            )

    def _installed(
        self,
        comment: str,
        home: str,
        wheels: Sequence[LockedWheel],
        python: str,
        target: Target,
        work: Path,
        *,
        fresh: bool,
    ) -> Layer:
        """Install wheels and write them as a layer, or find the layer of an earlier build."""
        key = _key(home, wheels, python, target)
        kept = self._cache / "layers" / f"{key}.tar.gz"
        if not fresh and (found := _kept(kept)) is not None:
            return found
        self._progress("installing", 0, 0)
        root = work / "root"
        install_wheels(wheels, root, home, target=target)
        entries = list(folder_entries(root / home.lstrip("/"), home.lstrip("/")))
        if python:
            for path, content in environment_files(home, python, target).items():
                entries.append(Entry(path.lstrip("/"), content))
            entries.append(Entry.link(f"{home.lstrip('/')}/bin/python3", python))
        file = work / "layer.tar.gz" if fresh else kept
        file.parent.mkdir(parents=True, exist_ok=True)
        layer = write_layer(entries, file, epoch=LAYER_TIME, comment=comment)
        shutil.rmtree(root)
        if not fresh:
            # Written last: a layer without it was cut off.
            kept.with_suffix(".json").write_bytes(_note(layer))
        return layer


def load_host_base(engine: Engine, env: Mapping[str, str], target: Target) -> str:
    """Give an engine a base of this machine's own Python; return its name there."""
    from muelle.packaging.host_base import host_base

    cache = cache_folder(env)
    cache.mkdir(parents=True, exist_ok=True)
    base = host_base(cache / "host", epoch=LAYER_TIME)
    name = f"localhost/muelle/base:python{target.python}-{base.digest.rpartition(':')[2][:12]}"
    if engine.find(name) is None:
        with tempfile.TemporaryDirectory(dir=cache, prefix="host-") as work:
            archive = Path(work) / "base.tar"
            write_image(
                archive,
                base,
                [],
                ImageConfig(env={"PATH": "/usr/local/bin:/usr/bin:/bin"}),
                name=name,
                epoch=LAYER_TIME,
                platform=parse_platform(target.platform),
                form="archive",
            )
            engine.load(archive, name)
    return name


def _model_layers(plan: ImagePlan, work: Path, progress: Progress) -> Iterator[Layer]:
    progress("layers", 0, 0)
    inside = MODELS.lstrip("/")
    for part in plan.versions:
        entries = [Entry(f"{inside}/{path}", content) for path, content in part.files.items()]
        # Weights do not get smaller, and packing them is what would take long.
        large = part.record.size > 8 * 1024 * 1024
        yield write_layer(
            entries,
            work / f"{part.name}.tar",
            epoch=LAYER_TIME,
            gzip=not large,
            comment=f"{part.record.model}:{part.record.version}",
        )
    if plan.index:
        entries = [Entry(f"{inside}/{path}", content) for path, content in plan.index.items()]
        yield write_layer(entries, work / "index.tar", epoch=LAYER_TIME, comment="index")
    if plan.documents:
        entries = [Entry(f"{DOCUMENTS.lstrip('/')}/{p}", c) for p, c in plan.documents.items()]
        yield write_layer(entries, work / "documents.tar", epoch=LAYER_TIME, comment="documents")
    if plan.app is not None:
        entries = [
            Entry(f"{APP.lstrip('/')}/{path}", file) for path, file in plan.app.files.items()
        ]
        yield write_layer(entries, work / "app.tar", epoch=LAYER_TIME, comment="app")


def _config(base: Base, plan: ImagePlan) -> ImageConfig:
    return ImageConfig(
        entrypoint=tuple(plan.entrypoint()),
        cmd=tuple(plan.command()),
        env=plan.environment(base.env.get("PATH", "")),
        user=f"{USER}:{USER}",
        workdir=APP if plan.app is not None else "/srv",
        ports=(f"{PORT}/tcp",),
        labels=plan.all_labels(),
        healthcheck=Healthcheck(
            tuple(plan.healthcheck()),
            interval_s=10,
            timeout_s=5,
            start_period_s=120,
            retries=3,
        ),
        stop_signal="SIGTERM",
    )


def _key(home: str, wheels: Sequence[LockedWheel], python: str, target: Target) -> str:
    """Return what decides how a layer turns out, as one name."""
    facts = [_RECIPE, __version__, home, python, target.platform, target.python]
    facts += [this_machine.python_version(), [wheel.sha256 for wheel in wheels]]
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:32]


def _note(layer: Layer) -> bytes:
    facts = {
        "media_type": layer.media_type,
        "digest": layer.digest,
        "diff_id": layer.diff_id,
        "size": layer.size,
        "unpacked_size": layer.unpacked_size,
        "comment": layer.comment,
    }
    return msgspec.json.encode(facts)


def _kept(file: Path) -> Layer | None:
    """Return a layer of an earlier build; its bytes are hashed again when the image is written."""
    from muelle.packaging.oci.blobs import Blob

    try:
        note = msgspec.json.decode(file.with_suffix(".json").read_bytes())
        if file.stat().st_size != note["size"]:
            return None
        return Layer(**note, blob=Blob(file, note["size"]))
    except (OSError, msgspec.MsgspecError, KeyError, TypeError):
        return None
