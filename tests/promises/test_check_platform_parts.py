"""The parts of the check by themselves: pace and limits of its calls, lines of other versions, tokens, changes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import TEMPLATE
from hypothesis import given, strategies as st
from platform_check import judgements, probing, shape
from platform_check.changes import Edit, apply, changed
from platform_check.judgements import DIFFERS, OK
from platform_check.probing import Prober
from platform_check.script import Place, Script
from platform_check.shape import Seen
from script_file import Refused

# The engine in another layout: a class for sessions, a constant for the page size, a different comparison.
OTHER_VERSION = """
PAGE_SIZE = 500
MICROSERVICES = {"RC": {"endpoints": {"organizations": "/organizations"}}}

class Sessions:
    def renew_after(self, error):
        if error.response.status_code != 401:
            raise error

    def read(self, response):
        answer = response.json()
        return answer["access_token"]

def call_endpoint(app):
    headers = {"Authorization": "Bearer"}
    response = get(app, headers)
    response.raise_for_status()
    return response.json()

def get_all_organizations():
    return call_endpoint("RC", "GET", "organizations", list)

def search(organization_id, limit, page):
    return call_endpoint("RC", "POST", "search_inclusions", dict, params={"limit": limit, "page": page})

def get_all_inclusions(organization_id):
    for number in count(1):
        page = search(organization_id, PAGE_SIZE, number)
        if page["total"] <= number * PAGE_SIZE:
            return
