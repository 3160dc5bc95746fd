"""Messages about errors say what went wrong, where, and what to do."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from helpers import Ran, Run, Script, Start, answer, environment_for, needs_posix, on_terminal
from server import Simulator

on_posix = needs_posix(reason="pseudo-terminals are POSIX")
FIRST_FUNCTION = '\n@api_call_with_retry("RC")\ndef get_all_organizations'
ONCE = {"ERROR_MAX_RETRY": 1}
CREDENTIALS = r"EB_USER_NAME|EB_PASSWORD"
HTML = b"<!DOCTYPE html><html><title>Portal</title><p>Please log in to the network</html>"


def web_page(status: int) -> dict[str, Any]:
    """A response that a browser would show."""
    return answer(status, HTML, "text/html; charset=utf-8")


def closing_line(done: Ran) -> str:
    return done.stderr.splitlines()[-1]


# -------------------------------------------------------------------------------------------- what the platform refuses

WHY = "limit must not be greater than 100"
LONG_FORM = """
def refused():
    client = get_httpx_client()
    headers = {"Authorization": f"Bearer {tokens['RC']['access_token']}"}
    response = client.get(url_of("RC", "statistics"), headers=headers)
    response.raise_for_status()

api_call_with_retry("RC")(refused)()
"""
CAUGHT = """
try:
    get_statistics("any")
except httpx.HTTPStatusError as error:
    sys.exit(describe(error))
"""


@pytest.mark.parametrize(
    ("endpoint", "status", "todo"),
    [
        *(("statistics", status, "get_statistics('any')") for status in (400, 404, 500)),
        ("statistics", 400, LONG_FORM),
        ("statistics", 400, CAUGHT),
        ("statistics", 400, "list(run_parallel(get_statistics, ['any'], return_exceptions=True))\nsys.exit(1)"),
        ("config_token", 400, "print('never here')"),
    ],
    ids=["400", "404", "500", "a call in its long form", "caught by the script", "in the place of a result", "a login"],
)
def test_why_a_call_was_refused_stands_in_the_log_and_nowhere_else_whoever_hears_of_it(
    platform: Simulator, run: Run, endpoint: str, status: int, todo: str
) -> None:
    platform.control(answer={endpoint: answer(status, json.dumps({"message": [WHY]}).encode())})
    done = run(todo, **ONCE)
    assert done.returncode == 1, done.stderr
    assert f"HTTP {status}" in closing_line(done) or "return_exceptions" in todo
    assert WHY in done.log
    assert WHY not in done.stdout + done.stderr


def test_of_a_long_refusal_500_characters_stand_in_the_log_without_line_breaks(platform: Simulator, run: Run) -> None:
    numbers = "".join(f"<{number}>\r\n" for number in range(1000))
    platform.control(answer={"statistics": answer(400, numbers.encode(), "text/plain")})
    log = run("get_statistics('any')").log
    seen = [int(number) for number in re.findall(r"<(\d+)>", log)]
    assert max(seen) == len(re.findall(r"<\d+>", numbers[:500])) - 1
    assert all(re.match(r"\d{4}-\d\d-\d\d |    ", line) for line in log.splitlines())


def test_a_secret_in_a_refusal_is_masked(platform: Simulator, run: Run) -> None:
    text = f"password {platform.options.password} and Authorization: Token abcdefgh are refused"
    platform.control(answer={"statistics": answer(400, text.encode(), "text/plain")})
    log = run("get_statistics('any')").log
    assert "password *** and" in log
    assert "abcdefgh" not in log


def test_a_refusal_whose_body_was_not_read_is_told_as_any_other(platform: Simulator, run: Run) -> None:
    platform.control(answer={"statistics": answer(400, b"{}")})
    done = run("""
@api_call_with_retry("RC")
def download():
    headers = {"Authorization": f"Bearer {tokens['RC']['access_token']}"}
    with get_httpx_client().stream("GET", url_of("RC", "statistics"), headers=headers) as response:
        response.raise_for_status()

