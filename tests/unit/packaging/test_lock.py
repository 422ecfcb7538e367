"""Wheels by name and hash: what is needed, where it is found, and packing what is installed."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.pylock import Pylock

from muelle.core.errors import ArtifactError, ConfigError
from muelle.core.records import VersionRecord
from muelle.packaging.installed import install_wheels, site_packages
from muelle.packaging.lock import Lock, closure, lock_for, roots_of, write_lock
from muelle.packaging.targets import Target
from muelle.packaging.wheels import LockedWheel, Pin, find_wheels, locked, repack

HERE = Target.parse()


def record(runtime: str = "onnx", form: str = "ONNX", environment: str = "") -> VersionRecord:
    """Return a version of a runtime."""
    return VersionRecord(
        model="m", version=1, digest="", artifact="", runtime=runtime, format=form,
        environment=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels of click and of ourselves, packed from what is installed."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in ("click", "muelle", "pip"):
        repack(name, folder)
    return folder


# --- what is needed ---


def test_only_the_runtimes_that_the_models_need() -> None:
    """An ONNX model brings onnxruntime and no other library of models."""
    names = {pin.name for pin in closure(roots_of([record()]), HERE)}
    assert {"muelle", "onnxruntime", "numpy", "fastapi"} <= names
    assert not names & {"torch", "scikit-learn", "xgboost-cpu", "lightgbm", "catboost", "pandas"}
    assert not names & {"pytest", "docker", "installer"}


def test_two_runtimes_are_joined() -> None:
    """Models of two runtimes get the libraries of both."""
    roots = roots_of([record(), record("sklearn", "joblib")])
    assert roots == ["muelle[onnx,sklearn]"]


def test_a_version_with_its_own_environment_brings_nothing_to_the_server() -> None:
    """Its libraries lie in its environment: the server's stays small."""
    assert roots_of([record("sklearn", "joblib", "sha256:1")]) == ["muelle"]


def test_what_is_not_installed_is_named_with_the_command() -> None:
    """A requirement that is not here is not guessed: the error says how to get it here."""
    with pytest.raises(ArtifactError, match="pip install 'nosuchthing-at-all>=2'"):
        closure(["nosuchthing-at-all>=2"], HERE)


def test_another_version_than_installed_is_refused() -> None:
    """What goes into an image is what was tried here."""
    with pytest.raises(ArtifactError, match="here is "):
        closure(["numpy<1"], HERE)


@pytest.mark.parametrize("text", ["", "a b", "-r x.txt", "numpy @ file:///x", "x==1; bad"])
def test_what_is_no_requirement_is_refused(text: str) -> None:
    """Options, paths and nonsense are no requirements."""
    with pytest.raises((ConfigError, ArtifactError)):
        closure([text], HERE)


# --- where it is found ---


def test_the_newest_platform_wins_and_others_are_not_seen(tmp_path: Path) -> None:
    """Of two wheels of a version the more special one is taken; other platforms do not count."""
    names = (
        "x-1.0-py3-none-any.whl",
        f"x-1.0-py3-none-manylinux2014_{HERE.machine}.whl",
        "x-1.0-py3-none-win_amd64.whl",
        "x-2.0-py3-none-win_amd64.whl",
        "not a wheel.whl",
    )
    for name in names:
        (tmp_path / name).touch()
    found, missing = find_wheels([Pin("x", "1.0"), Pin("x", "2.0")], [tmp_path], HERE)
    assert found[Pin("x", "1.0")].name == names[1]
    assert missing == [Pin("x", "2.0")]


