"""Author and engine share the names of one module: neither affects the other, or the run ends with an error."""

import dis
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest
from helpers import TEMPLATE, Ran, Run, Script, Start, log_of, needs_posix, run_script
from server import Simulator

# The names of the engine that a script may use.
FOR_SCRIPTS = """
    tokens get_httpx_client get_thread_position api_call_with_retry call_endpoint url_of identifier path_segment
    require_id rows_on every_page main_thread_pool subtasks_thread_pool run_parallel tqdm get_nested_value login run
    describe logger TemplateError ConfigurationError LoginError WrongType WrongValue RunStopped
"""
PUBLIC = FOR_SCRIPTS.split()

# The names from the imports at the top of the file. They belong to the author.
HEAD = {"os", "sys", "logging", "httpx", "as_completed", "Any"}

# Names of the engine of 2.2.0, which broke scripts that used them.
OF_FORMER_ENGINES = """
    CHECK DeadlineStream END_OF_ENGINE Figures GRACE_SECONDS Item LOGIN LOG_BYTES LOG_EVERY LONGEST_LINE LogFile LogLine
    MISSING NOT_SENT_ERRORS P PAIR_SECONDS PlainBar REFRESH RETRIED_ERRORS RETRIED_STATUSES STOP_SIGNALS Sessions Stop T
    Terminal ThreadPool ThreadState address_problem ask ask_threads asked_about become_worker cancel catch_signals
    check_configuration check_session checked_tokens children close_client end_work exit_code failure_of finished_tasks
    flush_output forget_parent hear_signals http_date id_of in_time interrupt_main is_retryable is_terminal
    is_unknown_host is_untrusted keep_deadline keep_secret make_private may_ask measured next_signal note_failure
    on_signal on_thread_failure open_log outcome_of owns_process pickled place_of plan_retry reason_of redacted
    redacted_url refuse_other_service results_of retry_after_seconds retry_delay run_inline run_task say script_name
    shared_tls_context skip_cookies start_deadline text_of wait_for warn_unless watch_signals with_retries write_end
    Callable Counter Executor Future Generator Iterable Iterator ParamSpec Path Sequence ThreadPoolExecutor TypeVar
    datetime defaultdict deque timedelta timezone random time perf_counter sleep Thread Lock Queue
    Empty Event choice monotonic uniform
"""
LIBRARY = [name for name in sys.stdlib_module_names if not name.startswith("_")]
AUTHORS = " ".join(sorted({*OF_FORMER_ENGINES.split(), *LIBRARY, *typing.__all__} - HEAD))


def engine() -> str:
    """The lines of the engine, between its two marks."""
    text = TEMPLATE.read_text(encoding="utf-8")
    found = re.findall(r"(?ms)^# =+ ENGINE BEGINS\b[^\n]*\n(.*?)^# =+ ENGINE ENDS\b", text)
    assert len(found) == 1, f"the marks of the engine stand {len(found)} times in the template"
    return str(found[0])


def bound_by(code: CodeType, *ways: str) -> Iterator[str]:
    """Every name that code binds in its module: by an import, a statement, a loop, or `global` in a function."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname in ways)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from bound_by(inner, "STORE_GLOBAL")


def listed_in(code: str) -> list[str]:
    """The names in the comment at the top of the engine: each begins a line, and its description follows."""
    [comment] = re.findall(r"\A\n*((?:#[^\n]*\n)+)", code)
    return re.findall(r"(?m)^# +([A-Za-z]\w*)(?:\([^)]*\))?  +\S", comment)


# ------------------------------------------------------------------------------------------------------------- the list


def test_the_engine_begins_with_the_list_of_the_names_that_a_script_may_use() -> None:
    assert sorted(listed_in(engine())) == sorted(PUBLIC)
    assert len(PUBLIC) <= 32


def test_every_name_of_the_engine_is_in_the_list_or_begins_with_an_underscore() -> None:
    names = set(bound_by(compile(engine(), "engine", "exec"), "STORE_NAME", "STORE_GLOBAL"))
    assert {name for name in names if not name.startswith("_")} == set(PUBLIC)


# ------------------------------------------------------------------------------------------ names that are the author's

FIRST_CONSTANT = "\nDEFAULT_USER_NAME = "
FIRST_FUNCTION = '\n@api_call_with_retry("RC")\ndef get_all_organizations'
PLACES = {"EDIT 1": FIRST_CONSTANT, "EDIT 2": FIRST_FUNCTION}

# The author's names are set to values that fail loudly if they are used.
FORBIDDEN = """
class ForbiddenValue:
    def refuse(self, *arguments, **options):
        raise RuntimeError("the engine has used a name of the author's")

    __call__ = __getattr__ = __getitem__ = __setitem__ = __contains__ = __iter__ = __next__ = __len__ = refuse
    __bool__ = __enter__ = __exit__ = __eq__ = __lt__ = __add__ = __radd__ = __mul__ = __rmul__ = __index__ = refuse

