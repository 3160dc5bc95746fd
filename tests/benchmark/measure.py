"""What the contenders of tests/benchmark share: measuring work, and using the template as a script does."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from script_file import imported

Job = dict[str, Any]  # contender, url, template, threads, warm_up, count, ...
Cost = dict[str, Any]  # wall, cpu, memory, ...
Work = Callable[[int], object]  # does its work for this number of items
SKIPPED = 3  # exit code of contenders.py
BUILD = """
import platform, sysconfig
version, (_, built), compiler = platform.python_version(), platform.python_build(), platform.python_compiler()
arguments = sysconfig.get_config_var("CONFIG_ARGS")
how = "perhaps with" if arguments is None else "with" if "--enable-optimizations" in arguments else "without"
print(f"{version} ({built}, {compiler}), configured {how} --enable-optimizations")
"""


class Skipped(Exception):
    """A contender cannot take part, for the reason in the text."""


def build_of(python: str) -> str:
    """Describe an interpreter, with --enable-optimizations or without; "" if it does not run."""
    try:
        return subprocess.run([python, "-c", BUILD], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def measured(job: Job, work: Work) -> Cost:
    """Do the work, after a warm-up if the job has one: seconds of wall and CPU, and megabytes above the start."""
    if "warm_up" in job:
        work(job["warm_up"])
    memory = memory_at_start()
    started, cpu = time.perf_counter(), time.process_time()
    results = work(job.get("count", 0))
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    del results  # kept until now, because freeing a study takes a while and is not part of fetching it
    return {"wall": wall, "cpu": cpu, "memory": status_of_process("VmHWM") - memory}


def memory_at_start() -> float:
    """Reset the peak of memory; returns what is in use now, in megabytes."""
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/clear_refs").write_text("5")
    return status_of_process("VmRSS")


def status_of_process(field: str) -> float:
    """Return a field of this process's status in megabytes; NaN if there is none, as outside Linux."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
    return float("nan")


def use_up(results: Iterable[object]) -> None:
    """Iterate to the end and keep nothing."""
    collections.deque(results, maxlen=0)


def per_thread(make: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that gives each thread its own result of `make`."""
    local = threading.local()

    def get() -> Any:
        if not hasattr(local, "own"):
            local.own = make()
        return local.own

    return get


def in_plain_pool(job: Job, call: Callable[[int], object]) -> Cost:
    """Measure calls in a ThreadPoolExecutor."""
    with ThreadPoolExecutor(job["threads"]) as pool:
        return measured(job, lambda count: use_up(pool.map(call, range(count))))


def template_of(job: Job) -> Any:
    """Import the copy of the template to measure, for the server and the threads of the job."""
    addresses = {f"EB_{service}_URL": f"{job['url']}/{service.lower()}" for service in ("IAM", "RC", "GDD")}
    os.environ.update(addresses, EB_USER_NAME="bench", EB_PASSWORD="bench-password", EB_THREADS=str(job["threads"]))
    template: Any = imported(Path(job["template"]))
    template.MAX_THREADS = max(template.MAX_THREADS, job["threads"])
    return template


def in_run(template: Any, measure: Callable[[], Cost]) -> Cost:
    """Measure inside the template's `run`, as in a script: logged in, with an open log."""
    costs: list[Cost] = []
    code = template.run(lambda: costs.append(measure()))
    if code:
        sys.exit(f"the template ended with {code}")
    return costs[0]


def in_run_parallel(job: Job, template: Any, call: Callable[[int], object]) -> Cost:
    """Measure calls in the template's run_parallel."""
    return in_run(template, lambda: measured(job, lambda count: use_up(template.run_parallel(call, range(count)))))
