"""Ctrl-C, SIGTERM and SIGHUP, as real signals to real processes, and everything else that could keep one from ending.

Windows has no kill(): there, a thread of the script raises the signal, which the main thread notices no earlier.
"""

import concurrent.futures
import contextlib
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers import Load, Script, answer, environment_for, needs_posix, summary_of, wait_until
from server import Simulator

sent_by_kill = needs_posix(reason="Windows has no kill(); another test raises the signal inside the process")

IN_TIME = 40  # seconds; a process that continues what it was doing takes 60
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
if sys.platform != "win32":
    EXIT_CODES[signal.SIGHUP] = 129


@dataclass
class Running:
    """A running script, with its output in files next to it."""

    path: Path
    process: subprocess.Popen[bytes]

    def text(self, suffix: str) -> str:
        file = self.path.with_suffix(suffix)
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def says(self, words: str, suffix: str = ".out") -> None:
        """Wait for words in its output, or in another of its files."""
        wait_until(lambda: words in self.text(suffix) or self.process.poll() is not None)
        assert words in self.text(suffix), self.text(".err")

    def exit_code(self) -> int:
        return self.process.wait(IN_TIME)


Starting = Callable[..., Running]


@pytest.fixture
def start(script: Script, platform: Simulator) -> Iterator[Starting]:
    """Start a script: `start("print(1)", on=platform, edits={...}, prefix=["sh"], MAX_THREADS=60)`."""
    started: list[Running] = []

    def start_script(
        todo: str, *, on: Simulator = platform, threads: int = 20, prefix: Sequence[str] = (), **settings: Any
    ) -> Running:
        path = script(todo, **settings)
        with path.with_suffix(".out").open("wb") as out, path.with_suffix(".err").open("wb") as err:
            process = subprocess.Popen(
                [*prefix, sys.executable, str(path)],
                cwd=path.parent,
                env=environment_for(on, EB_THREADS=str(threads)),
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


@pytest.fixture(scope="module")
def own_simulator() -> Iterator[Simulator]:
    """A platform only for these tests: calls that it holds may end, and be counted, long after their test."""
    with Simulator(sys.executable, "--centres", "5", "--patients", "60") as platform:
        yield platform


@pytest.fixture
def held(own_simulator: Simulator) -> Simulator:
    """A platform that holds every call for a minute, except logins."""
    own_simulator.control(latency=0, hold=60, answer={"statistics": None}, reset_counts=True)
    return own_simulator


def check_stopped(running: Running, number: signal.Signals) -> None:
    """Check that the process ends by itself, in time, with its exit code, a complete log and no superfluous output."""
    assert running.exit_code() == EXIT_CODES[number]
    closing = running.text(".err")
    assert re.fullmatch(rf"my_script: stopped by {number.name}(; [^\n]*)?\n", closing)
    lines = running.text(".log").splitlines()
    assert lines[-1].endswith(closing.rstrip())
    assert "CRITICAL" in lines[-1]
    failures = [row["failures"] for row in summary_of(running.text(".log")).values()]
    assert sum(failures) == 0, "calls that are cut off are none"
    assert "failure" not in closing
    assert "Traceback" not in running.text(".log")


def check_ctrl_c(running: Running, words: str) -> None:
    """Check that Ctrl-C stops it, once it has written the words."""
    running.says(words)
    running.process.send_signal(signal.SIGINT)
    check_stopped(running, signal.SIGINT)


@dataclass
class State:
    """What a script can be doing when it is told to stop, and how to tell that it is doing it."""

    todo: str
    busy: Callable[[Running, Simulator], Any]
    constants: dict[str, float] = field(default_factory=dict)  # the grace should not be used up, except if set
    settings: dict[str, Any] = field(default_factory=dict)


def has_seen(endpoint: str, calls: int) -> Callable[[Running, Simulator], None]:
    return lambda running, platform: wait_until(lambda: platform.seen()["requests"][endpoint] >= calls)


def waits_for_an_answer(endpoint: str) -> Callable[[Running, Simulator], None]:
    """Whether the call has begun and sleeps: CPython notices a signal just before a blocking call only after it."""

    def busy(running: Running, platform: Simulator) -> None:
        has_seen(endpoint, 1)(running, platform)
        state = Path(f"/proc/{running.process.pid}/stat")  # of the main thread; only Linux has it
        wait_until(lambda: not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "S")

    return busy


def has_said(words: str, suffix: str = ".out") -> Callable[[Running, Simulator], None]:
    return lambda running, platform: running.says(words, suffix)


BACKING_OFF: dict[str, Any] = {
    "constants": {"WAIT_BEFORE_RETRY": 60},
    "settings": {"hold": 0, "answer": {"statistics": answer(503)}},
}
STATES = {
    "login": State("", waits_for_an_answer("login"), settings={"latency": 60}),
    "60 calls held": State(
        "list(run_parallel(get_statistics, itertools.repeat('1')))",
        has_seen("statistics", 60),
        constants={"MAX_THREADS": 60, "_GRACE_SECONDS": 0.5},
    ),
    "backing off": State(
        "list(run_parallel(get_statistics, itertools.repeat('1')))",
        has_said("next in", ".log"),
        **BACKING_OFF,
    ),
    "backing off in the main thread": State("get_statistics('1')", has_said("next in", ".log"), **BACKING_OFF),
    "queue of 100,000": State(
        """
        with main_thread_pool as executor:
            futures = [executor.submit(get_statistics, "1") for _ in range(100_000)]
            for number, future in enumerate(as_completed(futures)):
                future.result()
                if number == 0:  # before, a signal may leave a future locked (cpython#74174), and the grace is used up
                    print("queued", flush=True)
        """,
        has_said("queued"),
        settings={"hold": 0.5, "answer": {"statistics": answer(200)}},
    ),
    "own loop": State("print('busy', flush=True)\nwhile True:\n    pass", has_said("busy")),
}
BY_SIGNAL = [(name, signal.SIGINT) for name in STATES]
BY_SIGNAL += [(name, number) for name in ("login", "60 calls held") for number in list(EXIT_CODES)[1:]]


@sent_by_kill
@pytest.mark.parametrize(("name", "number"), BY_SIGNAL, ids=lambda value: getattr(value, "name", value))
def test_a_signal_ends_the_run_with_its_exit_code_a_complete_log_and_the_finally_of_the_script(
    held: Simulator, start: Starting, name: str, number: signal.Signals
) -> None:
    state = STATES[name]
    held.control(**state.settings)
    constants = {"_GRACE_SECONDS": 60, "MAX_THREADS": 20, **state.constants}
    running = start(with_finally(state.todo), on=held, threads=constants["MAX_THREADS"], **constants)
    state.busy(running, held)
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


BLOCKED = """
def blocked(*_):
    print("blocked", flush=True)
    threading.Event().wait()

"""
SHORT = {"_GRACE_SECONDS": 0.5}  # where it is used up
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
    "a thread of the script's own, after main": (
        "def late():\n    while _stop.may_interrupt:  # until main is over\n        time.sleep(0.01)\n    blocked()\n\n"
        "threading.Thread(target=late).start()"
    ),
    "a task, after an except of the script's": (
        "with contextlib.suppress(BaseException):\n    main_thread_pool.submit(blocked).result()"
    ),
    "a thread of the script's own, after an except of the script's": (
        "threading.Thread(target=blocked).start()\n"
        "with contextlib.suppress(BaseException):\n    threading.Event().wait()"
    ),
    "a finally": "try:\n    blocked()\nfinally:\n    threading.Event().wait()",
    "an except that catches whatever comes, for ever": (
        "while True:\n    with contextlib.suppress(BaseException):\n        blocked()"
    ),
    "an output that nobody reads, and a full pipe": (
        "seen = os.dup(1)\n"
        "reading, writing = os.pipe()\n"
        "os.dup2(writing, 1)\n"
        "os.write(seen, b'blocked')\n"
        "print('x' * 1_000_000, flush=True)"
    ),
}


