"""Images on real engines: built, run under the strictest conditions, stopped, scanned, compared."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muelle.publishing.push import Options, push
from muelle.repository.store import Store
from tests import engines, models
from tests.serving import CHAOS_MODEL, chaos_body, eventually

pytestmark = pytest.mark.slow

STRICT: dict[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "mem_limit": "600m",
    "pids_limit": 64,
    "user": "54321:54321",
    "network_mode": "none",
}
"""Read-only root, no capabilities, no new privileges, little memory, a user of no name, no net."""
CANARY = "c4n4ry-5ecret-of-the-builder"
NASTY = "a \"b\" $HOME ${PATH} \\ `id` $(id) 'c' # d \\n"


@pytest.fixture(scope="module")
def docker() -> Iterator[str]:
    """A Docker engine's address."""
    with engines.engine() as address:
        yield address


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store: an ONNX model in two versions, and one that runs code."""
    folder = tmp_path_factory.mktemp("images")
    store = Store.open(folder / "store", create=True)
    onnx = models.quiet(models.onnx_classifier)
    push(store, onnx.path, Options(name="fraud"), who="t")
    note = folder / "second"
    note.mkdir()
    shutil.copy(onnx.path, note / "model.onnx")
    content = (note / "model.onnx").read_bytes()
    # The same graph with a remark in its metadata: another file, the same answers.
    (note / "model.onnx").write_bytes(content + b"\x72\x06\x0a\x01k\x12\x01v")
    push(store, note / "model.onnx", Options(name="fraud"), who="t")
    (folder / "chaos.py").write_text(CHAOS_MODEL)
    push(store, folder / "chaos.py", Options(name="chaos", trust=True), who="t")
    store.close()
    return folder


def muelle(
    place: Path, *args: str, docker: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command with a cache and a store of its own, and a secret in its environment."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MUELLE_")}
    env |= {"XDG_CACHE_HOME": str(place / "cache"), "MUELLE_LANG": "en", "CANARY": CANARY, **more}
    env["DOCKER_HOST"] = docker or f"unix://{place}/no-engine.sock"
    return subprocess.run(
        [sys.executable, "-m", "muelle", *args],
        cwd=place, env=env, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def build(place: Path, *args: str, docker: str = "", **more: str) -> dict[str, Any]:
    """Build and return what it says of it."""
    done = muelle(place, "build", *args, "--store", "store", "--json", docker=docker, **more)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def image(docker: str, place: Path) -> Iterator[str]:
    """An image of an ONNX model and of one that runs code, built by Docker on the host's Python."""
    found = build(
        place, "fraud:1", "chaos", "-t", "muelle-test/strict:1", "--builder", "docker",
        "--base", "host", "--image-label", f"x.nasty={NASTY}", docker=docker,
    )  # fmt: skip
    yield found["name"]
    engines.client(docker).images.remove(found["name"], force=True)


