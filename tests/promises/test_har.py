"""What a browser recorded of each dialect: what is read and told of it, and the copy that it leads to, which runs."""

import base64
import gzip
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import check_platform
import pytest
from dialects import DIALECTS
from helpers import TEMPLATE, Script, Start, environment_for, needs_posix, shell
from platform_check import har, shape
from platform_check.observed import Observation
from platform_check.script import read as read_script
from server import Simulator
from test_check_platform import NOTHING_TO_CHANGE, STUDY, assert_study_runs, checked, plain

VALUE = re.compile(r"eb-(?:access|refresh)-[\w-]+|EB[0-9]{6}-[0-9]+|[0-9a-f]{8}-[0-9a-f]{4}-[\w-]+")
FOLDER = TEMPLATE.parent / "tests/recording/har"
RECORDINGS = sorted(path.name.removesuffix(".har.gz") for path in FOLDER.glob("*.har.gz"))
PLAIN = "as-assumed"
TOLD = {
    "chromium-token-names": "access_token is accessToken, userId is user_id",
    "chromium-token-nested": "access_token is data.access_token",
    "firefox-dead-token-302": "RC wrong token: 401 HTTP 302, redirected to /login",
    "chromium-dead-token-403": "RC wrong token: 401 HTTP 403",
    "chromium-dead-token-200": "RC wrong token: 401 HTTP 200, an object with error: an error that looks like data",
    "firefox-pages-from-0": "RC first page: number 1 number 0",
    "chromium-pages-capped": "RC page size: as requested, 1000 10 of 36 when 20 are requested",
    "chromium-total-of-page": "RC total: counts all pages 20 on a page of 20, although at least 36 inclusions exist",
    "chromium-total-missing": "no total that is a number",
    "chromium-list-wrapped": "the list is in items",
    "chromium-refresh-kept": "the same refresh token",
    "chromium-refresh-omitted": "no refresh token in the response",
    "chromium-clock-ahead": "platform 5 min ahead",
    "chromium-rate-limit": "100 calls in 1 s according to its headers; 20 + 40 threads",
    "chromium-jwt": "a JWT that expires after 5 min",
    "chromium-moved": "RC organizations: method and path GET /api/v2/organizations",
    "firefox-moved-all": "GDD request_by_tube: method and path GET /gdd/v2/laboratory/tubes/ID",
    "chromium-moved-all": "RC config_token: the app_id of the script endobest-rc-front",
    "chromium-sanitized": "bearer header: Authorization: Bearer … not in the file: the browser left such headers out",
}
ADDRESSES = ("EB_IAM_URL", "EB_RC_URL", "EB_GDD_URL")
WITHOUT_ADDRESSES = dict.fromkeys(ADDRESSES, "")


def unpacked(name: str) -> str:
    return gzip.decompress((FOLDER / f"{name}.har.gz").read_bytes()).decode("utf-8")


def recorded(name: str, folder: Path, platform: Simulator | None = None) -> Path:
    """A recording as a user saves it; with a platform, as if the browser had visited that platform."""
    text = unpacked(name)
    if platform:
        text = re.sub(r"http://localhost:[0-9]+", platform.url, text)
    path = folder / "session.har"
    path.write_text(text, encoding="utf-8")
    return path


def changed(name: str, folder: Path, change: Callable[[list[Any]], object]) -> Path:
    path = recorded(name, folder)
    har = json.loads(path.read_text(encoding="utf-8"))
    change(har["log"]["entries"])
    path.write_text(json.dumps(har), encoding="utf-8")
    return path


def read(code: int, folder: Path, *arguments: object) -> str:
    """Run the check in a folder, with a Python without packages, check its exit code; returns its output."""
    return checked(code, None, None, folder, *map(str, arguments), bare=True)


def test_there_is_a_recording_of_each_dialect() -> None:
    assert {name.partition("-")[2] for name in RECORDINGS} >= {PLAIN, *DIALECTS}
    assert {name.partition("-")[0] for name in RECORDINGS} == {"chromium", "firefox"}
    assert TOLD.keys() <= set(RECORDINGS)