download()
""")
    assert done.returncode == 1
    assert "my_script: failed: download: HTTP 400" in closing_line(done)


# ------------------------------------------------------------------------------------------------------------ redirects

QUERY = "?back=patient-4711"
LOGIN = "me:let-me-in@"


def host_of(where: str, platform: Simulator) -> str:
    """What the terminal shows of a redirect: no path, because it may contain an id."""
    return "https?://" + re.escape(httpx.URL(platform.url).join(where).host)


@pytest.mark.parametrize(
    ("status", "where"),
    [
        (301, "/rc/api/moved/"),
        (302, f"https://{LOGIN}sso.hospital.test/login"),
        (307, "/login"),
        (308, "/rc/api/moved/"),
    ],
)
def test_a_redirect_says_to_which_host_it_leads_and_in_the_log_where_without_query_and_login(
    platform: Simulator, run: Run, status: int, where: str
) -> None:
    platform.control(answer={"statistics": answer(status, b"", location=where + QUERY)})
    done = run("get_statistics('any')")
    assert done.returncode == 1
    assert re.search(rf"HTTP {status}.*\bredirects to {host_of(where, platform)}[; ]", closing_line(done)), done.stderr
    assert re.search(rf"\S*{re.escape(where.replace(LOGIN, '***@'))}(?![/\w])", done.log)
    assert not re.search("4711|let-me-in", done.stderr + done.log)


@pytest.mark.parametrize("endpoint", ["login", "config_token"])
@pytest.mark.parametrize("where", ["https://portal.hospital.test/hello", "/iam/api/auth/ziwig-pro/login/"])
def test_a_redirect_at_the_login_says_where_it_leads_and_blames_no_credentials(
    platform: Simulator, run: Run, endpoint: str, where: str
) -> None:
    platform.control(answer={endpoint: answer(302, b"", location=where + QUERY)})
    done = run("print('never here')", **ONCE)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(rf"\bredirects to {host_of(where, platform)} at ", closing_line(done)), done.stderr
    assert not re.search(CREDENTIALS, done.stderr)
    assert "4711" not in done.stderr + done.log


def test_a_redirect_to_the_same_path_with_a_slash_shows_no_id(platform: Simulator, run: Run) -> None:
    platform.control(answer={"request_by_tube": answer(308, b"", location="/gdd/api/requests/by-tube/NEMO/")})
    done = run("get_request_by_tube('NEMO')")
    assert done.returncode == 1
    assert "NEMO" not in done.stderr


# ------------------------------------------------------------------------------------------------------ who is to blame


@pytest.mark.parametrize("status", [200, 403])
@pytest.mark.parametrize("endpoint", ["login", "config_token"])
def test_a_web_page_for_a_login_is_called_one(platform: Simulator, run: Run, endpoint: str, status: int) -> None:
    platform.control(answer={endpoint: web_page(status)})
    done = run("print('never here')", ERROR_MAX_RETRY=2, WAIT_BEFORE_RETRY=0.01)
    assert (done.returncode, done.stdout) == (1, "")
    assert "answered by a web page" in closing_line(done), done.stderr
    assert not re.search(CREDENTIALS, done.stderr)
    assert "Please log in" not in done.stderr


RENEW = """
control(**PAGE, revoke_refresh=True)
print(len(get_all_organizations()))
"""


@pytest.mark.parametrize("status", [200, 403])
@pytest.mark.parametrize("endpoint", ["login", "config_token"])
def test_a_web_page_at_a_renewal_is_waited_out(platform: Simulator, run: Run, endpoint: str, status: int) -> None:
    six_times = {endpoint: {**web_page(status), "times": 6}}
    page = f"PAGE = {{'answer': {six_times}, 'reset_counts': True}}\n"
    done = run(page + RENEW, WAIT_BEFORE_RETRY=0.01, MAX_WAIT_BEFORE_RETRY=0.05)
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr
    assert platform.seen()["requests"][endpoint] > 6


def test_a_web_page_at_a_renewal_that_stays_ends_the_run_and_is_called_one(platform: Simulator, run: Run) -> None:
    page = f"PAGE = {{'answer': {{'login': {web_page(403)!r}}}, 'reset_counts': True}}\n"
    done = run(page + RENEW, ERROR_MAX_RETRY=3, WAIT_BEFORE_RETRY=0.01)
    assert (done.returncode, done.stdout) == (1, "")
    assert "answered by a web page" in closing_line(done), done.stderr
    assert platform.seen()["requests"]["login"] == 3
    assert not re.search(CREDENTIALS, done.stderr)


@pytest.mark.parametrize("status", [400, 403, 404])
def test_no_other_refusal_at_the_login_blames_the_credentials(platform: Simulator, run: Run, status: int) -> None:
    platform.control(answer={"login": answer(status)})
    done = run("print('never here')", **ONCE)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(rf"\blogin\b.*HTTP {status}", closing_line(done)), done.stderr
    assert not re.search(CREDENTIALS, done.stderr)


def test_a_refresh_token_that_is_refused_blames_no_credentials(run: Run) -> None:
    done = run("PAGE = {}\n" + RENEW)
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr
    assert "RC refresh_token: refused with HTTP 401; logging in again" in done.log
    assert not re.search(CREDENTIALS, done.log)


# --------------------------------------------------------------------------------------------- certificates, characters


@pytest.mark.parametrize(
    ("host", "days", "trusted", "words"),
    [
        ("127.0.0.1", 90, False, "set SSL_CERT_FILE to"),
        ("127.0.0.1", -1, True, r"\bexpired\b"),
        ("elsewhere.hospital.test", 90, True, "mismatch"),
    ],
)
def test_a_certificate_that_is_refused_is_told_by_its_reason_and_the_variable_if_that_is_the_answer(
    host: str, days: int, trusted: bool, words: str, certified: Start, run: Run, tmp_path: Path
) -> None:
    platform, trust = certified(host, days), tmp_path / ("ca.pem" if trusted else "another.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "another.pem")
    done = run("print('never here')", on=platform, SSL_CERT_FILE=str(trust), WAIT_BEFORE_RETRY=0.01, ERROR_MAX_RETRY=3)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("my_script: IAM login: ")
    assert re.search(words, line)
    assert ("set SSL_CERT_FILE" in line) is not trusted


# ------------------------------------------------------------------------------------------------- settings, exit codes


TYPO = """
@api_call_with_retry("RX")
def get_something():
    return call_endpoint("RX", "GET", "organizations", list)
