"""What `python3 tests` does with its arguments."""

import subprocess
from pathlib import Path

import pytest
from helpers import python
from readme_and_spec import TOP

COLLECT = ("--collect-only", "--quiet", "-n0")


def collected(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Let the runner find tests, without running them."""
    return python([str(TOP / "tests"), *arguments, *COLLECT], folder)


def test_a_very_long_choice_of_tests_is_a_choice_as_any_other() -> None:
    done = collected(TOP, "-k", "x" * 5000, "tests/engine/test_json.py")
    assert "deselected" in done.stdout, done.stderr
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_choice_of_tests_that_is_also_the_name_of_a_file_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "jsonpath").touch()
    assert "test_json.py::" in collected(tmp_path, "-k", "jsonpath").stdout
