"""Which runtime a file belongs to, and what is missing to run it."""

from __future__ import annotations

import gzip
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from muelle.core.errors import ArtifactError, MissingLibrary
from muelle.runtimes.interface import Format, LoadOptions, Runtime
from muelle.runtimes.registry import (
    BUILT_IN,
    Registry,
    find_format,
    missing_libraries,
    missing_message,
)
from tests import models


def write(path: Path, content: bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(content)
    return path


def test_the_built_in_runtimes_are_there() -> None:
    """All of them come, in the fixed order, and each by its own name."""
    registry = Registry()

    assert [r.name for r in registry.runtimes()][: len(BUILT_IN)] == list(BUILT_IN)
    assert all(registry.by_name(name).name == name for name in BUILT_IN)
    assert registry.problems == []


def test_an_unknown_runtime_lists_the_known() -> None:
    """The error names what there is."""
    with pytest.raises(ArtifactError, match=r"'torch'; there are: .*onnx.*xgboost"):
        Registry().by_name("torch")


def test_finding_a_format_imports_no_library(tmp_path: Path) -> None:
    """Detection over all formats leaves every model library out of the process."""
    names = "onnxruntime sklearn xgboost lightgbm catboost onnx pandas joblib skops"
    code = (
        "import sys, pathlib\n"
        "from muelle.runtimes.registry import find_format\n"
        "for path in sys.argv[1:]: find_format(pathlib.Path(path))\n"
        f"print([n for n in {names.split()!r} if n in sys.modules])\n"
    )
    paths = [str(models.quiet(make).path) for make in models.ALL]

    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("suffix", [".onnx", ".skops", ".ubj", ".txt", ".bin", ""])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_is_a_pickle_whatever_its_name(suffix: str, protocol: int, tmp_path: Path) -> None:
    """Content beats name, so that a renamed pickle still needs trust."""
    path = write(tmp_path / f"model{suffix}", pickle.dumps(Path("x"), protocol=protocol))

    runtime, format = find_format(path)

    assert (runtime.name, format.runs_code) == ("sklearn", True)


@pytest.mark.parametrize("compress", ["zlib", "gzip", "bz2", "lzma", "xz"])
def test_a_compressed_joblib_file_is_a_pickle(compress: str, tmp_path: Path) -> None:
    """joblib's compressed files are seen through, without their ending."""
    import joblib

    path = tmp_path / "model.bin"
    joblib.dump({"weights": list(range(1000))}, path, compress=(compress, 3))

    assert find_format(path)[1].runs_code


def test_compressed_text_is_no_pickle(tmp_path: Path) -> None:
    """Only what comes out counts, not that something was compressed."""
    path = write(tmp_path / "notes.gz", gzip.compress(b"just words " * 100))

    with pytest.raises(ArtifactError, match="not known"):
        find_format(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", b"tree\nof words"),
        ("settings.json", b'{"learner": 1}'),
        ("picture.png", b"\x89PNG\r\n\x1a\n"),
        ("binary", bytes(range(256))),
        ("weights.pt", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."),
        ("archive.zip", b"PK\x03\x04 and no more"),
    ],
)
def test_an_unknown_format_lists_the_known(name: str, content: bytes, tmp_path: Path) -> None:
    """The error names the file and every format with its endings."""
    with pytest.raises(ArtifactError) as caught:
        find_format(write(tmp_path / name, content))

    text = str(caught.value)
    assert name in text
    for known in ("ONNX (.onnx)", ".skops", ".joblib", ".ubj", "LightGBM", ".cbm", ".py"):
        assert known in text


def test_an_unknown_folder_lists_the_known(tmp_path: Path) -> None:
    """A folder that no runtime loads is told apart from a broken file."""
    with pytest.raises(ArtifactError, match="not known"):
        find_format(tmp_path)


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    """The commonest broken copy has its own words."""
    with pytest.raises(ArtifactError, match=r"model\.onnx: the file is empty"):
        find_format(write(tmp_path / "model.onnx", b""))


def test_the_name_decides_where_no_content_does(tmp_path: Path) -> None:
    """A broken `.onnx` gets the ONNX runtime's own error, not a list of formats."""
    path = write(tmp_path / "model.onnx", b"<html>404 not found</html>")
    runtime, format = find_format(path)

    assert format.name == "ONNX"
    with pytest.raises(ArtifactError, match=r"model\.onnx: onnxruntime cannot load it"):
        runtime.load(path, LoadOptions())


def test_the_content_decides_where_the_name_says_nothing(tmp_path: Path) -> None:
    """Every model is recognised by its content alone (a Python file needs its ending)."""
    for make in models.ALL:
        saved = models.quiet(make)
        if saved.runtime == "python":
            continue
        copy = write(tmp_path / make.__name__, saved.path.read_bytes())
        assert find_format(copy)[0].name == saved.runtime, make.__name__


def test_python_is_parsed_and_never_run(tmp_path: Path) -> None:
    """Detection leaves no trace of the file's code; loading, the control, does."""
    canary = tmp_path / "canary"
    path = tmp_path / "model.py"
    path.write_text(
        f"open({str(canary)!r}, 'w').close()\n"
        "from muelle import Model as Base\n"
        "class Mine(Base): pass\n"
    )

    runtime, format = find_format(path)

    assert (runtime.name, format.runs_code) == ("python", True)
    assert not canary.exists()
    with pytest.raises(ArtifactError, match="inputs"):
        runtime.load(path, LoadOptions())
    assert canary.exists()


@pytest.mark.parametrize(
    ("source", "is_model"),
    [
        ("import muelle\nclass A(muelle.Model): ...", True),
        ("import muelle as m\nclass A(m.Model): ...", True),
        ("from muelle import Model\nclass A(Model): ...", True),
        ("import muelle.runtimes.interface\nclass A(muelle.runtimes.interface.Model): ...", True),
        ("class Model: ...\nclass A(Model): ...", False),
        ("from torch import Model\nclass A(Model): ...", False),
        ("import muelle\nx = 'class A(muelle.Model)'", False),
        ("class A(muelle.Model: ...", False),
        ("(" * 5_000 + "Model", False),
    ],
)
def test_a_python_model_is_a_subclass_of_muelles(
    source: str, is_model: bool, tmp_path: Path
) -> None:
    """Only a class whose base is imported from muelle counts."""
    from muelle.runtimes.formats import is_python_model

    path = write(tmp_path / "model.py", source.encode())

    assert is_python_model(source.encode(), path) is is_model


def test_missing_libraries_are_named_with_their_command() -> None:
    """What is not installed is found without import; what is installed is not listed."""
    format = Format("Strange", (".x",), lambda head, path: False)
    other = Format("Other", (".y",), lambda head, path: False)
    runtime = Runtime(
        name="strange",
        formats=(format, other),
        load=lambda path, options: pytest.fail("not to be loaded"),
        modules=("no_such_library", "json"),
        extra="strange",
        modules_by_format={"Other": ("json",)},
    )

    missing = missing_libraries(runtime, format)

    assert missing == ["no_such_library"]
    assert missing_libraries(runtime, other) == []
    assert missing_message(runtime, format, missing) == (
        "Strange needs no_such_library, which is not installed: pip install 'muelle[strange]'"
    )


@pytest.mark.parametrize(
    ("make", "module"),
    [
        (models.onnx_classifier, "onnxruntime"),
        (models.sklearn_forest, "skops.io"),
        (models.sklearn_named, "joblib"),
        (models.xgboost_binary, "xgboost"),
        (models.lightgbm_classes, "lightgbm"),
        (models.catboost_counts, "catboost"),
    ],
)
def test_a_load_without_its_library_names_the_extra(
    make: object, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that lacks the library says which command installs it."""
    saved = models.quiet(make)
    runtime, _ = find_format(saved.path)
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]

    with pytest.raises(MissingLibrary, match=rf"pip install 'muelle\[{runtime.extra}\]'"):
        runtime.load(saved.path, LoadOptions())


def test_built_in_names_are_those_that_the_package_declares() -> None:
    """The names that work without entry points are exactly the declared ones."""
    import tomllib

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    declared = project["project"]["entry-points"]["muelle.runtimes"]
    assert set(BUILT_IN) == set(declared)
    assert all(value == f"muelle.runtimes.{name}:RUNTIME" for name, value in declared.items())
