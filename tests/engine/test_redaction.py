"""No password, no token, no query string in any output."""

import json
import logging
import re
import sys
import time
import urllib.parse
from typing import Any

import httpx
import pytest
from faults import KINDS
from helpers import OWN_CALLS, Load, Run, line_of
from server import Simulator
from sockets import Answering

DEBUG = 10
PASSWORD = "Zü-\\-\"quoted\"-'twice'-%s-{x}"
DEBUG_LIBRARIES = """
for library in ("httpx", "httpcore", "httpx2", "httpcore2"):
    logging.getLogger(library).setLevel(logging.DEBUG)
"""
# Faults begin after the login, which is not retried after a web page.
FAULTY = f"""
faults = dict.fromkeys({KINDS!r}, float(os.environ["RATE"]) / {len(KINDS)})
control(faults=faults, slow=0.01)
"""
BUSY = """
for number, _ in run_parallel(echo, range(150)):
    if number == 75:
        control(expire="all")
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


@pytest.mark.parametrize("crash", CRASHES.values(), ids=CRASHES.keys())
def test_no_password_or_token_is_written_at_debug_with_a_crash(platform: Simulator, run: Run, crash: str) -> None:
    platform.control(password=PASSWORD)
    finished = run(
        DEBUG_LIBRARIES + OWN_CALLS + FAULTY + BUSY + crash,
        LOG_LEVEL=DEBUG,
        WAIT_BEFORE_RETRY=0.01,
        EB_PASSWORD=PASSWORD,
        RATE="0.15",
    )
    assert finished.returncode == 1, finished.stderr
    secrets = [*written_forms(PASSWORD), *platform.tokens()]
    assert platform.seen()["refreshes"]["accepted"] + platform.seen()["logins"]["accepted"] > 1, "none was renewed"
    assert [secret for secret in secrets if secret in finished.said] == []
    assert "***" in finished.said, "the script did not try to write a secret"
    assert "receive_response_headers" in finished.said, "httpcore did not log at DEBUG"
    assert "echo attempt 1: ok" in finished.said


def test_a_log_call_whose_arguments_do_not_fit_shows_its_place_and_none_of_them(platform: Simulator, run: Run) -> None:
    finished = run("""
logging.info("%d", tokens["RC"]["access_token"])
logging.critical("%s %s", os.environ["EB_PASSWORD"])
print("goes on")
""")
    assert (finished.returncode, finished.stdout) == (0, "goes on\n")
    assert len(re.findall(rf"^{re.escape(str(finished.path))}:[0-9]+: .+$", finished.stderr, re.MULTILINE)) == 2
    secrets = [platform.options.password, *platform.tokens()]
    assert [secret for secret in secrets if secret in finished.said] == []


def test_a_refused_password_is_not_written(run: Run) -> None:
    finished = run("pass", LOG_LEVEL=DEBUG, EB_PASSWORD=PASSWORD)
    assert finished.returncode == 1
    assert "refused with HTTP 401" in finished.said
    assert [form for form in written_forms(PASSWORD) if form in finished.said] == []


def test_the_engine_writes_no_query_string_because_it_names_patients(run: Run) -> None:
    todo = """
patient = get_all_inclusions(get_all_organizations()[0]["id"])[0]["patientId"]
for _ in range(10):
    get_record_by_patient(patient)
print(patient)
get_record_by_patient(patient + "-unknown")
"""
    finished = run(FAULTY + todo, LOG_LEVEL=DEBUG, ERROR_MAX_RETRY=50, WAIT_BEFORE_RETRY=0.01, RATE="0.5")
    assert finished.returncode == 1
    assert finished.stdout.strip() not in finished.log + finished.stderr


@pytest.mark.parametrize(
    "todo",
    [
        'call_endpoint("RC", "GET", f"/api/records/byPatient/{patient}", dict)',
        'call_endpoint("RC", "GET", f"api/records/byPatient/{patient}", dict)',
        "threading.Thread(target=lambda: {}[1], name=patient).start()",
    ],
    ids=["a path in place of its key", "a relative one", "the name of a thread"],
)
def test_an_id_that_gets_into_a_message_by_mistake_is_not_shown_on_the_terminal(run: Run, todo: str) -> None:
    find = 'patient = get_all_inclusions(get_all_organizations()[0]["id"])[0]["patientId"]\nprint(patient)\n'
    finished = run(find + todo)
    assert finished.returncode in (1, 2)
    assert finished.stdout.strip() not in finished.stderr


def test_after_a_login_without_run_a_handler_of_the_scripts_own_gets_no_address_of_httpx(run: Run) -> None:
    todo = "print(get_record_by_patient(get_all_inclusions(get_all_organizations()[0]['id'])[0]['patientId']))"
    start = "    logging.basicConfig(level=logging.INFO)\n    login()\n    main()\n"
    finished = run(todo, edits={"    sys.exit(run(main))\n": start})
    assert finished.returncode == 0, finished.stderr
    assert "user " in finished.stderr, "the engine's own line shows that the handler works"
    assert "HTTP Request" not in finished.stderr


# ------------------------------------------------------------------------------------------------ Forms, cuts, and time


def all_forms(password: str) -> list[str]:
    """Those above, ASCII-only JSON, and two kinds of URL encoding."""
    urls = [urllib.parse.quote(password, safe=""), urllib.parse.quote_plus(password)]
    return [*written_forms(password), json.dumps(password)[1:-1], *urls]


def test_a_password_is_masked_in_each_form_that_it_may_be_written_in(platform: Simulator, run: Run) -> None:
    password = "Zü é+&/%\"\\x' 7"
    todo = """
