"""The store's commands as a user runs them, with real models; no server runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muelle.telemetry.audit import AuditLog, verify
from tests import models

IRIS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]


class Commands:
    """`muelle` on one store."""

    def __init__(self, store: Path) -> None:
        self.store = store
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MUELLE_")}
        self._env = {**kept, "MUELLE_LANG": "en", "MUELLE_STORE": str(store)}

    def __call__(self, *args: str | Path) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "muelle", *map(str, args)],
            capture_output=True,
            text=True,
            env=self._env,
            timeout=100,
            check=False,
        )

    def ok(self, *args: str | Path) -> str:
        """Run one command, which must succeed; return what it prints."""
        done = self(*args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *args: str | Path) -> Any:
        """Run one command with --json."""
        return json.loads(self.ok(*args, "--json"))

    def refused(self, *args: str | Path, code: int = 1) -> str:
        """Run one command, which must fail with one line; return that line."""
        done = self(*args)
        assert done.returncode == code, done.stdout + done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("muelle: ")
        assert "Traceback" not in done.stderr
        return last

    def audit(self) -> list[tuple[str, bool]]:
        """Return the audit log: each action, and whether it succeeded."""
        entries = AuditLog.open(self.store / "audit.db").read()
        return [(entry.action, entry.outcome == "ok") for entry in entries]


@pytest.fixture
def muelle(tmp_path: Path) -> Commands:
    """An empty store's commands."""
    return Commands(tmp_path / "store")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """A store with three versions of fraud; read it, do not change it."""
    folder = tmp_path_factory.mktemp("filled")
    commands = Commands(folder / "store")
    rows = folder / "rows.json"
    rows.write_text(json.dumps(IRIS))
    onnx, forest = models.onnx_classifier().path, models.xgboost_classes().path
    commands.ok("push", onnx, "--name", "fraud", "--example", rows, "--metric", "auc=0.9")
    commands.ok("push", forest, "--name", "fraud", "--label", "canary", "--example", rows)
    pickle = models.sklearn_mixed_pickle().path
    commands.ok("push", pickle, "--name", "fraud", "--trust", "--no-label", "--note", "third")
    yield commands


def test_push_publishes_a_version_with_its_answers(muelle: Commands, tmp_path: Path) -> None:
    """Digest, signature, libraries, author, and the model's own answers to the example."""
    saved = models.onnx_classifier()
    rows = tmp_path / "rows.csv"
    rows.write_text("5.1,3.5,1.4,0.2\n6.7,3.0,5.2,2.3\n")
    done = muelle("push", saved.path, "--name", "fraud", "--example", rows, "--metric", "auc=0.94")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("fraud:1 published: ONNX")
    assert "fraud@stable -> 1" in done.stdout
    assert "muelle serve" in done.stdout

    record = muelle.json("show", "fraud")
    inspected = muelle.json("inspect", saved.path)
    assert record["digest"] == inspected["digest"]
    assert record["labels"] == ["stable"]
    assert record["metrics"] == {"auc": 0.94}
    assert record["libraries"].keys() == {"numpy", "onnxruntime"}
    assert record["who"] and record["host"] and record["python"]
    (example,) = record["examples"]
    assert example["repeatable"] and not example["made_up"]
    assert example["inputs"][0]["values"] == [pytest.approx(row) for row in IRIS]
    answer = {tensor["name"]: tensor["values"] for tensor in example["outputs"]}
    assert answer["label"] == [0, 2]


def test_pushing_twice_changes_nothing(muelle: Commands) -> None:
    """The same file is the same version, unless a new one is forced."""
    path = models.onnx_classifier().path
    assert muelle.json("push", path, "--name", "fraud")[0]["created"] is True
    assert "unchanged" in muelle.ok("push", path, "--name", "fraud")
    assert len(muelle.json("list", "fraud")) == 1
    assert muelle.json("push", path, "--name", "fraud", "--force")[0]["version"] == 2


def test_formats_that_run_code_need_trust(muelle: Commands) -> None:
    """A pickle or a Python file is not loaded unless its pusher trusts it; then it is noted."""
    pickle, python = models.sklearn_mixed_pickle().path, models.python_doubler().path.parent
    for path in (pickle, python):
        assert "--trust" in muelle.refused("push", path)
    assert muelle.json("list") == []
    muelle.ok("push", pickle, "--name", "p", "--trust")
    muelle.ok("push", python, "--name", "d", "--trust")
    assert muelle.json("show", "p")["runs_code"] is True
    doubler = muelle.json("show", "d")
    assert {file["path"] for file in doubler["files"]} == {"doubler.py", "factor.txt"}
    assert doubler["artifact"] == "doubler.py"
    # Loading it has left nothing in its folder.
    assert muelle.json("verify")["ok"] is True


