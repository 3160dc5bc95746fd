"""Measure the template against other ways to do the same: python3 tests/bench.py [--quick] [--json FILE].

All contenders work against the same local server in another process, each in a process of its own, one after the other,
round after round, so that what else the machine does meets all alike. The tables show medians and spread of the rounds,
and the median of the ratios within each round. What the template is to reach is judged below each table; a contender
whose package is missing is named as skipped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environment import TESTS, environment_python, stop

TEMPLATE = TESTS.parent / "eb_script_template.py"
PACKAGES = ("httpx", "httpcore", "h11", "tqdm", "requests", "aiohttp", "pycurl", "dlt", "singer-sdk")
NOT_INSTALLED = 3  # exit code of bench_contenders.py
JOB_LIMIT = 900  # seconds; a contender that takes longer hangs

Job = dict[str, Any]
Cost = dict[str, float]


@dataclass(frozen=True)
class Goal:
    """What a contender is to reach: at most so many times another one, or a plain figure if there is no other."""

    contender: str
    at_most: float
    over: str | None = None


@dataclass(frozen=True)
class Table:
    """One figure of all contenders of a part, and its ratio to one of them or to a limit."""

    title: str
    unit: str
    figure: Callable[[Cost], float]
    over: str
    limit: float = math.nan  # what `over` stands for if it is no contender
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class Part:
    """Jobs that compete, how often, and what is shown of them."""

    jobs: dict[str, Job]
    rounds: int
    tables: tuple[Table, ...]


@dataclass
class Results:
    """What the rounds of a part brought: costs by contender, or why there are none."""

    costs: dict[str, list[Cost]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def figures(self, table: Table) -> dict[str, list[float]]:
        """Return a table's figure of each round by contender."""
        return {label: [table.figure(cost) for cost in costs] for label, costs in self.costs.items()}


CALLS: dict[str, Job] = {
    "template": {"contender": "template_calls"},
    "template, calls as in existing scripts": {"contender": "template_existing_form"},
    "bare httpx": {"contender": "bare_httpx"},
    "requests": {"contender": "requests_calls"},
    "aiohttp": {"contender": "aiohttp_calls"},
    "pycurl": {"contender": "pycurl_calls"},
}


def latency(threads: int, reach: float, quick: bool) -> Part:
    """Part 1: calls that take 100 ms, whatever is done about it."""
    calls = threads * (5 if quick else 60)
    rounds, limit = 1 if quick else 5, calls * 0.1 / threads
    settings = {"latency": 0.1, "threads": threads, "warm_up": 2 * threads, "count": calls}
    rivals = (Goal("template", 1, rival) for rival in ("bare httpx", "requests", "aiohttp"))
    goals = (Goal("template", reach, "the limit"), *rivals)
    title = f"{threads} threads, {calls:,} calls of 100 ms"
    wall = Table(f"1. {title}: wall", "s", lambda cost: cost["wall"], "the limit", limit, goals)
    return Part({label: {**job, **settings} for label, job in CALLS.items()}, rounds, (wall,))


def cpu_per_call(quick: bool) -> Part:
    """Part 2: what a call costs besides waiting."""
    calls = 300 if quick else 2000
    settings = {"latency": 0, "threads": 20, "warm_up": 200, "count": calls}
    goals = (Goal("template", 1, "bare httpx"),)
    title = f"2. {calls:,} calls without latency, 20 threads: CPU per call"
    table = Table(title, "ms", lambda cost: cost["cpu"] / calls * 1000, "bare httpx", goals=goals)
    return Part({label: {**job, **settings} for label, job in CALLS.items()}, 1 if quick else 11, (table,))


def clients(quick: bool) -> Part:
    """Part 3: what it takes until every thread has its client."""
    count = 6 if quick else 60
    naive = f"{count} x httpx.Client(), one after the other"
    jobs = {
        "template": {"contender": "template_clients", "count": count, "threads": count},
        naive: {"contender": "naive_clients", "count": count},
    }
    title = f"3. {count} clients for {count} threads"
    tables = (
        Table(f"{title}: wall", "s", lambda cost: cost["wall"], naive, goals=(Goal("template", 0.05, naive),)),
        Table(f"{title}: CPU", "s", lambda cost: cost["cpu"], naive, goals=(Goal("template", 0.05, naive),)),
    )
    return Part(jobs, 1 if quick else 5, tables)


def items(quick: bool) -> Part:
    """Part 4: what an item costs in run_parallel, and that it costs the same however many there are."""
    counts = [10**3, 10**4] if quick else [10**4, 10**5, 10**6]
    label = "template, {:,} items".format
    jobs = {label(count): {"contender": "template_items", "count": count, "threads": 20} for count in counts}
    jobs[plain := f"ThreadPoolExecutor.map, {counts[1]:,} items"] = {
        **jobs[label(counts[1])],
        "contender": "all_submitted",
    }
    first, last = label(counts[0]), label(counts[-1])
    tables = (
        Table("4. Memory above the start", "MB", lambda cost: cost["memory"], plain, goals=(Goal(last, 10),)),
        Table("4. Time per item", "µs", lambda cost: cost["per item"], first, goals=(Goal(last, 1.1, first),)),
    )
    return Part(jobs, 1 if quick else 3, tables)


