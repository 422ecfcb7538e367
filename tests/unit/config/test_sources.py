"""Readers of options, variables and files: each mistake is found, at its place, with its cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from muelle.config.schema import Setting, settings
from muelle.config.sources import find_file, key_lines, read_env, read_file, read_flags
from muelle.core.errors import ConfigError

ALL = {s.path: s for s in settings()}
NESTED = [s for s in settings() if "." in s.path]


def write(folder: Path, text: str, name: str = "muelle.toml") -> Path:
    """Put a file into `folder` and return its path."""
    file = folder / name
    file.write_text(text, "utf-8")
    return file


def refusal(file: Path) -> str:
    """Return the text of the ConfigError that reading the file raises."""
    with pytest.raises(ConfigError) as error:
        read_file(file)
    return error.value.message


def full_sample() -> list[str]:
    """Return the lines of a file that sets every setting, each to its default."""
    lines: list[str] = []
    table = ""
    for setting in settings():
        section, _, leaf = setting.path.rpartition(".")
        if section != table:
            lines.append(f"[{section}]")
            table = section
        lines.append(f"{leaf} = {toml(setting)}")
    return lines


def toml(setting: Setting) -> str:
    """Return a setting's default as TOML writes it."""
    value = setting.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return '["a.onnx"]' if value == () else f'"{value or "a"}"'


def test_a_file_that_sets_everything_is_read(tmp_path: Path) -> None:
    """Every setting can stand in the file, and its origin is its own line."""
    lines = full_sample()
    file = write(tmp_path, "\n".join(lines))
    given = read_file(file)
    assert set(given) == set(ALL)
    for path, found in given.items():
        line = int(found.origin.rpartition(":")[2])
        assert lines[line - 1].startswith(f"{path.rpartition('.')[2]} =")


@pytest.mark.parametrize("setting", settings(), ids=lambda s: s.path)
def test_a_typo_in_any_key_is_found_at_its_line(tmp_path: Path, setting: Setting) -> None:
    """Any key with two letters swapped stops the start, with file:line and the right key."""
    lines = full_sample()
    section, _, leaf = setting.path.rpartition(".")
    start = lines.index(f"[{section}]") if section else 0
    at = next(i for i in range(start, len(lines)) if lines[i].startswith(f"{leaf} ="))
    typo = leaf[:-2] + leaf[-1] + leaf[-2] if leaf[-1] != leaf[-2] else leaf + "x"
    lines[at] = lines[at].replace(leaf, typo, 1)
    message = refusal(write(tmp_path, "\n".join(lines)))
    assert f"muelle.toml:{at + 1}: unknown key" in message
    assert f"'{setting.path}'" in message


@pytest.mark.parametrize("setting", settings(), ids=lambda s: s.path)
def test_a_wrong_type_of_any_value_is_found_at_its_line(tmp_path: Path, setting: Setting) -> None:
    """A date, which no setting takes, is refused with what is allowed."""
    section, _, leaf = setting.path.rpartition(".")
    head = f"[{section}]\n" if section else "\n"
    message = refusal(write(tmp_path, f"{head}{leaf} = 1979-05-27\n"))
    assert "muelle.toml:2: " in message
    assert f"allowed is {setting.allowed}" in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("port = 70000", ["toml:1", "70000", "from 0 to 65535"]),
        ("port = true", ["toml:1", "True", "integer"]),
        ('port = "8080"', ["toml:1", "'8080'", "integer"]),
        ("timeout_s = nan", ["toml:1", "nan", "above 0"]),
        ("timeout_s = inf", ["toml:1", "inf"]),
        ("[batching]\nmax_batch_size = 0", ["toml:2", "at least 1"]),
        ('json_nan = "zero"', ["toml:1", "error or null or string"]),
        ("listen = 3", ["toml:1", "[listen]"]),
        ("a.b.c = 1", ["toml:1", "unknown key 'a'"]),
        ("[lisen]\nport = 1", ["toml:1", "did you mean 'listen'"]),
        ("[batching]\nport = 1", ["toml:2", "did you mean 'listen.port'"]),
        ("[limits]\nqqqq = 1", ["toml:2", "limits.body_bytes"]),
        ("timeout_s = 1\ntimeout_s = 2", ["toml:2", "duplicate key 'timeout_s'"]),
        ("[listen]\nport = 1\n[listen]\nhost = 'a'", ["toml:3", "duplicate"]),
        ("port = 1\n[listen]\nport = 2", ["toml:3", "already set by", "toml:1", "keep one"]),
        ("x = \n", ["toml:1"]),
        ('name = """a', ["toml:1"]),
    ],
)
def test_mistakes_name_the_place_and_the_cure(tmp_path: Path, text: str, parts: list[str]) -> None:
    """What is wrong, in which line, and what would be right."""
    message = refusal(write(tmp_path, text))
    for part in parts:
        assert part in message


def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    """Latin-1 text gives one line, not a traceback."""
    file = tmp_path / "muelle.toml"
    file.write_bytes('name = "ñ"'.encode("latin-1"))
    assert "not UTF-8" in refusal(file)


