"""The commands in the README work, and show what the README says."""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    TEMPLATE,
    Run,
    Script,
    Start,
    all_inclusions,
    answer,
    base_python,
    git,
    git_environment,
    needs_posix,
    on_terminal,
    python,
    run_script,
    shell,
    wait_until,
)
from readme_and_spec import README_FILE, RECIPES, SPECIFICATION_FILE, TOP, block, blocks, code, table
from server import Simulator
from study import Study

posix = needs_posix(reason="the README's commands are for a POSIX shell")

PICTURE = "$ python3 tests/sandbox.py\n"  # how the text samples in the README begin
FIRST_SCRIPT = "import csv\n"
CHECK = "$ python3 tests/check_platform.py my_script.py\n"
LOG = "2026-"

TOKEN = re.compile(r"(?P<number>\d[\d.,:]*)|(?P<space> +)|(?P<bar>[█-▏]+)|(?P<gap>…)|.")
WILD = {"number": r"\d[\d.,:]*", "space": r"\s+", "bar": "[ █-▏]*", "gap": ".*"}


def pattern(shown: str, *exact: str) -> str:
    """A pattern for a line of a sample: numbers and bars may differ, and `…` is anything."""
    wild = {kind: whatever for kind, whatever in WILD.items() if kind not in exact}
    return TOKEN.sub(lambda found: wild.get(str(found.lastgroup)) or re.escape(found[0]), shown)


def assert_shown(sample: str, output: str) -> None:
    """Check that every line of a sample appears in the output, in this order."""
    position = 0
    for line in sample.strip("\n").split("\n"):
        found = re.compile(pattern(line)).search(output, position)
        assert found, f"{line!r} is not in {output[position:]}"
        position = found.end()


