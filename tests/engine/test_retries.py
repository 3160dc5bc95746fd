"""What is retried, when, and what is not: the decisions as pure functions, then against the simulated platform."""

import json
import logging
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import pytest
from faults import KINDS
from helpers import TEMPLATE, Load, answer, untrusted, wait_until
from hypothesis import given, settings, strategies as st
from script_file import imported
from server import Simulator
from sockets import unused_port

template = imported(TEMPLATE)  # for the pure functions

ATTEMPTS = 3
NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=timezone.utc)
REQUEST = httpx.Request("GET", "https://rc.hospital.test/api")


def status_error(status: int, **headers: str) -> httpx.HTTPStatusError:
    response = httpx.Response(status, request=REQUEST, headers=headers)
    return httpx.HTTPStatusError("refused", request=REQUEST, response=response)


def transport_errors(kind: type[httpx.TransportError] = httpx.TransportError) -> Iterator[type[httpx.TransportError]]:
    yield kind
    for special in kind.__subclasses__():
        yield from transport_errors(special)


# ------------------------------------------------------------------------------------------------------- Pure functions


PASSING = {*range(500, 600)} - {501}


@pytest.mark.parametrize(
    ("idempotent", "headers", "statuses"),
    [
        (True, {}, {408, 425, 429} | PASSING),
        (False, {}, {429}),
        (True, {"Retry-After": "1"}, {*range(400, 500)} | PASSING),
        (True, {"Retry-After": "0"}, {*range(400, 500)} | PASSING),
        (True, {"Retry-After": "soon"}, {*range(400, 500)} | PASSING),
        (False, {"Retry-After": "1"}, {*range(400, 500)}),
    ],
)
def test_only_these_statuses_are_retried(idempotent: bool, headers: dict[str, str], statuses: set[int]) -> None:
    errors = {status: status_error(status, **headers) for status in range(300, 600)}
    assert {status for status, error in errors.items() if template._is_retryable(error, idempotent)} == statuses


def test_every_network_error_is_retried_but_an_address_without_a_scheme() -> None:
    final = {kind for kind in transport_errors() if not template._is_retryable(kind("broken"), idempotent=True)}
    assert final == {httpx.UnsupportedProtocol}


