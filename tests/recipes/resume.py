"""Fetch the record and the questionnaires of every patient, and resume a run that stopped.

Each patient is written to patients.jsonl as soon as her data has arrived. At the end, patients.csv has a row for every
patient, and failed.csv says who is missing and why. The files go to a folder named after the day; only you can read it.

    cp tests/recipes/resume.py .              next to the template; to use your own copy, change the import below
    python3 tests/sandbox.py resume.py        tries it; press Enter when it asks for threads
    .venv/bin/python resume.py                fetches all patients; run it again on the same day for those missing
    .venv/bin/python resume.py 2026-11-30     resumes the run of another day
"""

import csv
import json
import logging
import os
import re
import sys
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import IO, Any

from eb_script_template import (
    WrongValue,
    describe,
    get_all_inclusions,
    get_all_organizations,
    get_nested_value,
    get_record_by_patient,
    get_surveys,
    httpx,
    run,
    run_parallel,
    subtasks_thread_pool,
)

# The columns of patients.csv, each with its path in a record. Edit these, and `fetch`.
COLUMNS = {"pseudonym": ["pseudonym"], "status": ["status"], "phone": ["patient", "phone"], "comment": ["comment"]}

# A patient is left out after these: no response, an error status, or a response that is broken or about someone else.
EXPECTED = (httpx.HTTPError, json.JSONDecodeError, UnicodeDecodeError, WrongValue)


def fetch(inclusion: dict[str, Any]) -> dict[str, Any]:
    """Return all data about one patient. The questionnaires are fetched at the same time, on the subtasks pool."""
    patient = inclusion["patientId"]
    surveys = subtasks_thread_pool.submit(get_surveys, patient)
    return {"patientId": patient, "record": get_record_by_patient(patient), "surveys": surveys.result()}


def main() -> None:
    os.umask(0o077)  # only you can read files written from here on (on Windows, anyone who can read the folder)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else str(date.today()))
    folder.mkdir(exist_ok=True)
    with (folder / "patients.lock").open("w") as file:
        refuse_second_run(file)
        inclusions = all_inclusions()
        failed = fetch_missing(folder / "patients.jsonl", inclusions)
        write_tables(folder, failed)
    if failed:
        reasons = ", ".join(sorted({reason for _, reason in failed}))
        sys.exit(f"{len(failed)} of {len(inclusions)} patients left out ({reasons}), see {folder / 'failed.csv'}")


def refuse_second_run(file: IO[str]) -> None:
    """End this run if another one has locked the file. The system removes the lock, however that run ends."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit("another run is writing")


def all_inclusions() -> dict[str, dict[str, Any]]:
    """Return the inclusion of each patient by her id. A patient in two centres appears once."""
    centres = run_parallel(lambda centre: get_all_inclusions(centre["id"]), get_all_organizations(), desc="Centres")
    return {inclusion["patientId"]: inclusion for _, inclusions in centres for inclusion in inclusions}


def fetch_missing(file: Path, inclusions: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Fetch the patients who are not in the file yet; return pseudonym and reason for each one that failed."""
    done = keep_present(file, inclusions)
    missing = [inclusion for patient, inclusion in inclusions.items() if patient not in done]
    tell(f"{file} has {len(done)} of {len(inclusions)} patients")
    failed = []
    with file.open("a", encoding="utf-8", errors="replace", buffering=1) as lines:  # each line is written at once
        for inclusion, data in run_parallel(fetch, missing, desc="Patients", return_exceptions=True):
            if isinstance(data, EXPECTED):
                failed.append((inclusion.get("pseudonym", inclusion["patientId"]), describe(data)))
            elif isinstance(data, Exception):
                raise data
            else:
                lines.write(json.dumps(data, ensure_ascii=False) + "\n")
    return failed


def keep_present(file: Path, inclusions: dict[str, dict[str, Any]]) -> set[str]:
    """Remove patients who have left the study, and the partial line of a killed run; return those who remain."""
    file.touch()
    lines = {json.loads(line)["patientId"]: line for line in whole_lines(file)}
    present = {patient: line for patient, line in lines.items() if patient in inclusions}
    if len(present) < len(lines):
        tell(f"Removed from {file}, because they are no longer in any centre: {len(lines) - len(present)} patients")
    part = file.with_suffix(".part")
    part.write_text("".join(present.values()), encoding="utf-8")
    os.replace(part, file)
    return set(present)


def whole_lines(file: Path) -> Iterable[str]:
    """Yield the lines of a file, except a last one without a line end."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        yield from (line for line in lines if line.endswith("\n"))


def tell(text: str) -> None:
    """Write a text to the terminal and to the log."""
    print(text)
    logging.info("%s", text)


def write_tables(folder: Path, failed: list[tuple[str, str]]) -> None:
    """Write patients.csv and failed.csv, both sorted by pseudonym."""
    records = [json.loads(line)["record"] for line in whole_lines(folder / "patients.jsonl")]
    rows = [[get_nested_value(record, path) for path in COLUMNS.values()] for record in records]
    write_table(folder / "patients.csv", list(COLUMNS), rows)
    write_table(folder / "failed.csv", ["pseudonym", "reason"], failed)


def write_table(path: Path, header: list[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file that Excel opens with correct accents; `;` suits an Excel that uses a decimal comma.

    Either the whole file is written, or the previous one stays. Close it in Excel before you run the script again.
    """
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8-sig", errors="replace", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(header)
        writer.writerows(sorted(([cell(value) for value in row] for row in rows), key=lambda row: str(row[0])))
    os.replace(part, path)


def cell(value: object) -> object:
    """Put an apostrophe before text that Excel would run as a formula, or whose digits it would change (06...)."""
    changed = isinstance(value, str) and re.match(r"[=+\-@\t\r\n]|0\d+$|\d{16,}$", value)
    return f"'{value}" if changed else value


if __name__ == "__main__":
    sys.exit(run(main))
