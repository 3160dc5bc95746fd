"""Work that outlives main, executors and handlers of the script's own, destructors, streams, lists that shrink."""

import textwrap
import threading
from typing import Any

import httpx
import pytest
from helpers import OWN_CALLS, Load, Run, answer, summary_of
from server import Simulator


def test_subtasks_that_outlive_main_are_waited_for_and_their_failures_told(platform: Simulator, run: Run) -> None:
    platform.control(latency=0.02)
    todo = """
    def part(number):
        return echo(number) / (number % 5)

    def task(number):
        time.sleep(0.05)
        for each in range(5):
            subtasks_thread_pool.submit(part, 5 * number + each)

    for number in range(10):
        main_thread_pool.submit(task, number)
    """
    done = run(OWN_CALLS + textwrap.dedent(todo))
    assert done.returncode == 1
    assert "the first of 10 such failures; 53 calls in " in done.stderr
    assert summary_of(done.log)["echo"]["calls"] == 50


MODULE_POOL = "POOL = ThreadPoolExecutor(4)\n"
EXECUTORS = {
    "one beside main": (MODULE_POOL, "print(sum(POOL.map(echo, range(20))))"),
    "one of a thread that comes late": (
        "",
        "def late():\n    global POOL\n    time.sleep(0.3)\n    POOL = ThreadPoolExecutor(4)\n"
        "    print(sum(POOL.map(echo, range(20))))\nthreading.Thread(target=late).start()",
    ),
    "one with a shutdown of its own": (
        "class Odd(ThreadPoolExecutor):\n    def shutdown(self, wait=True):\n        super().shutdown(wait=wait)\n\n"
        "POOL = Odd(4)\n",
        "print(sum(POOL.map(echo, range(20))))",
    ),
}


@pytest.mark.parametrize(("beside", "todo"), EXECUTORS.values(), ids=EXECUTORS)
def test_a_run_ends_whatever_executor_the_script_leaves_open(run: Run, beside: str, todo: str) -> None:
    guard = "\nif __name__ =="
    done = run(OWN_CALLS + todo, edits={guard: f"\n{beside}\n{guard}"})
    assert (done.returncode, done.stdout) == (0, "190\n"), done.stderr
    assert "my_script: done; 23 calls in" in done.stderr


def test_a_log_handler_that_raises_in_the_last_line_is_not_taken_for_anything_else(run: Run) -> None:
    todo = """
class Broken(logging.Handler):
    def emit(self, record):
        if "my_script: done" in record.getMessage():
            raise OSError("the share is gone")

logging.getLogger().addHandler(Broken())
"""
    done = run(todo)
    assert done.returncode == 1
    assert done.stderr.endswith("OSError: the share is gone\n")


def test_a_log_handler_that_raises_holds_no_task(run: Run) -> None:
    todo = """
    class Broken(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("task "):
                raise LookupError("broken")

    def task(number):
        raise ValueError(number)

    logging.getLogger().addHandler(Broken())
    print(len(list(run_parallel(task, range(100), return_exceptions=True))))
    """
    done = run(todo)
    assert (done.returncode, done.stdout) == (0, "100\n"), done.stderr


def test_an_error_in_a_destructor_may_come_while_figures_are_counted(load: Load) -> None:
    template = load()

    def count_within() -> None:
        with template._figures.lock:  # where the garbage collector may run
            template._figures.count("count", "calls")

    thread = threading.Thread(target=count_within, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert template._figures.total("calls") == 1


def test_a_call_within_a_stream_leaves_no_connection_in_use_to_be_closed(platform: Simulator, logged_in: Load) -> None:
    template = logged_in(platform, _IDLE_SECONDS=0.2)
    address = template.url_of("RC", "organizations")
    bearer = {"Authorization": f"Bearer {template.tokens['RC']['access_token']}"}
    with template.get_httpx_client().stream("GET", address, headers=bearer) as response:
        assert template.echo(1) == 1
        response.read()
    platform.control(latency=0.8)
    assert [template.create(f"key {number}") for number in range(2)] == [1, 2]


@pytest.mark.parametrize("params", [httpx.QueryParams([("s", "1"), ("s", "2")]), [("s", 1), ("s", 2)], {"s": [1, 2]}])
def test_a_parameter_that_comes_twice_is_sent_twice(template: Any, params: Any) -> None:
    assert template._query_of(params) == "s=1&s=2"


def test_a_list_that_shrinks_in_the_loop_is_an_error_and_no_short_result(platform: Simulator, template: Any) -> None:
    todo = list(range(200))

    def remove_what_is_done() -> None:
        for item, _ in template.run_parallel(abs, todo):
            todo.remove(item)

    with pytest.raises(template.WrongValue, match="has shrunk"):
        remove_what_is_done()


def test_a_second_login_leaves_a_call_that_waits_for_its_retry_alone(platform: Simulator, logged_in: Load) -> None:
    template = logged_in(platform, WAIT_BEFORE_RETRY=0.5)
    platform.control(answer={"echo": {**answer(503), "times": 1}})
    waiting = template.main_thread_pool.submit(template.echo, 7)
    while not template._stop.waiting:
        assert not waiting.done()
    template.login()
    assert waiting.result() == 7
