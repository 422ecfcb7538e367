"""Start and end a worker process. Not for talking to it: `link` does that."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "TMPDIR")
"""What a worker inherits. Everything else (tokens, proxies, cloud settings) stays in the server."""

FIXED_ENVIRONMENT: Mapping[str, str] = {
    # Nothing that a worker runs may call home, whatever its library's default is.
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
}

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class WorkerProcess:
    """A child process with its end of a socket pair. Owned by one link."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.sock = sock
        self.pid: int | None = process.pid
        self._process = process

    @classmethod
    def spawn(cls, threads: int, python: str = "") -> WorkerProcess:
        """Start `python -m muelle.workers.child` with exec; the server itself is never forked.

        `python` is the interpreter of a version's own environment, "" for the server's.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {k: os.environ[k] for k in KEPT_ENVIRONMENT if k in os.environ}
        environment.update(FIXED_ENVIRONMENT)
        environment.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
        try:
            process = subprocess.Popen(
                [*_program(python), str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                # What a model prints is for the log; standard output belongs to the server.
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
        """End the process at once, also when it is stopped or stuck in native code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)

    def wait(self, timeout_s: float) -> int | None:
        """Collect the exit status, waiting at most so long. None while the process runs."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def reason(self) -> str:
        """Say in words how the process ended."""
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
        """Return the resident memory, 0 when the process is gone."""
        try:
            with open(f"/proc/{self.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
        except (OSError, IndexError, ValueError):
            return 0


def _program(python: str) -> list[str]:
    if not python:
        return [sys.executable, "-I", "-m", "muelle.workers.child"]
    return [python, "-I", str(Path(__file__).with_name("bootstrap.py"))]


class WorkerThread:
    """The same worker in a thread of the server (`isolation = none`): no protection at all."""

    pid: int | None = None

    def __init__(self, sock: socket.socket, thread: threading.Thread) -> None:
        self.sock = sock
        self._thread = thread

    @classmethod
    def spawn(cls, threads: int, python: str = "") -> WorkerThread:
        """Run the worker's loop in a daemon thread over the same kind of channel.

        Raise ValueError for another interpreter: a thread has the server's.
        """
        if python:
            raise ValueError("a version with an environment of its own needs a process")
        from muelle.workers import child

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        thread = threading.Thread(
            target=child.serve,
            args=(child.Channel(theirs), child.load_artifact),
            name="muelle-model",
            daemon=True,
        )
        thread.start()
        return cls(ours, thread)

    def kill(self) -> None:
        """A thread cannot be ended from outside; closing the channel ends it when it comes back."""

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the thread; 0 when it has ended."""
        self._thread.join(timeout_s)
        return None if self._thread.is_alive() else 0

    def reason(self) -> str:
        """Say in words how the thread ended."""
        return "ended" if not self._thread.is_alive() else "still running"

    def rss_bytes(self) -> int:
        """A thread has no memory of its own."""
        return 0


Process = WorkerProcess | WorkerThread
