"""The check of a platform: good lines if everything is as assumed, or else the difference and the line to change."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from dialects import DIALECTS
from helpers import (
    TEMPLATE,
    Run,
    Script,
    Start,
    all_inclusions,
    answer,
    base_python,
    environment_for,
    finished_in,
    needs_posix,
    on_terminal,
    python,
    run_script,
    study_of,
)
from next_httpx import moved
from server import Simulator
from sockets import Answering, unused_port

CHECK = TEMPLATE.parent / "tests" / "check_platform.py"
HINT = "python3 tests/check_platform.py"
MOST_CALLS = 60

# The number of inclusions of each centre; the access token expires after each centre.
STUDY = """
import json
counts = {}
for organization in get_all_organizations():
    counts[organization["id"]] = len(get_all_inclusions(organization["id"]))
    control(expire="RC")
print(json.dumps(counts))
"""

# What the check says about a dialect, and what is on the line that it names.
LINE_TO_CHANGE = {
    "token-names": ("access_token is accessToken", ".json()"),
    "token-nested": ("access_token is data.access_token", ".json()"),
    "dead-token-403": ("HTTP 403", "401"),
    "dead-token-302": ("HTTP 302, redirected to /login", "401"),
    "dead-token-200": ("an error that looks like data", "raise_for_status()"),
    "pages-from-0": ("number 0", '"page": page'),
    "pages-capped": ("10 of 33 when 1000 are requested", "every_page("),
    "pages-cut": ("10 of 33 when 1000 are requested", "every_page("),
    "page-content": ("RC page: list in data, of objects with patientId list in content", '"search_inclusions"'),
    "page-ids": ("list in data, an object with subjectId", "every_page("),
    "list-wrapped": ("the list is in items", "list"),
    "rate-limit": ("100 calls in 1 s according to its headers; 20 + 40 threads", " = "),
    "total-of-page": ("1 on a page of 1, although at least 33 inclusions exist", "def get_all_inclusions("),
    "total-missing": ("no total that is a number", "def get_all_inclusions("),
}
NOTHING_TO_CHANGE = {
    "refresh-kept": "the same refresh token",
    "refresh-omitted": "no refresh token in the response",
    "one-session": "first one ended: HTTP 401",
    "clock-ahead": "platform 5 min ahead",
}

# A service that the script added, which is RC under another name, and functions in both forms that scripts use.
OWN_SERVICE = """MICROSERVICES: dict[str, dict[str, Any]] = {
    "LAB": {
        "app_id": "endobest-lab",
        "base_url": os.environ.get("EB_RC_URL") or "https://lab.endobest.example",
        "endpoints": {
            "config_token": "/api/auth/config-token",
            "centres": "/api/inclusions/getAllOrganizations",
            "centres_again": "/api/inclusions/getAllOrganizations",
            "counts": "/api/inclusions/inclusion-statistics",
            "new": "/api/requests/create",
        },
    },
"""
OWN_FUNCTIONS = """
@api_call_with_retry("LAB")
def get_centres():
    return call_endpoint("LAB", "GET", "centres", list)

@api_call_with_retry("LAB")
def get_centres_again():
    client = get_httpx_client()
    client.base_url = MICROSERVICES["LAB"]["base_url"]
    headers = {"Authorization": f"Bearer {tokens['LAB']['access_token']}"}
    return client.get(MICROSERVICES["LAB"]["endpoints"]["centres_again"], headers=headers, timeout=API_TIMEOUT).json()

@api_call_with_retry("LAB")
def get_counts(centre):
    return call_endpoint("LAB", "GET", "counts", dict, params={"organization": centre})

@api_call_with_retry("LAB", idempotent=False)
def create():
    return call_endpoint("LAB", "POST", "new", dict)
"""


def checked(
    code: int,
    path: Path | None,
    platform: Simulator | None,
    folder: Path,
    *options: str,
    bare: bool = False,
    **variables: str,
) -> str:
    """Run the check in a folder, optionally with a Python without packages, check its exit code; returns its output."""
    interpreter = [str(base_python()), "-S"] if bare else [sys.executable]
    command = [*interpreter, str(CHECK), *options, *([str(path)] if path else [])]
    done = finished_in(folder, command, environment_for(platform, **variables))
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    return output


def plain(output: str) -> str:
    """The output, without the line breaks of the table."""
    return re.sub(r"\s+", " ", output)


def lines_named(output: str, source: str) -> list[str]:
    lines = source.splitlines()
    return [lines[int(number) - 1] for number in re.findall(r"^my_script.py:(\d+)", output, re.MULTILINE)]


def assert_study_runs(path: Path, platform: Simulator, **variables: str) -> None:
    """Check that a script gets every inclusion of every centre."""
    done = run_script(path, platform, EB_THREADS="3", **variables)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == counts_of(platform)


def counts_of(platform: Simulator) -> dict[str, int]:
    """What STUDY prints if nothing is missing."""
    study = study_of(platform)
    return {centre["id"]: len(all_inclusions(study, centre["id"])) for centre in study.organizations}


def test_a_platform_as_assumed_gives_a_table_of_good_lines_and_exit_code_0(simulator: Start, tmp_path: Path) -> None:
    platform = simulator("--dialect", "jwt", "--token-lifetime", "900")
    output = checked(0, None, platform, tmp_path)
    assert "DIFFERS" not in output
    assert "a JWT that expires after 15 min" in plain(output)
    assert re.search("\n[23][0-9] as assumed, 0 different, 1 not tried; ", output)
    assert sum(platform.seen()["requests"].values()) <= MOST_CALLS
    assert platform.seen()["peak_concurrency"] == 1
    assert platform.seen()["creations"] == {}


def test_each_dialect_is_tried_here() -> None:
    assert {*LINE_TO_CHANGE, *NOTHING_TO_CHANGE, "moved", "moved-all", "jwt"} == DIALECTS.keys()


@pytest.mark.parametrize("dialect", LINE_TO_CHANGE)
def test_a_difference_is_reported_with_its_lines_and_apply_alone_makes_check_and_study_run(
    dialect: str, simulator: Start, script: Script
) -> None:
    platform, path = simulator("--dialect", dialect), script(STUDY)
    before, (words, in_line) = path.read_bytes(), LINE_TO_CHANGE[dialect]
    output = checked(1, path, platform, path.parent, "--apply")
    assert words in plain(output)
    named = lines_named(output, before.decode("utf-8"))
    assert named
    assert all(in_line in line for line in named), output
    assert ", as shown above; the old version is my_script.before.py" in output
    assert path.with_name("my_script.before.py").read_bytes() == before
    output = checked(0, path, platform, path.parent, "--apply")
    assert "Nothing in my_script.py can be changed automatically" in output
    assert_study_runs(path, platform)


def test_without_apply_the_code_to_write_is_shown_and_the_script_stays(simulator: Start, script: Script) -> None:
    platform, path = simulator("--dialect", "total-missing"), script(STUDY)
    before = path.read_bytes()
    output = checked(1, path, platform, path.parent)
    assert "rewrite get_all_inclusions: request page after page until one is empty" in output
    assert "\n    def get_all_inclusions(organization_id: str)" in output
    assert path.read_bytes() == before


@pytest.mark.parametrize("dialect", NOTHING_TO_CHANGE)
def test_what_the_script_already_handles_is_reported_all_the_same(
    dialect: str, simulator: Start, script: Script
) -> None:
    platform, path = simulator("--dialect", dialect), script(STUDY)
    output = checked(1, path, platform, path.parent)
    assert NOTHING_TO_CHANGE[dialect] in plain(output)
    assert "write `" not in output
    assert_study_runs(path, platform)


def test_a_path_that_has_moved_is_named_with_its_entry(simulator: Start, script: Script) -> None:
    platform, path = simulator("--dialect", "moved"), script(STUDY)
    output = checked(1, path, platform, path.parent)
    assert "RC organizations: 2xx with a list" in output
    assert "HTTP 404" in output
    assert "correct the path: ask the platform's operator" in plain(output)
    [line] = lines_named(output, path.read_text(encoding="utf-8"))
    assert line.strip().startswith('"organizations": ')
    moved = line.replace("/api/inclusions/getAllOrganizations", "/api/v2/organizations")
    path.write_text(path.read_text(encoding="utf-8").replace(line, moved), encoding="utf-8")
    output = checked(0, path, platform, path.parent)
    assert_study_runs(path, platform)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_template_met_by_a_dialect_gets_all_or_names_the_check(dialect: str, simulator: Start, run: Run) -> None:
    capped = () if dialect == "pages-cut" else ("--dialect", "pages-capped")  # else one page is enough for a centre
    platform = simulator("--dialect", dialect, *capped)
    done = run(STUDY, on=platform, ERROR_MAX_RETRY=3, WAIT_BEFORE_RETRY=0.5)
    if done.returncode == 0:
        assert json.loads(done.stdout) == counts_of(platform)
    else:
        assert done.stdout == ""
        assert HINT in done.stderr + done.log or "IAM login: refused with HTTP 404" in done.stderr


def test_endpoints_that_were_added_are_tried_if_they_take_no_parameters(platform: Simulator, script: Script) -> None:
    path = script(OWN_FUNCTIONS, edits={"MICROSERVICES: dict[str, dict[str, Any]] = {\n": OWN_SERVICE})
    output = checked(0, path, platform, path.parent)
    assert "ok LAB centres: 2xx with JSON HTTP 200" in plain(output)
    assert "ok LAB centres_again: 2xx with JSON HTTP 200" in plain(output)
    assert "not tried LAB counts no function calls it by GET without parameters" in plain(output)
    assert "not tried LAB new no function calls it by GET without parameters" in plain(output)
    assert "not tried LAB refresh_token no refresh token: the script logs in again instead" in plain(output)
    assert platform.seen()["creations"] == {}


def test_services_that_are_commented_out_are_left_alone(platform: Simulator, script: Script) -> None:
    path = script("pass")
    text = path.read_text(encoding="utf-8")
    start, end = text.index('    "GDD": {'), text.index("\n}\n", text.index('    "GDD": {'))
    path.write_text(text[:start] + re.sub("(?m)^", "# ", text[start:end]) + text[end:], encoding="utf-8")
    checked(0, path, platform, path.parent)
    assert platform.seen()["services"]["GDD"] == 0


def test_a_refused_login_is_tried_once_and_ends_the_check(platform: Simulator, tmp_path: Path) -> None:
    output = checked(1, None, platform, tmp_path, EB_PASSWORD="not-the-password")
    assert "check EB_USER_NAME and EB_PASSWORD (tried only once, so that the account is not locked)" in output
    assert "not-the-password" not in output
    assert platform.seen()["logins"] == {"accepted": 0, "refused": 1}


def test_an_app_id_that_is_refused_is_named_with_its_line(platform: Simulator, script: Script) -> None:
    path = script("pass", edits={'"endobest-gdd"': '""'})
    output = checked(1, path, platform, path.parent)
    assert "correct the app_id of GDD" in output
    assert [line.split("#")[0].strip() for line in lines_named(output, path.read_text(encoding="utf-8"))] == [
        '"app_id": "",'
    ]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"EB_RC_URL": ""},
            r"set EB_RC_URL \(eb_script_template.py:\d+\): 'https://rc.endobest.example' is a placeholder",
        ),
        ({"EB_RC_URL": "http://rc.test"}, "'http://rc.test' would send password and tokens unencrypted: use https://"),
        ({"EB_RC_URL": "rc.test"}, "'rc.test' is not an https:// address"),
        ({"EB_RC_URL": "https://jeanne:geheim@rc.test"}, "'https://rc.test' contains a login"),
        ({"EB_PASSWORD": ""}, "EB_PASSWORD is empty: set it, or start the check in a terminal and type it"),
        ({"SSL_CERT_FILE": "no-such-file"}, "SSL_CERT_FILE: .*set it to a file of CA certificates"),
    ],
)
def test_a_wrong_setting_is_reported_in_one_line_before_anything_is_sent(
    variables: dict[str, str], said: str, platform: Simulator, tmp_path: Path
) -> None:
    output = checked(2, None, platform, tmp_path, **variables)
    assert re.fullmatch(f"check_platform.py: .*{said}.*\n", output)
    assert "geheim" not in output
    assert sum(platform.seen()["requests"].values()) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def (", r"cannot be read as a copy of the template \(SyntaxError: .*line 1"),
        ("MICROSERVICES = {}", "cannot be read as a copy of the template"),
        ("raise SystemExit(3)", "ends with exit code 3 when it is imported"),
    ],
)
def test_a_file_that_is_not_a_copy_of_the_template_is_reported_in_one_line(
    text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.py"
    path.write_text(text, encoding="utf-8")
    output = checked(2, path, None, tmp_path)
    assert re.fullmatch(f"check_platform.py: other.py {said}.*\n", output), output


def test_an_address_where_nobody_answers_is_named_with_the_variable(platform: Simulator, tmp_path: Path) -> None:
    output = checked(1, None, platform, tmp_path, EB_GDD_URL=f"http://127.0.0.1:{unused_port()}")
    assert "connection refused or closed" in output
    assert "correct EB_GDD_URL, or the base_url" in output


@needs_posix(reason="pseudo-terminals are POSIX")
def test_what_the_environment_lacks_is_asked_and_the_password_is_not_shown(simulator: Start, tmp_path: Path) -> None:
    typed = {"User name [ziwig-invest2@yopmail.com]: ": "jeanne", "Password: ": "Xq7-typed-Zw3"}
    platform = simulator("--user", "jeanne", "--password", "Xq7-typed-Zw3")
    variables = environment_for(platform)
    del variables["EB_USER_NAME"], variables["EB_PASSWORD"]
    child = on_terminal(tmp_path, shlex.quote(str(CHECK)), variables)
    for question, text in typed.items():
        child.expect_exact(question)
        child.send(f"{text}\r")
    shown = child.read()
    child.close()
    assert child.exitstatus == 0, shown
    assert "Xq7-typed-Zw3" not in shown


def test_a_python_without_httpx_gets_it_from_the_environment_of_the_tests(platform: Simulator, tmp_path: Path) -> None:
    checked(0, None, platform, tmp_path, bare=True)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="httpx2 needs Python 3.11")
def test_a_copy_that_has_moved_to_httpx2_is_checked_as_it_is(platform: Simulator, script: Script) -> None:
    path = script("pass")
    path.write_text(moved(path.read_text(encoding="utf-8")), encoding="utf-8")
    checked(0, path, platform, path.parent, bare=True)


def test_a_file_that_imports_neither_httpx_ends_the_check_in_the_environment_of_the_tests_too(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("import httpx3\n", encoding="utf-8")
    output = checked(2, Path("other.py"), None, tmp_path, bare=True)
    words = "other.py cannot be read as a copy of the template (ModuleNotFoundError: No module named 'httpx3')"
    assert words in output


def test_help_asks_for_nothing_and_sends_nothing(tmp_path: Path) -> None:
    done = python([str(CHECK), "--help"], tmp_path)
    assert done.returncode == 0
    assert "Exit code: 0 everything is as assumed, 1 something is not, 2 the configuration is wrong." in done.stdout


# What stands between the check and a platform: redirects, portals, proxies, ports without TLS, certificates

PAGE = b"<!doctype html><title>Log in</title>"
CREDENTIALS = "check EB_USER_NAME and EB_PASSWORD"
PORTAL = "https://portal.hotel.test/login?token=geheim"
DIRECT = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


@pytest.mark.parametrize(
    ("endpoint", "refusal", "words"),
    [
        ("login", answer(301, b"", location="/iam/sign-in/"), "IAM login: 2xx .* HTTP 301, redirected to /iam/sign-in"),
        ("login", answer(302, b"", location=PORTAL), "HTTP 302, redirected to https://portal.hotel.test/login"),
        ("login", answer(308, b"", location="//x:geheim@iam.test/a/12345"), "HTTP 308, redirected to another address"),
        ("login", answer(403, PAGE, "text/html"), "a firewall or a portal responds instead of the platform"),
        ("login", answer(200, PAGE, "text/html"), "HTTP 200, a web page .*a firewall or a portal"),
        ("login", answer(401, PAGE, "text/html"), "HTTP 401, a web page .*a firewall or a portal"),
        ("login", answer(403), "the platform does not let this user in: ask its operator"),
        ("config_token", answer(401), "correct the app_id of RC"),
        ("config_token", answer(403, PAGE, "text/html"), "RC config_token: .* HTTP 403, a web page"),
        ("refresh_token", answer(401), "the script logs in again instead; the password has nothing to do with it"),
    ],
)
def test_the_credentials_are_blamed_for_the_401_of_a_login_alone(
    endpoint: str, refusal: dict[str, Any], words: str, platform: Simulator, tmp_path: Path
) -> None:
    platform.control(answer={endpoint: refusal})
    output = checked(1, None, platform, tmp_path)
    assert re.search(words, plain(output)), output
    assert CREDENTIALS not in output
    assert "geheim" not in output


@pytest.mark.parametrize("raw", ["/", "#", "?", "@", "7/", "7#"])
def test_a_proxy_whose_password_is_not_encoded_is_told_by_its_variable_without_a_word_of_it(
    raw: str, platform: Simulator, tmp_path: Path
) -> None:
    proxy = f"http://jeanne:{raw}geheim42@proxy.test:3128"
    output = checked(2, None, platform, tmp_path, HTTPS_PROXY=proxy, https_proxy=proxy)
    assert re.fullmatch("check_platform.py: https_proxy is not the address of a proxy: write http://.*%2F.*\n", output)
    assert "geheim42" not in output


def behind(port: int) -> dict[str, str]:
    """The variables that lead to a platform behind a proxy on this machine."""
    proxy = f"http://jeanne:geheim42@127.0.0.1:{port}"
    urls = {f"EB_{app}_URL": f"https://{app.lower()}.platform.test" for app in ("IAM", "RC", "GDD")}
    return {**urls, **dict.fromkeys(("HTTPS_PROXY", "https_proxy"), proxy), "NO_PROXY": "", "no_proxy": ""}


def test_a_proxy_that_refuses_is_told_with_its_status_and_its_variable(platform: Simulator, tmp_path: Path) -> None:
    with Answering(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n") as proxy:
        output = checked(1, None, platform, tmp_path, **behind(proxy.port))
    assert "IAM address: answers, certificate trusted the proxy refused the call with HTTP 407" in plain(output)
    assert "outside the script correct HTTPS_PROXY: its address, user and password" in plain(output)
    assert "geheim42" not in output
    assert CREDENTIALS not in output


def test_a_proxy_that_is_down_is_told_in_place_of_the_platform(platform: Simulator, tmp_path: Path) -> None:
    output = checked(1, None, platform, tmp_path, **behind(unused_port()))
    assert "the proxy: connection refused or closed" in plain(output)
    assert "correct HTTPS_PROXY" in output


def test_an_address_whose_port_speaks_no_tls_is_told_so(platform: Simulator, tmp_path: Path) -> None:
    url = platform.address("GDD").replace("http://", "https://")
    output = checked(1, None, platform, tmp_path, EB_GDD_URL=url, **DIRECT)
    assert "GDD address: answers, certificate trusted no TLS" in plain(output)
    assert "correct EB_GDD_URL, or the base_url" in output


@needs_posix(reason="needs the package cryptography, which some Windows lack")
@pytest.mark.parametrize(
    ("host", "days", "trusted", "words"),
    [
        ("127.0.0.1", 10, True, "certificate from Hospital, 10 days left"),
        ("127.0.0.1", 10, True, "tell the platform's operator that its certificate is about to expire"),
        ("127.0.0.1", 10, False, "certificate not trusted: set SSL_CERT_FILE"),
        ("127.0.0.1", -1, True, "certificate has expired"),
        ("other.test", 90, True, "certificate for another host"),
    ],
)
def test_a_certificate_is_judged_by_its_kind_its_issuer_and_its_days(
    host: str, days: int, trusted: bool, words: str, certified: Start, tmp_path: Path
) -> None:
    trust = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")} if trusted else {}
    output = checked(1, None, certified(host, days), tmp_path, **trust)
    assert words in plain(output)
    assert ("SSL_CERT_FILE" in output) is not trusted
