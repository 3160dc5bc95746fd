"""A copy of any version since 1.3.0 gets the template's engine with one command, and keeps what its author wrote."""

import contextlib
import difflib
import functools
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CalledProcessError

import pytest
from helpers import TEMPLATE, TODO_BLOCK, git, needs_posix, python
from readme_and_spec import TOP
from upgrading.script import Script
from upgrading.shipped import FILE, fingerprints

posix = needs_posix(reason="file modes and links are POSIX")

NAME = TEMPLATE.name
TODAY = TEMPLATE.read_text(encoding="utf-8")
VERSION = re.compile(r'(?m)^TEMPLATE_VERSION = "(.*?)"')
PRESENT = VERSION.findall(TODAY)[0]
NOTHING = f"my_script.py already has everything in template {PRESENT}: nothing to do\n"
UPGRADE, SANDBOX = TOP / "tests" / "upgrade.py", TOP / "tests" / "sandbox.py"
ENGINE = re.compile(
    r"(?ms)^# =+ ENGINE BEGINS\b.*?^# =+ ENGINE ENDS\b.*?$|^# =+ Engine: errors and stopping$.*?(?=\s+^# =+ EDIT 2)"
)

OWN_IMPORTS = "import csv\nfrom time import time\n"
OWN_SERVICE = """    "LAB": {
        "app_id": "endobest-gdd",
        "base_url": os.environ.get("EB_LAB_URL") or "https://lab.hospital.example",
        "endpoints": {"config_token": "/api/auth/config-token"},
    },
"""
OWN_ENDPOINT = '            "echo": "/api/echo",  # ours\n'
OWN_CALL = """@api_call_with_retry("RC")
def my_own_call() -> int:
    return len(call_endpoint("RC", "GET", "organizations", list))


"""
OWN_SCRIPT = """my own
    centres = get_all_organizations()
    inclusions = [each for centre in centres for each in get_all_inclusions(centre["id"])]
    records = [get_record_by_patient(each["patientId"]) for each in inclusions]
    surveys = [get_surveys(each["patientId"]) for each in inclusions]
    print(my_own_call(), len(inclusions), len(records), len(surveys), sorted(tokens), time() > 0)
    csv.writer(open("rows.csv", "w")).writerows(centres)"""
OUTPUT = "2 5 5 5 ['IAM', 'LAB', 'RC'] True\n"
OWN_SURVEYS = "    # ours: in the order that we need\n    return sorted({}, key=str)"
OWN_LINE = "OURS = 1  # in the engine\n"
OWN = [OWN_IMPORTS, OWN_SERVICE, OWN_ENDPOINT, OWN_CALL, OWN_SCRIPT, OWN_SURVEYS.split("\n")[0]]

Upgraded = subprocess.CompletedProcess[str]
Written = Callable[[str], Path]
Copies = Callable[[str], tuple[str, Upgraded, Path]]


def upgrade(script: Path | str, folder: Path, command: Path = UPGRADE) -> Upgraded:
    """Upgrade a script with the command; returns its output and exit code."""
    return python([str(command), str(script)], folder)


def section(output: str, title: str) -> list[str]:
    found = re.search(rf"(?m)^{title}\n((?:  .*\n)+)", output)
    return [line.strip() for line in found[1].splitlines()] if found else []


@functools.cache
def history() -> dict[str, str]:
    """The templates since 1.3.0 by version, from the history of this repository."""
    with contextlib.suppress(CalledProcessError):
        commits = git(TOP, "log", "--reverse", "--format=%H", "--", NAME).split()
        texts = [git(TOP, "show", f"{commit}:./{NAME}") for commit in commits]
        known = {VERSION.findall(text)[0]: text for text in texts}
        if "1.3.0" in known:
            return dict(list(known.items())[list(known).index("1.3.0") :])
    pytest.skip("this is no git repository with its history")


def replaced(pattern: str, new: str | Callable[[re.Match[str]], str], text: str) -> str:
    """The text after replacing the only match of a pattern."""
    text, count = re.subn(pattern, new if callable(new) else lambda _: new, text)
    assert count == 1, f"{pattern} is {count} times in the template"
    return text