def test_a_missing_wheel_is_named(small: Path, tmp_path: Path) -> None:
    """A folder without a needed wheel: the error names it, the platform and what to do."""
    with pytest.raises(ArtifactError, match=r"no wheel for .*annotated-doc==.*muelle lock"):
        lock_for([], target=HERE, wheels=small, env={"HOME": str(tmp_path)})


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The error names the folder."""
    with pytest.raises(ArtifactError, match="no such folder of wheels"):
        lock_for([], target=HERE, wheels=tmp_path / "none", env={"HOME": str(tmp_path)})


# --- packing what is installed ---


def test_packing_twice_gives_the_same_bytes(small: Path, tmp_path: Path) -> None:
    """A wheel that is packed anew is the same file, whenever it is packed."""
    for wheel in small.glob("*.whl"):
        again = repack(locked(wheel).name, tmp_path)
        assert again.name == wheel.name
        assert again.read_bytes() == wheel.read_bytes()


def test_a_packed_wheel_is_whole(small: Path) -> None:
    """Every file is listed with its hash; no cache, no script of this machine is in it."""
    for wheel in small.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            info = next(n.split("/")[0] for n in names if n.endswith(".dist-info/RECORD"))
            lines = archive.read(f"{info}/RECORD").decode().splitlines()
            assert {line.split(",")[0] for line in lines} == names
            assert not [n for n in names if n.endswith(".pyc") or n.startswith(("..", "/", "bin/"))]
            assert f"{info}/direct_url.json" not in names


def test_our_own_wheel_can_be_installed_and_run(small: Path, tmp_path: Path) -> None:
    """Packed from a source tree, installed into a folder, it is the same package."""
    (ours,) = (locked(p) for p in small.glob("muelle-*.whl"))
    install_wheels([ours], tmp_path, "/opt/x", target=HERE)
    site = tmp_path / site_packages("/opt/x", HERE).lstrip("/")
    assert (site / "muelle/locales/es.json").is_file()
    assert (tmp_path / "opt/x/bin/muelle").read_text().startswith("#!/opt/x/bin/python3")
    assert list((site / "muelle/__pycache__").glob(f"*cpython-{sys.version_info[0]}*.pyc"))


def test_a_broken_wheel_is_named(small: Path, tmp_path: Path) -> None:
    """A wheel with a changed byte is refused by name; an untouched one is not."""
    (good,) = small.glob("click-*.whl")
    wheel = tmp_path / good.name
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(wheel, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content + b"#" if name == "click/core.py" else content)
    with pytest.raises(ArtifactError, match=rf"{good.name}.*click/core\.py"):
        install_wheels([locked(wheel)], tmp_path / "a", "/opt/x", target=HERE)
    install_wheels([locked(good)], tmp_path / "b", "/opt/x", target=HERE)


def test_no_wheel_at_all_is_named(tmp_path: Path) -> None:
    """A file that is no ZIP archive is refused by name."""
    wheel = tmp_path / "x-1.0-py3-none-any.whl"
    wheel.write_bytes(b"not a wheel")
    with pytest.raises(ArtifactError, match=r"x-1\.0-py3-none-any\.whl"):
        install_wheels([locked(wheel)], tmp_path / "a", "/opt/x", target=HERE)


# --- the lock as files ---


def locked_set(small: Path) -> Lock:
    """Return a lock of click and ourselves."""
    wheels = {wheel.name: wheel for wheel in map(locked, sorted(small.glob("*.whl")))}
    return Lock(HERE, (wheels["click"], wheels["muelle"]), wheels["pip"])


def test_the_lock_is_standard_and_names_no_address(small: Path) -> None:
    """`pylock.toml` is what the standard says: names, hashes, relative paths, no address."""
    text = locked_set(small).pylock().decode()
    parsed = Pylock.from_dict(tomllib.loads(text))
    assert [package.name for package in parsed.packages] == ["click", "muelle"]
    assert "://" not in text


def test_a_folder_of_a_lock_is_enough_to_lock_again(small: Path, tmp_path: Path) -> None:
    """What was written holds every wheel by its hash; what changes there is seen in the lock."""
    lock = locked_set(small)
    write_lock(lock, tmp_path / "lock", shutil.copyfile)
    for line in lock.requirements().decode().splitlines():
        name, _, digest = line.partition(" --hash=sha256:")
        (wheel,) = (tmp_path / "lock/wheels").glob(f"{name.replace('==', '-')}-*.whl")
        assert hashlib.sha256(wheel.read_bytes()).hexdigest() == digest
    changed = tmp_path / "lock/wheels" / lock.wheels[0].file
    changed.write_bytes(changed.read_bytes() + b" ")
    assert locked(changed).sha256 != lock.wheels[0].sha256


def test_every_wheel_is_listed_once(small: Path) -> None:
    """A wheel that two environments share lies in the folder once."""
    lock = locked_set(small)
    both = Lock(HERE, lock.wheels, lock.pip, {"sha256:a": lock.wheels})
    files = [wheel.file for wheel in both.all_wheels()]
    assert len(files) == len(set(files)) == 3
    assert isinstance(both.all_wheels()[0], LockedWheel)