globals().update(dict.fromkeys({names!r}.split(), ForbiddenValue()))
"""
# Work in a separate module, which sees none of the names that the script sets.
WORK = """
import collections, os, signal, threading


def work(eb):
    centres = eb.get_all_organizations()
    pages = dict(eb.run_parallel(eb.get_all_inclusions, [centre["id"] for centre in centres], desc="Centres"))
    patients = [row["patientId"] for centre in centres for row in pages[centre["id"]]]
    eb.control(expire="RC")
    records = dict(eb.run_parallel(eb.get_record_by_patient, [*patients, "nobody"], return_exceptions=True))
    print(len(patients), [eb.describe(each) for each in records.values() if isinstance(each, Exception)])
    rows = [records[patient] for patient in patients]
    print(collections.Counter(eb.get_nested_value(rows, ["*", "visits", "*", "samples", "*", "type"], "none")))
    print([subtask.result()[:1] for subtask in [eb.subtasks_thread_pool.submit(eb.get_surveys, patients[0])]])
    with eb.tqdm(total=5, desc="By hand", bar_format=eb.custom_bar_format) as bar, eb.main_thread_pool as executor:
        for future in [executor.submit(eb.get_statistics, centre["id"]) for centre in centres]:
            print(future.result()["total"])
            bar.update()
    eb.logging.error("to be masked: %s", eb.tokens["RC"]["access_token"])
    {ending}
