"""Start a server on one core and read what its process tree costs, from /proc. Linux only.

Not for loading it with requests. Every process is known by its id and ended by it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MB = 1_000_000
SERVER_CORE, CLIENT_CORE = 0, 1


def pinned_to(core: int | None) -> Callable[[], None] | None:
    """Return a preexec function that keeps a child, and all it starts, on one core."""
    if core is None:
        return None
    return lambda: os.sched_setaffinity(0, {core})


class ServerProcess:
    """A server and its descendants. Use as a context manager: leaving it ends the tree."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        core: int | None = SERVER_CORE,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.command = list(command)
        self.log = log
        self._core = core
        self._env = dict(os.environ, PYTHONUNBUFFERED="1", **(env or {}))

    def __enter__(self) -> ServerProcess:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as out:
            self.started_at = time.perf_counter()
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._env,
                preexec_fn=pinned_to(self._core),
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process that was started: the server itself."""
        return self._process.pid

    def wait_for(self, is_up: Callable[[], bool], *, timeout_s: float = 60.0) -> float:
        """Ask until the server answers; return seconds since its exec. Raise RuntimeError."""
        while True:
            if is_up():
                return time.perf_counter() - self.started_at
            waited_s = time.perf_counter() - self.started_at
            if self._process.poll() is not None or waited_s > timeout_s:
                raise RuntimeError(
                    f"{self.command[0]} is not up after {waited_s:.1f} s: {self.tail()}"
                )
            time.sleep(0.005)

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-2000:]

    def tree(self) -> list[int]:
        """Return the ids of the server and all its descendants, the server first."""
        return tree_of(self.pid)

    def cpu_s(self) -> float:
        """Return CPU seconds spent by the whole tree so far (ended children count in parents)."""
        return sum(cpu_s_of(pid) for pid in self.tree())

    def settle(self, *, timeout_s: float = 30.0) -> None:
        """Wait until the tree is idle: what a client abandoned is computed to the end."""
        deadline = time.perf_counter() + timeout_s
        before = self.cpu_s()
        while time.perf_counter() < deadline:
            time.sleep(0.2)
            now = self.cpu_s()
            if now - before < 0.03:
                return
            before = now

    def stop(self) -> int:
        """End it with SIGTERM, or with SIGKILL after ten seconds. Return its exit status.

        Descendants that it leaves behind are killed: some servers forget theirs.
        """
        below = {pid: started_at(pid) for pid in self.tree()[1:]}
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        status = self._process.wait()
        for pid, begun in below.items():
            if begun and started_at(pid) == begun:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        return status


def tree_of(root: int) -> list[int]:
    """Return a process and its descendants that live now, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat_of(int(entry))) and fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def cpu_s_of(pid: int) -> float:
    """Return user and system seconds of a process and of its ended children, 0 when it is gone."""
    fields = _stat_of(pid)
    return sum(int(f) for f in fields[11:15]) / TICKS_PER_S if fields else 0.0


def started_at(pid: int) -> int:
    """Return when a process started, in ticks since boot, 0 when it is gone: ids are used again."""
    fields = _stat_of(pid)
    return int(fields[19]) if fields and fields[0] != "Z" else 0


def rss_mb(pid: int) -> float:
    """Return a process's resident memory in MB (10^6 bytes), 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / MB


class Elsewhere:
    """How much CPU went to others since this was made: neighbours spoil a measurement.

    In CPU seconds over all cores: what the machine spent (or lost to its host), less what went to
    the measured processes, by this one and by its ended children. Interrupts are left out.
    """

    def __init__(self, ours: Callable[[], float]) -> None:
        self._ours = ours
        self._begun = time.perf_counter()
        self._before = self._others_s()

    def share(self) -> float:
        """Return others' CPU as a share of one core."""
        wall_s = time.perf_counter() - self._begun
        return max(0.0, self._others_s() - self._before) / wall_s

    def _others_s(self) -> float:
        own = sum(os.times()[:4])
        return busy_s() - own - self._ours()


def busy_s() -> float:
    """Return CPU seconds that all cores spent so far in user and kernel, or lost to the host."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, steal = (int(fields[i]) for i in (0, 1, 2, 7))
    return (user + nice + system + steal) / TICKS_PER_S


def import_rss_mb(python: str, statement: str) -> float:
    """Return the resident memory in MB of a fresh interpreter after an import statement."""
    code = f"{statement}; print(open('/proc/self/statm').read())"
    command = [python, "-I", "-c", code]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(told.split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB


def n_descriptors(pid: int) -> int:
    """Return how many descriptors a process has open, 0 when it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _stat_of(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on, [] when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    # The name in brackets may hold blanks and brackets.
    return text[text.rindex(")") + 2 :].split()