def below(code: str, text: str = TODAY) -> str:
    """The template with an author's code above EDIT 3."""
    return replaced("(?m)^(?=# =+ EDIT 3)", code, text)


def function(name: str) -> str:
    """A pattern for one of the template's API functions."""
    return rf"(?ms)^(?:@[^\n]*\n)?def {name}\(.*?\n\n\n"


def edited(template: str) -> str:
    """A template with an author's changes: at the top, in all three EDIT sections, and in the engine."""
    text = replaced("(?m)^import httpx$", lambda found: f"{found[0]}\n{OWN_IMPORTS.rstrip()}", template)
    constants, rest = text.split("TEMPLATE_VERSION", 1)
    text = re.sub(r"(?m)^([A-Z_]+ = [\d.]+)", r"\1 + 1", constants) + "TEMPLATE_VERSION" + rest
    text = replaced("(?m)^LOG_LEVEL = logging.INFO", "LOG_LEVEL = logging.DEBUG", text)
    text = replaced(r"(?m)^MICROSERVICES.*\n", lambda found: found[0] + OWN_SERVICE, text)
    text = replaced('(?m)^            "statistics": .*\n', lambda found: found[0] + OWN_ENDPOINT, text)
    text = replaced(r'(?ms)^    "GDD": \{\n.*?^    \},', lambda found: re.sub("(?m)^", "# ", found[0]), text)
    text = replaced(function("get_request_by_tube"), "", text)
    surveys = r'    return (call_endpoint\("RC", "POST", "surveys".*)'
    text = replaced(surveys, lambda found: OWN_SURVEYS.format(found[1]), text)
    text = replaced(ENGINE.pattern, lambda found: f"{found[0].rstrip()}\n{OWN_LINE.rstrip()}", text)
    return TODO_BLOCK.sub(lambda _: OWN_SCRIPT, below(OWN_CALL, text))


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    """Edited copies of old versions, upgraded once: the old text, the output, and the path."""

    @functools.cache
    def upgraded(version: str) -> tuple[str, Upgraded, Path]:
        old, script = edited(history()[version]), tmp_path_factory.mktemp(version) / "my_script.py"
        script.write_text(old, encoding="utf-8", newline="")
        return old, upgrade(script, script.parent), script

    return upgraded


@pytest.fixture
def copy(tmp_path: Path) -> Written:
    def write(text: str) -> Path:
        script = tmp_path / "my_script.py"
        script.write_text(text, encoding="utf-8", newline="")
        return script

    return write


@pytest.fixture
def download(tmp_path: Path) -> Written:
    """The files that the command needs, without git, with another template: `download(text)` returns the command."""

    def make(template: str) -> Path:
        tests = tmp_path / "download" / "tests"
        shutil.copytree(UPGRADE.parent / "upgrading", tests / "upgrading")
        for name in ("upgrade.py", "environment.py", "script_file.py"):
            shutil.copy(UPGRADE.with_name(name), tests)
        (tests.parent / NAME).write_text(template, encoding="utf-8", newline="")
        return tests / "upgrade.py"

    return make


@pytest.mark.parametrize("version", ["1.3.0", "2.0.0", "2.2.0"])
def test_a_copy_with_edits_everywhere_gets_the_engine_keeps_the_rest_and_runs(version: str, copies: Copies) -> None:
    old, done, script = copies(version)
    assert (done.returncode, done.stderr) == (0, "")
    text = script.read_text(encoding="utf-8")
    assert ENGINE.findall(text) == ENGINE.findall(TODAY)
    assert VERSION.findall(text) == [PRESENT]
    outside = [ENGINE.sub("", each).splitlines() for each in (old, text, history()[version], TODAY)]
    changes = list(difflib.ndiff(*outside[:2]))
    gone, new = ({line[2:] for line in changes if line.startswith(sign)} for sign in "-+")
    assert gone <= set(outside[2]), "something of the author's"
    assert new <= {*outside[3], *section(done.stdout, "Added")}, "something that is not the template's"
    assert all(lines in text for lines in OWN)
    assert script.with_name(f"my_script.{version}.py").read_text(encoding="utf-8") == old
    diff = script.with_name(f"my_script.{version}.engine.diff").read_text(encoding="utf-8")
    assert re.findall("(?m)^[-+](?![-+]).*\n", diff) == [f"+{OWN_LINE}"]
    again, names = (
        upgrade(script, script.parent),
        [f"my_script.{version}.engine.diff", f"my_script.{version}.py", script.name],
    )
    assert (again.stdout.startswith(NOTHING), script.read_text(encoding="utf-8")) == (True, text)
    assert sorted(os.listdir(script.parent)) == names
    small = ["--centres", "2", "--patients", "5", "--latency", "0"]
    ran = python([str(SANDBOX), *small, script.name], script.parent)
    assert (ran.returncode, ran.stdout) == (0, OUTPUT), ran.stderr
    assert f"template {PRESENT}" in (script.parent / "my_script.sandbox" / "my_script.log").read_text(encoding="utf-8")