@sent_by_kill
@pytest.mark.parametrize("name", GOES_ON)
def test_nothing_that_never_ends_holds_the_process_after_ctrl_c(start: Starting, name: str) -> None:
    check_ctrl_c(start(BLOCKED + GOES_ON[name], **SHORT), "blocked")


@sent_by_kill
@pytest.mark.parametrize("caught", ["KeyboardInterrupt", "Exception", "(KeyboardInterrupt, Exception)"])
def test_a_loop_that_catches_what_ctrl_c_raises_ends_with_its_next_call(start: Starting, caught: str) -> None:
    todo = f"""
    while True:
        try:
            get_all_organizations()
            print("called", flush=True)
        except {caught}:
            pass
    """
    check_ctrl_c(start(todo), "called")


@sent_by_kill
def test_threads_of_the_scripts_own_end_with_their_next_call_and_without_a_traceback(start: Starting) -> None:
    todo = """
    def call_for_ever():
        while True:
            get_all_organizations()
            print("called", flush=True)

    for _ in range(5):
        threading.Thread(target=call_for_ever).start()
    threading.Event().wait()
    """
    check_ctrl_c(start(todo), "called")


@sent_by_kill
@pytest.mark.parametrize("ignored", ["SIGINT", "SIGHUP"])  # as under `&` in a script of sh; as under nohup
def test_a_signal_that_is_ignored_at_the_start_stays_ignored_and_sigterm_works(start: Starting, ignored: str) -> None:
    todo = """
    print("started", flush=True)
    while not Path("go on").exists():
        time.sleep(0.01)
    print(len(get_all_organizations()), "centres", flush=True)
    threading.Event().wait()
    """
    running = start(todo, prefix=["sh", "-c", f'trap "" {ignored[3:]}; exec "$0" "$1"'])
    running.says("started")
    running.process.send_signal(signal.Signals[ignored])
    running.path.with_name("go on").touch()
    running.says("5 centres")
    running.process.send_signal(signal.SIGTERM)
    check_stopped(running, signal.SIGTERM)


