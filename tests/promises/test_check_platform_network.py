"""What stands between the check and a platform: redirects, portals, proxies, ports without TLS, certificates."""

import re
from pathlib import Path
from typing import Any

import pytest
from helpers import Start, answer, needs_posix
from server import Simulator
from sockets import Answering, unused_port
from test_check_platform import checked, plain

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
        ("login", answer(403, PAGE, "text/html"), "a firewall or a portal answers instead of the platform"),
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
