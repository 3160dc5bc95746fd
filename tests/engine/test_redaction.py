"""No password, no token, no query string in any output."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import OWN_CALLS, Start, run_script
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
