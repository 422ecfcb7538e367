"""What the installer of a bundle decides and writes, without installing a server."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from muelle.packaging import bundle_start
from muelle.packaging.bundle import BundleHeader, Member, code_members, write_bundle
from muelle.packaging.bundle_format import BundleError, BundleIndex
from muelle.packaging.bundle_start import Plan, StartError, clean_environment, start, unit
from muelle.packaging.bundle_wheels import WheelInvalid, install_wheels
from muelle.packaging.install_server import (
    MARK,
    InstallError,
    Machine,
    Options,
    glibc_of,
    install,
    refuse_misfit,
    this_machine,
)

HERE = Machine("linux/amd64", "3.11", "CPython", (2, 36))
INDEX = BundleIndex("muelle", 0, "linux/amd64", "3.11", (), (), "0" * 64)
WHEEL = "numpy-2.0-cp311-cp311-manylinux_2_28_x86_64.whl"
TEXTS = bundle_start.Texts("en")


# --- does it fit? ---


def test_wheels_that_fit_are_taken() -> None:
    """Negative control of the refusals."""
    refuse_misfit("x.muelle", INDEX, [WHEEL], HERE)


@pytest.mark.parametrize(
    ("machine", "part"),
    [
        (replace(HERE, platform="linux/arm64"), "are for linux/amd64, this machine is linux/arm64"),
        (replace(HERE, python="3.12"), "run it with python3.11"),
        (replace(HERE, implementation="PyPy"), "this is PyPy 3.11"),
        (replace(HERE, glibc=(2, 27)), "needs glibc 2.28, here is 2.27"),
        (replace(HERE, glibc=(0, 0)), "here is another C library"),
    ],
)
def test_wheels_that_do_not_fit_are_told(machine: Machine, part: str) -> None:
    """Platform, Python, C library: which, and what would fit."""
    with pytest.raises(InstallError) as caught:
        refuse_misfit("x.muelle", INDEX, [WHEEL], machine)
    assert part in caught.value.message


def test_a_bundle_without_wheels_says_what_to_do() -> None:
    """It is for `muelle import`."""
    with pytest.raises(InstallError, match="muelle import x.muelle"):
        refuse_misfit("x.muelle", INDEX, [], HERE)


@pytest.mark.parametrize(
    ("wheel", "oldest"),
    [
        ("a-1-py3-none-any.whl", (0, 0)),
        ("a-1-cp311-cp311-linux_x86_64.whl", (0, 0)),
        ("a-1-cp311-cp311-manylinux_2_28_x86_64.whl", (2, 28)),
        ("a-1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", (2, 17)),
        ("a-1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", (2, 27)),
        ("a-1-cp311-cp311-manylinux1_x86_64.whl", (2, 5)),
    ],
)
def test_the_c_library_of_a_wheel(wheel: str, oldest: tuple[int, int]) -> None:
    """The oldest that its tags allow."""
    assert glibc_of(wheel) == oldest


def test_this_machine_is_known() -> None:
    """Platform and Python as bundles name them."""
    found = this_machine()
    assert found.platform.startswith("linux/")
    assert found.python == "{}.{}".format(*sys.version_info)


# --- the folder ---


def small_bundle(folder: Path) -> Path:
    """A bundle with a wheel and the installer, of which nothing can be installed."""
    here = this_machine()
    header = BundleHeader(epoch=0, platform=here.platform, python=here.python)
    members = [
        *code_members(),
        Member("requirements.txt", "lock", b"a==1 --hash=sha256:" + b"0" * 64 + b"\n"),
        Member("wheels/a-1-py3-none-any.whl", "wheel", b"no wheel"),
    ]
    return write_bundle(folder / "x.muelle", members, header).path


def run_install(bundle: Path, folder: Path) -> int:
    """Install without starting."""
    return install(Options(bundle, folder, start=False), lambda text: None, TEXTS)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    """Only an empty folder, or one that we made."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InstallError, match="no Muelle server"):
        run_install(small_bundle(tmp_path), folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_bundle_that_changed_writes_nothing(tmp_path: Path) -> None:
    """Everything is checked before the folder is made."""
    bundle = small_bundle(tmp_path)
    content = bytearray(bundle.read_bytes())
    content[content.rindex(b"no wheel")] ^= 1
    bundle.write_bytes(content)
    with pytest.raises(BundleError, match="a-1-py3-none-any.whl has changed"):
        run_install(bundle, tmp_path / "server")
    assert not (tmp_path / "server").exists()


def test_an_environment_that_fails_is_not_taken_for_one(tmp_path: Path) -> None:
    """A wheel that cannot be installed: one line, no `venv`, nothing to start; again: the same."""
    bundle, folder = small_bundle(tmp_path), tmp_path / "server"
    for _ in range(2):
        with pytest.raises(InstallError) as caught:
            run_install(bundle, folder)
        assert "wheel that is not in the bundle" in caught.value.message
        assert (folder / MARK).is_file()
        assert not (folder / "venv").exists()
        assert not (folder / "start").exists()


# --- as a program ---


def test_a_bundle_runs_with_nothing_but_python(tmp_path: Path) -> None:
    """Isolated, without site-packages: it checks itself, and shows its help in two languages."""
    bundle = small_bundle(tmp_path)
    command = [sys.executable, "-I", "-S", str(bundle)]
    done = subprocess.run([*command, "check"], capture_output=True, text=True, check=True)
    assert "x.muelle: whole" in done.stderr
    shown = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, check=True, env={"LANG": "es_ES"}
    )
    assert "Crear un servidor con este paquete" in shown.stdout