def test_the_output_says_what_was_replaced_what_was_added_and_what_to_look_at(copies: Copies) -> None:
    _, done, script = copies("1.3.0")
    head = f"my_script.py: upgraded from template 1.3.0 to {PRESENT}; the old version is my_script.1.3.0.py"
    assert done.stdout.splitlines()[0] == head
    lines = section(done.stdout, "Replaced")
    assert lines[0].startswith("the engine (previously lines ")
    assert {f"TEMPLATE_VERSION: it is now {PRESENT}", "get_record_by_patient, which you had not edited"} <= set(lines)
    assert "API_DEADLINE" in section(done.stdout, "Added")
    engine, surveys = section(done.stdout, "To look at")
    assert engine.startswith("the engine was edited: my_script.1.3.0.engine.diff shows how it differs")
    assert "get_surveys stays as you wrote it, but the template's has changed: see" in surveys
    assert (
        done.stdout.splitlines()[-1] == f"Try it: python3 {shlex.quote(SANDBOX.as_posix())} {shlex.quote(str(script))}"
    )


def test_line_ends_and_a_byte_order_mark_survive_without_git(copies: Copies, copy: Written, download: Written) -> None:
    old, _, unix = copies("2.2.0")
    script = copy("\ufeff" + old.replace("\n", "\r\n"))
    done = upgrade(script, script.parent, download(TODAY.replace("\n", "\r\n")))
    assert done.returncode == 0, done.stderr
    assert f"my_script.2.2.0.engine.diff shows how it differs from {NAME} {PRESENT}" in done.stdout
    expected = "\ufeff" + unix.read_text(encoding="utf-8").replace("\n", "\r\n")
    assert script.read_bytes() == expected.encode("utf-8")


def test_an_engine_that_was_edited_again_is_reported_again_and_nothing_is_overwritten(copy: Written) -> None:
    ours = replaced("(?m)^(?=# =+ ENGINE ENDS)", OWN_LINE, TODAY)
    script = copy(ours)
    for number in ("", "-2"):
        script.write_text(ours, encoding="utf-8")
        done = upgrade(script, script.parent)
        assert f"the engine was edited: my_script.{PRESENT}.engine{number}.diff shows" in done.stdout
        assert script.read_text(encoding="utf-8") == TODAY
        assert script.with_name(f"my_script.{PRESENT}{number}.py").read_text(encoding="utf-8") == ours
        diff = script.with_name(f"my_script.{PRESENT}.engine{number}.diff").read_text(encoding="utf-8")
        assert re.findall("(?m)^[-+](?![-+]).*\n", diff) == [f"+{OWN_LINE}"]


@posix
def test_a_copy_elsewhere_keeps_its_name_its_mode_and_its_link(tmp_path: Path) -> None:
    folder = tmp_path / "Hélène Dupré"
    folder.mkdir()
    script, link = folder / "été 2026.py", folder / "link.py"
    script.write_text(TODAY.replace("API_DEADLINE = 300", "# "), encoding="utf-8")
    script.chmod(0o750)
    link.symlink_to(script.name)
    done = upgrade("Hélène Dupré/link.py", tmp_path)
    assert (done.returncode, section(done.stdout, "Added")) == (0, ["API_DEADLINE"])
    assert (link.is_symlink(), stat.S_IMODE(script.stat().st_mode)) == (True, 0o750)
    assert sorted(os.listdir(folder)) == ["link.py", f"été 2026.{PRESENT}.py", "été 2026.py"]
    assert "'Hélène Dupré/link.py'" in done.stdout.splitlines()[-1]


