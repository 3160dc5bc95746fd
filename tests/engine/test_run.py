"""The frame around a script: what its user sees on the terminal, what the log keeps, how the run ends."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import TEMPLATE, WATCHDOG, Load, Start, environment_for, run_script, summary_of
from study import STATUSES

Script = Callable[..., Path]
FORGERY = "innocent\r\n2026-01-01 00:00:00,000 CRITICAL MainThread   forged\x1b[2J\x85\u2028forged"
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ +\S+ +\S.*|    .*")
posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no file modes")


@pytest.fixture(autouse=True)
def _root_level() -> Iterator[None]:
    """`run` sets the level of the root logger, which the other tests share."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The template, copied as a user copies it."""
    return Path(shutil.copy(TEMPLATE, tmp_path / "my_script.py"))


def log_of(path: Path) -> str:
    return path.with_suffix(".log").read_bytes().decode("utf-8")


def ran(template: Any, main: Callable[[], object]) -> tuple[int, str]:
    """Run a script's main in this process; the exit code and the log."""
    code = template.run(main)
    [log] = Path.cwd().glob("*.log")
    return code, log.read_bytes().decode("utf-8")


def table_of(log: str) -> dict[str, dict[str, int]]:
    """The one table of a log: function -> column -> figure."""
    assert log.count(" API function ") == 1
    return summary_of(log)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ------------------------------------------------------------------------------------------------------------- the run


def test_the_template_itself_counts_the_whole_study(copy: Path, simulator: Start) -> None:
    platform = simulator("--centres", "100", "--patients", "2500")
    done = run_script(copy, platform)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80, "wider than a terminal"
    head, *centres, total = [line[20:].split() for line in done.stdout.splitlines()]
    columns = [[int(figure.replace(",", "")) for figure in column] for column in zip(*centres, strict=True)]
    sums = dict(zip(head, map(sum, columns), strict=True))
    assert len(centres) == 100
    assert total == [f"{each:,}" for each in sums.values()]
    assert sums["inclusions"] == sums["total"] == sum(sums[status] for status in STATUSES) == 2500
    calls = sum(platform.seen()["requests"].values())
    assert re.fullmatch(rf"my_script: done; {calls} calls in 0:\d\d:\d\d, log in my_script.log\n", done.stderr)


def test_the_log_tells_who_ran_what_and_its_table_adds_up_to_what_the_platform_saw(
    copy: Path, simulator: Start
) -> None:
    platform = simulator("--faults", "0.3", "--slow", "0", "--latency", "0.02")
    edited = copy.read_text(encoding="utf-8").replace("WAIT_BEFORE_RETRY = 0.5 ", "WAIT_BEFORE_RETRY = 0.01 ")
    copy.write_text(edited.replace("MAX_WAIT_BEFORE_RETRY = 60 ", "MAX_WAIT_BEFORE_RETRY = 1 "), encoding="utf-8")
    done = run_script(copy, platform, EB_THREADS="7")
    assert done.returncode == 0, done.stderr
    log = log_of(copy)
    version = re.search(r'^TEMPLATE_VERSION = "(.+?)"', edited, re.MULTILINE)
    assert version
    started = f" my_script started, template {version[1]}, Python {sys.version.split()[0]} on "
    assert started in log.splitlines()[0]
    assert f" user {platform.options.user}, 7 threads, services IAM, RC, GDD\n" in log
    seen = platform.seen()["requests"]
    table = table_of(log)
    assert {name: row["calls"] + row["retries"] for name, row in table.items()} == {
        "get_all_organizations": seen["organizations"],
        "get_statistics": seen["statistics"],
        "IAM_login": seen["login"],
        "RC_config_token": seen["config_token"]
        - table["GDD_config_token"]["calls"]
        - table["GDD_config_token"]["retries"],
        "GDD_config_token": seen["config_token"]
        - table["RC_config_token"]["calls"]
        - table["RC_config_token"]["retries"],
        "search_inclusions_page": seen["search_inclusions"],
    }
    assert sum(row["retries"] for row in table.values()) == sum(
        count for kind, count in platform.seen()["faults"].items() if kind != "slow"
    )
    for row in table.values():
        assert row["failures"] == row["renewals"] == 0
        assert row["p50"] <= row["p95"] <= row["max"]
    assert table["get_statistics"]["p95"] >= 20, "durations are milliseconds, latency included"


