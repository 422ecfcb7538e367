"""What other tools make of our images: Docker's engine, Podman, skopeo; and the host base."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from muelle.core.errors import ImageError
from muelle.packaging.host_base import host_base
from muelle.packaging.host_libraries import elf_interpreter
from muelle.packaging.oci import (
    Base,
    Entry,
    ImageConfig,
    Written,
    find_python,
    host_platform,
    names,
    read_base,
    save_from_engine,
    verify_layout,
    write_image,
    write_layer,
)

PROGRAM = b"import os, sys; print('hello', os.getuid(), os.getgid(), open('/models/w').read())\n"
needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
needs_podman = pytest.mark.skipif(
    shutil.which("podman") is None or os.getuid() != 0, reason="podman is not installed, or no root"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The machine's own Python as a base."""
    return host_base(tmp_path_factory.mktemp("base"), epoch=0)


@pytest.fixture
def engine() -> Iterator[Any]:
    """Docker's engine of this machine."""
    docker = pytest.importorskip("docker")
    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as exc:
        pytest.skip(f"no Docker engine answers: {exc}")
    yield client
    client.close()


def built(folder: Path, base: Base, *, name: str, form: str = "archive") -> Written:
    """Write an image of a program and a weight, one layer each, one of them not compressed."""
    layers = [
        write_layer([Entry("opt/app/run.py", PROGRAM)], folder / "app", epoch=0),
        write_layer([Entry("models/w", b"42")], folder / "weights", epoch=0, gzip=False),
    ]
    found = find_python(names(base))
    assert found is not None
    config = ImageConfig(entrypoint=(found[0], "/opt/app/run.py"), user="10001:10001")
    target = folder / ("layout" if form == "layout" else "image.tar")
    return write_image(target, base, layers, config, name=name, epoch=0, form=form)  # type: ignore[arg-type]


def test_docker_loads_and_runs_what_was_written(tmp_path: Path, base: Base, engine: Any) -> None:
    """Under its name, with the identity that we computed, with no right and no network."""
    name = f"muelle-test/{uuid.uuid4().hex}:1"
    written = built(tmp_path, base, name=name)
    try:
        with open(written.path, "rb") as stream:
            (image,) = engine.images.load(stream)
        assert name in image.tags
        assert image.id in (written.config_digest, written.manifest_digest)
        said = engine.containers.run(
            name,
            remove=True,
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            network_mode="none",
        )
        assert said == b"hello 10001 10001 42\n"
        again = read_base(save_from_engine(name, tmp_path / "saved.tar"))
        assert names(again) >= {"opt/app/run.py", "models/w", "usr/local/bin/python3"}
        assert [x.diff_id for x in again.layers][-1] == read_base(written.path).layers[-1].diff_id
    finally:
        engine.images.remove(name, force=True)


def test_docker_says_what_it_does_not_have(tmp_path: Path, engine: Any) -> None:
    """A base that the engine lacks: one line, no file."""
    with pytest.raises(ImageError, match="the local engine has no such image"):
        save_from_engine(f"muelle-test/{uuid.uuid4().hex}:1", tmp_path / "saved.tar")
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_is_away_is_one_line(tmp_path: Path) -> None:
    """A socket that nobody listens on."""
    pytest.importorskip("docker")
    with pytest.raises(ImageError, match="the local engine cannot be asked"):
        save_from_engine("x:1", tmp_path / "saved.tar", host=f"unix://{tmp_path}/none.sock")
    assert list(tmp_path.iterdir()) == []


class Dying(BaseHTTPRequestHandler):
    """An engine that ends in the middle of an image."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer what the library asks first; of the image itself send a piece."""
        told = json.dumps({"ApiVersion": "1.41", "Id": "sha256:0"}).encode()
        cut = self.path.endswith("/get")
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(1_000_000 if cut else len(told)))
        self.end_headers()
        self.wfile.write(b"x" * 1000 if cut else told)


def test_an_engine_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    """Half an image is none, and the line blames the engine, not the disk."""
    pytest.importorskip("docker")
    with ThreadingHTTPServer(("127.0.0.1", 0), Dying) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            host = f"tcp://127.0.0.1:{server.server_port}"
            with pytest.raises(ImageError, match="the local engine cannot be asked: it broke off"):
                save_from_engine("x:1", tmp_path / "saved.tar", host=host)
        finally:
            server.shutdown()
            thread.join()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def podman() -> Iterator[list[str]]:
    """Podman with storage of the test's own, below a path that is short enough for it."""
    with tempfile.TemporaryDirectory(prefix="pm-") as folder:
        words = ["podman", "--root", f"{folder}/r", "--runroot", f"{folder}/rr"]
        words += ["--storage-driver", "vfs"]
        yield words
        subprocess.run([*words, "image", "rm", "-a", "-f"], check=False, capture_output=True)


@needs_podman
def test_podman_loads_what_was_written(tmp_path: Path, base: Base, podman: list[str]) -> None:
    """Under its name, with the identity that we computed."""
    written = built(tmp_path, base, name="registry.local/muelle-test:1")
    subprocess.run([*podman, "load", "-q", "-i", str(written.path)], check=True)
    asked = [*podman, "image", "inspect", "registry.local/muelle-test:1"]
    (told,) = json.loads(subprocess.run(asked, check=True, capture_output=True).stdout)
    assert "sha256:" + told["Id"] == written.config_digest
    assert told["Config"]["User"] == "10001:10001"


