"""The prompts: the script runs on a pseudo-terminal, or on a Windows console, and keys are typed."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from console import Console
from helpers import WATCHDOG, Run, Script, environment_for, finished_in, log_of, needs_posix, on_terminal, wait_until
from server import Simulator

ENTER, CTRL_C, CTRL_D = "\r", "\x03", "\x04"
DEFAULT_USER = "ziwig-invest2@yopmail.com"
QUESTIONS = {
    "EB_USER_NAME": f"User name [{DEFAULT_USER}]: ",
    "EB_PASSWORD": "Password: ",
    "EB_THREADS": "Threads, 1 to 20 [20]: ",
}
USER, PASSWORD, THREADS = QUESTIONS.values()
DESCRIPTORS = {"stdout": 1, "stderr": 2}
SECRET = "Xq7-tÿped-Zw3"
DEFAULTS = [(USER, ENTER), (THREADS, ENTER), (PASSWORD, SECRET + ENTER)]


@dataclass
class Talk:
    """How a dialogue went."""

    code: int
    shown: str  # everything that was on the terminal
    ending: str  # what followed the last answer
    echo: bool  # whether the terminal shows typed text afterwards
    log: str


def at_terminal(path: Path, variables: dict[str, str], *answers: tuple[str, str], **files: str) -> Talk:
    """Give each answer once its question is there; `stdout="out.csv"` redirects."""
    redirect = " ".join(f"{DESCRIPTORS[name]}> {file}" for name, file in files.items())
    child = on_terminal(path.parent, f"{path.name} {redirect}", variables)
    shown = ""
    for question, typed in answers:
        child.expect_exact(question)
        shown += child.before + question
        child.send(typed)
    ending = child.read().replace("\r", "")
    echo = child.getecho()
    child.close()
    return Talk(child.exitstatus, shown + ending, ending, echo, log_of(path))


def at_console(path: Path, variables: dict[str, str], *answers: tuple[str, str], **files: str) -> Talk:
    """The same at a console of Windows, whose screen has no blanks at the ends of lines."""
    with Console(path, variables, **{name: path.with_name(file) for name, file in files.items()}) as console:
        read = 0
        for question, typed in answers:
            asked = question.rstrip()
            wait_until(lambda: asked in console.screen()[read:])  # noqa: B023 - called at once
            read = console.screen().index(asked, read) + len(asked)
            console.press(typed)
        code = console.exit_code(WATCHDOG)
        assert code is not None, console.screen()
        shown = console.screen() + "\n" if console.screen() else ""
        return Talk(code, shown, shown[read:].removeprefix(" "), console.echoes(), log_of(path))


talk = at_console if sys.platform == "win32" else at_terminal


def variables_without(platform: Simulator, *missing: str) -> dict[str, str]:
    variables = environment_for(platform, EB_USER_NAME=DEFAULT_USER, EB_PASSWORD=SECRET)
    return {name: value for name, value in variables.items() if name not in missing}


@pytest.fixture
def platform(platform: Simulator) -> Simulator:
    """A platform that knows the user that the prompt offers."""
    platform.control(user=DEFAULT_USER, password=SECRET)
    return platform


@pytest.fixture
def path(script: Script) -> Path:
    return script('print("centres:", len(get_all_organizations()))')


def test_enter_takes_the_defaults_and_the_password_is_shown_nowhere(path: Path, platform: Simulator) -> None:
    talked = talk(path, variables_without(platform, *QUESTIONS), *DEFAULTS)
    assert talked.code == 0
    assert re.fullmatch(rf"\ncentres: {platform.options.centres}\nmy_script: done; [^\n]+\n", talked.ending)
    assert f" user {DEFAULT_USER}, 20 threads," in talked.log
    assert "tÿped" not in talked.shown + talked.log
    assert "tÿped" not in ascii(talked.log)
    assert talked.echo


def test_what_is_typed_is_used(path: Path, platform: Simulator) -> None:
    platform.control(user="zoé@hôpital.example")
    answers = [(USER, "zoé@hôpital.example" + ENTER), (THREADS, "3" + ENTER), (PASSWORD, SECRET + ENTER)]
    talked = talk(path, variables_without(platform, *QUESTIONS), *answers)
    assert talked.code == 0, talked.shown
    assert " user zoé@hôpital.example, 3 threads," in talked.log


@pytest.mark.parametrize("missing", QUESTIONS)
def test_only_what_is_missing_is_asked(path: Path, platform: Simulator, missing: str) -> None:
    typed = SECRET if missing == "EB_PASSWORD" else ""
    talked = talk(path, variables_without(platform, missing), (QUESTIONS[missing], typed + ENTER))
    assert talked.code == 0, talked.shown
    assert [name for name, question in QUESTIONS.items() if question.split()[0] in talked.shown] == [missing]


def test_nothing_is_asked_when_nothing_is_missing(path: Path, platform: Simulator) -> None:
    talked = talk(path, variables_without(platform))
    assert talked.code == 0
    assert re.fullmatch(r"centres: \d+\nmy_script: done; [^\n]+\n", talked.shown)


@needs_posix(reason="on a Windows console, Ctrl-D is a character")
def test_ctrl_d_takes_the_default_too_and_the_next_line_is_a_new_one(path: Path, platform: Simulator) -> None:
    answers = [(USER, CTRL_D), (THREADS, CTRL_D), (PASSWORD, SECRET + ENTER)]
    talked = talk(path, variables_without(platform, *QUESTIONS), *answers)
    assert talked.code == 0
    assert f" user {DEFAULT_USER}, 20 threads," in talked.log
    for question in (THREADS, PASSWORD, "centres"):
        assert f"\n{question}" in talked.shown


@pytest.mark.parametrize(
    "key", [ENTER, pytest.param(CTRL_D, marks=needs_posix(reason="on a Windows console, Ctrl-D is a character"))]
)
def test_no_password_ends_the_run_with_a_line_that_says_what_to_set(path: Path, platform: Simulator, key: str) -> None:
    talked = talk(path, variables_without(platform, "EB_PASSWORD"), (PASSWORD, key))
    assert talked.code == 2
    assert re.fullmatch(r"\nmy_script: EB_PASSWORD is empty: [^\n]+\n", talked.ending)
    assert talked.echo
    assert sum(platform.seen()["requests"].values()) == 0


def test_a_wrong_number_of_threads_ends_the_run_before_the_password_is_asked(path: Path, platform: Simulator) -> None:
    talked = talk(path, variables_without(platform, "EB_PASSWORD", "EB_THREADS"), (THREADS, "21" + ENTER))
    assert talked.code == 2
    assert "EB_THREADS = '21': give a whole number from 1 to 20 (MAX_THREADS)" in talked.ending
    assert PASSWORD.strip() not in talked.shown
    assert sum(platform.seen()["requests"].values()) == 0


def test_a_password_that_is_typed_where_the_threads_are_asked_for_is_shown_and_logged_nowhere_by_the_engine(
    path: Path, platform: Simulator
) -> None:
    talked = talk(path, variables_without(platform, "EB_PASSWORD", "EB_THREADS"), (THREADS, SECRET + ENTER))
    assert talked.code == 2
    assert "EB_THREADS = '***': give a whole number from 1 to 20" in talked.ending
    assert SECRET not in talked.ending.partition("EB_THREADS")[2] + talked.log


def test_a_refused_login_shows_one_line_and_no_password(path: Path, platform: Simulator) -> None:
    talked = talk(path, variables_without(platform, "EB_PASSWORD"), (PASSWORD, "Xq7-mistÿped" + ENTER))
    assert talked.code == 1
    assert re.fullmatch(r"\nmy_script: IAM login: [^\n]+\n", talked.ending)
    assert "mist" not in talked.shown + talked.log
    assert platform.seen()["logins"] == {"accepted": 0, "refused": 1}


def test_the_questions_are_seen_while_standard_output_goes_to_a_file(path: Path, platform: Simulator) -> None:
    talked = talk(path, variables_without(platform, *QUESTIONS), *DEFAULTS, stdout="out.csv")
    assert talked.code == 0
    output = (path.parent / "out.csv").read_text(encoding="utf-8")
    assert output == f"centres: {platform.options.centres}\n"


def test_nobody_is_asked_what_they_could_not_see(path: Path, platform: Simulator) -> None:
    talked = talk(path, variables_without(platform, *QUESTIONS), stderr="errors.txt")
    assert (talked.code, talked.shown) == (2, "")
    errors = (path.parent / "errors.txt").read_text(encoding="utf-8")
    assert re.fullmatch(r"my_script: EB_PASSWORD is empty: [^\n]+\n", errors)


@pytest.mark.parametrize("question", QUESTIONS.values())
def test_ctrl_c_at_a_question_ends_the_script_on_a_line_of_its_own_and_leaves_the_terminal_as_it_was(
    path: Path, platform: Simulator, question: str
) -> None:
    [name] = [name for name, text in QUESTIONS.items() if text == question]
    talked = talk(path, variables_without(platform, name), (question, CTRL_C))
    assert talked.code == 130
    if sys.platform == "win32":  # Wine's `input`, unlike that of Windows, ignores it: the line is the prompt's
        assert "my_script: stopped by SIGINT" in talked.shown
    else:
        assert re.fullmatch(r"(\^C)?\nmy_script: [^\n]+\n", talked.ending)
    assert talked.echo


def test_a_password_among_the_constants_serves_when_enter_is_pressed(script: Script, platform: Simulator) -> None:
    path = script("pass", edits={'DEFAULT_PASSWORD = ""': f"DEFAULT_PASSWORD = {SECRET!r}"})
    talked = talk(path, variables_without(platform, "EB_PASSWORD"), (PASSWORD, ENTER))
    assert talked.code == 0
    assert "tÿped" not in talked.shown + talked.log


def test_without_a_terminal_the_constants_serve_and_nothing_is_asked(run: Run) -> None:
    done = run(
        "pass", edits={'DEFAULT_PASSWORD = ""': f"DEFAULT_PASSWORD = {SECRET!r}"}, **dict.fromkeys(QUESTIONS, "")
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"my_script: done; [^\n]+\n", done.stderr)
    assert f" user {DEFAULT_USER}, 20 threads," in done.log


def test_a_pipe_is_no_terminal_and_what_it_holds_is_not_taken_for_answers(path: Path, platform: Simulator) -> None:
    command, answers = [sys.executable, path.name], f"{DEFAULT_USER}\n{SECRET}\n3\n"
    done = finished_in(path.parent, command, variables_without(platform, *QUESTIONS), answers)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"my_script: EB_PASSWORD is empty: [^\n]+\n", done.stderr)