for form in json.loads(os.environ["FORMS"]):
    logging.error("here: %s, in the middle: x%sx", form, form)
raise ValueError(os.environ["FORMS"])
"""
    forms = all_forms(password)
    platform.control(password=password)
    finished = run(todo, EB_PASSWORD=password, FORMS=json.dumps(forms))
    assert finished.returncode == 1
    assert finished.said.count("here: ***, in the middle: x***x") == 2 * len(forms)
    assert [form for form in forms if form in finished.said] == []


def test_a_password_that_is_a_year_does_not_show_in_the_dates_of_the_log(platform: Simulator, run: Run) -> None:
    year = time.strftime("%Y")
    platform.control(password=year)
    finished = run(f'logging.error("the {{}} password".format("{year}"))', EB_PASSWORD=year)
    assert finished.returncode == 0, finished.stderr
    lines = finished.log.splitlines()
    assert [line for line in lines if not line.startswith(f"{year}-")] == []
    assert "the *** password" in finished.stderr


LONG = ["https://h/p;", "https://a:b", "https://h?", "bearer ", "cookie=", "*", "\n", "@"]


@pytest.mark.timeout(150)
def test_the_time_for_a_text_of_a_server_does_not_grow_with_its_square(run: Run) -> None:
    """Of 2 MB; what is quadratic takes ten minutes for half of it."""
    todo = f"""
for text in [each * 200_000 for each in {LONG!r}]:
    logging.error(text)
    try:
        raise ValueError(text)
    except ValueError:
        logging.exception("%r", [text])
