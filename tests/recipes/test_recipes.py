"""The recipes for data frames, Excel, Parquet, charts and notebooks, with the packages that they need."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import TEMPLATE, WATCHDOG, environment_for, patients_of, python
from readme_and_spec import RECIPES
from server import Simulator
from study import Study

HINT = "run it with python3 tests --recipes"
pd = pytest.importorskip("pandas", reason=HINT)
nbclient = pytest.importorskip("nbclient", reason=HINT)
nbformat = pytest.importorskip("nbformat", reason=HINT)

PNG = b"\x89PNG\r\n"
LONG = 12345678901234567


@pytest.fixture
def converted(tmp_path: Path, study: Study) -> Callable[..., Path]:
    """The folder in which the recipe has read all patients; these fields of the first patient's record are changed."""

    def convert(**changed: Any) -> Path:
        records = [study.record(each) or {} for each in patients_of(study)]
        records[0].update(changed)
        batch = tmp_path / "batch"
        batch.mkdir()
        lines = [json.dumps({"patientId": record["patientId"], "record": record}) for record in records]
        (batch / "patients.jsonl").write_text("\n".join(lines) + '\n{"half', encoding="utf-8")
        done = python(["-W", "error", str(RECIPES / "tables.py"), "batch"], tmp_path)
        assert done.returncode == 0, done.stderr
        return batch

    return convert


def samples_of(study: Study) -> list[tuple[str, str, str]]:
    """Patient, visit and tube of every sample, in order."""
    return [
        (patient, visit["name"], sample["tubeId"])
        for patient in patients_of(study)
        for visit in (study.record(patient) or {})["visits"]
        for sample in visit.get("samples") or []
    ]


def sheets_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each sheet of the workbook; a row maps headers to cells."""
    import openpyxl

    book = openpyxl.load_workbook(folder / "patients.xlsx")
    rows = {sheet.title: list(sheet.iter_rows()) for sheet in book}
    return {
        title: [dict(zip([cell.value for cell in header], row, strict=True)) for row in others]
        for title, (header, *others) in rows.items()
    }


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


def test_a_visit_without_a_name_keeps_its_samples(converted: Any) -> None:
    folder = converted(visits=[{"samples": [{"tubeId": "T1"}, {"tubeId": "T2"}]}, {"name": "none"}])
    samples = pd.read_parquet(folder / "samples.parquet")
    assert list(samples["tubeId"][:2]) == ["T1", "T2"]
    assert samples["visit"][:2].isna().all()


@pytest.mark.parametrize("visits", [None, []])
def test_a_record_without_visits_is_a_patient_without_samples(visits: Any, converted: Any, study: Study) -> None:
    folder = converted(visits=visits)
    assert len(sheets_of(folder)["patients"]) == 60
    assert patients_of(study)[0] not in set(pd.read_parquet(folder / "samples.parquet")["patientId"])


def test_whole_numbers_stay_whole_beside_gaps_however_long_they_are(converted: Any) -> None:
    tubes = [{"tubeId": "T1", "code": LONG, "count": 3}, {"tubeId": "T2", "code": None, "count": None}]
    folder = converted(visits=[{"name": "V", "samples": tubes}], nationalId=LONG)
    assert sheets_of(folder)["patients"][0]["nationalId"].value == str(LONG)
    samples = pd.read_parquet(folder / "samples.parquet")
    assert (samples["code"][0], samples["count"][0]) == (str(LONG), 3)
    assert samples["code"][1:].isna().all()
    assert samples["count"].dtype == "Int64"


def test_a_field_that_mixes_text_and_numbers_becomes_text(converted: Any) -> None:
    tubes = [{"tubeId": "T1", "code": 7}, {"tubeId": "T2", "code": "7b"}, {"tubeId": "T3", "code": [7]}]
    samples = pd.read_parquet(converted(visits=[{"name": "V", "samples": tubes}]) / "samples.parquet")
    assert list(samples["code"][:3]) == ["7", "7b", "[7]"]


def test_the_chart_is_a_picture(converted: Any) -> None:
    assert (converted(inclusionDate=None) / "inclusions.png").read_bytes().startswith(PNG)


def test_text_stays_text_in_excel(converted: Any) -> None:
    folder = converted(comment="=1+1", pseudonym="http://a\x07", patient={"phone": "0612345678"})
    cells = sheets_of(folder)["patients"][0]
    assert (cells["comment"].value, cells["comment"].data_type) == ("=1+1", "s")
    assert (cells["patient.phone"].value, cells["patient.phone"].data_type) == ("0612345678", "s")
    assert cells["pseudonym"].hyperlink is None


@pytest.mark.skipif(os.name == "nt", reason="on Windows, the folder's permissions decide")
def test_only_their_owner_can_read_the_tables(converted: Any) -> None:
    made = [path for path in converted().iterdir() if path.name != "patients.jsonl"]
    assert len(made) == 3
    assert not any(path.stat().st_mode & 0o077 for path in made)


@pytest.fixture
def notebook(tmp_path: Path, platform: Simulator, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Run the notebook next to a copy of the template, with cells before and after its own; the output by kind."""
    for file in (TEMPLATE, RECIPES / "notebook.ipynb"):
        shutil.copy(file, tmp_path)
    for name, value in environment_for(platform).items():
        monkeypatch.setenv(name, value)

    def show(before: str = "", after: str = "") -> dict[str, str]:
        book = nbformat.read(tmp_path / "notebook.ipynb", as_version=4)
        cell = nbformat.v4.new_code_cell
        book.cells = [cell(before), *book.cells, cell(after)]
        resources = {"metadata": {"path": str(tmp_path)}}
        nbclient.NotebookClient(book, timeout=WATCHDOG, kernel_name="python3", resources=resources).execute()
        shown = {"stdout": "", "stderr": "", "result": ""}
        for output in (each for cell in book.cells for each in cell.get("outputs", [])):
            kind = output.get("name", "result")
            shown[kind] += output.get("text") or output["data"]["text/plain"]
        return shown

    return show


def test_the_notebook_shows_the_patients_of_each_centre_and_a_bar(notebook: Any, study: Study) -> None:
    shown = notebook()
    assert re.search(r"100% \|█+\| 5/5 ", shown["stderr"])
    assert all(organization["name"] in shown["result"] for organization in study.organizations)
    assert re.search(r"(?m)^Total .* 60 *$", shown["result"])


def test_a_retry_is_shown_in_the_log_of_the_notebook_and_not_in_its_cells(
    notebook: Any, platform: Simulator, tmp_path: Path
) -> None:
    platform.control(faults={"503": 0.5})
    shown = notebook("import eb_script_template as t\nt.WAIT_BEFORE_RETRY = 0.01")
    assert re.search(r"100% \|█+\| 5/5 .* retries\]", shown["stderr"])
    assert "HTTP 503" not in shown["stderr"]
    assert "HTTP 503" in (tmp_path / "notebook.log").read_text(encoding="utf-8")


def test_an_error_is_shown_in_the_cells(notebook: Any) -> None:
    shown = notebook(after="unused = eb.run_parallel(eb.get_statistics, ['any'])\ndel unused")
    assert "has done nothing" in shown["stderr"]


def test_a_new_login_in_a_notebook_takes_a_new_number_of_threads(notebook: Any) -> None:
    again = "os.environ['EB_THREADS'] = '3'\neb.login()\nprint(eb.main_thread_pool.size)"
    assert notebook(after=again)["stdout"] == "3\n"


def test_the_notebook_is_stored_without_output() -> None:
    cells = json.loads((RECIPES / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