class Container:
    """One running container of the image under test, with its Unix socket on this machine."""

    def __init__(self, docker: str, image: str, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
        self.socket = folder / "m.sock"
        self._client = engines.client(docker)
        self.container = self._client.containers.run(
            image,
            detach=True,
            volumes={str(folder): {"bind": "/run/muelle", "mode": "rw"}},
            environment={"MUELLE_UNIX_SOCKET": "/run/muelle/m.sock"},
            **STRICT,
        )

    def __enter__(self) -> Container:
        eventually(self._ready, 90)
        return self

    def __exit__(self, *error: object) -> None:
        self.container.remove(force=True)
        self._client.close()

    def _ready(self) -> bool:
        self.container.reload()
        assert self.container.status in ("created", "running"), self.container.logs().decode()
        try:
            return self.ask("GET", "/ready")[0] == 200
        except OSError:
            return False

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Send one request over the Unix socket."""
        return over_socket(self.socket, method, path, body)


def over_socket(
    socket_path: Path, method: str, path: str, body: bytes | None = None
) -> tuple[int, bytes]:
    """Send one request over a Unix socket."""
    connection = http.client.HTTPConnection("localhost", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(60)
    try:
        connection.sock.connect(str(socket_path))
        connection.request(method, path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_it_answers_under_the_strictest_conditions(docker: str, image: str, tmp_path: Path) -> None:
    """P-18: read-only, no capabilities, any user, no network: the answers are the model's own."""
    saved = models.quiet(models.onnx_classifier)
    rows = saved.inputs["X"][:3]
    with Container(docker, image, tmp_path / "s") as served:
        status, answer = served.ask(
            "POST", "/models/fraud/predict", json.dumps({"instances": rows.tolist()}).encode()
        )
        assert status == 200, answer
        labels = [one["label"] for one in json.loads(answer)["predictions"]]
        assert labels == saved.expected["label"][:3].tolist()
        status, answer = served.ask("POST", "/v2/models/chaos/infer", chaos_body(20.0))
        assert status == 200, answer
        outputs = {o["name"]: o["data"] for o in json.loads(answer)["outputs"]}
        assert outputs["y"] == [41.0]
        code, said = served.container.exec_run(
            ["/opt/muelle/bin/python3", "-I", "-m", "muelle.healthcheck"]
        )
        assert code == 0, said


def test_stopping_it_drains(docker: str, image: str, tmp_path: Path) -> None:
    """`docker stop` within the grace time: what was asked is answered, and it ends well."""
    with Container(docker, image, tmp_path / "s") as served:
        answers: list[tuple[int, bytes]] = []

        def ask(number: int) -> None:
            # 400 ms each, one after the other: they are under way when the signal comes.
            body = chaos_body(float(number), 400_000)
            answers.append(served.ask("POST", "/v2/models/chaos/infer", body))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()

        def under_way() -> bool:
            text = served.ask("GET", "/metrics")[1].decode()
            found = re.search(r'muelle_queue_depth\{[^}]*model="chaos"[^}]*\} (\d+)', text)
            return found is not None and int(found[1]) >= 1

        eventually(under_way, 30)
        served.container.stop(timeout=30)
        for thread in threads:
            thread.join(60)
        assert [status for status, _ in answers] == [200] * 6
        served.container.reload()
        assert served.container.attrs["State"]["ExitCode"] == 0
        assert not served.container.attrs["State"]["OOMKilled"]


def test_nothing_is_in_it_that_should_not_be(docker: str, image: str) -> None:
    """P-18, P-20: no key, cache, compiler, shell or installer; and no secret of the builder."""
    client = engines.client(docker)
    container = client.containers.create(image)
    try:
        stream = b"".join(container.export())
    finally:
        container.remove()
    assert CANARY.encode() not in stream
    assert CANARY not in json.dumps(client.images.get(image).attrs)
    with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
        members = [m for m in archive if m.isfile() or m.issym()]
        programs = {m.name.rpartition("/")[2] for m in members if re.search(r"(^|/)s?bin/", m.name)}
        assert not programs & {"sh", "bash", "dash", "busybox", "apt", "dpkg", "pip", "pip3"}
        assert not programs & {"gcc", "cc", "g++", "ld", "as", "make", "curl", "wget"}
        names = [m.name for m in members]
        assert not [n for n in names if re.search(r"(^|/)(\.cache|\.git|\.env|wheels)(/|$)", n)]
        assert not [n for n in names if re.search(r"\.(key|p12|whl)$|(^|/)id_(rsa|ed25519)", n)]
        assert not [n for n in names if n.startswith("build/")]
        for member in members:
            if member.isfile() and member.name.endswith((".pem", ".crt", ".txt", ".json", ".toml")):
                content = archive.extractfile(member)
                assert content is not None
                assert b"PRIVATE KEY-----" not in content.read(), member.name
        # The control: this search finds things in an image that has them.
        assert [n for n in names if n.endswith("muelle/healthcheck.py")]


def test_the_list_of_parts_covers_every_file(docker: str, image: str) -> None:
    """P-17: each file that was installed belongs to a package of the SBOM, each model is in it."""
    container = engines.client(docker).containers.create(image)
    try:
        stream = b"".join(container.export())
    finally:
        container.remove()
    with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
        read = {m.name: archive.extractfile(m) for m in archive if m.isfile()}
        contents = {
            name: file.read()
            for name, file in read.items()
            if file is not None and name.endswith((".dist-info/RECORD", "sbom.cdx.json"))
        }
    sbom = json.loads(contents["srv/sbom.cdx.json"])
    parts = {one["name"]: one for one in sbom["components"]}
    assert parts["fraud"]["version"] == "1"
    assert {"chaos", "onnxruntime", "muelle"} <= set(parts)
    (site,) = {name.partition("site-packages/")[0] for name in contents if "site-packages" in name}
    owned: set[str] = set()
    for name, record in contents.items():
        if not name.endswith("RECORD"):
            continue
        folder = name.split("/")[-2].removesuffix(".dist-info")
        package = re.sub(r"[-_.]+", "-", folder.partition("-")[0]).lower()
        assert package in parts, f"{package} is installed and not listed"
        lines = record.decode().splitlines()
        owned |= {f"{site}site-packages/{line.split(',')[0].strip(chr(34))}" for line in lines}
    installed = {
        n for n in read if n.startswith(f"{site}site-packages/") and not n.endswith(".pyc")
    }
    assert installed - owned == set()
    assert len(installed) > 1_000


def test_the_image_says_who_it_is(docker: str, image: str) -> None:
    """Numeric user, stop signal, health check without a shell; labels come out as they went in."""
    config = engines.client(docker).images.get(image).attrs["Config"]
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["Entrypoint"][0] == "/opt/muelle/bin/python3"
    assert config["Labels"]["x.nasty"] == NASTY
    assert config["Labels"]["dev.muelle.models"] == "fraud:1 chaos:1"


def test_an_onnx_image_is_small_and_carries_no_other_runtime(docker: str, place: Path) -> None:
    """At most 250 MB above its base; of the libraries of models only onnxruntime."""
    found = build(
        place, "fraud:1", "-t", "muelle-test/small:1", "--builder", "docker", "--base", "host",
        docker=docker,
    )  # fmt: skip
    client = engines.client(docker)
    try:
        assert found["size"] - found["parts"]["base"] <= 250_000_000
        command = ["-I", "-c", "import importlib.metadata as m; "
                   "print(*sorted(d.name.lower() for d in m.distributions()))"]  # fmt: skip
        said = client.containers.run(
            found["name"], command, entrypoint=["/opt/muelle/bin/python3"], remove=True
        )
        there = set(said.decode().split())
        assert {"onnxruntime", "muelle", "numpy"} <= there
        assert not there & {"torch", "scikit-learn", "pandas", "xgboost-cpu", "catboost", "pip"}
    finally:
        client.images.remove(found["name"], force=True)


def test_a_version_with_libraries_of_its_own(docker: str, tmp_path: Path) -> None:
    """It runs in its own environment in the image, which the server's libraries stay out of."""
    (tmp_path / "own.py").write_text(
        "import numpy as np\nimport six\nfrom muelle import Model, TensorSpec\n\n\n"
        "class Own(Model):\n"
        "    inputs = [TensorSpec(name='x', datatype='FP64', shape=(-1,))]\n"
        "    outputs = [TensorSpec(name='y', datatype='FP64', shape=(-1,))]\n"
        "    example = {'x': 1.0}\n\n"
        "    def predict(self, inputs):\n"
        "        assert six.__version__ == '1.16.0'\n"
        "        return {'y': inputs['x'] * 3}\n"
    )
    (tmp_path / "requirements.txt").write_text("six==1.16.0\n")
    pushed = muelle(
        tmp_path, "push", "own.py", "--name", "own", "--trust", "--requirements",
        "requirements.txt", "--store", "store",
    )  # fmt: skip
    assert pushed.returncode == 0, pushed.stderr
    client = engines.client(docker)
    for builder in ("docker", "oci"):
        more = ("-o", "own.tar") if builder == "oci" else ()
        found = build(
            tmp_path, "own:1", "-t", f"muelle-test/own-{builder}:1", "--builder", builder,
            "--base", "host", *more, docker=docker,
        )  # fmt: skip
        if more:
            with open(tmp_path / "own.tar", "rb") as stream:
                client.images.load(stream)
        try:
            with Container(docker, found["name"], tmp_path / builder) as served:
                body = json.dumps({"instances": [{"x": 2.0}]}).encode()
                status, answer = served.ask("POST", "/models/own/predict", body)
                assert status == 200, answer
                assert "6" in json.dumps(json.loads(answer)["predictions"])
                code, _ = served.container.exec_run(
                    ["/opt/muelle/bin/python3", "-I", "-c", "import six"]
                )
                assert code != 0, "the server's own environment has not got it"
        finally:
            client.images.remove(found["name"], force=True)


# --- without an engine ---


def test_two_builds_are_the_same_bytes(place: Path) -> None:
    """`--builder oci --verify` proves it, and so do two builds with caches of their own."""
    first = build(place, "fraud:1", "-t", "same:1", "--verify", "-o", "one.tar")
    second = build(place, "fraud:1", "-t", "same:1", "-o", "two.tar", XDG_CACHE_HOME=f"{place}/c2")
    assert first["digest"] == second["digest"]
    assert (place / "one.tar").read_bytes() == (place / "two.tar").read_bytes()


def test_a_new_version_moves_only_its_own_bytes(place: Path) -> None:
    """Between the images of two versions only the version's layer and the index differ."""
    layers = []
    for version in ("1", "2"):
        build(place, f"fraud:{version}", "-t", f"fraud:{version}", "-o", f"layout{version}")
        index = json.loads((place / f"layout{version}/index.json").read_text())
        manifest = _blob(place / f"layout{version}", index["manifests"][0]["digest"])
        layers.append({layer["digest"]: layer["size"] for layer in json.loads(manifest)["layers"]})
    old, new = layers
    moved = {digest: size for digest, size in new.items() if digest not in old}
    assert len(moved) == 2
    assert sum(moved.values()) < 5_000
    assert sum(new.values()) > 50_000_000


def _blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs/sha256" / digest.partition(":")[2]).read_bytes()


def test_others_take_what_we_write(docker: str, place: Path) -> None:
    """`docker load`, `podman load` and `skopeo copy` take the one file; it runs."""
    found = build(place, "fraud:1", "-t", "muelle-test/own:1", "-o", "own.tar")
    client = engines.client(docker)
    with open(place / "own.tar", "rb") as stream:
        (loaded,) = client.images.load(stream)
    assert loaded.id == found["id"]
    try:
        with Container(docker, found["name"], place / "own") as served:
            assert served.ask("GET", "/v2/models/fraud/ready")[0] == 200
    finally:
        client.images.remove(found["name"], force=True)
    podman, skopeo = engines.program("podman"), engines.program("skopeo")
    subprocess.run([podman, "load", "-i", "own.tar"], cwd=place, check=True, capture_output=True)
    shown = subprocess.run(
        [podman, "image", "inspect", "--format", "{{.Id}}", "muelle-test/own:1"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert f"sha256:{shown.stdout.strip()}" == found["id"]
    subprocess.run([podman, "rmi", "-f", shown.stdout.strip()], check=True, capture_output=True)
    for form in ("oci-archive", "docker-archive"):
        subprocess.run(
            [skopeo, "copy", f"{form}:own.tar", f"dir:{place / form}"],
            cwd=place, check=True, capture_output=True,
        )  # fmt: skip


def test_a_folder_of_locked_wheels_is_enough(place: Path) -> None:
    """`muelle lock`, then `build --lock` with an empty cache: the same image, and no index."""
    done = muelle(place, "lock", "fraud:1", "--store", "store", "-o", "locked")
    assert done.returncode == 0, done.stderr
    assert (place / "locked/pylock.toml").is_file()
    first = build(place, "fraud:1", "-t", "same:1", "-o", "a.tar")
    nothing = {"XDG_CACHE_HOME": f"{place}/c3", "PIP_INDEX_URL": "http://127.0.0.1:9/none"}
    second = build(place, "fraud:1", "-t", "same:1", "-o", "b.tar", "--lock", "locked", **nothing)
    assert first["digest"] == second["digest"]
    (wheel,) = (place / "locked/wheels").glob("numpy-*.whl")
    wheel.unlink()
    refused = muelle(
        place, "build", "fraud:1", "--store", "store", "-o", "c.tar", "--lock", "locked"
    )
    assert refused.returncode == 1
    assert "numpy==" in refused.stderr.splitlines()[-1]


def test_straight_from_a_file(place: Path) -> None:
    """A model's file becomes the same image as its version in a store, but for when it was made."""
    onnx = models.quiet(models.onnx_classifier).path
    found = build(place, f"fraud={onnx}", "-t", "file:1", "-o", "file")
    assert set(found["parts"]) >= {"base", "packages", "muelle", "fraud:1"}
    index = json.loads((place / "file/index.json").read_text())
    manifest = json.loads(_blob(place / "file", index["manifests"][0]["digest"]))
    config = json.loads(_blob(place / "file", manifest["config"]["digest"]))
    assert config["config"]["Labels"]["dev.muelle.models"] == "fraud:1"
    assert config["config"]["Cmd"] == ["serve", "/srv/models"]


def test_bases_of_every_kind(docker: str, place: Path) -> None:
    """`oci` builds on a layout folder, on a saved archive, and on an image of the local engine."""
    build(place, "fraud:1", "-t", "muelle-test/base:1", "-o", "base-layout")
    build(place, "fraud:1", "-t", "muelle-test/base:1", "-o", "base.tar")
    client = engines.client(docker)
    with open(place / "base.tar", "rb") as stream:
        client.images.load(stream)
    try:
        for base in ("base-layout", "base.tar", "muelle-test/base:1"):
            found = build(
                place, "fraud:2", "-t", "on:1", "--builder", "oci", "--base", base, "-o", "on.tar",
                docker=docker,
            )  # fmt: skip
            assert found["parts"]["fraud:2"] > 0
        with open(place / "on.tar", "rb") as stream:
            (loaded,) = client.images.load(stream)
        client.images.remove(loaded.id, force=True)
    finally:
        client.images.remove("muelle-test/base:1", force=True)


def test_a_signed_image(place: Path) -> None:
    """`--sign`: the right key verifies archive and layout; another key, another image: no."""
    for name in ("ours", "theirs"):
        assert muelle(place, "keygen", name).returncode == 0
    for target in ("signed.tar", "signed-layout"):
        build(place, "fraud:1", "-t", "signed:1", "-o", target, "--sign", "ours.key")
        good = muelle(place, "verify", target, "--key", "ours.pub")
        assert good.returncode == 0, good.stderr
        assert "signed by ours.pub" in good.stdout
        assert muelle(place, "verify", target, "--key", "theirs.pub").returncode == 1
    build(place, "fraud:2", "-t", "signed:1", "-o", "other.tar")
    shutil.copy(place / "signed.tar.sig", place / "other.tar.sig")
    wrong = muelle(place, "verify", "other.tar", "--key", "ours.pub")
    assert wrong.returncode == 1
    assert "oci-manifest is not the file that was signed" in wrong.stderr


def test_an_image_for_another_processor(place: Path) -> None:
    """`--platform linux/arm64` on this machine: every library in the packages is for arm64."""
    base = _arm_base(place)
    found = build(
        place, "fraud:1", "-t", "arm:1", "--platform", "linux/arm64", "--base", str(base),
        "-o", "arm",
    )  # fmt: skip
    index = json.loads((place / "arm/index.json").read_text())
    manifest = json.loads(_blob(place / "arm", index["manifests"][0]["digest"]))
    config = json.loads(_blob(place / "arm", manifest["config"]["digest"]))
    assert (config["architecture"], config["os"]) == ("arm64", "linux")
    assert found["digest"] == index["manifests"][0]["digest"]
    machines = set()
    for layer in manifest["layers"]:
        with tarfile.open(fileobj=io.BytesIO(_blob(place / "arm", layer["digest"]))) as archive:
            for member in archive:
                if member.isfile() and ".so" in member.name.rpartition("/")[2]:
                    head = archive.extractfile(member)
                    assert head is not None
                    machines.add(head.read(20)[18:20])
    assert machines == {b"\xb7\x00"}, "EM_AARCH64 and nothing else"


def _arm_base(place: Path) -> Path:
    """Write an image that looks like a base for arm64: what counts is its name and its Python."""
    from muelle.packaging.oci import Entry, ImageConfig, parse_platform, write_image, write_layer

    python = "usr/local/bin/python{}.{}".format(*sys.version_info)
    layer = write_layer([Entry(python, b"\x7fELF", 0o755)], place / "arm-layer", epoch=0)
    target = place / "arm-base.tar"
    platform = parse_platform("linux/arm64")
    write_image(target, None, [layer], ImageConfig(), name="arm/base:1", epoch=0, platform=platform)
    return target


# --- other builders, and a registry ---


@pytest.mark.parametrize("builder", ["podman", "buildah"])
def test_other_builders(builder: str, place: Path) -> None:
    """Podman and Buildah build the same Dockerfile without a network; what they built answers."""
    engines.program(builder)
    podman = engines.program("podman")
    name = f"localhost/muelle-test/{builder}:1"
    found = build(place, "fraud:1", "-t", name, "--builder", builder, "--base", "host")
    assert found["builder"] == builder
    folder = place / f"sock-{builder}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    hard = str(min(4_096, os.sysconf("SC_OPEN_MAX")))
    try:
        done = subprocess.run(
            [podman, "run", "--detach", "--network", "none", "--read-only", "--cap-drop", "ALL",
             "--ulimit", f"nofile={hard}:{hard}", "--ulimit", "nproc=1000:1000",
             "--no-healthcheck", "--volume", f"{folder}:/run/muelle",
             "--env", "MUELLE_UNIX_SOCKET=/run/muelle/m.sock", name],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        container = done.stdout.strip()
        try:
            eventually(lambda: _answers(folder / "m.sock"), 90)
            saved = models.quiet(models.onnx_classifier)
            body = json.dumps({"instances": saved.inputs["X"][:3].tolist()}).encode()
            status, answer = over_socket(folder / "m.sock", "POST", "/models/fraud/predict", body)
            assert status == 200, answer
            labels = [one["label"] for one in json.loads(answer)["predictions"]]
            assert labels == saved.expected["label"][:3].tolist()
        finally:
            subprocess.run(
                [podman, "rm", "-f", "-t", "5", container], capture_output=True, check=False
            )
    finally:
        subprocess.run([podman, "rmi", "-f", name], capture_output=True, check=False)


def _answers(path: Path) -> bool:
    try:
        return over_socket(path, "GET", "/ready")[0] == 200
    except OSError:
        return False


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A real registry without TLS on this machine."""
    server = engines.program("docker-registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {tmp_path}/registry\n"
        f"http:\n  addr: {address}\n"
    )
    process = subprocess.Popen([server, "serve", str(config)], stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: _listens(address), 30)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _listens(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("builder", ["oci", "docker"])
def test_pushing_to_a_registry(builder: str, docker: str, place: Path, registry: str) -> None:
    """`--push` sends the image, and what comes back from there is it."""
    skopeo = engines.program("skopeo")
    name = f"{registry}/team/fraud:1"
    found = build(
        place, "fraud:1", "-t", name, "--builder", builder, "--push", "--insecure-registry",
        "--base", "host", docker=docker,
    )  # fmt: skip
    assert found["pushed"] == name
    shown = subprocess.run(
        [skopeo, "inspect", "--tls-verify=false", "--raw", f"docker://{name}"],
        check=True, capture_output=True,
    )  # fmt: skip
    manifest = json.loads(shown.stdout)
    assert manifest["config"]["digest"] == found["id"]


def test_a_registry_without_tls_needs_to_be_asked_for(place: Path, registry: str) -> None:
    """Without --insecure-registry nothing is sent in the clear, and the error says what to add."""
    done = muelle(place, "build", "fraud:1", "--store", "store", "-t", f"{registry}/fraud:1",
                  "--builder", "oci", "--push")  # fmt: skip
    assert done.returncode == 1
    assert "--insecure-registry" in done.stderr.splitlines()[-1]
    assert not list((place / "registry").rglob("*"))


# --- what goes wrong ---


def leftovers(place: Path) -> set[str]:
    """Return what a build could leave: images as files, work folders in the cache."""
    found = {path.name for path in place.glob("*.oci.tar")}
    cache = place / "cache/muelle"
    return found | {p.name for p in cache.glob("*") if p.name.startswith(("build-", "oci-"))}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fraud:1", "--builder", "docker"], "no Docker engine answers"),
        (["fraud:1", "--builder", "nonsense"], "known are auto, docker, podman, buildah and oci"),
        (["fraud:1", "--builder", "oci", "--base", "nowhere:1"], "no such file or folder"),
        (["fraud:1", "--builder", "oci", "--wheels", "none"], "no such folder of wheels"),
        (["fraud:1", "--builder", "oci", "--wheels", "store"], "no wheel for linux/"),
        (["fraud:1", "--builder", "oci", "--platform", "linux/arm64"], "name a base"),
        (["fraud:9", "--builder", "oci"], "fraud"),
        (["fraud:1", "-t", "A b"], "no name for an image"),
        (["../../etc/passwd"], "passwd"),
        (["fraud:1", "-t", "x:1", "--push"], "names no registry"),
        (["fraud:1", "--image-label", "a"], "KEY=TEXT"),
    ],
)
def test_one_clear_line_and_nothing_left(place: Path, arguments: list[str], words: str) -> None:
    """Whatever is wrong: one line says what, and nothing half-built is left."""
    before = leftovers(place)
    done = muelle(place, "build", *arguments, "--store", "store")
    assert done.returncode in (1, 2)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("muelle: "), done.stderr
    assert words in last
    assert leftovers(place) == before


def test_a_base_of_another_platform_is_refused(place: Path) -> None:
    """A base for arm64 where amd64 is wanted: the error names both."""
    base = _arm_base(place)
    done = muelle(place, "build", "fraud:1", "--store", "store", "--builder", "oci",
                  "--base", str(base))  # fmt: skip
    assert done.returncode == 1
    assert "linux/arm64" in done.stderr.splitlines()[-1]


def test_a_full_disk(place: Path, tmp_path: Path) -> None:
    """The disk is full in the middle: one line, nothing half-written, and room makes it work."""
    small = tmp_path / "small"
    small.mkdir()
    if (
        os.getuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(small)], check=False
        ).returncode
    ):
        pytest.skip("a small file system cannot be mounted here")
    try:
        done = muelle(place, "build", "fraud:1", "--store", "store", "--builder", "oci",
                      "-o", str(small / "x.tar"))  # fmt: skip
        assert done.returncode == 1, done.stdout
        assert "No space left" in done.stderr.splitlines()[-1]
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_ejected_folder_builds_by_itself(docker: str, place: Path) -> None:
    """`--eject` leaves all that `docker build --network none` needs, and nothing that is linked."""
    client = engines.client(docker)
    build(place, "fraud:1", "-t", "muelle-test/host:1", "--builder", "docker", "--base", "host",
          docker=docker)  # fmt: skip
    (base,) = [t for i in client.images.list() for t in i.tags if "muelle/base:python" in t][:1]
    build(place, "fraud:1", "-t", "x:1", "--base", base, "--eject", "ejected")
    assert all(p.stat().st_nlink == 1 for p in (place / "ejected").rglob("*") if p.is_file())
    made, _ = client.images.build(path=str(place / "ejected"), network_mode="none", rm=True)
    assert made.attrs["Config"]["Cmd"] == ["serve", "/srv/models"]
    again = muelle(place, "build", "fraud:1", "--store", "store", "--eject", "ejected")
    assert again.returncode == 1
    assert "empty folder" in again.stderr