def test_the_table_counts_retries_renewals_and_failures(load: Load, simulator: Start) -> None:
    platform = simulator()
    template = load(platform, WAIT_BEFORE_RETRY=0.01, ERROR_MAX_RETRY=3)

    def main() -> None:
        platform.control(expire="RC")
        centre = template.get_all_organizations()[0]["id"]
        with pytest.raises(template.httpx.HTTPStatusError, match="404"):
            template.get_record_by_patient("nobody")
        platform.control(faults={"500": 1.0})
        with pytest.raises(template.httpx.HTTPStatusError, match="500"):
            template.get_statistics(centre)

    code, log = ran(template, main)
    assert code == 0
    counts = {
        name: [row[c] for c in ("calls", "retries", "renewals", "failures")] for name, row in table_of(log).items()
    }
    assert counts == {
        "get_all_organizations": [1, 1, 1, 0],
        "get_record_by_patient": [1, 0, 0, 1],
        "get_statistics": [1, 2, 0, 1],
        "IAM_login": [1, 0, 0, 0],
        "RC_config_token": [1, 0, 0, 0],
        "GDD_config_token": [1, 0, 0, 0],
    }


def test_at_debug_every_attempt_is_a_line_with_function_attempt_status_duration_and_thread(
    load: Load, simulator: Start
) -> None:
    platform = simulator()
    template = load(platform, WAIT_BEFORE_RETRY=0.01, ERROR_MAX_RETRY=2, LOG_LEVEL=logging.DEBUG)

    def main() -> None:
        centres = [organization["id"] for organization in template.get_all_organizations()]
        platform.control(faults={"503": 1.0})
        assert len(list(template.run_parallel(template.get_statistics, centres, return_exceptions=True))) == len(
            centres
        )

    _, log = ran(template, main)
    attempt = r"DEBUG +(\S+) +(\w+) attempt (\d+): (.+?) in \d+\.\d{3} s"
    lines = [line.groups() for line in re.finditer(attempt, log)]
    assert [line for line in lines if line[1] == "get_all_organizations"] == [
        ("MainThread", "get_all_organizations", "1", "ok")
    ]
    statistics = [line for line in lines if line[1] == "get_statistics"]
    assert len(statistics) == platform.seen()["requests"]["statistics"] == 2 * platform.options.centres
    assert {(number, status) for _, _, number, status in statistics} == {("1", "HTTP 503"), ("2", "HTTP 503")}
    assert all(re.fullmatch(r"main_\d+", thread) for thread, *_ in statistics)


def test_at_info_there_is_no_line_per_call(copy: Path, simulator: Start) -> None:
    run_script(copy, simulator())
    assert len(log_of(copy).splitlines()) < 12


# ------------------------------------------------------------------------------------------- before anything is started


def test_without_configuration_one_line_says_what_to_set_and_how_to_try_it(copy: Path) -> None:
    done = run_script(copy, None)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"my_script: [^\n]+\n", done.stderr)
    assert set(re.findall(r"EB_\w+", done.stderr)) == {"EB_IAM_URL", "EB_RC_URL", "EB_GDD_URL"}
    assert "python tests/sandbox.py my_script.py" in done.stderr


WATCHED_IMPORT = """
import sys, threading
seen = []
def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if not (mode or "r").startswith("r") or "+" in (mode or "") or (flags or 0) & 3:
            seen.append((event, str(path), mode))
    elif event.startswith(("socket.", "subprocess.", "os.", "_thread.start", "signal.", "shutil.", "sqlite3.")):
        if event not in ("os.listdir", "os.scandir"):
            seen.append((event, str(arguments)))
sys.dont_write_bytecode = True
sys.addaudithook(watch)
import my_script
seen.append(threading.active_count())
print(seen)
"""


def test_an_import_opens_no_file_starts_no_thread_and_reaches_for_no_network(copy: Path) -> None:
    before = sorted(copy.parent.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", WATCHED_IMPORT],
        cwd=copy.parent,
        env=environment_for(None),
        capture_output=True,
        encoding="utf-8",
        timeout=WATCHDOG,
    )
    assert done.stderr == ""
    assert ast.literal_eval(done.stdout) == [1]
    assert sorted(copy.parent.iterdir()) == before


