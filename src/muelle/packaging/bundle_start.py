"""Start the server that came out of a bundle, and write what others need to start it.

`start` (a script), `muelle.service` (for systemd), `server.pid` and `server.log`; and the texts of
the installer. Not for installing (`install_server`). Standard library only: a copy of this file
travels in every bundle.
"""

from __future__ import annotations

import http.client
import os
import pwd
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

if __package__:
    from muelle.packaging import bundle_format as form
else:  # In a bundle they lie side by side.
    import bundle_format as form  # type: ignore[import-not-found,no-redef]

Say = Callable[[str], None]
_POLL_S = 0.2
_PLAIN = re.compile(r"[A-Za-z0-9_/.:=+-]+")
_OURS = re.compile(r"(MUELLE|PYTHON|PIP|VIRTUAL_ENV)")

_EN = {
    "about": "A bundle of models with the server that serves them.",
    "help.install-server": "Make a server of this bundle, and start it.",
    "help.check": "Read the whole bundle and say whether it is as it was made.",
    "help.bundle": "The bundle, when Python was given a folder.",
    "help.to": "Folder of the server. Default: muelle-server, here.",
    "help.host": "Address to listen on. Default: this machine only.",
    "help.port": "Port to listen on. Default: 8080.",
    "help.no_start": "Install, and do not start.",
    "help.foreground": "Run the server here, until Ctrl-C.",
    "name_it": "name the bundle",
    "checking": "checking {name} ...",
    "whole": "{name}: whole, {n} members, SHA-256 of its index {sha256}",
    "environment": "installing {n} packages ...",
    "environment_there": "the packages are installed already",
    "importing": "taking {n} versions into the store ...",
    "waiting": "starting the server, waiting for {url}/ready ...",
    "running": "the server runs on {url}; log: {log}; stop it: kill {pid}",
    "running_already": "the server runs already on {url} (process {pid}); log: {log}",
    "running_earlier": "the server on {url} still runs with the earlier packages; to change over: "
    "kill {pid}; {start}",
    "not_started": "installed; start it: {start}",
    "systemd": "to start it with the machine: sudo cp {unit} /etc/systemd/system/muelle.service && "
    "sudo systemctl enable --now muelle",
}
_ES = {
    "about": "Un paquete de modelos con el servidor que los sirve.",
    "help.install-server": "Crear un servidor con este paquete y arrancarlo.",
    "help.check": "Leer el paquete entero y decir si está como se hizo.",
    "help.bundle": "El paquete, cuando a Python se le dio una carpeta.",
    "help.to": "Carpeta del servidor. Por defecto: muelle-server, aquí.",
    "help.host": "Dirección en la que escuchar. Por defecto: solo esta máquina.",
    "help.port": "Puerto en el que escuchar. Por defecto: 8080.",
    "help.no_start": "Instalar sin arrancar.",
    "help.foreground": "Ejecutar el servidor aquí, hasta Ctrl-C.",
    "name_it": "indique el paquete",
    "checking": "comprobando {name} ...",
    "whole": "{name}: completo, {n} miembros, SHA-256 de su índice {sha256}",
    "environment": "instalando {n} bibliotecas ...",
    "environment_there": "las bibliotecas ya están instaladas",
    "importing": "llevando {n} versiones al almacén ...",
    "waiting": "arrancando el servidor, esperando a {url}/ready ...",
    "running": "el servidor funciona en {url}; registro: {log}; para pararlo: kill {pid}",
    "running_already": "el servidor ya funciona en {url} (proceso {pid}); registro: {log}",
    "running_earlier": "el servidor en {url} funciona aún con las bibliotecas anteriores; para "
    "cambiar: kill {pid}; {start}",
    "not_started": "instalado; para arrancarlo: {start}",
    "systemd": "para que arranque con la máquina: sudo cp {unit} "
    "/etc/systemd/system/muelle.service && sudo systemctl enable --now muelle",
}

_UNIT = """\
# Written by muelle install-server. Settings: {folder_text}/muelle.toml
[Unit]
Description=Muelle, serving models from {folder_text}
After=network.target

[Service]
User={user}
RuntimeDirectory=muelle
RuntimeDirectoryMode=0700
Environment=XDG_RUNTIME_DIR=/run/muelle
WorkingDirectory={folder}
ExecStart={command}
Restart=on-failure
RestartSec=2
KillMode=mixed
TimeoutStopSec=60
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ReadWritePaths={store}
ProtectHome=read-only
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""


class StartError(form.BundleError):
    """The server does not start: one line that says why, and where its log is."""


class Texts:
    """What the installer says, in one language."""

    def __init__(self, language: str) -> None:
        self._found = _ES if language == "es" else _EN

    def __call__(self, key: str, **values: object) -> str:
        """Return a text with its places filled."""
        return self._found[key].format(**values)


def language_of(env: Mapping[str, str]) -> str:
    """Return `en` or `es`: the first variable that is set decides."""
    for name in ("MUELLE_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if env.get(name):
            return "es" if env[name].lower().startswith("es") else "en"
    return "en"


@dataclass(frozen=True)
class Plan:
    """Where a server lies, and where it listens. `home` is its virtual environment, to which
    `<folder>/venv` points; `changed`: whether it has pointed to another until now."""

    folder: Path
    home: Path
    host: str
    port: int
    changed: bool = False

    @property
    def command(self) -> list[str]:
        """What starts it, in whatever environment is the newest then."""
        return self._command(self.folder / "venv")

    @property
    def own_command(self) -> list[str]:
        """What starts it in this environment, so that a process tells which it runs in."""
        return self._command(self.home)

    def _command(self, home: Path) -> list[str]:
        python, store = str(home / "bin" / "python"), str(self.folder / "store")
        listen = ["--host", self.host, "--port", str(self.port)]
        return [python, "-I", "-m", "muelle", "serve", "--store", store, *listen]

    @property
    def url(self) -> str:
        """Where it answers on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def port(text: str) -> int:
    """Read a port. Raise ValueError."""
    number = int(text)
    if not 1 <= number <= 65535:
        raise ValueError(text)
    return number


