"""`muelle demo`: train two small real models, save them, serve them. Not a benchmark.

The rows come with scikit-learn: nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muelle.cli.command import new_command, read_settings

if TYPE_CHECKING:
    from muelle.cli.context import Cli
    from muelle.core.events import Event
    from muelle.core.status import ModelStatus
    from muelle.texts import Texts

SEED = 0


def command(texts: Texts) -> click.Command:
    """Return the command."""
    return new_command(
        "demo",
        texts,
        run,
        [
            click.Option(["--dir", "folder"], type=click.Path(file_okay=False), default="demo",
                         show_default=True, help=texts("help.option.dir")),
            click.Option(["-p", "--port"], metavar="PORT", help=texts("setting.listen.port")),
            click.Option(["--host"], metavar="ADDRESS", help=texts("setting.listen.host")),
            click.Option(["--serve/--no-serve"], default=True, help=texts("help.option.no_serve")),
            click.Option(["--check"], is_flag=True, help=texts("help.option.check")),
        ],
    )  # fmt: skip


def run(cli: Cli, folder: str, port: str | None, host: str | None, serve: bool, check: bool) -> int:
    """Write the models; then serve until Ctrl-C, or ask each once and stop (`--check`)."""
    if not serve:
        for file in write_models(cli, Path(folder)):
            cli.show(str(file))
        return 0
    models = _train_apart(folder)
    if not models:
        return 1  # The other process has said why.
    free_port = "0" if check and port is None else port
    settings, _ = read_settings(cli, models, None, port=free_port, host=host)
    from muelle.app import serve as serve_models
    from muelle.cli.screens import ServeScreen

    with ServeScreen(cli) as screen:
        if not check:
            return serve_models(settings, screen)
        asking = _AskOnce(cli, screen)
        code = serve_models(settings, asking)
        return code or asking.failures


def _train_apart(folder: str) -> tuple[str, ...]:
    """Train in a process of its own: what training needs is no part of a server's memory."""
    command = [sys.executable, "-m", "muelle", "demo", "--no-serve", "--dir", folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return tuple(done.stdout.splitlines()) if done.returncode == 0 else ()


def write_models(cli: Cli, folder: Path) -> list[Path]:
    """Train and save both models; return their files. Raise MissingLibrary without scikit-learn."""
    from importlib.util import find_spec

    from muelle.core.errors import MissingLibrary

    if find_spec("sklearn") is None or find_spec("skops") is None:
        raise MissingLibrary(cli.texts("demo.missing"))
    folder.mkdir(parents=True, exist_ok=True)
    with cli.waiting(cli.texts("demo.training")):
        return [_classifier(cli, folder), _regressor(cli, folder)]


def _classifier(cli: Cli, folder: Path) -> Path:
    """Breast cancer, 30 numbers -> malignant or benign: ONNX, or skops without the converter."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.model_selection import train_test_split

    cases = load_breast_cancer()
    x, y = cases.data, cases.target_names[cases.target]
    x_train, x_test, y_train, y_test = train_test_split(x, y, random_state=SEED, stratify=y)
    model = GradientBoostingClassifier(n_estimators=50, random_state=SEED)
    model.fit(x_train, y_train)
    names = [str(name) for name in cases.feature_names]
    file = _save_onnx(model, folder, names, x_test[0].tolist()) or _save_skops(
        model, folder / "breast-cancer.skops"
    )
    score = f"{model.score(x_test, y_test):.3f}"
    cli.say(cli.texts("demo.classifier", file=file, score=score))
    return file


def _regressor(cli: Cli, folder: Path) -> Path:
    """Diabetes, ten named columns -> progress of the illness after a year: a skops pipeline."""
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    x_train, x_test, y_train, y_test = train_test_split(x, y, random_state=SEED)
    model = make_pipeline(StandardScaler(), Ridge()).fit(x_train, y_train)
    file = _save_skops(model, folder / "diabetes.skops")
    score = f"{model.score(x_test, y_test):.3f}"
    cli.say(cli.texts("demo.regressor", file=file, score=score))
    return file


def _save_onnx(model: Any, folder: Path, names: list[str], row: list[float]) -> Path | None:
    """Convert, and put the column names and a real row into the file's own metadata."""
    try:
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType
    except ImportError:
        return None
    onnx = convert_sklearn(
        model,
        initial_types=[("x", FloatTensorType([None, model.n_features_in_]))],
        options={id(model): {"zipmap": False}},
    )
    for key, value in (("muelle.columns", names), ("muelle.example", {"x": [row]})):
        entry = onnx.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    return _replace(folder / "breast-cancer.onnx", onnx.SerializeToString())


def _save_skops(model: Any, file: Path) -> Path:
    from skops import io

    return _replace(file, io.dumps(model))


def _replace(file: Path, content: bytes) -> Path:
    """Write beside and rename, so that a server that reads the folder never sees half a file."""
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(content)
    part.replace(file)
    return file


class _AskOnce:
    """Passes events on; once the server listens, asks each model once and ends the server.

    The questions go from a thread of their own: the listener is called by the server's.
    """

    def __init__(self, cli: Cli, screen: Any) -> None:
        self.failures = 0
        self._cli = cli
        self._screen = screen

    def __call__(self, event: Event) -> None:
        from muelle.core.events import Listening

        self._screen(event)
        if isinstance(event, Listening):
            threading.Thread(target=self._ask, args=(event.url, event.models), daemon=True).start()

    def _ask(self, url: str, models: tuple[ModelStatus, ...]) -> None:
        try:
            if not models:
                self.failures = 1
            for model in models:
                self._ask_one(url, model)
        finally:
            # As an operator would end it: the drain is part of what is checked.
            os.kill(os.getpid(), signal.SIGTERM)

    def _ask_one(self, url: str, model: ModelStatus) -> None:
        from muelle.cli.predict import post, trouble
        from muelle.cli.screens import reachable
        from muelle.protocols.native import example_body

        version = model.default_version
        if version is None or version.signature is None or version.example is None:
            self.failures = 1
            self._cli.say(f"muelle: {model.name}: {version.reason if version else '?'}")
            return
        body = json.dumps(example_body(version.signature, version.example)).encode()
        where = f"{reachable(url)}/models/{model.name}/predict"
        try:
            headers = {"content-type": "application/json"}
            reply = post(where, body, headers, 30.0, self._cli.texts)
        except click.ClickException as exc:
            self.failures = 1
            self._cli.say(f"muelle: {exc.message}")
            return
        if reply.status == 200:
            self._cli.show(reply.body.decode())
        else:
            self.failures = 1
            self._cli.say(f"muelle: {trouble(reply, where, self._cli.texts)}")
