"""`muelle build`: versions, or an application around them, become a container image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muelle.cli.command import new_command
from muelle.cli.packing import Steps, chosen_models, pack_options, split_arguments
from muelle.cli.store_access import short_size, show_json, store_options

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.packaging.build import Built
    from muelle.packaging.engines import Engine
    from muelle.packaging.images import ImagePlan
    from muelle.publishing.app_files import AppFiles
    from muelle.publishing.images import Chosen
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    file = click.Path(path_type=Path)
    return new_command(
        "build",
        texts,
        run,
        [
            click.Argument(["what"], nargs=-1, required=True, metavar="MODEL|FILE|APP.py:NAME..."),
            click.Option(["-t", "--tag"], metavar="NAME[:TAG]", help=texts("help.option.tag")),
            click.Option(["--builder"], metavar="NAME", default="auto", show_default=True,
                         help=texts("help.option.builder")),
            click.Option(["--base"], metavar="IMAGE", help=texts("help.option.base")),
            *pack_options(texts),
            click.Option(["-o", "--output"], metavar="PATH", type=file,
                         help=texts("help.option.image_output")),
            click.Option(["--eject"], metavar="DIR", type=file, help=texts("help.option.eject")),
            click.Option(["--push"], is_flag=True, help=texts("help.option.push_image")),
            click.Option(["--insecure-registry"], is_flag=True,
                         help=texts("help.option.insecure_registry")),
            click.Option(["--verify"], is_flag=True, help=texts("help.option.verify_image")),
            click.Option(["--sign"], metavar="KEY", type=file, help=texts("help.option.sign")),
            click.Option(["--image-label", "labels"], metavar="KEY=TEXT", multiple=True,
                         help=texts("help.option.image_label")),
            click.Option(["--trust"], is_flag=True, help=texts("help.option.trust")),
            *store_options(texts),
        ],
    )  # fmt: skip


def run(
    cli: Cli,
    what: tuple[str, ...],
    tag: str | None,
    builder: str,
    base: str | None,
    output: Path | None,
    eject: Path | None,
    verify: bool,
    store: str | None,
    trust: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Make the image; nothing is left of one that fails."""
    from muelle.core.errors import ConfigError

    if verify and builder not in ("oci", "auto"):
        raise ConfigError("--verify: only --builder oci builds bit for bit the same")
    if (output or given["sign"]) and builder not in ("oci", "auto"):
        raise ConfigError(f"--output and --sign go with --builder oci, not with {builder}")
    app, models = split_arguments(what)
    with Steps(cli) as steps, chosen_models(cli, models, store, trust=trust, steps=steps) as chosen:
        job = _Job(cli, chosen, app, steps, tag=tag, base=base, **given)
        if eject is not None:
            job.eject(eject)
            result = None
        elif builder == "oci" or verify or output or given["sign"]:
            result = job.oci(output, verify=verify)
        else:
            result = job.build(builder, output)
    if as_json:
        show_json(cli, _json(job, result, eject))
    elif result is None:
        cli.show(cli.texts("build.ejected", folder=eject))
        cli.show(cli.texts("build.ejected_next", name=job.name, folder=eject))
    else:
        _show(cli, job, result)


