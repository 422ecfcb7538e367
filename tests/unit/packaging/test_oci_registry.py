"""Registries that break off, lie, or send us elsewhere: a real HTTP server plays them."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from muelle.core.errors import MuelleError, RegistryError
from muelle.packaging.oci import push
from muelle.packaging.oci.login import Login, read_login
from tests.unit.packaging.oci_samples import small_image

Tricks = dict[str, Any]
LOGIN = Login("muelle", "s3cret pass")


class Player(BaseHTTPRequestHandler):
    """A registry of a few lines, which plays the tricks that a test wants."""

    protocol_version = "HTTP/1.1"
    tricks: Tricks
    asked: list[tuple[str, str, str]]

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        """Send an answer."""
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def begin(self) -> bytes:
        """Note what was asked; return its body."""
        length = int(self.headers.get("Content-Length") or 0)
        if self.command == "PUT" and self.tricks.get("broken", 0):
            self.tricks["broken"] -= 1
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.shutdown(2)
            raise ConnectionAbortedError
        body = self.rfile.read(length)
        self.asked.append((self.command, self.path, self.headers.get("Authorization", "")))
        return body

    def play(self) -> None:
        """Answer one request."""
        try:
            body = self.begin()
        except ConnectionAbortedError:
            return
        host = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
        if self.path.startswith("/token"):
            self.answer(200, body=json.dumps({"token": self.tricks.get("token", "t0")}).encode())
        elif "realm" in self.tricks and "Bearer t0" not in self.headers.get("Authorization", ""):
            realm = self.tricks["realm"].replace("HOST", host)
            self.answer(401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'})
        elif self.path == "/v2/":
            self.answer(self.tricks.get("root", 200))
        elif self.command == "HEAD":
            self.answer(self.tricks.get("head", 404))
        elif self.command == "POST":
            place = self.tricks.get("location", "HOST/v2/x/up?_state=a%3D").replace("HOST", host)
            self.answer(202, {"Location": place} if place else {})
        elif "/manifests/" in self.path:
            digest = self.tricks.get("digest") or "sha256:" + hashlib.sha256(body).hexdigest()
            self.answer(201, {"Docker-Content-Digest": digest, "OCI-Subject": "x"})
        else:
            reason = {"errors": [{"code": "DENIED", "message": "no\x1b[2J\nroom"}]}
            self.answer(self.tricks.get("put", 201), body=json.dumps(reason).encode())

    do_GET = do_HEAD = do_POST = do_PUT = play


Play = Callable[..., tuple[str, list[tuple[str, str, str]]]]


@pytest.fixture
def play() -> Iterator[Play]:
    """Start a registry that plays tricks; give its host and what it was asked."""
    servers: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(**tricks: Any) -> tuple[str, list[tuple[str, str, str]]]:
        asked: list[tuple[str, str, str]] = []
        kind = type("Playing", (Player,), {"tricks": tricks, "asked": asked})
        server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"127.0.0.1:{server.server_port}", asked

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests is not logged in anywhere."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))


def pushed(folder: Path, host: str, login: Login | None = None) -> None:
    """Push a small image."""
    push(small_image(folder).path, f"{host}/x:1", insecure=True, login=login)


def test_an_honest_registry_is_satisfied(tmp_path: Path, play: Play) -> None:
    """Negative control: nothing is refused, the upload's own state is kept, all goes in order."""
    host, asked = play()
    pushed(tmp_path, host)
    assert [method for method, _, _ in asked] == ["GET", *["HEAD", "POST", "PUT"] * 2, "PUT"]
    uploads = [path for method, path, _ in asked if method == "PUT"][:-1]
    assert all("_state=a%3D" in path and "digest=sha256" in path for path in uploads)


