"""Measure Muelle beside plain FastAPI and the bare onnxruntime loop, in one run.

    python -m bench.run [--quick] [--model tabular ...] [--docs]

Needs Linux, two cores, wrk. Servers run on core 0, the load on core 1. Results go to
bench/work/results/ as JSON and Markdown. Not a test: no time is asserted, but a wrong or failed
answer ends the run with status 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence

from bench.measure import QUICK, Plan, measure_model, start_times
from bench.models import NAMES
from bench.peers import HERE, WORK, environment, say
from bench.processes import SERVER_CORE
from bench.report import Report, machine, write_between_marks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; return the exit status."""
    parser = argparse.ArgumentParser(prog="bench.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about 3 minutes instead of 15")
    parser.add_argument("--model", action="append", choices=NAMES, help="only this one; repeatable")
    parser.add_argument(
        "--docs", action="store_true", help="write the tables to docs/performance.md"
    )
    options = parser.parse_args(arguments)
    if shutil.which("wrk") is None:
        say("bench: wrk is missing; on Debian and Ubuntu: apt install wrk")
        return 1
    if (os.cpu_count() or 1) < 2:
        say("bench: two cores are needed, one for the servers and one for the load")
        return 1
    plan = QUICK if options.quick else Plan()
    if options.model:
        plan = dataclasses.replace(plan, models=tuple(options.model))
    report = run(plan, quick=options.quick)
    text = report.markdown()
    print(text)
    say(f"written to {save(report, text)}")
    if options.docs:
        write_between_marks(HERE.parent / "docs" / "performance.md", "measured", text)
    if report.n_failed():
        say(f"bench: {report.n_failed()} requests failed under load")
        return 1
    return 0


def run(plan: Plan, *, quick: bool) -> Report:
    """Measure everything that the plan names."""
    for name in ("fastapi", "loop"):
        environment(name)
    begun = time.monotonic()
    starts: dict[str, list[float]] = {}
    if "tabular" in plan.models:
        say("start times")
        starts["all cores"] = start_times(plan, core=None)
        starts["one core"] = start_times(plan, core=SERVER_CORE)
    results = {name: measure_model(name, plan) for name in plan.models}
    return Report(results, starts, machine(), time.monotonic() - begun, quick)


def save(report: Report, text: str) -> str:
    """Write JSON and Markdown; return the path of the latter, relative to the bench."""
    folder = WORK / "results"
    folder.mkdir(parents=True, exist_ok=True)
    stem = time.strftime("%Y%m%d-%H%M%S")
    (folder / f"{stem}.json").write_text(json.dumps(report.json(), indent=1))
    page = folder / f"{stem}.md"
    page.write_text(text)
    return str(page.relative_to(HERE.parent))


if __name__ == "__main__":
    sys.exit(main())
