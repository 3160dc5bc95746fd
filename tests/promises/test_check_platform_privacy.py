"""Whatever a platform answers, no value of it is in what the check prints, and no credential or token."""

import contextlib
import io
import itertools
import json
import re
from collections.abc import Callable
from typing import Any

import check_platform
import httpx
import pytest
from helpers import TEMPLATE
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from platform_check import shape
from platform_check.probing import WRONG
from platform_check.script import Script
from script_file import imported

WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # it would take minutes: an example is 40 answers
MARK = "~"  # in each value that the platform sends, and in nothing that the check says by itself
USER, PASSWORD = f"jeanne{MARK}", f"mot de passe{MARK}"

numbers = st.integers(0, 2**40)
values = st.builds("{}{m}{:x}{m}".format, st.text(st.characters(), max_size=5), numbers, m=st.just(MARK))
header_values = st.builds(
    "{}{m}{:x}{m}".format, st.sampled_from(["", "12", "Tue, 24 Nov 2026 10:00:00 GMT", "100"]), numbers, m=st.just(MARK)
)
jwts = st.sampled_from(["eyJhbGciOiJIUzI1NiJ9", "e30", "bm8"]).flatmap(
    lambda head: values.map(lambda v: f"{head}.e30.{v}")
)
FIELD_NAMES = """
access_token accessToken token refresh_token refreshToken userId user id data items total patientId patient_id
error message tubeId tube expires_in organization name
"""
field_names = st.sampled_from(FIELD_NAMES.split())
ids_as_keys = st.builds("{}{:03d}".format, st.sampled_from(["", "P", "EB", "patient_"]), st.integers(100, 999)) | values
keys = field_names | ids_as_keys
scalars = values | jwts | st.none() | st.booleans() | st.integers() | st.floats()
bodies = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6), max_leaves=20
)
ascii_values = st.builds("eb{m}{:x}{m}".format, numbers, m=st.just(MARK))
tokens = st.fixed_dictionaries(
    {"access_token": ascii_values, "refresh_token": ascii_values, "userId": numbers | values}
)
centres = st.lists(st.fixed_dictionaries({"id": values, "name": values}), min_size=1, max_size=4)
pages = st.fixed_dictionaries({"data": st.lists(st.fixed_dictionaries({"patientId": values})), "total": numbers})


def at_times_wrapped(body: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A body, or the same in an object, under a key that may be shown or one that may not."""
    return body | st.builds(lambda key, inner: {key: inner}, keys, body)


plausible = {
    "login": at_times_wrapped(tokens),
    "config-token": at_times_wrapped(tokens),
    "refreshToken": at_times_wrapped(tokens),
    "getAllOrganizations": at_times_wrapped(centres),
    "inclusion-statistics": st.dictionaries(keys, st.integers(0, 99), max_size=4),
    "search": at_times_wrapped(pages),
    "byPatient": st.fixed_dictionaries({"visits": st.lists(st.fixed_dictionaries({"tubeId": values}))}),
}
statuses = st.sampled_from([200, 201, 204, 302, 307, 400, 401, 403, 404, 422, 429, 500, 503])
header_names = st.sampled_from(
    ["location", "set-cookie", "date", "retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "ratelimit-reset"]
)
headers = st.dictionaries(header_names, header_values.map(str.encode), min_size=1, max_size=3)
failures = st.sampled_from([httpx.ReadTimeout, httpx.RemoteProtocolError, httpx.ConnectError, httpx.DecodingError])
answers = st.tuples(statuses | failures, st.builds(json.dumps, bodies | tokens) | values.map(ascii), headers)


def test_names_that_may_be_ids_are_counted_and_not_shown() -> None:
    shown = shape.names(["patientId", "code12", "EB000123", "P123", "Jean Dupont", "é", "", "x" * 60, 7, "_links"])
    assert shown == "patientId, code12, _links, (7 other keys)"


def test_no_more_than_30_names_are_shown() -> None:
    assert shape.names([f"{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(100)]).endswith(
        ", (70 other keys)"
    )


def test_an_object_whose_values_are_all_objects_is_taken_for_one_keyed_by_persons() -> None:
    assert shape.kind({"Dupont": {"age": 31}, "Durand": {"age": 40}}) == "an object of 2 entries"


@pytest.fixture(scope="module")
def script() -> Script:
    """The template, at addresses that nothing leaves for."""
    module = imported(TEMPLATE)
    services = {
        app: {**service, "base_url": f"http://127.0.0.1/{app.lower()}"} for app, service in module.MICROSERVICES.items()
    }
    return Script(TEMPLATE, TEMPLATE.read_text(encoding="utf-8"), services)


def said(script: Script, answer: Callable[[httpx.Request], httpx.Response]) -> tuple[int, str]:
    """The exit code of a check against a platform that answers so, and all that it printed."""
    output = io.StringIO()
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
        httpx.Client(transport=httpx.MockTransport(answer)) as client,
    ):
        code = check_platform.told_by_calls(script, USER, PASSWORD, client, sleep=lambda seconds: None)
    return code, output.getvalue()


@given(data=st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), phases=WITHOUT_SHRINKING)
def test_no_value_or_credential_is_printed_whatever_the_platform_sends(data: st.DataObject, script: Script) -> None:
    usual = {end: data.draw(body, label=end) for end, body in plausible.items()}
    refusal = data.draw(st.dictionaries(keys, scalars, min_size=1, max_size=3))  # 200, with an error inside
    odd = data.draw(st.dictionaries(st.integers(0, 45), answers, min_size=4, max_size=10))  # calls that go otherwise
    made = itertools.count()

    def answer(request: httpx.Request) -> httpx.Response:
        wrong = WRONG in request.headers.get("Authorization", "")
        body = refusal if wrong else usual.get(request.url.path.rsplit("/", 1)[-1], {})
        status, other, told = odd.get(next(made), (200, json.dumps(body), {}))
        if isinstance(status, int):
            return httpx.Response(status, content=other.encode(), headers=told)
        raise status(other)

    _, output = said(script, answer)
    assert MARK not in output
    assert not re.search("(P|EB|patient_)[0-9]{3}", output)
