"""The text of `/metrics`, read back by the reference parser and by a strict one of our own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from muelle.core.status import ModelStatus, VersionStatus, WorkerStatus
from muelle.telemetry.exposition import ProcessFacts, render
from muelle.telemetry.metrics import VersionMetrics

NASTY = 'say "hi"\\ to\nall'
FACTS = ProcessFacts(cpu_s=1.5, resident_bytes=4096, open_fds=9, start_time_s=1e9)

_LINE = re.compile(
    r'(?P<name>[a-z_:][a-z0-9_:]*)(?:\{(?P<labels>(?:[a-z_]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? '
    r"(?P<value>-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|\+Inf|NaN))"
)


def strictly(text: bytes) -> dict[str, set[str]]:
    """Return family -> its series. Raise ValueError on anything that the format does not allow."""
    if not text.endswith(b"\n"):
        raise ValueError("the last line does not end")
    families: dict[str, set[str]] = {}
    family = kind = ""
    for line in text.decode().split("\n")[:-1]:
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            if family in families:
                raise ValueError(f"{family} comes twice")
            families[family] = set()
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            if name != family or kind not in ("counter", "gauge", "histogram"):
                raise ValueError(line)
        else:
            found = _LINE.fullmatch(line)
            if found is None:
                raise ValueError(line)
            endings = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            if found["name"] not in [family + ending for ending in endings]:
                raise ValueError(f"{line} is not of {family}")
            if kind == "counter" and not family.endswith("_total"):
                raise ValueError(f"{family}: a counter ends in _total")
            series = f"{found['name']}{{{found['labels'] or ''}}}"
            if series in families[family]:
                raise ValueError(f"{series} comes twice")
            families[family].add(series)
    return families


def version(number: str = "1", digest: str = "") -> VersionStatus:
    """Return a version with a worker that computes and one that starts."""
    return VersionStatus(
        version=number,
        state="READY",
        reason="",
        digest=digest,
        format="ONNX",
        runtime="onnx",
        signature=None,
        example=None,
        info={},
        workers=(
            WorkerStatus(index=0, state="busy", pid=1, restarts=2, rss_bytes=1_000_000),
            WorkerStatus(index=1, state="starting", pid=None, restarts=1, rss_bytes=0),
        ),
        queue_depth=5,
        in_flight=7,
        isolation="process",
        max_batch_size=32,
    )


def counted() -> VersionMetrics:
    """Return counters after two answers."""
    metrics = VersionMetrics("iris", "1")
    metrics.counter("v2", "ok").add(2)
    metrics.total.observe_many([0.0002, 40.0])
    return metrics


MODELS = (ModelStatus(name="iris", default="1", versions=(version(digest=NASTY),)),)


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Read the text with prometheus-client's parser."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_every_promised_family_is_there_in_valid_form() -> None:
    """Both parsers read the text, and no family is missing."""
    text = render(MODELS, [counted()], "1.2.3", FACTS)
    families = strictly(text)
    assert families.keys() >= {
        "muelle_requests_total",
        "muelle_request_duration_seconds",
        "muelle_queue_duration_seconds",
        "muelle_inference_duration_seconds",
        "muelle_batch_size",
        "muelle_queue_depth",
        "muelle_inflight_requests",
        "muelle_workers",
        "muelle_worker_restarts_total",
        "muelle_worker_memory_bytes",
        "muelle_model_info",
        "muelle_build_info",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    }
    assert all(families.values())
    assert len(samples(text)) == sum(map(len, families.values()))


def test_the_values_are_those_that_were_counted() -> None:
    """Counters, buckets, gauges and states come out under their labels."""
    found = samples(render(MODELS, [counted()], "1.2.3", FACTS))
    of = {("model", "iris"), ("version", "1")}

    def value(name: str, **labels: str) -> float:
        return found[name, frozenset(of | set(labels.items()))]

    assert value("muelle_requests_total", protocol="v2", outcome="ok") == 2
    assert value("muelle_requests_total", protocol="native", outcome="ok") == 0
    assert value("muelle_request_duration_seconds_bucket", le="0.0001") == 0
    assert value("muelle_request_duration_seconds_bucket", le="0.00025") == 1
    assert value("muelle_request_duration_seconds_bucket", le="+Inf") == 2
    assert value("muelle_request_duration_seconds_sum") == pytest.approx(40.0002)
    assert value("muelle_queue_depth") == 5
    assert value("muelle_inflight_requests") == 7
    assert value("muelle_workers", state="busy") == 1
    assert value("muelle_workers", state="ready") == 0
    assert value("muelle_worker_restarts_total") == 3
    assert value("muelle_worker_memory_bytes", worker="0") == 1_000_000


def test_hostile_label_values_are_escaped() -> None:
    """Quotes, backslashes and line ends in a value come back as they were."""
    found = samples(render(MODELS, [], "1.2.3", FACTS))
    (labels,) = (dict(labels) for name, labels in found if name == "muelle_model_info")
    assert labels["digest"] == NASTY


def test_requests_cannot_add_series() -> None:
    """However much is counted, the number of series stays what the models make it."""
    quiet = strictly(render(MODELS, [VersionMetrics("iris", "1")], "1", FACTS))
    assert strictly(render(MODELS, [counted()], "1", FACTS)) == quiet


def test_nothing_served_is_still_valid() -> None:
    """A server without models has metrics too."""
    assert "process_cpu_seconds_total" in strictly(render((), (), "1", FACTS))


@pytest.mark.parametrize(
    "text",
    [
        b"# HELP a b\n# TYPE a gauge\na 1",
        b"# HELP a b\n# TYPE a gauge\nb 1\n",
        b'# HELP a b\n# TYPE a gauge\na{x="y} 1\n',
        b"# HELP a b\n# TYPE a gauge\na 1\na 1\n",
        b"# HELP a b\n# TYPE a counter\na 1\n",
        b"# HELP a b\n# TYPE a gauge\na one\n",
    ],
)
def test_the_strict_parser_finds_faults(text: bytes) -> None:
    """Negative control: the parser that the tests above rely on refuses what is wrong."""
    with pytest.raises(ValueError):
        strictly(text)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux only")
def test_the_kernel_s_facts_are_this_process_s() -> None:
    """Memory, descriptors and start are read from the right fields."""
    facts = ProcessFacts.read()
    assert facts.resident_bytes is not None and 5e6 < facts.resident_bytes < 5e10
    assert facts.virtual_bytes is not None and facts.virtual_bytes > facts.resident_bytes
    assert facts.open_fds is not None and facts.open_fds >= 3
    assert facts.start_time_s is not None
    started = os.stat("/proc/self").st_ctime
    assert abs(facts.start_time_s - started) < 3600
    assert facts.cpu_s > 0


def test_a_system_without_proc_tells_what_it_can(tmp_path: Path) -> None:
    """Off Linux the CPU time is still there, and the rest is left out, not invented."""
    facts = ProcessFacts.read(tmp_path)
    assert facts.cpu_s > 0 and facts.resident_bytes is None
    families = strictly(render((), (), "1", facts))
    assert "process_resident_memory_bytes" not in families
