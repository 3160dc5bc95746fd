"""No password, no token in any output, and nothing sent to where it could be read."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import OWN_CALLS, Load, Start, run_script
from server import Simulator

Script = Callable[..., Path]

DEBUG = 10
PASSWORD = "Zü-\\-\"quoted\"-'twice'-%s-{x}"
DEBUG_LIBRARIES = """
for library in ("httpx", "httpcore"):
    logging.getLogger(library).setLevel(logging.DEBUG)
"""
BUSY = """
for number, _ in run_parallel(echo, range(150)):
    if number == 75:
        get_httpx_client().post(os.environ["EB_RC_URL"][:-3] + "/_sandbox/control", json={"expire": "all"})
get_record_by_patient(get_all_inclusions(get_all_organizations()[0]["id"])[0]["patientId"])
"""
CRASHES = {
    "an exception that names every secret": "raise ValueError(f\"{tokens} {os.environ['EB_PASSWORD']}\")",
    "an exception in a chain": """
try:
    raise ValueError(repr(tokens))
except ValueError as error:
    raise RuntimeError(f"Authorization: Bearer {tokens['RC']['access_token']}") from error
""",
    "an exception in a thread": """
def careless(item):
    raise ValueError(f"{item}: {tokens}")

list(run_parallel(careless, range(3)))
""",
    "a request that is shown whole": """
try:
    get_httpx_client().post(
        MICROSERVICES["IAM"]["base_url"] + MICROSERVICES["IAM"]["endpoints"]["login"],
        headers={"Authorization": f"Bearer {tokens['IAM']['access_token']}"},
        json={"username": "x", "password": os.environ["EB_PASSWORD"]},
    ).raise_for_status()
except httpx.HTTPStatusError as error:
    logging.critical("%s %s", error.request.headers.raw, error.request.content.decode(), exc_info=True)
    raise
""",
    "lines of every level": """
for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
    logging.log(level, "%s\\n%r", list(tokens.values()), os.environ["EB_PASSWORD"])
sys.exit(1)
""",
}


def written_forms(password: str) -> list[str]:
    """As it is, in a repr, in JSON."""
    return [password, repr(password)[1:-1], json.dumps(password, ensure_ascii=False)[1:-1]]


def written(finished: subprocess.CompletedProcess[str], path: Path) -> str:
    """All that a run said: log, stdout, stderr."""
    return path.with_suffix(".log").read_text(encoding="utf-8") + finished.stdout + finished.stderr


@pytest.mark.parametrize("crash", CRASHES.values(), ids=CRASHES.keys())
def test_neither_password_nor_token_is_written_at_debug_with_faults_and_a_crash(
    simulator: Start, script: Script, crash: str
) -> None:
    platform = simulator("--faults", "0.15", "--slow", "0.01", "--password", PASSWORD)
    path = script(DEBUG_LIBRARIES + OWN_CALLS + BUSY + crash, LOG_LEVEL=DEBUG, WAIT_BEFORE_RETRY=0.01)
    finished = run_script(path, platform)
    assert finished.returncode == 1, finished.stderr
    text = written(finished, path)
    secrets = [*written_forms(PASSWORD), *platform.tokens()]
    assert len(platform.tokens()) > 3 * 2, "no token was ever renewed"
    assert [secret for secret in secrets if secret in text] == []
    assert "***" in text, "the script did not try to write a secret"
    assert "receive_response_headers" in text, "httpcore did not log at DEBUG"
    assert "echo attempt 1: ok" in text


def test_a_log_call_whose_arguments_do_not_fit_shows_its_place_and_not_its_arguments(
    platform: Simulator, script: Script
) -> None:
    path = script("""
logging.info("%d", tokens["RC"]["access_token"])
logging.critical("%s %s", os.environ["EB_PASSWORD"])
print("goes on")
""")
    finished = run_script(path, platform)
    assert (finished.returncode, finished.stdout) == (0, "goes on\n")
    assert len(re.findall(rf"^{re.escape(str(path))}:[0-9]+: .+$", finished.stderr, re.MULTILINE)) == 2
    secrets = [platform.options.password, *platform.tokens()]
    assert [secret for secret in secrets if secret in written(finished, path)] == []


def test_a_refused_password_is_not_written(platform: Simulator, script: Script) -> None:
    path = script("pass", LOG_LEVEL=DEBUG)
    finished = run_script(path, platform, EB_PASSWORD=PASSWORD)
    assert finished.returncode == 1
    text = written(finished, path)
    assert "refused with HTTP 401" in text
    assert [form for form in written_forms(PASSWORD) if form in text] == []


def test_the_engine_writes_no_query_string_because_it_names_patients(simulator: Start, script: Script) -> None:
    platform = simulator("--faults", "0.5", "--slow", "0.01")
    todo = """
patient = get_all_inclusions(get_all_organizations()[0]["id"])[0]["patientId"]
for _ in range(10):
    get_record_by_patient(patient)