@pytest.mark.parametrize("recording", RECORDINGS)
def test_a_recording_is_reported_without_a_value_and_leads_to_a_copy_that_runs_the_study(
    recording: str, simulator: Start, script: Script
) -> None:
    dialect = recording.partition("-")[2]
    platform = simulator("--dialect", dialect) if dialect in DIALECTS else simulator()
    path = script(STUDY)
    file = recorded(recording, path.parent, platform)
    output = read(1, path.parent, "--har", file, "--apply", path)  # the addresses at least
    assert TOLD.get(recording, "") in plain(output)
    values = {*VALUE.findall(file.read_text(encoding="utf-8")), "Xq7-simulated-Zw3", "investigatrice@sandbox.example"}
    assert len(values) > 22
    assert [value for value in values if value in output] == []
    assert "Changed my_script.py in" in output
    assert_study_runs(path, platform, **WITHOUT_ADDRESSES)
    left = dialect in NOTHING_TO_CHANGE and dialect != "one-session"
    output = read(int(left), path.parent, "--har", file, path)
    assert "write `" not in output


# What is read of a file

Entries = list[Any]
Told = Callable[..., str]


@pytest.fixture
def told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Told:
    """What is said of a recording whose entries were changed, without the line breaks of the table: `told(change)`."""

    def tell(change: Callable[[Entries], object], name: str = f"chromium-{PLAIN}") -> str:
        assert check_platform.by_recording(changed(name, tmp_path, change), TEMPLATE, apply=False) == 1
        return plain(capsys.readouterr().out)

    return tell


def of(entries: Entries, end: str) -> Entries:
    """The entries of one path, preflights left out."""
    calls = [entry for entry in entries if entry["request"]["method"] != "OPTIONS"]
    return [entry for entry in calls if entry["request"]["url"].split("?")[0].endswith(end)]


def drop(end: str) -> Callable[[Entries], object]:
    return lambda entries: [entries.remove(entry) for entry in of(entries, end)]


def set_body(entry: Any, body: object) -> None:
    entry["response"]["content"]["text"] = json.dumps(body)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a HAR file, or only part of one"),
        (b'{"log": {"entries": [{"request":', "is not a HAR file, or only part of one"),
        (b"\xff\xfe\x00\xd8", "is not a HAR file, or only part of one"),
        (b"[" * 100_000, "is not a HAR file, or only part of one"),
        (b'{"name": "a package"}', "is not a HAR file: in the Network tab"),
        (b'{"log": {"entries": []}}', "contains no calls: open the developer tools first"),
        (b'{"log": {"entries": [null, 1, {"request": []}]}}', "contains no call to IAM, RC, GDD"),
    ],
)
def test_a_file_that_is_of_no_use_is_said_in_one_sentence(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "session.har").write_bytes(content)
    output = read(2, tmp_path, "--har", "session.har")
    assert re.fullmatch(f"check_platform.py: session.har {said}.*\n", output), output


def test_a_file_over_100_mb_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with open(tmp_path / "session.har", "wb") as file:
        file.truncate(har.MOST_BYTES + 1)
    output = read(2, tmp_path, "--har", "session.har")
    assert "has 100 MB, but at most 100 MB are read: choose Fetch/XHR (Firefox: XHR) in the Network tab" in output


