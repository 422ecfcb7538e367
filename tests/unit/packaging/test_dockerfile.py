"""The Dockerfile: readable, without a shell; nothing that is given can break out of it (V-29)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.core.errors import ConfigError, ImageError
from muelle.core.records import VersionRecord
from muelle.packaging.dockerfile import dockerfile
from muelle.packaging.images import ImagePlan, VersionPart, check_labels, epoch_of
from muelle.packaging.lock import Lock
from muelle.packaging.oci import parse_name
from muelle.packaging.targets import Target
from muelle.packaging.wheels import LockedWheel

PIP = LockedWheel("pip", "26.0", "0" * 64, 1, Path("pip-26.0-py3-none-any.whl"))


def plan(**given: Any) -> ImagePlan:
    """Return the plan of an image with one version."""
    record = VersionRecord(
        model="fraud", version=3, digest="sha256:1", artifact="m.onnx", runtime="onnx",
        format="ONNX", runs_code=given.pop("runs_code", False),
    )  # fmt: skip
    settings = {
        "name": parse_name("registry.local:5000/fraud:3"),
        "base": "python:3.11-slim",
        "lock": Lock(Target.parse("linux/amd64", "3.11"), (), PIP),
        "versions": (VersionPart(record, {}),),
        "index": {"muelle-models.json": b"{}"},
        "epoch": 1_700_000_000,
    }
    return ImagePlan(**{**settings, **given})


PAIR = re.compile(r'"((?:\\["$\\]|[^"$\\])*)"="((?:\\["$\\]|[^"$\\])*)"(?: |\Z)')
"""A pair as engines read it between double quotes: only quote, dollar and backslash are escaped."""


def instructions(text: str) -> list[tuple[str, str]]:
    """Return (instruction, value), comments left out, continued lines joined."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r" \\\n +", " ", "\n".join(lines))
    pairs = [line.partition(" ") for line in joined.split("\n")]
    return [(name, value) for name, _, value in pairs]


def labels(text: str) -> dict[str, str]:
    """Return the labels of the last stage, as an engine would read them."""
    found = [value for name, value in instructions(text) if name == "LABEL"][-1]
    assert "".join(match[0] for match in PAIR.finditer(found)) == found
    plain = re.compile(r'\\(["$\\])')
    return {plain.sub(r"\1", m[1]): plain.sub(r"\1", m[2]) for m in PAIR.finditer(found)}


def test_every_command_is_a_json_list() -> None:
    """Nothing is started through a shell: RUN, CMD, ENTRYPOINT and HEALTHCHECK are exec form."""
    found = instructions(dockerfile(plan()))
    commands = [v for name, v in found if name in ("RUN", "CMD", "ENTRYPOINT")]
    checks = [v.partition("CMD ")[2] for name, v in found if name == "HEALTHCHECK"]
    assert len(checks) == 1
    for command in [*commands, *checks]:
        words = json.loads(command)
        assert isinstance(words, list)
        assert not {"sh", "/bin/sh", "bash", "-c"} & set(words)


def test_it_says_what_an_operator_expects() -> None:
    """A numeric user, a stop signal, a health check, labels of the OCI specification, the port."""
    text = dockerfile(plan())
    found = dict(instructions(text))
    assert found["USER"] == "10001:10001"
    assert found["STOPSIGNAL"] == "SIGTERM"
    assert found["EXPOSE"] == "8080"
    assert json.loads(found["CMD"]) == ["serve", "/srv/models"]
    known = labels(text)
    assert known["org.opencontainers.image.created"] == "2023-11-14T22:13:20Z"
    assert known["org.opencontainers.image.base.name"] == "python:3.11-slim"
    assert known["dev.muelle.models"] == "fraud:3"


def test_nothing_is_fetched() -> None:
    """No ADD, no frontend to fetch, no address; pip is told to ask no index."""
    text = dockerfile(plan())
    names = [name for name, _ in instructions(text)]
    assert "ADD" not in names
    assert "# syntax" not in text
    assert "://" not in text
    (install,) = [v for name, v in instructions(text) if name == "RUN" and "install" in v]
    assert {"--no-index", "--require-hashes", "--no-deps"} <= set(json.loads(install))


