"""No password, no token, no query string in any output."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from helpers import OWN_CALLS, Load, Start, answer, line_of, log_of, run_script
from server import Simulator

Script = Callable[..., Path]

DEBUG = 10
PASSWORD = "Zü-\\-\"quoted\"-'twice'-%s-{x}"
DEBUG_LIBRARIES = """
for library in ("httpx", "httpcore", "httpx2", "httpcore2"):
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


# ------------------------------------------------------------------------------------------------ Forms, cuts, and time


def all_forms(password: str) -> list[str]:
    """Those above, and JSON without other letters than ASCII's, and two kinds of URL encoding."""
    urls = [urllib.parse.quote(password, safe=""), urllib.parse.quote_plus(password)]
    return [*written_forms(password), json.dumps(password)[1:-1], *urls]


def test_a_password_is_masked_in_each_form_that_it_may_be_written_in(simulator: Start, script: Script) -> None:
    password = "Zü é+&/%\"\\x' 7"
    todo = """
for form in json.loads(os.environ["FORMS"]):
    logging.error("here: %s, in the middle: x%sx", form, form)
raise ValueError(os.environ["FORMS"])
"""
    path = script(todo)
    forms = all_forms(password)
    finished = run_script(path, simulator("--password", password), FORMS=json.dumps(forms))
    assert finished.returncode == 1
    text = written(finished, path)
    assert text.count("here: ***, in the middle: x***x") == 2 * len(forms)
    assert [form for form in forms if form in text] == []


def test_a_password_that_is_a_year_does_not_show_in_the_dates_of_the_log(simulator: Start, script: Script) -> None:
    year = time.strftime("%Y")
    path = script(f'logging.error("the {{}} password".format("{year}"))')
    finished = run_script(path, simulator("--password", year), EB_PASSWORD=year)
    assert finished.returncode == 0, finished.stderr
    lines = path.with_suffix(".log").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith(f"{year}-")] == []
    assert "the *** password" in finished.stderr


@pytest.mark.timeout(150)
@pytest.mark.parametrize("text", ["https://h/p;", "https://a:b", "https://h?", "bearer ", "cookie=", "*", "\n", "@"])
def test_the_time_for_a_text_of_a_server_does_not_grow_with_its_square(
    simulator: Start, script: Script, text: str
) -> None:
    """Of 2 MB; what is quadratic takes ten minutes for half of it."""
    todo = f"text = {text!r} * 200_000\nlogging.error(text)\nlogging.error('%r', [text])\nraise ValueError(text)"
    assert run_script(script(todo), simulator()).returncode == 1


def test_the_work_for_a_line_does_not_grow_with_the_number_of_tokens_that_were_seen(
    platform: Simulator, logged_in: Load, capfd: pytest.CaptureFixture[str]
) -> None:
    template = logged_in(platform)
    handler = template._Terminal()
    record = logging.makeLogRecord({"msg": "a line"})

    def work() -> int:
        events: list[str] = []
        sys.setprofile(lambda frame, event, argument: events.append(event))
        handler.emit(record)
        sys.setprofile(None)
        return len(events)

    def renew(times: int) -> None:
        for _ in range(times):
            platform.control(expire="RC")
            template.echo(1)

    renew(450)
    before = work()
    renew(300)
    assert work() <= before + 10
    assert capfd.readouterr().err == "a line\n" * 2


def test_tokens_that_are_still_in_use_are_masked_after_many_renewals_of_another_service(
    platform: Simulator, logged_in: Load, capfd: pytest.CaptureFixture[str]
) -> None:
    template = logged_in(platform)
    for _ in range(450):
        platform.control(expire="RC")
        template.echo(1)
    template._say(f"{template.tokens} {platform.options.password}")
    text = capfd.readouterr().err
    in_use = [session[key] for session in template.tokens.values() for key in ("access_token", "refresh_token")]
    assert [secret for secret in [*in_use, platform.options.password] if secret in text] == []


@pytest.mark.parametrize("shown", range(1, 40, 4))
def test_a_secret_where_a_long_message_is_cut_is_masked_as_a_whole(
    platform: Simulator, logged_in: Load, capfd: pytest.CaptureFixture[str], shown: int
) -> None:
    template = logged_in(platform)
    token = template.tokens["RC"]["access_token"]
    template._say("x" * (template._LONGEST_LINE - shown) + token)
    assert token[:shown] not in capfd.readouterr().err or shown == 1