@pytest.mark.parametrize("name", ["no-such-file", "."])
def test_a_file_that_cannot_be_read_is_said_in_one_sentence(name: str, tmp_path: Path) -> None:
    output = read(2, tmp_path, "--har", name)
    assert len(output.splitlines()) == 1


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = recorded(f"firefox-{PLAIN}", tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert "HTTP 200, userId, access_token, refresh_token" in plain(read(1, tmp_path, "--har", path))


def test_what_is_no_call_of_the_platform_is_passed_over_and_counted(told: Told) -> None:
    output = told(lambda entries: of(entries, "/search")[0]["response"]["content"].pop("text"))
    assert (
        "Ignored: preflights: 17; pages, scripts, pictures, fonts and the like: 3; calls to something else: 3; "
        "responses without JSON: 2; GraphQL: 1; responses from the cache: 1; aborted calls: 1; websockets: 1; "
        "responses whose body is not in the file: 1"
    ) in output


def test_a_reader_without_httpx_is_told_the_addresses_to_export_and_to_delete_the_file(tmp_path: Path) -> None:
    path = recorded(f"chromium-{PLAIN}", tmp_path)
    output = read(1, tmp_path, "--har", path)
    assert re.search(r"\nexport EB_RC_URL=http://localhost:\d+/rc\n|\n\$env:EB_RC_URL = \"http", output)
    assert "The recording contains your password, tokens and patient data. Delete it: " in output
    assert output.rstrip().endswith(str(path)) or os.name == "nt"


@needs_posix(reason="the lines are those of a POSIX shell")
def test_the_addresses_to_export_are_all_that_a_platform_as_assumed_needs(simulator: Start, copy: Path) -> None:
    platform, folder = simulator(), copy.parent
    path = recorded(f"firefox-{PLAIN}", folder, platform)
    output = read(1, folder, "--har", path, copy)
    exports = [line for line in output.splitlines() if line.startswith("export ")]
    check = f"python3 {TEMPLATE.parent}/tests/check_platform.py --har session.har my_script.py"
    environment = environment_for(platform, **WITHOUT_ADDRESSES, EB_THREADS="3")
    done = shell("; ".join([*exports, check, f"{sys.executable} my_script.py"]), folder, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 different" in done.stdout
    assert "my_script: done" in done.stderr


# How browsers differ


def as_base64(entries: Entries) -> None:
    for entry in entries:
        content = entry["response"]["content"]
        if content.get("text"):
            content["text"] = base64.b64encode(content["text"].encode()).decode()
            content["encoding"] = "base64"


def with_unknown_sizes(entries: Entries) -> None:
    for entry in entries:
        for part in (entry["request"], entry["response"]):
            part["headersSize"] = part["bodySize"] = -1
        entry["response"]["content"]["size"] = -1
        entry["time"] = -1


def by_http2(entries: Entries) -> None:
    for entry in entries:
        method, url = entry["request"]["method"], entry["request"]["url"]
        entry["request"]["headers"] += [{"name": ":method", "value": method}, {"name": ":path", "value": url}]


def with_other_fields(entries: Entries) -> None:
    """Fields that no standard knows, and dates of another form."""
    for number, entry in enumerate(entries):
        entry["_id"] = number
        entry["startedDateTime"] = "yesterday"


@pytest.mark.parametrize("change", [as_base64, with_unknown_sizes, by_http2, with_other_fields])
def test_another_way_to_write_the_same_gives_the_same_table(change: Callable[[Entries], None]) -> None:
    script = read_script(TEMPLATE)

    def table(entries: Entries) -> list[tuple[str, str]]:
        calls = [call for call in map(har.call_of, entries) if isinstance(call, har.Call)]
        findings = Observation(script, calls).findings()
        return [(f.about.check, f.verdict) for f in findings if f.about.check not in ("clock", "latency, keep-alive")]

    entries = json.loads(unpacked(f"chromium-{PLAIN}"))["log"]["entries"]
    usual = table(entries)
    change(entries)
    assert table(entries) == usual
    assert len(usual) > 30


# What is told


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("/ziwig-pro/login", "IAM login not in the file: log out, open the developer tools, then log in"),
        ("/getAllOrganizations", "RC organizations not in the file: open the list of centres"),
        ("/search", "RC search_inclusions not in the file: open the list of a centre's patients"),
        ("/byPatient", "RC record_by_patient not in the file: open a patient"),
        ("/with-answers", "RC surveys not in the file: open a patient's questionnaires"),
        ("/refreshToken", "RC refresh_token not in the file: leave the page open until the session has to be renewed"),
    ],
)
def test_what_the_file_does_not_show_is_told_with_what_to_click(end: str, words: str, told: Told) -> None:
    assert words in told(drop(end))