def name_as_script(folder: Path) -> list[str]:
    return ["my_script.py"]


def name_as_package(folder: Path) -> list[str]:
    (folder / "my_package").mkdir()
    shutil.move(folder / "my_script.py", folder / "my_package" / "__main__.py")
    return ["-m", "my_package"]


def name_as_module(folder: Path) -> list[str]:
    return ["-m", "my_script"]


def name_as_command(folder: Path) -> list[str]:
    return ["-c", "import my_script, sys; sys.exit(my_script.run(my_script.main))"]


def name_as_folder(folder: Path) -> list[str]:
    name_as_package(folder)
    return ["my_package"]


def name_as_dotted_script(folder: Path) -> list[str]:
    shutil.move(folder / "my_script.py", folder / "export.v2.py")
    return ["export.v2.py"]


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (name_as_script, "my_script"),
        (name_as_package, "my_package"),
        (name_as_module, "my_script"),
        (name_as_folder, "my_package"),
        (name_as_command, "my_script"),
        (name_as_dotted_script, "export.v2"),
    ],
)
def test_the_log_is_named_after_what_python_was_started_with(
    copy: Path, start: Callable[..., list[str]], name: str
) -> None:
    done = python(start(copy.parent), copy.parent)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}: ")
    assert [path.name for path in copy.parent.glob("*.log")] == [f"{name}.log"]


def test_a_script_from_standard_input_has_a_log_as_well(tmp_path: Path) -> None:
    done = python(["-"], tmp_path, stdin=TEMPLATE.read_text(encoding="utf-8"))
    assert done.returncode == 2
    assert done.stderr.startswith("stdin: ")
    assert [path.name for path in tmp_path.iterdir()] == ["stdin.log"]


def python(arguments: list[str], folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Python in a folder, without any EB_ variable."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment_for(None),
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=WATCHDOG,
    )


# ------------------------------------------------------------------------------------------------------- configuration


ADDRESS = "http://127.0.0.1:9"  # nothing is sent there


