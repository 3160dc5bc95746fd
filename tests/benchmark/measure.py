"""What the contenders of tests/benchmark share: how work is measured, and the template as a script uses it."""

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
Work = Callable[[int], object]  # does its work for so many items
SKIPPED = 3  # exit code of contenders.py
BUILD = """
import platform, sysconfig
version, (_, built), compiler = platform.python_version(), platform.python_build(), platform.python_compiler()
arguments = sysconfig.get_config_var("CONFIG_ARGS")
how = "perhaps with" if arguments is None else "with" if "--enable-optimizations" in arguments else "without"
print(f"{version} ({built}, {compiler}), configured {how} --enable-optimizations")
"""


class Skipped(Exception):
    """A contender cannot take part; says why."""


def build_of(python: str) -> str:
    """Describe an interpreter, and whether profile-guided optimisation was asked for; "" if it does not run."""
    try:
        return subprocess.run([python, "-c", BUILD], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def measured(job: Job, work: Work) -> Cost:
    """Do the work, some of it before that if it is to be warm: seconds of wall and CPU, megabytes above the start."""
    if "warm_up" in job:
        work(job["warm_up"])
    memory = memory_at_start()
    started, cpu = time.perf_counter(), time.process_time()
    results = work(job.get("count", 0))
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    del results  # kept until now: to free a study takes a while, and is not part of fetching it
    return {"wall": wall, "cpu": cpu, "memory": status_of_process("VmHWM") - memory}


def memory_at_start() -> float:
    """Begin a new peak of memory here; what is in use now, in megabytes."""
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/clear_refs").write_text("5")
    return status_of_process("VmRSS")


def status_of_process(field: str) -> float:
    """Return a field of this process's status in megabytes; NaN where there is none, as outside Linux."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
    return float("nan")


def use_up(results: Iterable[object]) -> None:
    """Iterate to the end, keeping nothing."""
    collections.deque(results, maxlen=0)


def per_thread(make: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that gives each thread its own one of what `make` makes."""
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
    """Import the template, or the copy that is to be measured, for the server and the threads of the job."""
    addresses = {f"EB_{service}_URL": f"{job['url']}/{service.lower()}" for service in ("IAM", "RC", "GDD")}
    os.environ.update(addresses, EB_USER_NAME="bench", EB_PASSWORD="bench-password", EB_THREADS=str(job["threads"]))
    template: Any = imported(Path(job["template"]))
    template.MAX_THREADS = max(template.MAX_THREADS, job["threads"])
    return template


def in_run(template: Any, measure: Callable[[], Cost]) -> Cost:
    """Measure within the template's `run`, as in a script: logged in, its log open."""
    costs: list[Cost] = []
    code = template.run(lambda: costs.append(measure()))
    if code:
        sys.exit(f"the template ended with {code}")
    return costs[0]


def in_run_parallel(job: Job, template: Any, call: Callable[[int], object]) -> Cost:
    """Measure calls in the template's run_parallel."""
    return in_run(template, lambda: measured(job, lambda count: use_up(template.run_parallel(call, range(count)))))