def test_what_could_be_two_things_is_told_as_both(told: Told) -> None:
    def twice(entries: Entries) -> None:
        for entry in of(entries, "/v2/centres"):
            other = json.loads(json.dumps(entry))
            other["request"]["url"] = entry["request"]["url"].replace("/v2/centres", "/v2/places")
            entries.append(other)

    output = told(twice, "chromium-moved-all")
    assert re.search(
        r"RC organizations: method and path could be GET http://\S+/v2/centres or GET http://\S+/places", output
    )
    assert "write the correct path of organizations" in output


def test_a_list_of_names_that_nothing_else_speaks_for_is_told_as_what_it_could_be(told: Told) -> None:
    def only_lists(entries: Entries) -> None:
        for entry in entries[:]:
            if "/v2/" in entry["request"]["url"] and not entry["request"]["url"].endswith(("/v2/centres", "sign-in")):
                entries.remove(entry)

    output = told(only_lists, "chromium-moved-all")
    assert re.search("RC organizations could be GET http://.*/roles.json", output)
    assert "not seen RC address" in output


def test_a_part_of_a_path_that_is_a_value_of_a_patient_is_shown_as_id(told: Told) -> None:
    def by_name(entries: Entries) -> None:
        record = of(entries, "/v2/patients/record")[0]
        body = json.loads(record["response"]["content"]["text"])
        record["request"]["url"] = record["request"]["url"].replace("/record?", f"/{body['patient']['lastName']}?")

    output = told(by_name, "chromium-moved-all")
    assert "RC record_by_patient: method and path GET /rc/v2/patients/ID" in output
    assert "the path of record_by_patient contains an id: write a function that puts it there" in output


def test_another_name_of_an_id_is_told_and_written(copy: Path) -> None:
    def rename(entries: Entries) -> None:
        for entry in entries:
            entry["request"]["url"] = entry["request"]["url"].replace("?patient=", "?subjectId=")

    path = changed(f"chromium-{PLAIN}", copy.parent, rename)
    output = read(1, copy.parent, "--har", path, "--apply", copy)
    assert "RC record_by_patient: the id is patient in the query subjectId in the query" in plain(output)
    assert 'params={"subjectId": identifier(patient_id)}' in copy.read_text(encoding="utf-8")


def test_another_header_for_the_token_is_told(told: Told) -> None:
    def rename(entries: Entries) -> None:
        for entry in entries:
            for header in entry["request"]["headers"]:
                header["name"] = header["name"].replace("Authorization", "X-Access-Token")
                header["value"] = header["value"].removeprefix("Bearer ")

    output = told(rename)
    assert "bearer header: Authorization: Bearer … x-access-token: …" in output
    assert "send the token in this header" in output


def test_a_login_that_was_refused_is_told_and_a_later_one_is_taken(told: Told) -> None:
    def refused_first(entries: Entries) -> None:
        entry = json.loads(json.dumps(of(entries, "/login")[0]))
        entry["response"]["status"] = 401
        set_body(entry, {"message": "no"})
        entries.insert(0, entry)

    assert "ok IAM login: 2xx with access_token and userId HTTP 200" in told(refused_first)


def test_a_login_that_was_only_refused_is_asked_for_again(told: Told) -> None:
    def refuse(entries: Entries) -> None:
        for entry in of(entries, "/login"):
            entry["response"]["status"] = 401
            set_body(entry, {"message": "no"})

    output = told(refuse)
    assert "not seen IAM login not in the file: it was refused (HTTP 401, an object with message); log out" in output
    assert "EB_PASSWORD" not in output


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        ("v2", "v2"),
        ("v1.2", "v1.2"),
        ("getAllOrganizations", "getAllOrganizations"),
        ("by-tube", "by-tube"),
        ("EB000123-21", "ID"),
        ("11390435-483a-56db-9b6b-66ac80303fa9", "ID"),
        ("ab3e4f5a", "ID"),
        ("Jean%20Dupont", "ID"),
        ("7", "ID"),
        ("a" * 42, "ID"),
    ],
)
def test_a_part_of_a_path_is_shown_if_it_is_a_word(part: str, shown: str) -> None:
    assert shape.shown_path(f"/api/{part}/x") == f"/api/{shown}/x"
    assert shape.shown_path(f"/api/{part}", hidden={part}) == "/api/ID"


