"""`muelle predict`: send one request to a running server and print the answer. No numpy, no model.

Only the standard library's HTTP client: rows go as the file has them, the server reads them.
"""

from __future__ import annotations

import csv
import http.client
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import click

from muelle.cli.command import new_command

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.texts import Texts

DEFAULT_SERVER = "http://127.0.0.1:8080"
_TYPES = {
    ".json": "application/json",
    ".csv": "text/csv",
    ".npy": "application/x-npy",
    ".arrow": "application/vnd.apache.arrow.stream",
    ".arrows": "application/vnd.apache.arrow.stream",
}
_ACCEPT = {"json": "application/json", "csv": "text/csv", "table": "text/csv"}


def command(texts: Texts) -> click.Command:
    """Return the command."""
    return new_command(
        "predict",
        texts,
        run,
        [
            click.Argument(["target"], metavar="URL|NAME"),
            click.Option(
                ["-d", "--data", "source"], required=True, metavar="@FILE|-|TEXT",
                help=texts("help.option.data"),
            ),
            click.Option(["-o", "--output"], type=click.Choice(["json", "csv", "table"]),
                         help=texts("help.option.output")),
            click.Option(["--accept"], metavar="TYPE", help=texts("help.option.accept")),
            click.Option(["--outputs"], metavar="A,B", help=texts("help.option.outputs")),
            click.Option(["--content-type"], metavar="TYPE",
                         help=texts("help.option.content_type")),
            click.Option(["--model-version"], metavar="N",
                         help=texts("help.option.model_version")),
            click.Option(["--server"], metavar="URL", envvar="MUELLE_SERVER",
                         default=DEFAULT_SERVER, show_default=True,
                         help=texts("help.option.server")),
            click.Option(["--timeout-s"], type=click.FloatRange(min=0, min_open=True),
                         default=60.0, show_default=True, help=texts("help.option.timeout")),
        ],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server answered."""

    status: int
    content_type: str
    retry_after: str
    body: bytes


def run(
    cli: Cli,
    target: str,
    source: str,
    output: str | None,
    accept: str | None,
    outputs: str | None,
    content_type: str | None,
    model_version: str | None,
    server: str,
    timeout_s: float,
) -> None:
    """Post the rows, print the answer. An error of the server becomes one line and exit code 1."""
    if output and accept:
        raise click.UsageError(cli.texts("error.output_and_accept"), click.get_current_context())
    body, guessed = read_rows(source)
    url = address(target, server, model_version)
    if outputs:
        url += f"?outputs={quote(outputs, safe=',')}"
    headers = {
        "content-type": content_type or guessed,
        "accept": accept or _ACCEPT[output or "json"],
        "timeout-ms": str(max(1, round(timeout_s * 1000))),
    }
    reply = post(url, body, headers, timeout_s, cli.texts)
    if reply.status >= 300:
        raise click.ClickException(trouble(reply, url, cli.texts))
    _print(cli, reply, table=output == "table")


def read_rows(source: str) -> tuple[bytes, str]:
    """Return the body and its content type: `@file`, `-` or `@-` for stdin, else the text itself.

    Raise OSError when the file cannot be read.
    """
    if source in {"-", "@-"}:
        body = sys.stdin.buffer.read()
        return body, _sniff(body)
    if source.startswith("@"):
        path = Path(source[1:])
        body = path.read_bytes()
        return body, _TYPES.get(path.suffix.lower()) or _sniff(body)
    body = source.encode()
    return body, _sniff(body)


def address(target: str, server: str, version: str | None) -> str:
    """Return the URL to post to, from a model's name or from any URL of the model."""
    if "://" in target:
        parts = urlsplit(target)
        path = parts.path.rstrip("/")
        if not path.startswith("/models/") and not path.endswith(("/predict", "/infer")):
            raise click.BadParameter(
                f"{target} names no model; write {parts.scheme}://{parts.netloc}/models/NAME"
            )
        base = f"{parts.scheme}://{parts.netloc}{path.removesuffix('/predict')}"
    else:
        base = f"{server.rstrip('/')}/models/{quote(target, safe='')}"
    if base.endswith("/infer"):
        return base
    if version:
        base += f"/versions/{quote(version, safe='')}"
    return f"{base}/predict"


def post(url: str, body: bytes, headers: dict[str, str], timeout_s: float, texts: Texts) -> Reply:
    """Send one POST. Raise ClickException, saying what to do, when nobody answers."""
    parts = urlsplit(url)
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    if parts.scheme not in kinds or not parts.hostname:
        raise click.BadParameter(f"{url}: not an http:// or https:// address")
    # A little more than the server's own deadline: its answer says more than our silence.
    connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=timeout_s + 2)
    try:
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return Reply(
            response.status,
            response.headers.get("content-type", ""),
            response.headers.get("retry-after", ""),
            response.read(),
        )
    except TimeoutError as exc:
        text = texts("error.no_answer", url=url, seconds=f"{timeout_s:g}")
        raise click.ClickException(text) from exc
    except (OSError, http.client.HTTPException) as exc:
        where = f"{parts.scheme}://{parts.netloc}"
        reason = getattr(exc, "strerror", None) or exc
        raise click.ClickException(texts("error.no_server", url=where, reason=reason)) from exc
    finally:
        connection.close()


def trouble(reply: Reply, url: str, texts: Texts) -> str:
    """Return the one line for an answer that is an error: what the server said, and its status."""
    import json

    detail = reply.body[:500].decode("utf-8", "replace").strip()
    try:
        document = json.loads(reply.body)
        detail = document.get("detail") or document.get("error") or detail
    except (ValueError, AttributeError):
        pass  # not JSON: a proxy's page, or another kind of server
    text = f"{detail or http.client.responses.get(reply.status, '')} ({url}: {reply.status})"
    if reply.retry_after:
        text += f"; {texts('error.retry_after', seconds=reply.retry_after)}"
    return text


def _print(cli: Cli, reply: Reply, *, table: bool) -> None:
    if table and reply.content_type.startswith("text/csv"):
        head, *rows = list(csv.reader(io.StringIO(reply.body.decode()))) or [[]]
        cli.show_table(head, rows)
    elif reply.content_type.startswith(("application/json", "text/")):
        cli.show(reply.body.decode().rstrip("\n"))
    elif cli.out_is_terminal():
        raise click.ClickException(cli.texts("error.binary", type=reply.content_type))
    else:
        sys.stdout.buffer.write(reply.body)


def _sniff(body: bytes) -> str:
    """Guess the type of rows that have no file name."""
    if body.startswith(b"\x93NUMPY"):
        return _TYPES[".npy"]
    start = body.lstrip()[:1]
    return _TYPES[".json"] if start in {b"{", b"["} else _TYPES[".csv"]
