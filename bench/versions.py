"""What versions cost: switches, rollbacks, lists, large pushes. `python -m bench.versions`.

Prints one line per figure, with its median and worst where it is one of many. Everything runs on
this machine in a folder of its own. Not a comparison with anybody.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from muelle import Client
from muelle.core.records import StoredFile, VersionRecord
from muelle.publishing.push import Options, push
from muelle.repository.store import Store

MODEL = """
import numpy as np
from muelle import Model, TensorSpec


class Stamped(Model):
    inputs = [TensorSpec(name="x", datatype="FP64", shape=(-1,))]
    outputs = [TensorSpec(name="y", datatype="FP64", shape=(-1,))]
    example = {{"x": 3.0}}

    def predict(self, inputs):
        return {{"y": 2 * inputs["x"] + {number}}}
"""


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=5.0, help="size of the large sparse push")
    parser.add_argument("--switches", type=int, default=40)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory(prefix="muelle-bench-") as name:
        folder = Path(name)
        measure_switches(folder, arguments.switches)
        measure_lists(folder)
        measure_push(folder, int(arguments.gb * 1024**3))


def show(what: str, seconds: list[float]) -> None:
    """Print one figure."""
    middle, worst = 1e3 * statistics.median(seconds), 1e3 * max(seconds)
    print(f"{what}: median {middle:.1f} ms, worst {worst:.1f} ms of {len(seconds)}", flush=True)


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def serve(folder: Path, *options: str) -> tuple[subprocess.Popen[str], str, float]:
    """Start a server; return it, its address, and the seconds until it listened."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "muelle", "serve", "--port", "0", "--store", str(folder)]
    environment = {**os.environ, "MUELLE_LANG": "en"}
    process = subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"listens on (http\S+)", line):
            took = time.perf_counter() - began
            # The pipe is not read any more: what comes is little, and the run is short.
            return process, found[1], took
    raise SystemExit("the server did not start")


def measure_switches(folder: Path, n: int) -> None:
    """Promotion of a version that is not loaded, and of one that is; both under load."""
    store, socket = folder / "store", folder / "admin.sock"
    with Store.open(store, create=True) as opened:
        for number in (1, 2):
            source = folder / "stamped.py"
            source.write_text(MODEL.format(number=number))
            push(opened, source, Options(name="stamped", trust=True), who="bench")
        opened.set_label("stamped", "stable", 1, who="bench")
    process, url, _ = serve(store, "--admin-socket", str(socket), "--keep-warm-s", "0")
    load = start_wrk(url)
    try:
        with Client(socket=str(socket)) as admin:
            cold = []
            for k in range(n // 4):
                version = 2 - k % 2
                cold.append(timed(lambda v=version: admin.set_label("stamped", "stable", v)))
                wait_until(lambda: len(children(process.pid)) == 1)
        show("label to a version that is loaded, checked and warmed first, under load", cold)
    finally:
        stop(process, load)
    process, url, _ = serve(store, "--admin-socket", str(socket))
    load = start_wrk(url)
    try:
        with Client(socket=str(socket)) as admin:
            admin.set_label("stamped", "stable", 2)
            admin.set_label("stamped", "stable", 1)
            warm = []
            for k in range(n):
                call = admin.rollback if k % 2 == 0 else None
                if call is not None:
                    warm.append(timed(lambda: admin.rollback("stamped")))
                else:
                    admin.set_label("stamped", "stable", 1)
        show("rollback to a warm version, under load", warm)
    finally:
        stop(process, load)


def start_wrk(url: str) -> subprocess.Popen[str] | None:
    """Load the server from three connections, if wrk is here."""
    script = Path(tempfile.gettempdir()) / "muelle-bench-versions.lua"
    script.write_text('wrk.method = "POST"\nwrk.body = \'{"instances":[1.0]}\'\n')
    command = ["wrk", "-t1", "-c3", "-d300s", "-s", str(script), f"{url}/models/stamped/predict"]
    try:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)
    except FileNotFoundError:
        print("(no wrk: the server is not loaded meanwhile)")
        return None


def stop(process: subprocess.Popen[str], load: subprocess.Popen[str] | None) -> None:
    """End the load, then the server."""
    if load is not None:
        load.kill()
        load.wait()
    process.terminate()
    process.wait(60)


def children(pid: int) -> list[str]:
    """Return the pids of a process' children."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def wait_until(holds: Callable[[], bool]) -> None:
    """Ask until it holds, at most a minute."""
    deadline = time.monotonic() + 60
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit("it never came to hold")
        time.sleep(0.01)


def measure_lists(folder: Path) -> None:
    """A store of 1,000 models with 10 versions each: what `list` and a start cost."""
    path = folder / "large"
    with Store.open(path, create=True) as store:
        source = folder / "stamped.py"
        source.write_text(MODEL.format(number=1))
        (real,) = push(store, source, Options(name="real", trust=True), who="bench")
        files: tuple[StoredFile, ...] = real.record.files
        for m in range(1_000):
            for _ in range(10):
                store.publish(draft(real.record, f"model-{m:04d}", files), who="bench", force=True)
    command = [sys.executable, "-m", "muelle", "list", "--store", str(path), "--json"]
    subprocess.run(command, check=True, capture_output=True)
    rows = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    took = [
        timed(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(9)
    ]
    show(f"muelle list of {len(rows)} models x 10 versions, the whole process", took)
    for what, options in (
        ("start on that store, one model served", ("--models", "real")),
        ("start on that store, all models on demand", ("--on-demand",)),
    ):
        seconds = []
        for _ in range(3):
            process, _, took_s = serve(path, *options)
            seconds.append(took_s)
            stop(process, None)
        show(what, seconds)


def draft(record: VersionRecord, model: str, files: tuple[StoredFile, ...]) -> VersionRecord:
    """Return a record like a real one for another model."""
    import msgspec

    return msgspec.structs.replace(record, model=model, version=0, files=files)


def measure_push(folder: Path, size: int) -> None:
    """Push a folder with one large sparse file beside the model; watch the command's memory."""
    source = folder / "heavy"
    source.mkdir()
    (source / "model.py").write_text(MODEL.format(number=1))
    with open(source / "weights.bin", "wb") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(b"not only zeros")
    program = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from muelle.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "text = Path('/proc/self/status').read_text()\n"
        "print('VmHWM', re.search(r'VmHWM:\\s*(\\d+)', text)[1])\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", program, "push", str(source), "--name", "heavy", "--trust"]
    command += ["--store", str(folder / "store"), "--artifact", "model.py"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    peak = int(done.stdout.split("VmHWM")[1]) / 1000
    print(
        f"push of {size / 1024**3:.1f} GiB (sparse): {took:.1f} s, at most {peak:.0f} MB resident"
    )


if __name__ == "__main__":
    main()
