"""TLS on the one port: models and a hosted application behind the same certificate."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests import models
from tests.serving import Served

APPS = Path(__file__).parents[1] / "apps"
ROWS = [[5.1, 3.5, 1.4, 0.2]]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "muelle test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder


@pytest.fixture(scope="module")
def served(certificate: Path) -> Iterator[Served]:
    """A model and an application, behind TLS."""
    with Served(
        f"{APPS}/shop.py:app",
        f"flowers={models.quiet(models.onnx_classifier).path}",
        "--tls-cert", f"{certificate}/cert.pem", "--tls-key", f"{certificate}/key.pem",
    ) as found:  # fmt: skip
        yield found


def ask(served: Served, certificate: Path, path: str, value: object = None) -> tuple[int, bytes]:
    """Ask with a client that checks the certificate."""
    context = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    connection = http.client.HTTPSConnection("127.0.0.1", served.port, context=context, timeout=30)
    try:
        body = None if value is None else json.dumps(value)
        headers = {"content-type": "application/json"}
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_models_and_the_application_answer(served: Served, certificate: Path) -> None:
    """Both are behind the same certificate, with kept connections and large bodies."""
    status, answer = ask(served, certificate, "/models/flowers/predict", {"instances": ROWS})
    assert status == 200, answer
    label = json.loads(answer)["predictions"][0]["label"]
    status, answer = ask(served, certificate, "/score", {"rows": ROWS})
    assert (status, json.loads(answer)["labels"]) == (200, [label])
    many = {"instances": ROWS * 20_000}
    status, answer = ask(served, certificate, "/models/flowers/predict", many)
    assert (status, len(json.loads(answer)["predictions"])) == (200, 20_000)


def test_plain_text_gets_no_answer(served: Served, certificate: Path) -> None:
    """Who speaks HTTP without TLS gets nothing, and harms nobody."""
    with socket.create_connection(("127.0.0.1", served.port), 10) as plain:
        plain.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
        plain.settimeout(30)
        try:
            assert b"HTTP/1.1" not in plain.recv(1000)
        except ConnectionResetError:
            pass
    assert ask(served, certificate, "/ready")[0] == 200


def test_old_versions_of_tls_are_refused(served: Served) -> None:
    """TLS 1.1 and older do not come to a connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", served.port), 10) as plain,
        pytest.raises((ssl.SSLError, ConnectionResetError)),
    ):
        context.wrap_socket(plain)


def test_the_health_check_speaks_tls(served: Served, certificate: Path) -> None:
    """The image's health check finds it by the same variables."""
    env = {**os.environ, "MUELLE_PORT": str(served.port), "MUELLE_TLS_CERT": str(certificate)}
    done = subprocess.run(
        [sys.executable, "-m", "muelle.healthcheck"], env=env, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tls-cert", "none.pem"), "none.pem cannot be used: No such file"),
        (("--tls-key", "key.pem"), "name the certificate too"),
        (("--tls-cert", "key.pem"), "key.pem cannot be used"),
    ],
)
def test_a_wrong_certificate_is_said(
    certificate: Path, arguments: tuple[str, ...], words: str
) -> None:
    """The server does not start, and one line says which file."""
    model = str(models.quiet(models.onnx_classifier).path)
    done = subprocess.run(
        [sys.executable, "-m", "muelle", "serve", model, "--port", "0", *arguments],
        cwd=certificate, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert words in done.stderr.strip().splitlines()[-1]
