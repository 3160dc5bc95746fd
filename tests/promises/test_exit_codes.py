"""The exit code tells whether the data are whole: what `main` returns or leaves by, and a terminal that is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import WATCHDOG, environment_for, log_of, needs_posix, run_script
from server import Simulator

Script = Callable[..., Path]

posix = needs_posix(reason="devices and terminals of Unix")

# ---------------------------------------------------------------------------------------------------- What main returns


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ("return", 0, "my_script: done"),
        ("return 0", 0, "my_script: done"),
        ("return 1", 1, "my_script: exit 1"),
        ("return 3", 3, "my_script: exit 3"),
        ("return 'no centre has answered'", 1, "my_script: no centre has answered"),
        ("sys.exit()", 0, "my_script: done"),
        ("sys.exit(3)", 3, "my_script: exit 3"),
        ("sys.exit('no centre has answered')", 1, "my_script: no centre has answered"),
        ("sys.exit('')", 1, "my_script: "),
        ("return ''", 1, "my_script: "),
    ],
)
def test_what_main_returns_or_leaves_by_is_the_exit_code_as_of_sys_exit(
    platform: Simulator, script: Script, end: str, code: int, words: str
) -> None:
    path = script(f"import sys\n{end}")
    done = run_script(path, platform)
    assert (done.returncode, done.stderr.startswith(words)) == (code, True), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert log_of(path).splitlines()[-1].partition("my_script: ")[2] == done.stderr.strip().partition("my_script: ")[2]


def test_rows_that_main_returns_are_no_exit_code_and_are_not_shown(platform: Simulator, script: Script) -> None:
    path = script("return [{'patientId': '4711', 'name': 'Zoé Nemo'}]")
    done = run_script(path, platform)
    assert done.returncode == 1
    assert "Nemo" not in done.stdout + done.stderr
    assert "4711" not in done.stdout + done.stderr


async def main_async() -> None:
    raise AssertionError("never here")


async def main_in_parts_async() -> AsyncIterator[int]:
    yield 1
    raise AssertionError("never here")


def main_in_parts() -> Iterator[int]:
    yield 1
    raise AssertionError("never here")


@pytest.mark.parametrize("main", [main_async, main_in_parts_async, main_in_parts, lambda: main_in_parts()])
def test_a_main_that_would_not_run_is_refused(
    platform: Simulator, load: Callable[..., Any], main: Callable[[], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(platform).run(main) in (1, 2)
    said = capsys.readouterr().err
    assert any(word in said for word in ("generator", "async", "yield", "coroutine")), said
    assert "done" not in said


# ---------------------------------------------------------------------------------------------- A terminal that is gone


@contextmanager
def full_device() -> Iterator[int]:
    file = os.open("/dev/full", os.O_WRONLY)
    yield file
    os.close(file)


@contextmanager
def closed_terminal() -> Iterator[int]:
    master, slave = os.openpty()
    os.close(master)
    yield slave
    os.close(slave)


@contextmanager
def pipe_without_reader() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


DEAD = {
    "2>/dev/full": full_device,
    "a closed terminal": closed_terminal,
    "a pipe without a reader": pipe_without_reader,
}


@posix
@pytest.mark.parametrize("stderr", DEAD.values(), ids=DEAD.keys())
def test_a_script_whose_terminal_is_gone_ends_as_it_would_with_one(
    platform: Simulator, script: Script, stderr: Callable[[], Any]
) -> None:
    path = script("print(len(get_all_organizations()))")
    assert ended_with(path, platform, stderr) == (0, "5\n")
    assert "my_script: done; 4 calls in " in log_of(path).splitlines()[-1]


@posix
@pytest.mark.parametrize("stderr", DEAD.values(), ids=DEAD.keys())
def test_a_script_whose_terminal_is_gone_has_its_own_exit_code(
    platform: Simulator, script: Script, stderr: Callable[[], Any]
) -> None:
    assert ended_with(script("return 3"), platform, stderr) == (3, "")


def ended_with(path: Path, platform: Simulator, stderr: Callable[[], Any]) -> tuple[int, str]:
    """Exit code and output of a script whose standard error leads nowhere."""
    with stderr() as file:
        done = subprocess.run(
            [sys.executable, str(path)],
            cwd=path.parent,
            env=environment_for(platform, PYTHONUNBUFFERED=""),  # unbuffered, nothing is left for the end
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            encoding="utf-8",
            timeout=WATCHDOG,
        )
    return done.returncode, done.stdout
