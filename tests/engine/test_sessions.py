"""Sessions that end, in every way, with 60 threads: renewed once, opened again once, or given up with one error."""

import json
import logging
import re
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import OWN_CALLS, Load, Run, Script, Start, answer, needs_posix, run_script, summary_of, wait_until
from hypothesis import HealthCheck, assume, example, given, settings, strategies as st
from server import Simulator

SIXTY = {"EB_THREADS": "60"}
LOGGED_IN_ONCE = {"accepted": 1, "refused": 0}
LOGGED_IN_AGAIN = {"accepted": 2, "refused": 0}

# One call of RC and one of GDD for each number.
BOTH_SERVICES = """
def both(number):
    get_request_by_tube(tubes[number % len(tubes)])
    return echo(number)

patients = [each["patientId"] for each in get_all_inclusions(get_all_organizations()[0]["id"])]
samples = ["visits", "*", "samples", "*", "tubeId"]
tubes = [tube for patient in patients for tube in get_nested_value(get_record_by_patient(patient), samples)]
"""
ENDLESS = """
for number, _ in run_parallel(echo, itertools.count()):
    print(number, flush=True)
"""


def call_60_at_a_time(module: Any, call: Callable[[int], int], disturb: Callable[[], None]) -> None:
    """Make 600 calls, disturb the platform halfway, and check that no call was lost."""
    numbers = []
    for number, result in module.run_parallel(call, range(600)):
        assert result == number
        numbers.append(number)
        if len(numbers) == 300:
            disturb()
    assert sorted(numbers) == list(range(600))


def run_and_disturb(path: Path, platform: Simulator, **settings: object) -> Any:
    """Run a script with 60 threads, and change the platform after it has made many calls."""
    with ThreadPoolExecutor(1) as outside:
        running = outside.submit(run_script, path, platform, **SIXTY)
        wait_until(lambda: running.done() or platform.seen()["requests"]["echo"] > 200)
        platform.control(**settings)
        return running.result()


# ----------------------------------------------------------------------------------------------------- Expired, renewed


def test_60_threads_renew_each_expired_token_once_and_lose_no_call(simulator: Start, run: Run) -> None:
    platform = simulator("--token-lifetime", "1", "--latency", "0.05")
    count = "print(sum(number == result for number, result in run_parallel(both, range(1200))))"
    finished = run(OWN_CALLS + BOTH_SERVICES + count, on=platform, MAX_THREADS=60, **SIXTY)
    assert (finished.returncode, finished.stdout) == (0, "1200\n")
    seen = platform.seen()
    assert seen["expiries"] >= 4, "the run was too short to tell anything"
    assert seen["refreshes"] == {"accepted": seen["expiries"], "refused": 0}
    assert seen["refresh_tokens_reused"] == 0
    assert seen["logins"] == LOGGED_IN_ONCE
    assert sum(row["renewals"] for row in summary_of(finished.log).values()) == seen["expiries"]


def test_all_tokens_expire_at_once_in_60_threads(platform: Simulator, module: Any) -> None:
    exec(BOTH_SERVICES, vars(module))
    call_60_at_a_time(module, module.both, lambda: platform.control(expire="all"))
    seen = platform.seen()
    assert seen["refreshes"] == {"accepted": 2, "refused": 0}
    assert seen["configurations"] == {"accepted": 2, "refused": 0}
    assert seen["logins"] == LOGGED_IN_ONCE


def test_a_token_may_expire_repeatedly_while_a_service_says_only_404(platform: Simulator, module: Any) -> None:
    for _ in range(5):
        platform.control(expire="GDD")
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            module.get_request_by_tube("no such tube")
    assert platform.seen()["refreshes"] == {"accepted": 5, "refused": 0}
    assert platform.seen()["logins"] == LOGGED_IN_ONCE


# --------------------------------------------------------------------------------------------------- Ended, opened anew


@pytest.mark.parametrize(
    ("disturbance", "timeout"),
    [
        pytest.param({"revoke_refresh": True}, 60, id="refresh tokens revoked"),
        pytest.param({"revoke_refresh": True, "expire": "IAM"}, 60, id="IAM token expired as well"),
        pytest.param({"restart": True}, 60, id="platform restarted"),
        pytest.param({"slow_refresh": 10, "expire": "RC"}, 3, id="refresh answered too late"),
    ],
)
def test_60_threads_log_in_once(
    platform: Simulator, logged_in: Load, disturbance: dict[str, Any], timeout: float
) -> None:
    module = logged_in(platform, API_TIMEOUT=timeout)
    exec(BOTH_SERVICES, vars(module))
    call_60_at_a_time(module, module.both, lambda: platform.control(**disturbance))
    seen = platform.seen()
    assert seen["logins"] == LOGGED_IN_AGAIN
    assert seen["configurations"] == {"accepted": 4, "refused": 0}
    assert seen["requests"]["refresh_token"] == 1
    assert seen["refresh_tokens_reused"] == 0


