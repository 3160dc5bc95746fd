"""The API functions: each returns what the platform has, and get_all_inclusions returns all pages of it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from helpers import TEMPLATE, Load, Start, a_tube, all_inclusions, answer, patients_of, study_of
from hypothesis import HealthCheck, event, given, settings, strategies as st
from script_file import imported
from server import Simulator
from study import Study

imported_template = imported(TEMPLATE)  # for every_page, which needs no platform


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


def test_all_inclusions_come_from_as_many_pages_as_it_takes(simulator: Start, load: Load) -> None:
    platform = simulator("--centres", "1", "--patients", "2001")
    template, study = load(platform), study_of(platform)
    template.login()
    centre = study.organizations[0]["id"]
    assert template.get_all_inclusions(centre) == all_inclusions(study, centre)
    assert 2 <= platform.seen()["requests"]["search_inclusions"] <= 4


def test_an_id_with_reserved_characters_reaches_the_platform_as_it_is(template: Any, platform: Simulator) -> None:
    for call in (template.get_request_by_tube, template.get_statistics, template.get_record_by_patient):
        with pytest.raises(template.httpx.HTTPStatusError, match="404") as refused:
            call("a b&c=d/é?#%2F")
        assert str(refused.value.request.url).endswith(
            ("a%20b%26c%3Dd%2F%C3%A9%3F%23%252F", "a+b%26c%3Dd%2F%C3%A9%3F%23%252F")
        )


@pytest.mark.parametrize("value", ["", " ", "..", ".", None, True, {"patientId": "P-4711"}, ["P-4711"]])
def test_what_is_no_id_is_neither_shown_nor_sent(template: Any, platform: Simulator, value: Any) -> None:
    before = platform.seen()["requests"]
    calls = {template.get_statistics, template.get_record_by_patient, template.get_surveys}
    for call in calls | {template.get_request_by_tube, template.get_all_inclusions}:
        with pytest.raises(ValueError, match="is not an id") as refused:
            call(value)
        assert "P-4711" not in template.describe(refused.value)
    assert platform.seen()["requests"] == before


# --------------------------------------------------------------------------------------------------------------- Pages


def rows_of(numbers: range) -> list[dict[str, Any]]:
    return [{"id": number, "name": f"row {number}"} for number in numbers]


class Server:
    """A paged endpoint with some number of rows and some habits; it stops a test that would go on forever."""

    def __init__(self, draw: Any) -> None:
        self.rows = rows_of(range(draw(st.integers(0, 30), label="rows")))
        self.cap = draw(st.integers(1, 40), label="largest page")
        self.first = draw(st.sampled_from([0, 1, 2]), label="number of the first page")
        self.offset = draw(st.sampled_from(["by the page's size", "by the limit asked for", "none"]), label="offset")
        self.beyond = draw(st.sampled_from(["empty", "the last page", "the first page", "an error"]), label="beyond")
        self.odd = draw(st.dictionaries(st.integers(1, 5), st.sampled_from(ODDITIES), max_size=2), label="odd pages")
        self.total = draw(st.sampled_from(["right", "right", "one more", "one less", "missing", "text", "of the page"]))
        self.calls = 0

    def fetch(self, limit: int, page: int) -> dict[str, Any]:
        self.calls += 1
        assert self.calls <= 100, "there is no end"
        size = min(limit, self.cap)
        start = {"none": 0, "by the limit asked for": limit}.get(self.offset, size) * max(0, page - self.first)
        if start >= len(self.rows) and page > 1:
            if self.beyond == "an error":
                raise LookupError("no such page")
            start = {"the last page": len(self.rows) - size, "the first page": 0}.get(self.beyond, start)
        data = self.rows[max(0, start) : max(0, start) + size]
        data = ODDITIES_OF_PAGES[self.odd[page]](data) if page in self.odd else data
        return {"data": data, **self.told(data)}

    def told(self, data: list[Any]) -> dict[str, Any]:
        number = len(self.rows)
        told = {"one more": number + 1, "one less": number - 1, "text": str(number), "of the page": len(data)}
        return {} if self.total == "missing" else {"total": told.get(self.total, number)}

    @property
    def tells_too_little(self) -> bool:
        """Whether nothing in its responses shows that there are more rows."""
        return self.total in ("of the page", "one less")


ODDITIES_OF_PAGES: dict[str, Callable[[list[Any]], Any]] = {
    "empty": lambda data: [],
    "short": lambda data: data[:-1],
    "short at its start": lambda data: data[1:],
    "a row twice": lambda data: data + data[:1],
    "a row without its key": lambda data: [{"name": "nobody"}, *data[1:]],
    "backwards": lambda data: data[::-1],
    "no list": lambda data: {"rows": data},
    "null": lambda data: None,
    "rows that are none": lambda data: [None, *data],
}
ODDITIES = sorted(ODDITIES_OF_PAGES)


@settings(derandomize=True, deadline=None, max_examples=3000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_a_server_does_every_page_returns_exactly_its_rows_or_an_error(data: Any) -> None:
    server, every_page = Server(data.draw), imported_template.every_page
    limit = data.draw(st.integers(1, 12), label="limit")
    try:
        rows = every_page(server.fetch, "id", limit)
    except (ValueError, TypeError, AttributeError, LookupError):
        return
    event("a list")
    ids = [row["id"] for row in rows]
    assert len(ids) == len(set(ids)), "doubled"
    if not server.tells_too_little:
        assert sorted(ids) == list(range(len(server.rows))), "short"


def test_pages_without_end_are_an_error_as_soon_as_they_hold_more_than_there_is(load: Load) -> None:
    asked = []

    def fetch(limit: int, page: int) -> dict[str, Any]:
        asked.append(page)
        return {"data": rows_of(range(page * limit, (page + 1) * limit)), "total": 25}

    with pytest.raises(ValueError, match="page 3 does not fit"):
        load().every_page(fetch, "id", 10)
    assert asked == [1, 2, 3]


def test_a_row_that_goes_away_between_two_pages_is_an_error_as_another_one_is_missed(load: Load) -> None:
    rows = rows_of(range(20))

    def fetch(limit: int, page: int) -> dict[str, Any]:
        if page == 2:
            del rows[3]  # each row after it moves up, one of them onto the first page
        return {"data": rows[limit * (page - 1) : limit * page], "total": len(rows)}

    with pytest.raises(ValueError, match=r"page 2 does not fit: .* total 20, then 19"):
        load().every_page(fetch, "id", 10)


@settings(derandomize=True, deadline=None)
@given(number=st.integers(0, 60), limit=st.integers(1, 20), cap=st.integers(1, 20), clamps=st.booleans())
def test_whatever_the_sizes_the_pages_of_a_server_that_counts_right_give_all_rows_in_order(
    number: int, limit: int, cap: int, clamps: bool
) -> None:
    rows = rows_of(range(number))

    def fetch(limit: int, page: int) -> dict[str, Any]:
        size = min(limit, cap)
        page = min(page, max(1, -(-number // size))) if clamps else page  # beyond the end: the last page, or none
        return {"data": rows[size * (page - 1) : size * page], "total": number}

    assert imported_template.every_page(fetch, "id", limit) == rows


@pytest.mark.parametrize("data", [{"one": {}, "two": {}}, "none", None])
def test_a_page_without_a_list_of_rows_is_an_error(template: Any, platform: Simulator, data: object) -> None:
    platform.control(answer={"search_inclusions": answer(200, json.dumps({"data": data, "total": 2}).encode())})
    with pytest.raises(TypeError, match="the page is not "):
        template.search_inclusions("any", 1000, 1)
    with pytest.raises(TypeError, match="the page is not "):
        template.get_all_inclusions("any")


# ------------------------------------------------------------------------------------------------------------ Addresses


def test_parameters_go_behind_those_that_the_path_of_an_endpoint_has(template: Any, study: Study) -> None:
    centre, tube = study.organizations[1]["id"], a_tube(study)
    template.MICROSERVICES["RC"]["endpoints"]["in_french"] = "/api/inclusions/inclusion-statistics?lang=fr"
    template.MICROSERVICES["GDD"]["endpoints"]["by_tube_in_french"] = "/api/requests/by-tube?lang=fr"

    @template.api_call_with_retry("RC")
    def statistics() -> Any:
        return template.call_endpoint("RC", "GET", "in_french", dict, params={"organization": centre})

    @template.api_call_with_retry("GDD")
    def request() -> Any:
        return template.call_endpoint("GDD", "GET", "by_tube_in_french", dict, suffix=f"/{tube}")

    assert statistics() == study.statistics(centre)
    assert request() == study.request(tube)


def test_a_path_without_its_first_slash_is_not_glued_to_the_host(template: Any, study: Study) -> None:
    template.MICROSERVICES["RC"]["endpoints"]["organizations"] = "api/inclusions/getAllOrganizations"
    assert template.get_all_organizations() == study.organizations


# ---------------------------------------------------------------------------------------------- What contradicts itself


def test_a_decorator_without_its_parentheses_says_what_to_write(load: Load) -> None:
    with pytest.raises(TypeError, match=r'@api_call_with_retry\("RC"\)'):

        @load().api_call_with_retry
        def call() -> None:
            pass


def test_a_decorator_that_names_another_service_than_the_call_is_an_error(template: Any, platform: Simulator) -> None:
    @template.api_call_with_retry("GDD")
    def centres() -> Any:
        return template.call_endpoint("RC", "GET", "organizations", list)

    @template.api_call_with_retry("GDD")
    def centres_in_the_old_form() -> Any:
        client = template.get_httpx_client()
        client.base_url = template.MICROSERVICES["RC"]["base_url"]
        headers = {"Authorization": f"Bearer {template.tokens['RC']['access_token']}"}
        response = client.get(template.MICROSERVICES["RC"]["endpoints"]["organizations"], headers=headers)
        response.raise_for_status()
        return response.json()

    for call in (centres, centres_in_the_old_form):
        with pytest.raises(template.ConfigurationError, match="sends the token of RC, but its decorator names GDD"):
            call()
    assert platform.seen()["requests"]["organizations"] == 0


def test_a_typo_in_an_endpoint_is_reported_with_the_existing_endpoints(template: Any) -> None:
    with pytest.raises(template.ConfigurationError, match=r"RC .*'statistcs'.* organizations, statistics, "):
        template.api_call_with_retry("RC")(lambda: template.call_endpoint("RC", "GET", "statistcs", dict))()
