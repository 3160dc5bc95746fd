"""Encrypted connections, with a certificate from the test's own authority; responses that arrive byte by byte."""

import re
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import WATCHDOG, Load, Run, Start, answer, wait_until
from server import Simulator

THREADS, ROUNDS = 60, 20


@pytest.fixture
def encrypted(certified: Start, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    """A platform on https:// that is not trusted yet."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    return certified()


def test_a_script_trusts_the_authority_that_ssl_cert_file_names(encrypted: Simulator, run: Run, tmp_path: Path) -> None:
    finished = run("print(len(get_all_organizations()))", on=encrypted, SSL_CERT_FILE=str(tmp_path / "ca.pem"))
    assert (finished.returncode, finished.stdout) == (0, "5\n")


def test_an_untrusted_certificate_is_refused_at_once_with_a_hint(encrypted: Simulator, run: Run) -> None:
    finished = run('print("never here")', WAIT_BEFORE_RETRY=0.01, on=encrypted)
    assert (finished.returncode, finished.stdout) == (1, "")
    said = r"my_script: IAM login: ConnectError: .*CERTIFICATE_VERIFY_FAILED.*; set SSL_CERT_FILE to .*\n"
    assert re.fullmatch(said, finished.stderr), "more than one line would be a second attempt"
    assert encrypted.seen()["services"] == {"IAM": 0, "RC": 0, "GDD": 0}


def test_an_untrusted_certificate_in_mid_run_is_not_retried(
    encrypted: Simulator, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    module = load(encrypted, WAIT_BEFORE_RETRY=0.01)
    module.login()
    attempts: list[httpx.Client] = []

    @module.api_call_with_retry("RC")
    def call_a_stranger() -> None:
        attempts.append(module.get_httpx_client())
        attempts[-1].get(encrypted.url.replace("127.0.0.1", "localhost"))  # the certificate is for 127.0.0.1

    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        call_a_stranger()
    assert len(attempts) == 1


def test_a_certificate_that_the_system_refuses_in_words_of_its_own_is_refused_at_once_with_a_hint(
    encrypted: Simulator, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = list[object]()

    def wrap_socket(context: ssl.SSLContext, *arguments: object, **options: object) -> None:  # as httpx2 on Windows
        attempts.append(context)
        raise ssl.SSLCertVerificationError("A certificate chain terminated in a root that is not trusted.")

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap_socket)
    module = load(encrypted, WAIT_BEFORE_RETRY=0.01, ERROR_MAX_RETRY=3)
    with pytest.raises(module.LoginError, match="set SSL_CERT_FILE"):
        module.login()
    assert len(attempts) == 1


def test_60_threads_connect_at_once_20_times_without_a_handshake_error(
    encrypted: Simulator, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    counts = counted_tls_set_up(monkeypatch)
    module = load(encrypted)
    start, outcomes = threading.Barrier(THREADS), Counter[str]()

    def connect() -> None:
        start.wait()
        try:
            with module.get_httpx_client() as client:
                client.get(f"{encrypted.url}/rc/api/echo/1")
        except httpx.HTTPStatusError as error:
            outcomes[str(error.response.status_code)] += 1
        except httpx.HTTPError as error:
            outcomes[repr(error)] += 1

    for _ in range(ROUNDS):
        threads = [threading.Thread(target=connect) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcomes == {"401": THREADS * ROUNDS}, "each call arrives, though it has no token"
    assert encrypted.seen()["connections"] == THREADS * ROUNDS
    assert counts == {"create_ssl_context": 1, "set_alpn_protocols": 1}, "cpython#141012 needs the second one"


def counted_tls_set_up(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what is expensive or dangerous if it is done for every thread."""
    counts = Counter[str]()

    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return original(*arguments, **options)

        return counted

    for owner, name in ((httpx, "create_ssl_context"), (ssl.SSLContext, "set_alpn_protocols")):
        monkeypatch.setattr(owner, name, counting(name, getattr(owner, name)))
    return counts


# ---------------------------------------------------------------------------------------------- An answer that trickles

CALM = 0.05  # seconds between two bytes: far less than API_TIMEOUT
LONG = b'{"n": 1}' + b" " * 2000  # 100 s of it


def test_a_body_that_trickles_is_cut_off_at_the_deadline_as_timed_out(platform: Simulator, logged_in: Load) -> None:
    template = logged_in(platform, API_DEADLINE=0.5, ERROR_MAX_RETRY=2)
    platform.control(answer={"echo": answer(200, LONG, trickle=CALM)})
    with pytest.raises(template.httpx.ReadTimeout, match=r"API_DEADLINE = 0\.5 s"):
        template.echo(1)
    assert platform.seen()["requests"]["echo"] == 2


def test_after_a_body_was_cut_off_60_threads_get_their_own_answers(platform: Simulator, logged_in: Load) -> None:
    template = logged_in(platform, API_DEADLINE=0.5, ERROR_MAX_RETRY=1000)
    platform.control(answer={"echo": answer(200, LONG, trickle=CALM)})
    with template.main_thread_pool as executor:
        futures = {number: executor.submit(template.echo, number) for number in range(200)}
        wait_until(lambda: platform.seen()["requests"]["echo"] >= 90)  # some were cut off
        platform.control(answer={"echo": None})
        assert {number: future.result() for number, future in futures.items()} == {n: n for n in range(200)}


def test_a_body_that_takes_less_than_the_deadline_comes_whole(platform: Simulator, logged_in: Load) -> None:
    template = logged_in(platform, API_TIMEOUT=2)
    platform.control(answer={"echo": answer(200, LONG[:60], trickle=CALM)})  # 3 s of it
    assert template.echo(1) == 1


def test_a_body_that_stops_is_cut_off_at_the_deadline_although_the_call_sets_no_timeout(
    platform: Simulator, logged_in: Load
) -> None:
    template = logged_in(platform, API_DEADLINE=0.5)
    platform.control(answer={"organizations": answer(200, LONG, trickle=WATCHDOG)})
    with pytest.raises(template.httpx.ReadTimeout):
        template.get_httpx_client().get(template.url_of("RC", "organizations"), timeout=None)


def test_a_refresh_that_trickles_holds_60_threads_no_longer_than_the_deadline_and_says_so(
    platform: Simulator, logged_in: Load, caplog: pytest.LogCaptureFixture
) -> None:
    template = logged_in(platform, API_DEADLINE=0.5)
    platform.control(answer={"refresh_token": answer(200, LONG, trickle=CALM)}, expire="RC")
    results = dict(template.run_parallel(template.echo, range(200)))
    assert results == {number: number for number in range(200)}
    assert platform.seen()["requests"]["refresh_token"] == 1
    assert platform.seen()["logins"] == {"accepted": 2, "refused": 0}
    said = [line for line in caplog.messages if line.startswith("RC refresh_token: ")]
    words = "ReadTimeout: not complete after API_DEADLINE = 0.5 s; host 127.0.0.1"
    assert said == [f"RC refresh_token: {words}; logging in again"]
