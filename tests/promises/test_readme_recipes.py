"""The recipe that goes on where a run stopped keeps what was fetched, whatever happens to a run."""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    TEMPLATE,
    Script,
    Start,
    answer,
    environment_for,
    finished_in,
    log_of,
    patients_of,
    study_of,
    wait_until,
)
from readme_and_spec import RECIPES
from server import Simulator
from study import Study

BATCH = "batch"  # the folder of the tests, whatever the day


@pytest.fixture
def resume(script: Script) -> Path:
    """The recipe beside a template in which a patient that fails has failed at the first attempt."""
    beside = script("pass", name=TEMPLATE.name, ERROR_MAX_RETRY=1)
    return Path(shutil.copy(RECIPES / "resume.py", beside.parent))


@pytest.fixture
def batch(resume: Path) -> Path:
    """The folder in which the recipe works."""
    return resume.with_name(BATCH)


@contextmanager
def started(recipe: Path, platform: Simulator, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A run of the recipe that is killed in the end, if it still runs then."""
    command = [sys.executable, str(recipe), *arguments]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = environment_for(platform, **variables)
    with subprocess.Popen(command, cwd=recipe.parent, env=environment, encoding="utf-8", **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def finished(recipe: Path, platform: Simulator, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A whole run of the recipe."""
    return finished_in(recipe.parent, [sys.executable, str(recipe), *arguments], environment_for(platform))


def whole(recipe: Path, platform: Simulator) -> str:
    """What a run that fetches everybody who is missing prints."""
    done = finished(recipe, platform, BATCH)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines_of(batch: Path) -> list[dict[str, Any]]:
    """What stands in the file of patients, by patient."""
    lines = (batch / "patients.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return sorted(map(json.loads, lines), key=lambda line: str(line["patientId"]))


def table_of(file: Path) -> list[list[str]]:
    """The rows of a CSV."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.reader(lines, delimiter=";"))


def everything(study: Study) -> list[dict[str, Any]]:
    """What the file of patients is to hold in the end."""
    ids = sorted(patients_of(study))
    return [{"patientId": each, "record": study.record(each), "surveys": study.surveys(each)} for each in ids]


def test_a_run_fetches_every_patient_into_a_folder_named_after_the_day_that_its_owner_alone_can_read(
    resume: Path, platform: Simulator, study: Study
) -> None:
    before = date.today()
    done = finished(resume, platform)
    assert done.returncode == 0, done.stderr
    (folder,) = (each for each in resume.parent.iterdir() if each.is_dir() and each.name[0] == "2")
    assert before <= date.fromisoformat(folder.name) <= before + timedelta(days=1)
    assert lines_of(folder) == everything(study)
    header, *rows = table_of(folder / "patients.csv")
    assert header == ["pseudonym", "status", "phone", "comment"]
    records = sorted((line["record"] for line in lines_of(folder)), key=lambda record: str(record["pseudonym"]))
    assert [row[:2] for row in rows] == [[record["pseudonym"], record["status"]] for record in records]
    assert table_of(folder / "failed.csv") == [["pseudonym", "reason"]]
    assert {file.name for file in folder.iterdir()} == {"patients.jsonl", "patients.csv", "failed.csv", "patients.lock"}
    if os.name != "nt":  # where the rights of the folder decide
        assert not any(path.stat().st_mode & 0o077 for path in (folder, *folder.iterdir()))


def test_a_run_that_is_killed_three_times_ends_as_an_undisturbed_one(
    resume: Path, platform: Simulator, study: Study, batch: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    size = sum(len(json.dumps(line, ensure_ascii=False).encode()) + 1 for line in everything(study))
    file = batch / "patients.jsonl"
    platform.control(latency=0.02)
    for moment in sorted(random.Random(seed).sample(range(int(0.8 * size)), 3)):
        with started(resume, platform, BATCH, EB_THREADS="2") as process:
            wait_until(lambda: (file.exists() and file.stat().st_size >= moment) or process.poll() is not None)  # noqa: B023
    platform.control(latency=0)
    whole(resume, platform)
    assert lines_of(batch) == everything(study)
    interrupted = table_of(batch / "patients.csv")
    file.unlink()
    whole(resume, platform)
    assert interrupted == table_of(batch / "patients.csv")


def test_a_last_half_line_is_dropped_and_its_patient_alone_is_fetched_again(
    resume: Path, platform: Simulator, study: Study, batch: Path
) -> None:
    whole(resume, platform)
    file = batch / "patients.jsonl"
    file.write_bytes(file.read_bytes()[:-100])
    platform.control(reset_counts=True)
    assert "has 59 of 60 patients" in whole(resume, platform)
    assert lines_of(batch) == everything(study)
    assert platform.seen()["requests"]["record_by_patient"] == 1


def test_a_run_in_another_folder_fetches_everybody_anew(resume: Path, platform: Simulator) -> None:
    whole(resume, platform)
    platform.control(reset_counts=True)
    assert finished(resume, platform, "another day").returncode == 0
    assert platform.seen()["requests"]["record_by_patient"] == 60


def test_patients_who_fail_are_told_with_the_reason_and_tried_again_by_the_next_run(
    resume: Path, platform: Simulator, simulator: Start, study: Study, batch: Path
) -> None:
    failing = simulator("--failing", "3")
    ids = study_of(failing).some_patients(3)
    done = finished(resume, failing, BATCH)
    closing = f"resume: 3 of 60 patients left out (HTTP 500), see {Path(BATCH, 'failed.csv')};"
    assert (done.returncode, done.stderr.count(closing)) == (1, 1), done.stderr
    pseudonyms = sorted(record["pseudonym"] for each in ids if (record := study.record(each)))
    assert table_of(batch / "failed.csv") == [["pseudonym", "reason"], *([each, "HTTP 500"] for each in pseudonyms)]
    assert not any(each in done.stderr for each in ids)
    assert len(table_of(batch / "patients.csv")) == 1 + 60 - 3
    whole(resume, platform)
    assert platform.seen()["requests"]["record_by_patient"] == 3
    assert lines_of(batch) == everything(study)
    assert table_of(batch / "failed.csv") == [["pseudonym", "reason"]]


def inclusions_of(*patients: str) -> dict[str, Any]:
    """What the platform answers when it has these patients, in each of its centres."""
    rows = [{"patientId": patient, "pseudonym": patient[:4]} for patient in patients]
    return {"search_inclusions": answer(200, json.dumps({"data": rows, "total": len(rows)}).encode())}


def test_a_patient_in_several_centres_is_fetched_once(resume: Path, platform: Simulator, study: Study) -> None:
    platform.control(answer=inclusions_of(patients_of(study)[0]))
    whole(resume, platform)
    assert platform.seen()["requests"]["record_by_patient"] == 1


def test_a_patient_who_has_left_is_told_and_taken_out(
    resume: Path, platform: Simulator, study: Study, batch: Path
) -> None:
    stays, leaves = patients_of(study)[:2]
    platform.control(answer=inclusions_of(stays, leaves))
    whole(resume, platform)
    platform.control(answer=inclusions_of(stays))
    assert "no longer in any centre: 1 patients" in whole(resume, platform)
    assert "no longer in any centre: 1 patients" in log_of(resume)
    assert [line["patientId"] for line in lines_of(batch)] == [stays]
    assert len(table_of(batch / "patients.csv")) == 1 + 1


def test_a_mistake_in_the_script_ends_the_run_and_is_not_counted_as_a_failed_patient(
    resume: Path, platform: Simulator, batch: Path
) -> None:
    text = resume.read_text(encoding="utf-8")
    wrong = text.replace("get_record_by_patient(patient)", 'get_record_by_patient(patient)["patientID"]')
    assert wrong != text
    resume.write_text(wrong, encoding="utf-8")
    done = finished(resume, platform, BATCH)
    assert done.returncode == 1
    assert "failed: KeyError (resume.py line" in done.stderr
    assert not (batch / "patients.csv").exists()


def test_a_second_run_at_the_same_time_is_refused_and_doubles_no_line(
    resume: Path, platform: Simulator, study: Study, batch: Path
) -> None:
    platform.control(hold=1)  # so that the first run takes a minute, if nobody kills it
    with started(resume, platform, BATCH, EB_THREADS="1"):
        wait_until(lambda: platform.seen()["requests"]["organizations"])
        second = finished(resume, platform, BATCH)
        assert (second.returncode, "another run is writing" in second.stderr) == (1, True), second.stderr
    platform.control(hold=0)
    whole(resume, platform)
    assert lines_of(batch) == everything(study)


def record_with(study: Study, **changed: Any) -> dict[str, Any]:
    """What the platform answers when it has one patient, whose record is changed so."""
    patient = patients_of(study)[0]
    record = {**(study.record(patient) or {}), **changed}
    return {**inclusions_of(patient), "record_by_patient": answer(200, json.dumps(record).encode())}


def test_half_an_emoji_in_a_record_does_not_end_a_run(
    resume: Path, platform: Simulator, study: Study, batch: Path
) -> None:
    platform.control(answer=record_with(study, comment="sad \ud83d face"))
    whole(resume, platform)
    assert table_of(batch / "patients.csv")[1][3] == "sad ? face"


@pytest.mark.parametrize(
    ("phone", "comment", "cells"),
    [
        (-3, "=1+1", ["-3", "'=1+1"]),
        ("0612345678", "06 at night", ["'0612345678", "06 at night"]),
        ("+33612345678", "1234567890123456", ["'+33612345678", "'1234567890123456"]),
        (None, "0.5", ["", "0.5"]),
    ],
)
def test_a_text_that_excel_would_run_or_change_gets_an_apostrophe(
    phone: object, comment: str, cells: list[str], resume: Path, platform: Simulator, study: Study, batch: Path
) -> None:
    platform.control(answer=record_with(study, comment=comment, patient={"phone": phone}))
    whole(resume, platform)
    assert table_of(batch / "patients.csv")[1][2:] == cells