# What a copy lacks, and what it leaves out deliberately


def test_what_a_copy_lacks_is_added(copy: Written) -> None:
    text = "#!/usr/bin/env python3\n" + TODAY
    for name in ("DEFAULT_USER_NAME = .*", "API_DEADLINE = .*", "import httpx", "import logging"):
        text = replaced(rf"(?m)^{name}\n", "", text)
    text = replaced('(?m)^            "search_inclusions": .*\n', "", text)
    script = copy(replaced(r"(?m)^# /// script\n(?:#.*\n)+?# ///\n", "", text))
    added = section(upgrade(script, script.parent).stdout, "Added")
    names = ["DEFAULT_USER_NAME", "API_DEADLINE", "RC: search_inclusions"]
    assert added == ["import logging", "import httpx", "the requirements block", *names]
    text = script.read_text(encoding="utf-8")
    assert sorted(text.splitlines()) == sorted(["#!/usr/bin/env python3", *TODAY.splitlines()])
    constants = re.compile("(?ms)^DEFAULT_USER_NAME.*?^MICROSERVICES")
    assert constants.findall(text) == constants.findall(TODAY)
    assert text.startswith("#!/usr/bin/env python3\n# /// script\n")
    assert python(["-c", "import my_script"], script.parent).returncode == 0


def test_what_the_author_left_out_or_sets_in_another_way_stays_so(copy: Written) -> None:
    text = replaced(r'(?ms)^    "GDD": \{\n.*?^    \},\n', "", TODAY)
    text = replaced('(?m)^            "refresh_token": .*\n', "", text)
    text = replaced('(?m)^            (?="statistics")', "            # ", text)
    text = replaced("(?m)^API_DEADLINE = .*", "from math import inf as API_DEADLINE", text)
    text = text.replace('"""Return the counts of one centre."""', '"""Ours."""')
    script = copy(replaced(function("get_request_by_tube"), "", text))
    assert upgrade(script, script.parent).stdout == NOTHING


def test_an_endpoint_that_cannot_be_added_is_named(copy: Written) -> None:
    script = copy(replaced(r'(?s)(?<="endpoints": )\{\s*"login": .*?\}', "{}", TODAY))
    done = upgrade(script, script.parent)
    assert done.stdout.startswith(f"{NOTHING}To look at\n  IAM: login has to be added by hand")


def test_a_later_template_brings_constants_and_endpoints_with_their_comments(copy: Written, download: Written) -> None:
    constant = "# How many there are at most.\nNEW_LIMIT = 7  # more is slower\n"
    endpoint = '            # since 98\n            "new": "/api/new",\n'
    later = replaced("(?m)^(?=LOG_LEVEL = )", constant, VERSION.sub('TEMPLATE_VERSION = "98.0.0"', TODAY))
    first = r'(?m)^(?=            "config_token": .*\n.*\n            "organizations")'
    later = replaced(first, endpoint, later)
    later = later.replace("The counts of one centre.", "Counts.").replace("The questionnaires of", "All of")
    script = copy(TODAY)
    done = upgrade(script, script.parent, download(later))
    assert section(done.stdout, "Added") == ["NEW_LIMIT", "RC: new"]
    assert script.read_text(encoding="utf-8") == later


def test_a_function_stays_as_the_author_wrote_it_or_deleted_it_and_is_renewed_otherwise(copy: Written) -> None:
    text = history()["1.3.0"].replace('"""Endobest script template', '"""Our report')
    text = replaced(r"inclusions \+= page\[.data.\]", lambda found: found[0] + "  # ours", text)
    text = replaced(function("get_surveys"), "", text)
    text = replaced(r"(?m)^(def get_record_by_patient.*)$", lambda found: found[0] + "  ", text)
    script = copy(text)
    done = upgrade(script, script.parent)
    text = script.read_text(encoding="utf-8")
    assert ("  # ours\n" in text, '"""Our report' in text, "get_surveys" in text) == (True, True, False)
    assert re.findall(function("get_record_by_patient"), text) == re.findall(function("get_record_by_patient"), TODAY)
    [note] = section(done.stdout, "To look at")
    assert "get_all_inclusions stays as you wrote it, but the template's has changed" in note