"""
TODO = '__import__("author").work(__import__("sys").modules["__main__"])'
ENDINGS = {
    "done": "pass",
    "a call that fails": "eb.get_statistics('nowhere')",
    "a task that fails": "list(eb.run_parallel(lambda item: item['name'], [{'id': 'of an item'}]))",
    "a thread that fails": "thread = threading.Thread(target=int, args=['x'])\n    thread.start()\n    thread.join()",
}
BY_SIGNAL = "os.kill(os.getpid(), signal.SIGTERM)\n    signal.pause()"
FAULTS = ("--fault", "503=0.1", "--fault", "truncated=0.05", "--fault", "html=0.05", "--fault", "bad-gzip=0.05")
QUICK = {"WAIT_BEFORE_RETRY": 0.001, "LOG_LEVEL": 10}


def inserted(place: str, code: str) -> dict[str, str]:
    """Lines of an author at the top of EDIT 1 or EDIT 2, as `edits` of a script."""
    return {PLACES[place]: f"\n{code}\n{PLACES[place]}"}


def everywhere(code: str) -> dict[str, str]:
    """Such lines at the top of both."""
    return {place: new for name in PLACES for place, new in inserted(name, code).items()}


def essence(text: str) -> list[str]:
    """The lines of a log or a terminal, without what may differ: times, line numbers, durations, addresses, bars."""
    text = re.sub(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", "", text)
    text = re.sub(r"(?m)((?: +[\d,]+){4})(?: +[\d,]+){3}$", r"\1", text)  # the durations in the table
    text = re.sub(r"\d+\.\d+ s|\d:\d\d:\d\d|process \d+|127\.0\.0\.1:\d+|\blines? \d+", "-", text)
    return sorted(" ".join(line.split()) for line in text.splitlines() if line and not line.startswith("By hand"))


def outcome(simulator: Start, path: Path) -> tuple[int, str, list[str], list[str]]:
    """Exit code, results, terminal and log of a run on a platform with the same faults every time."""
    log = path.with_suffix(".log")
    log.unlink(missing_ok=True)
    done = run_script(path, simulator(*FAULTS), EB_THREADS="1")
    return done.returncode, done.stdout, essence(done.stderr), essence(log_of(path) if log.exists() else "")


@pytest.mark.parametrize(
    "ending",
    [*ENDINGS.values(), pytest.param(BY_SIGNAL, marks=needs_posix(reason="signals sent by kill()"))],
    ids=[*ENDINGS, "a signal"],
)
def test_names_of_the_library_and_of_former_engines_are_free_for_an_author(
    simulator: Start, script: Script, tmp_path: Path, ending: str
) -> None:
    (tmp_path / "author.py").write_text(WORK.format(ending=ending), encoding="utf-8")
    plain = outcome(simulator, script(TODO, **QUICK))
    assert plain[1].startswith("60 "), plain[3]
    assert outcome(simulator, script(TODO, edits=everywhere(FORBIDDEN.format(names=AUTHORS)), **QUICK)) == plain


def test_a_name_that_an_author_sets_before_the_engine_keeps_its_value(run: Run) -> None:
    todo = f"print([name for name in {AUTHORS!r}.split() if type(globals()[name]) is not ForbiddenValue])"
    done = run(todo, edits=inserted("EDIT 1", FORBIDDEN.format(names=AUTHORS)))
    assert done.stdout == "[]\n", done.stderr


# ------------------------------------------------------------------------------------------ names that are the engine's

# What an author's name could do unnoticed: it is called, and does nothing.
SILENT = "def {name}(*arguments, **options):\n    return None\n"
SMALL_WORK = """
def work(eb):
    print(sorted(len(eb.get_all_inclusions(centre["id"])) for centre in eb.get_all_organizations()))
    try:
        eb.get_statistics("")
    except Exception as error:
        print(error)
    eb.get_request_by_tube("nowhere")
"""


@pytest.fixture
def small(run: Run, tmp_path: Path) -> Run:
    """Run a script that fetches something, and then fails: `small({"old": "new"})`."""
    (tmp_path / "author.py").write_text(SMALL_WORK, encoding="utf-8")
    return lambda edits: run(TODO, edits=edits)


CENTRES = "[2, 3, 6, 16, 33]\n"
CLOSING = r"my_script: failed: get_request_by_tube: HTTP 404 \(my_script.py line \d+\); [^\n]*\n"


def assert_as_ever(done: Ran) -> None:
    """What the script comes to with no name of the author's."""
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith(CENTRES)
    assert re.fullmatch(CLOSING, done.stderr), done.stderr


def is_refusal(done: Ran, platform: Simulator, name: str) -> bool:
    """Whether a run was refused for a name of the author's, before anything was sent."""
    if done.returncode != 2:
        return False
    assert re.fullmatch(rf"[^\n]*\b{name}\b[^\n]*\n", done.stderr), done.stderr
    assert done.stdout == ""
    assert sum(platform.seen()["requests"].values()) == 0
    return True


NEEDED, FREE = {"login", "run", "tokens"}, {"tqdm", "logger", "as_completed", "describe"}


@pytest.mark.parametrize("name", sorted({*PUBLIC, *FREE} - {"api_call_with_retry"}))  # without it the import fails
def test_a_name_that_a_script_replaces_is_refused_or_harmless(platform: Simulator, small: Run, name: str) -> None:
    code = "tokens = {}" if name == "tokens" else SILENT.format(name=name)
    done = small(inserted("EDIT 2", code))
    if is_refusal(done, platform, name):
        assert name not in FREE
        assert re.search(r"\b(rename|name it|call it|another name)\b", done.stderr), done.stderr
    else:
        assert name not in NEEDED
        assert_as_ever(done)


