"""A copy takes over a new engine by the README's commands, and no template changes without a new version."""

from __future__ import annotations

import re
from pathlib import Path
from subprocess import CalledProcessError

import pytest
from helpers import TEMPLATE, TODO_BLOCK, git, git_environment, needs_posix, run_script, shell
from readme_and_spec import README, TOP, blocks
from server import Simulator

pytestmark = needs_posix(reason="the README's commands are for a POSIX shell")

NAME = TEMPLATE.name
TODAY = TEMPLATE.read_text(encoding="utf-8")
VERSION = re.compile(r'(?m)^TEMPLATE_VERSION = "(.*?)"')
(COMMANDS,) = (each for each in blocks("sh") if "git " in each)
FIND_BASE, MERGE = re.findall(r"(?ms)^version=.*?(?=^git merge)|^git merge.*", COMMANDS)
SERVICE = """    "LAB": {
        "app_id": "endobest-gdd",
        "base_url": os.environ["EB_GDD_URL"],
        "endpoints": {"config_token": "/api/auth/config-token", "refresh_token": "/api/auth/refreshToken"},
    },
"""
OWN_CALL = """@api_call_with_retry("RC")
def my_own_call() -> int:
    return len(call_endpoint("RC", "GET", "organizations", list))


"""


def edited(template: str) -> str:
    """A template as an author changes it: every constant, a service more, one less, a call and a script."""
    edit_1, engine, edit_2, edit_3 = re.split(r"(?m)(?=^# =+ (?:Engine: errors|EDIT [23]))", template)
    edit_1 = re.sub(r"(?m)^(MAX|SUB|ERROR|WAIT|API)(\w+ = [\d.]+)", r"\1\2 + 1", edit_1)
    edit_1 = re.sub(r'(?m)^(DEFAULT\w+ = ")', r"\1x", edit_1).replace("logging.INFO", "logging.DEBUG")
    edit_1 = re.sub(r"(?m)^custom_bar_format = .*", 'custom_bar_format = "{desc}"', edit_1)
    edit_1 = re.sub(r"(?m)^MICROSERVICES.*\n", lambda found: found[0] + SERVICE, edit_1)
    edit_1 = re.sub(r'(?ms)^    "GDD": \{\n.*?^    \},', lambda found: re.sub("(?m)^", "# ", found[0]), edit_1)
    edit_3 = TODO_BLOCK.sub("my own\n    print(my_own_call())", edit_3)
    return edit_1 + engine + edit_2 + OWN_CALL + edit_3


def renewed(template: str, version: str) -> str:
    """A template of another version: something new at the head of each section of the engine, something old gone."""
    template = VERSION.sub(f'TEMPLATE_VERSION = "{version}"', template)
    template = re.sub(r"(?m)^(# =+ Engine: (\w+).*\n)", rf'\1\nNEW_\2 = "{version}"\n', template)
    return re.sub(r"(?m)^GRACE_SECONDS = .*\n", f"GRACE_SECONDS = {version[0]}\n", template)


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """A repository with an older template, today's, and something else that names today's version."""
    git(tmp_path, "init", "--quiet")
    commit(tmp_path, NAME, renewed(TODAY, "0.9.0"))
    commit(tmp_path, NAME, TODAY)
    commit(tmp_path, "notes.md", TODAY)
    return tmp_path


def commit(folder: Path, name: str, text: str) -> None:
    """Commit a file."""
    (folder / name).write_text(text, encoding="utf-8")
    git(folder, "add", name)
    git(folder, "commit", "--quiet", "--message", f"Change {name}")


