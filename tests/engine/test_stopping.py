"""Ctrl-C and SIGTERM, as real signals to real processes; and whatever else could keep a process from ending."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers import WATCHDOG, Load, Start, answer, environment_for, wait_until
from server import Simulator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals, sent by kill()")

IN_TIME = 40  # seconds; a process that goes on with what it was doing takes 60
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
Script = Callable[..., Path]


@dataclass
class Running:
    """A script that runs, with its output in files beside it."""

    path: Path
    process: subprocess.Popen[bytes]

    def text(self, suffix: str) -> str:
        file = self.path.with_suffix(suffix)
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def says(self, words: str, suffix: str = ".out") -> None:
        """Wait for words in its output, or another file of its."""
        wait_until(lambda: words in self.text(suffix) or self.process.poll() is not None)
        assert words in self.text(suffix), self.text(".err")

    def exit_code(self) -> int:
        return self.process.wait(IN_TIME)


@pytest.fixture
def start(ctrl_c_is_heard: None) -> Iterator[Callable[..., Running]]:
    """Start a script: `start(path, platform, EB_THREADS="60")`."""
    started: list[Running] = []

    def start_script(path: Path, platform: Simulator, *prefix: str, **variables: str) -> Running:
        with path.with_suffix(".out").open("wb") as out, path.with_suffix(".err").open("wb") as err:
            process = subprocess.Popen(
                [*prefix, sys.executable, str(path)],
                cwd=path.parent,
                env=environment_for(platform, **variables),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        started.append(Running(path, process))
        return started[-1]

    yield start_script
    for running in started:
        with contextlib.suppress(OSError):
            running.process.kill()
        running.process.wait()


def check_stopped(running: Running, number: signal.Signals) -> None:
    """The process ends by itself, in time, with its exit code, a complete log and not one word too many."""
    assert running.exit_code() == EXIT_CODES[number]
    closing = running.text(".err")
    assert re.fullmatch(rf"my_script: stopped by {number.name}(; [^\n]*)?\n", closing)
    lines = running.text(".log").splitlines()
    assert lines[-1].endswith(closing.rstrip())
    assert "CRITICAL" in lines[-1]
    assert "API function" in running.text(".log"), "no summary"
    assert "Traceback" not in running.text(".log")


def check_ctrl_c(running: Running, words: str) -> None:
    """Once it has said the words, Ctrl-C stops it."""
    running.says(words)
    running.process.send_signal(signal.SIGINT)
    check_stopped(running, signal.SIGINT)


@dataclass
class State:
    """What a script can be busy with when it is told to stop, and how to tell that it is."""

    todo: str
    busy: Callable[[Running, Simulator], Any]
    options: tuple[str, ...] = ()
    constants: dict[str, float] = field(default_factory=lambda: {"GRACE_SECONDS": 60})  # not to be used up
    settings: dict[str, Any] = field(default_factory=dict)


def has_seen(endpoint: str, calls: int) -> Callable[[Running, Simulator], None]:
    return lambda running, platform: wait_until(lambda: platform.seen()["requests"][endpoint] >= calls)


def waits_for_an_answer(endpoint: str) -> Callable[[Running, Simulator], None]:
    """Seen, and asleep: a signal just before a system call that blocks is noticed by CPython only after it."""

    def busy(running: Running, platform: Simulator) -> None:
        has_seen(endpoint, 1)(running, platform)
        state = Path(f"/proc/{running.process.pid}/stat")  # of the main thread; only Linux has it
        wait_until(lambda: not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "S")

    return busy


def has_said(words: str, suffix: str = ".out") -> Callable[[Running, Simulator], None]:
    return lambda running, platform: running.says(words, suffix)


STATES = {
    "login": State("", waits_for_an_answer("login"), options=("--latency", "60")),
    "60 calls held": State(
        "list(run_parallel(get_statistics, itertools.repeat('1')))",
        has_seen("statistics", 60),
        constants={"MAX_THREADS": 60},
        settings={"hold": 60},
    ),
    "backing off": State(
        "list(run_parallel(get_statistics, itertools.repeat('1')))",
        has_said("next in", ".log"),
        constants={"WAIT_BEFORE_RETRY": 60, "GRACE_SECONDS": 60},
        settings={"answer": {"statistics": answer(503)}},
    ),
    "backing off in the main thread": State(
        "get_statistics('1')",
        has_said("next in", ".log"),
        constants={"WAIT_BEFORE_RETRY": 60, "GRACE_SECONDS": 60},
        settings={"answer": {"statistics": answer(503)}},
    ),
    "queue of 100,000": State(
        """
        with main_thread_pool as executor:
            futures = [executor.submit(get_statistics, "1") for _ in range(100_000)]
            print("queued", flush=True)
            for future in as_completed(futures):
                future.result()
        """,
        has_said("queued"),
        settings={"hold": 0.5, "answer": {"statistics": answer(200)}},
    ),
    "own loop": State("print('busy', flush=True)\nwhile True:\n    pass", has_said("busy")),
}


@pytest.mark.parametrize("number", EXIT_CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("name", STATES)
def test_a_signal_ends_the_run_with_its_exit_code_a_complete_log_and_the_finally_of_the_script(
    simulator: Start, script: Script, start: Callable[..., Running], name: str, number: signal.Signals
) -> None:
    state, platform = STATES[name], simulator(*STATES[name].options)
    platform.control(**state.settings)
    path = script(with_finally(state.todo), **state.constants)
    running = start(path, platform, EB_THREADS=str(state.constants.get("MAX_THREADS", 20)))
    state.busy(running, platform)
    running.process.send_signal(number)
    check_stopped(running, number)
    assert ("the finally ran" in running.text(".out")) == (name != "login")
    assert "too late" not in running.text(".out")


def with_finally(todo: str) -> str:
    block = textwrap.indent(textwrap.dedent(todo).strip() or "pass", "    ")
    return f"""
