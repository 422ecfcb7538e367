"""The audit log shows every later change. Goal P-06."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muelle.core.errors import ArtifactError, StoreError
from muelle.telemetry.audit import MARK_EVERY, AuditLog, key_path, verify

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def written(path: Path, n: int) -> AuditLog:
    """Return a log with n entries."""
    log = AuditLog.open(path, now=lambda: NOON)
    for i in range(n):
        log.write("cli:ana", "label", "fraud", i + 1, "sha256:00", detail={"label": "stable"})
    return log


def tampered(path: Path, *statements: str) -> tuple[str, ...]:
    """Change the file as somebody with a shell would; return what verify finds."""
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return verify(path).problems


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log with ten entries."""
    written(tmp_path / "audit.db", 10)
    return tmp_path / "audit.db"


def test_an_untouched_log_is_whole(path: Path) -> None:
    """Negative control: nothing is found where nothing was done; reading gives what was written."""
    report = verify(path)
    assert (report.entries, report.problems) == (10, ())
    log = AuditLog.open(path)
    assert report.head == log.head()[1]
    first, second = log.read(0, 2)
    assert (first.number, first.who, first.action, first.model) == (1, "cli:ana", "label", "fraud")
    assert (first.version, first.detail, first.outcome) == (1, {"label": "stable"}, "ok")
    assert first.at == "2026-11-23T12:00:00.000Z"
    assert second.chain != first.chain
    assert [e.number for e in log.newest(3)] == [8, 9, 10]


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("UPDATE entries SET body = replace(body, 'ana', 'eva') WHERE number = 4", "entry 4 does"),
        ("UPDATE entries SET chain = hex(randomblob(32)) WHERE number = 4", "entry 4 does"),
        ("DELETE FROM entries WHERE number = 4", "entry 4 is missing"),
        ("DELETE FROM entries WHERE number BETWEEN 3 AND 5", "entry 3 to 5 is missing"),
        ("DELETE FROM entries WHERE number = 1", "entry 1 is missing"),
        (
            "UPDATE entries SET body = (SELECT body FROM entries e WHERE e.number = "
            "CASE entries.number WHEN 4 THEN 5 ELSE 4 END) WHERE number IN (4, 5)",
            "entry 4 does",
        ),
        ("UPDATE entries SET body = 'nonsense' WHERE number = 7", "entry 7 does"),
    ],
)
def test_a_change_is_found_and_its_place_named(path: Path, how: str, found: str) -> None:
    """Changed, dropped, swapped or broken entries."""
    problems = tampered(path, how)
    assert problems
    assert problems[0].startswith(found)


def test_an_inserted_entry_is_found(path: Path) -> None:
    """Everything behind it moves up by one, its own chain computed rightly or not."""
    problems = tampered(
        path,
        "UPDATE entries SET number = -number WHERE number > 5",
        "INSERT INTO entries SELECT 6, body, chain FROM entries WHERE number = 5",
        "UPDATE entries SET number = 1 - number WHERE number < 0",
    )
    assert problems[0].startswith("entry 6 does not follow")


def test_a_cut_end_is_found_by_a_checkpoint_only(path: Path) -> None:
    """Without one the shorter chain is whole, as the documentation says; with one it is found."""
    number, chain = AuditLog.open(path).head()
    assert tampered(path, "DELETE FROM entries WHERE number > 8") == ()
    problems = verify(path, checkpoint=f"{number} {chain}\n").problems
    assert "the end was cut off" in problems[0]
    log = AuditLog.open(path)
    for _ in range(5):
        log.write("cli:eva", "label")
    assert (
        "not the one of the checkpoint" in verify(path, checkpoint=f"{number} {chain}").problems[0]
    )


def test_a_chain_forged_without_the_key_is_found_by_its_marks(tmp_path: Path) -> None:
    """Somebody who can write the file computes a whole new chain: the keyed mark does not fit."""
    genuine, forged = tmp_path / "audit.db", tmp_path / "forged" / "audit.db"
    written(genuine, MARK_EVERY + 3)
    forged.parent.mkdir()
    other = written(forged, 0)  # has a key of its own
    for _ in range(MARK_EVERY + 3):
        other.write("cli:nobody", "label")
    assert verify(forged).problems == ()
    key_path(forged).write_bytes(key_path(genuine).read_bytes())
    problems = verify(forged).problems
    assert problems == (f"entry {MARK_EVERY}: its keyed mark does not fit",)
    assert tampered(genuine, "DELETE FROM marks") == (
        f"entry {MARK_EVERY}: its keyed mark is missing",
    )