def test_key_lines_are_found_behind_all_that_toml_allows() -> None:
    """Arrays over lines, multi-line texts, comments and inline tables do not mislead the count."""
    text = '''# [listen]
a = [ # port = 1
  "]", "x = 2",
]
b = """
c = 3
"""
[t . "u"] # = [
"d.e" = { f = 1 }
g.h = '#'
'''
    assert key_lines(text) == {
        ("a",): 2,
        ("b",): 5,
        ("t",): 8,
        ("t", "u"): 8,
        ("t", "u", "d.e"): 9,
        ("t", "u", "g"): 10,
        ("t", "u", "g", "h"): 10,
    }


def test_models_in_a_file_are_relative_to_its_folder(tmp_path: Path) -> None:
    """A file elsewhere names its models from where it lies; absolute paths stay."""
    file = write(tmp_path, 'models = ["a.onnx", "b=sub/c.onnx", "/d.onnx", "x/e=f.onnx", "~/g"]')
    assert read_file(file)["models"].value == (
        f"{tmp_path}/a.onnx",
        f"b={tmp_path}/sub/c.onnx",
        "/d.onnx",
        f"{tmp_path}/x/e=f.onnx",
        "~/g",
    )


def test_pyproject_is_used_only_for_its_own_table(tmp_path: Path) -> None:
    """`[tool.muelle]` counts, with its own line; a project without it is passed over."""
    project = write(tmp_path, '[project]\nname = "x"\n', "pyproject.toml")
    assert find_file(tmp_path, None) is None
    project.write_text('[project]\nname = "x"\n[tool.muelle]\nport = 7\n')
    assert find_file(tmp_path, None) == project
    assert read_file(project)["listen.port"].origin.endswith("pyproject.toml:4")
    own = write(tmp_path, "")
    assert find_file(tmp_path, None) == own


def test_a_file_asked_for_must_be_there(tmp_path: Path) -> None:
    """--config with no such file is an error, not a silent default."""
    with pytest.raises(ConfigError, match="no such file"):
        find_file(tmp_path, str(tmp_path / "no.toml"))


@pytest.mark.parametrize("setting", settings(), ids=lambda s: s.path)
def test_every_setting_has_a_variable(setting: Setting) -> None:
    """The flat and the nested form set the same thing, from text."""
    unset = setting.default in (None, "", ())
    text = "x" if unset else str(setting.default)
    if setting.path == "models":
        text = "a.onnx 'b c.onnx'"
    for variable in setting.variables:
        given = read_env({variable: text})
        assert given[setting.path].origin == variable
        if setting.path == "models":
            assert given["models"].value == ("a.onnx", "b c.onnx")
        elif not unset:
            assert given[setting.path].value == setting.default


@pytest.mark.parametrize("setting", NESTED, ids=lambda s: s.path)
def test_a_typo_in_any_variable_is_found(setting: Setting) -> None:
    """An unknown MUELLE_ variable stops the start and names the nearest one."""
    variable = setting.variables[0]
    with pytest.raises(ConfigError, match=f"did you mean '{variable}'"):
        read_env({variable[:-1] + "_" + variable[-1]: "1"})


def test_two_variables_for_one_setting_are_refused() -> None:
    """The flat and the nested form together are a contradiction that nobody meant."""
    with pytest.raises(ConfigError, match=r"already set by MUELLE_LISTEN__PORT"):
        read_env({"MUELLE_PORT": "1", "MUELLE_LISTEN__PORT": "2"})


def test_kubernetes_service_links_are_no_settings() -> None:
    """A Service named `muelle` puts such variables into pods; they must not stop the start."""
    links = {
        "MUELLE_PORT": "tcp://10.0.0.1:8080",
        "MUELLE_SERVICE_HOST": "10.0.0.1",
        "MUELLE_SERVICE_PORT": "8080",
        "MUELLE_SERVICE_PORT_HTTP": "8080",
        "MUELLE_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "MUELLE_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    assert read_env(links) == {}


def test_port_is_the_weakest_variable() -> None:
    """PORT, which platforms set, counts only where MUELLE_PORT is silent or empty."""
    assert read_env({"PORT": "9"})["listen.port"].origin == "PORT"
    assert read_env({"PORT": "9", "MUELLE_PORT": "8"})["listen.port"].value == 8
    assert read_env({"PORT": "9", "MUELLE_PORT": " "})["listen.port"].value == 9
    with pytest.raises(ConfigError, match="PORT"):
        read_env({"PORT": "http"})


@pytest.mark.parametrize(("text", "value"), [("1", True), ("Yes", True), ("off", False)])
def test_booleans_are_read_from_common_words(text: str, value: bool) -> None:
    """1, true, yes, on and their opposites, in any case."""
    assert read_env({"MUELLE_TRUST": text})["trust"].value is value


def test_flags_are_checked_like_everything_else() -> None:
    """An option's text is converted, named in its error, and left out when not given."""
    assert read_flags({"port": "9", "host": None, "models": ()})["listen.port"].value == 9
    with pytest.raises(ConfigError, match=r"^--port: got 'x', allowed is an integer from 0"):
        read_flags({"port": "x"})
