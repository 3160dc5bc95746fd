"""The table at the end of the log, compared with what the simulated platform counted."""

import re
import sys
import threading
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from helpers import OWN_CALLS, SUMMARY, Load, Run, Start, answer, line_of, ran, run_script, summary_of, wait_until
from server import Simulator

ENDPOINTS = {
    "echo": "echo",
    "create": "create",
    "get_statistics": "statistics",
    "search_inclusions_page": "search_inclusions",
    "get_all_organizations": "organizations",
}
LOGINS = {"IAM_login", "RC_config_token", "GDD_config_token"}

# 60 threads call four API functions; the script itself counts what they raise.
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
    run: Run, platform: Simulator, **constants: float
) -> tuple[dict[str, dict[str, int]], dict[str, Any], int]:
    """The table of a run with 60 threads, what the platform saw of it, and how many calls failed."""
    done = run(
        OWN_CALLS + MIXED_CALLS, MAX_THREADS=60, WAIT_BEFORE_RETRY=0.01, **constants, EB_THREADS="60", on=platform
    )
    assert done.returncode == 0, done.stderr
    return summary_of(done.log), platform.seen(), int(done.stdout)


def total(rows: dict[str, dict[str, int]], column: str) -> int:
    return sum(row[column] for row in rows.values())


def test_calls_retries_and_failures_are_exact_under_60_threads_and_faults(simulator: Start, run: Run) -> None:
    platform = simulator(*[f"--fault={kind}=0.07" for kind in ("500", "reset", "429", "truncated", "html")])
    rows, seen, failed = run_mixed_calls(run, platform, ERROR_MAX_RETRY=3, MAX_WAIT_BEFORE_RETRY=2)
    attempts = {name: row["calls"] + row["retries"] for name, row in rows.items()}
    assert sum(attempts.pop(name) for name in LOGINS) == seen["requests"]["login"] + seen["requests"]["config_token"]
    assert attempts == {name: seen["requests"][endpoint] for name, endpoint in ENDPOINTS.items()}
    assert [rows[name]["calls"] for name in ENDPOINTS] == [300, 300, 300, 300, 1]
    assert total(rows, "failures") == failed
    assert failed > 0
    assert total(rows, "retries") > 0
    assert total(rows, "renewals") == 0


def test_renewals_are_exact_under_60_threads_and_tokens_that_run_out(platform: Simulator, run: Run) -> None:
    def let_tokens_run_out() -> None:
        for calls in (50, 120, 200):
            wait_until(lambda calls=calls: platform.seen()["requests"]["echo"] >= calls)
            platform.control(expire="RC")

    clock = threading.Thread(target=let_tokens_run_out)
    clock.start()
    rows, seen, failed = run_mixed_calls(run, platform)
    clock.join()
    # A token that expires before it was ever accepted is renewed by a new login.
    assert total(rows, "renewals") == seen["refreshes"]["accepted"] + seen["logins"]["accepted"] - 1 > 0
    assert total(rows, "retries") == seen["answers"]["401"] > 0
    assert (failed, total(rows, "failures")) == (0, 0)
    assert [rows[name]["calls"] for name in ENDPOINTS] == [300, 300, 300, 300, 1]


def test_durations_are_those_of_the_attempts(simulator: Start, run: Run) -> None:
    todo = "get_statistics(get_all_organizations()[0]['id'])\nget_statistics('unknown')"
    rows = summary_of(run(todo, on=simulator("--latency", "0.2")).log)
    for row in rows.values():
        assert 199 <= row["p50"] <= row["p95"] <= row["max"]
    assert rows["get_statistics"]["failures"] == 1, "a 404 is a failure, and is timed too"


def test_a_failed_run_has_its_table_and_a_later_one_starts_anew(load: Load, platform: Simulator) -> None:
    template = load(platform, ERROR_MAX_RETRY=3, WAIT_BEFORE_RETRY=0.001)

    def main() -> None:
        platform.control(expire="RC", answer={"statistics": answer(503)})
        template.get_all_organizations()
        with pytest.raises(template.httpx.HTTPStatusError, match="404"):
            template.get_record_by_patient("nobody")
        template.get_statistics("1")

    code, log = ran(template, main)
    assert code == 1
    assert log.count(" API function ") == 1
    assert {name: [row[column] for column in SUMMARY[:4]] for name, row in summary_of(log).items()} == {
        **{name: [1, 0, 0, 0] for name in {*LOGINS, "RC_refresh_token"}},
        "get_all_organizations": [1, 1, 1, 0],
        "get_record_by_patient": [1, 0, 0, 1],
        "get_statistics": [1, 2, 0, 1],
    }
    code, log = ran(template, lambda: print(len(template.get_all_organizations())))
    assert (code, set(summary_of(log))) == (0, LOGINS | {"get_all_organizations"})


