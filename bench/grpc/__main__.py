"""Measure Muelle's gRPC beside grpcio's asyncio server, PyTriton and tritonserver, in one run.

    python -m bench.grpc [--quick] [--model tabular ...] [--server muelle ...] [--docs]

Needs Linux, two cores, h2load and wrk. Servers run on core 0, the load on core 1. Results go to
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

from bench.grpc.measure import QUICK, SHAPES, Plan, measure_model
from bench.grpc.report import Report, grpc_machine
from bench.grpc.servers import ALL
from bench.peers import HERE, WORK, say
from bench.report import write_between_marks

PROGRAMS = {"h2load": "nghttp2-client", "wrk": "wrk"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the gRPC bench; return the exit status."""
    parser = argparse.ArgumentParser(prog="bench.grpc", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about 15 minutes instead of 60")
    parser.add_argument(
        "--model", action="append", choices=tuple(SHAPES), help="only this one; repeatable"
    )
    parser.add_argument("--server", action="append", choices=ALL, help="only this one; repeatable")
    parser.add_argument(
        "--docs", action="store_true", help="write the tables to docs/performance.md"
    )
    options = parser.parse_args(arguments)
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        packages = " ".join(PROGRAMS[name] for name in missing)
        say(f"bench: missing: {', '.join(missing)}; on Debian and Ubuntu: apt install {packages}")
        return 1
    if (os.cpu_count() or 1) < 2:
        say("bench: two cores are needed, one for the servers and one for the load")
        return 1
    plan = QUICK if options.quick else Plan()
    if options.model:
        plan = dataclasses.replace(plan, models=tuple(options.model))
    if options.server:
        plan = dataclasses.replace(plan, servers=tuple(options.server))
    begun = time.monotonic()
    results = {name: measure_model(name, plan) for name in plan.models}
    report = Report(results, grpc_machine(), time.monotonic() - begun, options.quick)
    text = report.markdown()
    print(text)
    say(f"written to {save(report, text)}")
    if options.docs:
        write_between_marks(HERE.parent / "docs" / "performance.md", "measured grpc", text)
    if report.n_failed():
        say(f"bench: {report.n_failed()} requests failed under load")
        return 1
    return 0


def save(report: Report, text: str) -> str:
    """Write JSON and Markdown; return the path of the latter, relative to the repository."""
    folder = WORK / "results"
    folder.mkdir(parents=True, exist_ok=True)
    stem = time.strftime("grpc-%Y%m%d-%H%M%S")
    (folder / f"{stem}.json").write_text(json.dumps(report.json(), indent=1))
    page = folder / f"{stem}.md"
    page.write_text(text)
    return str(page.relative_to(HERE.parent))


if __name__ == "__main__":
    sys.exit(main())
