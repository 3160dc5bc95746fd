"""What differs on Windows, as far as other systems can show it.

test_types.py finds functions that Windows does not have; `.ci/windows` runs these tests and the engine's on Windows.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from console import Console
from helpers import Run, Script, Start, environment_for, finished_in, log_of, run_script, wait_until
from server import Simulator

IN_TIME = 40  # seconds; a process that continues what it was doing takes 60
on_windows = pytest.mark.skipif(sys.platform != "win32", reason="needs a Windows console or Windows file locks")
buffered_or_not = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["python", "python -u"])

PYTHONW = """
import runpy, sys
sys.stdin = sys.stdout = sys.stderr = None
runpy.run_path(sys.argv[1], run_name="__main__")
"""
STUCK = """
print("nobody reads this")
main_thread_pool.submit(threading.Event().wait)
raise ValueError("stop")
"""


@pytest.mark.parametrize(
    ("todo", "code", "end"),
    [("logging.error('one')\nprint(2)", 0, "my_script: done"), (STUCK, 1, "failed: ValueError (my_script.py line ")],
    ids=["done", "stuck"],
)
def test_a_script_runs_without_any_standard_stream_as_under_pythonw(
    todo: str, code: int, end: str, script: Script, platform: Simulator
) -> None:
    path = script(todo)
    done = finished_in(path.parent, [sys.executable, "-c", PYTHONW, str(path)], environment_for(platform))
    assert done.returncode == code
    assert end in log_of(path)


def test_a_copy_with_line_ends_of_windows_runs_in_a_folder_with_spaces_and_accents(
    script: Script, platform: Simulator, tmp_path: Path
) -> None:
    folder = tmp_path / "Hélène Dupré" / "données"
    folder.mkdir(parents=True)
    copy = folder / "été 2026.py"
    copy.write_bytes(script("print('ok')").read_bytes().replace(b"\n", b"\r\n"))
    done = run_script(copy, platform)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    assert "été 2026: done" in (folder / "été 2026.log").read_text(encoding="utf-8")


def test_an_error_that_the_terminal_cannot_encode_is_shown_escaped_and_logged_whole(run: Run) -> None:
    done = run("logging.error('Ωmega → 日本')", PYTHONIOENCODING="cp1252:strict", PYTHONUTF8="0")
    assert done.returncode == 0
    assert r"\u03a9mega \u2192 \u65e5\u672c" in done.stderr
    assert "Ωmega → 日本" in done.log


def test_output_that_its_reader_cannot_encode_is_escaped_and_ends_no_run(run: Run) -> None:
    done = run("print('Łask → 日本')\nprint('the rest')", PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\\u0141ask \\u2192 \\u65e5\\u672c\nthe rest\n"


@on_windows
def test_output_that_nul_cannot_encode_ends_no_run(script: Script, platform: Simulator) -> None:
    path, variables = script("print('Łask → 日本')"), environment_for(platform)
    del variables["PYTHONIOENCODING"]
    with Console(path, variables, stdout=Path(os.devnull)) as console:
        assert console.exit_code(IN_TIME) == 0, console.screen()


@on_windows
def test_a_log_that_another_program_has_open_grows_on_and_is_set_aside_by_a_run_that_finds_it_free(
    script: Script, platform: Simulator
) -> None:
    path = script('print("done")', _LOG_BYTES=100)
    log = path.with_suffix(".log")
    older = [Path(f"{log}.{number}") for number in range(1, 6)]
    for other in older:
        other.write_text(other.name, encoding="utf-8")
    log.write_text("x" * 200 + "\n", encoding="utf-8")
    with log.open("rb"):
        done = run_script(path, platform)
    assert (done.returncode, done.stderr.count("cannot be set aside, so it grows")) == (0, 1)
    assert log_of(path).startswith("x" * 200)
    assert {path.name for path in older if path.exists()} == {path.name for path in older}
    assert run_script(path, platform).returncode == 0
    assert set(path.parent.glob("*.log.*")) == set(older)
    assert sum("cannot be set aside" in each.read_text(encoding="utf-8") for each in older) == 1
    assert len([each for each in older if each.read_text(encoding="utf-8") == each.name]) == 4


@on_windows
@buffered_or_not
@pytest.mark.parametrize("streams", [("stdin",), ("stderr",), ("stdin", "stderr")], ids="+".join)
def test_nothing_is_asked_where_nul_stands_for_the_terminal(
    streams: tuple[str, ...], unbuffered: str, script: Script, platform: Simulator
) -> None:
    path, variables = script("pass"), environment_for(platform, PYTHONUNBUFFERED=unbuffered)
    del variables["EB_PASSWORD"]
    with Console(path, variables, **dict.fromkeys(streams, Path(os.devnull))) as console:
        assert console.exit_code(IN_TIME) == 2
        assert "Password" not in console.screen()
    assert ": EB_PASSWORD is empty: " in log_of(path)


@buffered_or_not
def test_progress_goes_to_the_log_where_nul_is_the_terminal(unbuffered: str, run: Run) -> None:
    todo, nul = "for _ in run_parallel(time.sleep, [0.5]):\n    pass", subprocess.DEVNULL
    done = run(todo, _LOG_EVERY=0, streams={"stdin": nul, "stderr": nul}, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 0
    assert " 0/1 " in done.log


# --------------------------------------------------------------------------------------------------------------- Ctrl-C

HELD: dict[str, Any] = {"hold": 60}
MANY = """
futures = [main_thread_pool.submit(get_statistics, "1") for _ in range(1000)]
print("busy", flush=True)
for future in futures:
    future.result()
"""


Ready = Callable[[Console, Simulator], bool]


def is_busy(console: Console, platform: Simulator) -> bool:
    return "busy" in console.screen()


def has_called(endpoint: str) -> Ready:
    return lambda console, platform: platform.seen()["requests"][endpoint] > 0


@on_windows
@pytest.mark.parametrize(
    ("todo", "ready", "options"),
    [
        ("print('busy', flush=True)\nwhile True:\n    pass", is_busy, ()),
        ("print('busy', flush=True)\ntime.sleep(3600)", is_busy, ()),
        ("print('busy', flush=True)\nthreading.Event().wait()", is_busy, ()),
        ("get_statistics('1')", has_called("statistics"), ()),
        (MANY, is_busy, ()),
        ("", has_called("login"), ("--latency", "60")),
    ],
    ids=["own loop", "sleep", "a wait", "a call", "the results of many calls", "login"],
)
def test_ctrl_c_at_the_console_ends_the_run_in_time_with_130_and_a_complete_log(
    todo: str, ready: Ready, options: tuple[str, ...], script: Script, simulator: Start
) -> None:
    path, platform = script(todo or "pass"), simulator(*options)
    platform.control(**HELD)
    with Console(path, environment_for(platform)) as console:
        wait_until(lambda: ready(console, platform))
        console.press("\x03")
        assert console.exit_code(IN_TIME) == 130, console.screen()
        closing = console.screen().splitlines()[-1]
    assert closing.startswith("my_script: stopped by SIGINT")
    assert log_of(path).splitlines()[-1].endswith(closing)
    assert "API function" in log_of(path), "no summary"
