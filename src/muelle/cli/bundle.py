"""`muelle bundle`: versions, with everything that serves them, as one file without the internet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muelle.cli.command import new_command
from muelle.cli.packing import Steps, chosen_models, pack_options, split_arguments
from muelle.cli.store_access import short_size, show_json, store_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from muelle.cli.context import Cli
    from muelle.packaging.bundle import BundleHeader, WrittenBundle
    from muelle.packaging.lock import Lock
    from muelle.publishing.bundles import Extras
    from muelle.publishing.images import Chosen
    from muelle.texts import Texts


def command(texts: Texts) -> click.Command:
    """Return the command."""
    file = click.Path(path_type=Path)
    return new_command(
        "bundle",
        texts,
        run,
        [
            click.Argument(["what"], nargs=-1, required=True, metavar="MODEL|FILE..."),
            click.Option(["-o", "--output"], metavar="FILE", type=file,
                         help=texts("help.option.bundle_output")),
            *pack_options(texts),
            click.Option(["--no-wheels"], is_flag=True, help=texts("help.option.no_wheels")),
            click.Option(["--image"], metavar="OCI", type=file,
                         help=texts("help.option.bundle_image")),
            click.Option(["--deploy"], metavar="DIR", type=file,
                         help=texts("help.option.bundle_deploy")),
            click.Option(["--sign"], metavar="KEY", type=file, help=texts("help.option.sign")),
            click.Option(["--trust"], is_flag=True, help=texts("help.option.trust")),
            *store_options(texts),
        ],
    )  # fmt: skip


def run(
    cli: Cli,
    what: tuple[str, ...],
    output: Path | None,
    sign: Path | None,
    store: str | None,
    trust: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Gather, write; nothing is left of one that fails."""
    from muelle.core.errors import ConfigError
    from muelle.packaging.bundle import write_bundle
    from muelle.packaging.images import epoch_of
    from muelle.publishing.bundles import gather

    app, models = split_arguments(what)
    if app is not None:
        raise ConfigError(
            f"{app.target}: an application travels as an image: muelle build {app.target} "
            "-o app.oci.tar, then --image app.oci.tar"
        )
    with Steps(cli) as steps, chosen_models(cli, models, store, trust=trust, steps=steps) as chosen:
        assert chosen.store is not None
        signer = _signer(sign) if sign is not None else None
        epoch = epoch_of(chosen.records, cli.env)
        extras = _extras(cli, chosen, steps, epoch=epoch, **given)
        members, header = gather(chosen.store, chosen.records, extras, epoch=epoch)
        target = output or Path(f"{chosen.records[0].model}.muelle")
        steps.phase("bundling", 0, 0)
        written = write_bundle(target, members, header, sign=signer)
    if as_json:
        show_json(cli, _json(written, header, signed=sign is not None))
    else:
        _show(cli, written, header)


def _extras(
    cli: Cli,
    chosen: Chosen,
    steps: Steps,
    *,
    platform: str,
    python: str,
    wheels: str | None,
    lock: Path | None,
    no_wheels: bool,
    image: Path | None,
    deploy: Path | None,
    epoch: int,
) -> Extras:
    """Return what goes in beside the versions. What is wrong is found before wheels are fetched."""
    from muelle.core.errors import ConfigError
    from muelle.packaging.sbom import BasePart
    from muelle.publishing.bundles import Extras
    from muelle.publishing.images import sbom_of

    if no_wheels and (wheels or lock):
        raise ConfigError("--no-wheels: there is nothing to take from --wheels or --lock")
    bases: list[BasePart] = []
    if image is not None:
        from muelle.packaging.oci import verify_layout

        bases = [BasePart(image.name, digest) for digest in verify_layout(image).manifests]
    locked = None if no_wheels else _lock(cli, chosen, steps, platform, python, lock or wheels)
    name = f"{chosen.records[0].model}.muelle"
    found = locked.all_wheels() if locked is not None else ()
    sbom = sbom_of(chosen, found, name=name, epoch=epoch, bases=bases)
    return Extras(lock=locked, image=image, deploy=deploy, sbom=sbom)


def _lock(
    cli: Cli, chosen: Chosen, steps: Steps, platform: str, python: str, wheels: Path | str | None
) -> Lock:
    """Return the wheels that the bundle's server needs."""
    from muelle.packaging.targets import Target
    from muelle.publishing.images import lock_chosen

    target = Target.parse(platform, python)
    return lock_chosen(chosen, target, wheels=wheels, env=cli.env, progress=steps.phase)


def _signer(key: Path) -> Callable[[str], bytes]:
    """Return what signs the index, of which it gets the SHA-256."""
    from muelle.packaging.bundle_format import INDEX
    from muelle.packaging.signing import load_private, sign_files

    private = load_private(key)
    return lambda sha256: sign_files([(INDEX, sha256)], private, name="bundle")


def _show(cli: Cli, written: WrittenBundle, header: BundleHeader) -> None:
    rows = [(cli.texts(f"bundle.{kind}"), short_size(n)) for kind, n in written.parts.items()]
    rows.append((cli.texts("bundle.whole"), short_size(written.size)))
    cli.show_table((cli.texts("build.part"), cli.texts("build.size")), rows)
    names = ", ".join(f"{v.model}:{v.version}" for v in header.versions)
    cli.show(cli.texts("bundle.done", path=written.path, names=names))
    cli.show(f"SHA-256 {written.sha256}")
    if header.python:
        where = {"platform": header.platform, "python": header.python}
        cli.show(cli.texts("bundle.install", name=written.path.name, **where))
    cli.show(cli.texts("bundle.import", name=written.path.name))


def _json(written: WrittenBundle, header: BundleHeader, *, signed: bool) -> dict[str, Any]:
    return {
        "path": str(written.path),
        "size": written.size,
        "sha256": written.sha256,
        "index_sha256": written.index_sha256,
        "parts": written.parts,
        "platform": header.platform,
        "python": header.python,
        "signed": signed,
        "versions": [
            {"model": v.model, "version": v.version, "digest": v.digest, "labels": v.labels}
            for v in header.versions
        ],
    }