@pytest.mark.parametrize("name", ["_children", "_flush", "_json", "_LOGIN", "_now", "_stop"])
@pytest.mark.parametrize("place", PLACES)
def test_a_name_of_the_engine_with_an_underscore_is_refused_wherever_a_script_sets_it(
    platform: Simulator, small: Run, place: str, name: str
) -> None:
    done = small(inserted(place, SILENT.format(name=name)))
    assert is_refusal(done, platform, name), done.stderr


@pytest.mark.parametrize("name", sorted({*PUBLIC} - {"tqdm", "logger"}))
def test_a_name_set_before_the_engine_and_again_by_it_is_refused(platform: Simulator, small: Run, name: str) -> None:
    done = small(inserted("EDIT 1", SILENT.format(name=name)))
    assert is_refusal(done, platform, name), done.stderr


def test_names_with_an_underscore_of_its_own_are_a_scripts_to_change(small: Run) -> None:
    assert_as_ever(small({**inserted("EDIT 1", "_mine = 1"), **inserted("EDIT 2", "_mine = _theirs = 2")}))


def test_a_module_that_a_notebook_loads_anew_logs_in(platform: Simulator, script: Script) -> None:
    notebook = script("pass").with_name("notebook.py")
    notebook.write_text(
        "import importlib, my_script\nimportlib.reload(my_script).login()\nprint('in')\n", encoding="utf-8"
    )
    assert run_script(notebook, platform).stdout == "in\n"


def test_login_in_a_notebook_refuses_a_replaced_name_as_well(platform: Simulator, script: Script) -> None:
    path = script("pass", edits=inserted("EDIT 2", "tokens = {}"))
    notebook = path.with_name("notebook.py")
    notebook.write_text("import my_script\nmy_script.login()\n", encoding="utf-8")
    done = run_script(notebook, platform)
    assert re.search(r"(?m)^my_script.ConfigurationError: .*\btokens\b", done.stderr), done.stderr
    assert sum(platform.seen()["requests"].values()) == 0


# ------------------------------------------------------------------------------------------------------ names of Python

ORDINARY = """
    max min sum id list dict set tuple type filter map print sorted len input open all any next iter zip range str int
    float bool bytes round abs hash format vars dir object enumerate reversed repr slice bin chr ord pow
    ValueError TimeoutError ConnectionError Exception help license exit
"""
USED_BY_FUNCTIONS = {"dict", "list", "str"}  # used while functions of EDIT 2 are defined: without them the import fails
VALUES = {"a number": "10", "a function": "lambda *arguments, **options: None"}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_pythons_names_that_a_script_sets_are_refused_or_harmless(platform: Simulator, small: Run, value: str) -> None:
    left = set(ORDINARY.split()) - USED_BY_FUNCTIONS
    for _ in ORDINARY.split():
        platform.control(reset_counts=True)
        code = f"globals().update(dict.fromkeys({sorted(left)!r}, {value}))"
        done = small(inserted("EDIT 2", code))
        if done.returncode != 2:
            break
        named = left & set(re.findall(r"\w+", done.stderr))
        assert named, f"refused without a name: {done.stderr}"
        assert sum(platform.seen()["requests"].values()) == 0
        left -= named
    assert_as_ever(done)


@pytest.mark.parametrize("name", ["bytes", "dict", "id", "list", "max", "print", "str", "type"])
def test_none_of_pythons_names_set_before_the_engine_lets_a_run_hang_or_differ(small: Run, name: str) -> None:
    done = small(inserted("EDIT 1", f"{name} = 10"))
    assert done.returncode in (1, 2), done.stderr
    assert done.stdout == "" or done.stdout.startswith(CENTRES)


def test_what_a_script_imports_under_the_very_name_that_python_has_for_it_is_allowed(small: Run) -> None:
    same = "from builtins import TimeoutError, open, print"
    done = small(inserted("EDIT 2", same))
    assert_as_ever(done)
