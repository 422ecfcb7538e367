"""Requirements as strangers write them: only names and versions ever reach pip."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muelle.core.errors import ArtifactError
from muelle.packaging import environments
from muelle.packaging.environments import read_requirements

CONDA = """
channels: [conda-forge]
dependencies:
- python=3.11
- pip<=24
- pip:
  - mlflow==2.14.0
  - Scikit_Learn == 1.5.2
name: mlflow-env
"""
MANY = "[" + ", ".join(["*{0}"] * 10) + "]"
BOMB = "a: &a [x]\n" + "".join(
    f"{name}: &{name} {MANY.format(before)}\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


def written(tmp_path: Path, name: str, text: str) -> Path:
    """Return a file of this content."""
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return path


def test_the_pip_part_of_a_conda_file_is_read(tmp_path: Path) -> None:
    """Lines below `pip`, in one way of writing; conda's own packages are not pip's."""
    path = written(tmp_path, "conda.yaml", CONDA)
    assert read_requirements(path) == ("mlflow==2.14.0", "scikit-learn==1.5.2")


def test_a_conda_file_without_pip_asks_for_nothing(tmp_path: Path) -> None:
    """No line is no error."""
    path = written(tmp_path, "conda.yaml", "dependencies: [python=3.11]\n")
    assert read_requirements(path) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(f"{BOMB}dependencies: [{{pip: [*j]}}]", "aliases", id="bomb"),
        pytest.param(f"dependencies: {'[' * 3000}{']' * 3000}", "not plain YAML", id="deep"),
        pytest.param("dependencies: 5", "must be lists", id="number"),
        pytest.param("dependencies: [{pip: 5}]", "must be lists", id="pip-number"),
        # Its letters are names of packages too, which others may own.
        pytest.param("dependencies: [{pip: numpy}]", "must be lists", id="pip-text"),
        pytest.param("just words", "must be lists", id="words"),
        pytest.param("dependencies: 2026-99-99", "not plain YAML", id="date"),
        pytest.param("dependencies: !!python/name:os.system", "not plain YAML", id="tag"),
        pytest.param("dependencies: [", "not plain YAML", id="broken"),
        pytest.param("dependencies: [{pip: [-r other.txt]}]", "options", id="option"),
        pytest.param("dependencies: [{pip: [[a, b]]}]", "no requirement", id="nested"),
    ],
)
def test_a_hostile_conda_file_is_an_error_in_words(tmp_path: Path, text: str, message: str) -> None:
    """Nothing is built of what grows, no code runs, and no text is taken apart into letters."""
    with pytest.raises(ArtifactError, match=rf"conda\.yaml.*{message}"):
        read_requirements(written(tmp_path, "conda.yaml", text))


@pytest.mark.parametrize(
    "line",
    [
        r"""tidings ; platform_version != 'x"\n--index-url=http://127.0.0.1/evil\n#'""",
        r"""tidings ; platform_version != "x'\n--index-url=http://127.0.0.1/evil\n#\x22" """,
        r"""tidings ; platform_version != "x\x0b--pre" """,
        "tidings===${HOME}",
    ],
)
def test_no_option_comes_in_by_an_escape(tmp_path: Path, line: str) -> None:
    """A line break spelt inside a marker would end the line in the file that pip reads, and what
    follows would be options; `${NAME}` would be replaced by the environment's value."""
    with pytest.raises(ArtifactError, match=r"requirements\.txt:1"):
        read_requirements(written(tmp_path, "requirements.txt", line + "\n"))


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@given(
    st.text(alphabet="x'\"\\\\n0 #-${}", max_size=12),
    st.sampled_from(["'", '"']),
)
def test_a_line_stays_one_line(tmp_path_factory: pytest.TempPathFactory, text: str, q: str) -> None:
    """Whatever a marker says: it is refused, or it is one printable line that starts as it did."""
    path = tmp_path_factory.mktemp("r") / "requirements.txt"
    path.write_text(f"tidings ; platform_version != {q}{text}{q}\n", "utf-8")
    try:
        lines = read_requirements(path)
    except ArtifactError:
        return
    assert all(line.startswith("tidings") and line.isprintable() for line in lines)
    assert [line.splitlines() for line in lines] == [[line] for line in lines]


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    """It is not read to its end."""
    path = written(tmp_path, "requirements.txt", "# ours\n" * 200_000)
    with pytest.raises(ArtifactError, match="larger than"):
        read_requirements(path)


def test_hashes_are_kept_in_order(tmp_path: Path) -> None:
    """They are part of the line, and thus of the digest, whichever order they were written in."""
    one = f"tidings==1.0 --hash=sha256:{'b' * 64} --hash=sha256:{'a' * 64}"
    other = f"tidings==1.0 \\\n --hash=sha256:{'a' * 64} \\\n --hash=sha256:{'b' * 64}"
    lines = read_requirements(written(tmp_path, "a.txt", one))
    assert lines == read_requirements(written(tmp_path, "b.txt", other))
    assert environments.environment_digest(lines) != environments.environment_digest(
        ("tidings==1.0",)
    )


@pytest.mark.parametrize(
    "line", ["--index-url=http://127.0.0.1/evil", "tidings\n--pre", "tidings @ file:///x.whl"]
)
def test_lines_of_a_record_are_looked_at_too(tmp_path: Path, line: str) -> None:
    """A pulled version brings its lines without a file: refused before anything is made."""
    with pytest.raises(ArtifactError, match="requirements"):
        environments.build_environment(tmp_path / "root", (line,))
    assert not (tmp_path / "root").exists()


@given(
    st.lists(st.sampled_from(["==1.5.2", ">=1.2", "!=1.4", "<3", "~=1.3"]), unique=True),
    st.sampled_from(["", "[b,A]"]),
    st.sampled_from(["", " ; python_version>'3' and (os_name=='x' or extra=='B_c')"]),
    st.sampled_from(["", f" --hash=sha256:{'b' * 64} --hash=sha256:{'a' * 64}"]),
)
def test_a_line_in_its_one_way_of_writing_stays_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, versions: list[str], extras: str, marker: str, h: str
) -> None:
    """Read again, it is the same: a record's environment keeps its digest wherever it is built."""
    path = tmp_path_factory.mktemp("r") / "requirements.txt"
    path.write_text(f"Some_Name{extras}{','.join(versions)}{marker}{h}\n", "utf-8")
    once = read_requirements(path)
    path.write_text("\n".join(once), "utf-8")
    assert read_requirements(path) == once
