"""A proxy between script and platform: what goes wrong there is said of the proxy, and its refusal is not repeated."""

from collections.abc import Callable
from typing import Any

import pytest
from helpers import Load, Run
from server import Simulator
from sockets import Answering, unused_port

WHO = {"EB_USER_NAME": "someone", "EB_PASSWORD": "Xq7-simulated-Zw3", "EB_THREADS": "2"}
BEHIND_PROXY = {f"EB_{service}_URL": f"https://{service.lower()}.hospital.test" for service in ("IAM", "RC", "GDD")}
REFUSES_PASSWORD = (
    b"HTTP/1.1 407 Proxy Authentication Required\r\n"
    b'Proxy-Authenticate: Basic realm="squid"\r\nContent-Length: 0\r\n\r\n'
)
IS_OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"
IS_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
PLAIN = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
ATTEMPTS = 3
QUICK = {"ERROR_MAX_RETRY": ATTEMPTS, "WAIT_BEFORE_RETRY": 0.01}


def through(proxy: str) -> dict[str, str]:
    """The variables that send https:// through a proxy, and nothing past it."""
    names = ("HTTPS_PROXY", "https_proxy")
    return dict.fromkeys(names, proxy) | dict.fromkeys(("ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"), "")


def run_behind(run: Run, proxy: str, **addresses: str) -> str:
    """What a script says on the terminal whose platform is on the other side of a proxy."""
    variables = {**WHO, **BEHIND_PROXY, **addresses, **through(proxy)}
    done = run('print("never here")', on=None, **QUICK, **variables)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


@pytest.fixture
def call_through(platform: Simulator, load: Load, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Log in past the proxy, then make one call through it: `call_through("http://...")`; the error, and template."""

    def call(proxy: str) -> tuple[Any, BaseException]:
        template = load(platform, **QUICK)
        for name, value in through(proxy).items():
            monkeypatch.setenv(name, value)
        template.login()

        @template.api_call_with_retry("RC")
        def leave_the_house() -> None:
            template.get_httpx_client().get("https://rc.hospital.test/api/records")

        with pytest.raises(template.httpx.TransportError) as failed:
            leave_the_house()
        return template, failed.value

    return call


def test_a_proxy_that_refuses_the_password_is_asked_once_at_login(run: Run) -> None:
    with Answering(REFUSES_PASSWORD) as proxy:
        [line] = run_behind(run, f"http://someone:Geheim42@127.0.0.1:{proxy.port}").splitlines()
    assert proxy.connections == 1, "each more may lock the account"
    assert "HTTPS_PROXY" in line
    assert "Geheim42" not in line
    assert "EB_PASSWORD" not in line


def test_a_proxy_that_refuses_the_password_is_asked_once_by_a_call(call_through: Callable[[str], Any]) -> None:
    with Answering(REFUSES_PASSWORD) as proxy:
        template, error = call_through(f"http://someone:Geheim42@127.0.0.1:{proxy.port}")
    assert proxy.connections == 1
    assert "HTTPS_PROXY" in template.describe(error)
    assert "Geheim42" not in template.describe(error)


def test_a_proxy_that_is_down_is_named(run: Run) -> None:
    port = unused_port()
    assert_names_proxy(run_behind(run, f"http://someone:Geheim42@127.0.0.1:{port}").splitlines()[-1], port)


def test_a_proxy_that_is_unknown_is_named(run: Run) -> None:
    said = run_behind(run, "http://someone:Geheim42@proxy.hospital.invalid:3128").splitlines()[-1]
    assert "HTTPS_PROXY proxy.hospital.invalid:3128" in said
    assert "Geheim42" not in said


@pytest.mark.parametrize("said", [IS_BUSY, b""], ids=["is busy", "hangs up"])
def test_a_proxy_that_may_answer_later_is_named_and_tried_again(run: Run, said: bytes) -> None:
    with Answering(said) as proxy:
        told = run_behind(run, f"http://127.0.0.1:{proxy.port}")
    assert proxy.connections == ATTEMPTS
    assert_names_proxy(told.splitlines()[-1], proxy.port)


def test_a_proxy_that_goes_down_in_mid_run_is_named(call_through: Callable[[str], Any]) -> None:
    port = unused_port()
    template, error = call_through(f"http://someone:Geheim42@127.0.0.1:{port}")
    assert_names_proxy(template.describe(error), port)


def assert_names_proxy(text: str, port: int) -> None:
    assert f"HTTPS_PROXY 127.0.0.1:{port}" in text
    assert "Geheim42" not in text


# --------------------------------------------------------------------------------------------- https:// to a plain port


@pytest.mark.parametrize("greeting", [PLAIN, b"SSH-2.0-OpenSSH_9.2\r\n"], ids=["HTTP", "SSH"])
def test_a_platform_that_speaks_no_tls_is_told_so_at_once(run: Run, greeting: bytes) -> None:
    with Answering(greeting) as plain:
        [line] = run_behind(run, "", **dict.fromkeys(BEHIND_PROXY, f"https://127.0.0.1:{plain.port}")).splitlines()
    assert "speaks no TLS" in line
    assert plain.connections == 1


def test_a_proxy_that_speaks_no_tls_is_told_so_at_once(run: Run) -> None:
    with Answering(PLAIN) as plain:
        [line] = run_behind(run, f"https://127.0.0.1:{plain.port}").splitlines()
    assert "speaks no TLS" in line
    assert "HTTPS_PROXY" in line
    assert plain.connections == 1


def test_a_platform_behind_a_proxy_that_speaks_no_tls_is_told_so_at_once(run: Run) -> None:
    with Answering(IS_OPEN, PLAIN) as proxy:
        [line] = run_behind(run, f"http://127.0.0.1:{proxy.port}").splitlines()
    assert "speaks no TLS" in line
    assert "iam.hospital.test" in line
    assert proxy.connections == 1


def test_a_call_to_what_speaks_no_tls_is_not_repeated(
    platform: Simulator, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = load(platform, **QUICK)
    for name, value in through("").items():
        monkeypatch.setenv(name, value)
    template.login()
    with Answering(PLAIN) as plain:

        @template.api_call_with_retry("RC")
        def call_plain_port() -> None:
            template.get_httpx_client().get(f"https://127.0.0.1:{plain.port}/api/records")

        with pytest.raises(template.httpx.ConnectError) as failed:
            call_plain_port()
    assert plain.connections == 1
    assert "speaks no TLS" in template.describe(failed.value)