raise ValueError(text)
"""
    assert run(todo).returncode == 1


def test_many_renewals_make_no_more_work_for_a_line_and_unmask_no_token_that_is_still_in_use(
    platform: Simulator, module: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = module._Terminal()
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
            module.echo(1)

    renew(250)  # more than are remembered, because each returns two tokens
    work()  # the first time, patterns are compiled
    before = work()
    renew(100)
    assert work() <= before + 10
    assert capfd.readouterr().err == "a line\n" * 3
    module._say(f"{module.tokens} {platform.options.password}")
    text = capfd.readouterr().err
    in_use = [session[key] for session in module.tokens.values() for key in ("access_token", "refresh_token")]
    assert [secret for secret in [*in_use, platform.options.password] if secret in text] == []


# ------------------------------------------------------------------------------------------------------------- Patients

PATIENT = {"organization": 7, "patientId": "P-0815-" + "4711" * 20, "name": "Zoé Nemo", "birthDate": "1980-02-29"}
IN_MAIN = "{failing}"
IN_A_THREAD = "def task():\n    {failing}\n\nthread = threading.Thread(target=task)\nthread.start()\nthread.join()"
QUOTING = {
    "int": "int(value)",
    "a key": "{}[value]",
    "a path": "open(value)",
    "words": "raise Exception(value)",
    "in a task": "def task(item):\n    int(item['v'])\n\nlist(run_parallel(task, [dict(v=value)]))",
    "in a pool": "def task(value):\n    int(value)\n\nmain_thread_pool.submit(task, value).result()",
    "in a call": "@api_call_with_retry('RC')\ndef get_age(value):\n    int(value)\n\nget_age(value)",
    "in a thread": IN_A_THREAD.format(failing="int(value)"),
    "a task without lines of its own": "list(run_parallel(int, [value]))",
    "a task of C": "list(run_parallel({}.__getitem__, [value]))",
    "a task without a name": "list(run_parallel(functools.partial(int), [value]))",
}


@pytest.mark.parametrize("todo", QUOTING.values(), ids=QUOTING)
def test_what_an_exception_quotes_stands_in_the_tracebacks_of_the_log_alone(run: Run, todo: str) -> None:
    finished = run(f'value = os.environ["BIRTH_DATE"]\n{todo}', BIRTH_DATE="1980-02-29")
    assert finished.returncode == 1
    assert re.search(r"^my_script: failed: .*(Error|Exception)\b", finished.stderr, re.MULTILINE)
    quoting = [line for line in finished.log.splitlines() if "1980-02-29" in line.partition(" (id ")[0]]
    assert quoting, "the traceback says what was wrong"
    assert [line for line in quoting if not line.startswith("    ")] == []
    assert "1980" not in finished.stderr


@pytest.mark.parametrize("place", [IN_MAIN, IN_A_THREAD], ids=["in main", "in a thread"])
def test_a_handler_of_the_scripts_own_gets_no_traceback_of_the_engines(run: Run, place: str) -> None:
    todo = "value = os.environ['BIRTH_DATE']\n" + place.format(failing="int(value)")
    finished = run(
        todo, edits={"\nif __name__ ==": "\nlogging.basicConfig()\n\nif __name__ =="}, BIRTH_DATE="1980-02-29"
    )
    assert finished.returncode == 1
    assert "failed: " in finished.stderr
    assert "1980" not in finished.stderr
    assert "'1980-02-29'" in finished.log


BROKEN_ANSWERS = {
    "chunks that are none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{'lastName': 'VALLET'}\r\n",
    "a header that is none": b"HTTP/1.1 200 OK\r\nlastName VALLET\r\n\r\n",
    "a status line that is none": b"{'lastName': 'VALLET'}\r\n\r\n",
    "an address that is none": b"HTTP/1.1 302 Found\r\nLocation: http://VALLET:port/\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("sent", BROKEN_ANSWERS.values(), ids=BROKEN_ANSWERS.keys())
def test_nothing_is_quoted_from_an_answer_that_cannot_be_read(load: Load, sent: bytes) -> None:
    template = load(ERROR_MAX_RETRY=1)
    with Answering(sent) as server, pytest.raises(httpx.HTTPError) as broken:
        template.get_httpx_client().get(f"http://127.0.0.1:{server.port}").raise_for_status()
    assert re.fullmatch(r"RemoteProtocolError: [\w :]+; host 127\.0\.0\.1|HTTP 302", template.describe(broken.value))


@pytest.mark.parametrize(
    ("failing", "shown"),
    [
        ("open('no folder/any')", "failed: FileNotFoundError: No such file or directory (my_script.py line "),
        ("json.loads('{')", "failed: JSONDecodeError: Expecting property name"),
        (
            "identifier('')",
            "failed: this str is not an id: pass an integer or a text, not empty and without blanks around it",
        ),
        ("get_nested_value({}, 'id')", "failed: the path is a list of keys, as ['id'], not the text 'id' (my_"),
    ],
    ids=["of the system", "of JSON", "of an argument", "of a path"],
)
def test_what_an_exception_says_is_shown_where_it_cannot_hold_a_patient(run: Run, failing: str, shown: str) -> None:
    assert shown in run(failing).stderr


FAILS = """
def fail(item):
    raise LookupError("no record")  # here

for number, each in enumerate(json.loads(os.environ["ITEMS"])):
    with contextlib.suppress(LookupError):
        list(run_parallel(fail, [each], return_exceptions=number % 2 == 1))  # its source stands in the traceback
"""
ITEMS: list[tuple[object, str]] = [
    (PATIENT, f" (id {PATIENT['patientId']})"),
    (dict(list(PATIENT.items())[::-1]), f" (id {PATIENT['patientId']})"),
    ({"id": 5, "patientId": "P-1"}, " (id 5)"),
    ({"id": 0, "patientId": "P-1"}, " (id 0)"),
    ("P-1", " (id P-1)"),
    (17, " (id 17)"),
    (["P-1", "Nemo"], ""),
]


def test_of_an_item_that_fails_the_log_has_the_id_in_full_and_no_more_and_the_terminal_its_number(run: Run) -> None:
    finished = run(FAILS, ITEMS=json.dumps([item for item, _ in ITEMS]))
    words = f"failed on item 1: LookupError (my_script.py line {line_of(finished.path)})"
    assert re.findall(rf"{re.escape(words)}(.*)\n", finished.log) == [shown for _, shown in ITEMS]
    assert finished.stderr.count(f"{words}\n") == len(ITEMS[::2]), "a loop that goes on tells the log alone"
    assert "P-" not in finished.stderr
    assert [field for field in ("Nemo", "1980", "birthDate") if field in finished.said] == []
