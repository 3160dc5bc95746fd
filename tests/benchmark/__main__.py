"""Compare the template with other ways to do the same work: python3 tests/benchmark [--quick] [--json FILE].

All contenders take turns against one local server. The tables show the median and the range of the rounds, and the
median of the ratios within each round. The goals of the template are judged below each table, and a summary of all
tables ends the report. README.md in this folder explains the method and the figures. A whole run takes 20 minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from environment import TEMPLATE, environment_python, stop
from measure import SKIPPED, Cost, Job, build_of
from next_httpx import copy_moved
from parts import Part, parts
from report import Results, lines_of, report, summary

HERE = Path(__file__).resolve().parent
PACKAGES = ("httpx", "httpcore", "h11", "tqdm", "httpx2", "requests", "aiohttp", "pycurl", "dlt", "singer-sdk")
JOB_LIMIT = 900  # seconds; a contender that takes longer is considered to hang


class Benchmark:
    """Measures the parts with one server and one interpreter."""

    def __init__(self, python: str, template: Path, url: str) -> None:
        self.python, self.template, self.url = python, template, url

    def run(self, part: Part) -> Results:
        """Let the contenders of a part take turns; every round begins with a different one."""
        results, labels = Results(), list(part.jobs)
        for turn in range(part.rounds):
            for label in labels[turn % len(labels) :] + labels[: turn % len(labels)]:
                if label in results.missing:
                    continue
                try:
                    results.costs.setdefault(label, []).append(self.cost(part.jobs[label]))
                except RuntimeError as error:
                    results.missing[label] = str(error)
                    results.costs.pop(label, None)
        return results

    def cost(self, job: Job) -> Cost:
        """Return what one job costs; raises RuntimeError if that could not be measured."""
        self.calls_answered()
        cost: Cost = self.contend(job)
        cost["calls"] = self.calls_answered()
        if job.get("calls") not in (None, cost["calls"]):
            raise RuntimeError(f"failed: {cost['calls']} of {job['calls']} calls were answered")
        if job.get("count"):
            cost["per item"] = cost["wall"] / job["count"] * 10**6
        return cost

    def contend(self, job: Job) -> Any:
        """Run a job in its own process; if it asks for httpx2, with a copy of the template moved to that."""
        with tempfile.TemporaryDirectory() as folder:
            template = self.template
            if job.get("httpx2"):
                template = Path(folder, "moved.py")
                copy_moved(str(self.template), str(template))
            job = {**job, "url": f"{self.url}/{job.get('latency', 0)}", "template": str(template)}
            command = [self.python, str(HERE / "contenders.py"), json.dumps(job)]
            done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=JOB_LIMIT)
        if done.returncode == SKIPPED:
            raise RuntimeError(f"skipped: {done.stdout.strip()}")
        if done.returncode:
            raise RuntimeError(f"failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
        return json.loads(done.stdout)

    def calls_answered(self) -> int:
        """Return how many calls the server has answered since the last time."""
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{self.url}/count") as response:
            return int(response.read())


@contextmanager
def server(python: str, *options: object) -> Iterator[str]:
    """Run the server; yields its address."""
    command = [python, str(HERE / "lean_server.py"), *map(str, options)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            stop("the server did not start")
        yield json.loads(line)["url"]
    finally:
        process.communicate()  # closes its standard input, which ends it


def machine(python: str, other_python: str) -> dict[str, Any]:
    """Describe the machine that the figures were measured on."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(": ")[2] if names else processor
    return {
        "system": platform.platform(),
        "processor": processor,
        "cores": os.cpu_count(),
        "load": load(),
        "Python": build_of(python),
        other_python: build_of(other_python) or "does not run",
    }


def load() -> float:
    """Return how many processes wanted to run in the last minute, including those of the benchmark."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else math.nan


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python3 tests/benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="run one small round of each part, to show that it works")
    add("--json", type=Path, metavar="FILE", help="write the figures of every round to this file")
    add("--only", metavar="TITLE", default="", help="only the parts with a table whose title begins so: 2, or '1. 60'")
    add("--template", type=Path, default=TEMPLATE, metavar="FILE", help="the copy of the template to measure")
    add("--other-python", metavar="FILE", default="/usr/bin/python3", help="another build; default: %(default)s")
    add("--here", action="store_true", help="use this interpreter and its packages; install nothing")
    return parser.parse_args()


def main() -> int:
    """Run the parts and print their tables; returns 1 if a contender failed."""
    options = parsed()
    template = options.template.resolve()
    python = sys.executable if options.here else str(environment_python("benchmark/requirements.txt", "-benchmark"))
    centres, patients = (10, 100) if options.quick else (100, 2500)
    with server(python, "--centres", centres, "--patients", patients) as url:
        benchmark = Benchmark(python, template, url)
        versions = benchmark.contend({"contender": "versions", "packages": PACKAGES})
        on = machine(python, options.other_python)
        whole: dict[str, Any] = {"machine": on, "versions": versions, "tables": []}
        print("\n".join(f"- {name}: {value}" for name, value in on.items()))
        print("-", ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items()))
        for part in parts(centres, patients, options.other_python, options.quick):
            if any(table.title.startswith(options.only) for table in part.tables):
                results = benchmark.run(part)
                for table in part.tables:
                    whole["tables"].append(report(table, results, options.quick))
                    print("\n".join(lines_of(whole["tables"][-1])), flush=True)
    whole["machine"]["load at the end"] = load()
    print("\n".join(summary(whole["tables"])))
    print(f"\nload at the end: {whole['machine']['load at the end']}")
    if options.json:
        options.json.write_text(json.dumps(whole, indent=2, ensure_ascii=False), encoding="utf-8")
    rows = [row for table in whole["tables"] for row in table["rows"]]
    return int(any(row.get("missing", "").startswith("failed") for row in rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
