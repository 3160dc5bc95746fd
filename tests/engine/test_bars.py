"""Bars: what the screen of a real pseudo-terminal shows, and what is logged without a terminal."""

from __future__ import annotations

import re
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import tqdm
from helpers import OWN_CALLS, Load, Run, Script, answer, environment_for, log_of, needs_posix, on_terminal, wait_until
from server import WATCHDOG, Simulator

if sys.platform != "win32":
    import pexpect
    import pyte

on_posix = needs_posix(reason="pseudo-terminals are POSIX")

CTRL_C = "\x03"
CONTROL_CODE = re.compile(r"[\x00-\x09\x0b-\x1f]")

# Tasks with one bar each, which wait halfway until the test has looked at the screen.
TASKS_WITH_BARS = """
def task(number):
    with tqdm(total=10, desc=f"task {number}", position=get_thread_position(), bar_format=custom_bar_format) as bar:
        bar.update(5)
        bar.refresh()
        while not Path("go on").exists():
            time.sleep(0.01)
            if number == 2 and Path("fail").exists():
                raise LookupError("no such centre")
        bar.update(5)

"""
LOOP = """
for _ in run_parallel(task, range(1, 7), desc="all"):
    pass
"""


class Screen:
    """A script on a pseudo-terminal, and what a user sees there."""

    def __init__(self, path: Path, platform: Simulator, columns: int = 120, redirect: str = "") -> None:
        self.path = path
        self._screen = pyte.Screen(columns, 24)
        self._screen.set_mode(pyte.modes.LNM)
        self._stream = pyte.Stream(self._screen)
        variables = environment_for(platform, EB_THREADS="3")
        self._child = on_terminal(path.parent, f"{path.name} {redirect}", variables, (24, columns))

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close(force=True)

    def lines(self) -> list[str]:
        """What the screen shows now, down to its last line that is not empty."""
        with suppress(pexpect.TIMEOUT, pexpect.EOF):
            self._stream.feed(self._child.read_nonblocking(100_000, timeout=0.05))
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip().split("\n")

    def shows(self, *patterns: str) -> None:
        """Wait until the screen shows lines like these, and no others."""

        def fits() -> bool:
            lines = self.lines()
            return len(lines) == len(patterns) and all(map(re.fullmatch, patterns, lines))

        try:
            wait_until(fits)
        except AssertionError:
            pytest.fail("the screen is\n" + "\n".join(self.lines()))

    def press(self, key: str) -> None:
        self._child.send(key)

    def allow(self, what: str) -> None:
        (self.path.parent / what).touch()

    def exit_code(self) -> int:
        wait_until(lambda: self.lines() and self._child.eof() and not self._child.isalive())
        return int(self._child.exitstatus)


def bar(name: str, state: str) -> str:
    """What a bar looks like, for example `bar("task 1", "5/10")`."""
    return rf"{name} +\d+% \|.*\| {state} \[.*"


HALFWAY = [bar("all", "0/6"), *[bar("task [123]", "5/10")] * 3]


NARROW = [r"all  .*", *[r"task [123]  .*"] * 3]
WIDTHS = {
    120: (HALFWAY, [bar("all", "6/6"), "my_script: done; .*"]),
    80: (HALFWAY, [bar("all", "6/6"), "my_script: done; .*"]),
    40: (NARROW, [r"all  .*", "my_script: done; 3 calls in .*", ".*"]),
}


@on_posix
@pytest.mark.parametrize("columns", WIDTHS)
def test_the_bars_of_tasks_have_a_row_each_below_that_of_the_loop_and_leave_a_clean_screen(
    script: Script, platform: Simulator, columns: int
) -> None:
    halfway, end = WIDTHS[columns]
    with Screen(script(TASKS_WITH_BARS + LOOP), platform, columns) as screen:
        screen.shows(*halfway)
        screen.allow("go on")
        assert screen.exit_code() == 0
        screen.shows(*end)


