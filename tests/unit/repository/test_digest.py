"""An artifact's name by content."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from muelle.core.errors import ArtifactError
from muelle.repository.digest import BLOCK_BYTES, digest_artifact


def test_a_files_digest_is_its_sha256_whatever_its_name(tmp_path: Path) -> None:
    """The digest is that of `sha256sum`, and the name has no part in it."""
    content = b"muelle" * 400_000
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    one.write_bytes(content)
    two.write_bytes(content)

    assert digest_artifact(one) == "sha256:" + hashlib.sha256(content).hexdigest()
    assert digest_artifact(one) == digest_artifact(two)


def test_progress_goes_up_to_all_in_blocks(tmp_path: Path) -> None:
    """The callback sees each block and ends with all bytes; an empty file ends too."""
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(2 * BLOCK_BYTES + 5))
    total = path.stat().st_size
    seen: list[tuple[int, int]] = []

    digest_artifact(path, lambda done, of: seen.append((done, of)))

    assert seen[:2] == [(BLOCK_BYTES, total), (2 * BLOCK_BYTES, total)]
    assert seen[-1] == (total, total)

    path.write_bytes(b"")
    seen.clear()
    digest_artifact(path, lambda done, of: seen.append((done, of)))
    assert seen == [(0, 0)]


def test_a_folders_digest_covers_names_and_contents(tmp_path: Path) -> None:
    """Equal trees are equal; a changed byte, name or place is not."""

    def tree(name: str, files: dict[str, bytes]) -> str:
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return digest_artifact(tmp_path / name)

    same = tree("a", {"x": b"1", "sub/y": b"2"})

    assert tree("b", {"sub/y": b"2", "x": b"1"}) == same
    others = [
        tree("c", {"x": b"1", "sub/y": b"3"}),
        tree("d", {"x": b"1", "sub/z": b"2"}),
        tree("e", {"x": b"1", "y": b"2"}),
        tree("f", {"x": b"2", "sub/y": b"1"}),
        tree("g", {"x": b"1"}),
    ]
    assert len({same, *others}) == 6


def test_a_folder_with_a_link_has_no_digest(tmp_path: Path) -> None:
    """A link's target could change while the digest stays."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/link").symlink_to("/etc/hostname")

    with pytest.raises(ArtifactError, match="link is a symbolic link"):
        digest_artifact(tmp_path / "tree")


def test_a_file_that_is_not_there_is_an_artifact_error(tmp_path: Path) -> None:
    """Only the name is told."""
    with pytest.raises(ArtifactError, match=r"^gone\.onnx: cannot be read"):
        digest_artifact(tmp_path / "gone.onnx")