CRASHES = """
import os
from muelle import Model, TensorSpec


class Bad(Model):
    inputs = [TensorSpec(name="x", datatype="FP32", shape=(-1,))]
    outputs = [TensorSpec(name="y", datatype="FP32", shape=(-1,))]

    def load(self, folder):
        {load}

    def predict(self, inputs):
        if inputs["x"][0] > 1:
            {predict}
        return {{"y": inputs["x"]}}
"""


@pytest.mark.parametrize(
    ("load", "predict", "said"),
    [
        ("os.abort()", "pass", "killed by SIGABRT"),
        ("raise ValueError('no weights')", "pass", "no weights"),
        ("pass", "raise ValueError('too much')", "too much"),
        ("pass", "os.abort()", "killed by SIGABRT"),
    ],
)
def test_what_does_not_work_is_not_published(
    muelle: Commands, tmp_path: Path, load: str, predict: str, said: str
) -> None:
    """A crash at load, an error at load, a failing or crashing example: nothing is published."""
    bad, rows = tmp_path / "bad.py", tmp_path / "rows.json"
    bad.write_text(CRASHES.format(load=load, predict=predict))
    rows.write_text("[5.0]")
    assert said in muelle.refused("push", bad, "--trust", "--example", rows)
    assert muelle.json("list") == []
    assert muelle.audit() == [("push", False)]


def test_a_made_up_example_may_fail(muelle: Commands, tmp_path: Path) -> None:
    """Without an example of the user's a failure proves little: the version comes with a note."""
    bad = tmp_path / "bad.py"
    text = CRASHES.format(load="pass", predict="pass")
    bad.write_text(text.replace("> 1", "< 1").replace("            pass", "            1 / 0"))
    (told,) = muelle.json("push", bad, "--trust")
    assert told["created"] and told["record"]["examples"] == []
    assert any("--example" in remark for remark in told["remarks"])


def test_broken_files_and_examples_are_refused_in_words(muelle: Commands, tmp_path: Path) -> None:
    """A cut file, an unknown format, an example that does not fit: what, where, what to do."""
    whole = models.onnx_classifier().path
    cut, text, rows = tmp_path / "cut.onnx", tmp_path / "notes.md", tmp_path / "rows.json"
    cut.write_bytes(whole.read_bytes()[:200])
    text.write_text("no model")
    rows.write_text('[{"instances": 1}]')
    assert "cut.onnx" in muelle.refused("push", cut)
    assert "known are" in muelle.refused("push", text)
    assert "rows.json" in muelle.refused("push", whole, "--example", rows)
    assert "near it is" in muelle.refused("push", whole.with_name("modle.onnx"))
    assert "NAME=NUMBER" in muelle.refused("push", whole, "--metric", "auc", code=2)
    assert muelle.json("list") == []


def test_a_repository_of_others_comes_in_with_its_numbers(muelle: Commands, tmp_path: Path) -> None:
    """Triton's layout: every version, its number kept, the newest labelled stable."""
    for version, saved in (("3", models.onnx_classifier()), ("12", models.onnx_zipmap())):
        (tmp_path / "models" / "fraud" / version).mkdir(parents=True)
        shutil.copy(saved.path, tmp_path / "models" / "fraud" / version / "model.onnx")
    (tmp_path / "models" / "fraud" / "config.pbtxt").write_text('name: "fraud"')
    told = muelle.json("push", tmp_path / "models")
    assert [(one["model"], one["version"], one["label"]) for one in told] == [
        ("fraud", 3, ""),
        ("fraud", 12, "stable"),
    ]
    assert muelle.json("list")[0]["labels"] == {"stable": 12}


def test_list_and_history(filled: Commands) -> None:
    """Models with labels; versions newest first; movements with who and why."""
    (one,) = filled.json("list")
    assert (one["model"], one["n_versions"], one["newest"]) == ("fraud", 3, 3)
    assert one["labels"] == {"canary": 2, "stable": 1}
    assert [(v["version"], v["labels"], v["note"]) for v in filled.json("list", "fraud")] == [
        (3, [], "third"),
        (2, ["canary"], ""),
        (1, ["stable"], ""),
    ]
    assert "@stable=1" in filled.ok("list")
    moves = filled.json("history", "fraud")
    assert [(move["label"], move["version"], move["reason"]) for move in moves] == [
        ("canary", 2, "push"),
        ("stable", 1, "push"),
    ]