print(patient)
get_record_by_patient(patient + "-unknown")
"""
    path = script(todo, LOG_LEVEL=DEBUG, ERROR_MAX_RETRY=50, WAIT_BEFORE_RETRY=0.01)
    finished = run_script(path, platform)
    assert finished.returncode == 1
    assert finished.stdout.strip() not in path.with_suffix(".log").read_text(encoding="utf-8") + finished.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file modes")
@pytest.mark.parametrize("older", [False, True])
def test_the_log_is_readable_by_its_owner_alone(platform: Simulator, script: Script, older: bool) -> None:
    path = script("os.umask(0)")
    log = path.with_suffix(".log")
    if older:
        log.write_text("from an older run\n")
        log.chmod(0o666)
    assert run_script(path, platform).returncode == 0
    assert log.stat().st_mode & 0o777 == 0o600
    assert log.read_text(encoding="utf-8").startswith("from an older run") is older


# ------------------------------------------------------------------------------------------------ Where nothing is sent


@pytest.fixture
def listener() -> Iterator[tuple[int, list[bytes]]]:
    """A port of this machine, and what arrives there; a connection without a byte counts as well."""
    arrived: list[bytes] = []
    ended = threading.Event()

    def listen() -> None:
        while True:
            connection, _ = server.accept()
            with connection:
                if ended.is_set():
                    return
                arrived.append(connection.recv(1000))

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=listen)
        thread.start()
        yield server.getsockname()[1], arrived
        ended.set()
        socket.create_connection(server.getsockname()).close()
        thread.join()


@pytest.fixture
def overheard(listener: tuple[int, list[bytes]], load: Load, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Let every way out end at the listener, and import the template: `overheard(EB_RC_URL="http://...")`."""
    port = listener[0]
    monkeypatch.setenv("EB_PASSWORD", "for nobody")
    for service in ("IAM", "RC", "GDD"):
        monkeypatch.setenv(f"EB_{service}_URL", f"http://127.0.0.1:{port}")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    def import_template(**addresses: str) -> Any:
        for variable, address in addresses.items():
            monkeypatch.setenv(variable, address.replace("PORT", str(port)))
        return load(ERROR_MAX_RETRY=1)

    return import_template


UNENCRYPTED = "would send password and tokens unencrypted: use https://"
PLACEHOLDER = "is a placeholder"
NO_ADDRESS = "is no https:// address"


@pytest.mark.parametrize("variable", ["EB_IAM_URL", "EB_RC_URL", "EB_GDD_URL"])
@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("http://rc.hospital.test", UNENCRYPTED),
        ("HTTP://rc.hospital.test:443", UNENCRYPTED),
        ("http://localhost.hospital.test", UNENCRYPTED),
        ("http://127.0.0.1.hospital.test", UNENCRYPTED),
        ("http://127.0.0.1@hospital.test", UNENCRYPTED),
        ("http://0.0.0.0:PORT", UNENCRYPTED),
        ("http://2130706433:PORT", UNENCRYPTED),
        ("http://[::ffff:127.0.0.1]:PORT", UNENCRYPTED),
        ("https://rc.endobest.example", PLACEHOLDER),
        ("https://RC.ENDOBEST.EXAMPLE:443/v1", PLACEHOLDER),
        ("http://rc.endobest.example", PLACEHOLDER),
        ("ftp://127.0.0.1:PORT", NO_ADDRESS),
        ("rc.hospital.test", NO_ADDRESS),
        ("//127.0.0.1:PORT", NO_ADDRESS),
        ("https://", NO_ADDRESS),
        ("https://rc.hospital.test:port", NO_ADDRESS),
        ("https://rc.hospital.test\n", NO_ADDRESS),
    ],
)
def test_an_address_that_is_unsafe_or_none_is_named_and_refused_before_a_byte_is_sent(
    listener: tuple[int, list[bytes]], overheard: Callable[..., Any], variable: str, address: str, problem: str
) -> None:
    module = overheard(**{variable: address})
    with pytest.raises(module.ConfigurationError) as caught:
        module.login()
    shown = repr(address.replace("PORT", str(listener[0])))
    assert str(caught.value).startswith(f"set {variable} ({shown} {problem}); ")
    assert listener[1] == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:PORT", "http://localhost:PORT/", "https://iam.hospital.test"])
def test_the_listener_hears_a_login_that_is_not_refused(
    listener: tuple[int, list[bytes]], overheard: Callable[..., Any], address: str
) -> None:
    module = overheard(EB_IAM_URL=address)
    with pytest.raises(module.LoginError):
        module.login()
    assert listener[1][0].startswith((b"POST /api/auth/ziwig-pro/login", b"CONNECT iam.hospital.test:443"))


def test_what_is_sent_to_this_machine_takes_no_proxy(
    listener: tuple[int, list[bytes]], overheard: Callable[..., Any], platform: Simulator
) -> None:
    module = overheard(**{name: value for name, value in platform.environment().items() if name.startswith("EB_")})
    module.login()
    assert len(module.get_all_organizations()) == 5
    assert listener[1] == []


def test_a_refused_address_ends_the_script_with_exit_code_2_and_one_line(script: Script) -> None:
    secure = dict.fromkeys(("EB_IAM_URL", "EB_RC_URL"), "https://platform.hospital.test")
    path = script('print("never here")')
    finished = run_script(path, None, **secure, EB_GDD_URL="http://platform.hospital.test", EB_PASSWORD="x")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert re.fullmatch(rf"my_script: set EB_GDD_URL \('http://\S+' {UNENCRYPTED}\); .+\n", finished.stderr)


def test_a_login_in_an_address_is_not_written(script: Script) -> None:
    path = script('print("never here")')
    finished = run_script(path, None, EB_IAM_URL="https://me:let@me-in@iam.endobest.example", EB_PASSWORD="x")
    assert re.match(r"my_script: set EB_IAM_URL \('https://\*\*\*@iam.endobest.example' is a pl", finished.stderr)
    assert "me-in" not in finished.stderr + path.with_suffix(".log").read_text(encoding="utf-8")


def test_a_service_that_the_simulated_platform_does_not_have_is_not_reached_from_the_sandbox(
    script: Script, simulator: Start
) -> None:
    own = '"LAB": {"app_id": "", "base_url": "https://lab.hospital.test", "endpoints": {"config_token": "/token"}},'
    path = script('print("never here")', edits={'    "GDD": {\n': f'    {own}\n    "GDD": {{\n'}, ERROR_MAX_RETRY=1)
    finished = run_script(path, simulator())
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith("my_script: LAB config_token: ProxyError: ")
