"""A real Docker engine for the tests: the one that runs, or one that they start and end themselves.

Not for product code. Where there is none and no right to start one, tests are skipped and say why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

USUAL = Path("/var/run/docker.sock")
START_S = 60


@contextmanager
def engine() -> Iterator[str]:
    """Yield the address of an engine (for DOCKER_HOST). Skip where there can be none."""
    for address in (os.environ.get("DOCKER_HOST", ""), f"unix://{USUAL}"):
        if address and answers(address):
            yield address
            return
    if os.getuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("no Docker engine runs, and none can be started here (needs root and dockerd)")
    folder = Path(tempfile.mkdtemp(prefix="muelle-docker-"))
    address = f"unix://{folder}/docker.sock"
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            ["dockerd", "--host", address, "--data-root", f"{folder}/data",
             "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_S
        while not answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                words = (folder / "log").read_text(errors="replace").splitlines()[-3:]
                pytest.skip(f"dockerd does not start here: {' '.join(words)}")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def answers(address: str) -> bool:
    """Whether an engine answers at an address."""
    import docker

    try:
        client = docker.DockerClient(base_url=address, timeout=5)
        client.ping()
        client.close()
    except Exception:
        return False
    return True


def client(address: str) -> Any:
    """Return the SDK's client."""
    import docker

    return docker.DockerClient(base_url=address, timeout=300)


def program(name: str) -> str:
    """Return the path of a program. Skip where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found
