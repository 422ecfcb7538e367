"""What `muelle serve` shows while it starts and runs. Not logs: those are for machines.

On a terminal: a spinner, then tables. Elsewhere: one plain line per event, so that a service's
journal stays readable. All of it on stderr.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from muelle import __version__
from muelle.cli.context import rich_table
from muelle.core.events import (
    AppDied,
    AppReady,
    Draining,
    Event,
    Listening,
    TrafficMoved,
    VersionFailed,
    VersionLoading,
    VersionReady,
    VersionUnloaded,
    WorkerDied,
)

if TYPE_CHECKING:
    import tempfile
    from collections.abc import Callable
    from types import TracebackType

    from muelle.cli.context import Cli
    from muelle.core.signature import Signature, TensorSpec
    from muelle.core.status import ModelStatus, VersionStatus

MAX_SHOWN = 5
"""Models whose signature and curl line are shown; the others are counted."""
MAX_INLINE_BODY_CHARS = 4_000
"""A longer example is put into a file: terminals and people dislike such lines."""
_MAX_COLUMNS_CHARS = 60


class ServeScreen:
    """The listener of one server. Called from the server's thread, one event at a time."""

    def __init__(self, cli: Cli) -> None:
        self._cli = cli
        self._texts = cli.texts
        self._console = cli.console() if cli.err_is_terminal() else None
        self._status: Any = None
        self._loading: dict[tuple[str, str], str] = {}
        self._listens = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._show: dict[type[Event], Callable[[Any], None]] = {
            VersionLoading: self._on_loading,
            VersionReady: self._on_ready,
            VersionFailed: self._on_failed,
            WorkerDied: self._on_died,
            Listening: self._on_listening,
            Draining: self._on_draining,
            TrafficMoved: self._on_moved,
            VersionUnloaded: self._on_unloaded,
            AppReady: self._on_app_ready,
            AppDied: self._on_app_died,
        }

    def __enter__(self) -> ServeScreen:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the spinner and the example files away."""
        self._spin("")
        if self._folder is not None:
            self._folder.cleanup()

    def __call__(self, event: Event) -> None:
        """Show one event; an event of a kind that we do not know is passed over."""
        show = self._show.get(type(event))
        if show is not None:
            show(event)

    def _on_loading(self, event: VersionLoading) -> None:
        text = self._texts(
            "serve.loading", model=event.model, version=event.version, artifact=event.artifact
        )
        self._loading[event.model, event.version] = text
        if self._console is None:
            self._line(text)
        else:
            self._spin(text)

    def _on_ready(self, event: VersionReady) -> None:
        self._done(event.model, event.version)
        self._line(
            self._texts(
                "serve.ready",
                model=event.model,
                version=event.version,
                seconds=f"{event.seconds:.2f}",
            )
        )

    def _on_failed(self, event: VersionFailed) -> None:
        self._done(event.model, event.version)
        self._warn(
            self._texts(
                "serve.failed", model=event.model, version=event.version, reason=event.reason
            )
        )

    def _on_died(self, event: WorkerDied) -> None:
        key = "serve.died" if event.restart_in_s is not None else "serve.quarantined"
        self._warn(
            self._texts(
                key,
                model=event.model,
                version=event.version,
                worker=event.worker,
                reason=event.reason,
                seconds=f"{event.restart_in_s or 0:.1f}",
            )
        )

    def _on_draining(self, event: Draining) -> None:
        self._line(self._texts("serve.draining", waiting=event.waiting))

    def _on_moved(self, event: TrafficMoved) -> None:
        if not self._listens:
            return  # At the start every model's traffic goes from nowhere to somewhere.
        if not event.shares:
            self._warn(self._texts("serve.nobody", model=event.model))
            return
        parts = [f"{v} {share:.3g}" for v, share in ((v, 100 * s) for v, s in event.shares.items())]
        shares = ", ".join(f"{part} %" for part in parts)
        if len(event.shares) == 1:
            (shares,) = event.shares
        text = self._texts("serve.moved", model=event.model, shares=shares)
        if event.shadow:
            text += f"; {self._texts('serve.shadow', version=event.shadow)}"
        self._line(text)

    def _on_unloaded(self, event: VersionUnloaded) -> None:
        text = self._texts(
            "serve.unloaded", model=event.model, version=event.version, reason=event.reason
        )
        self._line(text)

    def _on_app_ready(self, event: AppReady) -> None:
        self._line(
            self._texts(
                "serve.app_ready",
                app=event.app,
                kind=event.kind.upper(),
                workers=event.workers,
                seconds=f"{event.seconds:.2f}",
            )
        )

    def _on_app_died(self, event: AppDied) -> None:
        self._warn(
            self._texts(
                "serve.app_died",
                worker=event.worker,
                reason=event.reason,
                seconds=f"{event.restart_in_s:.1f}",
            )
        )

    def _on_listening(self, event: Listening) -> None:
        self._spin("")
        self._listens = True
        url = reachable(event.url)
        self._line(self._texts("serve.listening", version=__version__, url=url), style="bold green")
        if event.app:
            self._line(self._texts("serve.app", app=event.app, url=url))
        for model in event.models[:MAX_SHOWN]:
            version = model.default_version
            if version is not None and version.signature is not None:
                self._signature(model, version, version.signature)
        if len(event.models) > MAX_SHOWN:
            more = len(event.models) - MAX_SHOWN
            self._line(self._texts("serve.more", count=more, url=f"{url}/models"))
        # An app has its own pages there; ours have moved.
        docs = f"{url}/muelle/docs" if event.moved else f"{url}/docs"
        self._line(self._texts("serve.docs", url=docs))
        for model in event.models[:MAX_SHOWN]:
            line = self._curl(url, model)
            if line:
                if self._console is not None:
                    self._line(self._texts("serve.try"), style="dim")
                # Never through rich: it would break the line, and pasting needs it whole.
                self._cli.say(line)
        if self._console is not None:
            self._line(self._texts("serve.stop"), style="dim")

    def _signature(self, model: ModelStatus, version: VersionStatus, signature: Signature) -> None:
        if self._console is None:
            inputs, outputs = (
                ", ".join(f"{s.name} {s.describe()}" for s in specs)
                for specs in (signature.inputs, signature.outputs)
            )
            self._line(f"{model.name} {version.version} ({version.format}): {inputs} -> {outputs}")
            return
        title = self._texts("serve.model", model=model.name, version=version.version)
        self._line(f"\n{title} · {version.format}", style="bold")
        head = [self._texts(f"table.{k}") for k in ("direction", "tensor", "type", "columns")]
        self._console.print(rich_table(head, signature_rows(signature, self._texts)))

    def _curl(self, url: str, model: ModelStatus) -> str:
        version = model.default_version
        if version is None or version.signature is None or version.example is None:
            return ""
        from muelle.protocols.native import example_body

        body = orjson.dumps(example_body(version.signature, version.example)).decode()
        if len(body) > MAX_INLINE_BODY_CHARS:
            if self._folder is None:
                import tempfile  # rare, and it costs each start some milliseconds

                self._folder = tempfile.TemporaryDirectory(prefix="muelle-")
            file = Path(self._folder.name, f"{model.name}.json")
            file.write_text(body, "utf-8")
            body = f"@{file}"
        return curl_line(f"{url}/models/{model.name}/predict", body)

    def _done(self, model: str, version: str) -> None:
        self._loading.pop((model, version), None)
        if self._console is not None:
            self._spin(next(iter(self._loading.values()), ""))

    def _spin(self, text: str) -> None:
        if self._console is None:
            return
        if self._status is not None:
            self._status.stop()
            self._status = None
        if text:
            self._status = self._console.status(_plain(text))
            self._status.start()

    def _line(self, text: str, style: str = "") -> None:
        if self._console is None:
            self._cli.say(text)
        else:
            self._console.print(_plain(text), style=style or None)

    def _warn(self, text: str) -> None:
        self._line(self._texts("serve.warning", text=text), style="yellow")


def curl_line(url: str, body: str) -> str:
    """Return one line for a POSIX shell that posts a JSON body (or `@file`)."""
    socket_path, colon, path = url.removeprefix("unix:").partition("/models/")
    where = [url]
    if colon and url.startswith("unix:"):
        where = ["--unix-socket", socket_path, f"http://localhost/models/{path}"]
    words = ["curl", "-s", *where, "-H", "content-type: application/json", "-d", body]
    return shlex.join(words)


def reachable(url: str) -> str:
    """Return an address that this machine's own clients can use: a wildcard becomes loopback."""
    return url.replace("//0.0.0.0", "//127.0.0.1").replace("//[::]", "//[::1]")


def signature_rows(signature: Signature, texts: Any) -> list[tuple[str, str, str, str]]:
    """Return a table's rows: direction, tensor, type and shape, names of columns or classes."""
    sides = ((texts("table.input"), signature.inputs), (texts("table.output"), signature.outputs))
    return [(side, s.name, s.describe(), _names(s, texts)) for side, specs in sides for s in specs]


def _names(spec: TensorSpec, texts: Any) -> str:
    text = ", ".join(map(str, spec.columns or spec.classes))
    if len(text) > _MAX_COLUMNS_CHARS:
        text = f"{text[: _MAX_COLUMNS_CHARS - 1]}…"
    return texts("table.optional", names=text).strip() if spec.optional else text


def _plain(text: str) -> Any:
    """Return rich's text without markup: names such as `[x]` must come out as they are."""
    from rich.text import Text

    return Text(text)
