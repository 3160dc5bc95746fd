"""The frame around a script: what the user sees on the terminal, and how the run ends."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Load, Run, Start, all_inclusions, line_of, needs_posix, python, ran, run_script, study_of
from server import Simulator

WATCHED_IMPORT = """
import sys, threading
seen = []
def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if not (mode or "r").startswith("r") or "+" in (mode or "") or (flags or 0) & 3:
            seen.append((event, str(path), mode))
    elif event.startswith(("socket.", "subprocess.", "os.", "_thread.start", "signal.", "shutil.", "sqlite3.")):
        if event not in ("os.listdir", "os.scandir"):
            seen.append((event, str(arguments)))
sys.dont_write_bytecode = True
sys.addaudithook(watch)
import my_script
seen.append(threading.active_count())
print(seen)
"""


def test_an_import_opens_no_file_starts_no_thread_and_reaches_for_no_network(copy: Path) -> None:
    before = sorted(copy.parent.iterdir())
    done = python(["-c", WATCHED_IMPORT], copy.parent)
    assert done.stderr == ""
    assert ast.literal_eval(done.stdout) == [1]
    assert sorted(copy.parent.iterdir()) == before


def test_the_template_itself_counts_the_whole_study(copy: Path, simulator: Start) -> None:
    platform = simulator("--centres", "100", "--patients", "2500")
    done = run_script(copy, platform)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80, "wider than a terminal"
    study = study_of(platform)
    sizes = [(len(all_inclusions(study, centre["id"])), centre["name"]) for centre in study.organizations]
    head, *largest, total = done.stdout.splitlines()
    assert head == "inclusions  centre (the ten largest)"
    assert largest == [f"{number:>10}  {name}" for number, name in sorted(sizes, reverse=True)[:10]]
    assert total == "     2,500  in all 100 centres"
    calls = sum(platform.seen()["requests"].values())
    assert re.fullmatch(rf"my_script: done; {calls} calls in 0:\d\d:\d\d, log in my_script.log\n", done.stderr)


# ------------------------------------------------------------------------------------------------- how a run may end


class Frame:
    """Like a pandas object: it has no truth value, and neither do comparisons with it."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> Frame:  # type: ignore[override]
        return self

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")


def leave(how: object) -> Callable[[], object]:
    def main() -> object:
        if isinstance(how, BaseException):
            raise how
        return how

    return main


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        (None, 0, "done"),
        (0, 0, "done"),
        (1, 1, "exit 1"),
        ("no centre has answered", 1, "no centre has answered"),
        ("", 1, "failed"),
        ([{"patientId": "4711"}], 1, "failed: main returns a list: return nothing, an exit code or a text"),
        ((0,), 1, "failed: main returns a tuple: return nothing, an exit code or a text"),
        (False, 1, "failed: main returns a bool: return nothing, an exit code or a text"),
        (Frame(), 1, "failed: main returns a Frame: return nothing, an exit code or a text"),
        (SystemExit(), 0, "done"),
        (SystemExit(0), 0, "done"),
        (SystemExit(3), 3, "exit 3"),
        (SystemExit(256), 1, "exit 256"),
        (SystemExit(-1), 1, "exit -1"),
        (SystemExit("no centre has been chosen"), 1, "no centre has been chosen"),
        (SystemExit(""), 1, "failed"),
        (ValueError("column 7 is empty"), 1, "failed: ValueError"),
        (KeyError("patientId"), 1, "failed: KeyError"),
        (RecursionError("too deep"), 1, "failed: RecursionError"),
    ],
)
def test_the_closing_line_and_the_exit_code_tell_how_the_run_ended(
    load: Load, platform: Simulator, capfd: pytest.CaptureFixture[str], how: object, code: int, words: str
) -> None:
    ended, log = ran(load(platform), leave(how))
    out, err = capfd.readouterr()
    assert (ended, out) == (code, "")
    [line] = err.splitlines()
    assert f": {words}; 3 calls in " in line
    assert log.splitlines()[-1].endswith(line)
    assert ("Traceback" in log) == words.startswith("failed: ")


