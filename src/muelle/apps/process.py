"""Start and end the process of a hosted application. Not for talking to it (`link`)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping

from muelle.apps.frames import CHANNEL_VARIABLE
from muelle.workers.process import WorkerProcess

_OURS = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID")
"""Between the system's service starter and the server; an application must not answer for it."""


def spawn_app(env: Mapping[str, str]) -> WorkerProcess:
    """Start `python -P -m muelle.apps.child`. Raise OSError.

    `-P`, not `-I` as for a model's worker: nothing is imported from the present folder by
    accident, but PYTHONPATH and the user's own packages hold, as the application is the user's.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    environment = app_environment(env)
    environment[CHANNEL_VARIABLE] = str(theirs.fileno())
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "muelle.apps.child", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            # What an application prints is for the log; standard output belongs to the server.
            stdout=2,
            stderr=2,
            env=environment,
            pass_fds=(theirs.fileno(),),
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return WorkerProcess(ours, process)


def app_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return what an application inherits: everything but the server's own settings.

    An application reads its settings (a database's address, a key) from there; the server's own
    ones, names of token files among them, are not its business.
    """
    kept = {
        name: value
        for name, value in env.items()
        if not name.startswith("MUELLE_") and name not in _OURS
    }
    kept.setdefault("PYTHONUNBUFFERED", "1")
    return kept