"""


def test_a_function_that_is_made_in_main_for_a_service_that_does_not_exist_names_those_that_do(run: Run) -> None:
    done = run(TYPO + "get_something()")
    assert done.returncode == 2
    assert re.search(r"\bRX\b.*\bIAM, RC, GDD\b", closing_line(done)), done.stderr


def test_an_address_that_is_none_is_told_with_its_service(platform: Simulator, run: Run) -> None:
    old = 'os.environ.get("EB_RC_URL") or "https://rc.endobest.example"'
    done = run("print('never here')", edits={old: 'os.environ.get("EB_X_URL")'})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"my_script: [^\n]*\bRC\b[^\n]*\n", done.stderr), done.stderr
    assert "base_url" in done.stderr
    assert sum(platform.seen()["requests"].values()) == 0


@pytest.mark.parametrize("name", ["DEFAULT_PASSWORD", "DEFAULT_USER_NAME"])
def test_a_number_in_the_place_of_a_text_is_a_sentence(platform: Simulator, run: Run, name: str) -> None:
    done = run("print('never here')", **{name: 123456}, EB_USER_NAME="", EB_PASSWORD="")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"my_script: [^\n]*\b{name}\b[^\n]*\n", done.stderr), done.stderr
    assert sum(platform.seen()["requests"].values()) == 0
    if name == "DEFAULT_PASSWORD":
        assert "123456" not in done.stderr + done.log


# -------------------------------------------------------------------------------------------------------- while it runs


@on_posix
def test_while_all_wait_for_a_retry_the_bar_says_how_many_and_how_long(platform: Simulator, script: Script) -> None:
    platform.control(answer={"statistics": answer(503, retry_after="50")})
    path = script("list(run_parallel(get_statistics, ['a', 'b', 'c'], desc='Centres'))")
    variables = environment_for(platform, EB_THREADS="3")
    child = on_terminal(path.parent, path.name, variables)
    try:
        child.expect(r"3 waiting, next in \d+ s")
    finally:
        child.close(force=True)
