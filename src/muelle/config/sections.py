"""Every setting of `muelle serve`, with its type, range and default. Not where values come from."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PositiveInt = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: strict and immutable."""


class ListenConfig(Section, frozen=True):
    """Where the server listens. Port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    unix_socket: str = ""
    """Path of a Unix socket to listen on, in place of host and port."""
    grpc_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """One more port, for gRPC clients that expect one of their own; 0 for none. (The port speaks
    HTTP as well, as the other one speaks gRPC.)"""
    tls_cert: str = ""
    """File with the server's certificate and those that it was issued by (PEM); "" for no TLS."""
    tls_key: str = ""
    """File with its private key (PEM); "" where it is in the certificate's file."""


class LimitsConfig(Section, frozen=True):
    """The one table of limits on what a client may send and how slowly."""

    header_bytes: PositiveInt = 16 * 1024
    header_line_bytes: PositiveInt = 8 * 1024
    header_count: PositiveInt = 100
    header_s: Seconds = 10.0
    """From connect, or from the first byte of a request, to the end of its headers."""
    idle_s: Seconds = 75.0
    """A kept connection without a request."""
    body_bytes: PositiveInt = 64 * 1024 * 1024
    body_s: Seconds = 60.0
    body_rate_bytes_per_s: PositiveInt = 1024
    """Least mean rate of a body once it has taken body_grace_s."""
    body_grace_s: Seconds = 5.0
    chunks: PositiveInt = 65_536
    write_stall_s: Seconds = 30.0
    json_depth: Annotated[int, Meta(ge=4, le=512)] = 64
    output_bytes: PositiveInt = 1024 * 1024 * 1024
    """Largest output memory that one batch may ask for."""
    connections: PositiveInt = 10_000


class BatchingConfig(Section, frozen=True):
    """How one model's requests are grouped. Sizes in rows, except max_queue (requests)."""

    max_batch_size: PositiveInt = 32
    max_delay_ms: Annotated[float, Meta(ge=0)] = 0.0
    max_queue: PositiveInt = 1_000
    max_queue_bytes: PositiveInt = 512 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.max_batch_size == 1 and self.max_delay_ms > 0:
            raise ValueError("max_delay_ms has no effect while max_batch_size is 1")


class WorkersConfig(Section, frozen=True):
    """The processes of one model version."""

    workers: PositiveInt = 1
    threads: PositiveInt = 1
    """Threads that one batch may use inside the model's library."""
    isolation: Literal["process", "none"] = "process"
    memory_limit_mb: Annotated[int, Meta(ge=0)] = 0
    """Private memory of one worker, 0 for no limit."""
    load_timeout_s: Seconds = 600.0
    run_limit_s: Annotated[float, Meta(ge=0)] = 0.0
    """How long one batch may compute before its worker counts as hung and is replaced. 0 takes a
    third of the request timeout, so that a batch that hung once can run again in time."""


class LifecycleConfig(Section, frozen=True):
    """When versions come and go while the server runs."""

    control: Literal["none", "poll", "explicit"] = "poll"
    """What makes the server load and unload: nothing after the start, changes of the store or of
    the folders, or only the management API."""
    poll_s: Seconds = 1.0
    """How often folders and the store are looked at."""
    update: Literal["availability", "resource"] = "availability"
    """Whether the new version loads before the old one goes, or the old one goes first: for models
    that fit only once."""
    keep_warm_s: Annotated[float, Meta(ge=0)] = 600.0
    """How long a version that has lost its traffic stays loaded, so that going back is instant."""
    memory_limit_mb: Annotated[int, Meta(ge=0)] = 0
    """Memory of the server with all its workers, 0 for no limit."""
    on_demand: bool = False
    """Load a version when it is first asked for, and unload idle ones when memory is short."""


class AdminConfig(Section, frozen=True):
    """Where the management API listens. The Unix socket is for the server's own user and root."""

    socket: str = ""
    """Path of the Unix socket; empty for one in the runtime folder of the user; `none` for none."""
    listen: str = ""
    """`[HOST:]PORT` of a TCP listener, empty for none; this machine only, unless a host is named.
    It needs a token."""
    token_file: str = ""
    """File whose first line is the token that the TCP listener asks for."""


class AppConfig(Section, frozen=True):
    """A web application of the user's beside the models."""

    target: str = ""
    """`FILE.py:NAME` or `package.module:NAME`, with `()` behind a factory; empty for none."""
    workers: PositiveInt = 1
    """Processes of the application."""
    threads: PositiveInt = 8
    """Threads of a WSGI application, in each process."""
    timeout_s: Seconds = 60.0
    """Until an answer begins; a body that is streamed may take longer."""
    concurrency: PositiveInt = 100
    """Requests that one process works on at a time; more get 503."""
    memory_limit_mb: Annotated[int, Meta(ge=0)] = 0
    """Private memory of one process, 0 for no limit."""
    path: str = "/"
    """The folder of paths that is the application's."""

    def __post_init__(self) -> None:
        parts = self.path.split("/")
        folders = self.path == "/" or all(part.strip(".") for part in parts[1:])
        if parts[0] or len(parts) < 2 or not folders:
            raise ValueError(f"path {self.path!r} is not like / or /shop")
        if parts[1] in ("v2", "models", "muelle"):
            raise ValueError(f"path {self.path!r}: /{parts[1]} is the server's own")


class SecurityConfig(Section, frozen=True):
    """What a model must bring along before it is used."""

    require_signature: tuple[str, ...] = ()
    """Files with public keys: nothing is loaded that none of them has signed. Empty: no signature
    is asked for."""


class ServeConfig(Section, frozen=True):
    """Everything `muelle serve` needs to know."""

    models: tuple[str, ...] = ()
    """`PATH` or `NAME=PATH`; a folder is a repository `<model>/<version>/<artifact>`."""
    name: str | None = None
    """The model's name, when one file is served."""
    store: str = ""
    """Folder of the store to serve from; empty for the user's own when no path is named."""
    select: tuple[str, ...] = ()
    """Which models of the store to serve, `NAME` or `NAME@LABEL`; empty for all."""
    timeout_s: Seconds = 30.0
    """A request's deadline, unless the caller sets a shorter one."""
    trust: bool = False
    """Load formats that run code when loaded (pickle, joblib, Python files)."""
    drain_s: Seconds = 25.0
    """How long accepted work may take after SIGTERM."""
    json_nan: Literal["error", "null", "string"] = "error"
    """What JSON answers do with NaN and infinity, for which JSON has no token."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    listen: ListenConfig = ListenConfig()
    limits: LimitsConfig = LimitsConfig()
    batching: BatchingConfig = BatchingConfig()
    worker: WorkersConfig = WorkersConfig()
    lifecycle: LifecycleConfig = LifecycleConfig()
    admin: AdminConfig = AdminConfig()
    app: AppConfig = AppConfig()
    security: SecurityConfig = SecurityConfig()
