"""Make one system call of a store operation fail, and look at what is left. Needs strace.

The n-th call of a kind is a fault point; which there are is read from a trace of a run without
faults. At each point the process is killed, or told of a broken or full disk.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from muelle.core.records import ServerLease
from muelle.repository.store import Store
from tests.integration import store_operation as op

STRACE = shutil.which("strace")
SCRIPT = Path(op.__file__)
CALLS = (
    *("openat", "write", "pwrite64", "writev", "pwritev", "fsync", "fdatasync", "ftruncate"),
    *("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "mkdir"),
    *("mkdirat", "rmdir", "fallocate", "fchmod", "chmod", "utimensat"),
)
KILL, BROKEN_ONCE, FULL = "signal=KILL:when={}", "error=EIO:when={}", "error=ENOSPC:when={}"
BROKEN_FOR_GOOD = "error=EIO:when={}+"
FAULTS = (KILL, BROKEN_ONCE, FULL, BROKEN_FOR_GOOD)
N_THREADS = 2
LIMIT_S = 60

_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)$")


@dataclass(frozen=True, slots=True)
class Point:
    """The n-th call of a kind, and what happens to it; `text` is the call as strace shows it."""

    call: str
    n: int
    fault: str
    text: str

    @property
    def inject(self) -> str:
        """What strace is told."""
        return f"inject={self.call}:{self.fault.format(self.n)}"

    def __str__(self) -> str:
        return f"{self.inject} at {self.text}"


class Sweep:
    """One operation on copies of one prepared store."""

    def __init__(self, operation: str, folder: Path) -> None:
        self.operation = operation
        self._prepared = folder / "prepared"
        self._source = folder / "source"
        self._folder = folder
        prepare(self._prepared, self._source)
        self.old = state(self._prepared)
        copy = self._copy()
        assert self._run(copy, []) == op.DONE
        self.new = state(copy)

    def points(self, faults: Iterable[str] = FAULTS) -> list[Point]:
        """Return all fault points: calls that change files, from the first that names the store."""
        copy = self._copy()
        log = self._folder / "trace"
        assert self._run(copy, self._strace(log)) == op.DONE
        counts: Counter[str] = Counter()
        found: list[Point] = []
        begun = False
        for line in log.read_text(errors="replace").splitlines():
            if (match := _CALL.match(line)) is None:
                continue
            call, text = match[1], match[2]
            counts[call] += 1
            begun = begun or str(copy) in text
            if begun and (call != "openat" or "O_CREAT" in text):
                shown = text.replace(str(copy), "STORE")[:100]
                found += [Point(call, counts[call], fault, shown) for fault in faults]
        return found

    def run(self, points: Iterable[Point]) -> list[str]:
        """Return what is wrong after each fault, one line each."""
        with ThreadPoolExecutor(N_THREADS) as pool:
            return [line for lines in pool.map(self.check, points) for line in lines]

    def check(self, point: Point) -> list[str]:
        """Return what is wrong after one fault."""
        copy = self._copy()
        log = copy.with_suffix(".log")
        code = self._run(copy, [*self._strace(log, point.fault), "-e", point.inject])
        trace = log.read_text(errors="replace")
        if "(INJECTED)" in trace or "killed by SIGKILL" in trace:
            wrong = self._wrong(copy, code)
        else:
            wrong = ["the fault did not happen"]
        shutil.rmtree(copy.parent)
        return [f"{self.operation}, {point}, exit {code}: {line}" for line in wrong]

    def _wrong(self, copy: Path, code: int) -> list[str]:
        found = state(copy)
        if found not in (self.old, self.new):
            return [f"neither old nor new: {found}"]
        if code == op.DONE and found != self.new:
            return ["it said that it is done, and it is not"]
        if code == op.FAILED and found != self.old:
            return ["it said that it failed, and it is in effect"]
        if code not in (op.DONE, op.FAILED, op.UNSETTLED, -9, 137):
            return ["it did not end in an error of ours"]
        with Store.open(copy) as store:
            wrong = [f"verify: {problem.text}" for problem in store.verify().problems]
            store.gc(grace_s=0)
            wrong += [f"verify after gc: {problem.text}" for problem in store.verify().problems]
            if state(copy) != found:
                wrong.append("gc changed what is there")
            wrong += [f"left over: {name}" for name in orphans(store)]
            if found == self.old:
                op.OPERATIONS.get(self.operation, op.push)(store, self._source)
        if found == self.old and self.operation in op.OPERATIONS and state(copy) != self.new:
            wrong.append("the same again does not lead to the new state")
        return wrong

    def _copy(self) -> Path:
        copy = Path(tempfile.mkdtemp(dir=self._folder)) / "store"
        return Path(shutil.copytree(self._prepared, copy))

    def _strace(self, log: Path, fault: str = "") -> list[str]:
        assert STRACE is not None
        calls = ",".join(f"?{call}" for call in CALLS)
        # The filter makes it faster, but with it strace 6.1 sends no signals.
        faster = [] if fault == KILL else ["--seccomp-bpf"]
        return [STRACE, "-f", *faster, "-q", "-o", str(log), "-e", f"trace={calls}"]

    def _run(self, copy: Path, before: list[str]) -> int:
        # Nothing of the run may depend on chance: the n-th call must be the same one.
        env = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [*before, sys.executable, "-B", str(SCRIPT), self.operation, str(copy)]
        done = subprocess.run(
            [*command, str(self._source)],
            env=env,
            timeout=LIMIT_S,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        return done.returncode


def prepare(store_folder: Path, source: Path) -> None:
    """Make a store with three versions and rubbish of each kind, and a folder to push."""
    source.mkdir()
    (source / "model.onnx").write_bytes(bytes(range(256)) * 20)
    (source / "weights.bin").write_bytes(b"weights" * 1000)
    made = store_folder.with_name("made")
    made.mkdir()
    with Store.open(store_folder, create=True) as store:
        for number in range(1, 5):
            (made / "model.bin").write_bytes(bytes([number]) * 3000)
            files = store.add_files(made)
            store.publish(op.draft_of(files, note=f"no. {number}"), who=op.WHO)
            store.checkout(files, f"sha256:{op.tree_of(files)}")
        store.set_label(op.MODEL, "stable", 2, who=op.WHO)
        store.remove(op.MODEL, 4, who=op.WHO)
        lease = ServerLease(id="dead", pid=1, host="here", socket="", url="")
        (store_folder / "servers" / "dead.json").write_bytes(msgspec.json.encode(lease))
        (store_folder / "incoming" / "cut").write_bytes(b"half")


def state(folder: Path) -> dict[str, Any]:
    """Return what a store says, without dates: versions, files, labels, history, routes."""
    with Store.open(folder) as store:
        return {summary.model: _state_of(store, summary.model) for summary in store.models()}


def _state_of(store: Store, model: str) -> dict[str, Any]:
    return {
        "versions": [
            (row.version, row.digest, row.note, store.record(model, row.version).files)
            for row in store.versions(model)
        ],
        "labels": store.labels(model),
        "route": store.route(model),
        "history": [
            (change.label, change.version, change.previous, change.who, change.reason)
            for change in store.history(model)
        ],
    }


def orphans(store: Store) -> list[str]:
    """Return what no version needs, straight from the folders."""
    used, trees = set(), set()
    for summary in store.models():
        for row in store.versions(summary.model):
            files = store.record(summary.model, row.version).files
            used.update(file.sha256 for file in files)
            trees.add(op.tree_of(files))
    folder = store.folder
    blobs = [p for p in folder.glob("blobs/sha256/*/*") if p.name not in used]
    checkouts = [p for p in (folder / "versions").iterdir() if p.name not in trees]
    rest = [*(folder / "incoming").iterdir(), *(folder / "servers").iterdir()]
    return [str(p.relative_to(folder)) for p in (*blobs, *checkouts, *rest)]
