"""The README's recipes for data frames, Excel, Parquet, charts and notebooks, with the packages that they need."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import TEMPLATE, WATCHDOG, environment_for, patients_of, python
from readme_and_spec import recipe
from server import Simulator
from study import Study

HINT = "run it by python3 tests --recipes"
pd = pytest.importorskip("pandas", reason=HINT)
nbclient = pytest.importorskip("nbclient", reason=HINT)
nbformat = pytest.importorskip("nbformat", reason=HINT)

TO_TABLES = recipe("### To a data frame, Excel, Parquet, a chart")
NOTEBOOK = recipe("### In a notebook")
PNG = b"\x89PNG\r\n"


@pytest.fixture
def converted(tmp_path: Path, study: Study) -> Callable[..., Path]:
    """The folder in which the recipe has read all patients, with these fields of the first one's record changed."""

    def convert(**changed: Any) -> Path:
        records = [study.record(each) or {} for each in patients_of(study)]
        records[0].update(changed)
        lines = [json.dumps({"patientId": record["patientId"], "record": record}) for record in records]
        (tmp_path / "patients.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (tmp_path / "tables.py").write_text(TO_TABLES, encoding="utf-8")
        done = python(["-W", "error", "tables.py"], tmp_path)
        assert done.returncode == 0, done.stderr
        return tmp_path

    return convert


def samples_of(study: Study) -> list[tuple[str, str, str]]:
    """Patient, visit and tube of every sample, in their order."""
    return [
        (patient, visit["name"], sample["tubeId"])
        for patient in patients_of(study)
        for visit in (study.record(patient) or {})["visits"]
        for sample in visit.get("samples") or []
    ]


def test_each_patient_is_a_row_in_excel_under_the_names_of_the_record(converted: Any, study: Study) -> None:
    patients = pd.read_excel(converted() / "patients.xlsx", sheet_name="patients", dtype=str)
    assert list(patients["patientId"]) == patients_of(study)
    assert set(patients["organization.id"]) == {organization["id"] for organization in study.organizations}
    assert {"patient.address.city", "inclusionDate", "withdrawal.reason"} <= set(patients.columns)


def test_each_sample_is_a_row_keyed_by_its_patient_in_excel_and_parquet(converted: Any, study: Study) -> None:
    folder = converted()
    for table in (pd.read_excel(folder / "patients.xlsx", "samples"), pd.read_parquet(folder / "samples.parquet")):
        assert list(zip(table["patientId"], table["visit"], table["tubeId"], strict=True)) == samples_of(study)
        assert table["storage.box"].notna().any()


def test_the_chart_is_a_picture(converted: Any) -> None:
    assert (converted() / "inclusions.png").read_bytes().startswith(PNG)


def test_excel_gets_texts_as_texts(converted: Any) -> None:
    import openpyxl

    book = openpyxl.load_workbook(converted(comment="=1+1", pseudonym="http://a\x07") / "patients.xlsx")
    header, row = list(book["patients"].iter_rows(max_row=2))
    cells = dict(zip([cell.value for cell in header], row, strict=True))
    assert (cells["comment"].value, cells["comment"].data_type) == ("=1+1", "s")
    assert cells["pseudonym"].hyperlink is None


@pytest.fixture
def notebook(tmp_path: Path, platform: Simulator, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """Run cells beside a copy of the template; what the last of them prints, and what it shows besides."""
    (tmp_path / TEMPLATE.name).write_bytes(TEMPLATE.read_bytes())
    for name, value in environment_for(platform).items():
        monkeypatch.setenv(name, value)

    def show(*cells: str) -> tuple[str, str]:
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        resources = {"metadata": {"path": str(tmp_path)}}
        nbclient.NotebookClient(book, timeout=WATCHDOG, kernel_name="python3", resources=resources).execute()
        shown = dict.fromkeys(("stdout", "stderr"), "")
        for output in book.cells[-1].outputs:
            shown[output["name"]] += output["text"]
        return shown["stdout"], shown["stderr"]

    return show


def test_a_notebook_runs_the_recipe_with_a_bar_in_the_cell(notebook: Any, platform: Simulator) -> None:
    platform.control(faults={"503": 0.5})
    printed, shown = notebook("import eb_script_template as t\nt.WAIT_BEFORE_RETRY = 0.01", NOTEBOOK)
    assert printed == "60\n"
    assert re.search(r"100% \|█+\| 5/5 .* retries\]", shown)
    assert "HTTP 503" not in shown


def test_a_new_login_in_a_notebook_takes_a_new_number_of_threads(notebook: Any) -> None:
    again = "import os\nos.environ['EB_THREADS'] = '3'\neb.login()\nprint(eb.main_thread_pool.size)"
    assert notebook(NOTEBOOK, again) == ("3\n", "")