def test_60_threads_log_in_once_when_the_renewed_token_is_refused_too(platform: Simulator, module: Any) -> None:
    call_60_at_a_time(module, module.echo, lambda: platform.control(refuse_access="RC"))
    assert platform.seen()["refreshes"]["accepted"] >= 1
    assert platform.seen()["logins"] == LOGGED_IN_AGAIN


@pytest.mark.parametrize("status", [400, 401, 408, 429, 500, 503])
def test_a_refresh_that_failed_is_never_sent_twice(platform: Simulator, module: Any, status: int) -> None:
    platform.control(expire="RC", answer={"refresh_token": answer(status)})
    assert module.echo(1) == 1
    assert platform.seen()["requests"]["refresh_token"] == 1
    assert platform.seen()["logins"] == LOGGED_IN_AGAIN


# --------------------------------------------------------------------------------------------------- Refused, one error


def test_a_refused_login_is_said_in_one_line_and_never_repeated(platform: Simulator, run: Run) -> None:
    finished = run('print("never here")', WAIT_BEFORE_RETRY=0.01, EB_PASSWORD="forgotten")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert re.fullmatch(
        r"my_script: IAM login: refused with HTTP 401 for user \S+: check EB_USER_NAME and EB_PASSWORD; .*\n",
        finished.stderr,
    )
    assert platform.seen()["logins"] == {"accepted": 0, "refused": 1}
    assert platform.seen()["requests"]["config_token"] == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_service_that_refuses_the_user_is_named_and_asked_once(platform: Simulator, run: Run, status: int) -> None:
    platform.control(answer={"config_token": answer(status)})
    finished = run('print("never here")', WAIT_BEFORE_RETRY=0.01)
    assert (finished.returncode, finished.stdout) == (1, "")
    closing = finished.stderr.splitlines()[-1]
    assert re.match(rf"my_script: RC config_token: refused with HTTP {status}\b", closing)
    assert "EB_PASSWORD" not in closing
    # A new access token of IAM may not be known everywhere yet, so a 401 is retried for some seconds.
    assert (platform.seen()["requests"]["config_token"] > 1) == (status == 401)
    assert platform.seen()["logins"] == LOGGED_IN_ONCE


def test_a_password_changed_in_mid_run_stops_60_threads_by_one_error(platform: Simulator, script: Script) -> None:
    todo = """
import atexit
atexit.register(print, "every thread ended by itself")

@api_call_with_retry("RC")
def unlucky():
    raise httpx.ReadTimeout("no answer")

subtasks_thread_pool.submit(unlucky)  # in a wait of 600 s when the run is stopped
"""
    times = {"WAIT_BEFORE_RETRY": 600, "MAX_WAIT_BEFORE_RETRY": 600, "_GRACE_SECONDS": 30}
    path = script(todo + OWN_CALLS + ENDLESS, MAX_THREADS=60, **times)
    finished = run_and_disturb(path, platform, password="changed", restart=True)
    *numbers, last_word = finished.stdout.splitlines()
    assert (finished.returncode, last_word) == (1, "every thread ended by itself")
    assert re.fullmatch(r"my_script: IAM login: refused with HTTP 401 for user \S+ .*\n", finished.stderr)
    assert platform.seen()["logins"] == {"accepted": 1, "refused": 1}
    assert platform.seen()["refreshes"] == {"accepted": 0, "refused": 1}
    assert len(numbers) == len(set(numbers)) >= 60


IN_VAIN = "HTTP 401: RC refuses what the call asks for, with new tokens, too"
REFUSED = re.escape(IN_VAIN)


def test_a_call_that_never_accepts_a_token_is_one_error_after_one_new_login(platform: Simulator, run: Run) -> None:
    platform.control(answer={"echo": answer(401)})
    finished = run(OWN_CALLS + "echo(1)")
    assert finished.returncode == 1
    assert re.fullmatch(rf"my_script: failed: echo: {REFUSED} \(my_script.py line \d+\); .*\n", finished.stderr)
    assert platform.seen()["requests"]["echo"] == 4, "after a refresh, a login and a wait"
    assert platform.seen()["logins"] == LOGGED_IN_AGAIN