@sent_by_kill
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a mutex of zeros need not be a mutex")
def test_a_call_of_c_code_that_goes_on_after_a_signal_does_not_hold_the_process(start: Starting) -> None:
    todo = """
    import ctypes

    print("deaf", flush=True)  # as in the look-up of a host while no name server answers
    mutex = ctypes.create_string_buffer(128)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
    """
    check_ctrl_c(start(todo, **SHORT), "deaf")


CAUGHT = ("a finally", "an except that catches whatever comes, for ever", "a task, after an except of the script's")
SECOND = {
    **{name: GOES_ON[name] for name in ("a task that never returns", *CAUGHT)},
    "closing after a failure": (
        "begun = threading.Event()\nmain_thread_pool.submit(lambda: (begun.set(), blocked()))\nbegun.wait()\n"
        "raise LookupError('no input')"
    ),
}


@sent_by_kill
@pytest.mark.parametrize("name", SECOND)
def test_a_second_ctrl_c_ends_the_process_whatever_is_left_of_the_grace(start: Starting, name: str) -> None:
    running = start(BLOCKED + SECOND[name], _GRACE_SECONDS=600)
    running.says("blocked")
    if name == "closing after a failure":
        running.says("no input", ".log")
    running.process.send_signal(signal.SIGINT)

    def has_ended() -> bool:  # the same signal twice within moments may count as one
        running.process.send_signal(signal.SIGINT)
        return running.process.poll() is not None

    wait_until(has_ended, within=IN_TIME)
    assert running.exit_code() in (130, 1 if name == "closing after a failure" else None)


# A thread of the script raises signals, each when the main thread is waiting in a certain function.
RAISING = """
def place_in(function):
    frame = sys._current_frames()[threading.main_thread().ident]
    place, names = (frame.f_code, frame.f_lasti), set()
    while frame:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    return place if function in names else object()


def raise_within(function, *numbers):
    places = []
    while len(places) < 20 or len(set(places[-20:])) > 1:
        places.append(place_in(function))
        time.sleep(0.01)
    for number in numbers:
        signal.raise_signal(number)


"""
GUARD = 'if __name__ == "__main__":\n'