def test_large_figures_are_grouped_and_stay_in_their_columns(load: Load) -> None:
    template = load()
    for _ in range(1_234):
        template._figures.count("count", "calls", 0.007)
    header, row = template._figures.table()
    assert re.search(r"^count +1,234 ", row)
    assert len(row) == len(header)


def test_a_task_that_fails_makes_the_exit_code_1_if_nobody_asks_for_its_result(run: Run) -> None:
    done = run("""
        def save(number):
            return [0, 1, 2][number]  # here

        with main_thread_pool as executor:
            for number in range(5):
                executor.submit(save, number)
        """)
    words = f"task save: IndexError (my_script.py line {line_of(done.path)})"
    said = f"my_script: failed: {words}, the first of 2 such failures; 3 calls in "
    assert (done.returncode, done.stderr[: len(said)]) == (1, said)
    assert done.log.count(f"{words}\n") == 2


def test_a_task_that_is_cancelled_from_within_has_failed_too(run: Run) -> None:
    done = run("""
        import asyncio

        async def cancelled():
            asyncio.current_task().cancel()
            await asyncio.sleep(0)

        main_thread_pool.submit(lambda: asyncio.run(cancelled()))
        """)
    assert done.returncode == 1
    assert "my_script: failed: task <lambda>: CancelledError (my_script.py line " in done.stderr
    assert "task <lambda>: CancelledError (my_script.py line " in done.log


def test_a_task_that_fails_by_a_call_is_logged_by_the_call_alone(run: Run) -> None:
    done = run("main_thread_pool.submit(get_statistics, 'unknown')")
    assert done.returncode == 1
    assert "my_script: failed: task get_statistics: HTTP 404; 4 calls, 1 failure in " in done.stderr
    assert "task get_statistics" not in "".join(done.log.splitlines(keepends=True)[:-1])


def test_a_task_that_fails_in_a_script_without_run_is_told_at_the_end(run: Run) -> None:
    done = run("main_thread_pool.submit(int, 'Nemo')", edits={"sys.exit(run(main))": "login(), main()"})
    assert done.stderr == "failed: task int: ValueError\n"


HEARD = {
    "its result is asked for": "try:\n    main_thread_pool.submit(fail).result()\nexcept ValueError:\n    pass",
    "its exception is asked for": "wait([task := main_thread_pool.submit(fail)])\nassert task.exception()",
    "a callback asks": "main_thread_pool.submit(fail).add_done_callback(lambda task: task.exception())",
    "an event loop asks": """
        async def ask():
            with contextlib.suppress(ValueError):
                await asyncio.wrap_future(main_thread_pool.submit(fail))

        asyncio.run(ask())
    """,
    "the loop over the tasks was left": """
        for item, result in run_parallel(lambda item: item and fail(), [0, *range(1, 20)], return_exceptions=True):
            break
    """,
    "it was to be cancelled": """
        begun = threading.Event()
        main_thread_pool.submit(lambda: begun.set() or time.sleep(0.2) or fail())
        begun.wait()
        main_thread_pool.shutdown(wait=False, cancel_futures=True)
    """,
}


@pytest.mark.parametrize("todo", HEARD.values(), ids=HEARD.keys())
def test_a_task_that_fails_is_not_the_failure_of_a_run_if(run: Run, todo: str) -> None:
    fail = "import asyncio\nfrom concurrent.futures import wait\n\ndef fail():\n    raise ValueError\n\n"
    done = run(fail + dedent(todo))
    assert (done.returncode, "my_script: done; 3 calls in " in done.stderr) == (0, True), done.stderr


def test_the_closing_line_tells_the_retries_and_failures_if_there_are_any(run: Run, platform: Simulator) -> None:
    platform.control(answer={"echo": answer(503), "statistics": answer(404)})
    todo = """
    for _, error in run_parallel(lambda call: call(1), [echo, echo, get_statistics], return_exceptions=True):
        assert isinstance(error, httpx.HTTPStatusError)
    """
    done = run(OWN_CALLS + dedent(todo), ERROR_MAX_RETRY=3, WAIT_BEFORE_RETRY=0.01)
    assert re.match(r"my_script: done; 6 calls, 4 retries, 3 failures in ", done.stderr), done.stderr
    assert done.returncode == 0


def test_a_run_without_calls_has_a_table_all_the_same(load: Load, tmp_path: Path) -> None:
    template = load()
    assert template.run(print) == 2, "no address is set"
    assert summary_of(next(tmp_path.glob("*.log")).read_text(encoding="utf-8")) == {}


def test_the_log_tells_who_ran_what(copy: Path, platform: Simulator) -> None:
    done = run_script(copy, platform, EB_THREADS="7")
    assert done.returncode == 0, done.stderr
    version = re.search(r'(?m)^TEMPLATE_VERSION = "(.+?)"', copy.read_text(encoding="utf-8"))
    assert version
    started = done.log.splitlines()[0]
    assert f" my_script started, template {version[1]}, Python {sys.version.split()[0]} on " in started
    assert f" user {platform.options.user}, 7 threads, services IAM, RC, GDD\n" in done.log
