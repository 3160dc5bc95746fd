"""Create data frames, an Excel workbook, a Parquet file and a chart from the patients that resume.py fetched.

This needs neither the template nor the platform. The files go next to patients.jsonl, and only you can read them.

    cp tests/recipes/tables.py .
    .venv/bin/pip install pandas xlsxwriter pyarrow matplotlib
    .venv/bin/python tables.py 2026-11-30     the folder that resume.py created; in the sandbox, resume.sandbox/2026-...
"""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd


def main() -> None:
    folder = Path(*sys.argv[1:])
    if not (folder / "patients.jsonl").is_file():
        sys.exit(f"{folder} has no patients.jsonl: name the folder that resume.py created, as in tables.py 2026-11-30")
    os.umask(0o077)
    records = records_in(folder / "patients.jsonl")
    patients = frame_of(records).drop(columns=["consents", "visits"], errors="ignore")
    samples = frame_of(samples_of(records))
    write_excel(folder / "patients.xlsx", {"patients": patients, "samples": samples})
    samples.to_parquet(folder / "samples.parquet")
    draw_months(folder / "inclusions.png", patients["inclusionDate"])
    print(f"wrote patients.xlsx, samples.parquet and inclusions.png to {folder}")


def records_in(file: Path) -> list[dict[str, Any]]:
    """Read all records; a run that was killed may have left a partial line at the end."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        return [json.loads(line, parse_int=whole_number)["record"] for line in lines if line.endswith("\n")]


def whole_number(digits: str) -> int | str:
    """Keep a number of more than 15 digits as text: neither Excel nor a column with gaps can hold more digits."""
    return int(digits) if len(digits) <= 15 else digits


def samples_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each sample, with its patient and the name of its visit."""
    return [
        {"patientId": record["patientId"], "visit": visit.get("name"), **sample}
        for record in records
        for visit in record.get("visits") or []
        for sample in visit.get("samples") or []
    ]


def frame_of(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Create a data frame. A nested field gets its own column, such as "patient.phone"; whole numbers stay whole."""
    frame = pd.json_normalize(list(rows)).convert_dtypes()
    for column in frame.columns[frame.dtypes == "object"]:  # lists, and fields that mix text and numbers
        frame[column] = frame[column].map(as_text, na_action="ignore").astype("string")
    return frame


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def write_excel(path: Path, sheets: dict[str, pd.DataFrame]) -> None:
    """Write a workbook with a sheet per frame. Text stays text: no formulas, no links, and 06... keeps its zero."""
    options = {"options": {"strings_to_formulas": False, "strings_to_urls": False}}
    with pd.ExcelWriter(path, engine="xlsxwriter", engine_kwargs=options) as book:
        for name, frame in sheets.items():
            frame.to_excel(book, sheet_name=name, index=False)


def draw_months(path: Path, dates: "pd.Series[Any]") -> None:
    """Draw how many patients were included in each month."""
    months = pd.Series(1, index=pd.to_datetime(dates)).resample("MS").sum().to_period("M")
    axes = months.plot.bar(title="Inclusions per month", figsize=(12, 4))
    axes.figure.savefig(path, bbox_inches="tight")


if __name__ == "__main__":
    main()
