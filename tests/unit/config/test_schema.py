"""The list of settings: complete, described, and the same in schema, docs and texts."""

from __future__ import annotations

from pathlib import Path

from jsonschema_rs import validator_for

from muelle.config.schema import ALIASES, json_schema, settings
from muelle.texts import LANGUAGES, catalogue

DOCS = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_short_names_are_real_and_unique() -> None:
    """Each alias points at a setting, and no two settings share an option or a variable."""
    paths = {s.path for s in settings()}
    assert set(ALIASES.values()) <= paths
    variables = [v for s in settings() for v in s.variables]
    assert len(variables) == len(set(variables))


def test_every_setting_has_a_text_in_every_language() -> None:
    """Help, schema and `muelle config` never show an empty meaning."""
    for language in LANGUAGES:
        texts = catalogue(language)
        assert [s.path for s in settings() if not texts.get(f"setting.{s.path}")] == []


def test_the_docs_list_every_setting() -> None:
    """docs/configuration.md has a row for each, with what is allowed."""
    text = DOCS.read_text("utf-8")
    for setting in settings():
        leaf = setting.path.rpartition(".")[2]
        rows = [line for line in text.splitlines() if line.startswith(f"| `{leaf}` |")]
        assert any(setting.allowed in row for row in rows), setting.path


def test_the_json_schema_agrees_with_the_reader() -> None:
    """It accepts a right file, short names included, and refuses typos and ranges."""
    schema = validator_for(json_schema({}))
    assert schema.is_valid({"models": ["a.onnx"], "port": 1, "batching": {"max_queue": 3}})
    assert not schema.is_valid({"prot": 1})
    assert not schema.is_valid({"batching": {"max_batchsize": 1}})
    assert not schema.is_valid({"listen": {"port": 70_000}})


def test_the_json_schema_carries_texts() -> None:
    """Editors show what a setting means."""
    schema = json_schema({"listen.port": "Port to listen on."})
    assert schema["properties"]["listen"]["properties"]["port"]["description"].startswith("Port")
