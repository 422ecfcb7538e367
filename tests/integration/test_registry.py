"""Push against a real registry (Debian's docker-registry): with and without TLS and passwords."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from muelle.core.errors import ImageError, MuelleError, RegistryError
from muelle.packaging.oci import Entry, ImageConfig, attach, push, write_image, write_layer
from muelle.packaging.oci.login import Login

BINARY = shutil.which("docker-registry")
pytestmark = pytest.mark.skipif(BINARY is None, reason="docker-registry is not installed")

PASSWORD = "s3cret pass"
HTPASSWD = "muelle:$2b$04$W3fYPAGkGlekZYlBq8DFQ.sDHILdthBnRF6E5pYYXIpPFh5PWA70q\n"


@dataclass(frozen=True)
class Running:
    """A registry that answers."""

    host: str
    certificate: Path
    storage: Path


Start = Callable[..., Running]


def certificate(folder: Path) -> Path:
    """Write a certificate for 127.0.0.1 that signs itself, and its key beside it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "tls.crt"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Start]:
    """Start registries on free ports of the loopback interface; all end with the test."""
    started: list[tuple[subprocess.Popen[str], threading.Thread]] = []

    def start(*, tls: bool = False, password: bool = False) -> Running:
        folder = tmp_path / f"registry{len(started)}"
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            host = f"127.0.0.1:{free.getsockname()[1]}"
        (folder / "htpasswd").write_text(HTPASSWD)
        config = {
            "version": "0.1",
            "log": {"accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}},
            "http": {"addr": host},
        }
        crt = certificate(folder) if tls else folder / "none"
        if tls:
            config["http"]["tls"] = {"certificate": str(crt), "key": str(folder / "tls.key")}  # type: ignore[index]
        if password:
            config["auth"] = {"htpasswd": {"realm": "r", "path": str(folder / "htpasswd")}}
        (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
        assert BINARY is not None
        process = subprocess.Popen(
            [BINARY, "serve", str(folder / "config.yml")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={"OTEL_TRACES_EXPORTER": "none"},
        )
        assert process.stderr is not None
        told = process.stderr
        lines = []
        for line in told:
            lines.append(line)
            if "listening on" in line:
                break
        else:
            pytest.fail("the registry did not start: " + "".join(lines))
        # What it logs later must be read, or it would wait for us.
        drain = threading.Thread(target=told.read)
        drain.start()
        started.append((process, drain))
        return Running(host, crt, folder / "storage")

    yield start
    for process, drain in started:
        process.kill()
        process.wait()
        drain.join()
        assert process.stderr is not None
        process.stderr.close()


def image(folder: Path, *, form: str = "archive", weights: bytes = b"w" * 100_000) -> Path:
    """Write an image of two layers."""
    layers = [
        write_layer([Entry("app.py", b"print(1)")], folder / "app", epoch=0),
        write_layer([Entry("w.bin", weights)], folder / "weights", epoch=0, gzip=False),
    ]
    target = folder / ("layout" if form == "layout" else "image.tar")
    name = "registry.local/fraud:3"
    write_image(target, None, layers, ImageConfig(), name=name, epoch=0, form=form)  # type: ignore[arg-type]
    return target


@pytest.mark.parametrize("form", ["layout", "archive"])
def test_what_was_pushed_is_what_others_get(tmp_path: Path, registry: Start, form: str) -> None:
    """The manifest that the registry gives has the digest; again, nothing is sent."""
    running = registry()
    source = image(tmp_path, form=form)
    seen: list[tuple[str, int, int]] = []
    told = lambda digest, sent, size: seen.append((digest, sent, size))  # noqa: E731
    first = push(source, f"{running.host}/team/fraud:3", insecure=True, progress=told)
    kind = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    answer = httpx.get(
        f"http://{running.host}/v2/team/fraud/manifests/3", headers=kind, trust_env=False
    )
    assert answer.headers["docker-content-digest"] == first.digest
    assert first.sent_bytes > 100_000 and first.present_bytes == 0
    assert all(0 < sent <= size for _, sent, size in seen)
    second = push(source, f"{running.host}/team/fraud:4", insecure=True)
    assert (second.digest, second.sent_bytes) == (first.digest, 0)
    assert second.present_bytes == first.sent_bytes


def test_a_new_version_moves_only_its_own_bytes(tmp_path: Path, registry: Start) -> None:
    """Another model in the same image: only its layer and the documents are sent."""
    running = registry()
    push(image(tmp_path), f"{running.host}/fraud:3", insecure=True)
    small = image(tmp_path, weights=b"v" * 5_000)
    pushed = push(small, f"{running.host}/fraud:4", insecure=True)
    assert 5_000 < pushed.sent_bytes < 25_000 and pushed.present_bytes > 0


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_reads_what_was_pushed(tmp_path: Path, registry: Start) -> None:
    """A stranger's tool copies the image from the registry, and every digest holds."""
    running = registry()
    pushed = push(image(tmp_path), f"{running.host}/fraud:3", insecure=True)
    command = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false"]
    command.append("--preserve-digests")  # it would compress the weights otherwise
    there = tmp_path / "copied"
    subprocess.run([*command, f"docker://{running.host}/fraud:3", f"oci:{there}:x"], check=True)
    index = json.loads((there / "index.json").read_text())
    assert index["manifests"][0]["digest"] == pushed.digest


def test_without_tls_it_must_be_asked_for(tmp_path: Path, registry: Start) -> None:
    """A loopback registry is no exception: the line names the option."""
    running = registry()
    with pytest.raises(RegistryError, match="does not speak TLS; .*--insecure-registry"):
        push(image(tmp_path), f"{running.host}/fraud:3")
    assert not (running.storage / "docker").exists()


def test_certificates_are_checked(
    tmp_path: Path, registry: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that signs itself is refused, taken when trusted, and taken when insecure is asked."""
    running = registry(tls=True)
    source = image(tmp_path)
    with pytest.raises(RegistryError, match="its certificate is not trusted"):
        push(source, f"{running.host}/fraud:3")
    assert push(source, f"{running.host}/fraud:3", insecure=True).sent_bytes
    monkeypatch.setenv("SSL_CERT_FILE", str(running.certificate))
    assert push(source, f"{running.host}/fraud:3").present_bytes


def test_passwords_come_from_dockers_file(
    tmp_path: Path, registry: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None, a wrong one and the right one; a message never shows it."""
    running = registry(password=True)
    source = image(tmp_path)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    reference = f"{running.host}/fraud:3"
    with pytest.raises(RegistryError, match=f"not authorised.*docker login {running.host}"):
        push(source, reference, insecure=True)
    for password in ("wrong", PASSWORD):
        auth = base64.b64encode(f"muelle:{password}".encode()).decode()
        (tmp_path / "config.json").write_text(
            json.dumps({"auths": {f"https://{running.host}/v1/": {"auth": auth}}})
        )
        if password == PASSWORD:
            assert push(source, reference, insecure=True).sent_bytes
        else:
            with pytest.raises(RegistryError, match="not authorised") as caught:
                push(source, reference, insecure=True)
            assert "wrong" not in str(caught.value)
    assert push(source, reference, insecure=True, login=Login("muelle", PASSWORD)).present_bytes


def test_attached_artifacts_go_along(tmp_path: Path, registry: Start) -> None:
    """A registry that keeps no list of them by itself gets one, under the agreed tag."""
    running = registry()
    layout = image(tmp_path, form="layout")
    digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    kind = "application/vnd.cyclonedx+json"
    reference = f"{running.host}/fraud:3"
    attached = [attach(layout, digest, kind, b'{"n":1}')]
    push(layout, reference, insecure=True)
    attached.append(attach(layout, digest, kind, b'{"n":2}'))
    push(layout, reference, insecure=True)
    push(layout, reference, insecure=True)
    answer = httpx.get(
        f"http://{running.host}/v2/fraud/manifests/{digest.replace(':', '-')}",
        headers={"Accept": "application/vnd.oci.image.index.v1+json"},
        trust_env=False,
    )
    listed = answer.json()["manifests"]
    assert [(e["digest"], e["artifactType"]) for e in listed] == [(a, kind) for a in attached]


def test_a_registry_that_is_away(tmp_path: Path) -> None:
    """Nobody listens: one line with the host."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
        for insecure in (False, True):
            with pytest.raises(RegistryError, match=f"{host}: refuses the connection"):
                push(image(tmp_path), f"{host}/fraud:3", insecure=insecure)


def test_a_damaged_layer_is_not_sent(tmp_path: Path, registry: Start) -> None:
    """It is found before its first byte leaves, and no tag appears."""
    running = registry()
    layout = image(tmp_path, form="layout")
    largest = max((layout / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[600] ^= 1
    largest.write_bytes(raw)
    with pytest.raises(ImageError, match=largest.name):
        push(layout, f"{running.host}/fraud:3", insecure=True)
    tags = httpx.get(f"http://{running.host}/v2/fraud/tags/list", trust_env=False)
    assert tags.status_code == 404


def test_a_name_without_a_host_is_refused(tmp_path: Path) -> None:
    """Nothing is ever sent to a registry that nobody named."""
    with pytest.raises(MuelleError, match="names no registry"):
        push(image(tmp_path), "fraud:3", insecure=True)