# Names


def test_names_of_the_old_engine_that_the_new_one_lacks_are_named_with_their_lines(copy: Written) -> None:
    own = "def ours(error):\n    print(text_of(error))\n    return itertools.count(), measured\n\n\n"
    script = copy(below(own, history()["2.2.0"]))
    notes = section(upgrade(script, script.parent).stdout, "To look at")
    first = script.read_text(encoding="utf-8").splitlines().index("def ours(error):") + 1
    gone = "is not defined: the old engine had it, the new one does not"
    assert notes == [f"line {first + 2}: measured {gone}", f"line {first + 1}: text_of {gone}"]


def test_names_that_the_engine_and_the_author_share_are_named(copy: Written) -> None:
    used, set_ = sorted(re.findall(r"(?m)^(_[a-z]\w+) = ", ENGINE.findall(TODAY)[0]))[:2]
    own = f"def every_page():\n    return {used}\n\n\n{set_} = 1\n\n\n"
    script = copy(below(own, replaced("(?m)^(?=MAX_THREADS = )", "logger = 1\n", TODAY)))
    notes = section(upgrade(script, script.parent).stdout, "To look at")
    first = script.read_text(encoding="utf-8").splitlines().index("def every_page():") + 1
    fix = "replaces the engine's: give it another name"
    assert f"line {first + 1}: {used} belongs to the engine, which may change it: do not use it" in notes
    assert {f"line {first}: your every_page {fix}", f"line {first + 4}: your {set_} {fix}"} < set(notes)
    assert len(notes) == 4
    assert [note for note in notes if "your logger is replaced by the engine's: give it another name" in note]


def test_ordinary_lines_of_a_script_are_not_mentioned(copy: Written) -> None:
    own = """import datetime, queue
from time import time
class Row:
    size = 1
    double = size * 2
    def name(self) -> "NoType":
        run = __file__
        return lambda text_of: [run, text_of]
numpy = sum(each for each in (1, 2))
def set_it():
    global it
    it = 1
print(lambda: it)
"""
    script = copy(below(own))
    assert upgrade(script, script.parent).stdout == NOTHING


# Requirements

BLOCK = re.compile(r"(?m)^# /// script\n(?:#.*\n)+?# ///$")
PINS = re.findall('"(.*?)"', re.findall("(?m)^# dependencies = .*$", TODAY)[0])


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ('["httpx>=0.27", "pandas>=2", "tqdm"]', '["{0}", "pandas>=2", "{1}"]'),
        (
            '[\n#   "pandas[excel]>=2",  # ours ]\n#   "httpx[http2] ==0.28.1",\n# ]',
            '["{1}", \n#   "pandas[excel]>=2",  # ours ]\n#   "httpx[http2]>=0.28,<0.29",\n# ]',
        ),
        ("""["httpx-sse", 'tqdm>=4; python_version > "3"']""", """["{0}", "httpx-sse", '{1}; python_version > "3"']"""),
        ('["httpx2>=2.16,<3", "tqdm>=4"]', '["httpx2>=2.16,<3", "{1}"]'),
    ],
    ids=["another one", "several lines", "a condition", "httpx2"],
)
def test_the_authors_own_requirements_survive(own: str, expected: str, copy: Written) -> None:
    block = '# /// script\n# requires-python = ">=3.12"\n# dependencies = {}\n#\n# [tool.uv]\n# exclude = "2026"\n# ///'
    script = copy(BLOCK.sub(lambda _: block.format(own), TODAY))
    done = upgrade(script, script.parent)
    assert section(done.stdout, "Replaced") == ["versions in the requirements block"]
    assert BLOCK.findall(script.read_text(encoding="utf-8")) == [block.format(expected.format(*PINS))]


# What is not a copy

