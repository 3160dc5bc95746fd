"""The recipe that resumes a run keeps what was fetched, whatever happens to a run."""

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
from helpers import TEMPLATE, Script, Start, answer, environment_for, finished_in, patients_of, study_of, wait_until
from readme_and_spec import RECIPES
from server import Simulator
from study import Study


class Recipe:
    """The recipe beside a template in which a patient that fails has failed at the first attempt."""

    def __init__(self, path: Path, platform: Simulator) -> None:
        self.path, self.platform = path, platform
        self.batch = path.with_name("batch")  # the folder of the tests, whatever the day

    @contextmanager
    def started(self, **variables: str) -> Iterator[subprocess.Popen[str]]:
        """A run that is killed in the end, if it still runs then."""
        command = [sys.executable, str(self.path), self.batch.name]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = environment_for(self.platform, **variables)
        with subprocess.Popen(command, cwd=self.path.parent, env=environment, encoding="utf-8", **streams) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *arguments: str, on: Simulator | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.path), *arguments]
        return finished_in(self.path.parent, command, environment_for(on or self.platform))

    def fetch(self) -> str:
        """What a run that fetches everybody who is missing prints."""
        done = self.run(self.batch.name)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def recipe(script: Script, platform: Simulator) -> Recipe:
    beside = script("pass", name=TEMPLATE.name, ERROR_MAX_RETRY=1)
    return Recipe(Path(shutil.copy(RECIPES / "resume.py", beside.parent)), platform)


