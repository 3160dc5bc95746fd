"""What is read of a recording: bad files, what is passed over, how browsers differ, what is told apart by its shape."""

import base64
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import check_platform
import pytest
from helpers import TEMPLATE, Start, environment_for, needs_posix, shell
from platform_check import har, shape
from platform_check.observed import Observation
from platform_check.script import read as read_script
from test_check_platform import plain
from test_har import PLAIN, WITHOUT_ADDRESSES as NOWHERE, changed, read, recorded, unpacked

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
    return [
        entry
        for entry in entries
        if entry["request"]["url"].split("?")[0].endswith(end) and entry["request"]["method"] != "OPTIONS"
    ]


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
    environment = environment_for(platform, **NOWHERE, EB_THREADS="3")
    done = shell("; ".join([*exports, check, f"{sys.executable} my_script.py"]), folder, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 different" in done.stdout
    assert "my_script: done" in done.stderr


# How browsers differ


def as_base64(entries: Entries) -> None:
    """Bodies as some browsers write them."""
    for entry in entries:
        content = entry["response"]["content"]
        if content.get("text"):
            content["text"] = base64.b64encode(content["text"].encode()).decode()
            content["encoding"] = "base64"


def with_unknown_sizes(entries: Entries) -> None:
    """Sizes and times that a browser does not know."""
    for entry in entries:
        for part in (entry["request"], entry["response"]):
            part["headersSize"] = part["bodySize"] = -1
        entry["response"]["content"]["size"] = -1
        entry["time"] = -1


def by_http2(entries: Entries) -> None:
    """Headers as over HTTP/2."""
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


def test_a_list_with_ids_and_names_that_no_call_uses_is_not_taken_for_the_centres(told: Told) -> None:
    output = told(lambda entries: None, "chromium-moved-all")
    assert "/roles.json" in unpacked("chromium-moved-all")
    assert "RC organizations: method and path GET /rc/v2/centres" in output


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