def test_only_network_errors_before_sending_let_a_creation_be_retried() -> None:
    kinds = {kind for kind in transport_errors() if template._is_retryable(kind("broken"), idempotent=False)}
    assert kinds == {httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout}


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (httpx.DecodingError("bad gzip"), True),
        (json.JSONDecodeError("Expecting value", "<html>", 0), True),
        (json.JSONDecodeError("Expecting value", "", 0), True),
        (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "unexpected end of data"), True),
        (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid continuation byte"), False),
        (untrusted(), False),
        (httpx.InvalidURL("no port"), False),
        (httpx.TooManyRedirects("eleven"), False),
        (status_error(302), False),
        (TypeError("a list, not a dict"), False),
        (KeyError("data"), False),
        (template.LoginError("refused"), False),
        (template.ConfigurationError("empty"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_unreadable_body_is_retried_unless_a_retry_would_get_the_same(error: Exception, retried: bool) -> None:
    assert template._is_retryable(error, idempotent=True) is retried
    assert template._is_retryable(error, idempotent=False) is False


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        (" 120 ", 120),
        ("1000000000000", 10**12),
        ("9" * 400, math.inf),
        ("Sun, 01 Mar 2026 12:01:30 GMT", 90),
        ("Sunday, 01-Mar-26 12:01:30 GMT", 90),
        ("Sun Mar  1 12:01:30 2026", 90),
        ("Sun, 01 Mar 2026 14:01:30 +0200", 90),
        ("Sun, 01 Mar 2026 12:01:30", 90),
        ("Sun, 01 Mar 2026 11:59:59 GMT", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Sun, 01 Mar 2026 12:01:30 +9999", 0),
        ("Sun, 99 Foo 2026 12:01:30 GMT", 0),
        ("inf", 0),
        ("nan", 0),
        ("-5", 0),
        ("1.5", 0),
        ("1e3", 0),
        ("١٢", 0),
        ("soon", 0),
        ("", 0),
        ("\x00", 0),
    ],
)
def test_retry_after_is_read_as_seconds_or_date_and_nonsense_counts_for_nothing(value: str, seconds: float) -> None:
    assert template._retry_after_seconds(value, NOW.timestamp()) == seconds


def http_date(when: datetime, zone: str) -> str:
    return f"{when:%a, %d %b %Y %H:%M:%S} {zone}"


headers = st.one_of(
    st.text(max_size=40),
    st.integers().map(str),
    st.floats().map(str),
    st.from_regex(r"[0-9]{1,400}", fullmatch=True),
    st.builds(http_date, st.datetimes(), st.sampled_from(["GMT", "UTC", "", "+0200", "-9999", "EST", "x"])),
)
waits = st.floats(min_value=0, max_value=1e308)


@settings(derandomize=True, deadline=None, max_examples=500)
@given(header=headers, failures=st.integers(1, 10**6), first=waits, longest=waits)
def test_the_delay_is_always_within_the_cap(header: str, failures: int, first: float, longest: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template, "WAIT_BEFORE_RETRY", first)
        patch.setattr(template, "MAX_WAIT_BEFORE_RETRY", longest)
        delay = template._retry_delay(failures, template._retry_after_seconds(header, NOW.timestamp()))
    assert 0 <= delay <= longest


def test_the_delay_doubles_with_jitter_up_to_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "WAIT_BEFORE_RETRY", 0.5)
    monkeypatch.setattr(template, "MAX_WAIT_BEFORE_RETRY", 60)
    for failures, full in enumerate((0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60), start=1):
        delays = [template._retry_delay(failures, 0) for _ in range(50)]
        assert full / 2 <= min(delays) < max(delays) <= full


# --------------------------------------------------------------------------------------- Against the simulated platform


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_outlasts_each_kind_of_fault(platform: Simulator, logged_in: Load, kind: str) -> None:
    module = logged_in(platform, ERROR_MAX_RETRY=1000)
    platform.control(faults={kind: 1}, slow=0.01)
    with module.main_thread_pool as executor:
        future = executor.submit(module.echo, 7)
        wait_until(lambda: platform.seen()["faults"][kind] >= 1)
        platform.control(faults={})
        assert future.result() == 7
    seen = platform.seen()
    assert seen["requests"]["echo"] == seen["faults"][kind] + (kind != "slow")


def answered(status: int, body: bytes = b"{}") -> dict[str, Any]:
    """Make this the response to every call."""
    return {"answer": {"echo": answer(status, body)}}


NO_BODY = "the response has no body, JSON was expected"
Failure = tuple[dict[str, Any], type[Exception], str, int]  # behaviour, error, its text, attempts
FAILURES: list[Failure] = [
    (answered(200, b"\n<!DOCTYPE html><title>Maintenance</title>"), json.JSONDecodeError, "a web page", ATTEMPTS),
    (answered(200, b'{"n": 1'), json.JSONDecodeError, "delimiter", ATTEMPTS),
    (answered(200, b'{"n": "\xc3'), UnicodeDecodeError, "UnicodeDecodeError", ATTEMPTS),
    (answered(200, '{"name": "Zoé"}'.encode("latin-1")), UnicodeDecodeError, "UTF-8", 1),
    (answered(200, b""), json.JSONDecodeError, NO_BODY, ATTEMPTS),
]
for status in (408, 425, 429, 500, 503, 529):
    FAILURES.append((answered(status), httpx.HTTPStatusError, f"HTTP {status}", ATTEMPTS))
for status in (301, 302, 304, 400, 403, 404, 451, 501):
    FAILURES.append((answered(status), httpx.HTTPStatusError, f"HTTP {status}", 1))
for status in (201, 202, 204, 205):
    FAILURES.append((answered(status, b""), ValueError, f"HTTP {status}: {NO_BODY}", 1))
for kind in ("reset", "reset-after", "truncated"):
    FAILURES.append(({"faults": {kind: 1}}, httpx.TransportError, "", ATTEMPTS))


@pytest.mark.parametrize(("behaviour", "error", "words", "attempts"), FAILURES)
def test_what_fails_is_raised_as_it_is_after_its_last_attempt(
    platform: Simulator, logged_in: Load, behaviour: dict[str, Any], error: type[Exception], words: str, attempts: int
) -> None:
    module = logged_in(platform, ERROR_MAX_RETRY=ATTEMPTS)
    platform.control(**behaviour)
    with pytest.raises(error) as caught:
        module.echo(1)
    assert words in module.describe(caught.value)
    assert platform.seen()["requests"]["echo"] == attempts


@pytest.mark.parametrize("status", [404, 503])
def test_a_script_can_read_why_it_was_refused(platform: Simulator, logged_in: Load, status: int) -> None:
    module = logged_in(platform, ERROR_MAX_RETRY=ATTEMPTS)
    platform.control(**answered(status, b'{"message": "why"}'))
    with pytest.raises(httpx.HTTPStatusError) as caught:
        module.echo(1)
    assert caught.value.response.json() == {"message": "why"}


def test_an_empty_answer_to_another_client_is_not_judged_by_earlier_calls(platform: Simulator, module: Any) -> None:
    platform.control(answer={"statistics": answer(201, b"{}")})
    assert module.get_statistics("any") == {}
    answers = iter([httpx.Response(200, content=b""), httpx.Response(200, content=b"7")])
    own = httpx.Client(transport=httpx.MockTransport(lambda request: next(answers)))

    @module.api_call_with_retry("RC")
    def by_another_client() -> object:
        return own.get("https://rc.hospital.test/").json()

    assert by_another_client() == 7


def test_json_of_another_kind_than_promised_is_raised_at_once(platform: Simulator, module: Any) -> None:
    platform.control(answer={"organizations": answer(200, b'{"error": "none"}')})
    with pytest.raises(TypeError, match=r"RC organizations: the response is a dict, not a list; .*check_platform\.py"):
        module.get_all_organizations()
    assert platform.seen()["requests"]["organizations"] == 1


@pytest.mark.parametrize("fault", [{"503": 1}, {"reset-after": 1}])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_decorated_functions_that_call_each_other_do_not_multiply_attempts(
    platform: Simulator, logged_in: Load, fault: dict[str, float], depth: int
) -> None:
    module = logged_in(platform, ERROR_MAX_RETRY=ATTEMPTS)
    call = module.echo
    for _ in range(depth):
        call = module.api_call_with_retry("RC")(call)
    platform.control(faults=fault)
    with pytest.raises(httpx.HTTPError):
        call(1)
    assert platform.seen()["requests"]["echo"] == ATTEMPTS


def test_a_retry_after_is_obeyed(platform: Simulator, logged_in: Load, caplog: pytest.LogCaptureFixture) -> None:
    module = logged_in(platform, ERROR_MAX_RETRY=2, WAIT_BEFORE_RETRY=0)
    platform.control(faults={"503-retry-after": 1})
    with caplog.at_level(logging.WARNING), pytest.raises(httpx.HTTPStatusError):
        module.echo(1)
    assert [record.getMessage() for record in caplog.records] == ["echo: HTTP 503, failure 1 of 2, next in 1.0 s"]


@pytest.mark.parametrize("kind", ["429", "503-retry-after"])
def test_a_retry_after_beyond_the_cap_is_an_error_that_says_so(platform: Simulator, logged_in: Load, kind: str) -> None:
    module = logged_in(platform, MAX_WAIT_BEFORE_RETRY=0.5)
    platform.control(faults={kind: 1})
    with pytest.raises(httpx.HTTPStatusError) as caught:
        module.echo(1)
    assert caught.value.response.status_code == int(kind[:3])
    assert platform.seen()["requests"]["echo"] == 1
    assert "Retry-After is 1 s, MAX_WAIT_BEFORE_RETRY 0.5 s" in module.describe(caught.value)


def test_a_retry_after_that_is_a_date_is_counted_from_the_clock_of_this_machine(
    platform: Simulator, logged_in: Load, caplog: pytest.LogCaptureFixture
) -> None:
    module = logged_in(platform, ERROR_MAX_RETRY=2, WAIT_BEFORE_RETRY=0, MAX_WAIT_BEFORE_RETRY=3000)
    later = http_date(datetime.now(timezone.utc) + timedelta(seconds=2000), "GMT")
    platform.control(answer={"echo": answer(503, retry_after=later)})
    with ThreadPoolExecutor(1) as outside, caplog.at_level(logging.WARNING):
        call = outside.submit(module.echo, 1)
        wait_until(lambda: call.done() or caplog.messages)
        module._stop.request(1, "the test is over")
        with pytest.raises(module.RunStopped):
            call.result()
    seconds = re.fullmatch(r"echo: HTTP 503, failure 1 of 2, next in (\d+)\.\d s", caplog.messages[0])
    assert seconds
    assert 1900 <= int(seconds[1]) <= 2000


def test_the_attempt_that_is_the_last_has_a_line_in_the_log_too(
    platform: Simulator, logged_in: Load, caplog: pytest.LogCaptureFixture
) -> None:
    module = logged_in(platform, ERROR_MAX_RETRY=ATTEMPTS)
    for status in (503, 404):
        platform.control(answer={"echo": answer(status)})
        with caplog.at_level(logging.INFO), pytest.raises(httpx.HTTPStatusError):
            module.echo(1)
    lines = [re.sub(r"\d+\.\d+ s", "T", line) for line in caplog.messages if line.startswith("echo: ")]
    assert lines == [
        f"echo: HTTP 503, failure 1 of {ATTEMPTS}, next in T",
        f"echo: HTTP 503, failure 2 of {ATTEMPTS}, next in T",
        f"echo: HTTP 503, failure 3 of {ATTEMPTS}, given up",
        f"echo: HTTP 404, failure 1 of {ATTEMPTS}, given up",
    ]


# ------------------------------------------------------------------------------------------ Calls that create something


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"429", "slow"}))
def test_a_creation_that_met_a_fault_is_not_repeated(platform: Simulator, module: Any, kind: str) -> None:
    platform.control(faults={kind: 1})
    with pytest.raises((httpx.HTTPError, json.JSONDecodeError)):
        module.create("one")
    seen = platform.seen()
    assert seen["requests"]["create"] == 1
    assert seen["creations"].get("one", 0) == (kind in ("reset-after", "truncated", "html", "bad-gzip"))