@needs_skopeo
@pytest.mark.parametrize("form", ["oci-archive", "docker-archive", "oci"])
def test_skopeo_copies_what_was_written(tmp_path: Path, base: Base, form: str) -> None:
    """Archives in both of their readings, and layouts; every layer arrives with its diff_id."""
    written = built(
        tmp_path,
        base,
        name="registry.local/muelle-test:1",
        form="layout" if form == "oci" else "archive",
    )
    there = tmp_path / "copy.tar"
    command = ["skopeo", "--insecure-policy", "copy", "-q"]
    subprocess.run([*command, f"{form}:{written.path}", f"docker-archive:{there}:x:1"], check=True)
    ours, theirs = read_base(written.path), read_base(there)
    assert [x.diff_id for x in ours.layers] == [x.diff_id for x in theirs.layers]
    assert theirs.config["config"]["Entrypoint"] == ours.config["config"]["Entrypoint"]


@needs_skopeo
@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_what_skopeo_writes_is_a_base(tmp_path: Path, base: Base, form: str) -> None:
    """Layouts and archives of a stranger's tool, with the names of their files."""
    written = built(tmp_path, base, name="registry.local/muelle-test:1")
    there = tmp_path / "other"
    command = ["skopeo", "--insecure-policy", "copy", "-q", f"oci-archive:{written.path}"]
    subprocess.run([*command, f"{form}:{there}:x:1"], check=True)
    again = read_base(there)
    assert names(again) == names(read_base(written.path))
    if form != "docker-archive":
        assert verify_layout(there).n_blobs == 5


def test_the_host_base_is_the_same_every_time(tmp_path: Path, base: Base) -> None:
    """Made anew in another folder by another process: the same bytes. Made before: taken again."""
    script = (
        "import sys, json, decimal, http.client, unittest.mock\n"
        "from pathlib import Path\n"
        "from muelle.packaging.host_base import host_base\n"
        "print(host_base(Path(sys.argv[1]), epoch=0).layers[0].digest)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert told.stdout.strip() == base.layers[0].digest
    (layer,) = tmp_path.glob("*.tar.gz")
    before = layer.stat().st_mtime_ns
    assert host_base(tmp_path, epoch=0).digest == base.digest
    assert layer.stat().st_mtime_ns == before
    layer.write_bytes(layer.read_bytes()[:-1])
    assert host_base(tmp_path, epoch=0).digest == base.digest  # one that was cut is made anew


def test_the_host_base_runs_with_nothing_else(tmp_path: Path, base: Base, engine: Any) -> None:
    """Encryption, databases, compression, loops and threads work; the byte code is used."""
    name = f"muelle-test/{uuid.uuid4().hex}:1"
    written = write_image(tmp_path / "i.tar", base, [], ImageConfig(), name=name, epoch=0)
    program = (
        "import ssl, sqlite3, ctypes, zlib, lzma, bz2, hashlib, asyncio, uuid, decimal, json, os\n"
        "assert os.path.exists(asyncio.__cached__), asyncio.__cached__\n"
        "assert json.__file__.startswith('/usr/local/lib'), json.__file__\n"
        "assert ssl.create_default_context().cert_store_stats()['x509_ca'] > 0\n"
        "assert sqlite3.connect(':memory:').execute('select 1').fetchone() == (1,)\n"
        "for lib in ('libstdc++.so.6', 'libgcc_s.so.1'): ctypes.CDLL(lib)\n"
        "import pwd; assert pwd.getpwuid(10001).pw_name == 'muelle'\n"
        "open('/tmp/x', 'w').close(); print(asyncio.run(asyncio.sleep(0, 'fine')))\n"
    )
    try:
        with open(written.path, "rb") as stream:
            engine.images.load(stream)
        command = ["/usr/local/bin/python3", "-I", "-W", "error", "-c", program]
        said = engine.containers.run(
            name, command, remove=True, user="4711:4711", network_mode="none", cap_drop=["ALL"]
        )
        assert said == b"fine\n"
    finally:
        engine.images.remove(name, force=True)


def test_the_host_base_holds_no_tools(base: Base) -> None:
    """No shell, no compiler, no package manager, nothing of site-packages, no tests, no key."""
    found = names(base)
    programs = {n.rpartition("/")[2] for n in found if "/bin/" in f"/{n}" or "/sbin/" in f"/{n}"}
    assert all(p.startswith("python3") or p == "python" for p in programs), programs
    folders = {part for n in found for part in n.split("/")[:-1]}
    assert not folders & {"site-packages", "dist-packages", "test", "idlelib", "ensurepip"}
    assert not [n for n in found if n.endswith((".a", ".o", ".h", ".key"))]
    assert "usr/local/lib/python3.11/asyncio/__pycache__/__init__.cpython-311.pyc" in {
        n.replace(f"3.{sys.version_info.minor}", "3.11").replace(
            f"cpython-3{sys.version_info.minor}", "cpython-311"
        )
        for n in found
    }
    assert base.platform == host_platform()
    with tarfile.open(base.layers[0].blob.path) as archive:
        infos = archive.getmembers()
    assert {(i.uid, i.gid) for i in infos if i.name != "home/muelle"} == {(0, 0)}
    assert not [i.name for i in infos if i.mode & 0o6000]
    assert [i.name for i in infos if i.mode & 0o002 and not i.issym()] == ["tmp", "var/tmp"]


def test_programs_of_other_kinds_are_refused(tmp_path: Path) -> None:
    """A script, and a cut program: one line that names the way out."""
    (tmp_path / "script").write_text("#!/bin/sh\n" + "x" * 100)
    with pytest.raises(ImageError, match="give a base image instead"):
        elf_interpreter(tmp_path / "script")
    python = Path(os.path.realpath(sys.executable))
    (tmp_path / "cut").write_bytes(python.read_bytes()[:100])
    with pytest.raises(ImageError, match="cannot be read as a program"):
        elf_interpreter(tmp_path / "cut")
    assert elf_interpreter(python).is_absolute()