def filled_in(commands: str, variables: dict[str, str]) -> str:
    """Commands with values in place of the `...` in the README."""
    return re.sub(
        r"(EB_\w+)=(?:https://|(?P<q>'))\.\.\.(?(q)')", lambda found: f"{found[1]}='{variables[found[1]]}'", commands
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of the current repository, with the packages of the tests."""
    folder = tmp_path / "clone"
    files = [TEMPLATE, README_FILE, SPECIFICATION_FILE, TOP / "requirements.txt", TOP / ".gitignore"]
    shutil.copytree(TOP / "tests", folder / "tests", ignore=shutil.ignore_patterns(".*", "__pycache__"))
    for path in files:
        shutil.copy(path, folder)
    (folder / "tests" / ".venv").symlink_to(TOP / "tests" / ".venv", target_is_directory=True)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "The template")
    return folder


@posix
def test_the_commands_of_the_readme_work_one_after_the_other_in_a_clone(clone: Path, platform: Simulator) -> None:
    tools = clone.parent / "tools"
    tools.mkdir()
    (tools / "python3").write_text(f'#!/bin/sh\nexec "{base_python()}" "$@"\n')
    (tools / "python3").chmod(0o700)
    variables = platform.environment()
    unnamed = {name: value for name, value in variables.items() if not name.endswith("_URL")}
    commands = filled_in("".join(blocks("sh")), variables).replace("python3 tests ", "python3 tests --collect-only -q ")
    commands = re.sub(r".*--har .*\n", "", commands)  # a recording takes a browser: see test_har
    environment = {**git_environment(), **unnamed, "PATH": f"{tools}:{os.environ['PATH']}"}
    done = shell("set -ex\n" + commands, clone, environment)
    if done.returncode and re.findall(r"(?m)^\+ .*", done.stderr)[-1].startswith("+ .venv/bin/pip"):
        pytest.skip("pip reaches no package index")
    assert done.returncode == 0, done.stderr
    for folder in (clone, clone / "my_script.sandbox"):
        assert (folder / "my_script.log").read_text(encoding="utf-8").count("my_script: done;") == 1
    assert (clone / "my_script.py").read_bytes() == (clone / TEMPLATE.name).read_bytes()


def test_the_first_script_writes_every_patient_into_a_csv(run: Run, study: Study) -> None:
    done = run(block("python", FIRST_SCRIPT))
    assert done.returncode == 0, done.stderr
    with done.path.with_name("patients.csv").open(encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file, delimiter=";")
    assert header == ["centre", "patient", "status"]
    centres = [(centre["name"], all_inclusions(study, centre["id"])) for centre in study.organizations]
    assert rows == [[name, each["pseudonym"], each["status"]] for name, inclusions in centres for each in inclusions]


def commented(start: str) -> str:
    """The lines of the recipe's comment that begin so, as one types them."""
    text = (RECIPES / "unattended.sh").read_text(encoding="utf-8")
    found = re.findall(rf"(?m)^# +({re.escape(start)}.*\n)", text)
    assert found
    return "".join(found)


@pytest.fixture
def unattended(
    script: Script, platform: Simulator, tmp_path: Path
) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a script with the recipe's crontab line, and only the variables in the recipe's file."""

    def run(todo: str) -> subprocess.CompletedProcess[str]:
        script(todo)
        (tmp_path / ".venv").symlink_to(sys.prefix, target_is_directory=True)
        shutil.copy(RECIPES / "unattended.sh", tmp_path)
        (tmp_path / "endobest.env").write_text(
            filled_in(commented("export "), platform.environment()), encoding="utf-8"
        )
        command = commented("0 3 * * *").removeprefix("0 3 * * *").replace("/srv/endobest/", f"'{tmp_path}'/")
        return shell(command, Path("/"), {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})

    return run


@posix
def test_the_line_for_the_crontab_runs_a_script_with_nothing_but_its_file_of_variables(
    unattended: Callable[..., Any], tmp_path: Path
) -> None:
    done = unattended("open('result.txt', 'w').close()\nprint(len(get_all_organizations()), sys.argv[1:])")
    assert (done.returncode, done.stdout) == (0, "5 []\n"), done.stderr
    assert "20 threads" in (tmp_path / "my_script.log").read_text(encoding="utf-8")
    written = [tmp_path / name for name in ("my_script.py.lock", "my_script.log", "result.txt")]
    assert not any(file.stat().st_mode & 0o077 for file in written)


@posix
def test_an_unattended_run_that_fails_has_the_exit_code_of_the_script(unattended: Callable[..., Any]) -> None:
    assert unattended("sys.exit(7)").returncode == 7


@posix
def test_an_unattended_run_is_refused_while_another_is_at_work(unattended: Callable[..., Any], tmp_path: Path) -> None:
    with subprocess.Popen(["flock", str(tmp_path / "my_script.py.lock"), "cat"], stdin=subprocess.PIPE) as holder:
        wait_until(lambda: is_locked(tmp_path / "my_script.py.lock"))
        done = unattended("print('at work')")
        assert (done.returncode, done.stdout) == (1, "")
        assert "my_script.py: another run is still going" in done.stderr
        holder.communicate()
    assert shell("flock -n my_script.py.lock true", tmp_path, dict(os.environ)).returncode == 0


def is_locked(file: Path) -> bool:
    return file.exists() and subprocess.run(["flock", "-n", str(file), "true"]).returncode == 1


@posix
def test_the_picture_of_a_run_is_what_a_terminal_shows(tmp_path: Path) -> None:
    command = shlex.quote(str(TOP / "tests" / "sandbox.py"))
    child = on_terminal(tmp_path, command, dict(os.environ), (50, 120))
    assert_shown(block("text", PICTURE).removeprefix(PICTURE), child.read())


def test_the_picture_of_a_check_is_what_it_prints(script: Script, platform: Simulator) -> None:
    path = script("pass")
    done = python([str(TOP / "tests" / "check_platform.py"), path.name], path.parent, **platform.environment())
    assert_shown(block("text", CHECK).removeprefix(CHECK), done.stdout)


def test_the_sample_of_a_log_is_what_a_log_shows(simulator: Start, script: Script) -> None:
    busy = simulator("--user", "ziwig-invest2@yopmail.com", "--fault", "503=0.3")
    path = script(
        """
        ids = [organization["id"] for organization in get_all_organizations()]
        print(sum(1 for _ in run_parallel(get_statistics, ids * 20)))
        """,
        WAIT_BEFORE_RETRY=0.01,
    )
    assert run_script(path, busy).stdout == "100\n"
    sample = block("text", LOG).replace("on linux", f"on {sys.platform}")
    assert_shown(sample, path.with_suffix(".log").read_text(encoding="utf-8"))


# By symptom: how the platform behaves, the script's variables ({} is the platform's address), and its TODO block.
GET = "get_all_organizations()"
PAGE = answer(200, b'{"data": [{"patientId": "1"}], "total": 3}')
SYMPTOMS: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "login fails: wrong address": ({}, {"EB_IAM_URL": "{}/nowhere"}, GET),
    "login fails: web page": ({"answer": {"login": answer(200, b"<html>", "text/html")}}, {}, GET),
    "login fails: refused": ({}, {"EB_PASSWORD": "wrong"}, GET),
    "login fails: no connection": ({}, {"EB_IAM_URL": "http://127.0.0.1:1"}, GET),
    "token expired": ({"expire": "all"}, {}, f"tokens['RC'].update(access_token='old')\n{GET}"),
    "token lost": ({}, {}, f"tokens['RC'].update(access_token='old', refresh_token='old')\n{GET}"),
    "token refused": ({"answer": {"organizations": answer(401)}}, {}, GET),
    "company certificate": ({}, {"EB_IAM_URL": "{}/iam"}, GET),
    "script hangs": ({"hold": 1}, {}, "get_statistics('any')"),
    "performance": ({"faults": {"503": 0.3}}, {}, f"[get_statistics({GET}[0]['id']) for _ in range(50)]"),
    "pages do not add up": ({"answer": {"search_inclusions": PAGE}}, {}, "get_all_inclusions('any')"),
    "stopped by itself": ({}, {}, "1 / 0"),
}


@pytest.mark.parametrize(
    ("symptom", "shown"),
    [pytest.param(*row[:2], id=row[0]) for row in table("symptom | in the log or on the terminal | what to do")],
)
def test_each_symptom_shows_as_the_readme_says(
    symptom: str, shown: str, platform: Simulator, certified: Start, run: Run
) -> None:
    behaviour, variables, todo = SYMPTOMS[symptom]
    platform.control(**behaviour)
    address = certified().url if symptom == "company certificate" else platform.url
    last = {
        "ERROR_MAX_RETRY": 20 if symptom == "performance" else 2,
        "API_TIMEOUT": 0.2 if symptom == "script hangs" else 60,
    }
    done = run(
        todo, WAIT_BEFORE_RETRY=0.001, **last, **{name: value.format(address) for name, value in variables.items()}
    )
    output = done.stdout + done.stderr + done.log
    assert code(shown)
    for text in code(shown):
        assert re.search(pattern(text, "number", "space"), output), f"{text!r} is not in {output}"


def test_each_sample_of_the_readme_is_tried() -> None:
    samples = (PICTURE, CHECK, LOG)
    assert [text for text in blocks("text") if not text.startswith(samples)] == []
    languages = re.findall(r"(?m)^ *```(\w*)", README_FILE.read_text(encoding="utf-8"))
    assert set(languages) == {"python", "sh", "text", ""}
    assert len(languages) == 2 * sum(len(blocks(language)) for language in ("python", "sh", "text"))


# The runner of the tests

COLLECT = ("--collect-only", "--quiet", "-n0")


def collected(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Let the runner find tests, without running them."""
    return python([str(TOP / "tests"), *arguments, *COLLECT], folder)


def test_a_very_long_choice_of_tests_is_a_choice_as_any_other() -> None:
    done = collected(TOP, "-k", "x" * 5000, "tests/engine/test_json.py")
    assert "deselected" in done.stdout, done.stderr
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_choice_of_tests_that_is_also_the_name_of_a_file_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "jsonpath").touch()
    assert "test_json.py::" in collected(tmp_path, "-k", "jsonpath").stdout