def test_a_creation_whose_answer_came_too_late_is_not_repeated(platform: Simulator, module: Any) -> None:
    module.API_TIMEOUT = 0.5
    platform.control(faults={"slow": 1}, slow=2)
    with pytest.raises(httpx.ReadTimeout):
        module.create("one")
    wait_until(lambda: platform.seen()["creations"])
    assert platform.seen()["creations"] == {"one": 1}
    assert platform.seen()["requests"]["create"] == 1


def test_a_creation_that_was_turned_away_is_repeated(platform: Simulator, logged_in: Load) -> None:
    module = logged_in(platform, ERROR_MAX_RETRY=1000)
    platform.control(faults={"429": 1}, expire="RC")
    with module.main_thread_pool as executor:
        future = executor.submit(module.create, "one")
        wait_until(lambda: platform.seen()["faults"]["429"] >= 1)
        platform.control(faults={})
        future.result()
    assert platform.seen()["creations"] == {"one": 1}
    assert platform.seen()["answers"]["401"] == 1


def test_a_creation_that_found_no_listener_is_repeated(platform: Simulator, logged_in: Load) -> None:
    module = logged_in(platform, ERROR_MAX_RETRY=ATTEMPTS)
    attempts, address = list[str](), f"http://127.0.0.1:{unused_port()}"

    @module.api_call_with_retry("RC", idempotent=False)
    def create() -> None:
        attempts.append(address)
        module.get_httpx_client().post(address)

    with pytest.raises(httpx.ConnectError):
        create()
    assert len(attempts) == ATTEMPTS


