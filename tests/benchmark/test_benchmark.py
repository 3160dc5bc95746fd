"""The benchmark works: it measures every part, says what it leaves out, and does not count work that was not done."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers import TEMPLATE, WATCHDOG
from parts import Goal
from report import judged

HERE = Path(__file__).resolve().parent
SURVEYS = 'return call_endpoint("RC", "POST", "surveys", list, json={"subject": identifier(patient_id)})'
NEEDS = {"requests": "requests", "aiohttp": "aiohttp", "pycurl": "pycurl", "dlt": "dlt", "singer-sdk": "singer_sdk"}


def benchmark(folder: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """Run the quick form with the packages that are here; the process, and the tables as data."""
    command = [sys.executable, str(HERE), "--quick", "--here", "--json", "figures.json", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=WATCHDOG, check=False)
    return done, json.loads((folder / "figures.json").read_text(encoding="utf-8"))["tables"]


def missing_package(contender: str) -> str | None:
    """What a contender needs and is not installed here."""
    return next((name for label, name in NEEDS.items() if contender.startswith(label) and not find_spec(name)), None)


@pytest.mark.parametrize("part", "123456")
def test_the_quick_form_measures_who_can_compete_and_names_who_cannot(part: str, tmp_path: Path) -> None:
    done, tables = benchmark(tmp_path, "--only", part)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tables
    assert "reached" not in done.stdout, "the quick form is too short for a judgement"
    for table in tables:
        assert table["title"] in done.stdout
        assert not table["goals"]
        for row in table["rows"]:
            assert f"| {row['contender']} |" in done.stdout
            package = missing_package(row["contender"])
            assert row.get("missing") == (f"skipped: {package} is not installed" if package else None)
            assert package or 0 <= row["min"] <= row["median"] <= row["max"] or sys.platform != "linux"
            assert row.get("missing", "") in done.stdout


@pytest.mark.parametrize(
    ("done_instead", "why"),
    [
        ("return []", "failed: 221 of 321 calls were answered"),
        ("raise ValueError(patient_id)", "failed: the template ended with 1"),
    ],
)
def test_work_that_was_not_done_is_told_and_fails_the_run(done_instead: str, why: str, tmp_path: Path) -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    assert text.count(SURVEYS) == 1
    copy = tmp_path / "copy.py"
    copy.write_text(text.replace(SURVEYS, done_instead), encoding="utf-8")
    done, (table,) = benchmark(tmp_path, "--only", "6", "--template", str(copy))
    assert done.returncode == 1
    assert [row["missing"] for row in table["rows"] if row["contender"].startswith("template")] == [why]
    assert why in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals, sent by kill()")
def test_the_measure_of_stopping_tells_seconds_exit_codes_and_complete_logs(ctrl_c_is_heard: None) -> None:
    command = [sys.executable, str(HERE / "stopping.py"), "--runs", "1", "--only", "a failure"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=WATCHDOG, check=False)
    assert done.returncode == 0, done.stderr
    cell = r"\d+\.\d s, 1, 1/1"
    assert re.search(rf"\| closing after a failure, a task held \| {cell} \| {cell} \| {cell} \|\n", done.stdout)


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