# ------------------------------------------------------------------------------------------------------------- Patients

PATIENT = {"organization": 7, "patientId": "P-0815-" + "4711" * 20, "name": "Zoé Nemo", "birthDate": "1980-02-29"}
FAILS = """
def fail(inclusion):
    raise LookupError("no record")  # here

list(run_parallel(fail, [json.loads(os.environ["ITEM"])]))  # its source stands in the traceback
"""


IN_MAIN = "{failing}"
IN_A_TASK = "def task(item):\n    value = item['v']\n    {failing}\n\nlist(run_parallel(task, [dict(v=value)]))"
IN_A_POOL = "def task(value):\n    {failing}\n\nmain_thread_pool.submit(task, value).result()"
IN_A_CALL = "@api_call_with_retry('RC')\ndef get_age(value):\n    {failing}\n\nget_age(value)"
IN_A_THREAD = "def task():\n    {failing}\n\nthread = threading.Thread(target=task)\nthread.start()\nthread.join()"


@pytest.mark.parametrize("failing", ["int(value)", "{}[value]", "open(value)", "raise Exception(value)"])
@pytest.mark.parametrize(
    "place",
    [IN_MAIN, IN_A_TASK, IN_A_POOL, IN_A_CALL, IN_A_THREAD],
    ids=["in main", "in a task", "in a pool", "in a call", "in a thread"],
)
def test_what_an_exception_quotes_stands_in_the_tracebacks_of_the_log_alone(
    platform: Simulator, script: Script, place: str, failing: str
) -> None:
    path = script('value = os.environ["BIRTH_DATE"]\n' + place.format(failing=failing))
    finished = run_script(path, platform, BIRTH_DATE="1980-02-29")
    assert finished.returncode == 1
    assert re.search(r"^my_script: failed: .*(Error|Exception)\b", finished.stderr, re.MULTILINE)
    quoting = [line for line in log_of(path).splitlines() if "1980-02-29" in line]
    assert quoting, "the traceback says what was wrong"
    assert [line for line in quoting if not line.startswith("    ")] == []
    assert "1980" not in finished.stderr


@pytest.mark.parametrize("place", [IN_MAIN, IN_A_THREAD], ids=["in main", "in a thread"])
def test_a_handler_of_the_scripts_own_gets_no_traceback_of_the_engines(
    platform: Simulator, script: Script, place: str
) -> None:
    todo = "value = os.environ['BIRTH_DATE']\n" + place.format(failing="int(value)")
    path = script(todo, edits={"\nif __name__ ==": "\nlogging.basicConfig()\n\nif __name__ =="})
    finished = run_script(path, platform, BIRTH_DATE="1980-02-29")
    assert finished.returncode == 1
    assert "failed: " in finished.stderr
    assert "1980" not in finished.stderr
    assert "'1980-02-29'" in log_of(path)