@on_posix
def test_a_log_line_appears_above_the_bars_and_breaks_none(script: Script, platform: Simulator) -> None:
    todo = """
def speak():
    while not Path("speak").exists():
        time.sleep(0.01)
    logging.info("too low for the terminal")
    for number in range(3):
        logging.error("line %d\\nof note", number)

threading.Thread(target=speak).start()
"""
    with Screen(script(TASKS_WITH_BARS + todo + LOOP), platform) as screen:
        screen.shows(*HALFWAY)
        screen.allow("speak")
        screen.shows(*[rf"line {number}\\nof note" for number in range(3)], *HALFWAY)
        screen.allow("go on")
        screen.exit_code()
        screen.shows(*[rf"line {number}\\nof note" for number in range(3)], bar("all", "6/6"), "my_script: done; .*")
    assert "too low for the terminal" in log_of(screen.path)


@on_posix
def test_a_failure_leaves_a_clean_screen_although_other_bars_were_open(script: Script, platform: Simulator) -> None:
    with Screen(script(TASKS_WITH_BARS + LOOP), platform) as screen:
        screen.shows(*HALFWAY)
        screen.allow("fail")  # the other two tasks are held beyond the end
        assert screen.exit_code() == 1
        screen.shows(
            r"failed on item 2: LookupError \(my_script.py line \d+\)",
            bar("all", "1/6"),
            r"my_script: failed: LookupError \(my_script.py line \d+\); .*",
        )


@on_posix
def test_an_error_in_the_loop_closes_its_bar_before_the_closing_line(script: Script, platform: Simulator) -> None:
    todo = """
results = run_parallel(abs, range(6), desc="all")
for number, _ in results:
    raise LookupError("no such centre")
"""
    with Screen(script(todo), platform) as screen:
        assert screen.exit_code() == 1
        screen.shows(bar("all", "1/6"), r"my_script: failed: LookupError \(my_script.py line \d+\); .*")


@on_posix
def test_ctrl_c_leaves_a_clean_screen_although_tasks_with_bars_are_held(script: Script, platform: Simulator) -> None:
    with Screen(script(TASKS_WITH_BARS + LOOP), platform) as screen:
        screen.shows(*HALFWAY)
        screen.press(CTRL_C)
        assert screen.exit_code() == 130
        screen.shows(bar("all", "0/6"), "my_script: stopped by SIGINT; .*")


@on_posix
def test_a_loop_in_a_loop_shows_both_bars_and_keeps_the_outer_one(script: Script, platform: Simulator) -> None:
    todo = """
    def inner(number):
        while number == 2 and not Path("go on").exists():
            time.sleep(0.01)

    for outer, _ in run_parallel(abs, range(1, 3), desc="outer"):
        for _ in run_parallel(inner, range(3), desc="inner"):
            pass
    """
    with Screen(script(todo), platform) as screen:
        screen.shows(bar("outer", "[01]/2"), bar("inner", "[02]/3"))
        screen.allow("go on")
        assert screen.exit_code() == 0
        screen.shows(bar("outer", "2/2"), "my_script: done; .*")


@on_posix
def test_a_run_that_crawls_shows_on_its_bar_how_the_retries_grow(script: Script, platform: Simulator) -> None:
    platform.control(answer={"echo": answer(503)})
    waits = {"WAIT_BEFORE_RETRY": 0.1, "MAX_WAIT_BEFORE_RETRY": 0.1, "ERROR_MAX_RETRY": 100_000}
    path = script(OWN_CALLS + "list(run_parallel(echo, range(3), desc='all'))", **waits)
    with Screen(path, platform) as screen:

        def retries() -> int:
            shown = re.search(
                r"all .*\| 0/3 \[.*, ([0-9,]+) retries(?:, \d waiting, next in \d s)?\]", "\n".join(screen.lines())
            )
            return int(shown[1].replace(",", "")) if shown else 0

        for at_least in (1, 10, 30):
            wait_until(lambda at_least=at_least: retries() >= at_least)
        platform.control(answer={"echo": None})
        assert screen.exit_code() == 0
        made = platform.seen()["requests"]["echo"] - 3
        screen.shows(bar("all", "3/3"), rf"my_script: done; 6 calls, {made} retries in .*")