try:
{block}
finally:
    print("the finally ran")
    main_thread_pool.submit(print, "a task that came too late")
"""


def test_a_second_ctrl_c_ends_the_process_at_once(
    platform: Simulator, script: Script, start: Callable[..., Running]
) -> None:
    todo = """
    try:
        print("started", flush=True)
        threading.Event().wait()
    finally:
        print("cleaning", flush=True)
        threading.Event().wait()
    """
    running = start(script(todo), platform)
    running.says("started")
    running.process.send_signal(signal.SIGINT)
    running.says("cleaning")
    running.process.send_signal(signal.SIGINT)
    assert running.exit_code() == 130
    assert running.text(".err") == ""


BLOCKED = """
def blocked(*_):
    print("blocked", flush=True)
    threading.Event().wait()

"""
GOES_ON = {
    "a task that never returns": "main_thread_pool.submit(blocked).result()",
    "a subtask that never returns": "main_thread_pool.submit(subtasks_thread_pool.submit, blocked)",
    "a task that waits for a subtask": (
        "main_thread_pool.submit(lambda: subtasks_thread_pool.submit(blocked).result()).result()"
    ),
    "a subtask that the main thread waits for": "subtasks_thread_pool.submit(blocked).result()",
    "run_parallel": "for _ in run_parallel(blocked, itertools.count()):\n    pass",
    "a with": "with subtasks_thread_pool as executor:\n    executor.submit(blocked)",
    "Executor.map": "list(main_thread_pool.map(blocked, range(3)))",
    "a callback of a finished future": (
        "gate = threading.Event()\n"
        "main_thread_pool.submit(gate.wait).add_done_callback(blocked)\n"
        "gate.set()\n"
        "threading.Event().wait()"
    ),
    "a lock in the main thread's client that Ctrl-C left locked": (
        "get_all_organizations()\n"
        "get_httpx_client()._transport._pool._optional_thread_lock.__enter__()\n"
        "print('blocked', flush=True)\n"
        "threading.Event().wait()"
    ),
    "a stdout that nobody reads any more": (
        "future, seen = main_thread_pool.submit(threading.Event().wait), sys.stdout\n"
        "reading, writing = os.pipe()\n"
        "sys.stdout = open(writing, 'w')\n"
        "os.close(reading)\n"
        "print('lost')\n"
        "print('blocked', file=seen, flush=True)\n"
        "future.result()"
    ),
    "a thread of the script's own": "threading.Thread(target=blocked).start()\nthreading.Event().wait()",
}


@pytest.mark.parametrize("name", GOES_ON)
def test_nothing_that_never_ends_holds_the_process_after_ctrl_c(
    platform: Simulator, script: Script, start: Callable[..., Running], name: str
) -> None:
    check_ctrl_c(start(script(BLOCKED + GOES_ON[name]), platform), "blocked")


@pytest.mark.parametrize("caught", ["KeyboardInterrupt", "Exception", "(KeyboardInterrupt, Exception)"])
def test_a_loop_that_catches_what_ctrl_c_raises_ends_with_its_next_call(
    platform: Simulator, script: Script, start: Callable[..., Running], caught: str
) -> None:
    todo = f"""
    while True:
        try:
            get_all_organizations()
            print("called", flush=True)
        except {caught}:
            pass
    """
    check_ctrl_c(start(script(todo), platform), "called")


def test_threads_of_the_scripts_own_end_with_their_next_call_and_without_a_traceback(
    platform: Simulator, script: Script, start: Callable[..., Running]
) -> None:
    todo = """
    def call_for_ever():
        while True:
            get_all_organizations()
            print("called", flush=True)

    for _ in range(5):
        threading.Thread(target=call_for_ever).start()
    threading.Event().wait()
    """
    check_ctrl_c(start(script(todo), platform), "called")


def test_a_ctrl_c_that_is_ignored_at_the_start_stays_ignored_and_sigterm_works(
    platform: Simulator, script: Script, start: Callable[..., Running]
) -> None:
    todo = """
    print("started", flush=True)
    while not Path("go on").exists():
        time.sleep(0.01)
    print(len(get_all_organizations()), "centres", flush=True)
    threading.Event().wait()
    """
    path = script(todo)
    running = start(path, platform, "sh", "-c", 'trap "" INT; exec "$0" "$1"')  # as nohup, or `&` in a script of sh
    running.says("started")
    running.process.send_signal(signal.SIGINT)
    path.with_name("go on").touch()
    running.says("5 centres")
    running.process.send_signal(signal.SIGTERM)
    check_stopped(running, signal.SIGTERM)


def test_a_failed_run_does_not_wait_for_the_calls_that_are_held(
    simulator: Start, script: Script, start: Callable[..., Running]
) -> None:
    platform = simulator()
    platform.control(hold=60)
    todo = """
    futures = [main_thread_pool.submit(get_statistics, "1") for _ in range(30)]
    while input_is_missing():
        pass
    """
    helper = """
    def input_is_missing():
        if Path("go on").exists():
            raise LookupError("no input")
        return True
    """
    path = script(textwrap.dedent(helper) + textwrap.dedent(todo))
    running = start(path, platform)
    has_seen("statistics", 20)(running, platform)
    path.with_name("go on").touch()
    assert running.exit_code() == 1
    assert "my_script: failed: LookupError: no input" in running.text(".err")
    assert "API function" in running.text(".log")


BY_ITSELF = """
import atexit
atexit.register(print, "ended by itself")

