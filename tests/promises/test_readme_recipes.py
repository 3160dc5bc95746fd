"""The README's recipe that goes on where a run stopped keeps what was fetched, whatever happens to a run."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import Start, answer, environment_for, log_of, patients_of, run_script, study_of, wait_until
from readme_and_spec import recipe
from server import Simulator
from study import Study

GO_ON = recipe("### Go on where a run stopped")
Script = Callable[..., Path]


@pytest.fixture
def patients(script: Script) -> Path:
    """A script with the recipe, in which a patient that fails has failed at the first attempt."""
    return script(GO_ON, name="patients.py", ERROR_MAX_RETRY=1)


@contextmanager
def started(script: Path, platform: Simulator, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run of a script that is killed in the end, if it still runs then."""
    environment, nothing = environment_for(platform, **variables), subprocess.DEVNULL
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, cwd=script.parent, env=environment, stdin=nothing, stderr=nothing) as process:
        try:
            yield process
        finally:
            process.kill()


def lines_of(script: Path) -> list[dict[str, Any]]:
    """What stands in the file of patients, in an order of its own."""
    lines = script.with_name("patients.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted(map(json.loads, lines), key=lambda line: str(line["patientId"]))


def table_of(script: Path) -> list[list[str]]:
    """The rows of the CSV."""
    with script.with_name("patients.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file, delimiter=";"))


def everything(study: Study) -> list[dict[str, Any]]:
    """What the file of patients is to hold in the end."""
    ids = sorted(patients_of(study))
    return [{"patientId": each, "record": study.record(each), "surveys": study.surveys(each)} for each in ids]


def test_an_undisturbed_run_fetches_every_patient(patients: Path, platform: Simulator, study: Study) -> None:
    done = run_script(patients, platform)
    assert done.returncode == 0, done.stderr
    assert lines_of(patients) == everything(study)
    header, *rows = table_of(patients)
    assert header == ["pseudonym", "status", "phone", "comment"]
    records = sorted((line["record"] for line in lines_of(patients)), key=lambda record: str(record["pseudonym"]))
    assert [row[:2] for row in rows] == [[record["pseudonym"], record["status"]] for record in records]


def test_a_run_that_is_killed_three_times_ends_as_an_undisturbed_one(
    patients: Path, script: Script, platform: Simulator, study: Study
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    size = sum(len(json.dumps(line, ensure_ascii=False).encode()) + 1 for line in everything(study))
    file = patients.with_name("patients.jsonl")
    platform.control(latency=0.02)
    for moment in sorted(random.Random(seed).sample(range(int(0.8 * size)), 3)):
        with started(patients, platform, EB_THREADS="2") as process:
            wait_until(lambda: (file.exists() and file.stat().st_size >= moment) or process.poll() is not None)  # noqa: B023
    platform.control(latency=0)
    done = run_script(patients, platform)
    assert done.returncode == 0, done.stderr
    assert lines_of(patients) == everything(study)
    interrupted = table_of(patients)
    file.unlink()
    assert run_script(patients, platform).returncode == 0
    assert interrupted == table_of(patients)


def test_a_last_half_line_is_dropped_and_its_patient_alone_is_fetched_again(
    patients: Path, platform: Simulator, study: Study
) -> None:
    run_script(patients, platform)
    file = patients.with_name("patients.jsonl")
    file.write_bytes(file.read_bytes()[:-100])
    platform.control(reset_counts=True)
    done = run_script(patients, platform)
    assert done.returncode == 0, done.stderr
    assert lines_of(patients) == everything(study)
    assert platform.seen()["requests"]["record_by_patient"] == 1


def test_patients_that_fail_are_named_and_tried_again_by_the_next_run(
    patients: Path, platform: Simulator, simulator: Start, study: Study
) -> None:
    failing = simulator("--failing", "3")
    ids = study_of(failing).some_patients(3)
    done = run_script(patients, failing)
    assert (done.returncode, done.stderr.count("patients: 3 failed;")) == (1, 1), done.stderr
    failed = patients.with_name("failed.csv")
    assert set(failed.read_text(encoding="utf-8").split()) == ids
    assert all(f"left out {each}: HTTP 500" in log_of(patients) for each in ids)
    assert not any(each in done.stderr for each in ids)
    assert len(table_of(patients)) == 1 + 60 - 3
    done = run_script(patients, platform)
    assert done.returncode == 0, done.stderr
    assert platform.seen()["requests"]["record_by_patient"] == 3
    assert lines_of(patients) == everything(study)
    assert failed.read_text(encoding="utf-8") == ""


def test_a_mistake_in_the_script_ends_the_run_and_is_not_counted_as_a_failed_patient(
    script: Script, platform: Simulator
) -> None:
    wrong = GO_ON.replace("get_record_by_patient(patient)", 'get_record_by_patient(patient)["patientID"]')
    assert wrong != GO_ON
    path = script(wrong)
    done = run_script(path, platform)
    assert done.returncode == 1
    assert "failed: KeyError (my_script.py line" in done.stderr
    assert not path.with_name("patients.csv").exists()


def test_a_second_run_at_the_same_time_is_refused_and_doubles_no_line(
    patients: Path, platform: Simulator, study: Study
) -> None:
    platform.control(hold=1)  # so that the first run takes a minute, if nobody kills it
    with started(patients, platform, EB_THREADS="1"):
        wait_until(patients.with_name("patients.jsonl").exists)
        second = run_script(patients, platform)
        assert (second.returncode, "another run is writing" in second.stderr) == (1, True), second.stderr
    platform.control(hold=0)
    assert run_script(patients, platform).returncode == 0
    assert lines_of(patients) == everything(study)


def test_half_an_emoji_in_a_record_does_not_end_a_run(patients: Path, platform: Simulator, study: Study) -> None:
    record = {**(study.record(patients_of(study)[0]) or {}), "comment": "sad \ud83d face"}
    platform.control(answer={"record_by_patient": answer(200, json.dumps(record).encode())})
    done = run_script(patients, platform)
    assert done.returncode == 0, done.stderr
    assert {row[3] for row in table_of(patients)[1:]} == {"sad ? face"}


def test_a_text_that_excel_would_run_gets_an_apostrophe(patients: Path, platform: Simulator, study: Study) -> None:
    record = {**(study.record(patients_of(study)[0]) or {}), "comment": "=1+1", "patient": {"phone": -3}}
    platform.control(answer={"record_by_patient": answer(200, json.dumps(record).encode())})
    assert run_script(patients, platform).returncode == 0
    assert table_of(patients)[1][2:] == ["-3", "'=1+1"]
