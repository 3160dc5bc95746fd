"""Habits of real platforms that need not make calls fail: slow tokens, cookies, rate limits by 403, empty responses."""

import logging
from typing import Any

import pytest
from helpers import Load, Run, answer, outage
from server import Simulator

# ----------------------------------------------------------------------------------- Tokens that are not known at first


SECONDS = 0.9  # a wrong clock, or servers that have to inform each other


@pytest.mark.parametrize("service", ["IAM", "RC"])
def test_login_and_first_call_wait_for_their_token_to_be_known(platform: Simulator, run: Run, service: str) -> None:
    platform.control(settling={service: SECONDS})
    done = run("print(len(get_all_organizations()))", _NEW_TOKEN_SECONDS=1)
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr


def test_60_threads_wait_for_their_first_token_to_be_known(platform: Simulator, logged_in: Load) -> None:
    platform.control(settling={"RC": SECONDS, "GDD": SECONDS})
    template = logged_in(platform)
    assert dict(template.run_parallel(template.echo, range(200))) == {number: number for number in range(200)}
    assert platform.seen()["logins"]["accepted"] <= 2


def test_60_threads_wait_for_a_renewed_token_to_be_known(platform: Simulator, module: Any) -> None:
    platform.control(settling={"IAM": SECONDS, "RC": SECONDS, "GDD": SECONDS}, expire="RC")
    assert dict(module.run_parallel(module.echo, range(200))) == {number: number for number in range(200)}
    assert platform.seen()["logins"]["accepted"] <= 2
    assert platform.seen()["refresh_tokens_reused"] == 0


# --------------------------------------------------------------------------------------------------------- 401 for good


def test_items_that_are_refused_for_good_cost_three_logins_at_most(platform: Simulator, module: Any) -> None:
    denied = range(0, 600, 10)
    platform.control(denied=[str(number) for number in denied], latency=0.02)
    results = dict(module.run_parallel(module.echo, range(600), return_exceptions=True))
    refused = {number: result for number, result in results.items() if isinstance(result, Exception)}
    assert sorted(refused) == list(denied)
    assert {result.response.status_code for result in refused.values()} == {401}
    assert all(results[number] == number for number in results.keys() - refused.keys())
    assert len(results) == 600
    assert platform.seen()["logins"]["accepted"] <= 1 + 3


def test_an_expired_token_is_renewed_while_items_are_refused_for_good(platform: Simulator, module: Any) -> None:
    platform.control(denied=["0"])
    for _ in range(3):
        with pytest.raises(module.httpx.HTTPStatusError, match="401"):
            module.echo(0)
        assert module.echo(1) == 1
        platform.control(expire="RC")
        assert module.echo(2) == 2


# -------------------------------------------------------------------------------------------------------------- Cookies


def test_no_cookie_is_ever_sent_back(platform: Simulator, logged_in: Load) -> None:
    platform.control(cookies=True)
    template = logged_in(platform)
    assert dict(template.run_parallel(template.echo, range(100))) == {number: number for number in range(100)}
    assert template.echo(1) == 1
    platform.control(expire="RC")
    assert template.echo(2) == 2
    assert platform.seen()["cookies"] == 0
    assert platform.seen()["logins"] == {"accepted": 1, "refused": 0}


def test_no_cookie_of_a_redirect_is_sent_back(platform: Simulator, module: Any) -> None:
    to = f"{platform.address('RC')}/api/echo/2"
    platform.control(answer={"echo": answer(302, b"", location=to, set_cookie="session=ended", times=1)})
    headers = {"Authorization": f"Bearer {module.tokens['RC']['access_token']}"}
    client = module.get_httpx_client()
    assert client.get(f"{platform.address('RC')}/api/echo/1", headers=headers, follow_redirects=True).json() == {"n": 2}
    assert platform.seen()["cookies"] == 0


# ----------------------------------------------------------------------------------------------------- Limits of a rate


@pytest.mark.parametrize("status", [403, 503])
def test_a_refusal_that_says_when_to_come_back_is_retried(platform: Simulator, module: Any, status: int) -> None:
    platform.control(answer={"echo": answer(status, retry_after="1", times=1)})
    assert module.echo(1) == 1
    assert platform.seen()["requests"]["echo"] == 2


@pytest.mark.parametrize("endpoint", ["login", "config_token"])
def test_a_login_that_is_to_come_back_later_comes_back(platform: Simulator, run: Run, endpoint: str) -> None:
    platform.control(answer={endpoint: answer(403, retry_after="1", times=1)})
    done = run("print(len(get_all_organizations()))")
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr


# -------------------------------------------------------------------------------------------------------- Empty answers


@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize("endpoint", ["login", "config_token", "echo"])
def test_an_empty_answer_where_json_was_expected_is_a_fault_that_passes_as_an_outage_is(
    platform: Simulator, logged_in: Load, endpoint: str, status: int
) -> None:
    platform.control(answer={endpoint: answer(status, b"", times=2)})
    template = logged_in(platform)
    assert template.echo(1) == 1
    assert platform.seen()["logins"] == {"accepted": 1, "refused": 0}


def test_an_empty_answer_for_all_of_an_outage_loses_no_call(
    platform: Simulator, logged_in: Load, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    with outage(platform, "empty"):
        template = logged_in(platform, ERROR_MAX_RETRY=1000, MAX_WAIT_BEFORE_RETRY=0.2)
    with outage(platform, "empty"):
        assert dict(template.run_parallel(template.echo, range(200))) == {number: number for number in range(200)}


def test_a_function_may_take_an_empty_answer_for_what_it_is(platform: Simulator, module: Any) -> None:
    platform.control(answer={"echo": answer(200, b"")})

    @module.api_call_with_retry("RC")
    def text_of_echo() -> Any:
        headers = {"Authorization": f"Bearer {module.tokens['RC']['access_token']}"}
        return module.get_httpx_client().get(f"{platform.address('RC')}/api/echo/1", headers=headers).text

    assert text_of_echo() == ""
    assert platform.seen()["requests"]["echo"] == 1
