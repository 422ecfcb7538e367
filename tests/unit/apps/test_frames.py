"""The channel's frames, the names of applications, and whose path is whose."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.apps import messages as m
from muelle.apps.link import AppLink
from muelle.apps.metrics import AppMetrics
from muelle.apps.switch import AppSwitch
from muelle.apps.target import AppTarget, is_app, split_app
from muelle.core.errors import ConfigError, MuelleError
from muelle.protocols.http import Answer, HttpRequest

pairs = st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=4).map(tuple)
ids = st.integers(0, 2**40)
answers = st.one_of(
    st.builds(m.Start, ids, st.integers(0, 999), pairs),
    st.builds(m.Body, ids, st.binary(max_size=300), st.booleans()),
    st.builds(m.Ask, ids, st.text(max_size=5), st.text(max_size=20), pairs, st.binary(max_size=99)),
    st.builds(m.Failed, ids),
    st.builds(m.Ready, st.text(max_size=5)),
    st.just(m.Pong()),
)


@given(st.lists(answers, max_size=8), st.lists(st.integers(1, 40), max_size=60))
def test_messages_survive_any_cutting(messages: list[m.Frame], cuts: list[int]) -> None:
    """However the stream is cut into pieces, the same messages come out, in order."""
    stream = b"".join(map(m.pack, messages))
    frames = m.Frames(m.FromWorker)
    found: list[m.Frame] = []
    at = 0
    for cut in [*cuts, len(stream) + 1]:
        found += frames.feed(stream[at : at + cut])
        at += cut
    assert found == messages


@given(st.binary(max_size=200))
def test_nonsense_is_a_bad_frame_and_nothing_else(content: bytes) -> None:
    """What is no message raises BadFrame: no other exception, no endless memory."""
    frames = m.Frames(m.FromWorker, max_bytes=100)
    try:
        list(frames.feed(m.LENGTH.pack(len(content)) + content))
    except m.BadFrame:
        return
    decoded = msgspec.msgpack.decode(content)
    assert isinstance(decoded, list), "only a message passes"


def test_a_frame_that_is_too_large_is_refused_at_once() -> None:
    """The length alone is enough: nothing is waited for or kept."""
    frames = m.Frames(m.FromWorker, max_bytes=100)
    with pytest.raises(m.BadFrame, match="at most 100"):
        list(frames.feed(m.LENGTH.pack(101)))


@pytest.mark.parametrize(
    "text",
    ["app.py:app", "dir/app.py:app", "/srv/x-y/app.py:create_app()", "shop.main:app", "main:app"],
)
def test_names_of_applications(text: str) -> None:
    """Files and modules, objects and factories; written again, the same."""
    assert str(AppTarget.parse(text)) == text
    assert is_app(text)


@pytest.mark.parametrize(
    "text",
    ["fraud:3", "fraud@stable", "model.onnx", "a=app.py:app", "app.py", "app.py:", "app.py:a b",
     "app.py:os.system('x')", ":app", "app.py:app(1)", "C:\\x.onnx", "", "a:b:c"],
)  # fmt: skip
def test_what_is_no_application(text: str) -> None:
    """Models, versions and nonsense are not applications."""
    assert not is_app(text)


def test_one_application_at_a_time() -> None:
    """Models may be many, the application is one."""
    assert split_app(["a.onnx", "app.py:app", "m=b.onnx"]) == ("app.py:app", ("a.onnx", "m=b.onnx"))
    with pytest.raises(ConfigError, match="one application at a time"):
        split_app(["a.py:app", "b.py:app"])
    with pytest.raises(ConfigError, match=r"such as app\.py:app"):
        AppTarget.parse("app.py")


class Way:
    """Remembers which paths came."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def begin(
        self,
        request: HttpRequest,
        raw_path: bytes,
        done: Callable[[Answer], None],
        failed: Callable[[Exception], Answer],
    ) -> Callable[[], None]:
        """Take a request."""
        self.paths.append(request.path)
        assert raw_path.decode() == request.path
        return lambda: None


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("/v2", "/v2"), ("/v2/models/x/infer", "/v2/models/x/infer"), ("/models", "/models"),
        ("/models/x/predict", "/models/x/predict"), ("/ready", "/ready"), ("/metrics", "/metrics"),
        ("/muelle/docs", "/docs"), ("/muelle/openapi.json", "/openapi.json"),
        ("/", ""), ("/docs", ""), ("/v20", ""), ("/models2", ""), ("/metrics/x", ""),
        ("/muelles", ""), ("/ready/x", ""), ("/openapi.json", ""),
    ],
)  # fmt: skip
def test_whose_path_it_is(path: str, ours: str) -> None:
    """Protocols and probes are ours whatever the application does; the rest is its own."""
    own, app = Way(), Way()
    request = HttpRequest(b"GET", path, b"", {}, b"", "1")
    AppSwitch(own, app).begin(
        request, path.encode(), lambda a: None, lambda e: Answer(500, b"", b"")
    )
    assert (own.paths, app.paths) == (([ours], []) if ours else ([], [path]))


