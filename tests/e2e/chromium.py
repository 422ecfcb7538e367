"""Drive a real headless Chromium over its DevTools pipe. No driver program, no extra package.

Source: Chromium's `--remote-debugging-pipe`: JSON messages that end in a zero byte, on descriptors
3 and 4 of the browser.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe", "about:blank"),
)


class Chromium:
    """One browser with one tab. `urls` are all addresses that the tab asked for."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.urls: list[str] = []
        self.complaints: list[str] = []
        """Errors that the page's console shows: a policy that was broken, an exception."""
        self._to, self._from = to_browser, from_browser
        self._pending = b""
        self._count = 0
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a DevTools method and wait for its result; events are noted on the way."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(time.monotonic() + 30)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, url: str) -> None:
        """Go to a page and wait until its scripts have run."""
        self.call("Page.navigate", url=url)
        self.wait_for(
            f"document.readyState == 'complete' && location.href.startsWith({json.dumps(url)})"
        )

    def ask(self, expression: str) -> Any:
        """Evaluate an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str, limit_s: float = 30.0) -> Any:
        """Evaluate until the answer is true; return it. Raise TimeoutError."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
            value = found["result"].get("value")
            if value and "exceptionDetails" not in found:
                return value
            select.select([self._from], [], [], 0.02)
        raise TimeoutError(expression)

    def picture(self, path: Path) -> None:
        """Write the whole page as PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._from], [], [], left)[0]:
                raise TimeoutError("the browser does not answer")
            piece = os.read(self._from, 1 << 16)
            if not piece:
                raise ConnectionError("the browser ended")
            self._pending += piece
        raw, _, self._pending = self._pending.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.urls.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params["exceptionDetails"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.complaints.append(params["entry"]["text"])
        return message


@contextlib.contextmanager
def chromium() -> Iterator[Chromium]:
    """Start a browser with a profile of its own; end it, whatever happens."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        read_there, to_browser = os.pipe()
        from_browser, write_there = os.pipe()
        # Out of the way of the numbers that the browser wants.
        spare = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in (read_there, write_there)]
        os.close(read_there)
        os.close(write_there)
        null = os.open(os.devnull, os.O_RDWR)
        pid = os.posix_spawn(
            PROGRAM,
            [PROGRAM, f"--user-data-dir={profile}", *FLAGS],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 1),
                (os.POSIX_SPAWN_DUP2, null, 2),
                (os.POSIX_SPAWN_DUP2, spare[0], 3),
                (os.POSIX_SPAWN_DUP2, spare[1], 4),
            ],
            setpgroup=0,
        )
        for fd in (*spare, null):
            os.close(fd)
        try:
            yield Chromium(to_browser, from_browser)
        finally:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(to_browser)
            os.close(from_browser)