@pytest.mark.parametrize("status", [401, 404, 503])
def test_a_creation_is_not_repeated_when_a_later_call_fails(platform: Simulator, logged_in: Load, status: int) -> None:
    module = logged_in(platform, ERROR_MAX_RETRY=ATTEMPTS)
    platform.control(answer={"statistics": answer(status)})

    @module.api_call_with_retry("RC")
    def read_back() -> None:
        module.echo(1)  # the access token is good, whatever the next call says
        client, bearer = module.get_httpx_client(), f"Bearer {module.tokens['RC']['access_token']}"
        client.get(module.url_of("RC", "statistics"), headers={"Authorization": bearer}).raise_for_status()

    @module.api_call_with_retry("RC")
    def create_and_read_back() -> None:
        module.create("one")
        read_back()

    with pytest.raises(httpx.HTTPStatusError) as caught:
        create_and_read_back()
    assert caught.value.response.status_code == status
    assert platform.seen()["creations"] == {"one": 1}


def test_60_threads_never_create_twice_under_mixed_faults_and_expiries(platform: Simulator, logged_in: Load) -> None:
    module = logged_in(platform, ERROR_MAX_RETRY=1000, _LIFETIME_SECONDS=0)  # some tokens expire within a second
    module.API_TIMEOUT = 2
    platform.control(faults=dict.fromkeys(KINDS, 0.04), slow=3)
    results = {}
    for number, result in module.run_parallel(module.create, map(str, range(600)), return_exceptions=True):
        results[number] = result
        if len(results) % 150 == 0:
            platform.control(expire="RC")
    creations = platform.seen()["creations"]
    created = {number for number, result in results.items() if not isinstance(result, Exception)}
    assert len(results) == 600
    assert len(created) > 300
    assert all(creations[number] == 1 for number in created)
    assert max(creations.values()) == 1