@pytest.fixture
def configured(load: Load, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Import the template with variables that are all right, but for those given: `configured(EB_THREADS="0")`."""

    def import_template(constants: dict[str, object] | None = None, **variables: str) -> Any:
        urls = {f"EB_{service}_URL": ADDRESS for service in ("IAM", "RC", "GDD")}
        for name, value in {**urls, "EB_USER_NAME": "someone", "EB_PASSWORD": "Xq7-something", **variables}.items():
            monkeypatch.setenv(name, value)
        return load(**{"ERROR_MAX_RETRY": 1, **(constants or {})})

    return import_template


def configuration_error(template: Any, capfd: pytest.CaptureFixture[str]) -> str:
    """The one line on the terminal, and in the log, of a run that its configuration prevents; without its name."""
    code, log = ran(template, lambda: print("the script ran"))
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    line = re.fullmatch(r"[\w.]+: ([^\n]+)\n", err)
    assert line, err
    assert line[1] in log
    assert "Traceback" not in log
    return line[1]


@pytest.mark.parametrize("value", [0, -1, "x", "20", None, float("nan"), float("inf"), [5]])
@pytest.mark.parametrize("name", ["MAX_THREADS", "SUBTASKS_POOL_SIZE", "ERROR_MAX_RETRY", "API_TIMEOUT"])
def test_a_constant_that_cannot_work_is_named_with_its_value_and_the_fix(
    configured: Callable[..., Any], capfd: pytest.CaptureFixture[str], name: str, value: object
) -> None:
    line = configuration_error(configured({name: value}), capfd)
    assert line.startswith(f"{name} = {value!r}: ")


@pytest.mark.parametrize("value", [-1, "x", None, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["WAIT_BEFORE_RETRY", "MAX_WAIT_BEFORE_RETRY"])
def test_a_wait_that_cannot_work_is_named_with_its_value_and_the_fix(
    configured: Callable[..., Any], capfd: pytest.CaptureFixture[str], name: str, value: object
) -> None:
    line = configuration_error(configured({name: value}), capfd)
    assert line.startswith(f"{name} = {value!r}: ")


@pytest.mark.parametrize("name", ["MAX_THREADS", "SUBTASKS_POOL_SIZE", "ERROR_MAX_RETRY"])
def test_half_a_thread_or_attempt_is_named_with_its_value_and_the_fix(
    configured: Callable[..., Any], capfd: pytest.CaptureFixture[str], name: str
) -> None:
    assert configuration_error(configured({name: 2.5}), capfd) == f"{name} = 2.5: give a whole number, 1 or more"


@pytest.mark.parametrize("value", ["DEBUG", None, float("nan")])
def test_a_log_level_that_is_no_number_is_named_with_its_value_and_the_fix(
    configured: Callable[..., Any], capfd: pytest.CaptureFixture[str], value: object
) -> None:
    line = configuration_error(configured({"LOG_LEVEL": value}), capfd)
    assert f"LOG_LEVEL = {value!r}" in line


@pytest.mark.parametrize("value", ["0", "21", "-3", "2.5", "many", "\uff11", "1e1", "1\n2", "9" * 400])
def test_a_wrong_number_of_threads_is_named_with_its_range(
    configured: Callable[..., Any], capfd: pytest.CaptureFixture[str], value: str
) -> None:
    line = configuration_error(configured(EB_THREADS=value), capfd)
    assert line.startswith(f"EB_THREADS = {value!r}: ")
    assert "from 1 to 20" in line


@pytest.mark.parametrize(
    "url",
    [
        "https://rc.endobest.example",
        "http://rc.hospital.fr",
        "http://localhost.hospital.fr",
        "ftp://rc.hospital.fr",
        "rc.hospital.fr",
        "https://",
        "https://rc.hospital.fr:port",
        "https://[::1",
    ],
)
def test_an_address_that_cannot_be_used_is_named_with_the_variable_to_set(
    configured: Callable[..., Any], capfd: pytest.CaptureFixture[str], url: str
) -> None:
    line = configuration_error(configured(EB_RC_URL=url), capfd)
    assert re.findall(r"EB_\w+", line) == ["EB_RC_URL"]
    assert repr(url) in line


def test_an_empty_password_is_said_with_the_variable_to_set(
    configured: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert "EB_PASSWORD" in configuration_error(configured(EB_PASSWORD=""), capfd)


def test_without_iam_the_line_says_to_put_it_back(
    configured: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    template = configured()
    del template.MICROSERVICES["IAM"]
    assert re.search(r"MICROSERVICES .*IAM.*put", configuration_error(template, capfd))


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_named_with_their_variable(
    configured: Callable[..., Any], capfd: pytest.CaptureFixture[str], tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "ca.pem"
    if content:
        file.write_text(content, encoding="utf-8")
    line = configuration_error(configured(SSL_CERT_FILE=str(file)), capfd)
    assert line.startswith(f"SSL_CERT_FILE = {str(file)!r}: ")


def test_a_log_that_cannot_be_written_is_one_line(copy: Path, simulator: Start) -> None:
    copy.with_suffix(".log").mkdir()
    platform = simulator()
    done = run_script(copy, platform)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"my_script: my_script\.log cannot be written [^\n]+\n", done.stderr)
    assert sum(platform.seen()["requests"].values()) == 0


# ------------------------------------------------------------------------------------------------------------- the log


def test_the_log_is_appended_to(copy: Path) -> None:
    run_script(copy, None)
    first = log_of(copy)
    run_script(copy, None)
    assert log_of(copy).startswith(first)
    assert log_of(copy).count(" my_script started, ") == 2


@posix
def test_the_log_is_for_its_owner_alone_even_if_an_older_one_was_not(copy: Path) -> None:
    log = copy.with_suffix(".log")
    run_script(copy, None)
    assert mode(log) == 0o600
    log.write_text("from before\n", encoding="utf-8")
    log.chmod(0o644)
    run_script(copy, None)
    assert mode(log) == 0o600
    assert log_of(copy).startswith("from before\n")


def test_rotation_bounds_the_size_and_keeps_others_out(copy: Path) -> None:
    log = copy.with_suffix(".log")
    for number in range(1, 6):
        Path(f"{log}.{number}").write_text(f"number {number}", encoding="utf-8")
    with log.open("wb") as file:
        file.truncate(10_000_000)
    if os.name == "posix":
        log.chmod(0o644)
    run_script(copy, None)
    assert log.stat().st_size < 10_000
    assert Path(f"{log}.1").stat().st_size == 10_000_000
    kept = [Path(f"{log}.{number}").read_text(encoding="utf-8") for number in range(2, 6)]
    assert kept == [f"number {number}" for number in range(1, 5)]
    assert len(list(copy.parent.glob("my_script.log*"))) == 6
    if os.name == "posix":
        assert (mode(log), mode(Path(f"{log}.1"))) == (0o600, 0o600)


def test_no_message_can_forge_a_line_of_the_log_or_of_the_terminal(script: Script, simulator: Start) -> None:
    platform = simulator()
    body = b64encode(json.dumps([{"id": "1", "name": FORGERY}]).encode()).decode()
    platform.control(answer={"organizations": {"status": 200, "content_type": "application/json", "body_base64": body}})
    path = script(
        """
        name = get_all_organizations()[0]["name"]
        logging.info("%s", name)
        logging.getLogger(name).error("Aménorrhée, 3 µg/L: %s", name)
        threading.current_thread().name = name
        try:
            raise ValueError(name)
        except ValueError:
            logging.critical(name, exc_info=True)

        def fail(item):
            raise KeyError(item)

        list(run_parallel(fail, [name]))
        """,
        # The author's own handler formats each record before the log does.
        edits={"\nif __name__ ==": "\nlogging.basicConfig(stream=io.StringIO())\n\nif __name__ =="},
    )
    done = run_script(path, platform)
    assert done.returncode == 1
    log = log_of(path)
    assert "Aménorrhée, 3 µg/L: innocent\\r\\n2026" in log
    lines = re.split(r"[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", log.rstrip("\n"))
    assert [line for line in lines if not LOG_LINE.fullmatch(line)] == []
    assert [line for line in lines if line.startswith("2026-01-01")] == []
    assert "\x1b" not in log + done.stderr
    assert all(line.startswith(("innocent", "Amén", "my_script", "failed on")) for line in done.stderr.splitlines())


def test_a_lone_surrogate_does_not_break_log_or_run(script: Script, simulator: Start) -> None:
    path = script('logging.error("half a character: \\ud83d, whole: é")\nraise ValueError("\\udcff")')
    done = run_script(path, simulator())
    assert done.returncode == 1
    assert "half a character: \\ud83d, whole: é" in log_of(path)
    assert "Logging error" not in done.stderr
    assert len(done.stderr.splitlines()) == 2


# ------------------------------------------------------------------------------------------------- how a run may end


def leave(how: object) -> Callable[[], None]:
    def main() -> None:
        if isinstance(how, BaseException):
            raise how

    return main


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        (None, 0, "done"),
        (SystemExit(), 0, "done"),
        (SystemExit(0), 0, "exit 0"),
        (SystemExit(3), 3, "exit 3"),
        (SystemExit("no centre has been chosen"), 1, "no centre has been chosen"),
        (ValueError("column 7 is empty"), 1, "failed: ValueError: column 7 is empty"),
        (KeyError("patientId"), 1, "failed: KeyError: 'patientId'"),
        (RecursionError("too deep"), 1, "failed: RecursionError: too deep"),
    ],
)
def test_the_closing_line_and_the_exit_code_tell_how_the_run_ended(
    load: Load, simulator: Start, capfd: pytest.CaptureFixture[str], how: object, code: int, words: str
) -> None:
    template = load(simulator())
    ended, log = ran(template, leave(how))
    out, err = capfd.readouterr()
    assert (ended, out) == (code, "")
    [line] = err.splitlines()
    assert f": {words}; 3 calls in " in line
    assert log.splitlines()[-1].endswith(line) or isinstance(how, Exception)
    assert ("Traceback" in log) == isinstance(how, Exception)


def test_the_exit_code_is_that_of_the_process(script: Script, simulator: Start) -> None:
    platform = simulator()
    assert [run_script(script(f"sys.exit({code})"), platform).returncode for code in (0, 3)] == [0, 3]
    assert run_script(script('raise ValueError("é")'), platform).returncode == 1


def test_what_a_call_raises_ends_the_run_with_one_line_and_a_traceback_in_the_log(
    script: Script, simulator: Start
) -> None:
    path = script('print("first")\nget_record_by_patient("-".join(["patient", "4711"]))\nprint("never")')
    done = run_script(path, simulator())
    assert (done.returncode, done.stdout) == (1, "first\n")
    assert re.fullmatch(r"my_script: failed: get_record_by_patient: HTTP 404; [^\n]+\n", done.stderr)
    log = log_of(path)
    assert "in get_record_by_patient" in log
    assert "patient-4711" not in log


def line_of(path: Path, mark: str = "# here") -> int:
    """The number of the one line of a script that ends with a mark."""
    [number] = [n for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if line.endswith(mark)]
    return number


@pytest.mark.parametrize(
    "todo",
    [
        "{}['x']  # here",
        "json.loads('{')  # here",
        "tqdm(range(3), no_such_option=True)  # here",
        "def task(item):\n    return {}[item]  # here\n\nlist(run_parallel(task, 'abc'))",
        "def task(item):\n    return {}[item]  # here\n\nmain_thread_pool.submit(task, 1).result()",
        "try:\n    get_statistics('unknown')\nexcept httpx.HTTPStatusError:\n    raise LookupError  # here",
    ],
    ids=["itself", "a library", "the engine", "a task of run_parallel", "a task of a pool", "after a call"],
)
def test_the_closing_line_names_the_last_line_of_the_script_on_the_way_to_an_unforeseen_error(
    script: Script, simulator: Start, todo: str
) -> None:
    path = script(todo)
    done = run_script(path, simulator())
    assert done.returncode == 1
    assert re.search(rf"my_script: failed: \w+: .*\(my_script\.py line {line_of(path)}\); \d calls in ", done.stderr)


def test_the_closing_line_names_a_line_of_the_script_that_imports_a_copy(copy: Path, simulator: Start) -> None:
    path = copy.with_name("importing.py")
    path.write_text(
        "import sys, my_script\n\n\n"
        "def main():\n    for _ in my_script.run_parallel(int, ['x']):  # here\n        pass\n\n\n"
        "sys.exit(my_script.run(main))\n",
        encoding="utf-8",
    )
    done = run_script(path, simulator())
    assert done.returncode == 1
    assert f" (importing.py line {line_of(path)}); " in done.stderr


def test_the_closing_line_names_no_line_where_none_of_the_script_has_a_part_in_it(
    script: Script, simulator: Start
) -> None:
    path = script("pass", edits={"    check_configuration()\n    user": "    {}['x']\n    user"})
    done = run_script(path, simulator())
    assert (done.returncode, done.stderr) == (1, "my_script: failed: KeyError: 'x'\n")


def test_standard_output_carries_only_what_the_script_prints(script: Script, simulator: Start) -> None:
    path = script(
        """
        print("id;name")
        logging.warning("a warning")
        logging.error("an error")
        for organization, _ in run_parallel(lambda organization: None, get_all_organizations()):
            print(organization["id"], organization["name"], sep=";")
        get_request_by_tube("unknown")
        """
    )
    platform = simulator("--fault", "500=0.2")
    path.write_text(
        path.read_text(encoding="utf-8").replace("WAIT_BEFORE_RETRY = 0.5 ", "WAIT_BEFORE_RETRY = 0.01 "),
        encoding="utf-8",
    )
    done = run_script(path, platform)
    assert done.returncode == 1
    header, *rows = done.stdout.splitlines()
    assert header == "id;name"
    assert len(rows) == platform.options.centres
    assert all(re.fullmatch(r"[0-9a-f-]{36};[^;]+", row) for row in rows)
    assert "an error\n" in done.stderr
    assert "a warning" not in done.stderr, "warnings are for the log, once the script's own code runs"
    assert " WARNING  MainThread   a warning\n" in log_of(path)


@pytest.mark.skipif(os.name != "posix", reason="closes the descriptors with a POSIX shell")
def test_a_run_without_any_standard_stream_works(script: Script, simulator: Start) -> None:
    path = script('print("unseen")\nlist(run_parallel(len, ["a"]))\nlogging.error("unseen, too")')
    command = ["/bin/sh", "-c", f"exec {sys.executable} my_script.py <&- >&- 2>&-"]
    done = subprocess.run(command, cwd=path.parent, env=environment_for(simulator()), timeout=WATCHDOG)
    assert done.returncode == 0
    assert "my_script: done; " in log_of(path)