@pytest.mark.parametrize("version", ["3.8", "3.9", "3.10"])
def test_an_old_python_is_told_in_one_line(tmp_path: Path, version: str) -> None:
    """Not by a traceback of what it cannot read."""
    beside = sorted(Path(sys.base_prefix).parent.glob(f"{version}.*/bin/python3"))
    python = str(beside[0]) if beside else shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-c", ""], check=False).returncode:
        pytest.skip(f"no Python {version} here")
    done = subprocess.run(
        [python, str(small_bundle(tmp_path)), "install-server"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"muelle: this is Python {version}, Muelle needs 3.11 or newer")
    assert done.stderr.count("\n") == 1


# --- start, systemd ---


def test_both_languages_have_all_texts() -> None:
    """With the same places to fill."""
    english, spanish = bundle_start._EN, bundle_start._ES
    assert english.keys() == spanish.keys()
    for key, text in english.items():
        places = {part.partition("}")[0] for part in text.split("{")[1:]}
        assert places == {part.partition("}")[0] for part in spanish[key].split("{")[1:]}, key


def test_a_port_that_is_taken_is_told_before_the_start(tmp_path: Path) -> None:
    """Whoever listens there would answer in our place."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        plan = Plan(tmp_path, tmp_path, "127.0.0.1", taken.getsockname()[1])
        with pytest.raises(StartError, match="choose another with --port"):
            start(plan, lambda text: None, TEXTS, wait_s=1)
    assert not (tmp_path / "server.pid").exists()


def test_a_server_that_ends_is_told_with_its_last_line(tmp_path: Path) -> None:
    """Not waited for until the time is over."""
    home = tmp_path / "venvs" / "x"
    (home / "bin").mkdir(parents=True)
    python = home / "bin" / "python"
    python.write_text("#!/bin/sh\necho 'muelle: no such model' >&2\nexit 3\n")
    python.chmod(0o755)
    plan = Plan(tmp_path, home, "127.0.0.1", free_port())
    with pytest.raises(StartError, match=r"exit status 3\): muelle: no such model"):
        start(plan, lambda text: None, TEXTS, wait_s=60)


def free_port() -> int:
    """A port that was free a moment ago."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_unit_is_one_that_systemd_reads(tmp_path: Path) -> None:
    """Also with spaces, quotes, dollars and per cent signs in the folder's name."""
    folder = tmp_path / 'a b"c$d%h'
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "venv" / "bin" / "python").symlink_to(sys.executable)
    text = unit(Plan(folder, folder / "venv", "127.0.0.1", 8080), "root")
    assert "NoNewPrivileges=yes" in text
    assert "CapabilityBoundingSet=\n" in text
    assert "%%h" in text
    assert "$$d" in text
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("no systemd-analyze here")
    plain = unit(Plan(Path("/"), Path(sys.prefix), "127.0.0.1", 8080), "root")
    for name, content in (("odd", text), ("plain", plain)):
        path = tmp_path / f"{name}.service"
        path.write_text(content)
        done = subprocess.run(
            [tool, "verify", "--man=no", str(path)], capture_output=True, text=True, check=False
        )
        ours = [line for line in done.stderr.splitlines() if f"{name}.service" in line]
        assert not [line for line in ours if "not executable" not in line], done.stderr