"""


@pytest.fixture(scope="module")
def script() -> Script:
    return Script(TEMPLATE, TEMPLATE.read_text(encoding="utf-8"), {})


@pytest.fixture(scope="module")
def other() -> Script:
    """A template of another version."""
    return Script(Path("other.py"), OTHER_VERSION, {})


def prober_of(*answers: httpx.Response) -> tuple[Prober, list[float]]:
    """A prober that gets these responses, the last one repeatedly, and the list of its waits."""
    left, waits = list(answers), list[float]()
    transport = httpx.MockTransport(lambda request: left.pop(0) if len(left) > 1 else left[0])
    return Prober(httpx.Client(transport=transport), waits.append), waits


def answered(body: Any, status: int = 200, **headers: str) -> Seen:
    return Seen(status, body, headers)


@pytest.mark.parametrize(
    ("headers", "status", "waits", "said"),
    [
        ({"Retry-After": "7"}, 429, [7], "the platform returned a 429: waiting 7 s\n"),
        ({"Retry-After": "600"}, 429, [], ""),
        ({"X-RateLimit-Remaining": "1"}, 200, [1], ""),
    ],
)
def test_calls_are_made_at_the_pace_that_the_platform_asks_for_but_not_after_minutes(
    headers: dict[str, str], status: int, waits: list[float], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prober, waited = prober_of(httpx.Response(status, json=[], headers=headers), httpx.Response(200, json=[]))
    assert prober.call("GET", "https://rc.test/").good is (waits != [])
    assert waited == waits
    assert prober.refused == (status == 429)
    assert capsys.readouterr().err == said


def test_after_60_calls_no_other_is_made_and_the_check_says_so() -> None:
    prober, _ = prober_of(httpx.Response(200, json=[]))
    seen = [prober.call("GET", "https://rc.test/") for _ in range(61)]
    assert [each.failure for each in seen[-2:]] == ["", "not called: the check stops after 60 calls"]
    assert prober.cut_short


def test_after_its_time_no_other_call_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "MOST_SECONDS", 0)
    prober, _ = prober_of(httpx.Response(200, json=[]))
    assert prober.call("GET", "https://rc.test/").failure.startswith("not called: the check stops after")
    assert prober.calls == 0


def test_a_cookie_of_one_answer_is_not_sent_with_the_next_call() -> None:
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, json={}, headers={"Set-Cookie": "session=1; Path=/"})

    prober = Prober(httpx.Client(transport=httpx.MockTransport(answer)))
    prober.call("GET", "https://rc.test/")
    prober.call("GET", "https://rc.test/")
    assert ["cookie" in request.headers for request in sent] == [False, False]


# How to find each place where --apply writes, and its text in the template.
PLACES: dict[str, tuple[Callable[[Script], Place], str]] = {
    "a token answer": (Script.token_answers, ".json()"),
    "a dead token": (Script.dead_token, "!= 401"),
    "an error": (Script.error_raising, ".raise_for_status()"),
    "a list": (lambda script: script.answer_of("organizations"), 'call_endpoint("RC", "GET", "organizations", list)'),
    "a page": (
        lambda script: script.answer_of("search_inclusions"),
        'call_endpoint("RC", "POST", "search_inclusions", dict, params=params, json=body)',
    ),
    "a page's number": (Script.page, '"page": page'),
    "a page's size": (Script.page_size, 'key="patientId"'),
    "an id in a call": (lambda script: script.parameter("record_by_patient", "patient"), '"patient"'),
    "an id in an answer": (lambda script: script.required_id("record_by_patient") or Place(), '"patientId"'),
    "an id in a row": (Script.key_of_rows, 'key="patientId"'),
    "a constant": (lambda script: script.constant("MAX_THREADS"), "MAX_THREADS = 20"),
    "another constant": (lambda script: script.constant("SUBTASKS_POOL_SIZE"), "SUBTASKS_POOL_SIZE = 40"),
    "an address": (lambda script: script.entry("RC", "base_url"), '"https://rc.endobest.example"'),
    "a client": (lambda script: script.entry("RC", "app_id"), '"endobest-rc"'),
    "a path": (lambda script: script.entry("RC", "organizations"), '"/api/inclusions/getAllOrganizations"'),
}
IN_OTHER_VERSION = {
    **{kind: PLACES[kind][1] for kind in ("a token answer", "a dead token", "an error", "a list", "a page's number")},
    "a page": 'call_endpoint("RC", "POST", "search_inclusions", dict, params={"limit": limit, "page": page})',
    "a page's size": "500",
    "a path": '"/organizations"',
}


@pytest.mark.parametrize("kind", PLACES)
def test_each_place_where_something_can_be_written_is_found_in_the_template(kind: str, script: Script) -> None:
    find, text = PLACES[kind]
    assert_found(find(script), text, script)


@pytest.mark.parametrize("kind", IN_OTHER_VERSION)
def test_places_are_found_in_another_layout_of_the_engine(kind: str, other: Script) -> None:
    assert_found(PLACES[kind][0](other), IN_OTHER_VERSION[kind], other)


def assert_found(place: Place, text: str, script: Script) -> None:
    """Check that a place has this text, and that it is on its line: a place that was not found would not be."""
    assert text in place.text
    assert place.text in script.lines[place.line - 1]


def test_the_reader_of_tokens_is_told_from_other_readers(other: Script) -> None:
    assert "def read" in other.lines[other.token_answers().line - 2]
    assert "def get_all_inclusions" in other.lines[other.total()[0] - 1]


@pytest.mark.parametrize(
    ("compared", "new"),
    [
        ("error.response.status_code != 401", "error.response.status_code not in (401, 403)"),
        ("error.response.status_code == 401", "error.response.status_code in (401, 403)"),
        ("error.response.status_code in (401, 419)", "error.response.status_code in (401, 403, 419)"),
    ],
)
def test_what_to_write_keeps_the_form_of_the_comparison(compared: str, new: str) -> None:
    text = OTHER_VERSION.replace("error.response.status_code != 401", compared)
    other = Script(Path("other.py"), text, {})
    finding = judgements.wrong_token("RC", answered({"message": "no"}, 403), answered([]), other)
    assert str(finding.steps[0][0]) == f"write `{new}` instead of `{compared}`"


def test_the_size_of_a_page_is_the_one_that_get_all_inclusions_asks_for_else_the_default(script: Script) -> None:
    given = script.source.replace('key="patientId")', 'key="patientId", limit=50)')
    sizes = [Script(TEMPLATE, text, {}).page_size() for text in (script.source, given)]
    assert [size.number for size in sizes] == [1000, 50]
    assert [(size.text, size.to(10)) for size in sizes] == [
        ('key="patientId"', 'key="patientId", limit=10'),
        ("50", "10"),
    ]


@pytest.mark.parametrize(
    ("body", "trusted"),
    [
        ("return every_page(organization_id)", True),
        ("return search(organization_id, 1000, 1)['total']", True),
        ("return list(search(organization_id, 1000, 1))", False),
    ],
)
def test_total_matters_if_get_all_inclusions_or_a_function_that_it_calls_reads_it(body: str, trusted: bool) -> None:
    engine = "def every_page(fetch):\n    return fetch.get('total')\n\n"
    own = Script(Path("own.py"), f"{engine}def get_all_inclusions(organization_id):\n    {body}\n", {})
    assert own.total() == (4, trusted)


@pytest.mark.parametrize(
    ("answer", "path"),
    [
        ({"access_token": "a", "token": "b"}, ("access_token",)),
        ({"AccessToken": "a"}, ("AccessToken",)),
        ({"access-token": "a"}, None),  # may not be shown, so it cannot be reported
        ({"result": {"tokens": {"access_token": "a"}}}, ("result", "tokens", "access_token")),
        ({"access_token": ""}, None),
        ({"access_token": None, "jwt": "a"}, ("jwt",)),
        ({"P123456": {"access_token": "a"}}, None),
        ([{"access_token": "a"}], None),
    ],
)
def test_a_token_is_found_by_its_name_or_another_at_the_top_or_below(answer: Any, path: Any) -> None:
    assert shape.find_field(answer, "access_token") == path


def test_a_number_can_be_a_user_id_but_no_token() -> None:
    assert shape.find_field({"userId": 7, "access_token": 7}, "userId") == ("userId",)
    assert shape.find_field({"userId": 7, "access_token": 7}, "access_token") is None


@pytest.mark.parametrize(
    ("token", "seconds"),
    [
        ("eyJhbGciOiJIUzI1NiJ9.eyJpYXQiOjEwMCwiZXhwIjo0MDB9.x", 300),
        ("eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjQwMH0.x", 390),
        ("eyJhbGciOiJIUzI1NiJ9.e30.x", math.nan),
        ("eb-access-token", None),
        ("a.b.c", None),
    ],
)
def test_a_jwt_tells_its_lifetime(token: str, seconds: float | None) -> None:
    assert shape.jwt_lifetime(token, now=10) == pytest.approx(seconds, nan_ok=True)


def page(*patients: int, total: int = 3) -> Seen:
    return answered({"data": [{"patientId": f"p{number}"} for number in patients], "total": total})


@pytest.mark.parametrize(
    ("zero", "one", "two", "first"),
    [
        (answered({}, 400), page(1), page(2), 1),
        (page(1), page(1), page(2), 1),  # page 0 is mistaken for the first one
        (page(1), page(2), page(3), 0),
        (page(1), page(1), page(1), None),  # the number is ignored
        (answered({}, 400), page(), page(), None),
    ],
)
def test_the_first_page_is_told_from_three_pages(zero: Seen, one: Seen, two: Seen, first: int | None) -> None:
    assert judgements.first_of(zero, one, two) == first


def test_a_server_that_ignores_the_number_of_the_page_is_reported(script: Script) -> None:
    finding = judgements.first_page(judgements.facts_of((page(1),) * 3, page(1, 2, 3), 1000), script)
    assert (finding.verdict, finding.seen) == (DIFFERS, "page 1 and page 2 are the same: the number is ignored")


def test_a_centre_with_one_inclusion_tells_nothing_about_pages(script: Script) -> None:
    small = page(), page(1, total=1), page(total=1)
    facts = judgements.facts_of(small, page(1, total=1), 1000)
    assert judgements.total(facts, script).verdict == judgements.NOT_TRIED


def test_a_page_whose_list_or_ids_have_other_names_is_reported(script: Script) -> None:
    asked = 'call_endpoint("RC", "POST", "search_inclusions", dict, params=params, json=body)'
    [nested] = judgements.page_fields(answered({"result": {"rows": [{"patientId": "p"}]}, "total": 1}), script)
    assert str(nested.steps[0][0]).startswith(
        f'write `{{**(answer := {asked}), "data": answer["result"]["rows"]}}` instead of'
    )
    [bare] = judgements.page_fields(answered([{"patientId": "p"}]), script)
    assert str(bare.steps[0][0]).startswith(f'write `{{"data": {asked.replace("dict", "list")}}}` instead of')
    [renamed] = judgements.page_fields(answered({"data": [{"patient_id": "p"}], "total": 1}), script)
    assert [str(change) for change, _ in renamed.steps] == [
        'write `key="patient_id"` instead of `key="patientId"`',
        "read patient_id instead of patientId in your main()",
    ]


def test_data_given_to_a_wrong_token_are_a_case_for_the_operator(script: Script) -> None:
    finding = judgements.wrong_token("RC", answered([{"id": "1"}]), answered([{"id": "1"}]), script)
    [(change, line)] = finding.steps
    assert (finding.verdict, line) == (DIFFERS, 0)
    assert "operator" in str(change)


def test_connections_that_are_not_kept_are_reported() -> None:
    kept = [Seen(200, [], connection=1, seconds=0.1)] * 10
    assert judgements.latency(kept).verdict == OK
    closed = [Seen(200, [], connection=number, seconds=0.1) for number in range(10)]
    assert judgements.latency(closed).verdict == DIFFERS


def limited_to(calls: int, window: int, seconds: float) -> list[Seen]:
    """Responses of a platform with this limit of calls in a number of seconds, and this duration of each."""
    told = {"ratelimit-limit": str(calls), "ratelimit-reset": str(window)}
    return [Seen(200, [], told, seconds=seconds)] * 3


def threads_of(main: int, subtasks: int) -> Script:
    text = f"MAX_THREADS = {main}\nSUBTASKS_POOL_SIZE = {subtasks}\n"
    return Script(Path("my_script.py"), text, {}, main, subtasks)


def test_fewer_threads_are_asked_for_if_both_pools_together_have_more_than_the_limit_allows() -> None:
    finding = judgements.rate_limit(limited_to(600, 60, 1.5), 0, threads_of(10, 20))
    assert [(str(change), line) for change, line in finding.steps] == [
        ("write `MAX_THREADS = 5` instead of `MAX_THREADS = 10`", 1),
        ("write `SUBTASKS_POOL_SIZE = 10` instead of `SUBTASKS_POOL_SIZE = 20`", 2),
    ]
    assert judgements.rate_limit(limited_to(600, 60, 1.5), 0, threads_of(5, 10)).verdict == OK


@given(st.integers(1, 100_000), st.integers(1, 3600), st.floats(0.001, 60), st.integers(1, 99), st.integers(1, 99))
def test_what_is_told_of_threads_is_enough(calls: int, window: int, seconds: float, main: int, subtasks: int) -> None:
    seen, script = limited_to(calls, window, seconds), threads_of(main, subtasks)
    finding = judgements.rate_limit(seen, 0, script)
    text, left = changed(script.source, ((change, line) for change, line in finding.steps if isinstance(change, Edit)))
    numbers = [int(line.split(" = ")[1]) for line in text.splitlines()]
    assert not left
    assert judgements.rate_limit(seen, 0, threads_of(*numbers)).verdict == OK


def test_no_function_calls_an_endpoint_by_itself_if_it_has_parameters() -> None:
    text = 'call_endpoint("LAB", "GET", "one", list)\ncall_endpoint("LAB", "GET", "two", list, suffix="/1")\n'
    script = Script(Path("my_script.py"), text, {})
    assert [script.plain_get("LAB", key) for key in ("one", "two", "three")] == [True, False, False]


def test_every_line_that_is_named_exists_even_in_an_empty_script() -> None:
    empty = Script(Path("empty.py"), "", {})
    assert {find(empty).line for find, _ in PLACES.values()} == {1}


# Changes that a machine makes: each at its line, all or none, with the script as it was beside it

SOURCE = "one = 1\ntwo = 1\nif one:\n    raise_for_status()\n"


@pytest.mark.parametrize(
    ("edit", "line", "new"),
    [
        (Edit("2", "1"), 2, "one = 1\ntwo = 2\nif one:\n    raise_for_status()\n"),
        (Edit("look()", "raise_for_status()", above=True), 4, SOURCE.replace("    raise", "    look()\n    raise")),
        (Edit("pass", "if one:\n    raise_for_status()"), 3, "one = 1\ntwo = 1\npass\n"),
    ],
)
def test_an_edit_is_made_on_its_line_alone(edit: Edit, line: int, new: str) -> None:
    assert changed(SOURCE, [(edit, line)]) == (new, [])


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (Edit("2", "3"), 1),
        (Edit("2", "1"), 99),
        (Edit("2", "one = 1\ntwo = 2"), 1),
        (Edit("2", ""), 1),
        (Edit("x", "n"), 4),
    ],
)
def test_an_edit_that_does_not_fit_is_left(edit: Edit, line: int) -> None:
    source = SOURCE.replace("raise_for_status()", "n + n")
    assert changed(source, [(edit, line)]) == (source, [(edit, line)])


def test_of_two_edits_of_the_same_text_the_later_one_is_left() -> None:
    edits = [(Edit("2", "1"), 1), (Edit("3", "1"), 1)]
    assert changed(SOURCE, edits) == (SOURCE.replace("one = 1", "one = 2"), [edits[1]])


def test_line_ends_mark_and_rights_of_the_file_stay_and_nothing_beside_it_is_written_over(tmp_path: Path) -> None:
    path, before = tmp_path / "my_script.py", b"\xef\xbb\xbfa = 1\r\nb = 1\r\n"
    path.write_bytes(before)
    path.chmod(0o750)
    mode = path.stat().st_mode  # Windows has no such rights
    (tmp_path / "my_script.before.py").write_text("older")
    kept, _ = apply(path, [(Edit("2", "1"), 2), (Edit("c = 1", "a", above=True), 1)])
    assert path.read_bytes() == b"\xef\xbb\xbfc = 1\r\na = 1\r\nb = 2\r\n"
    assert path.stat().st_mode == mode
    assert (kept.name, kept.read_bytes()) == ("my_script.before-2.py", before)
    assert (tmp_path / "my_script.before.py").read_text() == "older"


def test_a_script_that_would_be_no_python_any_more_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "my_script.py"
    path.write_text("a = 1\n")
    with pytest.raises(Refused, match=r"would no longer be valid Python"):
        apply(path, [(Edit("(", "1"), 1)])
    assert [each.name for each in tmp_path.iterdir()] == ["my_script.py"]
    assert path.read_text() == "a = 1\n"