def test_a_script_that_goes_on_after_failures_makes_no_storm_of_logins(platform: Simulator, module: Any) -> None:
    platform.control(answer={"echo": answer(401)})
    outcomes = dict(module.run_parallel(module.echo, range(600), return_exceptions=True))
    assert {str(outcome) for outcome in outcomes.values()} == {IN_VAIN}
    assert platform.seen()["logins"] == LOGGED_IN_AGAIN
    assert platform.seen()["requests"]["echo"] <= 2 * 600 + 2 * 60
    platform.control(answer={"echo": None})
    assert module.echo(1) == 1


def test_a_token_may_expire_while_all_that_a_service_says_is_401(platform: Simulator, module: Any) -> None:
    platform.control(answer={"record_by_patient": answer(401)})
    with pytest.raises(httpx.HTTPStatusError, match=REFUSED):
        module.get_record_by_patient("forbidden")
    platform.control(expire="RC")
    module._sessions.received["RC"] -= module._LIFETIME_SECONDS + 1  # that long ago
    assert module.echo(1) == 1
    assert platform.seen()["logins"] == LOGGED_IN_AGAIN


def test_what_is_no_answer_does_not_count_as_an_accepted_token(platform: Simulator, module: Any) -> None:
    platform.control(answer={"record_by_patient": answer(401)})

    @module.api_call_with_retry("RC")
    def fail() -> None:
        raise LookupError

    for _ in range(5):
        with pytest.raises(httpx.HTTPStatusError, match=REFUSED):
            module.get_record_by_patient("forbidden")
        with pytest.raises(LookupError):
            fail()
    assert platform.seen()["logins"] == LOGGED_IN_AGAIN


def test_a_login_because_of_one_service_leaves_another_its_own(platform: Simulator, module: Any) -> None:
    tube = module.get_request_by_tube
    platform.control(answer={"record_by_patient": answer(401)})
    with pytest.raises(httpx.HTTPStatusError, match=REFUSED):
        module.get_record_by_patient("forbidden")
    platform.control(refuse_access="GDD")
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        tube("no such tube")
    assert platform.seen()["logins"] == {"accepted": 3, "refused": 0}


def test_a_second_login_by_hand_is_told_of_a_web_page_at_once(platform: Simulator, module: Any) -> None:
    platform.control(answer={"login": answer(403, b"<html>", "text/html")})
    with pytest.raises(module.LoginError, match="answered by a web page"):
        module.login()
    assert platform.seen()["requests"]["login"] == 2


def test_a_token_that_a_function_has_set_for_all_calls_is_not_sent_at_login(platform: Simulator, module: Any) -> None:
    client, sent = module.get_httpx_client(), {}
    client.event_hooks["request"].append(lambda call: sent.update({call.url.path: call.headers.get("Authorization")}))
    client.headers["Authorization"] = f"Bearer {module.tokens['RC']['access_token']}"
    module.login()
    assert sent["/iam/api/auth/ziwig-pro/login"] is None
    assert sent["/rc/api/auth/config-token"] == f"Bearer {module.tokens['IAM']['access_token']}"


def test_a_login_as_somebody_else_that_fails_leaves_nobodys_session(platform: Simulator, module: Any) -> None:
    platform.control(answer={"config_token": answer(403)})
    with pytest.raises(module.LoginError, match="may not use RC"):
        module.login()
    with pytest.raises(module.ConfigurationError, match=r"call login\(\) first"):
        module.echo(1)


@needs_posix(reason="a POSIX signal to a thread")
def test_an_interrupted_refresh_is_not_sent_again(platform: Simulator, module: Any) -> None:
    platform.control(expire="RC", slow_refresh=60)

    def interrupt() -> None:
        wait_until(lambda: platform.seen()["refreshes"]["accepted"])
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with ThreadPoolExecutor(1) as outside:
        outside.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):  # as in a notebook
            module.echo(1)
    platform.control(slow_refresh=0)
    assert module.echo(1) == 1
    assert platform.seen()["refreshes"] == {"accepted": 1, "refused": 0}
    assert platform.seen()["logins"] == LOGGED_IN_AGAIN


