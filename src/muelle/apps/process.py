"""Start and end the process of an application. Not for talking to it (`link`)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

from muelle.workers.process import FIXED_ENVIRONMENT


class AppProcess:
    """A child process with its end of a socket pair. Owned by one link."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.sock = sock
        self.pid = process.pid
        self._process = process

    @classmethod
    def spawn(
        cls, target: str, *, threads: int, memory_limit_bytes: int, env: Mapping[str, str]
    ) -> AppProcess:
        """Start `python -I -m muelle.apps.child` with exec; the server itself is never forked.

        The application keeps the server's environment, where its own settings are; `env` comes on
        top. What concerns only the server is taken out.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MUELLE_")}
        environment |= {"PYTHONUNBUFFERED": FIXED_ENVIRONMENT["PYTHONUNBUFFERED"], **env}
        command = [sys.executable, "-I", "-m", "muelle.apps.child", str(theirs.fileno())]
        command += [str(os.getpid()), str(memory_limit_bytes), str(threads), target]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                # What an application prints is for the log; standard output is the server's.
                stdout=2,
                stderr=2,
                env=environment,
                pass_fds=(theirs.fileno(),),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return cls(ours, process)

    def kill(self) -> None:
        """End it at once."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)

    def wait(self, timeout_s: float) -> int | None:
        """Collect the exit status, waiting at most so long. None while it runs."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def reason(self) -> str:
        """Say in words how it ended."""
        code = self._process.poll()
        if code is None:
            return "still running"
        if code < 0:
            try:
                return f"killed by {signal.Signals(-code).name}"
            except ValueError:
                return f"killed by signal {-code}"
        return f"exit status {code}"

    def rss_bytes(self) -> int:
        """Return its resident memory, 0 when it is gone."""
        try:
            with open(f"/proc/{self.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
        except (OSError, IndexError, ValueError):
            return 0
