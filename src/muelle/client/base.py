"""What both clients share: addresses, headers, errors, and when to try again. No I/O."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import httpx

from muelle import __version__
from muelle.client.calls import Call, Reply, ServerUnreachable, error_of, retry_after_of
from muelle.client.retry import Retry, Trouble
from muelle.core.errors import ConfigError, MuelleError
from muelle.core.signature import Signature

DEFAULT_URL = "http://127.0.0.1:8080"
BUSY = frozenset({429, 503})


class Base:
    """The settings of a client, and the signatures that it has seen."""

    def __init__(
        self,
        url: str = "",
        *,
        socket: str | None = None,
        token: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 3,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`socket` is a server's admin Unix socket, for management; `token` goes with an admin URL.

        Raise ConfigError when both an URL and a socket are named.
        """
        if socket is not None and url:
            raise ConfigError("name an url or a socket, not both")
        self.where = socket or url or DEFAULT_URL
        self.manages = socket is not None or token is not None
        """Whether it asks the management API; predictions are answered at another address."""
        self._retry = Retry(retries)
        self._chance = chance
        self._signatures: dict[tuple[str, str | None], Signature] = {}
        headers = {"user-agent": f"muelle/{__version__}"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        self._socket = socket
        # No proxy of the environment: what is asked goes to the server that was named, or nowhere.
        self._options: dict[str, Any] = {
            "base_url": "http://muelle" if socket is not None else self.where,
            "headers": headers,
            "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            "trust_env": False,
            "follow_redirects": False,
        }

    def _arguments(self, call: Call[Any]) -> dict[str, Any]:
        return {
            "method": call.method,
            "url": call.path,
            "content": call.body,
            "headers": dict(call.headers),
        }

    def _judge(
        self, call: Call[Any], reply: Reply | None, problem: Exception | None, attempt: int
    ) -> float | None:
        """Return how long to wait before another attempt; None when there is none."""
        trouble: Trouble
        retry_after = None
        if reply is not None:
            if reply.status not in BUSY or reply.status in call.accepts:
                return None
            trouble, retry_after = "busy", retry_after_of(reply)
        elif isinstance(problem, httpx.ConnectError | httpx.ConnectTimeout):
            trouble = "unreachable"
        elif isinstance(problem, httpx.TimeoutException):
            return None  # The time that the caller allowed is over.
        else:
            trouble = "broken"
        return self._retry.delay_s(
            attempt,
            trouble,
            repeatable=call.repeatable,
            chance=self._chance(),
            retry_after_s=retry_after,
        )

    def _result(self, call: Call[Any], reply: Reply) -> Any:
        if reply.status < 400 or reply.status in call.accepts:
            return call.read(reply)
        raise error_of(reply)

    def _unreachable(self, problem: Exception) -> MuelleError:
        what = str(problem) or type(problem).__name__
        return ServerUnreachable(
            f"{self.where}: {what}; is the server running there? (muelle serve prints its address)"
        )


def as_reply(response: httpx.Response) -> Reply:
    """Return an answer without httpx."""
    return Reply(response.status_code, response.headers, response.content)
