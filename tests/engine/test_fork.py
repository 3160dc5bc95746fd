"""Forked child processes: each gets its own responses, logs in for itself, and can be ended."""

import os
import re

import pytest
from helpers import OWN_CALLS, Run
from server import Simulator

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX")


# Beside main(), where children find it: whether the answers are those to the numbers that were asked for.
RIGHT = """
import multiprocessing

fork = multiprocessing.get_context("fork")


def is_right(number):
    if not tokens:
        login()
    return echo(number) == number

def are_right(numbers):
    if not tokens:
        login()
    echoes = dict(run_parallel(echo, numbers))
    below = [subtasks_thread_pool.submit(echo, number) for number in numbers]
    return echoes == {number: number for number in numbers} and [each.result() for each in below] == list(numbers)

def careless(number):
    logging.warning("child %d: %s %s", number, tokens, os.environ["EB_PASSWORD"])

"""
GUARD = "\nif __name__ =="
WAYS = {  # how many responses there are, and how the children are started
    "ProcessPoolExecutor": (
        200,
        """
with concurrent.futures.ProcessPoolExecutor(4, mp_context=fork) as children:
    right = list(children.map(is_right, range(200)))
""",
    ),
    "multiprocessing.Pool": (
        200,
        """
with fork.Pool(4) as children:
    right = children.map(is_right, range(200), chunksize=1)
""",
    ),
    "both pools in each child": (
        4,
        """
with fork.Pool(2) as children:
    right = children.map(are_right, [range(100)] * 4, chunksize=1)
""",
    ),
    "os.fork": (
        200,
        """
reading, writing = os.pipe()
for _ in range(4):
    if os.fork() == 0:
        os.write(writing, bytes(map(is_right, range(50))))
        os._exit(0)
os.close(writing)
right = open(reading, "rb").read()
for _ in range(4):
    os.wait()
""",
    ),
    "a task that starts children": (
        100,
        """
def with_children(number):
    echo(number)
    with fork.Pool(2) as children:
        return children.map(is_right, range(number, number + 50), chunksize=1)

tasks = [main_thread_pool.submit(with_children, number) for number in (0, 1000)]
right = [each for task in tasks for each in task.result()]
""",
    ),
    "calls of the parent meanwhile": (
        400,
        """
busy = [main_thread_pool.submit(is_right, number) for number in range(1000, 1200)]
with fork.Pool(4) as children:
    right = children.map(is_right, range(200), chunksize=1)
right += [task.result() for task in busy]
""",
    ),
}


@pytest.fixture
def forking(run: Run) -> Run:
    """Run a script that has `fork`, and functions for its children, and at will more of its own."""
    return lambda todo, beside="": run(todo, edits={GUARD: OWN_CALLS + RIGHT + beside + GUARD})


@pytest.mark.parametrize(("answers", "way"), WAYS.values(), ids=WAYS.keys())
def test_parent_and_children_get_their_own_answers(platform: Simulator, forking: Run, answers: int, way: str) -> None:
    platform.control(latency=0.02)  # so that their calls overlap
    finished = forking(
        f"echo(0)\nlist(run_parallel(echo, range(40)))\n{way}\nprint(len(right), sum(right))\nprint(is_right(7))"
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == f"{answers} {answers}\nTrue\n"


def test_a_client_that_a_script_keeps_reads_no_answer_of_a_parent_in_a_child(platform: Simulator, forking: Run) -> None:
    platform.control(latency=0.02)
    kept = """
@api_call_with_retry("RC")
def echo_by_a_kept_client(number):
    bearer = {"Authorization": f"Bearer {tokens['RC']['access_token']}"}
    address = url_of("RC", "echo") + f"/{number}"
    if number >= 0:
        return client.get(address, headers=bearer).json()["n"]
    with client.stream("GET", address, headers=bearer):
        return echo_by_a_kept_client(-number)  # by a connection of its own
"""
    todo = """
    global client
    client = get_httpx_client()
    MICROSERVICES["RC"]["endpoints"]["echo"] = "/api/echo"
    for _ in range(4):  # the children might take their turns by chance
        echo_by_a_kept_client(-1)
        with fork.Pool(4, initializer=login) as children:
            print(children.map(echo_by_a_kept_client, range(20), chunksize=1) == list(range(20)))
    """
    finished = forking(todo, kept)
    assert (finished.returncode, finished.stdout) == (0, "True\n" * 4), finished.stderr


def test_a_call_in_a_child_that_has_not_logged_in_says_so_in_its_parent(forking: Run) -> None:
    todo = "echo(0)\nwith fork.Pool(2) as children:\n    list(children.map(get_statistics, ['unknown']))"
    finished = forking(todo)
    assert finished.returncode == 2
    assert "my_script: get_statistics: RC has no access token yet: call login() first; " in finished.stderr


def test_a_child_that_comes_out_of_main_by_an_exception_says_so(run: Run) -> None:
    todo = """
    if os.fork() == 0:
        raise LookupError("of a patient")
    os.wait()
    """
    done = run(todo)
    assert done.returncode == 0
    assert re.search(r"my_script, process \d+: failed: LookupError \(my_script.py line \d+\)", done.stderr)


def test_children_renew_a_token_without_spending_their_parents_refresh_token(platform: Simulator, forking: Run) -> None:
    todo = """
echo(0)
control(expire="RC")
with fork.Pool(4) as children:
    print(all(children.map(is_right, range(100), chunksize=1)))
print(echo(1))
"""
    finished = forking(todo)
    assert (finished.returncode, finished.stdout) == (0, "True\n1\n"), finished.stderr
    seen = platform.seen()
    assert seen["refresh_tokens_reused"] == 0
    assert seen["refreshes"] == {"accepted": 1, "refused": 0}, "the parent's; each child logs in for itself"


def test_children_without_a_call_are_ended_by_their_pool_ten_times_in_a_row(forking: Run) -> None:
    todo = """
for _ in range(10):
    with fork.Pool(4) as children:
        assert children.map(abs, range(-50, 0)) == list(range(50, 0, -1))
print("ended")
"""
    finished = forking(todo)
    assert (finished.returncode, finished.stdout) == (0, "ended\n"), finished.stderr
    assert "Traceback" not in finished.stderr


# Before the engine's own hook: as if the parent had ended its children as soon as they were started.
BORN_TO_DIE = """
import os, signal
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
"""


def test_a_child_that_is_ended_the_moment_it_is_born_dies_and_dies_alone(run: Run) -> None:
    todo = """
    if os.fork() == 0:
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
    for _ in run_parallel(get_statistics, [centre["id"] for centre in get_all_organizations()]):
        pass
    """
    imports = "\nfrom __future__ import annotations\n"
    finished = run(todo, edits={imports: imports + BORN_TO_DIE})
    assert (finished.returncode, finished.stdout) == (0, "-15\n"), finished.stderr
    assert re.search(r"^my_script: done; [^\n]+\n\Z", finished.stderr, re.MULTILINE)


def test_what_a_child_logs_is_redacted_and_stands_in_the_log_of_its_parent(platform: Simulator, forking: Run) -> None:
    todo = """
with fork.Pool(2) as children:
    children.map(careless, range(20))
"""
    finished = forking(todo)
    assert finished.returncode == 0, finished.stderr
    assert all(f"   child {number}: " in finished.log for number in range(20))
    secrets = [platform.options.password, *platform.tokens()]
    assert [secret for secret in secrets if secret in finished.log + finished.stderr] == []
