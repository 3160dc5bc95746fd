"""What differs on Windows, as far as another system shows it; test_types.py finds calls that Windows does not have."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import WATCHDOG, environment_for, run_script
from server import Simulator

Script = Callable[..., Path]

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
    [("logging.error('one')\nprint(2)", 0, "my_script: done"), (STUCK, 1, "failed: ValueError: stop")],
    ids=["done", "stuck"],
)
def test_a_script_runs_without_any_standard_stream_as_under_pythonw(
    todo: str, code: int, end: str, script: Script, platform: Simulator
) -> None:
    path = script(todo)
    command = [sys.executable, "-c", PYTHONW, str(path)]
    done = subprocess.run(command, cwd=path.parent, env=environment_for(platform), timeout=WATCHDOG, check=False)
    assert done.returncode == code
    assert end in path.with_suffix(".log").read_text(encoding="utf-8")


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


def test_an_error_that_the_terminal_cannot_encode_is_shown_escaped_and_logged_whole(
    script: Script, platform: Simulator
) -> None:
    path = script("logging.error('Ωmega → 日本')")
    done = run_script(path, platform, PYTHONIOENCODING="cp1252:strict", PYTHONUTF8="0")
    assert done.returncode == 0
    assert r"\u03a9mega \u2192 \u65e5\u672c" in done.stderr
    assert "Ωmega → 日本" in path.with_suffix(".log").read_text(encoding="utf-8")