@pytest.mark.parametrize(
    ("tricks", "reason"),
    [
        ({"location": "http://169.254.169.254/x"}, "sends uploads to http://169.254.169.254"),
        ({"location": "https://HOST/x".replace("HOST", "127.0.0.1")}, "sends uploads to https://"),
        ({"location": ""}, "sends uploads to"),
        ({"location": "http://["}, "uploads|no place"),
        ({"digest": "sha256:" + "0" * 64}, "keeps 1 as sha256:000"),
        ({"put": 403}, "may not write there .DENIED no .2J room"),
        ({"put": 413}, "larger than the registry takes"),
        ({"put": 507}, "is refused with status 507"),
        ({"root": 500}, "status 500"),
        ({"realm": "http://other.example/token"}, "sends logins to http://other.example"),
        ({"realm": "ftp://127.0.0.1/token"}, "sends logins to ftp://"),
        ({"realm": "HOST/token", "token": "a\nb"}, "not authorised|status"),
        ({"realm": ""}, "sends logins to"),
    ],
)
def test_tricks_are_refused_in_one_line(
    tmp_path: Path, play: Play, tricks: Tricks, reason: str
) -> None:
    """Only the registry that was named gets anything, and the line says what is wrong."""
    host, _ = play(**tricks)
    with pytest.raises(RegistryError, match=reason) as caught:
        pushed(tmp_path, host, LOGIN)
    assert str(caught.value).isprintable() and "s3cret" not in str(caught.value)


def test_blobs_are_sent_anew_when_the_connection_breaks(tmp_path: Path, play: Play) -> None:
    """Twice in the middle of a body is borne; a third time is told."""
    host, asked = play(broken=2)
    pushed(tmp_path, host)
    assert sum(method == "POST" for method, _, _ in asked) == 4
    host, _ = play(broken=3)
    with pytest.raises(RegistryError, match="the connection broke in sha256:"):
        pushed(tmp_path, host)


def test_a_token_is_fetched_with_the_password_and_used_after(tmp_path: Path, play: Play) -> None:
    """The password goes to the token's address alone; everything else carries the token."""
    host, asked = play(realm="HOST/token")
    pushed(tmp_path, host, LOGIN)
    basic = "Basic " + base64.b64encode(b"muelle:s3cret pass").decode()
    who = {path.partition("?")[0]: authorization for _, path, authorization in asked}
    assert who.pop("/token") == basic
    assert who.pop("/v2/") == ""
    assert set(who.values()) == {"Bearer t0"}
    assert any("scope=repository%3Ax%3Apull%2Cpush" in path for _, path, _ in asked)


def test_blobs_in_another_storage_count_as_there(tmp_path: Path, play: Play) -> None:
    """A redirect answers whether the blob is there; it is not followed."""
    host, asked = play(head=307)
    pushed(tmp_path, host)
    assert [method for method, _, _ in asked] == ["GET", "HEAD", "HEAD", "PUT"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"auths":{"r.local:5000":{"auth":"YTpiOmM="}}}', Login("a", "b:c")),
        ('{"auths":{"https://r.local:5000/v2/":{"username":"a","password":"p"}}}', Login("a", "p")),
        ('{"auths":{"r.local":{"auth":"YTpi"}}}', None),
        ('{"auths":{"r.local:5000":{}},"credsStore":"x"}', None),
        ('{"auths":[]}', None),
        ("[]", None),
    ],
)
def test_logins_are_read_for_their_own_host(tmp_path: Path, text: str, found: Login | None) -> None:
    """In both ways of writing; another port is another host."""
    (tmp_path / "config.json").write_text(text)
    assert read_login("r.local:5000", tmp_path / "config.json") == found
    assert "b:c" not in repr(found)


@pytest.mark.parametrize(
    "text", ["{", '{"auths":{"r":{"auth":"%%%"}}}', '{"auths":{"r":{"auth":"/w=="}}}']
)
def test_a_broken_login_file_is_named(tmp_path: Path, text: str) -> None:
    """Not taken for no login: the push would fail for another reason."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(MuelleError, match=r"config\.json"):
        read_login("r", tmp_path / "config.json")
    assert read_login("r", tmp_path / "none.json") is None
