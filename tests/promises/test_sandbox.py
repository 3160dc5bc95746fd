"""What the sandbox promises: a folder of its own, a platform that fits the script, and nothing that leaves it."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

import pytest
from helpers import Start, git, patients_of, study_of
from readme_and_spec import TOP, blocks
from server import Simulator

# Patients for whom a call fails for good


def test_the_failing_patients_are_patients_of_the_study(simulator: Start) -> None:
    platform = simulator("--failing", "6")
    study = study_of(platform)
    assert len(study.some_patients(6)) == 6
    assert study.some_patients(6) <= set(patients_of(study))


# Killed


def test_a_caller_that_is_gone_before_its_answer_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    request = b"POST /rc/api/auth/refreshToken HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    with Simulator(sys.executable, "--latency", "0.2") as platform:
        address = ("127.0.0.1", int(platform.url.rsplit(":", 1)[1]))
        with socket.create_connection(address) as gone:
            gone.sendall(request)
        with socket.create_connection(address) as later:  # its delay began later, so it ends later
            later.sendall(request)
            assert later.recv(1000).startswith(b"HTTP/1.1 401 ")
        assert platform.seen()["requests"]["refresh_token"] == 2
    assert capfd.readouterr().err == ""


# What must not be committed

NEVER_COMMITTED = [
    *("patients.jsonl", "statistics.json", "endobest.env", "patients.xlsx", "patients.parquet", "inclusions.png"),
    *("my_script.log", "my_script.log.1", "centres.csv", "my_script.sandbox/made.txt", "my_script.platform.txt"),
]


def test_git_leaves_out_what_scripts_and_recipes_write(tmp_path: Path) -> None:
    recipes = re.findall(r"""open\(\s*"([^"]+)", "[wax]""", "".join(blocks("python")))
    assert "patients.jsonl" in recipes
    (tmp_path / ".gitignore").write_bytes((TOP / ".gitignore").read_bytes())
    (tmp_path / "my_script.sandbox").mkdir()
    for name in {*NEVER_COMMITTED, *recipes, "my_script.py", "requirements.txt"}:
        (tmp_path / name).touch()
    git(tmp_path, "init", "--quiet")
    seen = git(tmp_path, "ls-files", "--others", "--exclude-standard").split()
    assert seen == [".gitignore", "my_script.py", "requirements.txt"]
