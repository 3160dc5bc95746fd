"""The log: its name, its file, its lines."""

import json
import logging
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import TEMPLATE, Load, Run, Script, answer, line_of, log_of, needs_posix, python, ran, run_script
from server import Simulator

GUARD = "\n\nif __name__ =="
FORGERY = "innocent\r\n2026-01-01 00:00:00,000 CRITICAL MainThread   forged\x1b[2J\x85\u2028forged"
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ +\S+ +\S.*|    .*")
posix = needs_posix(reason="Windows has no file modes")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ------------------------------------------------------------------------------------------------------------- its name


# Where the copy is, what Python is started with, and the name of the log.
STARTS = {
    "a script": ("my_script.py", ["my_script.py"], "my_script"),
    "a package": ("my_package/__main__.py", ["-m", "my_package"], "my_package"),
    "a module": ("my_script.py", ["-m", "my_script"], "my_script"),
    "a folder": ("my_package/__main__.py", ["my_package"], "my_package"),
    "a command": ("my_script.py", ["-c", "import my_script as it, sys; sys.exit(it.run(it.main))"], "my_script"),
    "a script with a dot": ("export.v2.py", ["export.v2.py"], "export.v2"),
}


@pytest.mark.parametrize(("file", "arguments", "name"), STARTS.values(), ids=STARTS)
def test_the_log_is_named_after_what_python_started(copy: Path, file: str, arguments: list[str], name: str) -> None:
    folder = copy.parent
    (folder / file).parent.mkdir(exist_ok=True)
    copy.rename(folder / file)
    done = python(arguments, folder)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}: ")
    assert [path.name for path in folder.glob("*.log")] == [f"{name}.log"]


def test_a_script_from_standard_input_has_a_log_as_well(tmp_path: Path) -> None:
    done = python(["-"], tmp_path, stdin=TEMPLATE.read_text(encoding="utf-8"))
    assert done.returncode == 2
    assert done.stderr.startswith("stdin: ")
    assert [path.name for path in tmp_path.iterdir()] == ["stdin.log"]


# ------------------------------------------------------------------------------------------------------------- its file


def test_a_log_that_cannot_be_written_is_one_line(copy: Path, platform: Simulator) -> None:
    copy.with_suffix(".log").mkdir()
    done = run_script(copy, platform)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"my_script: my_script\.log cannot be written [^\n]+\n", done.stderr)
    assert sum(platform.seen()["requests"].values()) == 0


@posix
@pytest.mark.parametrize("older", [False, True])
def test_the_log_is_its_owners_alone_to_read_without_a_word(platform: Simulator, script: Script, older: bool) -> None:
    path = script("pass", edits={GUARD: f"\nos.umask(0){GUARD}"})
    log = path.with_suffix(".log")
    if older:
        log.write_text("from an older run\n")
        log.chmod(0o666)
    done = run_script(path, platform)
    assert (done.returncode, len(done.stderr.splitlines())) == (0, 1), done.stderr
    assert mode(log) == 0o600
    assert log_of(path).startswith("from an older run") is older


def test_rotation_bounds_the_size_keeps_the_five_newest_and_others_out(copy: Path) -> None:
    log = copy.with_suffix(".log")
    for age in range(1, 6):
        older = Path(f"{log}.{age}")
        older.write_text(f"{age} days old", encoding="utf-8")
        os.utime(older, times=(0, 1_000_000 - age * 86_400))
    backup = Path(f"{log}.2024-backup")
    backup.write_text("not of the engine", encoding="utf-8")
    os.utime(backup, times=(0, 0))
    with log.open("wb") as file:
        file.truncate(10_000_000)
    if os.name == "posix":
        log.chmod(0o644)
    run_script(copy, None)
    assert log.stat().st_size < 10_000
    kept = {path.read_bytes() for path in copy.parent.glob("my_script.log.*")}
    assert kept == {bytes(10_000_000), *(f"{age} days old".encode() for age in range(1, 5)), b"not of the engine"}
    if os.name == "posix":
        assert mode(log) == 0o600
        assert {mode(path) for path in copy.parent.glob("my_script.log.*") if path.stat().st_size > 20} == {0o600}


# ------------------------------------------------------------------------------------------------------------ its lines


def test_at_debug_each_attempt_is_a_line_with_function_status_duration_thread(load: Load, platform: Simulator) -> None:
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


def test_at_info_there_is_no_line_per_call(copy: Path, platform: Simulator) -> None:
    run_script(copy, platform)
    assert len(log_of(copy).splitlines()) < 12