OLD = 'TEMPLATE_VERSION = "2.2.0"\n# ==== Engine: errors and stopping\n# ==== EDIT 2: API functions\n'
MARKS = re.findall("(?m)^# =+ ENGINE (?:BEGINS|ENDS).*$", TODAY)
BAD = {
    "another script": ("print(1)\n", 'is not a copy of the template: it has no line TEMPLATE_VERSION = "..."'),
    "a version that is none": ('TEMPLATE_VERSION = "mine"\n', 'says TEMPLATE_VERSION = "mine", which is not a version'),
    "too old": (OLD.replace("2.2.0", "1.2.0"), "is from template 1.2.0, but upgrades start at 1.3.0"),
    "too new": (TODAY.replace(PRESENT, "99.0.0"), f"is from template 99.0.0, newer than this one ({PRESENT})"),
    "no banner": (OLD.replace("Engine", "engine"), 'has no line "# ==== Engine: errors and stopping"'),
    "no marks": (re.sub("(?m)^# =+ ENGINE.*\n", "", TODAY), 'has no line "# ==== ENGINE BEGINS"'),
    "a mark twice": (TODAY.replace(MARKS[0], MARKS[0] + "\n" + MARKS[0]), 'has 2 lines "# ==== ENGINE BEGINS"'),
    "marks the wrong way round": (
        OLD.replace("2.2.0", PRESENT) + "\n".join(MARKS[::-1]),
        "has the line that ends the engine above",
    ),
    "a conflict that git left": (TODAY + "<<<<<<< ours\n", "cannot be read by this Python"),
    "Latin-1": (TODAY.encode() + "# été\n".encode("latin-1"), "is not UTF-8, see line "),
    "line ends of two kinds": (TODAY + "# one\r\n", "mixes different line endings"),
    "nothing": ("", "is not a copy of the template"),
}


@pytest.mark.parametrize(("content", "reason"), BAD.values(), ids=BAD)
def test_a_file_that_cannot_be_upgraded_is_reported_in_one_sentence_and_nothing_is_written(
    content: str | bytes, reason: str, tmp_path: Path
) -> None:
    script = tmp_path / "my_script.py"
    script.write_bytes(content.encode() if isinstance(content, str) else content)
    before = script.read_bytes()
    done = upgrade(script, tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"upgrade.py: my_script.py {reason}")
    assert (os.listdir(tmp_path), script.read_bytes()) == (["my_script.py"], before)


@posix
def test_where_nothing_can_be_written_nothing_is(copy: Written) -> None:
    script = copy(replaced("(?m)^(?=# =+ ENGINE ENDS)", OWN_LINE, TODAY))
    script = script.rename(script.with_name("x" * 240 + ".py"))  # the name of the diff would be too long
    before = script.read_bytes()
    done = upgrade(script, script.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"upgrade.py: {script.name} cannot be written in {script.parent}: File name too long\n"
    assert (os.listdir(script.parent), script.read_bytes()) == ([script.name], before)


@pytest.mark.parametrize("arguments", [[], ["a.py", "b.py"], ["--all"], ["none.py"]])
def test_a_wrong_command_line_is_reported_in_one_sentence(arguments: list[str], tmp_path: Path) -> None:
    done = python([str(UPGRADE), *arguments], tmp_path)
    missing, usage = "none.py cannot be read: No such", "name one script: python3 tests/upgrade.py my_script.py"
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"upgrade.py: {missing if 'none.py' in arguments else usage}")


def test_the_template_has_not_changed_since_its_version_was_set() -> None:
    if PRESENT not in history() or git(TOP, "status", "--porcelain", "--", NAME):
        pytest.skip("the template has uncommitted changes")
    first = git(TOP, "log", "--reverse", "--format=%H", f"-S{PRESENT}", "--", NAME).split()[0]
    changed = "the template has changed: give it a new TEMPLATE_VERSION and an entry in the changelog"
    assert git(TOP, "show", f"{first}:./{NAME}") == TODAY, changed


def test_each_template_of_the_history_is_known_without_it() -> None:
    known = json.loads(FILE.read_text(encoding="utf-8"))
    old = {version: text for version, text in history().items() if version != PRESENT}
    lines = {version: fingerprints(Script(text)) for version, text in old.items()}
    assert known == lines, f"write into {FILE.name}: {json.dumps(lines, indent=1)}"