def start(quick: bool) -> Part:
    """Part 5: how long an import takes."""
    packages = "import httpx, tqdm"
    statements = {
        "template": "import script",
        packages: packages,
        "template as a script, compiled each time": "import runpy; runpy.run_path('script.py')",
    }
    goals = (Goal("template", 1.1, packages),)
    tables = (
        Table("5. Start: wall", "ms", lambda cost: cost["wall"] * 1000, packages, goals=goals),
        Table("5. Start: CPU", "ms", lambda cost: cost["cpu"] * 1000, packages, goals=goals),
    )
    jobs = {label: {"contender": "importing", "statement": statement} for label, statement in statements.items()}
    return Part(jobs, 1 if quick else 15, tables)


def study(centres: int, patients: int, quick: bool) -> Part:
    """Part 6: the whole study; what is slow does a share of it, and is scaled by its calls."""
    calls = 1 + centres + 3 * patients
    whole = {"latency": 0.05, "threads": 60, "centres": centres, "calls": calls}
    few = {**whole, "centres": 2 if quick else 5, "calls": None}
    some = {**whole, "centres": 5 if quick else 20, "calls": None}
    jobs: dict[str, Job] = {
        "template, 20 + 40 threads": {**whole, "contender": "template", "threads": 20},
        "requests, 60 threads": {**whole, "contender": "requests_pool"},
        "dlt rest_api, 60 workers": {**whole, "contender": "dlt_source", "workers": 60},
        f"dlt rest_api as it comes, 5 workers ({some['centres']} centres, scaled)": {**some, "contender": "dlt_source"},
        f"singer-sdk stream ({few['centres']} centres, scaled)": {**few, "contender": "singer_stream"},
        f"requests, one after the other ({few['centres']} centres, scaled)": {
            **few,
            "contender": "requests_sequential",
        },
    }
    ours, *rivals = jobs
    goals = tuple(Goal(ours, 1, rival) for rival in rivals)
    title = f"6. The study: {centres} centres, {patients:,} patients, {calls:,} calls of 50 ms: wall"
    table = Table(title, "s", lambda cost: cost["wall"] * calls / cost["calls"], ours, goals=goals)
    return Part(jobs, 1 if quick else 3, (table,))


class Bench:
    """The server, and the interpreter of the contenders."""

    def __init__(self, python: str, template: Path, url: str) -> None:
        self.python, self.template, self.url = python, template, url

    def run(self, part: Part) -> Results:
        """Let the contenders of a part take turns, each round beginning with another one."""
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
        """Return what one job costs; RuntimeError if it cannot be told."""
        self.calls_answered()
        cost: Cost = self.contend(job)
        cost["calls"] = self.calls_answered()
        if job.get("calls") not in (None, cost["calls"]):
            raise RuntimeError(f"failed: {cost['calls']} of {job['calls']} calls were answered")
        if job.get("count"):
            cost["per item"] = cost["wall"] / job["count"] * 10**6
        return cost

    def contend(self, job: Job) -> Any:
        """Carry out a job in a process of its own."""
        job = {**job, "url": f"{self.url}/{job.get('latency', 0)}", "template": str(self.template)}
        command = [self.python, str(TESTS / "bench_contenders.py"), json.dumps(job)]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=JOB_LIMIT)
        if done.returncode == NOT_INSTALLED:
            raise RuntimeError(f"skipped: {done.stdout.strip()} is not installed")
        if done.returncode:
            raise RuntimeError(f"failed: {(done.stderr.strip() or 'without a word').splitlines()[-1]}")
        return json.loads(done.stdout)

    def calls_answered(self) -> int:
        """Return how many calls the server has answered since this was last asked."""
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{self.url}/count") as response:
            return int(response.read())