"""


def test_tasks_that_outlast_a_failure_start_no_thread_anew(
    simulator: Start, script: Script, start: Callable[..., Running]
) -> None:
    platform = simulator()
    platform.control(hold=1, answer={"statistics": answer(200)})
    todo = """
    begun = threading.Semaphore(0)

    def task(number):
        begun.release()
        get_statistics("1")
        return subtasks_thread_pool.submit(abs, number).result()

    for number in range(20):
        main_thread_pool.submit(task, number)
    for number in range(20):
        begun.acquire()
    raise LookupError("no input")
    """
    running = start(script(BY_ITSELF + textwrap.dedent(todo), GRACE_SECONDS=60), platform)
    assert running.exit_code() == 1
    assert running.text(".out") == "ended by itself\n"


def test_threads_that_are_idle_end_although_the_grace_was_used_up_before(
    platform: Simulator, script: Script, start: Callable[..., Running]
) -> None:
    todo = """
    try:
        list(run_parallel(abs, range(100)))
        signal.raise_signal(signal.SIGINT)
    finally:
        while time.monotonic() <= _stop.deadline:  # writes a file, say
            time.sleep(0.01)
    """
    running = start(script(BY_ITSELF + textwrap.dedent(todo), GRACE_SECONDS=0.1), platform)
    check_stopped(running, signal.SIGINT)
    assert running.text(".out") == "ended by itself\n"


def test_an_interactive_session_goes_on_although_a_call_is_held(
    platform: Simulator, script: Script, start: Callable[..., Running]
) -> None:
    todo = """
    sys.ps1 = ">>> "
    main_thread_pool.submit(threading.Event().wait)
    raise LookupError("no input")
    """
    goes_on = "    print('exit code', run(main), flush=True)\n    os._exit(0)\n"
    running = start(script(todo, edits={"    sys.exit(run(main))\n": goes_on}, GRACE_SECONDS=0.1), platform)
    assert running.exit_code() == 0
    assert running.text(".out") == "exit code 1\n"


def test_a_run_that_is_done_waits_for_what_was_submitted_and_for_threads_of_the_scripts_own(
    platform: Simulator, script: Script, start: Callable[..., Running]
) -> None:
    todo = """
    def late(words):
        while not Path("go on").exists():
            time.sleep(0.01)
        print(f"{words} {len(get_all_organizations())}\\n", end="", flush=True)  # in one write

    main_thread_pool.submit(late, "a task")
    subtasks_thread_pool.submit(late, "a subtask")
    threading.Thread(target=lambda: (threading.main_thread().join(), print("a thread", flush=True))).start()
    print("main is done", flush=True)
    """
    path = script(todo)
    running = start(path, platform)
    running.says("main is done")
    path.with_name("go on").touch()
    assert running.exit_code() == 0
    assert set(running.text(".out").splitlines()) == {"main is done", "a task 5", "a subtask 5", "a thread"}


def test_run_works_in_a_thread_other_than_the_main_one_and_leaves_the_signals_alone(
    load: Load, platform: Simulator
) -> None:
    template, codes = load(platform), list[int]()
    handlers = [signal.getsignal(number) for number in EXIT_CODES]
    inside: list[Any] = []

    def main() -> None:
        inside.extend(signal.getsignal(number) for number in EXIT_CODES)
        assert len(list(template.run_parallel(abs, range(50)))) == 50

    thread = threading.Thread(target=lambda: codes.append(template.run(main)))
    thread.start()
    thread.join(WATCHDOG)
    assert codes == [0]
    assert inside == handlers


def test_run_gives_the_signals_back_and_can_be_called_again_after_a_ctrl_c(load: Load, platform: Simulator) -> None:
    template = load(platform)
    handlers = [signal.getsignal(number) for number in EXIT_CODES]

    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)

    assert template.run(interrupted) == 130
    assert [signal.getsignal(number) for number in EXIT_CODES] == handlers
    assert list(template.run_parallel(abs, [-1])) == [(-1, 1)], "the pools work without a run, too"
    assert template.run(template.get_all_organizations) == 0
