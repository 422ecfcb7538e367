"""Who may import whom, checked by machine; and a few words that must not stand in the code.

The rules are those of `docs/architecture.md`. Each check has a negative control: a planted source
that breaks it is found.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "src" / "muelle"

DECIDERS = {"protocols", "scheduling", "routing", "lifecycle"}
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "protos": set(),
    "config": {"core"},
    "texts": {"core", "locales"},
    "protocols": {"core", "config", "protos"},
    "scheduling": {"core", "config"},
    "routing": {"core", "config"},
    "lifecycle": {"core", "config"},
    "repository": {"core", "config"},
    "runtimes": {"core", "config"},
    "workers": {"core", "config", "scheduling", "lifecycle"},
    "telemetry": {"core", "config", "scheduling"},
    "transport": {"core", "config", "protocols.http"},
    "endpoints": {"core", "config", *DECIDERS, "workers", "telemetry"},
    "generate": {"core", "config", *DECIDERS, "workers", "telemetry", "endpoints"},
    "traffic": {"core", "config", *DECIDERS, "workers", "telemetry", "endpoints"},
    "inference": {"core", "config", *DECIDERS, "endpoints"},
    "control": {
        "core", "config", *DECIDERS, "workers", "telemetry", "repository", "inference",
        "endpoints", "generate", "traffic",
    },
    "management": {"core", "config", "telemetry", "inference", "control"},
    "packaging": {"core", "config", "repository", "runtimes"},
    "apps": {
        "core", "config", "protocols", "lifecycle", "telemetry", "workers.process", "client",
    },
    "integrations": {
        "core", "config", "protocols", "telemetry", "inference", "control", "management", "api",
        "app_sources", "client", "transport.asgi",
    },
    "templates": {"core"},
    "publishing": {
        "core", "config", "protocols", "lifecycle.compare", "repository", "runtimes",
        "workers.probe", "workers.messages", "packaging", "apps.target",
    },
    "rpc": {"core", "config", "protos", "protocols", "inference", "transport.grpc"},
    "api": {"core", "config", "protocols", "telemetry.exposition", "telemetry.audit"},
    "cli": {
        "core", "config", "texts", "protocols.native", "runtimes", "repository", "workers.probe",
        "workers.messages", "routing.weights", "packaging", "publishing", "client",
        "telemetry.audit", "app", "templates", "apps.target",
    },
    "healthcheck": set(),
    "client": {"core", "config", "protocols"},
    "testing": {"core", "config", "scheduling", "runtimes", "workers"},
}  # fmt: skip
MAY_ALSO = {"workers.child": {"runtimes"}}
"""The one place of its folder that may know more."""

HEAVY = {
    "catboost", "fastapi", "joblib", "lightgbm", "onnx", "onnxruntime", "pandas", "pyarrow",
    "mlflow", "sklearn", "skl2onnx", "skops", "starlette", "tensorflow", "torch", "xgboost", "yaml",
}  # fmt: skip
UNSAFE = {"marshal", "multiprocessing", "pickle", "shelve"}
UNPICKLERS = {"runtimes.sklearn"}
"""The one audited place that may unpickle: inside a worker, with trust."""


def modules() -> dict[str, ast.Module]:
    """Return every module of ours by name below the package: `workers.child`."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = ast.parse(path.read_text(), str(path))
    return found


def imports(tree: ast.AST, *, top_only: bool = False) -> Iterator[str]:
    """Yield the full names of what a module imports (`from a import b` as `a.b`)."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped.update(ast.walk(node))
        if top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            skipped.update(child for part in node.body for child in ast.walk(part))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward_arrows(name: str, tree: ast.AST) -> list[str]:
    """Return the imports of a module that its layer does not allow."""
    layer = name.split(".")[0]
    if layer not in ALLOWED:
        return []
    allowed = ALLOWED[layer] | {layer} | MAY_ALSO.get(name, set())
    wrong = []
    for full in imports(tree):
        if not full.startswith("muelle."):
            continue
        ours = full.removeprefix("muelle.")
        if ours == "__version__" or any(ours == a or ours.startswith(f"{a}.") for a in allowed):
            continue
        wrong.append(f"{name} imports {full}")
    return wrong


def reached(start: str, known: dict[str, ast.Module], *, top_only: bool) -> set[str]:
    """Return all modules of ours that importing one brings along."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        name = todo.pop()
        if name in seen or name not in known:
            continue
        seen.add(name)
        for full in imports(known[name], top_only=top_only):
            if full.startswith("muelle."):
                ours = full.removeprefix("muelle.")
                todo += [ours, ours.rpartition(".")[0]]
    return seen