def test_a_new_login_whose_token_is_refused_ends_the_run_without_a_storm(platform: Simulator, script: Script) -> None:
    useless = answer(200, json.dumps({"access_token": "useless", "refresh_token": "useless"}).encode())
    path = script(OWN_CALLS + ENDLESS, MAX_THREADS=60)
    finished = run_and_disturb(path, platform, answer={"config_token": useless}, revoke_refresh=True)
    assert finished.returncode == 1
    assert re.search(
        rf"^my_script: (failed: echo: )?{REFUSED}( \(my_script.py line \d+\))?; .*\n\Z", finished.stderr, re.MULTILINE
    )
    assert 2 <= platform.seen()["logins"]["accepted"] <= 5


def test_an_outage_that_outlasts_the_attempts_is_one_error_that_names_the_call(platform: Simulator, run: Run) -> None:
    platform.control(outage=60)
    finished = run('print("never here")', ERROR_MAX_RETRY=3, WAIT_BEFORE_RETRY=0.01)
    assert finished.returncode == 1
    assert re.match(r"my_script: IAM login: HTTP 503; ", finished.stderr.splitlines()[-1])
    assert platform.seen()["requests"]["login"] == 3


def test_a_401_for_one_resource_is_raised_while_60_threads_go_on(platform: Simulator, module: Any) -> None:
    platform.control(answer={"record_by_patient": answer(401)})

    def call(number: int) -> Any:
        return module.get_record_by_patient("forbidden") if number == 100 else module.echo(number)

    results = dict(module.run_parallel(call, range(600), return_exceptions=True))
    refused = results.pop(100)
    assert isinstance(refused, httpx.HTTPStatusError)
    assert refused.response.status_code == 401
    assert results == {number: number for number in range(600) if number != 100}
    assert platform.seen()["requests"]["record_by_patient"] == 4
    assert platform.seen()["logins"] == LOGGED_IN_AGAIN


def test_a_401_for_one_resource_is_raised_to_a_script_without_threads(platform: Simulator, module: Any) -> None:
    module.echo(0)
    platform.control(answer={"record_by_patient": answer(401)})
    for number in range(5):
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            module.get_record_by_patient("forbidden")
        assert module.echo(number) == number
    assert platform.seen()["requests"]["record_by_patient"] == 4 + 4 * 3
    assert platform.seen()["logins"] == LOGGED_IN_AGAIN


@pytest.mark.parametrize("depth", [1, 2])
def test_functions_that_call_each_other_do_not_multiply_renewals(platform: Simulator, module: Any, depth: int) -> None:
    platform.control(answer={"statistics": answer(401)})

    def statistics() -> None:
        module.echo(1)  # accepted: the token is good
        bearer = f"Bearer {module.tokens['RC']['access_token']}"
        url = module.url_of("RC", "statistics")
        module.get_httpx_client().get(url, headers={"Authorization": bearer}).raise_for_status()

    for _ in range(depth):
        statistics = module.api_call_with_retry("RC")(statistics)
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        statistics()
    assert 1 < platform.seen()["requests"]["statistics"] <= 10


def test_a_call_of_iam_that_is_always_refused_is_raised_after_few_logins(platform: Simulator, module: Any) -> None:
    platform.control(restart=True)
    module.echo(1)  # a new login: the token of IAM is accepted

    @module.api_call_with_retry("IAM")
    def call_what_iam_always_refuses() -> None:
        bearer = f"Bearer {module.tokens['IAM']['access_token']}"
        url = module.url_of("IAM", "login")
        module.get_httpx_client().post(url, headers={"Authorization": bearer}, json={}).raise_for_status()

    with pytest.raises(httpx.HTTPStatusError, match="401"):
        call_what_iam_always_refuses()
    assert 1 < platform.seen()["logins"]["accepted"] <= 10