@on_posix
def test_results_on_stdout_hold_no_part_of_a_bar(script: Script, platform: Simulator) -> None:
    todo = """
    for item, _ in run_parallel(abs, range(100), desc="all"):
        print(item)
    """
    with Screen(script(todo), platform, redirect="> results.csv") as screen:
        assert screen.exit_code() == 0
        screen.shows(bar("all", "100/100"), "my_script: done; .*")
        results = (screen.path.parent / "results.csv").read_text()
        assert sorted(map(int, results.split())) == list(range(100))


# ------------------------------------------------------------------------------------------ without a terminal


def test_without_a_terminal_no_control_code_is_written_and_a_short_run_logs_no_progress(run: Run) -> None:
    done = run(TASKS_WITH_BARS.replace("while not", "while False and not") + LOOP + "print('result')")
    assert done.stdout == "result\n"
    assert re.fullmatch("my_script: done; .*\n", done.stderr)
    assert not CONTROL_CODE.search(done.stdout + done.stderr + done.log)
    assert "task 1" not in done.log


@pytest.mark.parametrize(
    ("items", "progress"),
    [("range(10**9)", r" all +0% \|.*\| \d+/1000000000 \["), ("itertools.count()", r" all .*\| \d+/\? \[")],
    ids=["with len()", "without"],
)
def test_without_a_terminal_progress_goes_to_the_log_now_and_then(run: Run, items: str, progress: str) -> None:
    todo = f"""
    log = Path("my_script.log")
    for item, _ in run_parallel(abs, {items}, desc="all"):
        if log.read_text(encoding="utf-8").count(" all ") == 2:
            break
    """
    done = run(todo, _LOG_EVERY=0.2)
    assert done.returncode == 0
    assert re.fullmatch("my_script: done; .*\n", done.stderr)
    assert not CONTROL_CODE.search(done.log)
    lines = [line for line in done.log.splitlines() if " all " in line]
    assert len(lines) >= 2
    assert all(re.search(rf" INFO +MainThread +{progress}", line) for line in lines), lines


def test_the_shipped_interval_of_progress_in_the_log_is_30_seconds(load: Load) -> None:
    assert load()._LOG_EVERY == 30


def test_lines_bars_and_the_bars_of_tqdm_itself_take_one_lock_that_starts_no_process(load: Load) -> None:
    template = load()
    assert template.tqdm.get_lock() is tqdm.tqdm.get_lock()
    assert isinstance(template.tqdm.get_lock(), type(threading.RLock()))


def test_without_a_terminal_a_log_line_does_not_wait_for_a_bar(run: Run) -> None:
    todo = """
with tqdm.get_lock():  # as a bar does while it writes its state to the log
    thread = threading.Thread(target=logging.error, args=("a line",))
    thread.start()
    thread.join(20)
    print("held" if thread.is_alive() else "written")
"""
    done = run(todo)
    assert (done.returncode, done.stdout) == (0, "written\n")
    assert done.stderr.startswith("a line\n")


@needs_posix(reason="a shell closes stderr")
def test_bars_work_without_any_stderr(run: Run) -> None:
    done = run(LOOP.replace("task", "abs") + "print('result')", redirect="2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "result\n", "")


# ----------------------------------------------------------------------------------------------- the positions


def test_a_thread_that_is_no_worker_has_position_0(load: Load) -> None:
    template, found = load(), list[int]()
    thread = threading.Thread(target=lambda: found.append(template.get_thread_position()))
    thread.start()
    thread.join()
    assert [template.get_thread_position(), *found] == [0, 0]


def test_workers_of_both_pools_have_positions_of_their_own_and_keep_them(load: Load) -> None:
    template = load()
    template.main_thread_pool.size, template.subtasks_thread_pool.size = 4, 3
    together = threading.Barrier(7, timeout=WATCHDOG)

    def position(_: int) -> tuple[int, int]:
        together.wait()
        return threading.get_ident(), template.get_thread_position()

    def once() -> list[tuple[int, int]]:
        pools = (template.main_thread_pool, 4), (template.subtasks_thread_pool, 3)
        futures = [pool.submit(position, 0) for pool, size in pools for _ in range(size)]
        return sorted(future.result(WATCHDOG) for future in futures)

    first = once()
    assert sorted(number for _, number in first) == [1, 2, 3, 4, 5, 6, 7]
    assert once() == first