def foreign(names: set[str], known: dict[str, ast.Module], *, top_only: bool) -> set[str]:
    """Return the outside packages that these modules import."""
    return {
        full.split(".")[0]
        for name in names
        for full in imports(known[name], top_only=top_only)
        if not full.startswith("muelle")
    }


def forbidden_words(name: str, tree: ast.AST) -> list[str]:
    """Return what no module may hold: pickles, shells, code made of text."""
    wrong = []
    for full in imports(tree):
        if full.split(".")[0] in UNSAFE and name not in UNPICKLERS:
            wrong.append(f"{name} imports {full}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"}:
            wrong.append(f"{name}:{node.lineno} calls {node.func.id}")
        for keyword in node.keywords:
            value = keyword.value
            if keyword.arg == "shell" and not (
                isinstance(value, ast.Constant) and value.value is False
            ):
                wrong.append(f"{name}:{node.lineno} passes shell=")
            is_true = isinstance(value, ast.Constant) and value.value is True
            if keyword.arg == "allow_pickle" and is_true:
                wrong.append(f"{name}:{node.lineno} allows pickle")
    return wrong


def test_no_arrow_points_up() -> None:
    """Every import between our folders is one that the layers allow."""
    wrong = [arrow for name, tree in modules().items() for arrow in upward_arrows(name, tree)]
    assert wrong == []


def test_every_folder_has_a_rule() -> None:
    """A new folder or module at the top must be given its place."""
    free = {"", "__main__", "app", "app_admin", "app_sources"}
    assert {name.split(".")[0] for name in modules()} - set(ALLOWED) - free == set()


def test_a_worker_imports_nothing_of_the_server() -> None:
    """What `python -m muelle.workers.child` can reach holds no server, no codec, no command."""
    known = modules()
    layers = {name.split(".")[0] for name in reached("workers.child", known, top_only=False)}
    assert layers <= {"", "core", "runtimes", "workers", "config"}
    assert "workers.pool" not in reached("workers.child", known, top_only=False)


def test_the_command_line_starts_light() -> None:
    """`muelle --help` imports no NumPy, no msgspec, no runtime: those come with a command."""
    known = modules()
    packages = foreign(reached("cli.main", known, top_only=True), known, top_only=True)
    assert not packages & (HEAVY | {"numpy", "msgspec", "asyncio", "uvloop", "orjson"})


def test_descriptors_of_runtimes_are_light() -> None:
    """Finding a file's format imports no model library."""
    known = modules()
    runtimes = {name for name in known if name.startswith("runtimes")}
    assert not foreign(runtimes, known, top_only=True) & HEAVY


def test_the_server_imports_fastapi_late() -> None:
    """The first predictions do not wait for the API's imports."""
    known = modules()
    assert not foreign(reached("app", known, top_only=True), known, top_only=True) & HEAVY


def test_no_pickle_no_shell_no_eval() -> None:
    """No module unpickles, starts a shell or runs text, but for the audited loader."""
    wrong = [word for name, tree in modules().items() for word in forbidden_words(name, tree)]
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("core.x", "from muelle.config import sections"),
        ("protocols.x", "import muelle.workers.pool"),
        ("transport.x", "def f():\n    from muelle.inference import InferenceService"),
        ("workers.link", "from muelle.runtimes.registry import Registry"),
        ("scheduling.x", "from muelle.telemetry.metrics import Counter"),
    ],
)
def test_a_planted_arrow_is_found(name: str, source: str) -> None:
    """Negative control of the layers, late imports included."""
    assert upward_arrows(name, ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from multiprocessing import Queue",
        "subprocess.run(x, shell=True)",
        "eval(text)",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_a_planted_word_is_found(source: str) -> None:
    """Negative control of the forbidden words."""
    assert forbidden_words("core.x", ast.parse(source))
