"""Whatever a recording holds, no value of it is in what the check prints."""

import contextlib
import io
import json
import re
import urllib.parse
from pathlib import Path
from typing import Any

import check_platform
import pytest
from dialects import MOVED_ALL
from helpers import TEMPLATE
from hypothesis import HealthCheck, given, settings, strategies as st
from platform_check import har
from platform_check.observed import Observation
from platform_check.script import Script, read
from test_check_platform_privacy import (
    MARK,
    WITHOUT_SHRINKING,
    at_times_wrapped,
    bodies,
    header_values,
    keys,
    tokens,
    values,
)

PATHS = {key: path for service in read(TEMPLATE).services.values() for key, path in service["endpoints"].items()}
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
headers = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["Date", "Location", "Set-Cookie", "X-RateLimit-Limit", "Cookie", f"x-{MARK}"]),
            "value": header_values,
        }
    ),
    max_size=3,
)
statuses = st.sampled_from([200, 200, 200, 201, 302, 304, 401, 403, 404, 429, 500, 0])
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
                *draw(headers),
            ],
            "cookies": [{"name": draw(values), "value": draw(values)}],
            "postData": {"mimeType": "application/json", "text": json.dumps(draw(sent.get(key, st.just({})) | bodies))},
        },
        "response": {
            "status": draw(statuses),
            "headers": draw(headers),
            "redirectURL": draw(values),
            "content": {"mimeType": "application/json", "text": json.dumps(body)},
        },
    }


@pytest.fixture(scope="module")
def script() -> Script:
    return read(TEMPLATE)


def said(script: Script, recording: Path) -> str:
    output = io.StringIO()
    calls, passed = har.read(recording)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        check_platform.told_by_recording(recording, Observation(script, calls), passed, apply=False)
    return output.getvalue()


@given(log=st.lists(entries() | scraps, min_size=1, max_size=16))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), phases=WITHOUT_SHRINKING)
def test_no_value_of_a_recording_is_in_the_output(log: list[Any], script: Script, tmp_path: Path) -> None:
    recording = tmp_path / "session.har"
    recording.write_text(json.dumps({"log": {"entries": log}}), encoding="utf-8")
    output = said(script, recording)
    assert MARK not in output
    assert not re.search("(P|EB|patient_)[0-9]{3}", output)
