"""`muelle serve` as a real process, and a client that checks every answer by value."""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

CHAOS_MODEL = '''
import ctypes, os, time
import numpy as np
from muelle import Model, TensorSpec


class Chaos(Model):
    """y = 2 x + 1, unless a row's command asks for trouble."""

    inputs = (
        TensorSpec(name="x", datatype="FP64", shape=(-1,)),
        TensorSpec(name="command", datatype="INT64", shape=(-1,)),
    )
    outputs = (
        TensorSpec(name="y", datatype="FP64", shape=(-1,)),
        TensorSpec(name="runs", datatype="INT64", shape=(-1,)),
    )
    example = {"x": 1.0, "command": 0}

    def load(self, folder):
        self.rows = 0

    def predict(self, inputs):
        x, command = inputs["x"], inputs["command"]
        self.rows += len(x)
        for what in command.tolist():
            if what == 1:
                raise ValueError("this row is bad: /etc/passwd at 0x7fffdeadbeef")
            if what == 2:
                ctypes.string_at(0)
            if what == 3:
                while True:
                    pass
            if what == 4:
                self.hoard = [np.ones(50_000_000) for _ in range(100)]
            if what == 5:
                os._exit(3)
            if what >= 100:
                time.sleep(what / 1e6)
        return {"y": x * 2 + 1, "runs": np.full(len(x), self.rows)}
'''


class Served:
    """One server process, ready when entered; ended by SIGTERM when left."""

    def __init__(
        self, *args: str, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MUELLE_") and k != "PORT"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "muelle", "serve", "--port", "0", *args],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            cwd=cwd,
            env={**kept, "MUELLE_LANG": "en", **(env or {})},
        )
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = 0
        while self.port == 0:
            line = self.next_line()
            if "listens on http" in line:
                self.port = int(line.rsplit(":", 1)[1])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))
            self.lines.put(line.rstrip("\n"))
        self.lines.put("")

    def next_line(self) -> str:
        """Return the next line of the server's screen; fail with all of them at its end."""
        line = self.lines.get(timeout=60)
        if not line:
            self.process.wait(30)
            raise AssertionError("the server ended:\n" + "\n".join(self.log))
        return line

    def wait_for_line(self, part: str) -> str:
        """Read on until a line has this part."""
        while part not in (line := self.next_line()):
            pass
        return line

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        self._reader.join(10)

    def connect(self) -> http.client.HTTPConnection:
        """Return a new client connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one request on a connection of its own."""
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            found = {k.lower(): v for k, v in response.getheaders()}
            return response.status, found, response.read()
        finally:
            connection.close()

    def worker_pids(self) -> list[int]:
        """Return the pids of the worker processes."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(word) for word in path.read_text().split()]

    def open_files(self) -> int:
        """Return how many descriptors the server has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def chaos_body(x: float, command: int = 0) -> bytes:
    """Return a v2 request of one row for the chaos model."""
    return json.dumps(
        {
            "inputs": [
                {"name": "x", "shape": [1], "datatype": "FP64", "data": [x]},
                {"name": "command", "shape": [1], "datatype": "INT64", "data": [command]},
            ]
        }
    ).encode()


class Load:
    """Clients that ask without pause and check each answer; `trouble` holds what is wrong."""

    PATH = "/v2/models/chaos/infer"

    def __init__(self, served: Served, clients: int = 8) -> None:
        self.answered = 0
        self.trouble: list[str] = []
        self._served = served
        self._stop = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        connection = self._served.connect()
        x = float(number * 1_000_000)
        while not self._stop:
            x += 1
            try:
                connection.request("POST", self.PATH, chaos_body(x), {})
                response = connection.getresponse()
                body = response.read()
                self._check(x, response.status, body)
            except Exception as exc:
                if not self._stop:
                    self._note(f"{type(exc).__name__}: {exc}")
                return
        connection.close()

    def _check(self, x: float, status: int, body: bytes) -> None:
        if status != 200:
            self._note(f"{status} {body[:200]!r}")
            return
        outputs: dict[str, Any] = {o["name"]: o["data"] for o in json.loads(body)["outputs"]}
        if outputs["y"] != [2 * x + 1]:
            self._note(f"asked {x}, got {outputs['y']}")
            return
        with self._changed:
            self.answered += 1
            self._changed.notify_all()

    def _note(self, text: str) -> None:
        with self._changed:
            self.trouble.append(text)
            self._changed.notify_all()

    def wait_for(self, more: int) -> None:
        """Wait until so many more answers have come, or something went wrong."""
        with self._changed:
            goal = self.answered + more
            came = self._changed.wait_for(lambda: self.answered >= goal or self.trouble, timeout=60)
            assert came, f"only {self.answered} of {goal} answers came"
        assert not self.trouble, self.trouble[:5]

    def end(self) -> None:
        """Stop asking, and check that nothing went wrong."""
        self._stop = True
        for thread in self._threads:
            thread.join(60)
        assert not self.trouble, self.trouble[:5]


def eventually(holds: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Ask again until it holds; fail when it does not within the limit."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"


def in_parallel(calls: list[Callable[[], Any]]) -> list[Any]:
    """Run calls at the same time and return their results in order."""
    results: list[Any] = [None] * len(calls)

    def run(index: int) -> None:
        try:
            results[index] = calls[index]()
        except Exception as exc:
            results[index] = exc

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
