"""Speak with one registry: who we are, blobs put, manifests put, and what went wrong in one line.

Source: OCI distribution specification 1.1, "Push"; Docker's token authentication. Follows no
address that leads to another host. Not for pulling, and not for choosing what is sent (`push`).
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import httpx

from muelle.core.errors import RegistryError
from muelle.packaging.oci.blobs import Blob, digest_of
from muelle.packaging.oci.layout import DOCUMENT_BYTES
from muelle.packaging.oci.login import Login

_CONNECT_S = 10.0
_READ_S = 300.0
"""A registry hashes a whole blob before it answers."""

_TRIES = 3
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_CERTIFICATES = Path("/etc/docker/certs.d")

Told = Callable[[int], None]
"""Gets the number of bytes that have been sent so far."""


class Registry:
    """One registry and one repository in it. Owned by one push, used by one thread; close it."""

    def __init__(
        self,
        host: str,
        repository: str,
        *,
        insecure: bool = False,
        login: Login | None = None,
        token_hosts: Sequence[str] = (),
    ) -> None:
        self.host, self.repository = host, repository
        self._login = login
        self._insecure = insecure
        self._authorization = ""
        self._client = httpx.Client(
            trust_env=False,
            verify=_trust(host, insecure),
            timeout=httpx.Timeout(_READ_S, connect=_CONNECT_S),
            headers={"User-Agent": "muelle"},
        )
        self._origin = httpx.URL(f"https://{host}")
        self._token_hosts = {self._origin.host, *token_hosts}

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def open(self) -> None:
        """Find out how the registry speaks, and who it wants us to be. Raise RegistryError."""
        try:
            answer = self._client.get(self._url("/v2/"))
        except httpx.TransportError as exc:
            if not self._insecure:
                raise self._unreached(exc) from exc
            self._origin = httpx.URL(f"http://{self.host}")
            answer = self._send("GET", "/v2/")
        if answer.status_code == 401:
            self._authenticate(answer)
        elif answer.status_code not in (200, 404):
            raise self._refused(answer, "the registry")

    def has_blob(self, digest: str, size: int) -> bool:
        """Whether the repository holds a blob of that digest and size."""
        answer = self._ask("HEAD", f"/blobs/{digest}")
        if answer.status_code in (301, 302, 307, 308):
            return True  # it lies in another storage, whose address is not for us to follow
        if answer.status_code == 404:
            return False
        if answer.status_code != 200:
            raise self._refused(answer, digest)
        return answer.headers.get("content-length") in (None, str(size))

    def put_blob(self, blob: Blob, digest: str, told: Told) -> None:
        """Send a blob, anew when the connection breaks. Raise RegistryError."""
        for left in reversed(range(_TRIES)):
            try:
                self._put_blob(blob, digest, told)
                return
            except _Broken as exc:
                if not left:
                    raise RegistryError(str(exc)) from exc

    def put_manifest(self, raw: bytes, reference: str, media_type: str) -> bool:
        """Send a manifest under a tag or its digest. Return whether its subject was understood.

        Raise RegistryError, also when what the registry took has another digest.
        """
        answer = self._ask(
            "PUT", f"/manifests/{reference}", content=raw, headers={"Content-Type": media_type}
        )
        if answer.status_code != 201:
            raise self._refused(answer, f"the manifest {reference}")
        kept = answer.headers.get("docker-content-digest") or ""
        if not kept:
            kept = digest_of(self.manifest(reference) or b"")
        if kept != digest_of(raw):
            raise RegistryError(
                f"{self.host}: keeps {reference} as {kept[:100]}, not as {digest_of(raw)}"
            )
        return "oci-subject" in answer.headers

    def manifest(self, reference: str) -> bytes | None:
        """Return the bytes of an index or a manifest, None where there is none."""
        kinds = (
            "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"
        )
        answer = self._ask("GET", f"/manifests/{reference}", headers={"Accept": kinds})
        if answer.status_code == 404:
            return None
        if answer.status_code != 200 or len(answer.content) > DOCUMENT_BYTES:
            raise self._refused(answer, f"the manifest {reference}")
        return answer.content

    # --- one upload ---

    def _put_blob(self, blob: Blob, digest: str, told: Told) -> None:
        begun = self._ask("POST", "/blobs/uploads/")
        if begun.status_code != 202:
            raise self._refused(begun, digest)
        where = self._same_host(begun.headers.get("location", ""))
        headers = {
            "Content-Length": str(blob.size),
            "Content-Type": "application/octet-stream",
            **self._who(),
        }
        try:
            done = self._client.put(
                where.copy_merge_params({"digest": digest}),
                content=_counted(blob, told),
                headers=headers,
            )
        except httpx.TransportError as exc:
            reason = str(exc) or type(exc).__name__
            raise _Broken(f"{self.host}: the connection broke in {digest}: {reason}") from exc
        if done.status_code != 201:
            raise self._refused(done, digest)

    def _same_host(self, location: str) -> httpx.URL:
        try:
            where = self._origin.join(location)
        except (httpx.InvalidURL, ValueError) as exc:
            raise RegistryError(f"{self.host}: names no place for an upload") from exc
        if not location or (where.scheme, where.netloc) != (
            self._origin.scheme,
            self._origin.netloc,
        ):
            raise RegistryError(
                f"{self.host}: sends uploads to {where.scheme}://{where.host}, which is another "
                "place; set the address that the registry shows to clients"
            )
        return where

    # --- asking ---

    def _url(self, path: str) -> httpx.URL:
        return self._origin.join(path)

    def _who(self) -> dict[str, str]:
        return {"Authorization": self._authorization} if self._authorization else {}

    def _ask(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Ask about the repository; once more with a fresh token when the old one ran out."""
        path = f"/v2/{self.repository}{path}"
        answer = self._send(method, path, content=content, headers=headers)
        if answer.status_code == 401:
            self._authenticate(answer)
            answer = self._send(method, path, content=content, headers=headers)
        return answer

    def _send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        try:
            return self._client.request(
                method,
                self._url(path),
                content=content,
                headers={**(headers or {}), **self._who()},
            )
        except httpx.TransportError as exc:
            raise self._unreached(exc) from exc

    def _authenticate(self, answer: httpx.Response) -> None:
        """Take the way in that a 401 names. Raise RegistryError."""
        kind, _, rest = answer.headers.get("www-authenticate", "").partition(" ")
        if kind.lower() == "basic" and self._login is not None:
            if self._authorization == self._login.basic:
                raise self._refused(answer, self.repository)
            self._authorization = self._login.basic
        elif kind.lower() == "bearer":
            self._authorization = f"Bearer {self._token(dict(_CHALLENGE.findall(rest)))}"
        else:
            raise self._refused(answer, self.repository)

    def _token(self, challenge: Mapping[str, str]) -> str:
        try:
            realm = httpx.URL(challenge.get("realm", ""))
        except httpx.InvalidURL:
            realm = httpx.URL("")
        if realm.host not in self._token_hosts or realm.scheme not in (
            "https",
            self._origin.scheme,
        ):
            raise RegistryError(
                f"{self.host}: sends logins to {realm.scheme}://{realm.host}; passwords go to the "
                "registry's own host only"
            )
        wanted = {"scope": f"repository:{self.repository}:pull,push"}
        if "service" in challenge:
            wanted["service"] = challenge["service"]
        headers = {"Authorization": self._login.basic} if self._login is not None else {}
        try:
            answer = self._client.get(realm.copy_merge_params(wanted), headers=headers)
            found = answer.json() if answer.status_code == 200 else {}
        except httpx.TransportError as exc:
            raise self._unreached(exc) from exc
        except ValueError:
            found = {}
        token = (found.get("token") or found.get("access_token")) if isinstance(found, dict) else ""
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise self._refused(answer, self.repository)
        return token

    # --- trouble ---

    def _unreached(self, exc: httpx.TransportError) -> RegistryError:
        text = str(exc)
        if "WRONG_VERSION_NUMBER" in text.upper() or "wrong version number" in text:
            why = "does not speak TLS; where its network is trusted, use --insecure-registry"
        elif "CERTIFICATE_VERIFY_FAILED" in text:
            why = (
                "its certificate is not trusted here; put its authority's into "
                f"{_CERTIFICATES}/{self.host}/ca.crt, or into the system's"
            )
        elif "refused" in text.lower():
            why = "refuses the connection; is the registry running there?"
        elif isinstance(exc, httpx.TimeoutException):
            why = "does not answer in time"
        else:
            why = f"cannot be reached: {text or type(exc).__name__}"
        return RegistryError(f"{self.host}: {why}")

    def _refused(self, answer: httpx.Response, what: str) -> RegistryError:
        where = f"{self.host}/{self.repository}"
        told = _told_reason(answer)
        match answer.status_code:
            case 401:
                return RegistryError(
                    f"{where}: not authorised{told}; log in with docker login {self.host}"
                )
            case 403:
                return RegistryError(f"{where}: this login may not write there{told}")
            case 413:
                return RegistryError(f"{where}: {what} is larger than the registry takes{told}")
            case status:
                return RegistryError(f"{where}: {what} is refused with status {status}{told}")


class _Broken(RegistryError):
    """The connection ended in the middle: the same blob may be sent once more."""


def _counted(blob: Blob, told: Told) -> Iterator[bytes]:
    sent = 0
    for piece in blob.chunks():
        yield piece
        sent += len(piece)
        told(sent)


def _told_reason(answer: httpx.Response) -> str:
    """Return what a registry says of an error, made fit for a terminal."""
    try:
        first = answer.json()["errors"][0]
        text = f"{first.get('code', '')} {first.get('message', '')}"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return ""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return f" ({' '.join(clean.split())[:200]})"


def _trust(host: str, insecure: bool) -> ssl.SSLContext:
    """Return which certificates are believed: the system's, and what Docker has for a host."""
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    for path in sorted((_CERTIFICATES / host).glob("*.crt")):
        try:
            context.load_verify_locations(path)
        except (OSError, ssl.SSLError) as exc:
            raise RegistryError(f"{path}: no certificate can be read from it") from exc
    return context
