"""What a browser recorded leads to a copy that runs: recordings of real browsers, one for each dialect."""

from __future__ import annotations

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
from test_check_platform import NOTHING_TO_CHANGE, STUDY, assert_study_runs, checked

RECORDINGS = sorted(TEMPLATE.parent.glob("tests/recording/har/*.har.gz"))
PLAIN = "as-assumed"
ADDRESSES = ("EB_IAM_URL", "EB_RC_URL", "EB_GDD_URL")
WITHOUT_ADDRESSES = dict.fromkeys(ADDRESSES, "")


def dialect_of(recording: Path) -> str:
    """The dialect that a file was recorded in."""
    return recording.name.partition("-")[2].removesuffix(".har.gz")


def unpacked(name: str) -> str:
    """The text of a recording."""
    return gzip.decompress((TEMPLATE.parent / f"tests/recording/har/{name}.har.gz").read_bytes()).decode("utf-8")


def recorded(name: str, folder: Path, platform: Simulator | None = None) -> Path:
    """A recording as a person saves it; for a platform, as if the browser had visited that."""
    text = unpacked(name)
    if platform:
        text = re.sub(r"http://localhost:[0-9]+", platform.url, text)
    path = folder / "session.har"
    path.write_text(text, encoding="utf-8")
    return path


def changed(name: str, folder: Path, change: Callable[[list[Any]], object]) -> Path:
    """A recording whose entries were changed."""
    path = recorded(name, folder)
    har = json.loads(path.read_text(encoding="utf-8"))
    change(har["log"]["entries"])
    path.write_text(json.dumps(har), encoding="utf-8")
    return path


def read(folder: Path, *arguments: object, **variables: str) -> tuple[int, str]:
    """Run the check in a folder, with a Python that has no packages; exit code and all that it said."""
    return checked(None, None, folder, *map(str, arguments), bare=True, **variables)


def test_there_is_a_recording_of_each_dialect() -> None:
    assert {dialect_of(path) for path in RECORDINGS} >= {PLAIN, *DIALECTS}
    assert {path.name.split("-")[0] for path in RECORDINGS} == {"chromium", "firefox"}


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name.removesuffix(".har.gz"))
def test_what_a_browser_recorded_makes_a_copy_that_runs_the_study_unaided(
    recording: Path, simulator: Start, script: Script
) -> None:
    dialect = dialect_of(recording)
    platform = simulator("--dialect", dialect) if dialect in DIALECTS else simulator()
    path = script(STUDY)
    har = recorded(recording.name.removesuffix(".har.gz"), path.parent, platform)
    code, output = read(path.parent, "--har", har, "--apply", path)
    assert code == 1, output  # the addresses at least
    assert "Changed my_script.py in" in output
    assert_study_runs(path, platform, **WITHOUT_ADDRESSES)
    code, output = read(path.parent, "--har", har, path)
    assert code == (1 if dialect in NOTHING_TO_CHANGE and dialect != "one-session" else 0), output
    assert "write `" not in output