class _Job:
    """One build, from what was asked for."""

    def __init__(
        self,
        cli: Cli,
        chosen: Chosen,
        app: AppFiles | None,
        steps: Steps,
        *,
        tag: str | None,
        base: str | None,
        platform: str,
        python: str,
        wheels: str | None,
        lock: Path | None,
        push: bool,
        insecure_registry: bool,
        sign: Path | None,
        labels: tuple[str, ...],
    ) -> None:
        from muelle.core.errors import ConfigError
        from muelle.packaging.images import check_labels
        from muelle.packaging.oci import parse_name

        self._cli, self._chosen, self._app, self._steps = cli, chosen, app, steps
        self._platform, self._python = platform, python
        self._wheels = lock or wheels
        self._base, self._sign = base, sign
        self._push, self._insecure = push, insecure_registry
        self._labels = check_labels(labels)
        self.name = parse_name(tag or _default_name(chosen, app))
        if push and not self.name.host:
            raise ConfigError(
                f"--push: {self.name} names no registry; write -t registry.local:5000/{self.name}"
            )
        self.builder = ""
        self.pushed = ""

    def eject(self, folder: Path) -> None:
        """Write Dockerfile and context into a folder, and build nothing."""
        from muelle.packaging.build import default_base
        from muelle.packaging.context import write_context
        from muelle.packaging.targets import Target

        target = Target.parse(self._platform, self._python)
        plan = self._plan(target, self._base or default_base(target))
        write_context(plan, folder, link=False)

    def build(self, builder: str, output: Path | None) -> Built:
        """Build with an engine; without one, as a file."""
        from muelle.packaging.build import build_with_engine
        from muelle.packaging.engines import find_engine

        engine = find_engine(builder, self._cli.env)
        if engine is None:
            self._cli.say(self._cli.texts("build.no_engine"))
            return self.oci(output, verify=False)
        self.builder = engine.name
        plan = self._engine_plan(engine)
        with self._steps.saying(self._cli.texts("build.building", builder=engine.name)) as say:
            built = build_with_engine(plan, engine, self._cli.env, say)
        if self._push:
            with self._steps.saying(self._cli.texts("build.pushing", name=self.name)) as say:
                engine.push(self.name, insecure=self._insecure, lines=say)
            self.pushed = str(self.name)
        return built

    def oci(self, output: Path | None, *, verify: bool) -> Built:
        """Write the image without an engine."""
        from muelle.packaging.build_oci import OciBuild

        self.builder = "oci"
        build = OciBuild(
            env=self._cli.env,
            base=self._base,
            platform=self._platform,
            python=self._python,
            plan=self._plan,
            progress=self._steps.phase,
        )
        target = output or Path(f"{self.name.path.rpartition('/')[2]}-{self.name.tag}.oci.tar")
        if self._sign is not None:
            from muelle.packaging.signing import (
                OCI_MANIFEST,
                load_private,
                sign_digest,
                signature_path,
                write_signature,
            )

            key = load_private(self._sign, self._cli.env)
        built, _ = build.write(target, self.name, verify=verify)
        if self._sign is not None:
            signature = sign_digest(OCI_MANIFEST, built.digest, str(self.name), key)
            write_signature(signature_path(target), signature)
            build.attach(target, built.digest, signature)
        if self._push:
            with self._steps.saying(self._cli.texts("build.pushing", name=self.name)):
                build.push(target, self.name, insecure=self._insecure)
            self.pushed = str(self.name)
        return built

    def _plan(self, target: Any, base: str, base_digest: str = "") -> ImagePlan:
        from muelle.publishing.images import Wish, lock_chosen, plan_image

        lock = lock_chosen(
            self._chosen,
            target,
            wheels=self._wheels,
            app=self._app,
            env=self._cli.env,
            progress=self._steps.phase,
        )
        wish = Wish(
            target=target,
            name=self.name,
            base=base,
            base_digest=base_digest,
            labels=self._labels,
            env=self._cli.env,
        )
        return plan_image(self._chosen, lock, wish, self._app)

    def _engine_plan(self, engine: Engine) -> ImagePlan:
        """Return the plan on a base that the engine has: the usual one, else this machine's."""
        from muelle.packaging.build import HOST, check_base, default_base
        from muelle.packaging.build_oci import load_host_base
        from muelle.packaging.targets import Target

        target = Target.parse(self._platform, self._python)
        base = self._base
        if base is None:
            base = default_base(target)
            if engine.find(base) is None and target.is_here:
                self._cli.say(self._cli.texts("build.host_base", base=base, engine=engine.name))
                base = HOST
        if base == HOST:
            base = load_host_base(engine, self._cli.env, target)
        elif not self._python and (found := engine.find(base)) is not None and found.python:
            target = Target.parse(self._platform, found.python)
        # Before anything is fetched: a base that will not do is the commonest mistake.
        check_base(engine, base, target)
        return self._plan(target, base)


def _default_name(chosen: Chosen, app: AppFiles | None) -> str:
    if chosen.records:
        first = chosen.records[0]
        return f"{first.model}:{first.version}"
    assert app is not None
    return Path(app.target.partition(":")[0]).stem.lower().replace("_", "-")


def _show(cli: Cli, job: _Job, built: Built) -> None:
    rows = [(name, short_size(size)) for name, size in built.parts.items()]
    rows.append((cli.texts("build.whole"), short_size(built.size or sum(built.parts.values()))))
    cli.show_table((cli.texts("build.part"), cli.texts("build.size")), rows)
    cli.show(cli.texts("build.done", name=job.name, builder=job.builder, id=built.id[:19]))
    if job.pushed:
        cli.show(cli.texts("build.pushed", name=job.pushed))
    if built.path:
        cli.show(cli.texts("build.file", path=built.path))
        if built.path.endswith(".tar"):
            cli.show(f"docker load -i {built.path}")
    cli.show(f"docker run --rm --read-only --cap-drop ALL -p 127.0.0.1:8080:8080 {job.name}")


def _json(job: _Job, built: Built | None, eject: Path | None) -> dict[str, Any]:
    if built is None:
        return {"name": str(job.name), "folder": str(eject)}
    return {
        "name": str(job.name),
        "builder": job.builder,
        "id": built.id,
        "digest": built.digest,
        "path": built.path,
        "size": built.size,
        "parts": dict(built.parts),
        "pushed": job.pushed,
    }