def test_one_may_log_in_after_a_run_stopped(platform: Simulator, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    platform.control(password="changed", restart=True)
    for _ in range(2):
        with pytest.raises(module.RunStopped, match="IAM login: refused with HTTP 401"):
            module.echo(1)
    assert platform.seen()["logins"] == {"accepted": 1, "refused": 1}
    monkeypatch.setenv("EB_PASSWORD", "changed")
    module.login()
    assert module.echo(1) == 1


def test_refusals_before_another_login_do_not_count_after_it(platform: Simulator, module: Any) -> None:
    platform.control(answer={"echo": answer(401)})
    with pytest.raises(httpx.HTTPStatusError, match=REFUSED):
        module.echo(1)
    platform.control(answer={"echo": None})
    module.login()
    platform.control(expire="RC")
    assert module.echo(1) == 1
    assert platform.seen()["refreshes"] == {"accepted": 2, "refused": 0}


# ---------------------------------------------------------------------------------------------------- Malformed answers

HTML = b"<!DOCTYPE html><title>Maintenance</title><p>Op\xe9ration en cours"
usable = st.from_regex(r"[!-~]{1,20}", fullmatch=True)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
session_keys = ("userId", "access_token", "refresh_token")
sessions = st.fixed_dictionaries({}, optional=dict.fromkeys(session_keys, usable | values))
bodies = st.one_of(
    st.binary(max_size=50),
    st.tuples(sessions | values, st.sampled_from(["utf-8", "utf-16", "latin-1"])).map(
        lambda drawn: json.dumps(drawn[0], ensure_ascii=drawn[1] == "latin-1").encode(drawn[1], "replace")
    ),
    sessions.map(lambda session: json.dumps([session]).encode()),
    sessions.map(lambda session: json.dumps(session).encode()[:-1]),
)
charsets = st.sampled_from(["application/json", "application/json; charset=utf-16", "text/html; charset=none", ""])


def is_session(body: bytes, endpoint: str) -> bool:
    """Whether it contains what is used: an access token, and for the login a user id, which may be a number."""
    try:
        session = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(session, dict) or not re.fullmatch("[!-~]+", str(session.get("access_token") or "")):
        return False
    user = session.get("userId")
    has_user = user != "" and isinstance(user, (str, int)) and not isinstance(user, bool)
    return isinstance(session["access_token"], str) and (has_user or endpoint != "login")


def malformed(test: Any) -> Any:
    """Give a test bodies, most of which contain no session, and values that occur in practice."""
    for body in (b"", HTML, HTML * 80_000, b"null", b"[" * 100_000, b'{"access_token": 1' + b"0" * 5000 + b"}"):
        test = example(body=body, content_type="text/html", status=200)(test)
    for body in (b'{"userId": "a"}', b'{"access_token": "a"}', b'{"access_token": "a", "userId": true}'):
        test = example(body=body, content_type="application/json", status=200)(test)
    test = given(body=bodies, content_type=charsets, status=st.sampled_from([200, 201]))(test)
    checks = [HealthCheck.function_scoped_fixture]
    return settings(derandomize=True, deadline=None, max_examples=100, suppress_health_check=checks)(test)


@pytest.fixture
def hurried(platform: Simulator, logged_in: Load) -> Any:
    return logged_in(platform, ERROR_MAX_RETRY=2, WAIT_BEFORE_RETRY=0)


@pytest.mark.parametrize(("app", "endpoint"), [("IAM", "login"), ("RC", "config_token")])
@malformed
def test_a_malformed_answer_that_should_open_a_session_is_one_line(
    platform: Simulator, hurried: Any, app: str, endpoint: str, body: bytes, content_type: str, status: int
) -> None:
    assume(not is_session(body, endpoint))
    platform.control(answer={endpoint: answer(status, body, content_type)})
    with pytest.raises(hurried.LoginError, match=rf"\A{app} {endpoint}: [^\n]{{5,300}}\Z"):
        hurried.login()


@malformed
def test_a_malformed_answer_to_a_refresh_is_one_warning_and_another_login(
    platform: Simulator, hurried: Any, caplog: pytest.LogCaptureFixture, body: bytes, content_type: str, status: int
) -> None:
    assume(not is_session(body, "refresh_token"))
    platform.control(expire="RC", reset_counts=True, answer={"refresh_token": answer(status, body, content_type)})
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert hurried.echo(7) == 7
    assert re.fullmatch(r"RC refresh_token: [^\n]{5,300}; logging in again", caplog.messages[0])
    assert len(caplog.messages) == 1
    assert platform.seen()["logins"] == LOGGED_IN_ONCE


# ------------------------------------------------------------------------------------------- Other habits of a platform


def test_60_threads_go_on_with_a_renewal_that_hands_out_the_same_string(platform: Simulator, logged_in: Load) -> None:
    platform.control(renewals={"same_access": True})
    module = logged_in(platform)
    before = module.tokens["RC"]["access_token"]
    call_60_at_a_time(module, module.echo, lambda: platform.control(expire="RC"))
    assert module.tokens["RC"]["access_token"] == before
    assert platform.seen()["refreshes"] == {"accepted": 1, "refused": 0}
    assert platform.seen()["logins"] == LOGGED_IN_ONCE


def test_a_refresh_answer_without_refresh_token_leaves_the_old_one_in_use(platform: Simulator, logged_in: Load) -> None:
    platform.control(renewals={"rotates": False})
    module = logged_in(platform)
    before = module.tokens["RC"]["refresh_token"]
    platform.control(omit=["refresh_token"])
    for _ in range(3):
        platform.control(expire="RC")
        assert module.echo(1) == 1
    assert module.tokens["RC"]["refresh_token"] == before
    assert platform.seen()["refreshes"] == {"accepted": 3, "refused": 0}
    assert platform.seen()["logins"] == LOGGED_IN_ONCE


def test_a_platform_without_refresh_tokens_is_logged_in_to_again(platform: Simulator, logged_in: Load) -> None:
    platform.control(omit=["refresh_token"])
    module = logged_in(platform)
    call_60_at_a_time(module, module.echo, lambda: platform.control(expire="RC"))
    assert platform.seen()["requests"]["refresh_token"] == 0
    assert platform.seen()["logins"] == LOGGED_IN_AGAIN


def test_a_user_may_be_a_number(platform: Simulator, logged_in: Load) -> None:
    platform.control(user_id=4711)
    module = logged_in(platform)
    assert module.echo(1) == 1
    assert platform.seen()["configurations"] == {"accepted": 2, "refused": 0}


def test_a_service_that_is_down_for_longer_than_api_timeout_and_then_refuses_is_one_error_after_one_login(
    platform: Simulator, logged_in: Load
) -> None:
    patience = {"API_TIMEOUT": 0.5, "_LIFETIME_SECONDS": 0.5}
    module = logged_in(platform, ERROR_MAX_RETRY=1000, MAX_WAIT_BEFORE_RETRY=0.05, **patience)
    platform.control(revoke_refresh=True, answer={"config_token": answer(503)})
    with ThreadPoolExecutor(1) as outside:
        call = outside.submit(module.echo, 1)
        before = platform.seen()["requests"]["config_token"]
        wait_until(lambda: platform.seen()["requests"]["config_token"] >= before + 20)  # 0.05 s apart, or half of it
        platform.control(answer={"config_token": answer(403)})
        wait_until(lambda: call.done() or platform.seen()["logins"]["accepted"] > 5)
        module._stop.request(1, "the test is over")
        with pytest.raises(module.RunStopped, match="RC config_token: refused with HTTP 403"):
            call.result()
    assert platform.seen()["logins"] == LOGGED_IN_AGAIN


def test_a_session_lost_before_its_new_tokens_worked_is_opened_again(platform: Simulator, logged_in: Load) -> None:
    module = logged_in(platform, ERROR_MAX_RETRY=1000, MAX_WAIT_BEFORE_RETRY=0.05, _NEW_TOKEN_SECONDS=0.01)
    platform.control(restart=True)
    assert module.echo(1) == 1, "by a new login"
    platform.control(expire="RC", slow_refresh=0.5, reset_counts=True)
    with ThreadPoolExecutor(1) as outside:
        call = outside.submit(module.echo, 2)
        wait_until(lambda: platform.seen()["requests"]["refresh_token"] == 1)
        platform.control(faults={"reset": 1})  # it affects the call that follows the refresh
        wait_until(lambda: platform.seen()["faults"]["reset"] >= 5)  # the token is no longer new
        platform.control(faults={}, restart=True)
        assert call.result() == 2
    assert platform.seen()["logins"] == LOGGED_IN_ONCE


def test_a_token_that_runs_out_unused_after_a_new_login_is_renewed(platform: Simulator, module: Any) -> None:
    """The new login was RC's doing, and gave GDD tokens, too; its calls are as good as any."""
    exec(BOTH_SERVICES, vars(module))
    platform.control(revoke_refresh=True)
    assert module.echo(1) == 1
    platform.control(expire="GDD")
    assert module.both(2) == 2


def test_a_second_login_leaves_a_call_that_waits_for_its_retry_alone(platform: Simulator, logged_in: Load) -> None:
    template = logged_in(platform, WAIT_BEFORE_RETRY=0.5)
    platform.control(answer={"echo": {**answer(503), "times": 1}})
    waiting = template.main_thread_pool.submit(template.echo, 7)
    while not template._stop.waiting:
        assert not waiting.done()
    template.login()
    assert waiting.result() == 7
