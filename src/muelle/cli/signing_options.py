"""What the commands that sign and check share: their options, and reading keys from them.

Not for signing itself (`packaging.signing`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.packaging.signing import PrivateKey, PublicKey
    from muelle.packaging.signing_policy import SignaturePolicy
    from muelle.texts import Texts


def sign_option(texts: Texts) -> click.Option:
    """Return `--sign KEY`."""
    file = click.Path(path_type=Path)
    return click.Option(["--sign"], metavar="NAME.key", type=file, help=texts("help.option.sign"))


def require_option(texts: Texts) -> click.Option:
    """Return `--require-signature PUB`, which also comes from the variable of the setting."""
    return click.Option(
        ["--require-signature", "require"],
        metavar="NAME.pub",
        multiple=True,
        envvar="MUELLE_REQUIRE_SIGNATURE",
        help=texts("help.option.require_signature"),
    )


def private_key(cli: Cli, path: Path | None) -> PrivateKey | None:
    """Read the key of `--sign`, None without one; say what is wrong with how it lies there."""
    if path is None:
        return None
    from muelle.packaging.signing import load_private

    key = load_private(path, cli.env)
    if key.remark:
        cli.say(key.remark)
    return key


def public_keys(paths: tuple[Path, ...]) -> tuple[PublicKey, ...]:
    """Read the keys of `--key`."""
    from muelle.packaging.signing import load_public

    return tuple(load_public(path) for path in paths)


def policy(require: tuple[str, ...]) -> SignaturePolicy | None:
    """Read the keys of `--require-signature`, None without one."""
    from muelle.packaging.signing_policy import policy_of

    return policy_of(require)


def path_meant(text: str) -> Path | None:
    """Return the path that a `REF|PATH` argument means, None when it is a version of the store.

    What exists is meant as a path; so is what cannot be a reference.
    """
    path = Path(text).expanduser()
    if path.exists() or "/" in text:
        return path
    from muelle.core.errors import BadRequest
    from muelle.repository.store import Reference

    try:
        Reference.parse(text)
    except BadRequest:
        return path
    return None
