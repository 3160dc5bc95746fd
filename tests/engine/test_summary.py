"""The table at the end of the log: held against what the simulated platform counted."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers import OWN_CALLS, SUMMARY, Load, Start, answer, run_script, summary_of, wait_until
from server import Simulator

Script = Callable[..., Path]
ENDPOINTS = {
    "echo": "echo",
    "create": "create",
    "get_statistics": "statistics",
    "search_inclusions_page": "search_inclusions",
    "get_all_organizations": "organizations",
}
LOGINS = {"IAM_login", "RC_config_token", "GDD_config_token"}

# 60 threads call four API functions; what they raise is counted by the script itself.
MIXED_CALLS = """
centres = [organization["id"] for organization in get_all_organizations()]

def work(number):
    calls = [
        (echo, number),
        (create, f"key {number}"),
        (get_statistics, centres[number % len(centres)]),
        (search_inclusions, centres[number % len(centres)], 10, 1),
    ]
    return [type(error).__name__ for error in (failure_of(*call) for call in calls) if error]

def failure_of(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return error

failed = Counter(error for _, errors in run_parallel(work, range(300)) for error in errors)
print(sum(failed.values()))
"""


def run_mixed_calls(
    script: Script, platform: Simulator, **constants: float
) -> tuple[dict[str, dict[str, int]], dict[str, Any], int]:
    """The table of a run with 60 threads, what the platform saw of it, and how many calls failed."""
    path = script(OWN_CALLS + MIXED_CALLS, MAX_THREADS=60, WAIT_BEFORE_RETRY=0.01, **constants)
    done = run_script(path, platform, EB_THREADS="60")
    assert done.returncode == 0, done.stderr
    return summary_of(path.with_suffix(".log").read_text(encoding="utf-8")), platform.seen(), int(done.stdout)


def total(rows: dict[str, dict[str, int]], column: str) -> int:
    return sum(row[column] for row in rows.values())


def test_calls_retries_and_failures_are_exact_under_60_threads_and_faults(simulator: Start, script: Script) -> None:
    platform = simulator(*[f"--fault={kind}=0.07" for kind in ("500", "reset", "429", "truncated", "html")])
    rows, seen, failed = run_mixed_calls(script, platform, ERROR_MAX_RETRY=3, MAX_WAIT_BEFORE_RETRY=2)
    attempts = {name: row["calls"] + row["retries"] for name, row in rows.items()}
    assert sum(attempts.pop(name) for name in LOGINS) == seen["requests"]["login"] + seen["requests"]["config_token"]
    assert attempts == {name: seen["requests"][endpoint] for name, endpoint in ENDPOINTS.items()}
    assert [rows[name]["calls"] for name in ENDPOINTS] == [300, 300, 300, 300, 1]
    assert total(rows, "failures") == failed
    assert failed > 0
    assert total(rows, "retries") > 0
    assert total(rows, "renewals") == 0


def test_renewals_are_exact_under_60_threads_and_tokens_that_run_out(platform: Simulator, script: Script) -> None:
    def let_tokens_run_out() -> None:
        for calls in (50, 120, 200):
            wait_until(lambda calls=calls: platform.seen()["requests"]["echo"] >= calls)
            platform.control(expire="RC")

    clock = threading.Thread(target=let_tokens_run_out)
    clock.start()
    rows, seen, failed = run_mixed_calls(script, platform)
    clock.join()
    assert total(rows, "renewals") == seen["refreshes"]["accepted"] > 0
    assert total(rows, "retries") == seen["answers"]["401"] > 0
    assert (failed, total(rows, "failures")) == (0, 0)
    assert [rows[name]["calls"] for name in ENDPOINTS] == [300, 300, 300, 300, 1]


def test_durations_are_those_of_the_attempts(simulator: Start, script: Script) -> None:
    platform = simulator("--latency", "0.2")
    todo = "get_statistics(get_all_organizations()[0]['id'])\nget_statistics('unknown')"
    path = script(todo)
    run_script(path, platform)
    rows = summary_of(path.with_suffix(".log").read_text(encoding="utf-8"))
    for row in rows.values():
        assert 199 <= row["p50"] <= row["p95"] <= row["max"]
    assert rows["get_statistics"]["failures"] == 1, "a 404 is a failure, and is timed too"


def test_a_failed_run_has_its_table_and_a_later_run_in_the_same_process_starts_at_nothing(
    load: Load, platform: Simulator, tmp_path: Path
) -> None:
    template = load(platform, ERROR_MAX_RETRY=3, WAIT_BEFORE_RETRY=0.001)
    platform.control(answer={"statistics": answer(503)})
    assert template.run(lambda: template.get_statistics("1")) == 1
    log = next(tmp_path.glob("*.log"))
    row = summary_of(log.read_text(encoding="utf-8"))["get_statistics"]
    assert [row[column] for column in SUMMARY[:4]] == [1, 2, 0, 1]
    assert template.run(template.get_all_organizations) == 0
    assert set(summary_of(log.read_text(encoding="utf-8"))) == LOGINS | {"get_all_organizations"}


def test_large_figures_are_grouped_and_stay_in_their_columns(load: Load) -> None:
    template = load()
    for _ in range(1_234):
        template.record_attempt("count", 1, "ok", 0.0)
    header, row = template.summary()
    assert re.search(r"^count +1,234 ", row)
    assert len(row) == len(header)


def test_the_closing_line_tells_the_number_of_calls(script: Script, platform: Simulator) -> None:
    path = script("for _ in range(5):\n    get_all_organizations()")
    done = run_script(path, platform)
    rows = summary_of(path.with_suffix(".log").read_text(encoding="utf-8"))
    assert total(rows, "calls") == 8
    assert re.fullmatch(r"my_script: done; 8 calls in \d+:\d\d:\d\d, log in my_script\.log\n", done.stderr)


def test_a_run_without_calls_has_a_table_all_the_same(load: Load, tmp_path: Path) -> None:
    template = load()
    assert template.run(print) == 2, "no address is set"
    assert summary_of(next(tmp_path.glob("*.log")).read_text(encoding="utf-8")) == {}