def test_list_imports_nothing_heavy(filled: Commands) -> None:
    """`muelle list` and `--help` start without NumPy, a runtime or a web framework."""
    code = (
        "import sys; from muelle.cli.main import main; main(sys.argv[1:]); "
        "print(*{m.split('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    heavy = {"numpy", "fastapi", "onnxruntime", "sklearn", "asyncio", "httpx"}
    for args in (("list", "--store", str(filled.store)), ("push", "--help"), ("--help",)):
        done = subprocess.run(
            [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
        )
        assert not heavy & set(done.stderr.split()), args
        assert "muelle" in done.stderr.split()


def test_diff_shows_the_answers_side_by_side(filled: Commands) -> None:
    """Signature, libraries and files that differ, and both answers to the same rows."""
    told = filled.json("diff", "fraud:1", "fraud@canary")
    assert (told["old"], told["new"], told["same_files"]) == ("fraud:1", "fraud:2", False)
    assert {change["name"] for change in told["libraries"]} >= {"onnxruntime"}
    assert told["signature"]
    text = filled.ok("diff", "fraud:1", "fraud:2")
    assert "fraud:1 -> fraud:2" in text and "signature" in text
    same = filled.json("diff", "fraud:1", "fraud:1")
    assert [answer["same"] for answer in same["answers"]] == [True]
    assert same["same_files"] is True


def test_mistyped_names_get_a_proposal(filled: Commands) -> None:
    """Models, versions, labels and commands; a wrong form is told with a right one."""
    assert "near it is: fraud" in filled.refused("show", "frad")
    assert "there are 3, 2, 1" in filled.refused("show", "fraud:9")
    assert "near it is: stable" in filled.refused("show", "fraud@stabel")
    assert "write fraud, fraud:3 or fraud@stable" in filled.refused("show", "fraud:x")
    assert "'rollback'" in filled.refused("rolback", code=2)


def test_labels_move_and_go_back(muelle: Commands) -> None:
    """label, rollback, label --remove: what is said is what the store holds."""
    for saved in (models.onnx_classifier(), models.onnx_zipmap()):
        muelle.ok("push", saved.path, "--name", "fraud")
    said = muelle.ok("label", "fraud:2", "stable")
    assert said.strip() == "fraud@stable -> 2 (no server runs on this store)"
    assert "already" in muelle.ok("label", "fraud:2", "stable")
    back = muelle.json("rollback", "fraud")
    assert (back["version"], back["previous"], back["changed"]) == (1, 2, True)
    assert "named no other version" in muelle.refused("rollback", "fraud")
    done = muelle("label", "fraud:2", "stabel")
    assert "near it is stable" in done.stderr
    assert muelle.json("label", "--remove", "fraud@stabel")["previous"] == 2
    assert muelle.json("list")[0]["labels"] == {"stable": 1}
    assert "no such label" in muelle.refused("label", "--remove", "fraud@stabel")
    assert "name the label too" in muelle.refused("label", "fraud:1", code=2)


def test_a_route_is_set_shown_and_cleared(muelle: Commands) -> None:
    """Weights by label or number; targets that are not there are refused."""
    muelle.ok("push", models.onnx_classifier().path, "--name", "fraud")
    muelle.ok("push", models.onnx_zipmap().path, "--name", "fraud", "--label", "canary")
    assert "has no route" in muelle.ok("route", "fraud")
    muelle.ok("route", "fraud", "stable=95,canary=5", "--sticky", "header:x-user")
    told = muelle.json("route", "fraud", "--shadow", "2")["route"]
    assert told == {
        "weights": {"stable": 95.0, "canary": 5.0},
        "sticky": "header:x-user",
        "shadow": "2",
    }
    assert "sends traffic to it" in muelle.refused("label", "--remove", "fraud@canary")
    assert "near it is: canary" in muelle.refused("route", "fraud", "stable=9,canry=1")
    muelle.ok("route", "fraud", "--clear")
    assert muelle.json("route", "fraud")["route"] is None


def test_rm_gc_and_verify(muelle: Commands) -> None:
    """What is labelled stays; what is removed is freed; what rots is named."""
    muelle.ok("push", models.onnx_classifier().path, "--name", "fraud")
    muelle.ok("push", models.onnx_zipmap().path, "--name", "fraud")
    assert "label stable names it" in muelle.refused("rm", "fraud:1")
    assert "name a version" in muelle.refused("rm", "fraud@stable", code=2)
    assert muelle.json("rm", "fraud:2")[0]["version"] == 2
    assert muelle.json("gc", "--dry-run", "--grace-s", "0")["blobs"] == 1
    report = muelle.json("gc", "--grace-s", "0")
    assert report["blobs"] == 1 and report["bytes_freed"] > 0
    assert muelle.json("verify")["ok"] is True

    (blob,) = (muelle.store / "blobs" / "sha256").glob("*/*")
    blob.chmod(0o644)
    content = bytearray(blob.read_bytes())
    content[100] ^= 1
    blob.write_bytes(content)
    done = muelle("verify", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert [p["versions"] for p in told["problems"] if p["kind"] == "rotten"] == [[["fraud", 1]]]
    assert "fraud:1" in muelle("verify").stdout


@pytest.mark.parametrize("layout", ["plain", "triton"])
def test_export_and_pull_carry_a_version_over(
    filled: Commands, tmp_path: Path, layout: str
) -> None:
    """The same digest, number, examples and answers in another store; no label moves."""
    folder, other = tmp_path / "out", Commands(tmp_path / "other")
    filled.ok("export", "fraud:2", folder, "--layout", layout)
    assert "exists already" in filled.refused("export", "fraud:2", folder, "--layout", layout)
    (pulled,) = other.json("pull", folder)
    assert (pulled["model"], pulled["version"], pulled["created"]) == ("fraud", 2, True)
    here, there = filled.json("show", "fraud:2"), other.json("show", "fraud:2")
    for key in ("digest", "files", "signature", "examples", "runtime", "libraries"):
        assert here[key] == there[key]
    assert there["labels"] == []
    assert other.json("pull", folder)[0]["created"] is False


def test_pull_believes_nothing(filled: Commands, tmp_path: Path) -> None:
    """A changed file, a record that leaves its folder or lies about the format, code untrusted."""
    folder, other = tmp_path / "out", Commands(tmp_path / "other")
    filled.ok("export", "fraud:1", folder)
    file, card = folder / "model.onnx", folder / "muelle.json"
    whole, told = file.read_bytes(), json.loads(card.read_text())
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "not the one that was exported" in other.refused("pull", folder)
    file.write_bytes(whole)
    for change, said in (
        ({"format": "CatBoost", "runtime": "catboost"}, "the file is ONNX"),
        ({"digest": "sha256:" + "0" * 64}, "digest"),
        ({"artifact": "../../x"}, "inside"),
        ({"files": [told["files"][0] | {"path": "../model.onnx"}]}, "inside"),
        ({"files": 3}, "not a version's record"),
    ):
        card.write_text(json.dumps(told | change))
        assert said in other.refused("pull", folder), change
    assert other.json("list") == []

    assert "--trust" in other.refused("pull", filled.store, "fraud:3")
    assert other.json("pull", filled.store, "fraud:3", "--trust", "--name", "third")[0][
        "model"
    ] == ("third")
    assert "name what to pull" in other.refused("pull", filled.store)
    assert "neither a store nor an export" in other.refused("pull", tmp_path)


def test_every_change_is_in_the_audit_log(muelle: Commands) -> None:
    """push, label, rollback, route, rm and gc leave an entry each; the chain holds."""
    for saved in (models.onnx_classifier(), models.onnx_zipmap()):
        muelle.ok("push", saved.path, "--name", "fraud")
    muelle.ok("label", "fraud:2", "stable")
    muelle.ok("rollback", "fraud")
    muelle.ok("route", "fraud", "stable=1")
    muelle.refused("rm", "fraud:1")
    muelle.ok("rm", "fraud:2")
    muelle.ok("gc")
    assert muelle.audit() == [
        ("push", True),
        ("push", True),
        ("label", True),
        ("rollback", True),
        ("route", True),
        ("rm", False),
        ("rm", True),
        ("gc", True),
    ]
    log = muelle.store / "audit.db"
    assert all(entry.who.startswith("cli:") for entry in AuditLog.open(log).read())
    assert verify(log).problems == ()


def test_without_an_audit_log_nothing_changes(muelle: Commands) -> None:
    """An action that cannot be written down does not happen."""
    for saved in (models.onnx_classifier(), models.onnx_zipmap()):
        muelle.ok("push", saved.path, "--name", "fraud")
    log = muelle.store / "audit.db"
    for file in muelle.store.glob("audit.db*"):
        file.unlink()
    log.write_bytes(b"no database" * 1000)
    assert "audit log" in muelle.refused("label", "fraud:2", "stable")
    assert "audit log" in muelle.refused("rm", "fraud:2")
    assert muelle.json("list")[0]["labels"] == {"stable": 1}
    assert len(muelle.json("list", "fraud")) == 2


def test_without_a_store_the_commands_say_so(tmp_path: Path) -> None:
    """Reading a store that is not there makes none."""
    muelle = Commands(tmp_path / "none")
    muelle.refused("list")
    muelle.refused("label", "fraud:1", "stable")
    assert not (tmp_path / "none").exists()
