"""`muelle.model` inside and outside of a hosted application. The server's side is played here."""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import threading
from typing import Any

import msgspec
import numpy as np
import pytest

import muelle
from muelle.apps.channel import Channel
from muelle.apps.frames import (
    Describe,
    Forget,
    Frame,
    FrameReader,
    FromApp,
    Hello,
    Predict,
    Predicted,
)
from muelle.apps.hosted import Hosted, inherited
from muelle.apps.local import OverChannel, server_url
from muelle.client.calls import ServerUnreachable
from muelle.client.local import ServedModel
from muelle.core.errors import BadRequest, DeadlineExceeded, ModelNotFound, TooLarge
from muelle.core.signature import Signature, TensorSpec
from muelle.core.status import ModelStatus, VersionStatus

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP64", shape=(-1,)),),
    outputs=(TensorSpec(name="y", datatype="FP64", shape=(-1,)),),
)


def status() -> ModelStatus:
    """What the server tells of a model."""
    version = VersionStatus(
        version="1", state="READY", reason="", digest="", format="", runtime="",
        signature=SIGNATURE, example=None, info={}, workers=(), queue_depth=0,
        isolation="process", max_batch_size=1,
    )  # fmt: skip
    return ModelStatus(name="twice", default="1", versions=(version,))


class Server:
    """The other end, in a thread of its own: y = 2 x for the model `twice`, at once or never."""

    def __init__(self, sock: socket.socket) -> None:
        self.asked: list[Frame] = []
        self.silent = False
        self._over = False
        self.forgot: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.channel = Channel(sock, FrameReader(FromApp, 1 << 24), self._take, lambda reason: None)
        self.channel.send(
            Hello("a.py:a", "/", 1, 0, predict_limit_bytes=10_000, log_level="info", log_json=False)
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over and not self.channel.ended:
            self.channel.turn(0.02)
        self.channel.close()

    def _take(self, frame: Frame) -> None:
        self.asked.append(frame)
        if isinstance(frame, Forget):
            self.forgot.put(frame.id)
        if isinstance(frame, Describe):
            if frame.model != "twice":
                body = b'{"detail":"no model","code":"model_not_found"}'
                self.channel.send(Predicted(frame.id, 404, {}, body))
            else:
                self.channel.send(Predicted(frame.id, 200, {}, msgspec.json.encode(status())))
        elif isinstance(frame, Predict) and not self.silent:
            length = int(frame.headers["inference-header-content-length"])
            x = np.frombuffer(frame.body[length:], "<f8")
            if (x < 0).any():
                body = b'{"detail":"negative","code":"bad_request"}'
                self.channel.send(Predicted(frame.id, 400, {}, body))
                return
            output = {"name": "y", "datatype": "FP64", "shape": [len(x)]}
            output["parameters"] = {"binary_data_size": 8 * len(x)}
            head = msgspec.json.encode({"model_name": "twice", "outputs": [output]})
            headers = {"inference-header-content-length": str(len(head)), "muelle-version": "1"}
            self.channel.send(Predicted(frame.id, 200, headers, head + (2 * x).tobytes()))

    def end(self) -> None:
        """Go away."""
        self._over = True
        self._thread.join(20)


@pytest.fixture
def pair() -> Any:
    """A hosted process's channel, and the server at its other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    server = Server(theirs)
    hosted = Hosted(ours)
    assert hosted.hello() is not None
    yield hosted, server
    server.end()
    hosted.channel.close()


def near(hosted: Hosted, name: str = "twice") -> ServedModel:
    """A model over that channel."""
    return ServedModel(name, None, OverChannel(name, hosted))


def test_a_model_answers_before_there_is_a_loop(pair: Any) -> None:
    """At import time the channel is turned by hand; the signature is asked for once."""
    hosted, server = pair
    model = near(hosted)
    assert model.predict([1.0, 2.0])["y"].tolist() == [2.0, 4.0]
    assert model.predict({"x": [3.0]}, version=None).version == "1"
    assert sum(isinstance(frame, Describe) for frame in server.asked) == 1


def test_a_model_answers_everywhere_in_a_loop(pair: Any) -> None:
    """In coroutines at the same time, in threads, and in a coroutine that blocks."""
    hosted, _ = pair
    model = near(hosted)

    async def main() -> None:
        hosted.attach(asyncio.get_running_loop(), lambda frame: None, lambda: None)
        many = await asyncio.gather(*(model.predict_async([float(n)]) for n in range(50)))
        assert [found["y"].tolist() for found in many] == [[2.0 * n] for n in range(50)]
        threads = await asyncio.gather(
            *(asyncio.to_thread(model.predict, [float(n)]) for n in range(20))
        )
        assert [found["y"].tolist() for found in threads] == [[2.0 * n] for n in range(20)]
        assert model.predict([7.0])["y"].tolist() == [14.0]

    asyncio.run(main())


def test_errors_keep_their_kinds(pair: Any) -> None:
    """As `muelle.Client` raises them; a bad request makes the signature be asked for anew."""
    hosted, server = pair
    with pytest.raises(ModelNotFound, match="no model"):
        near(hosted, "nobody").predict([1.0])
    with pytest.raises(BadRequest, match="no input is named 'z'"):
        near(hosted).predict({"z": [1.0]})
    with pytest.raises(BadRequest, match="negative"):
        near(hosted).predict([-1.0])
    near(hosted).predict([1.0])
    asked = [frame for frame in server.asked if isinstance(frame, Describe)]
    assert [frame.model for frame in asked] == ["nobody", "twice", "twice"]


def test_too_much_is_refused_before_it_is_sent(pair: Any) -> None:
    """The server would end the channel over it."""
    hosted, server = pair
    with pytest.raises(TooLarge, match="the limit is 10000"):
        near(hosted).predict(np.zeros(2_000))
    assert not any(isinstance(frame, Predict) for frame in server.asked)


def test_who_does_not_wait_any_more_tells_the_server(pair: Any) -> None:
    """A timeout and a cancelled task both let the server drop the request."""
    hosted, server = pair
    model = near(hosted)
    assert model.signature == SIGNATURE
    server.silent = True
    ask = hosted.predict("twice", None, {"inference-header-content-length": "0"}, b"")
    with pytest.raises(DeadlineExceeded):
        hosted.wait(ask, 0.0)

    async def main() -> None:
        hosted.attach(asyncio.get_running_loop(), lambda frame: None, lambda: None)
        task = asyncio.ensure_future(model.predict_async([1.0]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    hosted.channel.flush()
    forgotten = [server.forgot.get(timeout=20), server.forgot.get(timeout=20)]
    assert forgotten == [frame.id for frame in server.asked if isinstance(frame, Predict)]


def test_a_server_that_went_away_is_told(pair: Any) -> None:
    """To who waits, and to who asks afterwards."""
    hosted, server = pair
    model = near(hosted)
    assert model.signature == SIGNATURE
    server.silent = True
    ask = hosted.predict("twice", None, {"inference-header-content-length": "0"}, b"")
    server.end()
    with pytest.raises(ServerUnreachable):
        hosted.wait(ask, None)
    with pytest.raises(ServerUnreachable):
        model.predict([1.0])


def test_outside_of_a_hosted_app_a_server_is_asked() -> None:
    """Where the variables say, else where a server usually is; nothing is asked before that."""
    assert inherited() is None
    assert repr(muelle.model("fraud:3")) == "muelle.model('fraud', version='3')"
    assert muelle.model("fraud", version=3).version == "3"
    assert server_url({}) == ""
    assert server_url({"MUELLE_SERVER": "http://b"}) == "http://b"
    assert server_url({"MUELLE_SERVER": "http://b", "MUELLE_URL": "http://a"}) == "http://a"


def test_nobody_there_is_told_with_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the client tells it."""
    monkeypatch.setenv("MUELLE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(ServerUnreachable, match="127.0.0.1:9"):
        muelle.model("fraud").predict([[1.0]])


def test_a_forked_process_has_no_channel(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readers of one socket would take each other's answers."""
    hosted, _ = pair
    monkeypatch.setattr("muelle.apps.hosted._adopt", lambda: hosted)
    assert inherited() is hosted
    pid = os.fork()
    if pid == 0:
        os._exit(0 if inherited() is None else 1)
    assert os.waitpid(pid, 0)[1] == 0