def test_a_service_on_two_addresses_is_told(told: Told) -> None:
    def elsewhere(entries: Entries) -> None:
        for entry in of(entries, "/v2/questionnaires"):
            entry["request"]["url"] = re.sub(r"http://[^/]+", "https://surveys.test", entry["request"]["url"])

    output = told(elsewhere, "chromium-moved-all")
    assert "RC surveys: method and path POST /rc/v2/questionnaires at https://surveys.test" in output
    assert "add a separate service for surveys" in output


def test_where_one_path_is_outside_of_the_others_each_is_written_from_the_host_on(copy: Path) -> None:
    def outside(entries: Entries) -> None:
        drop("/byPatient")(entries)
        for entry in entries:
            entry["request"]["url"] = entry["request"]["url"].replace("/rc/api/surveys/filter/", "/forms/")

    path = changed(f"chromium-{PLAIN}", copy.parent, outside)
    output = read(1, copy.parent, "--har", path, "--apply", copy)
    services = read_script(copy).services
    assert re.fullmatch(r"http://localhost:\d+", services["RC"]["base_url"])
    assert services["RC"]["endpoints"] == {
        "config_token": "/rc/api/auth/config-token",
        "refresh_token": "/rc/api/auth/refreshToken",
        "organizations": "/rc/api/inclusions/getAllOrganizations",
        "statistics": "/rc/api/inclusions/inclusion-statistics",
        "search_inclusions": "/rc/api/inclusions/search",
        "record_by_patient": "/rc/api/records/byPatient",
        "surveys": "/forms/with-answers",
    }
    assert "not in the file: open a patient; others in RC begin with /rc" in plain(output)


def test_a_login_by_another_protocol_is_not_taken_for_a_token_configuration(told: Told) -> None:
    def by_code(entries: Entries) -> None:
        entry = json.loads(json.dumps(of(entries, "/login")[0]))
        entry["request"]["url"] = "https://sso.test/oauth/token"
        entry["request"]["postData"]["text"] = json.dumps({"grant_type": "authorization_code", "client_id": "web"})
        entries.insert(0, entry)

    output = told(by_code)
    assert "ok RC config_token: method and path POST /api/auth/config-token" in output
    assert "sso.test" not in output


def test_two_services_that_nothing_tells_apart_are_told_as_both(told: Told) -> None:
    def alike(entries: Entries) -> None:
        for entry in entries:
            entry["request"]["url"] = re.sub(r"localhost:\d+/(iam|rc|gdd)", "gateway.test", entry["request"]["url"])
            sent = entry["request"].get("postData", {})
            sent["text"] = re.sub("endobest-(rc|gdd)-front", r"\1-7f3e", sent.get("text", "")).replace("rc-7f3e", "a1")
            sent["text"] = sent["text"].replace("gdd-7f3e", "b2")
        for entry in entries[:]:
            if "/v2/" in entry["request"]["url"] and "/auth/" not in entry["request"]["url"]:
                entries.remove(entry)

    output = told(alike, "chromium-moved-all")
    assert "write the correct path of config_token" in output


def test_apply_is_refused_for_the_template_itself(tmp_path: Path) -> None:
    output = read(2, tmp_path, "--har", recorded(f"chromium-{PLAIN}", tmp_path), "--apply")
    assert "--apply changes a copy: name yours" in output


def test_what_no_machine_can_change_is_listed(copy: Path) -> None:
    def by_get(entries: Entries) -> None:
        for entry in of(entries, "/with-answers"):
            entry["request"]["method"] = "GET"

    path = changed(f"chromium-{PLAIN}", copy.parent, by_get)
    output = read(1, copy.parent, "--har", path, "--apply", copy)
    assert re.search(r"Left to you:\n  my_script.py:\d+  call surveys with GET\n", output), output
