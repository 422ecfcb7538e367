"""The root of the command line: light, polite, one line per error, right exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from muelle.cli.main import COMMANDS, main

HEAVY = ("numpy", "msgspec", "orjson", "fastapi", "rich", "uvloop", "asyncio", "http.client")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """English, no settings from outside, no muelle.toml beside."""
    for name in [n for n in os.environ if n.startswith(("MUELLE_", "LC_")) or n == "PORT"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LANG", "C")
    monkeypatch.chdir(tmp_path)


def imported_by(*args: str) -> set[str]:
    """Return the names of all modules that a run of the command line imports."""
    code = (
        "import sys, json\n"
        "from muelle.cli.main import main\n"
        f"code = main({list(args)!r})\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr))


def test_help_imports_nothing_heavy() -> None:
    """`muelle --help` stays within its 0.2 s because it loads none of the large libraries."""
    modules = imported_by("--help")
    assert "click" in modules
    assert modules.isdisjoint(HEAVY)
    assert [m for m in modules if m.startswith("muelle.cli.") and m.split(".")[2] in COMMANDS] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_imports_nothing_heavy(name: str) -> None:
    """Each command's help is as light, and imports only its own module."""
    allowed = {"http.client"} if name == "predict" else set()
    assert imported_by(name, "--help").isdisjoint(set(HEAVY) - allowed)


def test_the_import_check_can_fail() -> None:
    """Negative control: a command that works does import what help must not."""
    assert "msgspec" in imported_by("config")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Help prints to stdout, exits with 0, and shows how the command is called."""
    extra = ["show"] if name == "config" else []
    assert main([name, *extra, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Examples:" in out
    assert f"muelle {name}" in out.partition("Examples:")[2]


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["srve"], ["no command 'srve'", "did you mean 'serve'?"]),
        (["xyzzy"], ["no command 'xyzzy'", "see 'muelle --help'"]),
        (["config", "shwo"], ["no command 'shwo'", "did you mean 'show'?"]),
        (["serve", "--prot", "1"], ["no option '--prot'", "did you mean '--port'?"]),
        (["serve"], ["no model given", "muelle serve model.onnx"]),
        (["serve", "a", "b", "--name", "c"], ["--name", "NAME=PATH"]),
        (["serve", "a", "--port", "x"], ["--port: got 'x'", "from 0 to 65535"]),
        (["serve", "a", "--config", "no.toml"], ["no.toml: no such file"]),
        (["predict", "m"], ["'--data'", "see 'muelle predict --help'"]),
        (["predict", "m", "-d", "[1]", "-o", "csv", "--accept", "x/y"], ["keep one"]),
        (["predict", "http://h:1/", "-d", "[1]"], ["names no model", "http://h:1/models/NAME"]),
        (["completion", "tcsh"], ["'tcsh'", "'fish'"]),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(
    args: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What, where, what to do; on stderr; nothing on stdout."""
    assert main(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("muelle: ")
    assert captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err


def test_a_file_in_place_of_a_command_gets_the_command_it_wants(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`muelle model.onnx` is answered with `muelle serve model.onnx`."""
    (tmp_path / "model.onnx").touch()
    assert main(["model.onnx"]) == 2
    assert "did you mean 'muelle serve model.onnx'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["predict", "m", "-d", "[1]", "--server", "http://127.0.0.1:9"], ["nobody answers"]),
        (["predict", "m", "-d", "@no.json"], ["no.json", "No such file"]),
        (["inspect", "no.onnx"], ["no.onnx", "no such file"]),
    ],
)
def test_a_failure_is_one_line_and_exit_1(
    args: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What the world refuses is told apart from wrong use by its exit code."""
    assert main(args) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def test_wrong_settings_from_variables_and_files_exit_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A typo in muelle.toml or in a variable stops `serve` before it starts anything."""
    (tmp_path / "muelle.toml").write_text("\nprot = 1\n")
    assert main(["serve", "a.onnx"]) == 2
    assert "muelle: muelle.toml:2: unknown key 'prot'; did you mean 'port'?" in (
        capsys.readouterr().err
    )
    (tmp_path / "muelle.toml").unlink()
    monkeypatch.setenv("MUELLE_WORKRES", "1")
    assert main(["serve", "a.onnx"]) == 2
    assert "did you mean 'MUELLE_WORKERS'?" in capsys.readouterr().err


def run(args: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `python -m muelle` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "muelle", *args],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        check=False,
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The script names the program and the variable that answers it."""
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert "_MUELLE_COMPLETE" in out
    assert "muelle" in out


def test_completion_answers_commands_and_options() -> None:
    """What the script asks, the program answers: names that fit what was typed."""
    env = {"_MUELLE_COMPLETE": "bash_complete"}
    code = "from muelle.cli.main import main; main()"
    for words, place, wanted in (("muelle se", "1", "serve"), ("muelle serve --po", "2", "--port")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, **env, "COMP_WORDS": words, "COMP_CWORD": place},
            check=False,
        )
        assert f"plain,{wanted}" in done.stdout.split()


def test_config_shows_value_and_origin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each setting with its value, and the option, variable, line or default that it came from."""
    (tmp_path / "muelle.toml").write_text("port = 7\n")
    monkeypatch.setenv("MUELLE_WORKERS", "2")
    assert main(["config", "--json", "--timeout-s", "3"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["listen.port"] == {"value": 7, "origin": "muelle.toml:1"}
    assert shown["worker.workers"] == {"value": 2, "origin": "MUELLE_WORKERS"}
    assert shown["timeout_s"] == {"value": 3.0, "origin": "--timeout-s"}
    assert shown["drain_s"]["origin"] == "default"


def test_config_limits_is_the_table_of_limits(capsys: pytest.CaptureFixture[str]) -> None:
    """Only limits, one a line, readable without a terminal."""
    assert main(["config", "limits"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["setting", "value", "from", "meaning"]
    assert rows
    assert all(row.startswith("limits.") for row in rows)


def test_config_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The schema prints as JSON on stdout and refuses unknown keys."""
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["port"]["maximum"] == 65535


def test_version_names_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    """Muelle, Python and each runtime's libraries, as text and as JSON."""
    assert main(["version", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["runtimes"]["onnx"]["onnxruntime"]
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith(f"muelle {facts['muelle']}")


def test_the_language_of_the_terminal_is_spoken() -> None:
    """MUELLE_LANG=es gives Spanish help and Spanish errors."""
    assert "Órdenes" in run(["--help"], {"MUELLE_LANG": "es"}).stdout
    assert "no hay orden" in run(["srve"], {"MUELLE_LANG": "es"}).stderr


def test_no_command_shows_help_and_exits_2() -> None:
    """`muelle` alone: the help on stderr, and the exit code of wrong use."""
    done = run([], {})
    assert done.returncode == 2
    assert "Commands:" in done.stderr
    assert done.stdout == ""


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    """`muelle config | head -1` ends quietly."""
    command = f"{sys.executable} -m muelle config schema"
    with subprocess.Popen(
        command.split(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
