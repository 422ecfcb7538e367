"""Plain files and folders: what counts, and what is still being written. In virtual time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from muelle.control.sources import FileSource
from muelle.core.errors import ArtifactError
from muelle.repository.layout import list_artifacts


class Watched:
    """A repository, a source over it, and the time that a test turns."""

    def __init__(self, folder: Path, **more: object) -> None:
        self.folder = folder
        self.now = 1_000.0
        self.slept = 0.0
        self.source = FileSource(
            lambda: list_artifacts([str(folder)]),
            lambda path: ("runtime", "format", ""),
            watched=True,
            settle_s=1.0,
            now=lambda: self.now,
            wall=lambda: self.now,
            sleep=self.sleep,
            **more,  # type: ignore[arg-type]
        )

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += seconds

    def write(self, version: int, content: bytes, name: str = "model.onnx") -> Path:
        """Write a version's file, dated now."""
        file = self.folder / "m" / str(version) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        self.age(file, 0.0)
        return file

    def age(self, file: Path, seconds: float) -> None:
        """Date a file back. Its inode's own date stays: that of the real clock, far ahead here."""
        os.utime(file, (self.now - seconds, self.now - seconds))

    def versions(self) -> dict[str, str]:
        """What is wanted: version -> mark."""
        wanted = self.source.read()
        return {v: a.mark for m in wanted.values() for v, a in m.versions.items()}


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """A repository with one version that has settled."""
    here = Watched(tmp_path / "repository")
    here.write(1, b"one")
    assert set(here.versions()) == {"1"}
    return here


def test_a_fresh_version_at_the_start_is_waited_for(tmp_path: Path) -> None:
    """A file written just now counts only after it has lain still: the start waits that long."""
    here = Watched(tmp_path / "repository")
    here.write(1, b"one")
    assert set(here.versions()) == {"1"}
    assert here.slept == 1.0


def test_a_named_file_is_not_waited_for(tmp_path: Path) -> None:
    """Whoever names a file has finished it."""
    here = Watched(tmp_path / "repository", named=[tmp_path / "repository/m/1/model.onnx"])
    here.write(1, b"one")
    assert set(here.versions()) == {"1"}
    assert here.slept == 0.0


def test_a_version_that_grows_is_never_wanted(watched: Watched) -> None:
    """While a copy goes on, look after look, the version does not count; then it does."""
    for size in range(1, 6):
        watched.write(2, b"x" * size)
        watched.now += 0.7
        assert not watched.source.changed()
    watched.now += 1.0
    assert watched.source.changed()
    assert set(watched.versions()) == {"1", "2"}
    assert watched.source.read()["m"].default == "2"


def test_a_copy_under_another_name_does_not_count(watched: Watched) -> None:
    """`model.onnx.part` and an empty folder are no version, however long they lie there."""
    part = watched.write(2, b"half", "model.onnx.part")
    for _ in range(3):
        watched.now += 5
        assert not watched.source.changed()
    part.rename(part.with_name("model.onnx"))
    assert not watched.source.changed()
    watched.now += 1
    assert watched.source.changed()


def test_a_folder_with_a_part_in_it_does_not_count(tmp_path: Path) -> None:
    """An artifact that is a folder settles only without unfinished names inside."""
    folder = tmp_path / "repository"
    here = Watched(folder)
    here.write(1, b"one")
    here.source = FileSource(
        lambda: list_artifacts([str(folder)], is_artifact_folder=lambda p: p.name == "2"),
        lambda path: ("runtime", "format", ""),
        watched=True,
        now=lambda: here.now,
        wall=lambda: here.now,
        sleep=here.sleep,
    )
    here.versions()
    part = here.write(2, b"weights", "weights.part")
    for _ in range(3):
        here.now += 5
        assert not here.source.changed()
    part.unlink()
    here.write(2, b"weights", "weights.bin")
    here.now += 1
    here.source.changed()
    here.now += 1
    assert here.source.changed()


def test_a_replaced_file_gets_another_mark(watched: Watched) -> None:
    """The same version with other content counts as changed, once it lies still; until then the
    old artifact goes on being wanted."""
    before = watched.versions()
    watched.write(1, b"other content")
    assert not watched.source.changed()
    assert watched.versions() == before
    watched.now += 1
    assert watched.source.changed()
    assert watched.versions()["1"] != before["1"]


def test_a_file_renamed_into_place_is_seen(watched: Watched) -> None:
    """The usual safe way to replace a file: same size, old date, another inode."""
    before = watched.versions()
    fresh = watched.folder / "fresh"
    fresh.write_bytes(b"two")
    watched.age(fresh, 500.0)
    fresh.rename(watched.folder / "m/1/model.onnx")
    watched.source.changed()
    watched.now += 1
    assert watched.source.changed()
    assert watched.versions()["1"] != before["1"]


def test_a_version_that_goes_is_gone_at_once(watched: Watched) -> None:
    """Removing a version's folder removes the version; the one before answers again."""
    watched.write(2, b"two")
    watched.source.changed()
    watched.now += 1
    assert set(watched.versions()) == {"1", "2"}
    (watched.folder / "m/2/model.onnx").unlink()
    (watched.folder / "m/2").rmdir()
    assert watched.source.changed()
    assert set(watched.versions()) == {"1"}


def test_nothing_but_a_copy_under_way_is_an_error_that_says_so(tmp_path: Path) -> None:
    """A start on a repository whose only version never settles says what it waits for."""
    here = Watched(tmp_path / "repository")
    file = here.write(1, b"x")

    def sleep(seconds: float) -> None:
        here.now += seconds
        file.write_bytes(file.read_bytes() + b"x")

    here.source._sleep = sleep
    with pytest.raises(ArtifactError, match="m:1: still being written"):
        here.source.read()


def test_a_folder_that_cannot_be_read_takes_nothing_away(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk or right that fails for one artifact: it goes on counting as it was, others are
    followed, and the trouble is told."""
    from muelle.control import sources

    watched.write(2, b"two")
    watched.source.changed()
    watched.now += 1
    before = watched.versions()
    assert set(before) == {"1", "2"}
    genuine = sources.take_mark

    def broken(path: Path) -> object:
        if path.parent.name == "1":
            raise ArtifactError("model.onnx: cannot be looked at: Input/output error")
        return genuine(path)

    monkeypatch.setattr(sources, "take_mark", broken)
    watched.write(3, b"three")
    watched.source.changed()
    watched.now += 1
    assert watched.source.changed()
    now = watched.versions()
    assert set(now) == {"1", "2", "3"}
    assert now["1"] == before["1"]
    assert any("Input/output error" in line for line in watched.source.problems())
