"""What a browser recorded leads to a copy that runs: recordings of real browsers, one for each dialect."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dialects import DIALECTS
from helpers import TEMPLATE, Script, Start
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
    """A recording as a person saves it; for a platform, as if the browser had visited that."""
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
    """Run the check in a folder, with a Python that has no packages, to an exit code; all that it said."""
    return checked(code, None, None, folder, *map(str, arguments), bare=True)


def test_there_is_a_recording_of_each_dialect() -> None:
    assert {name.partition("-")[2] for name in RECORDINGS} >= {PLAIN, *DIALECTS}
    assert {name.partition("-")[0] for name in RECORDINGS} == {"chromium", "firefox"}
    assert TOLD.keys() <= set(RECORDINGS)


@pytest.mark.parametrize("recording", RECORDINGS)
def test_what_a_browser_recorded_is_told_without_a_value_and_makes_a_copy_that_runs_the_study_unaided(
    recording: str, simulator: Start, script: Script
) -> None:
    dialect = recording.partition("-")[2]
    platform = simulator("--dialect", dialect) if dialect in DIALECTS else simulator()
    path = script(STUDY)
    har = recorded(recording, path.parent, platform)
    output = read(1, path.parent, "--har", har, "--apply", path)  # the addresses at least
    assert TOLD.get(recording, "") in plain(output)
    values = {*VALUE.findall(har.read_text(encoding="utf-8")), "Xq7-simulated-Zw3", "investigatrice@sandbox.example"}
    assert len(values) > 22
    assert [value for value in values if value in output] == []
    assert "Changed my_script.py in" in output
    assert_study_runs(path, platform, **WITHOUT_ADDRESSES)
    left = dialect in NOTHING_TO_CHANGE and dialect != "one-session"
    output = read(int(left), path.parent, "--har", har, path)
    assert "write `" not in output