def test_other_peoples_settings_do_not_lead_astray() -> None:
    """pip, Python and Muelle find none of the caller's variables."""
    given = {"PATH": "/bin", "PIP_INDEX_URL": "x", "PYTHONPATH": "y", "MUELLE_STORE": "z"}
    found = clean_environment({**given, "LANG": "es_ES.UTF-8"})
    assert found == {
        "PATH": "/bin",
        "LANG": "es_ES.UTF-8",
        "PIP_CONFIG_FILE": os.devnull,
        "MUELLE_LANG": "es",
    }


# --- wheels, without pip ---


def make_wheel(folder: Path, files: dict[str, bytes], *, lie: str = "", unlisted: str = "") -> Path:
    """Write a wheel `tiny 1.0`; its list lies about one file, or leaves one out."""
    info = "tiny-1.0.dist-info"
    files = {
        **files,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": b"[console_scripts]\ntiny-says = tiny.words:say\n",
    }
    rows = []
    for name, content in files.items():
        digest = hashlib.sha256(b"another" if name == lie else content).digest()
        text = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        rows += [f"{name},sha256={text},{len(content)}"] if name != unlisted else []
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,", ""]))
    return path


TINY = {
    "tiny/__init__.py": b"",
    "tiny/words.py": b"def say():\n    print('tiny says hello')\n",
    "tiny-1.0.data/scripts/tiny-script": b"#!python\nprint('a script')\n",
    "tiny-1.0.data/data/share/tiny.txt": b"words",
}


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An empty virtual environment."""
    home = tmp_path / "env"
    subprocess.run([sys.executable, "-I", "-m", "venv", "--without-pip", str(home)], check=True)
    return home


def test_a_wheel_is_installed_by_unpacking(environment: Path, tmp_path: Path) -> None:
    """Modules, commands, scripts, files, and a list that Python's own tools read."""
    install_wheels([make_wheel(tmp_path, TINY)], environment, sys.version_info[:2])
    says = subprocess.run([environment / "bin/tiny-says"], capture_output=True, check=True)
    assert says.stdout == b"tiny says hello\n"
    script = subprocess.run([environment / "bin/tiny-script"], capture_output=True, check=True)
    assert script.stdout == b"a script\n"
    assert (environment / "share/tiny.txt").read_bytes() == b"words"
    code = (
        "from importlib.metadata import distribution as d; t = d('tiny')\n"
        "print(t.version, all(f.locate().is_file() for f in t.files), len(t.files))"
    )
    python = environment / "bin/python"
    listed = subprocess.run([python, "-I", "-c", code], capture_output=True, check=True)
    assert listed.stdout == b"1.0 True 10\n"


@pytest.mark.parametrize(
    ("files", "lie", "unlisted"),
    [
        (TINY, "tiny/words.py", ""),
        (TINY, "", "tiny/words.py"),
        ({**TINY, "../../outside.py": b"x"}, "", ""),
        ({**TINY, "/outside.py": b"x"}, "", ""),
        ({**TINY, "tiny-1.0.data/scripts/../../../outside": b"x"}, "", ""),
        ({**TINY, "tiny-1.0.data/other/x": b"x"}, "", ""),
    ],
)
def test_a_wheel_that_lies_is_refused(
    environment: Path, tmp_path: Path, files: dict[str, bytes], lie: str, unlisted: str
) -> None:
    """Another content than its list says, one that is not listed, names that leave the folder."""
    with pytest.raises(WheelInvalid, match="tiny-1.0"):
        install_wheels(
            [make_wheel(tmp_path, files, lie=lie, unlisted=unlisted)],
            environment,
            sys.version_info[:2],
        )
    assert not list(tmp_path.glob("**/outside*"))


def test_what_is_no_wheel_is_one_line(environment: Path, tmp_path: Path) -> None:
    """No ZIP file at all."""
    path = tmp_path / "tiny-1.0-py3-none-any.whl"
    path.write_bytes(b"no zip")
    with pytest.raises(WheelInvalid, match="not a wheel"):
        install_wheels([path], environment, sys.version_info[:2])