BROKEN_ANSWERS = {
    "chunks that are none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{'lastName': 'VALLET'}\r\n",
    "a header that is none": b"HTTP/1.1 200 OK\r\nlastName VALLET\r\n\r\n",
    "a status line that is none": b"{'lastName': 'VALLET'}\r\n\r\n",
    "an address that is none": b"HTTP/1.1 302 Found\r\nLocation: http://VALLET:port/\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("sent", BROKEN_ANSWERS.values(), ids=BROKEN_ANSWERS.keys())
def test_of_an_answer_that_cannot_be_read_nothing_is_quoted(load: Load, sent: bytes) -> None:
    template = load(ERROR_MAX_RETRY=1)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(sent)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(httpx.HTTPError) as broken:
            template.get_httpx_client().get(f"http://127.0.0.1:{server.getsockname()[1]}").raise_for_status()
        thread.join()
    assert re.fullmatch(r"(RemoteProtocolError: [\w :]+|HTTP 302)", template.describe(broken.value))


@pytest.mark.parametrize("function", ["int", "{}.__getitem__", "functools.partial(int)"])
def test_what_an_exception_of_a_task_without_lines_of_its_own_quotes_is_not_shown_either(
    platform: Simulator, script: Script, function: str
) -> None:
    path = script(f'list(run_parallel({function}, [os.environ["BIRTH_DATE"]]))')
    assert "1980" not in run_script(path, platform, BIRTH_DATE="1980-02-29").stderr


@pytest.mark.parametrize(
    ("failing", "shown"),
    [
        ("open('no folder/any')", "failed: FileNotFoundError: No such file or directory (my_script.py line "),
        ("json.loads('{')", "failed: JSONDecodeError: Expecting property name"),
        (
            "identifier('')",
            "failed: a text that is empty, says nothing or has blanks around it is no id: pass a number, or a text as",
        ),
        (
            "get_nested_value({}, 'id')",
            "failed: the path is a list of keys, as ['id'], not the text 'id' (my_",
        ),
    ],
    ids=["of the system", "of JSON", "of an argument", "of a path"],
)
def test_what_an_exception_says_is_shown_where_it_cannot_hold_a_patient(
    platform: Simulator, script: Script, failing: str, shown: str
) -> None:
    assert shown in run_script(script(failing), platform).stderr


@pytest.mark.parametrize("order", [1, -1])
def test_of_an_item_that_fails_the_log_has_the_id_in_full_and_nothing_else_and_the_terminal_its_number(
    platform: Simulator, script: Script, order: int
) -> None:
    path = script(FAILS)
    finished = run_script(path, platform, ITEM=json.dumps(dict(list(PATIENT.items())[::order])))
    log = path.with_suffix(".log").read_text(encoding="utf-8")
    assert finished.returncode == 1
    words = f"failed on item 1: LookupError (my_script.py line {line_of(path)})"
    assert f"{words} (id {PATIENT['patientId']})\n" in log
    assert f"{words}\n" in finished.stderr
    assert "P-0815" not in finished.stderr
    assert [field for field in ("Nemo", "1980", "birthDate") if field in log + finished.stderr] == []


@pytest.mark.parametrize(
    ("item", "shown"),
    [("P-1", " (id P-1)"), (17, " (id 17)"), ({"id": 5, "patientId": "x"}, " (id 5)"), (["P-1", "Nemo"], "")],
    ids=repr,
)
def test_an_item_that_fails_is_named_in_the_log_by_its_id_if_it_has_one(
    platform: Simulator, script: Script, item: object, shown: str
) -> None:
    path = script(FAILS)
    finished = run_script(path, platform, ITEM=json.dumps(item))
    words = f"item 1: LookupError (my_script.py line {line_of(path)})"
    assert f"{words}{shown}\n" in path.with_suffix(".log").read_text(encoding="utf-8")
    assert f"{words}\n" in finished.stderr
    assert "Nemo" not in written(finished, path)


def test_of_an_inclusion_that_is_passed_for_an_id_no_field_is_written(platform: Simulator, script: Script) -> None:
    path = script('list(run_parallel(get_record_by_patient, [json.loads(os.environ["ITEM"])]))')
    finished = run_script(path, platform, ITEM=json.dumps(PATIENT))
    assert finished.returncode == 1
    assert [field for field in ("Nemo", "1980") if field in written(finished, path)] == []


def test_an_exception_in_a_thread_of_the_scripts_own_ends_the_run_and_shows_no_patient(
    platform: Simulator, script: Script
) -> None:
    todo = """
thread = threading.Thread(target=get_record_by_patient, args=["patient-4711"], name="mine")
thread.start()
thread.join()
"""
    path = script(todo)
    finished = run_script(path, platform)
    log = path.with_suffix(".log").read_text(encoding="utf-8")
    assert finished.returncode == 1
    assert re.search(
        r"(?m)^my_script: failed: thread mine: get_record_by_patient: HTTP 404 \(my_script.py line \d+\); ",
        finished.stderr,
    )
    assert "thread mine: get_record_by_patient: HTTP 404 (my_script.py line " in log
    assert "in get_record_by_patient" in log
    assert "4711" not in log + finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("location", ["/login?back=patient-4711", "https://sso.hospital.test/login?back=patient-4711"])
def test_where_a_redirect_leads_is_written_without_its_query(
    platform: Simulator, script: Script, location: str
) -> None:
    platform.control(answer={"organizations": answer(302, b"", location=location)})
    path = script("get_all_organizations()")
    finished = run_script(path, platform)
    assert f"failed: get_all_organizations: HTTP 302, redirects to {location.partition('?')[0]} (" in finished.stderr
    assert "4711" not in written(finished, path)