def lines_of(batch: Path) -> list[dict[str, Any]]:
    """The lines of the file of patients, sorted by patient."""
    lines = (batch / "patients.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return sorted(map(json.loads, lines), key=lambda line: str(line["patientId"]))


def table_of(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.reader(lines, delimiter=";"))


def everything(study: Study) -> list[dict[str, Any]]:
    """What the file of patients should contain at the end."""
    ids = sorted(patients_of(study))
    return [{"patientId": each, "record": study.record(each), "surveys": study.surveys(each)} for each in ids]


def test_a_run_fetches_every_patient_into_a_private_folder_named_after_the_day(recipe: Recipe, study: Study) -> None:
    before = date.today()
    done = recipe.run()
    assert done.returncode == 0, done.stderr
    (folder,) = (each for each in recipe.path.parent.iterdir() if each.is_dir() and each.name[0] == "2")
    assert before <= date.fromisoformat(folder.name) <= before + timedelta(days=1)
    assert lines_of(folder) == everything(study)
    header, *rows = table_of(folder / "patients.csv")
    assert header == ["pseudonym", "status", "phone", "comment"]
    records = sorted((line["record"] for line in lines_of(folder)), key=lambda record: str(record["pseudonym"]))
    assert [row[:2] for row in rows] == [[record["pseudonym"], record["status"]] for record in records]
    assert table_of(folder / "failed.csv") == [["pseudonym", "reason"]]
    assert {file.name for file in folder.iterdir()} == {"patients.jsonl", "patients.csv", "failed.csv", "patients.lock"}
    if os.name != "nt":  # where the permissions of the folder decide
        assert not any(path.stat().st_mode & 0o077 for path in (folder, *folder.iterdir()))


def test_a_run_that_is_killed_three_times_ends_as_an_undisturbed_one(recipe: Recipe, study: Study) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    size = sum(len(json.dumps(line, ensure_ascii=False).encode()) + 1 for line in everything(study))
    file = recipe.batch / "patients.jsonl"
    recipe.platform.control(latency=0.02)
    for moment in sorted(random.Random(seed).sample(range(int(0.8 * size)), 3)):
        with recipe.started(EB_THREADS="2") as process:
            wait_until(lambda: (file.exists() and file.stat().st_size >= moment) or process.poll() is not None)  # noqa: B023
    recipe.platform.control(latency=0)
    recipe.fetch()
    assert lines_of(recipe.batch) == everything(study)
    interrupted = table_of(recipe.batch / "patients.csv")
    file.unlink()
    recipe.fetch()
    assert interrupted == table_of(recipe.batch / "patients.csv")


def test_a_last_half_line_is_dropped_and_its_patient_alone_is_fetched_again(recipe: Recipe, study: Study) -> None:
    recipe.fetch()
    file = recipe.batch / "patients.jsonl"
    file.write_bytes(file.read_bytes()[:-100])
    recipe.platform.control(reset_counts=True)
    assert "has 59 of 60 patients" in recipe.fetch()
    assert lines_of(recipe.batch) == everything(study)
    assert recipe.platform.seen()["requests"]["record_by_patient"] == 1


def test_a_run_in_another_folder_fetches_everybody_anew(recipe: Recipe) -> None:
    recipe.fetch()
    recipe.platform.control(reset_counts=True)
    assert recipe.run("another day").returncode == 0
    assert recipe.platform.seen()["requests"]["record_by_patient"] == 60


def test_patients_who_fail_are_told_with_the_reason_and_tried_again_by_the_next_run(
    recipe: Recipe, simulator: Start, study: Study
) -> None:
    failing = simulator("--failing", "3")
    ids = study_of(failing).some_patients(3)
    done = recipe.run(recipe.batch.name, on=failing)
    closing = f"resume: 3 of 60 patients left out (HTTP 500), see {Path('batch', 'failed.csv')};"
    assert (done.returncode, done.stderr.count(closing)) == (1, 1), done.stderr
    pseudonyms = sorted(record["pseudonym"] for each in ids if (record := study.record(each)))
    assert table_of(recipe.batch / "failed.csv") == [
        ["pseudonym", "reason"],
        *([each, "HTTP 500"] for each in pseudonyms),
    ]
    assert not any(each in done.stderr for each in ids)
    assert len(table_of(recipe.batch / "patients.csv")) == 1 + 60 - 3
    recipe.fetch()
    assert recipe.platform.seen()["requests"]["record_by_patient"] == 3
    assert lines_of(recipe.batch) == everything(study)
    assert table_of(recipe.batch / "failed.csv") == [["pseudonym", "reason"]]


def inclusions_of(*patients: str) -> dict[str, Any]:
    """The responses of a platform that has these patients, in each of its centres."""
    rows = [{"patientId": patient, "pseudonym": patient[:4]} for patient in patients]
    return {"search_inclusions": answer(200, json.dumps({"data": rows, "total": len(rows)}).encode())}


def test_a_patient_in_several_centres_is_fetched_once(recipe: Recipe, study: Study) -> None:
    recipe.platform.control(answer=inclusions_of(patients_of(study)[0]))
    recipe.fetch()
    assert recipe.platform.seen()["requests"]["record_by_patient"] == 1


def test_a_patient_who_has_left_is_told_and_taken_out(recipe: Recipe, study: Study) -> None:
    stays, leaves = patients_of(study)[:2]
    recipe.platform.control(answer=inclusions_of(stays, leaves))
    recipe.fetch()
    recipe.platform.control(answer=inclusions_of(stays))
    assert "no longer in any centre: 1 patients" in recipe.fetch()
    assert "no longer in any centre: 1 patients" in recipe.path.with_suffix(".log").read_text(encoding="utf-8")
    assert [line["patientId"] for line in lines_of(recipe.batch)] == [stays]
    assert len(table_of(recipe.batch / "patients.csv")) == 1 + 1


def test_a_mistake_in_the_script_ends_the_run_and_is_not_counted_as_a_failed_patient(recipe: Recipe) -> None:
    text = recipe.path.read_text(encoding="utf-8")
    wrong = text.replace("get_record_by_patient(patient)", 'get_record_by_patient(patient)["patientID"]')
    assert wrong != text
    recipe.path.write_text(wrong, encoding="utf-8")
    done = recipe.run(recipe.batch.name)
    assert done.returncode == 1
    assert "failed: KeyError (resume.py line" in done.stderr
    assert not (recipe.batch / "patients.csv").exists()


def test_a_second_run_at_the_same_time_is_refused_and_doubles_no_line(recipe: Recipe, study: Study) -> None:
    recipe.platform.control(hold=1)  # so that the first run takes a minute, if nobody kills it
    with recipe.started(EB_THREADS="1"):
        wait_until(lambda: recipe.platform.seen()["requests"]["organizations"])
        second = recipe.run(recipe.batch.name)
        assert (second.returncode, "another run is writing" in second.stderr) == (1, True), second.stderr
    recipe.platform.control(hold=0)
    recipe.fetch()
    assert lines_of(recipe.batch) == everything(study)


def record_with(study: Study, **changed: Any) -> dict[str, Any]:
    """The responses of a platform with one patient, whose record has these changes."""
    patient = patients_of(study)[0]
    record = {**(study.record(patient) or {}), **changed}
    return {**inclusions_of(patient), "record_by_patient": answer(200, json.dumps(record).encode())}


def test_half_an_emoji_in_a_record_does_not_end_a_run(recipe: Recipe, study: Study) -> None:
    recipe.platform.control(answer=record_with(study, comment="sad \ud83d face"))
    recipe.fetch()
    assert table_of(recipe.batch / "patients.csv")[1][3] == "sad ? face"


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
    phone: object, comment: str, cells: list[str], recipe: Recipe, study: Study
) -> None:
    recipe.platform.control(answer=record_with(study, comment=comment, patient={"phone": phone}))
    recipe.fetch()
    assert table_of(recipe.batch / "patients.csv")[1][2:] == cells