def test_no_message_can_forge_a_line_of_the_log_or_of_the_terminal(run: Run, platform: Simulator) -> None:
    platform.control(answer={"organizations": answer(200, json.dumps([{"id": "1", "name": FORGERY}]).encode())})
    done = run(
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
        # The script's own handler formats each record before the log does.
        edits={GUARD: f"\nlogging.basicConfig(stream=io.StringIO()){GUARD}"},
    )
    assert done.returncode == 1
    assert "Aménorrhée, 3 µg/L: innocent\\r\\n2026" in done.log
    lines = re.split(r"[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", done.log.rstrip("\n"))
    assert [line for line in lines if not LOG_LINE.fullmatch(line)] == []
    assert [line for line in lines if line.startswith("2026-01-01")] == []
    assert "\x1b" not in done.log + done.stderr
    assert all(line.startswith(("innocent", "Amén", "my_script", "failed on")) for line in done.stderr.splitlines())


def test_whatever_a_script_adds_to_its_records_its_lines_are_kept(run: Run) -> None:
    done = run("logging.warning('kept', extra={'detail': 3, 'id': None})")
    assert done.returncode == 0
    assert re.search(r"WARNING +MainThread +kept\n", done.log)


def test_a_message_that_cannot_be_made_is_told_once_by_its_line_without_what_it_was_made_of(run: Run) -> None:
    todo = """
    class Patient:
        def __str__(self):
            return str(int("Dupont"))

    for _ in range(2):
        logging.info("patient %s", Patient())  # here
    """
    done = run(todo)
    assert re.match(rf"\S+my_script\.py:{line_of(done.path)}: ValueError\nmy_script: done; [^\n]*\n\Z", done.stderr), (
        done.stderr
    )


def test_a_lone_surrogate_does_not_break_log_or_run(run: Run) -> None:
    done = run('logging.error("half a character: \\ud83d, whole: é")\nraise ValueError("\\udcff")')
    assert done.returncode == 1
    assert "half a character: \\ud83d, whole: é" in done.log
    assert "Logging error" not in done.stderr
    assert len(done.stderr.splitlines()) == 2


# ------------------------------------------------------------------------------------------------------------ full disk

FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (Path("my_script.log").stat().st_size,) * 2)  # EFBIG, as ENOSPC would come
for number in range(100):
    logging.warning("lost line %d", number)
"""
BUFFERED = {"PYTHONUNBUFFERED": ""}  # as Python writes to a file by default
no_limits = pytest.mark.skipif(sys.platform == "win32", reason="process limits are POSIX")


@no_limits
@pytest.mark.parametrize(("ending", "code"), [("", 0), ("raise LookupError('no input')", 1), ("sys.exit(3)", 3)])
def test_a_run_goes_on_with_a_full_disk_says_so_once_and_ends_as_it_would(run: Run, ending: str, code: int) -> None:
    done = run(f"{FULL_DISK}print(len(get_all_organizations()))\n{ending}")
    assert (done.returncode, done.stdout) == (code, "5\n")
    problem, *_, closing = done.stderr.splitlines()
    assert re.fullmatch(r".*my_script\.log: OSError: File too large", problem)
    assert closing.startswith("my_script: ")
    assert len(done.stderr.splitlines()) == 2, done.stderr
    assert done.log.splitlines()[-1].endswith("services IAM, RC, GDD"), "and nothing is left in halves"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a device that is always full")
@pytest.mark.parametrize("ending", ["", "main_thread_pool.submit(print, 'too late')"])
def test_results_that_stdout_could_not_take_are_a_failed_run(run: Run, ending: str) -> None:
    done = run(f"print('a result')\n{ending}", redirect="> /dev/full", **BUFFERED)
    assert done.returncode == 1
    [closing] = done.stderr.splitlines()
    assert closing.startswith("my_script: failed: standard output: [Errno 28] ")
    assert done.log.splitlines()[-1].endswith(closing)


def full_device() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def closed_terminal() -> int:
    master, slave = os.openpty()
    os.close(master)
    return slave


def pipe_without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.skipif(sys.platform != "linux", reason="needs Unix devices and terminals")
@pytest.mark.parametrize(("ending", "code"), [("", 0), ("return 3", 3)])
@pytest.mark.parametrize("terminal", [full_device, closed_terminal, pipe_without_reader])
def test_a_run_whose_terminal_is_gone_ends_as_it_would_with_one(
    run: Run, terminal: Callable[[], int], ending: str, code: int
) -> None:
    todo, stderr = f"logging.error('unseen')\nprint(len(list(run_parallel(abs, range(9)))))\n{ending}", terminal()
    done = run(todo, streams={"stderr": stderr}, **BUFFERED)  # unbuffered, nothing is left for the end
    os.close(stderr)
    assert (done.returncode, done.stdout) == (code, "9\n")
    assert "unseen" in done.log
    assert f"my_script: {'exit 3' if code else 'done'}; 3 calls in " in done.log.splitlines()[-1]