def raising(*numbers: signal.Signals, within: str = "main") -> dict[str, str]:
    """The edit by which a thread of a script raises signals once the main thread stands still."""
    names = ", ".join(f"signal.{number.name}" for number in numbers)
    thread = f"    threading.Thread(target=raise_within, args=({within!r}, {names}), daemon=True).start()\n"
    return {GUARD: RAISING + GUARD + thread}


STANDS = {
    "a call": "get_statistics('1')",
    "the results of 1,000 calls": (
        "[future.result() for future in [main_thread_pool.submit(get_statistics, '1') for _ in range(1000)]]"
    ),
    "a wait": "threading.Event().wait()",
    "the loop over run_parallel": "list(run_parallel(get_statistics, itertools.repeat('1')))",
    "a full pipe": "os.dup2(os.pipe()[1], 1)\nprint('x' * 1_000_000, flush=True)",
    **{name: BLOCKED + GOES_ON[name] for name in CAUGHT},
}


@sent_by_kill
@pytest.mark.parametrize("name", STANDS)
def test_a_signal_that_the_main_thread_does_not_hear_ends_the_run(held: Simulator, start: Starting, name: str) -> None:
    check_stopped(start(STANDS[name], on=held, edits=raising(signal.SIGINT), **SHORT), signal.SIGINT)


@sent_by_kill
def test_a_signal_that_the_main_thread_does_not_hear_ends_a_held_login(held: Simulator, start: Starting) -> None:
    held.control(latency=60)
    check_stopped(start("pass", on=held, edits=raising(signal.SIGINT, within="post"), **SHORT), signal.SIGINT)


@sent_by_kill
@pytest.mark.parametrize("number", EXIT_CODES, ids=lambda number: number.name)
def test_a_signal_that_is_sent_twice_at_once_leaves_a_complete_log(start: Starting, number: signal.Signals) -> None:
    """Shell and kernel both send SIGHUP when a terminal closes; timeout(1) sends SIGTERM to its child and its group."""
    check_stopped(start("threading.Event().wait()", edits=raising(number, number), **SHORT), number)


@pytest.mark.parametrize("number", EXIT_CODES, ids=lambda number: number.name)
def test_a_first_signal_while_a_failed_run_is_closing_leaves_the_reason_the_table_and_the_closing_line_in_the_log(
    start: Starting, number: signal.Signals
) -> None:
    todo = f"""
    def raise_when_it_has_failed():
        while "no input" not in Path("my_script.log").read_text(encoding="utf-8"):
            time.sleep(0.01)
        signal.raise_signal(signal.{number.name})

    threading.Thread(target=raise_when_it_has_failed, daemon=True).start()
    begun = threading.Event()
    main_thread_pool.submit(lambda: (begun.set(), threading.Event().wait()))
    begun.wait()
    raise LookupError("no input")
    """
    running = start(todo, **SHORT)
    assert running.exit_code() == 1
    log = running.text(".log")
    assert log.count("CRITICAL") == 2
    assert "Traceback" in log
    assert "API function" in log.partition("Traceback")[2]
    assert re.search(r"my_script: failed: LookupError \(my_script.py line \d+\)[^\n]*\n\Z", log)
    assert running.text(".err").count("failed: LookupError (") == 1


def test_a_script_that_handles_ctrl_c_itself_is_neither_interrupted_nor_ended(start: Starting) -> None:
    todo = """
    heard = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    signal.raise_signal(signal.SIGINT)
    while not heard:
        pass
    for _ in range(50):
        get_all_organizations()
    print("went on")
    """
    running = start(todo, _GRACE_SECONDS=0)
    assert running.exit_code() == 0, running.text(".err")
    assert running.text(".out") == "went on\n"


def test_a_failed_run_does_not_wait_for_the_calls_that_are_held(held: Simulator, start: Starting) -> None:
    todo = """
    futures = [main_thread_pool.submit(get_statistics, "1") for _ in range(30)]
    while not Path("go on").exists():
        time.sleep(0.01)
    raise LookupError("no input")
    """
    running = start(todo, on=held, **SHORT)
    has_seen("statistics", 20)(running, held)
    running.path.with_name("go on").touch()
    assert running.exit_code() == 1
    assert "my_script: failed: LookupError (" in running.text(".err")
    assert "API function" in running.text(".log")


