"""The benchmark works: it measures every part, names what it leaves out, and does not count work that was not done."""

import json
import math
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import TEMPLATE, WATCHDOG
from parts import Goal, parts
from report import judged

HERE = Path(__file__).resolve().parent
SURVEYS = 'return call_endpoint("RC", "POST", "surveys", list, json={"subject": identifier(patient_id)})'
NEEDS = {
    **{"requests": "requests", "aiohttp": "aiohttp", "pycurl": "pycurl", "dlt": "dlt", "singer-sdk": "singer_sdk"},
    "template on httpx2": "httpx2",
}
OTHER_PYTHON = "no-such-python"
BASE_PYTHON = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")  # without packages


def benchmark(folder: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """Run the quick form with the installed packages; the process, and the tables as data."""
    command = [sys.executable, str(HERE), "--quick", "--here", "--json", "figures.json"]
    command += ["--other-python", OTHER_PYTHON, *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=WATCHDOG, check=False)
    return done, json.loads((folder / "figures.json").read_text(encoding="utf-8"))["tables"]


def reason_to_skip(contender: str) -> str | None:
    """Why a contender cannot take part."""
    if contender.endswith(OTHER_PYTHON):
        return f"skipped: {OTHER_PYTHON} is not another build of Python {sys.version_info[0]}.{sys.version_info[1]}"
    missing = (name for label, name in NEEDS.items() if contender.startswith(label) and not find_spec(name))
    return next((f"skipped: {name} is not installed" for name in missing), None)


@pytest.mark.parametrize("part", "123456")
def test_the_quick_form_measures_who_can_compete_and_names_who_cannot(part: str, tmp_path: Path) -> None:
    done, tables = benchmark(tmp_path, "--only", part)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tables
    assert "reached" not in done.stdout, "the quick form is too short for a judgement"
    for table in tables:
        assert table["title"] in done.stdout
        assert not table["goals"]
        assert table["rows"]
        for row in table["rows"]:
            assert f"| {row['contender']} |" in done.stdout
            reason = reason_to_skip(row["contender"])
            assert row.get("missing") == reason
            assert reason or 0 <= row["min"] <= row["median"] <= row["max"] or sys.platform != "linux"
            assert row.get("missing", "") in done.stdout


def test_the_template_is_judged_against_each_rival_in_the_study_and_every_goal_names_a_contender() -> None:
    *others, study = parts(100, 2500, OTHER_PYTHON, False)
    for part in (*others, study):
        assert any(table.goals for table in part.tables)
        for goal in (goal for table in part.tables for goal in table.goals):
            assert {goal.contender, goal.over} <= {*part.jobs, "the limit", None}
    rivals = {label for label in study.jobs if not label.startswith("template")}
    assert {goal.over for table in study.tables for goal in table.goals} == rivals


@pytest.mark.parametrize(
    ("done_instead", "why"),
    [
        ("return []", "failed: 221 of 321 calls were answered"),
        ("raise ValueError(patient_id)", "failed: the template ended with 1"),
    ],
)
def test_work_that_was_not_done_is_reported_and_fails_the_run(done_instead: str, why: str, tmp_path: Path) -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    assert text.count(SURVEYS) == 1
    copy = tmp_path / "copy.py"
    copy.write_text(text.replace(SURVEYS, done_instead), encoding="utf-8")
    done, tables = benchmark(tmp_path, "--only", "6", "--template", str(copy))
    assert done.returncode == 1
    rows = [row for table in tables for row in table["rows"] if row["contender"] == "template, 20 + 40 threads"]
    assert [row["missing"] for row in rows] == [why] * len(tables)
    assert f"| template, 20 + 40 threads | {why} |" in done.stdout


@pytest.mark.skipif(not find_spec("httpx2"), reason="httpx2 needs Python 3.11")
def test_the_rows_on_httpx2_measure_a_copy_that_has_moved_to_it(tmp_path: Path) -> None:
    copy = tmp_path / "copy.py"
    copy.write_text(TEMPLATE.read_text(encoding="utf-8") + "\nsys.exit(httpx.__name__)\n", encoding="utf-8")
    _, (table,) = benchmark(tmp_path, "--only", "2", "--template", str(copy))
    missing = {row["contender"]: row.get("missing") for row in table["rows"]}
    assert (missing["template"], missing["template on httpx2"]) == (f"failed: {httpx.__name__}", "failed: httpx2")


@pytest.mark.skipif(sys.platform == "win32", reason="the other build is a shell script")
def test_another_build_of_the_same_python_makes_the_calls_with_the_packages_of_this_one(tmp_path: Path) -> None:
    other = tmp_path / "python"
    tells_build = f'case "$1" in -c) exec {sys.executable} -c "$2" | sed "s/ (/ (other, /";; esac'
    other.write_text(f'#!/bin/sh\n{tells_build}\nexec {BASE_PYTHON} "$@"\n', encoding="utf-8")
    other.chmod(0o755)
    done, (table,) = benchmark(tmp_path, "--only", "2", "--other-python", str(other))
    (row,) = (row for row in table["rows"] if row["contender"] == f"template, on {other}")
    assert row["median"] > 0, done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals, sent by kill()")
def test_the_measurement_of_stopping_shows_seconds_exit_codes_and_complete_logs() -> None:
    command = [sys.executable, str(HERE / "stopping.py"), "--runs", "1", "--only", "a failure"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=WATCHDOG, check=False)
    assert done.returncode == 0, done.stderr
    place, cell = "closing after a failure, with an unfinished task", r"\d+\.\d s, 1, 1/1"
    assert re.search(rf"\| {place} \| {cell} \| {cell} \| {cell} \|\n", done.stdout)


@pytest.mark.parametrize(
    ("goal", "is_", "reached"),
    [
        (Goal("ours", 1.03, "the limit"), 1.02, True),
        (Goal("ours", 1.01, "the limit"), 1.02, False),
        (Goal("ours", 1, "theirs"), 0.5, True),
        (Goal("theirs", 1, "ours"), 2.0, False),
        (Goal("ours", 10), 5.1, True),
        (Goal("ours", 5), 5.1, False),
        (Goal("ours", 1, "skipped"), math.nan, None),
        (Goal("skipped", 1, "ours"), math.nan, None),
    ],
)
def test_a_goal_is_judged_by_the_median_of_the_ratios_within_each_round(
    goal: Goal, is_: float, reached: bool | None
) -> None:
    figures = {"the limit": [5.0, 5.0, 5.0], "ours": [5.1, 5.0, 9.0], "theirs": [10.2, 5.5, 18.0]}
    judgement = judged(goal, figures)
    assert judgement["is"] == pytest.approx(is_, nan_ok=True)
    assert judgement["reached"] is reached