def clean_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without those that would lead Python, pip or Muelle elsewhere."""
    kept = {name: value for name, value in env.items() if not _OURS.match(name)}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "MUELLE_LANG": language_of(env)}


def write_files(plan: Plan) -> None:
    """Write `start` and `muelle.service`. Raise OSError."""
    script = (
        "#!/bin/sh\n# Starts the server in this terminal. Settings: muelle.toml beside this file.\n"
        f"cd {shlex.quote(str(plan.folder))} || exit 1\nexec {shlex.join(plan.command)}\n"
    )
    _write(plan.folder / "start", script, 0o755)
    _write(plan.folder / "muelle.service", unit(plan, _user(plan.folder)), 0o644)


def unit(plan: Plan, user: str) -> str:
    """Return the text of a systemd unit that gives the server as little as it needs. Pure."""
    return _UNIT.format(
        folder_text=_specifiers(str(plan.folder)),
        user=user,
        folder=_specifiers(str(plan.folder)),
        command=_exec_start(plan),
        store=_quoted(str(plan.folder / "store")),
    )


def run_here(plan: Plan) -> NoReturn:
    """Become the server."""
    os.chdir(plan.folder)
    os.execve(plan.command[0], plan.command, clean_environment(os.environ))


def start(plan: Plan, say: Say, texts: Texts, *, wait_s: float) -> int:
    """Start the server and wait until it is ready; return its process. Raise StartError.

    One that runs already is left alone.
    """
    log = plan.folder / "server.log"
    if (found := running(plan)) is not None:
        pid, same = found
        key = "running_already" if same else "running_earlier"
        say(texts(key, url=plan.url, pid=pid, log=log, start=plan.folder / "start"))
        return pid
    _refuse_taken(plan)
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            plan.own_command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd=plan.folder,
            env=clean_environment(os.environ),
            start_new_session=True,
        )
    _write(plan.folder / "server.pid", f"{process.pid}\n", 0o644)
    say(texts("waiting", url=plan.url))
    _wait(plan, process, log, wait_s)
    say(texts("running", url=plan.url, log=log, pid=process.pid))
    return process.pid


def running(plan: Plan) -> tuple[int, bool] | None:
    """Return (process, whether it is of the newest environment) of a server of this folder.

    Whoever started it: this program, `start`, systemd.
    """
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        if "serve" in words and str(plan.folder / "store") in words:
            newest = words[0] == plan.own_command[0]
            return int(entry.name), newest or (words[0] == plan.command[0] and not plan.changed)
    return None


def _wait(plan: Plan, process: subprocess.Popen[bytes], log: Path, wait_s: float) -> None:
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        if process.poll() is not None:
            raise StartError(
                f"the server has ended (exit status {process.returncode}): {_last(log)}; the rest "
                f"is in {log}"
            )
        if _is_ready(plan):
            return
        time.sleep(_POLL_S)
    raise StartError(
        f"the server (process {process.pid}) is not ready after {wait_s:.0f} s: {_last(log)}; it "
        f"goes on; look into {log}"
    )


def _is_ready(plan: Plan) -> bool:
    host = plan.url.removeprefix("http://").rpartition(":")[0].strip("[]")
    link = http.client.HTTPConnection(host, plan.port, timeout=5)
    try:
        link.request("GET", "/ready")
        return link.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        link.close()


def _refuse_taken(plan: Plan) -> None:
    """Raise StartError when something listens there already: it would answer in our place."""
    family = socket.AF_INET6 if ":" in plan.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((plan.host, plan.port))
        except OSError as exc:
            raise StartError(
                f"port {plan.port} on {plan.host}: {exc.strerror or exc}; choose another with "
                "--port; what is installed stays"
            ) from exc


def _last(log: Path) -> str:
    try:
        with open(log, "rb") as stream:
            stream.seek(max(os.fstat(stream.fileno()).st_size - 4096, 0))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    told = [line.strip() for line in lines if line.strip()]
    return told[-1][:300] if told else "it said nothing"


def _write(path: Path, text: str, mode: int) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, "utf-8")
    part.chmod(mode)
    os.replace(part, path)


def _user(folder: Path) -> str:
    owner = folder.stat().st_uid
    try:
        return pwd.getpwuid(owner).pw_name
    except KeyError:
        return str(owner)


def _exec_start(plan: Plan) -> str:
    """Return the command line as systemd reads it back."""
    words = plan.command
    if not _PLAIN.fullmatch(words[0]):
        # The name of a program may hold no quotes or spaces there; an argument may.
        words = ["/bin/sh", str(plan.folder / "start")]
    return " ".join(_quoted(word).replace("$", "$$") for word in words)


def _specifiers(text: str) -> str:
    """Return a path as systemd reads it back: % begins a specifier."""
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """Return one word of a list, whatever is in it."""
    if _PLAIN.fullmatch(word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_specifiers(escaped)}"'
