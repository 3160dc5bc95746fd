"""Every call gets its own response: a record says whose it is, and a connection may deliver another call's response."""

import json
from contextlib import suppress
from typing import Any

import pytest
from helpers import Load, a_tube, all_inclusions, answer, patients_of
from server import Simulator
from study import Study

OWN, OTHER = "9b1e-own", "4c2d-other"


def body(value: object) -> bytes:
    return json.dumps(value).encode()


# ---------------------------------------------------------------------------------------------- What an answer must say


ANSWERS = {
    "another's record": ("record_by_patient", {"patientId": OTHER}),
    "nobody's record": ("record_by_patient", {"patientId": None}),
    "an error for a record": ("record_by_patient", {"error": "overloaded"}),
    "an empty record": ("record_by_patient", {}),
    "another's request": ("request_by_tube", {"tubeId": OTHER}),
    "an error for a request": ("request_by_tube", {"error": "overloaded"}),
}


@pytest.mark.parametrize(("endpoint", "wrong"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_does_not_name_what_was_asked_for_is_refused_and_not_shown(
    template: Any, platform: Simulator, endpoint: str, wrong: dict[str, Any]
) -> None:
    platform.control(answer={endpoint: answer(200, body({**wrong, "name": "Zoé Nemo"}))})
    with pytest.raises(template.WrongValue, match=r"patientId|tubeId|is an error") as refused:
        getattr(template, f"get_{endpoint}")(OWN)
    assert_shows_nothing(template.describe(refused.value))


def assert_shows_nothing(text: str) -> None:
    assert [value for value in (OWN, OTHER, "Nemo") if value in text] == []


@pytest.mark.parametrize(("named", "asked"), [(OWN, OWN), (4711, "4711"), ("4711", 4711)])
def test_an_author_s_function_gets_an_answer_that_names_what_it_asked_for(load: Load, named: Any, asked: Any) -> None:
    whole = {"subject": named, "answers": [1, 2]}
    assert load().require_id(whole, "subject", asked) is whole


@pytest.mark.parametrize("named", [OTHER, None, "", 0, [OWN], {OWN: OWN}])
def test_an_author_s_function_gets_no_answer_that_names_something_else(load: Load, named: Any) -> None:
    template = load()
    with pytest.raises(template.WrongValue, match="subject") as refused:
        template.require_id({"subject": named, "name": "Zoé Nemo"}, "subject", OWN)
    assert_shows_nothing(str(refused.value))


def test_an_answer_that_names_nothing_is_nobody_s_even_if_none_was_asked_for(load: Load) -> None:
    template = load()
    with pytest.raises(template.WrongValue):
        template.require_id({}, "subject", "None")


# ------------------------------------------------------------------------------------------ Answers that are sent twice


@pytest.mark.parametrize("later", [0, 0.005], ids=["in one packet", "5 ms later"])
def test_where_each_answer_is_sent_twice_no_patient_gets_the_record_of_another(
    template: Any, platform: Simulator, study: Study, later: float
) -> None:
    platform.control(send_twice={"record_by_patient": later})
    patients = patients_of(study)
    results = dict(template.run_parallel(template.get_record_by_patient, patients, return_exceptions=True))
    records = {patient: result for patient, result in results.items() if not isinstance(result, Exception)}
    assert records == {patient: study.record(patient) for patient in records}
    assert len(results) == len(patients)
    assert records, "the first call of each connection has its own answer"


def test_after_an_answer_sent_twice_later_calls_get_their_own(template: Any, platform: Simulator, study: Study) -> None:
    patient, other = patients_of(study)[:2]
    platform.control(send_twice={"record_by_patient": 0})
    assert template.get_record_by_patient(patient) == study.record(patient)
    platform.control(send_twice={})
    with suppress(template.WrongValue):  # it is rejected, and the connection is not used again
        assert template.get_record_by_patient(other) == study.record(other)
    assert template.get_surveys(other) == study.surveys(other)
    assert template.get_request_by_tube(a_tube(study)) == study.request(a_tube(study))


@pytest.mark.parametrize("endpoint", ["statistics", "surveys", "search_inclusions"])
def test_an_answer_that_was_there_before_its_call_is_nobody_s_even_if_it_names_nobody(
    template: Any, platform: Simulator, study: Study, endpoint: str
) -> None:
    platform.control(send_twice={endpoint: 0})
    template.WAIT_BEFORE_RETRY = 0.01
    for organization in study.organizations:
        centre = organization["id"]
        inclusions = all_inclusions(study, centre)
        assert template.get_statistics(centre) == study.statistics(centre)
        assert template.search_inclusions(centre, 1000, 1) == inclusions
        for patient in [each["patientId"] for each in inclusions[:5]]:
            assert template.get_surveys(patient) == study.surveys(patient)


def test_after_an_early_answer_a_later_copy_is_nobody_s(template: Any, platform: Simulator, study: Study) -> None:
    template.WAIT_BEFORE_RETRY = 0.01
    platform.control(send_twice={"surveys": 0})
    patients = patients_of(study)[:40]
    for patient in patients[:2]:
        assert template.get_surveys(patient) == study.surveys(patient)
    platform.control(send_twice={"surveys": 0.005}, latency=0.02)  # the copy comes after the next call was sent
    for patient in patients[2:]:
        assert template.get_surveys(patient) == study.surveys(patient)
