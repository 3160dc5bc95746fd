"""Whatever a platform answers or a recording holds, no value of it is in what the check prints, and no credential."""

import contextlib
import io
import itertools
import json
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import check_platform
import httpx
import pytest
from dialects import MOVED_ALL
from helpers import TEMPLATE
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from platform_check import har, shape
from platform_check.observed import Observation
from platform_check.probing import WRONG
from platform_check.script import Script, read
from script_file import imported

WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # it would take minutes: an example is 40 responses
MARK = "~"  # in every value that the platform sends, and in no text of the check itself
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
    """A body, by itself or in an object, under a key that may be shown or one that may not."""
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
    """The template, with addresses to which nothing is sent."""
    module = imported(TEMPLATE)
    services = {
        app: {**service, "base_url": f"http://127.0.0.1/{app.lower()}"} for app, service in module.MICROSERVICES.items()
    }
    return Script(TEMPLATE, TEMPLATE.read_text(encoding="utf-8"), services)


def assert_tells_no_value(tell: Callable[[], object]) -> None:
    """What is printed meanwhile holds no value, and no key that may be somebody's id."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        tell()
    assert MARK not in output.getvalue()
    assert not re.search("(P|EB|patient_)[0-9]{3}", output.getvalue())


@given(data=st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), phases=WITHOUT_SHRINKING)
def test_no_value_or_credential_is_printed_whatever_the_platform_sends(data: st.DataObject, script: Script) -> None:
    usual = {end: data.draw(body, label=end) for end, body in plausible.items()}
    refusal = data.draw(st.dictionaries(keys, scalars, min_size=1, max_size=3))  # 200, with an error inside
    odd = data.draw(st.dictionaries(st.integers(0, 45), answers, min_size=4, max_size=10))  # calls that go wrong
    made = itertools.count()

    def answer(request: httpx.Request) -> httpx.Response:
        wrong = WRONG in request.headers.get("Authorization", "")
        body = refusal if wrong else usual.get(request.url.path.rsplit("/", 1)[-1], {})
        status, other, told = odd.get(next(made), (200, json.dumps(body), {}))
        if isinstance(status, int):
            return httpx.Response(status, content=other.encode(), headers=told)
        raise status(other)

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        assert_tells_no_value(
            lambda: check_platform.told_by_calls(script, USER, PASSWORD, client, sleep=lambda seconds: None)
        )


# A recording

AS_WRITTEN = read(TEMPLATE)
PATHS = {key: path for service in AS_WRITTEN.services.values() for key, path in service["endpoints"].items()}
few = st.sampled_from([f"a{MARK}1", f"b{MARK}2", f"EB{MARK}3"])  # ids that come up in several calls
words = st.sampled_from(["v2", "Dupont", "search", ""])  # of a path; one of them is a patient's name, too
origins = st.sampled_from(
    ["https://iam.platform.test", "https://rc.platform.test", f"https://u:p{MARK}@rc.platform.test"]
)
named = st.fixed_dictionaries({"id": few, "name": values})
rows = st.fixed_dictionaries({"patientId": few, "patient": values})
sent = {
    "login": st.fixed_dictionaries({"username": values, "password": values}),
    "config_token": st.fixed_dictionaries({"userId": values, "clientId": values | st.just("endobest-rc")}),
    "refresh_token": st.fixed_dictionaries({"refresh_token": values}),
    "search_inclusions": st.fixed_dictionaries({"organization": few, "page": st.integers(0, 3)}),
    "surveys": st.fixed_dictionaries({"subject": few}),
}
answered = {
    "login": at_times_wrapped(tokens),
    "config_token": at_times_wrapped(tokens),
    "refresh_token": at_times_wrapped(tokens),
    "organizations": at_times_wrapped(st.lists(named, max_size=3)),
    "statistics": st.dictionaries(keys, st.integers(0, 99), max_size=4),
    "search_inclusions": st.fixed_dictionaries({"data": st.lists(rows, max_size=3), "total": st.integers(0, 9)}),
    "record_by_patient": st.fixed_dictionaries(
        {"name": st.just("Dupont"), "visits": st.lists(st.builds(dict, tubeId=few))}
    ),
    "surveys": st.lists(st.fixed_dictionaries({"answers": st.lists(values, max_size=2)}), max_size=2),
    "request_by_tube": st.fixed_dictionaries({"tubeId": few}),
}
recorded_headers = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["Date", "Location", "Set-Cookie", "X-RateLimit-Limit", "Cookie", f"x-{MARK}"]),
            "value": header_values,
        }
    ),
    max_size=3,
)
recorded_statuses = st.sampled_from([200, 200, 200, 201, 302, 304, 401, 403, 404, 429, 500, 0])
scraps = st.recursive(
    values | st.none() | st.integers() | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            keys | st.sampled_from(["request", "response", "url", "headers", "content", "text"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@st.composite
def entries(draw: st.DrawFn) -> dict[str, Any]:
    """A call of the platform, somewhat as it should be."""
    key = draw(st.sampled_from(sorted(PATHS)))
    path = draw(st.sampled_from([PATHS[key], f"/{draw(words)}{PATHS[key]}", MOVED_ALL[key].removesuffix("/{tube}")]))
    path += draw(
        st.sampled_from(["", "", "/" + urllib.parse.quote(draw(few | words | values), safe="", errors="replace")])
    )
    if key == "request_by_tube":
        path += "/" + urllib.parse.quote(draw(few), safe="")
    query = urllib.parse.urlencode(
        draw(
            st.dictionaries(
                st.sampled_from(["organization", "patient", "limit", "page"]), few | st.just("1"), max_size=3
            )
        )
    )
    body = draw(answered[key] | bodies)
    access = draw(few)
    return {
        "startedDateTime": draw(st.just("2026-11-30T07:20:13.086Z") | values),
        "time": draw(st.integers(-1, 10**6) | values),
        "comment": draw(values),
        "request": {
            "method": draw(st.sampled_from(["GET", "POST", "POST"]) | values),
            "url": draw(origins) + path + "?" * bool(query) + query,
            "headers": [
                {"name": draw(st.sampled_from(["authorization", "x-token"])), "value": f"Bearer {access}"},
                *draw(recorded_headers),
            ],
            "cookies": [{"name": draw(values), "value": draw(values)}],
            "postData": {"mimeType": "application/json", "text": json.dumps(draw(sent.get(key, st.just({})) | bodies))},
        },
        "response": {
            "status": draw(recorded_statuses),
            "headers": draw(recorded_headers),
            "redirectURL": draw(values),
            "content": {"mimeType": "application/json", "text": json.dumps(body)},
        },
    }


@given(log=st.lists(entries() | scraps, min_size=1, max_size=16))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), phases=WITHOUT_SHRINKING)
def test_no_value_of_a_recording_is_printed(log: list[Any], tmp_path: Path) -> None:
    recording = tmp_path / "session.har"
    recording.write_text(json.dumps({"log": {"entries": log}}), encoding="utf-8")
    calls, passed = har.read(recording)
    observation = Observation(AS_WRITTEN, calls)
    assert_tells_no_value(lambda: check_platform.told_by_recording(recording, observation, passed, apply=False))