BY_HAND = """
with tqdm(total=1, bar_format=custom_bar_format) as pbar:
    with main_thread_pool as executor:
        for future in as_completed([executor.submit(get_statistics, "nowhere")]):
            try:
                future.result()  # here
            except Exception as error:
                logging.critical("stopped: %s", error, exc_info=True)
                executor.shutdown(wait=False, cancel_futures=True)
                raise
"""
RAISED = r"(outside main\(\): )?\w+(: .*)?"
AFTER_A_CALL = "try:\n    get_statistics('unknown')\nexcept httpx.HTTPStatusError:\n    raise LookupError  # here"
FAILURES = {
    "itself": "{}['x']  # here",
    "a library": "json.loads('{')  # here",
    "the engine": "tqdm(range(3), no_such_option=True)  # here",
    "a task of run_parallel": "def task(item):\n    return {}[item]  # here\n\nlist(run_parallel(task, 'abc'))",
    "a task of a pool": "def task(item):\n    return {}[item]  # here\n\nmain_thread_pool.submit(task, 1).result()",
    "after a call": AFTER_A_CALL,
    "logged by the script as well": BY_HAND,
    "an id that is none": "get_request_by_tube([])  # here",
    "in a function": "def helper():\n    return get_record_by_patient('')  # here\n\nhelper()",
    "in a task": "def task(item):\n    return get_surveys(item)  # here\n\nlist(run_parallel(task, ['']))",
    "a pool": "main_thread_pool.submit(get_statistics, '').result()  # here",
    "a loop": "list(run_parallel(get_statistics, ['']))  # here",
    "a call": "get_statistics('nowhere')  # here",
    "a thread": "thread = threading.Thread(target=lambda: {}['x'])  # here\nthread.start()\nthread.join()",
}


@pytest.mark.parametrize("todo", FAILURES.values(), ids=FAILURES)
def test_the_closing_line_names_the_scripts_last_line_and_the_log_has_one_traceback(run: Run, todo: str) -> None:
    done = run(todo)
    assert done.returncode == 1
    hint = r"(; python3 tests/check_platform\.py [^;]+)?"
    assert re.search(rf"failed: {RAISED} \(my_script\.py line {line_of(done.path)}\){hint}; \d calls", done.stderr)
    tracebacks = 2 if todo == AFTER_A_CALL else 1  # with that of the call in it
    assert done.log.count("Traceback (most recent call last)") == tracebacks


def test_the_closing_line_names_a_line_of_the_script_that_imports_a_copy(copy: Path, platform: Simulator) -> None:
    path = copy.with_name("importing.py")
    path.write_text(
        "import sys, my_script\n\n\n"
        "def main():\n    for _ in my_script.run_parallel(int, ['x']):  # here\n        pass\n\n\n"
        "sys.exit(my_script.run(main))\n",
        encoding="utf-8",
    )
    done = run_script(path, platform)
    assert done.returncode == 1
    assert f" (importing.py line {line_of(path)}); " in done.stderr
    assert [each.name for each in path.parent.glob("*.log")] == ["importing.log"]


@pytest.mark.parametrize(
    ("leaving", "code", "words"),
    [
        ("sys.exit('patients are missing')", 1, "failed: outside main(): patients are missing"),
        ("sys.exit()", 0, "done"),
    ],
    ids=["with an error", "without one"],
)
def test_sys_exit_with_an_error_in_an_own_thread_fails_the_run(run: Run, leaving: str, code: int, words: str) -> None:
    todo = f"""
    def work():
        {leaving}

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    """
    done = run(todo)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1].startswith(f"my_script: {words}")


def test_a_thread_of_the_scripts_own_that_fails_costs_the_exit_code_and_lets_main_go_on(run: Run) -> None:
    done = run("thread = threading.Thread(target=lambda: [][7])\nthread.start()\nthread.join()\nprint('went on')")
    assert (done.returncode, done.stdout) == (1, "went on\n")
    closing = r"(?m)\bmy_script: failed: outside main\(\): IndexError \(my_script.py line \d+\); .* log in "
    assert re.search(closing, done.stderr)
    assert re.search(closing, done.log)