def test_a_new_version_changes_only_what_is_its_own() -> None:
    """Up to the models' layers the text is the same: an engine's cache holds."""
    older, newer = plan(), plan(epoch=1_800_000_000, name=parse_name("fraud:4"))
    common = dockerfile(older).partition('COPY ["models/')[0]
    assert dockerfile(newer).startswith(common.replace("fraud:3", "fraud:3"))


def test_trust_is_passed_on_only_where_it_was_given() -> None:
    """An image of a model that runs code says so; one of a safe format does not."""
    assert 'MUELLE_TRUST="true"' in dockerfile(plan(runs_code=True))
    assert "MUELLE_TRUST" not in dockerfile(plan())


texts = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=40)
nasty = st.sampled_from(
    [
        '"',
        "\\",
        "$HOME",
        "${PATH}",
        "\\n",
        "`id`",
        "$(id)",
        "'",
        "#",
        "a b",
        "=",
        "\\$",
        '\\"',
        "[]",
    ]
)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True), st.lists(nasty | texts, max_size=4)
    )
)
def test_any_label_comes_out_as_it_went_in(given_labels: dict[str, list[str]]) -> None:
    """V-29: whatever stands in a label is read back as the same value, and as nothing else."""
    wanted = {f"x.{key}": "".join(parts) for key, parts in given_labels.items()}
    text = dockerfile(plan(labels=wanted))
    assert labels(text) | wanted == labels(text)
    plain = [name for name, _ in instructions(dockerfile(plan()))]
    assert [name for name, _ in instructions(text)] == plain


@pytest.mark.parametrize("text", ["a=\nRUN id", "a=x\x00", "a=\u2028x", "A B=1", "=1", "a", "$a=1"])
def test_a_label_that_could_break_out_is_refused(text: str) -> None:
    """V-29: line breaks, control characters and odd names do not become labels."""
    with pytest.raises(ConfigError, match="--image-label"):
        check_labels([text])


@pytest.mark.parametrize(
    "base",
    [
        "a\nRUN id",
        "python AS x",
        "python:3.11 ",
        "$BASE",
        "../x",
        "python@sha256:1",
        "-v",
        "a b",
        "",
    ],
)
def test_a_base_that_could_break_out_is_refused(base: str) -> None:
    """V-29: FROM takes the name of an image and nothing else."""
    with pytest.raises((ConfigError, ImageError)):
        dockerfile(plan(base=base))


@given(st.text(max_size=60))
def test_any_base_is_taken_whole_or_refused(base: str) -> None:
    """V-29: a text either is one image's name, or no Dockerfile is made of it."""
    try:
        text = dockerfile(plan(base=base))
    except (ConfigError, ImageError):
        return
    stages = [value for name, value in instructions(text) if name == "FROM"]
    assert stages == [f"{base} AS packages", base]


@pytest.mark.parametrize(
    "name", ["a b", "Fraud:1", "fraud:1\nRUN id", "../x", "a/../b:1", "x" * 300]
)
def test_an_image_name_that_is_none_is_refused(name: str) -> None:
    """V-29: nor does a tag break out, of the Dockerfile or of a path."""
    with pytest.raises(ImageError, match="no name for an image"):
        parse_name(name)


def test_a_base_by_digest_is_taken() -> None:
    """A base may be pinned by its digest."""
    base = f"python:3.11-slim@sha256:{'a' * 64}"
    assert f"FROM {base}\n" in dockerfile(plan(base=base))


def test_the_time_comes_from_the_variable_or_the_newest_version() -> None:
    """SOURCE_DATE_EPOCH wins; else the image is as old as its newest version: never the clock."""
    records = [
        VersionRecord(
            model="m", version=n, digest="", artifact="", runtime="", format="", created=t
        )
        for n, t in ((1, "2026-01-01T00:00:00Z"), (2, "2026-02-01T00:00:00Z"))
    ]
    assert epoch_of(records, {"SOURCE_DATE_EPOCH": "12"}) == 12
    assert epoch_of(records, {}) == 1_769_904_000
    with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH"):
        epoch_of(records, {"SOURCE_DATE_EPOCH": "yesterday"})
