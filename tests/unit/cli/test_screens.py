"""What `serve` shows: plain lines in a journal, tables on a terminal, and a line to paste."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muelle.cli.context import Cli, aligned
from muelle.cli.screens import MAX_SHOWN, ServeScreen, curl_line, reachable
from muelle.core.events import (
    Draining,
    Event,
    Listening,
    VersionFailed,
    VersionLoading,
    VersionReady,
    WorkerDied,
)
from muelle.core.signature import Signature, TensorSpec
from muelle.core.status import ModelStatus, VersionStatus
from muelle.texts import Texts

URL = "http://127.0.0.1:8080"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def model(name: str = "flowers", *, width: int = 2, example: Any = None) -> ModelStatus:
    """Return the status of a model with one rows-by-columns input and a classifier's outputs."""
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, width)),),
        outputs=(TensorSpec(name="label", datatype="BYTES", shape=(-1,), role="label"),),
    )
    version = VersionStatus(
        version="1",
        state="READY",
        reason="",
        digest="",
        format="ONNX",
        runtime="onnx",
        signature=signature,
        example=example or {"x": [[0.5] * width]},
        info={},
        workers=(),
        queue_depth=0,
        isolation="process",
        max_batch_size=32,
    )
    return ModelStatus(name=name, default="1", versions=(version,))


def shown(*events: Event, terminal: bool = False, language: str = "en") -> str:
    """Return what stderr holds after the events; nothing may come to stdout."""
    out, err = io.StringIO(), Terminal() if terminal else io.StringIO()
    cli = Cli(texts=Texts(language), env={"TERM": "xterm"}, stdout=out, stderr=err)
    with ServeScreen(cli) as screen:
        for event in events:
            screen(event)
        text = err.getvalue()
    assert out.getvalue() == ""
    return text


LIFE = (
    VersionLoading(model="flowers", version="1", artifact="flowers.onnx"),
    VersionReady(model="flowers", version="1", seconds=0.25),
    Listening(url=URL, models=(model(),)),
    WorkerDied(model="flowers", version="1", worker=0, reason="signal 11", restart_in_s=0.5),
    WorkerDied(model="flowers", version="1", worker=0, reason="signal 11", restart_in_s=None),
    VersionFailed(model="other", version="2", reason="needs --trust"),
    Draining(waiting=3),
)


def test_a_journal_gets_one_plain_line_per_fact() -> None:
    """No colours, no moving lines: address, signature, docs, curl, then warnings with reasons."""
    lines = shown(*LIFE).splitlines()
    assert lines[0] == "loading flowers 1 from flowers.onnx"
    assert lines[1].startswith("ready") and "0.25 s" in lines[1]
    assert URL in lines[2]
    assert lines[3] == "flowers 1 (ONNX): x FP32 [-1, 2] -> label BYTES [-1]"
    assert lines[4] == f"docs: {URL}/docs"
    assert lines[5].startswith("curl ")
    assert "signal 11" in lines[6] and "0.5 s" in lines[6]
    assert "not started again" in lines[7]
    assert lines[8] == "warning: other 2 will not answer: needs --trust"
    assert "3 requests" in lines[9]
    assert "\x1b" not in shown(*LIFE)


def test_a_terminal_gets_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same facts, drawn; the curl line is still one line."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = shown(*LIFE, terminal=True)
    assert "flowers, version 1" in text
    assert "type and shape" in text
    assert "\x1b[" in text
    assert sum(line.startswith("curl ") for line in text.splitlines()) == 1


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR a terminal gets no colour codes."""
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(LIFE[2], terminal=True)
    assert "\x1b[3" not in text and "\x1b[1;3" not in text


def test_names_are_never_markup() -> None:
    """A reason with brackets comes out as it is, on a terminal too."""
    failed = VersionFailed(model="m", version="1", reason="shape [bold]x[/bold] [/]")
    assert "[bold]x[/bold] [/]" in shown(failed, terminal=True)


def test_the_curl_line_survives_a_shell() -> None:
    """Quotes, dollars and backslashes in an example reach curl as they are."""
    value = 'it\'s $HOME "`x`" \\ ñ !!'
    body = json.dumps({"instances": [[value]]})
    line = curl_line(f"{URL}/models/m/predict", body)
    words = shlex.split(line)
    assert "\n" not in line
    assert words[0] == "curl"
    assert json.loads(words[-1]) == {"instances": [[value]]}


def body_of(text: str) -> str:
    """Return what the shown curl line sends."""
    line = next(line for line in text.splitlines() if line.startswith("curl "))
    return shlex.split(line)[-1]


def test_the_curl_line_holds_the_models_own_example() -> None:
    """Real values: the body is the example in the native form."""
    body = json.loads(body_of(shown(LIFE[2])))
    assert body["instances"] == [[0.5, 0.5]]


@pytest.fixture
def open_screen() -> Iterator[tuple[ServeScreen, io.StringIO]]:
    """A screen that is still open, and what it wrote."""
    err = io.StringIO()
    cli = Cli(texts=Texts("en"), env={}, stdout=io.StringIO(), stderr=err)
    with ServeScreen(cli) as screen:
        yield screen, err


def test_a_long_example_is_put_into_a_file(open_screen: tuple[ServeScreen, io.StringIO]) -> None:
    """An image does not fit a line: the body lies in a file, until the server ends."""
    screen, err = open_screen
    screen(Listening(url=URL, models=(model(width=5_000),)))
    file = Path(body_of(err.getvalue()).removeprefix("@"))
    assert len(json.loads(file.read_text())["instances"][0]) == 5_000
    screen.__exit__(None, None, None)
    assert not file.exists()


def test_many_models_are_counted() -> None:
    """A repository of hundreds does not fill the screen."""
    models = tuple(model(f"m{i}") for i in range(MAX_SHOWN + 4))
    text = shown(Listening(url=URL, models=models))
    assert text.count("curl ") == MAX_SHOWN
    assert "4 more models" in text


def test_a_model_that_failed_gets_no_curl_line() -> None:
    """No signature, no promise."""
    failed = ModelStatus(name="m", default=None, versions=())
    assert "curl" not in shown(Listening(url=URL, models=(failed,)))


def test_spanish() -> None:
    """The screen speaks the user's language."""
    assert "escucha en" in shown(LIFE[2], language="es")


@pytest.mark.parametrize(
    ("url", "usable"),
    [
        ("http://0.0.0.0:80", "http://127.0.0.1:80"),
        ("http://[::]:80", "http://[::1]:80"),
        ("http://10.0.0.1:80", "http://10.0.0.1:80"),
    ],
)
def test_a_wildcard_address_is_shown_as_one_that_answers(url: str, usable: str) -> None:
    """The pasted line must reach the server from this machine."""
    assert reachable(url) == usable


def test_columns_line_up() -> None:
    """Plain tables are aligned, and no line ends in spaces."""
    assert aligned(["a", "b"], [["long", "x"], ["y", ""]]) == ["a     b", "long  x", "y"]