@pytest.mark.parametrize("base", [TODAY, renewed(TODAY, "0.9.0")], ids=["from today's", "from an older one"])
def test_a_copy_with_edits_in_all_three_places_takes_over_a_new_engine(
    base: str, history: Path, platform: Simulator
) -> None:
    new = renewed(TODAY, "9.0.0")
    commit(history, NAME, new)
    script = history / "my_script.py"
    script.write_text(edited(base), encoding="utf-8")
    done = shell(f"set -e\n{FIND_BASE}{MERGE}", history, git_environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert script.read_text(encoding="utf-8") == edited(new) != new
    done = run_script(script, platform)
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr
    assert "template 9.0.0" in (history / "my_script.log").read_text(encoding="utf-8")


def test_a_line_that_both_changed_is_marked_as_the_readme_shows(history: Path) -> None:
    def attempts(number: int) -> str:
        return re.sub(r"(?m)^ERROR_MAX_RETRY = \d+", f"ERROR_MAX_RETRY = {number}", TODAY)

    commit(history, NAME, renewed(attempts(8), "9.0.0"))
    script = history / "my_script.py"
    script.write_text(attempts(3), encoding="utf-8")
    done = shell(FIND_BASE + MERGE, history, git_environment())
    merged = script.read_text(encoding="utf-8")
    assert done.returncode == 1
    assert all(mark in README and merged.count(f"\n{mark}") == 1 for mark in ("<<<<<<<", "=======", ">>>>>>>"))
    assert merged.count("\nERROR_MAX_RETRY = ") == 2
    assert 'TEMPLATE_VERSION = "9.0.0"' in merged


def test_a_version_that_never_was_gives_no_base(history: Path) -> None:
    script = history / "my_script.py"
    script.write_text(VERSION.sub('TEMPLATE_VERSION = "7.7.7"', TODAY), encoding="utf-8")
    done = shell(FIND_BASE, history, git_environment())
    assert done.returncode != 0
    assert "fatal" in done.stderr
    assert done.stdout == (history / "base.py").read_text(encoding="utf-8") == ""


@pytest.fixture
def from_1_3_0(tmp_path: Path) -> Path:
    """A copy of template 1.3.0 with edits in all three places, that template, and today's."""
    if reason := no_history(TOP):
        pytest.skip(reason)
    (tmp_path / NAME).write_text(TODAY, encoding="utf-8")
    script = tmp_path / "my_script.py"
    script.write_text('TEMPLATE_VERSION = "1.3.0"\n', encoding="utf-8")
    find_base = FIND_BASE.replace("base.py", f"'{tmp_path}/base.py'").replace("my_script.py", f"'{script}'")
    found = shell(f"set -e\n{find_base}", TOP, git_environment())
    assert found.returncode == 0, found.stderr
    script.write_text(edited((tmp_path / "base.py").read_text(encoding="utf-8")), encoding="utf-8")
    return script


def test_a_copy_of_1_3_0_conflicts_with_the_new_engine_in_its_constants_alone(
    from_1_3_0: Path, platform: Simulator
) -> None:
    assert shell(MERGE, from_1_3_0.parent, git_environment()).returncode == 1
    merged = from_1_3_0.read_text(encoding="utf-8")
    conflict = re.compile(r"(?ms)^<<<<<<< .*?\n(.*?)^=======\n(.*?)^>>>>>>> .*?\n")
    ((mine, theirs),) = conflict.findall(merged)
    names = [re.findall(r"(?m)^(\w+) = ", lines) for lines in (mine, theirs)]
    assert set(names[1]) - set(names[0]) == {"API_DEADLINE"}
    kept = mine + "".join(re.findall(r"(?m)^API_DEADLINE.*\n", theirs))
    from_1_3_0.write_text(conflict.sub(lambda _: kept, merged), encoding="utf-8")
    done = run_script(from_1_3_0, platform)
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr


def test_keeping_all_lines_of_a_copy_drops_new_constants_as_the_readme_says(
    from_1_3_0: Path, platform: Simulator
) -> None:
    ours = MERGE.replace("merge-file", "merge-file --ours")
    assert shell(ours, from_1_3_0.parent, git_environment()).returncode == 0
    done = run_script(from_1_3_0, platform)
    assert done.returncode == 2
    assert "`API_DEADLINE = None: give a number`" in README
    assert "API_DEADLINE = None: give a number" in done.stderr


def is_unchanged(folder: Path) -> bool:
    """Whether the template in a folder is the one that its version stands for in the history."""
    command = FIND_BASE.replace("my_script.py", NAME).replace(" > base.py", "")
    done = shell(f"set -e\n{command}", folder, git_environment())
    assert done.returncode == 0, done.stderr
    return done.stdout == (folder / NAME).read_text(encoding="utf-8")


def no_history(folder: Path) -> str:
    """Why the history of a folder cannot tell; "" if it can."""
    try:
        git(folder, "ls-files", "--error-unmatch", NAME)
        if git(folder, "rev-parse", "--is-shallow-repository").strip() == "true":
            return "the clone is shallow: git fetch --unshallow"
        return "the template has uncommitted changes" if git(folder, "status", "--porcelain", "--", NAME) else ""
    except CalledProcessError:
        return "this is no git repository with the template in it"


def test_the_template_has_not_changed_since_its_version_was_set() -> None:
    if reason := no_history(TOP):
        pytest.skip(reason)
    assert is_unchanged(TOP), "the template has changed: give it a new TEMPLATE_VERSION and an entry in the changelog"


@pytest.mark.parametrize("version", ["", "7.7.7"], ids=["the same version", "a new version"])
def test_a_change_without_a_new_version_is_found(version: str, history: Path) -> None:
    assert is_unchanged(history)
    changed = TODAY.replace("Endobest", "Endobest platform")
    commit(history, NAME, VERSION.sub(f'TEMPLATE_VERSION = "{version}"', changed) if version else changed)
    assert not no_history(history)
    assert is_unchanged(history) is bool(version)


def test_a_history_that_cannot_tell_is_recognized(history: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / NAME).write_text(TODAY, encoding="utf-8")
    assert "no git repository" in no_history(elsewhere)
    git(elsewhere, "clone", "--quiet", "--depth", "1", history.as_uri(), "shallow")
    assert "shallow" in no_history(elsewhere / "shallow")
    (history / NAME).write_text(TODAY + "\n", encoding="utf-8")
    assert "uncommitted" in no_history(history)