def test_a_thread_of_the_scripts_own_may_use_a_pool_after_main_is_done(run: Run) -> None:
    todo = """
    def late():
        while _stop.may_interrupt:  # until main is over
            time.sleep(0.01)
        print(main_thread_pool.submit(len, get_all_organizations()).result())
        is_late.set()

    is_late = threading.Event()
    main_thread_pool.submit(len, "").result()
    subtasks_thread_pool.submit(is_late.wait)  # for which the run waits
    threading.Thread(target=late).start()
    """
    done = run(todo)
    assert (done.returncode, done.stdout) == (0, "5\n")


def test_the_closing_line_names_no_line_where_none_of_the_script_has_a_part_in_it(run: Run) -> None:
    done = run("pass", edits={"    _check_proxies()\n    user": "    {}['x']\n    user"})
    assert (done.returncode, done.stderr) == (1, "my_script: failed: KeyError\n")


def test_standard_output_carries_only_what_the_script_prints(run: Run, platform: Simulator) -> None:
    platform.control(faults={"500": 0.2})
    done = run(
        """
        print("id;name")
        logging.warning("a warning")
        logging.error("an error")
        for organization, _ in run_parallel(lambda organization: None, get_all_organizations()):
            print(organization["id"], organization["name"], sep=";")
        get_request_by_tube("unknown")
        """,
        WAIT_BEFORE_RETRY=0.01,
    )
    assert done.returncode == 1
    header, *rows = done.stdout.splitlines()
    assert header == "id;name"
    assert len(rows) == platform.options.centres
    assert all(re.fullmatch(r"[0-9a-f-]{36};[^;]+", row) for row in rows)
    assert "an error\n" in done.stderr
    assert "a warning" not in done.stderr, "warnings are for the log, once the script's own code runs"
    assert " WARNING  MainThread   a warning\n" in done.log


@needs_posix(reason="closes the descriptors with a POSIX shell")
def test_a_run_without_any_standard_stream_works(run: Run) -> None:
    todo = 'print("unseen")\nlist(run_parallel(len, ["a"]))\nlogging.error("unseen, too")'
    done = run(todo, redirect="<&- >&- 2>&-")
    assert done.returncode == 0
    assert "my_script: done; " in done.log


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_of_the_scripts_own_need_not_do_more_than_write(run: Run, stream: str) -> None:
    tee = f"class Tee:\n    def write(self, text):\n        return sys.__{stream}__.write(text)\n\n"
    done = run(f"{tee}sys.{stream} = Tee()\nlist(run_parallel(abs, [1]))\nprint('seen', file=sys.{stream})")
    assert "seen\n" in done.stdout + done.stderr
    assert "my_script: done; " in done.stderr
    assert "my_script: done; " in done.log.splitlines()[-1]


UNSPEAKABLE = """
class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__

"""


@pytest.mark.parametrize(
    "todo",
    [
        "raise Unspeakable",
        "raise Unspeakable(1) from Unspeakable(2)",
        "def task(item):\n    raise Unspeakable\n\nlist(run_parallel(task, [1]))",
        "@api_call_with_retry('RC')\ndef call():\n    raise Unspeakable\n\ncall()",
        "def work():\n    raise Unspeakable\n\nthread = threading.Thread(target=work)\nthread.start()\nthread.join()",
    ],
    ids=["in main", "in a chain", "in a task", "in a call", "in a thread"],
)
def test_an_exception_that_cannot_say_what_it_is_ends_the_run_like_any_other(run: Run, todo: str) -> None:
    done = run(UNSPEAKABLE + todo)
    assert done.returncode == 1
    closing = done.stderr.splitlines()[-1]
    assert re.match(r"my_script: failed: .*Unspeakable", closing)
    assert "Traceback" not in done.stderr
    assert "API function" in done.log
    assert done.log.splitlines()[-1].endswith(closing)