class Owner:
    """Hears what a link tells."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def link_ready(self, link: AppLink, kind: str) -> None:
        """Pass over."""

    def link_failed(self, link: AppLink, reason: str) -> None:
        """Pass over."""

    def link_asked(self, link: AppLink, ask: m.Ask) -> None:
        """Pass over."""

    def link_ended(self, link: AppLink, reason: str) -> None:
        """Remember."""
        self.ended.append(reason)


class NoProcess:
    """Stands where a process would; the test is the other end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.pid = 0


async def answer_of(*messages: bytes, limit: int = 1000) -> tuple[Any, Owner]:
    """Return what becomes of request 1 when the process says this, and what its owner heard."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    owner = Owner()
    link = AppLink(0, NoProcess(ours), owner, limit)  # type: ignore[arg-type]
    await loop.create_unix_connection(lambda: link, sock=ours)
    result: list[Answer | MuelleError] = []
    link.begin(1, HttpRequest(b"GET", "/", b"", {}, b"", "r"), b"/", result.append)
    theirs.sendall(b"".join(messages))
    theirs.close()
    while not result and not owner.ended:
        await asyncio.sleep(0)
    link.close()
    return (result[0] if result else None), owner


async def test_an_answer_comes_whole() -> None:
    """Start, pieces, end: one answer; hop-by-hop headers stay behind, line breaks become spaces."""
    headers = ((b"Content-Type", b"text/x"), (b"Connection", b"close"), (b"X-A", b"1\r\nX-B: 2"))
    answer, _ = await answer_of(
        m.pack(m.Start(1, 200, headers)),
        m.pack(m.Body(1, b"ab", True)),
        m.pack(m.Body(1, b"c", False)),
    )
    assert (answer.status, answer.content_type, answer.body) == (200, b"text/x", b"abc")
    assert answer.headers == ((b"x-a", b"1  X-B: 2"),)


@pytest.mark.parametrize(
    "messages",
    [
        [m.Body(1, b"x", False)],
        [m.Start(1, 99, ()), m.Body(1, b"x", False)],
        [m.Start(1, 1000, ()), m.Body(1, b"x", False)],
        [m.Start(1, 200, ()), m.Body(1, b"x" * 2000, False)],
        [m.Failed(1)],
    ],
)
async def test_a_wrong_answer_is_a_500(messages: list[m.Frame]) -> None:
    """A body without a start, a status that is none, too large a body: an error, and no crash."""
    answer, _ = await answer_of(*map(m.pack, messages))
    assert isinstance(answer, MuelleError)


async def test_answers_to_nothing_are_passed_over() -> None:
    """What nobody asked for harms nobody: the answer to what was asked still comes."""
    answer, _ = await answer_of(
        m.pack(m.Start(7, 200, ())), m.pack(m.Body(7, b"", False)), m.pack(m.Failed(8)),
        m.pack(m.Start(1, 204, ())), m.pack(m.Body(1, b"", False)),
    )  # fmt: skip
    assert answer.status == 204


async def test_a_broken_frame_ends_the_process_not_the_server() -> None:
    """The owner is told why."""
    _, owner = await answer_of(b"\xff\xff\xff\xff")
    assert "form" in owner.ended[0]


def test_metrics_know_only_classes() -> None:
    """An odd status makes no series of its own."""
    metrics = AppMetrics()
    for status in (200, 204, 404, 799, 99):
        metrics.answered(status, 0.01)
    text = metrics.render(3, 1).decode()
    assert 'code="2xx"} 2' in text
    assert 'code="5xx"} 2' in text
    assert "muelle_app_in_flight 3" in text
