"""Which source wins, and what is said when they contradict each other."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from muelle.config.merge import resolve
from muelle.config.schema import settings
from muelle.config.sections import ServeConfig
from muelle.core.errors import ConfigError

SOURCES = ("flag", "env", "file")


def test_with_no_source_everything_is_the_default() -> None:
    """Nothing given: the Struct's own defaults, and origin `default` for each."""
    config, origins = resolve({}, {}, None)
    assert config == ServeConfig()
    assert origins == {s.path: "default" for s in settings()}


@pytest.mark.parametrize(
    "present", [c for n in range(4) for c in itertools.combinations(SOURCES, n)], ids="+".join
)
def test_flag_beats_env_beats_file_beats_default(tmp_path: Path, present: tuple[str, ...]) -> None:
    """For every combination of sources the strongest one present wins, and is named."""
    file = tmp_path / "muelle.toml"
    file.write_text("\nworkers = 3\n" if "file" in present else "")
    flags = {"workers": "5"} if "flag" in present else {}
    env = {"MUELLE_WORKERS": "4"} if "env" in present else {}

    config, origins = resolve(flags, env, file)

    answers = {
        "flag": (5, "--workers"),
        "env": (4, "MUELLE_WORKERS"),
        "file": (3, f"{file}:2"),
        "default": (1, "default"),
    }
    winner = next((s for s in SOURCES if s in present), "default")
    assert (config.worker.workers, origins["worker.workers"]) == answers[winner]


def test_sources_mix_setting_by_setting(tmp_path: Path) -> None:
    """One table may get its members from different sources."""
    file = tmp_path / "muelle.toml"
    file.write_text("[batching]\nmax_queue = 7\n")
    config, _ = resolve({"max_batch_size": "8"}, {"MUELLE_BATCHING__MAX_DELAY_MS": "2"}, file)
    batching = config.batching
    assert (batching.max_queue, batching.max_batch_size, batching.max_delay_ms) == (7, 8, 2.0)


def test_a_mistake_counts_even_where_it_is_overridden(tmp_path: Path) -> None:
    """A wrong value in the file is reported though an option would have won."""
    file = tmp_path / "muelle.toml"
    file.write_text("port = 'x'\n")
    with pytest.raises(ConfigError, match="muelle.toml:1"):
        resolve({"port": "1"}, {}, file)


def test_a_contradiction_names_both_sides() -> None:
    """Values that are right one by one but not together: each with where it stands."""
    with pytest.raises(ConfigError) as error:
        resolve({"max_batch_size": "1"}, {"MUELLE_MAX_DELAY_MS": "5"}, None)
    for part in ("no effect", "--max-batch-size", "MUELLE_MAX_DELAY_MS"):
        assert part in error.value.message