def test_a_cut_below_a_mark_is_found(tmp_path: Path) -> None:
    """The mark of an entry that is not there any more tells of the cut."""
    path = tmp_path / "audit.db"
    written(path, MARK_EVERY)
    problems = tampered(path, f"DELETE FROM entries WHERE number > {MARK_EVERY - 5}")
    assert "the end was cut off" in problems[0]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_byte_changed_in_any_entry_is_found(data: st.DataObject) -> None:
    """Whatever single character of a body or chain changes, verify says so."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "audit.db")
        written(path, 5)
        number = data.draw(st.integers(1, 5))
        column = data.draw(st.sampled_from(["body", "chain"]))
        connection = sqlite3.connect(path)
        (text,) = connection.execute(
            f"SELECT {column} FROM entries WHERE number = ?", (number,)
        ).fetchone()
        at = data.draw(st.integers(0, len(text) - 1))
        other = data.draw(st.sampled_from([c for c in '0a}" é' if c != text[at]]))
        with connection:
            connection.execute(
                f"UPDATE entries SET {column} = ? WHERE number = ?",
                (text[:at] + other + text[at + 1 :], number),
            )
        connection.close()
        assert verify(path).problems


def test_two_processes_keep_one_chain(tmp_path: Path) -> None:
    """Both write at once, fifty entries each: one hundred entries, one whole chain."""
    path = tmp_path / "audit.db"
    AuditLog.open(path)
    program = (
        "import sys; from pathlib import Path\n"
        "from muelle.telemetry.audit import AuditLog\n"
        "log = AuditLog.open(Path(sys.argv[1]))\n"
        "for _ in range(50): log.write(sys.argv[2], 'label')\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in ("a", "b")
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    report = verify(path)
    assert (report.entries, report.problems) == (100, ())


def test_threads_keep_one_chain(tmp_path: Path) -> None:
    """The server writes from several threads."""
    log = written(tmp_path / "audit.db", 0)

    def write() -> None:
        for _ in range(20):
            log.write("a", "label")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    report = verify(tmp_path / "audit.db")
    assert (report.entries, report.problems) == (80, ())


def test_a_killed_writer_leaves_a_whole_log(tmp_path: Path) -> None:
    """kill -9 in the middle of writing, ten times: what is there is a whole chain, and goes on."""
    path = tmp_path / "audit.db"
    AuditLog.open(path)
    program = (
        "import sys; from pathlib import Path\n"
        "from muelle.telemetry.audit import AuditLog\n"
        "log = AuditLog.open(Path(sys.argv[1]))\n"
        "while True:\n"
        "    print(log.write('a', 'label').number, flush=True)\n"
    )
    for n in range(10):
        command = [sys.executable, "-c", program, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            last = [int(process.stdout.readline()) for _ in range(3 + n)][-1]
            os.kill(process.pid, signal.SIGKILL)
        report = verify(path)
        assert report.problems == ()
        assert report.entries >= last  # what was acknowledged is there


def test_the_key_is_for_its_owner(path: Path) -> None:
    """Mode 0600, from its first moment."""
    assert stat.S_IMODE(key_path(path).stat().st_mode) == 0o600


def test_a_log_that_cannot_be_written_says_so(path: Path) -> None:
    """check and write raise StoreError; nothing is lost silently."""
    log = AuditLog.open(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError):
        log.check()
    with pytest.raises(StoreError):
        log.write("a", "label")


def test_check_leaves_nothing_behind(path: Path) -> None:
    """Trying whether the log can be written writes no entry and no mark."""
    log = AuditLog.open(path)
    log.check()
    assert verify(path).entries == 10
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM marks").fetchone() == (0,)
    connection.close()


@pytest.mark.parametrize("text", ["12", "x " + "0" * 64, "3 short"])
def test_a_checkpoint_that_is_none_is_refused(path: Path, text: str) -> None:
    """A wrong file must not look like a good check."""
    with pytest.raises(ArtifactError, match="checkpoint"):
        verify(path, checkpoint=text)


def test_no_log_is_no_whole_log(tmp_path: Path) -> None:
    """Verifying what is not there is an error."""
    with pytest.raises(ArtifactError, match="no audit log"):
        verify(tmp_path / "audit.db")