BY_ITSELF = """
import atexit
atexit.register(print, "ended by itself")

"""


def test_tasks_that_outlast_a_failure_start_no_thread_anew(platform: Simulator, start: Starting) -> None:
    platform.control(hold=0.5, answer={"statistics": answer(200)})
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
    running = start(BY_ITSELF + textwrap.dedent(todo), _GRACE_SECONDS=60)
    assert running.exit_code() == 1
    assert running.text(".out") == "ended by itself\n"


def test_a_grace_that_the_finally_of_the_script_has_used_up_leaves_time_for_the_end_of_the_log(start: Starting) -> None:
    todo = """
    try:
        list(run_parallel(abs, range(100)))
        signal.raise_signal(signal.SIGINT)
    finally:
        while _stop.grace_left() > 0:  # writes a file, say
            time.sleep(0.01)
    """
    check_stopped(start(todo, _GRACE_SECONDS=0.1), signal.SIGINT)


def test_a_run_that_is_done_waits_for_what_was_submitted_and_for_threads_of_the_scripts_own(start: Starting) -> None:
    todo = """
    def late(words):
        while not Path("go on").exists():
            time.sleep(0.01)
        print(f"{words} {len(get_all_organizations())}\\n", end="", flush=True)  # in one write

    main_thread_pool.submit(late, "a task")
    subtasks_thread_pool.submit(late, "a subtask")
    threading.Thread(target=late, args=["a thread"]).start()
    print("main is done", flush=True)
    """
    running = start(todo)
    running.says("main is done")
    running.path.with_name("go on").touch()
    assert running.exit_code() == 0
    assert set(running.text(".out").splitlines()) == {"main is done", "a task 5", "a subtask 5", "a thread 5"}


def signals_of_the_process() -> list[Any]:
    """The signal handlers and the wakeup file; to be called in the main thread."""
    signal.set_wakeup_fd(wakeup := signal.set_wakeup_fd(-1))
    return [wakeup, *map(signal.getsignal, EXIT_CODES)]


@pytest.fixture
def wakeup() -> Iterator[None]:
    """Something else, for example a notebook, handles signals."""
    receiver, sender = socket.socketpair()
    with receiver, sender:
        sender.setblocking(False)
        previous = signal.set_wakeup_fd(sender.fileno())
        yield
        signal.set_wakeup_fd(previous)


def test_run_refuses_to_run_elsewhere_than_in_the_main_thread_of_a_script(
    load: Load, platform: Simulator, wakeup: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, before = load(platform), signals_of_the_process()
    with concurrent.futures.ThreadPoolExecutor(1) as outside:
        refusal = outside.submit(template.run, pytest.fail).exception()
    assert isinstance(refusal, template.ConfigurationError)
    assert "call login()" in str(refusal)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)  # a notebook has one
    with pytest.raises(template.ConfigurationError, match=r"call login\(\)"):
        template.run(pytest.fail)
    assert signals_of_the_process() == before
    assert sum(platform.seen()["requests"].values()) == 0


def test_a_login_at_the_end_of_a_run_does_not_undo_it(
    platform: Simulator, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    template = load(platform)

    def interrupted() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            template.login()

    assert template.run(interrupted) == 130
    assert "stopped by SIGINT" in capsys.readouterr().err


@needs_posix(reason="on Windows pytest-timeout has a thread in this process, for which the run would wait")
def test_run_gives_the_signals_back_and_works_again_after_ctrl_c(load: Load, platform: Simulator, wakeup: None) -> None:
    template = load(platform)
    before, inside = signals_of_the_process(), list[Any]()

    def interrupted() -> None:
        inside.extend(signals_of_the_process())
        signal.raise_signal(signal.SIGINT)

    assert template.run(interrupted) == 130
    assert signals_of_the_process() == before
    assert not set(inside) & set(before), "it was to hear all of them"
    assert "signals" not in [thread.name for thread in threading.enumerate()]
    assert list(template.run_parallel(abs, [-1])) == [(-1, 1)], "the pools work without a run, too"
    assert template.run(lambda: print(len(template.get_all_organizations()))) == 0
