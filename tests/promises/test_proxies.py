"""A proxy between script and platform: errors there name the proxy, and a call that it rejects is not repeated."""

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
    """The variables that send all https:// calls through a proxy."""
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
    """Log in without the proxy, then make a call through it: `call_through("http://...")`; the error, and template."""

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


@pytest.mark.parametrize("proxy", ["127.0.0.1:{}", "proxy.hospital.invalid:{}"], ids=["down", "unknown"])
def test_a_proxy_that_is_not_there_is_named(run: Run, proxy: str) -> None:
    proxy = proxy.format(unused_port())
    assert_names_proxy(run_behind(run, f"http://someone:Geheim42@{proxy}").splitlines()[-1], proxy)


@pytest.mark.parametrize("said", [IS_BUSY, b""], ids=["is busy", "hangs up"])
def test_a_proxy_that_may_answer_later_is_named_and_tried_again(run: Run, said: bytes) -> None:
    with Answering(said) as proxy:
        told = run_behind(run, f"http://127.0.0.1:{proxy.port}")
    assert proxy.connections == ATTEMPTS
    assert_names_proxy(told.splitlines()[-1], f"127.0.0.1:{proxy.port}")


def test_a_proxy_that_goes_down_in_mid_run_is_named(call_through: Callable[[str], Any]) -> None:
    proxy = f"127.0.0.1:{unused_port()}"
    template, error = call_through(f"http://someone:Geheim42@{proxy}")
    assert_names_proxy(template.describe(error), proxy)


def assert_names_proxy(text: str, proxy: str) -> None:
    assert f"HTTPS_PROXY {proxy}" in text
    assert "Geheim42" not in text


# --------------------------------------------------------------------------------------------- https:// to a plain port


NO_TLS = {
    "a platform of HTTP": ([PLAIN], "", "https://127.0.0.1:{}", "127.0.0.1"),
    "a platform of SSH": ([b"SSH-2.0-OpenSSH_9.2\r\n"], "", "https://127.0.0.1:{}", "127.0.0.1"),
    "a proxy": ([PLAIN], "https://127.0.0.1:{}", "https://iam.hospital.test", "HTTPS_PROXY"),
    "a platform behind a proxy": ([IS_OPEN, PLAIN], "http://127.0.0.1:{}", "https://iam.hospital.test", "iam.hospital"),
}


@pytest.mark.parametrize(("answers", "proxy", "address", "named"), NO_TLS.values(), ids=NO_TLS)
def test_what_speaks_no_tls_is_told_it(run: Run, answers: list[bytes], proxy: str, address: str, named: str) -> None:
    with Answering(*answers) as plain:
        addresses = dict.fromkeys(BEHIND_PROXY, address.format(plain.port))
        [line] = run_behind(run, proxy.format(plain.port), **addresses).splitlines()
    assert "speaks no TLS" in line
    assert named in line
    assert plain.connections == 1


def test_a_call_without_tls_is_not_repeated(platform: Simulator, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
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
