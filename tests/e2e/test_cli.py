"""The whole command line as a user runs it: demo's models, a server, its curl line, its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

MUELLE = (sys.executable, "-m", "muelle")


def environment() -> dict[str, str]:
    """Return this environment without settings of ours, in English."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MUELLE_") and k != "PORT"}
    return {**kept, "MUELLE_LANG": "en"}


def run(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*MUELLE, *args],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=cwd,
        timeout=100,
        check=False,
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the demo's two models."""
    folder = tmp_path_factory.mktemp("demo")
    done = run("demo", "--no-serve", "--dir", str(folder))
    assert done.returncode == 0, done.stderr
    assert [Path(p).name for p in done.stdout.split()] == ["breast-cancer.onnx", "diabetes.skops"]
    return folder


class Running:
    """One `muelle serve` in a process of its own, ready when made."""

    def __init__(self, *args: str, cwd: Path) -> None:
        self.process = subprocess.Popen(
            [*MUELLE, "serve", "--port", "0", *args],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=environment(),
            cwd=cwd,
        )
        assert self.process.stderr is not None
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("docs: "):
                break
        self.url = self.lines[-1].removeprefix("docs: ").removesuffix("/docs")

    def curl_lines(self, count: int) -> list[str]:
        """Read the curl lines, which come last."""
        assert self.process.stderr is not None
        return [next(self.process.stderr).rstrip("\n") for _ in range(count)]

    def end(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Running]:
    """A server with both models, one under another name."""
    running = Running("breast-cancer.onnx", "illness=diabetes.skops", cwd=models)
    yield running
    if running.process.poll() is None:
        running.end()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_shown_curl_lines_answer_200_when_pasted(server: Running) -> None:
    """Each line, given to a shell as it is, gets predictions."""
    for line in server.curl_lines(2):
        pasted = f"{line} -w '\\n%{{http_code}}'"
        done = subprocess.run(
            ["sh", "-c", pasted], capture_output=True, text=True, timeout=30, check=True
        )
        body, _, status = done.stdout.rpartition("\n")
        assert status == "200", done.stdout
        assert len(json.loads(body)["predictions"]) == 1


def test_the_screen_names_address_and_signatures(server: Running) -> None:
    """Not a terminal: plain lines that say where, what, and what each model takes."""
    text = "\n".join(server.lines)
    assert f"listens on {server.url}" in text
    assert "breast-cancer 1 (ONNX): " in text
    assert "illness 1 (" in text
    assert "FP32 [-1, 30]" in text


def test_predict_agrees_with_the_library(server: Running, models: Path, tmp_path: Path) -> None:
    """Rows as CSV and as npy: the answers are those that scikit-learn itself gives."""
    import skops.io
    from sklearn.datasets import load_diabetes

    x, _ = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    rows = x.iloc[:5]
    rows.to_csv(tmp_path / "rows.csv", index=False)
    np.save(tmp_path / "rows.npy", rows.to_numpy())
    expected = skops.io.load(models / "diabetes.skops").predict(rows)
    for name in ("rows.csv", "rows.npy"):
        done = run("predict", f"{server.url}/models/illness", "-d", f"@{tmp_path / name}")
        assert done.returncode == 0, done.stderr
        given = np.array(json.loads(done.stdout)["predictions"], float).reshape(-1)
        np.testing.assert_allclose(given, expected, rtol=1e-9)


def test_predict_prints_a_table(server: Running) -> None:
    """`-o table` gives a head and one line per row."""
    body = json.dumps({"instances": [[1.0] * 30] * 3})
    done = run("predict", f"{server.url}/models/breast-cancer", "-d", body, "-o", "table")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4


@pytest.mark.parametrize(
    ("target", "body", "part"),
    [
        ("no-such", "[[1]]", "no-such"),
        ("breast-cance", "[[1]]", "breast-cancer"),
        ("breast-cancer", '{"instances": [[1, 2]]}', "30"),
    ],
)
def test_what_the_server_refuses_is_one_line(
    server: Running, target: str, body: str, part: str
) -> None:
    """Exit code 1 and one line that says what to do."""
    done = run("predict", target, "--server", server.url, "-d", body)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert part in done.stderr


def test_inspect_tells_what_a_file_is(models: Path) -> None:
    """Format, size, digest and signature, as text and as JSON, from a worker's load."""
    file = models / "breast-cancer.onnx"
    done = run("inspect", str(file), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["format"], facts["runtime"], facts["runs_code"]) == ("ONNX", "onnx", False)
    assert facts["size_bytes"] == file.stat().st_size
    assert facts["missing"] == []
    assert facts["signature"]["inputs"][0]["shape"] == [-1, 30]
    text = run("inspect", str(file)).stdout
    assert facts["digest"] in text
    assert "FP32 [-1, 30]" in text
    assert f"muelle serve {file}" in text


def test_inspect_does_not_load_code_unasked(tmp_path: Path) -> None:
    """A pickle that would write a file when loaded is shown, and does not run, without --trust."""
    import joblib

    canary = tmp_path / "canary"
    joblib.dump(_Writes(str(canary)), tmp_path / "m.joblib")
    done = run("inspect", str(tmp_path / "m.joblib"))
    assert done.returncode == 0, done.stderr
    assert "needs --trust" in done.stdout
    assert not canary.exists()
    # Negative control: with --trust it does run, so the canary is one.
    run("inspect", "--trust", str(tmp_path / "m.joblib"))
    assert canary.exists()


class _Writes:
    """Unpickling this makes a folder."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self._path,)


def test_inspect_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    """A file of no known format: one line with the formats that are known, exit code 1."""
    (tmp_path / "notes.md").write_text("# nothing")
    done = run("inspect", str(tmp_path / "notes.md"))
    assert done.returncode == 1
    assert "ONNX" in done.stderr
    assert done.stderr.count("\n") == 1


def test_serve_refuses_a_missing_file_in_one_line(tmp_path: Path) -> None:
    """No traceback, no half-started server."""
    done = run("serve", "no.onnx", "--port", "0", cwd=tmp_path)
    assert done.returncode == 1
    assert "no.onnx" in done.stderr
    assert done.stderr.count("\n") == 1


def test_serve_takes_settings_from_the_file_beside(models: Path, tmp_path: Path) -> None:
    """muelle.toml alone is enough, with models relative to it; SIGTERM ends with 0."""
    shutil.copy(models / "breast-cancer.onnx", tmp_path)
    (tmp_path / "muelle.toml").write_text('models = ["cells=breast-cancer.onnx"]\n')
    running = Running(cwd=tmp_path)
    assert any("cells 1 (ONNX)" in line for line in running.lines)
    assert running.end() == 0


def test_demo_check_asks_each_model_once(tmp_path: Path) -> None:
    """What `make demo` runs without a terminal: two answers on stdout, exit code 0."""
    done = run("demo", "--check", "--dir", str(tmp_path / "demo"))
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [a["model"] for a in answers] == ["breast-cancer", "diabetes"]
