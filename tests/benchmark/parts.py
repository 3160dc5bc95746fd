"""What the benchmark measures: its parts, the contenders in each, and the goals of the template."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from measure import Cost, Job


@dataclass(frozen=True)
class Goal:
    """What a contender should reach: at most so many times the figure of another one, or else a fixed figure."""

    contender: str
    at_most: float
    over: str | None = None


@dataclass(frozen=True)
class Table:
    """One figure of all contenders of a part, and its ratio to one of them or to a limit."""

    title: str
    unit: str
    figure: Callable[[Cost], Any]
    over: str
    limit: float = math.nan  # what `over` stands for if it is not a contender
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class Part:
    """Competing jobs, the number of rounds, and the tables that show them."""

    jobs: dict[str, Job]
    rounds: int
    tables: tuple[Table, ...]


CALLS: dict[str, Job] = {  # of parts 1 and 2
    "template": {"contender": "template_calls"},
    "template, calls as in existing scripts": {"contender": "template_existing_form"},
    "bare httpx": {"contender": "bare_httpx"},
    "requests": {"contender": "requests_calls"},
    "aiohttp": {"contender": "aiohttp_calls"},
    "pycurl": {"contender": "pycurl_calls"},
}


def latency(threads: int, reach: float, quick: bool) -> Part:
    """Part 1: calls that take 100 ms, whatever the client does."""
    calls = threads * (5 if quick else 60)
    rounds, limit = 1 if quick else 5, calls * 0.1 / threads
    settings = {"latency": 0.1, "threads": threads, "warm_up": 2 * threads, "count": calls}
    rivals = (Goal("template", 1, rival) for rival in ("bare httpx", "requests", "aiohttp"))
    goals = (Goal("template", reach, "the limit"), *rivals)
    title = f"{threads} threads, {calls:,} calls of 100 ms"
    wall = Table(f"1. {title}: wall", "s", lambda cost: cost["wall"], "the limit", limit, goals)
    return Part({label: {**job, **settings} for label, job in CALLS.items()}, rounds, (wall,))


def cpu_per_call(other_python: str, quick: bool) -> Part:
    """Part 2: what a call costs apart from waiting, also on the next httpx and on another build of Python."""
    calls = 300 if quick else 2000
    settings = {"latency": 0, "threads": 20, "warm_up": 200, "count": calls}
    goals = (Goal("template", 1, "bare httpx"),)
    title = f"2. {calls:,} calls without latency, 20 threads: CPU per call"
    table = Table(title, "ms", lambda cost: cost["cpu"] / calls * 1000, "bare httpx", goals=goals)
    jobs: dict[str, Job] = {
        **CALLS,
        "template on httpx2": {"contender": "template_calls", "httpx2": True},
        f"template, on {other_python}": {"contender": "template_on_other_python", "python": other_python},
    }
    return Part({label: {**job, **settings} for label, job in jobs.items()}, 1 if quick else 11, (table,))


def clients(quick: bool) -> Part:
    """Part 3: the time until every thread has its client."""
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
    """Part 4: what an item costs in run_parallel; it should be the same, however many there are."""
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
    """Part 6: the whole study; slow contenders do part of it, and their times are scaled by their calls."""
    calls = 1 + centres + 3 * patients
    whole = {"latency": 0.05, "threads": 60, "centres": centres, "calls": calls}
    few = {**whole, "centres": 2 if quick else 5, "calls": None}
    some = {**whole, "centres": 5 if quick else 20, "calls": None}
    # It requests one more page from each centre, and is the only contender to know that nothing is missing.
    template = {**whole, "contender": "template", "threads": 20, "calls": calls + centres}
    ours, next_httpx = "template, 20 + 40 threads", "template on httpx2"
    jobs: dict[str, Job] = {
        ours: template,
        next_httpx: {**template, "httpx2": True},
        "aiohttp, 60 connections": {**whole, "contender": "aiohttp_connections"},
        "requests, 60 threads": {**whole, "contender": "requests_pool"},
        "dlt rest_api, 60 workers": {**whole, "contender": "dlt_source", "workers": 60},
        f"dlt rest_api by default, 5 workers ({some['centres']} centres, scaled)": {**some, "contender": "dlt_source"},
        f"singer-sdk stream ({few['centres']} centres, scaled)": {**few, "contender": "singer_stream"},
        f"requests, one after the other ({few['centres']} centres, scaled)": {
            **few,
            "contender": "requests_sequential",
        },
    }
    goals = tuple(Goal(ours, 1, rival) for rival in jobs if rival not in (ours, next_httpx))
    title = f"6. The study: {centres} centres, {patients:,} patients, {calls:,} calls of 50 ms"
    tables = (
        Table(f"{title}: wall", "s", lambda cost: cost["wall"] * max(1, calls / cost["calls"]), ours, goals=goals),
        Table(f"{title}: CPU", "s", lambda cost: cost["cpu"] * max(1, calls / cost["calls"]), ours),
    )
    return Part(jobs, 1 if quick else 3, tables)


def parts(centres: int, patients: int, other_python: str, quick: bool) -> Iterator[Part]:
    """Yield all parts in order."""
    yield latency(20, 1.03, quick)
    yield latency(60, 1.06, quick)
    yield cpu_per_call(other_python, quick)
    yield clients(quick)
    yield items(quick)
    yield start(quick)
    yield study(centres, patients, quick)