@contextmanager
def server(python: str, *options: object) -> Iterator[str]:
    """Run the server; its address."""
    command = [python, str(TESTS / "bench_server.py"), *map(str, options)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            stop("the server did not start")
        yield json.loads(line)["url"]
    finally:
        process.communicate()  # closes its standard input, which ends it


def report(table: Table, results: Results, quick: bool) -> dict[str, Any]:
    """Return a table as data; the quick form is too short for a judgement."""
    figures = results.figures(table)
    rounds = max(map(len, figures.values()), default=0)
    bases = {table.over: [table.limit] * rounds, **figures}
    rows = [
        {
            "contender": label,
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "ratio": ratio(values, bases[table.over]),
            "rounds": values,
        }
        for label, values in figures.items()
    ]
    goals = [judged(goal, bases) for goal in table.goals if not quick]
    missing = [{"contender": label, "missing": why} for label, why in results.missing.items()]
    return {"title": table.title, "unit": table.unit, "over": table.over, "rows": rows + missing, "goals": goals}


def ratio(figures: Sequence[float], bases: Sequence[float]) -> float:
    """Return the median of the rounds' own ratios: what slows a whole round down does not count."""
    return statistics.median(figure / base for figure, base in zip(figures, bases, strict=True))


def judged(goal: Goal, figures: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Tell whether a goal is reached; None if one of the two did not take part."""
    ours = figures.get(goal.contender, ())
    theirs = figures.get(goal.over, ()) if goal.over else [1.0] * len(ours)
    reached = ratio(ours, theirs) if ours and theirs else math.nan
    verdict = None if math.isnan(reached) else reached <= goal.at_most
    return {"contender": goal.contender, "over": goal.over, "at most": goal.at_most, "is": reached, "reached": verdict}


def lines_of(table: dict[str, Any]) -> Iterator[str]:
    """Lay a table out in Markdown."""
    yield f"\n**{table['title']}**\n"
    yield f"| contender | median, {table['unit']} | lowest to highest | over {table['over']} |"
    yield "|---|---:|---:|---:|"
    for row in table["rows"]:
        if "missing" in row:
            yield f"| {row['contender']} | {row['missing']} | | |"
        else:
            spread = f"{digits(row['min'])} to {digits(row['max'])}"
            yield f"| {row['contender']} | {digits(row['median'])} | {spread} | {row['ratio']:.3f} |"
    yield ""
    for goal in table["goals"]:
        yield f"- {goal_line(goal, table['unit'])}"


def goal_line(goal: dict[str, Any], unit: str) -> str:
    """Say what was to be reached and what was."""
    wanted = f"{goal['at most']:.2f} x {goal['over']}" if goal["over"] else f"{goal['at most']:g} {unit}"
    verdict = {True: "reached", False: "NOT reached", None: "not judged"}[goal["reached"]]
    return f"{goal['contender']}, at most {wanted}: {goal['is']:.3f}, {verdict}"


def digits(value: float) -> str:
    """Show three or four digits that count."""
    if math.isnan(value):
        return "unknown"
    return f"{value:,.{max(0, 3 - len(str(int(abs(value)))) + (abs(value) < 1))}f}"


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(": ")[2] if names else processor
    return {"system": platform.platform(), "processor": processor, "cores": os.cpu_count(), "load": load()}


def load() -> float:
    """Return how many processes wanted to run in the last minute, the bench's own among them."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else math.nan


def parts(centres: int, patients: int, quick: bool) -> Iterator[Part]:
    """Yield all parts in their order."""
    yield latency(20, 1.03, quick)
    yield latency(60, 1.06, quick)
    yield cpu_per_call(quick)
    yield clients(quick)
    yield items(quick)
    yield start(quick)
    yield study(centres, patients, quick)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="one small round of each: that all works, not how fast it is")
    add("--json", type=Path, metavar="FILE", help="write the figures of every round there")
    add("--only", metavar="TITLE", default="", help="only the tables whose title begins so: 2, or '1. 60'")
    add("--template", type=Path, default=TEMPLATE, metavar="FILE", help="the copy to measure")
    add("--here", action="store_true", help="use this interpreter and the packages that it has; install nothing")
    return parser.parse_args()


def main() -> int:
    """Run the parts and print their tables; 1 if a contender failed."""
    options = parsed()
    template = options.template.resolve()
    python = sys.executable if options.here else str(environment_python("requirements-bench.txt", "-bench"))
    centres, patients = (10, 100) if options.quick else (100, 2500)
    with server(python, "--centres", centres, "--patients", patients) as url:
        bench = Bench(python, template, url)
        versions = bench.contend({"contender": "versions", "packages": PACKAGES})
        whole: dict[str, Any] = {"machine": machine(), "versions": versions, "tables": []}
        print(", ".join(f"{name} {value}" for name, value in whole["machine"].items()))
        print(", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items()))
        for part in parts(centres, patients, options.quick):
            if any(table.title.startswith(options.only) for table in part.tables):
                results = bench.run(part)
                for table in part.tables:
                    whole["tables"].append(report(table, results, options.quick))
                    print("\n".join(lines_of(whole["tables"][-1])), flush=True)
    whole["machine"]["load at the end"] = load()
    if options.json:
        options.json.write_text(json.dumps(whole, indent=2, ensure_ascii=False), encoding="utf-8")
    rows = [row for table in whole["tables"] for row in table["rows"]]
    return int(any(row.get("missing", "").startswith("failed") for row in rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
