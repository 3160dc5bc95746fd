"""The API functions: each returns what the platform holds, and get_all_inclusions all of its pages."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import Load, Start, a_tube, all_inclusions, patients_of, study_of
from server import Simulator
from study import Study


@pytest.fixture
def platform(simulator: Start) -> Simulator:
    """A platform of each test's own: one of them caps its pages."""
    return simulator()


@pytest.fixture
def template(platform: Simulator, load: Load) -> Any:
    """The template, logged in."""
    module = load(platform)
    module.login()
    return module


def test_every_function_of_the_table_returns_what_the_platform_holds(template: Any, study: Study) -> None:
    assert template.get_all_organizations() == study.organizations
    for organization in study.organizations:
        centre = organization["id"]
        assert template.get_statistics(centre) == study.statistics(centre)
        for page in (1, 2):
            whole = study.inclusions(centre, 3, page)
            assert whole is not None
            assert template.search_inclusions(centre, 3, page) == whole["data"]
        assert template.get_all_inclusions(centre) == all_inclusions(study, centre)
    patient, tube = patients_of(study)[0], a_tube(study)
    assert template.get_record_by_patient(patient) == study.record(patient)
    assert template.get_surveys(patient) == study.surveys(patient)
    assert template.get_request_by_tube(tube) == study.request(tube)


def test_an_empty_centre_has_no_inclusions(simulator: Start, load: Load) -> None:
    template = load(simulator("--patients", "0"))
    template.login()
    for organization in template.get_all_organizations():
        assert template.get_all_inclusions(organization["id"]) == []
        assert template.search_inclusions(organization["id"], 1000, 1) == []


def test_all_inclusions_come_from_as_many_pages_as_it_takes(simulator: Start, load: Load) -> None:
    platform = simulator("--centres", "1", "--patients", "2001")
    template, study = load(platform), study_of(platform)
    template.login()
    centre = study.organizations[0]["id"]
    assert template.get_all_inclusions(centre) == all_inclusions(study, centre)
    assert 2 <= platform.seen()["requests"]["search_inclusions"] <= 4


def test_a_platform_that_caps_the_page_size_loses_no_inclusion(
    template: Any, study: Study, platform: Simulator
) -> None:
    platform.control(page_cap=4)
    for organization in study.organizations:
        assert template.get_all_inclusions(organization["id"]) == all_inclusions(study, organization["id"])


def test_an_id_with_reserved_characters_reaches_the_platform_as_it_is(template: Any, platform: Simulator) -> None:
    for call in (template.get_request_by_tube, template.get_statistics, template.get_record_by_patient):
        with pytest.raises(template.httpx.HTTPStatusError, match="404") as refused:
            call("a b&c=d/é?#%2F")
        assert str(refused.value.request.url).endswith(
            ("a%20b%26c%3Dd%2F%C3%A9%3F%23%252F", "a+b%26c%3Dd%2F%C3%A9%3F%23%252F")
        )
