"""What the sandbox promises: a separate folder, a platform that fits the script, and nothing that leaves it."""

import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from helpers import WATCHDOG, Script, Start, environment_for, git, needs_posix, python, shell, wait_until
from next_httpx import moved
from readme_and_spec import TOP, blocks
from sandbox import assignments
from script_source import read
from server import Simulator

posix = needs_posix(reason="signals sent by kill(), and commands for a POSIX shell")

SANDBOX = TOP / "tests" / "sandbox.py"
SMALL = ("--centres", "2", "--patients", "5", "--latency", "0")
BEFORE_GDD = '    "GDD": {\n'
LAB = """
    "LAB": {{
        "app_id": "endobest-lab",
        "base_url": {address},
        "endpoints": {{
            "config_token": "/api/auth/config-token",
            "refresh_token": "/api/auth/refreshToken",
            "results": "/api/results",
        }},
    }},
"""


def sandbox(
    folder: Path, *arguments: str | Path, flags: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the sandbox in a folder, without a terminal; returns its output and exit code."""
    return python([*flags, str(SANDBOX), *SMALL, *map(str, arguments)], folder, **variables)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def with_lab(script: Script) -> Script:
    """A script with an added service: `with_lab("print(1)", address="'https://lab.hospital.test'")`."""

    def make(todo: str, address: str = 'os.environ.get("EB_LAB_URL") or "https://lab.endobest.example"') -> Path:
        return script(todo, edits={BEFORE_GDD: LAB.format(address=address) + BEFORE_GDD}, ERROR_MAX_RETRY=1)

    return make


# Where a script runs


def test_a_script_writes_by_the_users_interpreter_into_a_folder_of_its_own_where_the_sandbox_is_started(
    script: Script, tmp_path: Path
) -> None:
    path, elsewhere = script("with open('results.csv', 'w') as file:\n    file.write('simulated')"), tmp_path / "here"
    elsewhere.mkdir()
    (elsewhere / "results.csv").write_text("real", encoding="utf-8")
    done = sandbox(elsewhere, path)
    assert done.returncode == 0, done.stderr
    assert names_in(tmp_path) == {"my_script.py", "here"}
    assert names_in(elsewhere) == {"results.csv", "my_script.sandbox"}
    assert names_in(elsewhere / "my_script.sandbox") == {"my_script.log", "results.csv"}
    assert (elsewhere / "results.csv").read_text(encoding="utf-8") == "real"
    assert "tests/.venv" not in done.stderr
    assert "Sandbox: running in my_script.sandbox (use --here to run in this folder)\n" in done.stderr
    assert done.stderr.splitlines()[-1] == f"Sandbox: the log is {Path('my_script.sandbox', 'my_script.log')}"


def test_a_second_run_finds_what_the_first_one_wrote(script: Script, tmp_path: Path) -> None:
    path = script("with open('done.txt', 'a') as file:\n    print(file.write('x'), file.tell())")
    assert [sandbox(tmp_path, path).stdout for _ in range(2)] == ["1 1\n", "1 2\n"]


def test_here_runs_the_script_in_the_current_folder(script: Script, tmp_path: Path) -> None:
    done = sandbox(tmp_path, "--here", script("print(1)"))
    assert done.returncode == 0, done.stderr
    assert names_in(tmp_path) == {"my_script.py", "my_script.log"}
    assert "Sandbox: running in this folder\n" in done.stderr
    assert done.stderr.splitlines()[-1] == "Sandbox: the log is my_script.log"


def test_a_script_imports_what_lies_next_to_it(script: Script, tmp_path: Path) -> None:
    (tmp_path / "columns.py").write_text("NAMES = ['id', 'name']", encoding="utf-8")
    script("from columns import NAMES\nprint(NAMES, sys.argv[1:])")
    done = sandbox(tmp_path, "my_script.py", "--since", "2024")
    assert done.stdout == "['id', 'name'] ['--since', '2024']\n", done.stderr


def test_a_file_instead_of_the_folder_is_reported_in_one_line(script: Script, tmp_path: Path) -> None:
    (tmp_path / "my_script.sandbox").touch()
    done = sandbox(tmp_path, script("print('never here')"))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"sandbox.py: my_script.sandbox cannot be created \(.+\): .+ --here\n", done.stderr)


def test_a_dialect_shows_what_it_does_to_a_script(script: Script, tmp_path: Path) -> None:
    done = sandbox(tmp_path, "--dialect", "moved", script("print(len(get_all_organizations()))"))
    assert done.returncode == 1, done.stderr
    assert "HTTP 404" in done.stderr


# What it expects from a script


@pytest.mark.parametrize(
    ("source", "variables", "size"),
    [("5", {}, "5"), ("60", {}, "60"), ("2 * 3", {}, "6"), ("5", {"EB_THREADS": "3"}, "3")],
    ids=["fewer than 20", "more than 20", "computed", "set by the user"],
)
def test_a_script_gets_as_many_threads_as_it_allows_unless_the_user_says_otherwise(
    source: str, variables: dict[str, str], size: str, script: Script, tmp_path: Path
) -> None:
    path = script("print(main_thread_pool.size)")
    text = path.read_text(encoding="utf-8").replace("MAX_THREADS = 20", f"MAX_THREADS = {source}")
    path.write_text(text, encoding="utf-8")
    done = sandbox(tmp_path, path, **variables)
    assert (done.returncode, done.stdout) == (0, f"{size}\n"), done.stderr


def test_a_script_that_is_no_python_is_left_to_python(tmp_path: Path) -> None:
    for name, source in {"bad": b"def", "null": b"x = '\0'"}.items():
        (tmp_path / f"{name}.py").write_bytes(source)
        done = sandbox(tmp_path, f"{name}.py")
        assert done.returncode == 1
        assert re.search(r"(?m)^(Syntax|Value)Error: ", done.stderr), done.stderr
        assert "what the platform saw" in done.stderr
        assert "the log is" not in done.stderr, "there is none"


def test_what_a_script_says_of_itself_is_read_without_running_it(tmp_path: Path) -> None:
    path = tmp_path / "careless.py"
    path.write_text(
        r"""
1 / 0
"\d"
MAX_THREADS: int = 7
MICROSERVICES = {
    "IAM": {"base_url": os.getenv("EB_IAM_URL", "https://iam.endobest.example")},
    "LAB": {"base_url": os.environ["HOSPITAL_LAB"], **more},
    "FIX": {"base_url": "https://fix.hospital.test"},
    "OWN": {"base_url": "http://127.0.0.1:8000"},
    "BAD": {"base_url": "http://[localhost"},
    "ANY": service("any"),
    "NEW": {"endpoints": {"sites": "/api/sites?all=1", "tubes": "api/tubes/{tube}", "other": PATH}},
    name: {},
}
""",
        encoding="utf-8",
    )
    facts = read(path)
    assert facts.max_threads == 7
    assert facts.services == ["IAM", "LAB", "FIX", "OWN", "BAD", "ANY", "NEW"]
    assert facts.variables == {"EB_IAM_URL": "IAM", "HOSPITAL_LAB": "LAB"}
    assert facts.fixed == {"FIX": 8, "BAD": 10}
    assert facts.endpoints == [("sites", "NEW", "api/sites"), ("tubes", "NEW", "api/tubes/{tube}")]


@pytest.mark.parametrize("source", ["", "MAX_THREADS: int\nMICROSERVICES = None", "MAX_THREADS = True", "def"])
def test_a_script_without_any_facts_about_itself_is_read_without_an_error(source: str, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(source, encoding="utf-8")
    assert read(tmp_path / "other.py") == (None, [], {}, {}, [])


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="-S still knows there whose environment it runs in")
def test_an_interpreter_without_the_packages_is_replaced_by_one_that_is_named(script: Script, tmp_path: Path) -> None:
    other = sandbox(tmp_path, script("print(1)"), flags=("-S",))  # -S: no installed packages
    assert other.stdout == "1\n", other.stderr
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert re.search(
        rf"\nSandbox: using tests/\.venv/{re.escape(version)}, because your Python has no httpx2?\n", other.stderr
    )


@pytest.mark.skipif(sys.version_info < (3, 11), reason="httpx2 needs Python 3.11")
def test_a_copy_that_has_moved_to_httpx2_runs_as_it_is(script: Script, tmp_path: Path) -> None:
    path = script("print(httpx.__name__, len(get_all_organizations()))", LOG_LEVEL=10)
    path.write_text(moved(path.read_text(encoding="utf-8")), encoding="utf-8")
    done = sandbox(tmp_path, path, flags=("-S",))  # -S: no installed packages
    assert done.stdout.startswith("httpx2 "), done.stderr
    [log] = tmp_path.rglob("my_script.log")
    assert "HTTP Request" not in log.read_text(encoding="utf-8"), "httpx2 writes its URLs into the log"


# Services that a script added

ASK_LAB = """
old = dict(tokens["LAB"])
renewed = get_httpx_client().post(url_of("LAB", "refresh_token"), json={"refresh_token": old["refresh_token"]})
print(renewed.status_code, renewed.json()["access_token"] != old["access_token"])
response = get_httpx_client().get(url_of("LAB", "results") + "/7?patient=8")
print(response.status_code, response.json())
"""


@pytest.mark.parametrize("variable", ["EB_LAB_URL", "HOSPITAL_LAB"])
def test_an_own_service_gets_a_session_and_else_a_sentence(variable: str, with_lab: Script, tmp_path: Path) -> None:
    done = sandbox(tmp_path, with_lab(ASK_LAB, address=f"os.environ[{variable!r}]"))
    sentence = "the sandbox has no endpoint GET /lab/api/results/7"
    assert done.stdout == f"200 True\n404 {{'statusCode': 404, 'message': {sentence!r}}}\n", done.stderr
    assert re.search(r"(?m)^  config_token +3  3 accepted$", done.stderr)
    assert re.search(r"(?m)^  no such endpoint +1  GET /lab/api/results/7$", done.stderr)
    assert re.search(r"(?m)^Sandbox: .* 404; --answer NAME=FILE.json makes one return your file$", done.stderr)


FETCH_RESULTS = """
@api_call_with_retry("LAB")
def get_results(number):
    return call_endpoint("LAB", "GET", "results", dict, suffix=f"/{number}")

print([get_results(number) for number in (7, 8)], call_endpoint("LAB", "POST", "results", dict, json={}))
"""
RESULTS = '{"values": [1.5, null], "unité": "mmol/L"}'


def with_file(folder: Path, text: str, name: str = "results.json") -> str:
    """The name of a new file with this text."""
    (folder / name).write_text(text, encoding="utf-8")
    return name


def test_an_endpoint_of_the_scripts_own_answers_with_the_file_named_for_it(with_lab: Script, tmp_path: Path) -> None:
    file = with_file(tmp_path, RESULTS)
    done = sandbox(tmp_path, f"--answer=results={file}", with_lab(FETCH_RESULTS))
    wanted = {"values": [1.5, None], "unité": "mmol/L"}
    assert done.stdout == f"{[wanted] * 2} {wanted}\n", done.stderr
    assert re.search(r"(?m)^  results +3$", done.stderr)
    assert "no such endpoint" not in done.stderr


def test_an_answer_of_the_scripts_own_replaces_a_simulated_one_and_no_other(script: Script, tmp_path: Path) -> None:
    file = with_file(tmp_path, '[{"id": "1", "name": "mine"}]')
    path = script(
        """
        print(get_all_organizations())
        print(get_statistics("1"))
        """,
        edits={'"record_by_patient": "/api/records/byPatient"': '"records": "/api/inclusions"'},
    )
    done = sandbox(tmp_path, "--answer", f"organizations={file}", "--answer", f"records={file}", path)
    assert done.stdout == "[{'id': '1', 'name': 'mine'}]\n", done.stderr
    assert "my_script: failed: get_statistics: HTTP 404" in done.stderr, "no centre of the study"


def test_a_platform_that_stays_answers_with_the_file_as_well(
    staying: Callable[..., subprocess.Popen[str]], script: Script, tmp_path: Path
) -> None:
    path = script("print(get_all_organizations())")
    staying("--answer", f"organizations={with_file(tmp_path, '[7]')}")
    done = shell(f". ./variables.sh; {shlex.quote(sys.executable)} {path.name}", tmp_path, environment_for(None))
    assert done.stdout == "[7]\n", done.stderr


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("results", "write NAME=FILE.json, not 'results'"),
        ("=results.json", "write NAME=FILE.json, not '=results.json'"),
        ("results=none.json", "none.json cannot be read (No such file or directory)"),
        ("results=results.json", "results.json is not JSON (Expecting value: line 1 column 1 (char 0))"),
        ("sites=sites.json", "my_script.py has no endpoint 'sites' in MICROSERVICES"),
    ],
)
def test_an_answer_that_cannot_be_given_is_refused(answer: str, problem: str, with_lab: Script, tmp_path: Path) -> None:
    with_file(tmp_path, "<html>")
    with_file(tmp_path, "[]", "sites.json")
    done = sandbox(tmp_path, f"--answer={answer}", with_lab("print('never here')"))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"sandbox.py: .*--answer[^\n]*: {re.escape(problem)}[^\n]*\n", done.stderr), done.stderr


def test_a_service_whose_address_is_fixed_is_refused_with_the_line_to_change(with_lab: Script, tmp_path: Path) -> None:
    path = with_lab("print('never here')", address="'https://me:let-me-in@lab.hospital.test'")
    done = sandbox(tmp_path, path)
    assert (done.returncode, done.stdout) == (2, "")
    [number] = [n for n, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1) if "let-me-in" in line]
    wanted = 'os.environ.get("EB_LAB_URL") or "https://..."'
    shown = re.escape(f"sandbox.py: my_script.py, line {number}: the address of LAB is hard-coded")
    assert re.fullmatch(rf"{shown}.+{re.escape(wanted)}.*\n", done.stderr)
    assert names_in(tmp_path) == {"my_script.py"}


def test_a_call_needs_a_token_of_its_service(with_lab: Script, tmp_path: Path) -> None:
    path = with_lab(
        """
        headers = {"Authorization": f"Bearer {tokens['LAB']['access_token']}"}
        print(httpx.get(url_of("RC", "organizations"), headers=headers).status_code)
        for options in ({"headers": headers}, {}):
            print(httpx.get(url_of("LAB", "results"), **options).status_code)
        """
    )
    done = sandbox(tmp_path, f"--answer=results={with_file(tmp_path, '[]')}", path)
    assert done.stdout == "401\n200\n401\n", done.stderr


def test_an_unknown_path_of_a_service_is_told_apart_from_what_is_not_found(script: Script, tmp_path: Path) -> None:
    path = script(
        """
        for path in ("api/records", "api/records/byPatient?patient=nobody"):
            headers = {"Authorization": f"Bearer {tokens['RC']['access_token']}"}
            response = get_httpx_client().get(MICROSERVICES["RC"]["base_url"] + f"/{path}", headers=headers)
            print(response.status_code, response.json()["message"])
        """
    )
    done = sandbox(tmp_path, path)
    assert done.stdout == "404 the sandbox has no endpoint GET /rc/api/records\n404 unknown patient\n", done.stderr


# Patients for whom a call always fails

EVERY_RECORD = """
centres = run_parallel(lambda centre: get_all_inclusions(centre["id"]), get_all_organizations())
patients = [inclusion["patientId"] for _, inclusions in centres for inclusion in inclusions]
results = dict(run_parallel(get_record_by_patient, patients, return_exceptions=True))
failed = {patient: error.response.status_code for patient, error in results.items() if isinstance(error, Exception)}
print(len(results), *sorted(failed), *set(failed.values()))
"""


def test_some_patients_always_fail_and_they_are_the_same_in_each_run(script: Script, tmp_path: Path) -> None:
    path = script(EVERY_RECORD, WAIT_BEFORE_RETRY=0.001, ERROR_MAX_RETRY=3)
    first, again, other = (
        sandbox(tmp_path, "--patients", "40", "--failing", "4", "--seed", seed, path) for seed in ("1", "1", "2")
    )
    count, *failed, status = first.stdout.split()
    assert (count, len(failed), status) == ("40", 4, "500"), first.stderr
    assert first.stdout == again.stdout != other.stdout
    assert re.search(r"(?m)^  answered 500 +12$", first.stderr)
    assert "40 patients (4 failing)" in first.stderr


def test_more_failing_patients_than_there_are_are_refused(script: Script, tmp_path: Path) -> None:
    done = sandbox(tmp_path, "--failing", "6", script("print('never here')"))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"sandbox.py: --failing 6 is more than --patients 5 .*\n", done.stderr)


# A platform that stays


@pytest.fixture
def staying(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `sandbox.py --stay` and wait until it is ready; what it prints for the shell goes to variables.sh."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        with (tmp_path / "variables.sh").open("w", encoding="utf-8") as variables:
            started.append(
                subprocess.Popen(
                    [sys.executable, str(SANDBOX), *SMALL, "--stay", *options],
                    cwd=tmp_path,
                    env=environment_for(None),
                    stdin=subprocess.DEVNULL,
                    stdout=variables,
                    stderr=subprocess.PIPE,
                    encoding="utf-8",
                )
            )
        errors = started[-1].stderr
        assert errors
        assert any("Ctrl-C" in line for line in errors)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@posix
@pytest.mark.parametrize("ending", ["SIGINT", "SIGTERM"])
def test_a_platform_stays_up_for_whoever_sets_the_variables_until_it_is_told_to_end(
    ending: str, staying: Callable[..., subprocess.Popen[str]], with_lab: Script, tmp_path: Path
) -> None:
    path = with_lab("print(len(get_all_organizations()), len(tokens))")
    process = staying("--service", "LAB", "--password", "it's $HOME")
    run = f". ./variables.sh; {shlex.quote(sys.executable)} {path.name}"
    done = [shell(run, tmp_path, environment_for(None)) for _ in range(2)]
    assert [each.stdout for each in done] == ["2 4\n"] * 2, done[0].stderr
    process.send_signal(getattr(signal, ending))
    _, errors = process.communicate(timeout=WATCHDOG)
    assert process.returncode == 0
    assert re.search(r"(?m)^  organizations +2$", errors)
    assert "Traceback" not in errors
    assert names_in(tmp_path) == {"my_script.py", "my_script.log", "variables.sh"}


def test_the_variables_are_spelled_for_the_shell_of_the_system() -> None:
    variables = {"EB_IAM_URL": "http://127.0.0.1:1/iam", "EB_PASSWORD": "it's $5", "EB_THREADS": ""}
    assert list(assignments(variables, windows=False)) == [
        "export EB_IAM_URL=http://127.0.0.1:1/iam",
        """export EB_PASSWORD='it'"'"'s $5'""",
    ]
    assert list(assignments(variables, windows=True)) == [
        "$env:EB_IAM_URL = 'http://127.0.0.1:1/iam'",
        "$env:EB_PASSWORD = 'it''s $5'",
    ]


def test_staying_takes_no_script(script: Script, tmp_path: Path) -> None:
    done = sandbox(tmp_path, "--stay", script("print('never here')"))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"sandbox.py: --stay takes no script: start \S+my_script.py yourself, .*\n", done.stderr)


# Killed


def test_a_caller_that_is_gone_before_its_answer_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    request = b"POST /rc/api/auth/refreshToken HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    with Simulator(sys.executable, "--latency", "0.2") as platform:
        address = ("127.0.0.1", int(platform.url.rsplit(":", 1)[1]))
        with socket.create_connection(address) as gone:
            gone.sendall(request)
        with socket.create_connection(address) as later:  # its delay began later, so it ends later
            later.sendall(request)
            assert later.recv(1000).startswith(b"HTTP/1.1 401 ")
        assert platform.seen()["requests"]["refresh_token"] == 2
    assert capfd.readouterr().err == ""


def test_a_call_that_is_under_way_when_the_counts_are_reset_counts_no_more(simulator: Start) -> None:
    platform = simulator("--latency", "60")
    with socket.create_connection(("127.0.0.1", int(platform.url.rsplit(":", 1)[1]))) as held:
        held.sendall(b"GET /rc/api/inclusions/getAllOrganizations HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: platform.seen()["in_flight"])
        platform.control(latency=0, reset_counts=True)
        httpx.get(f"{platform.url}/rc/api/inclusions/getAllOrganizations")
    seen = platform.seen()
    assert (seen["in_flight"], seen["peak_concurrency"], seen["requests"]["organizations"]) == (0, 1, 1)


@posix
def test_a_script_that_is_killed_ends_the_sandbox_as_a_shell_would_say_it(script: Script, tmp_path: Path) -> None:
    path = script("main_thread_pool.submit(get_all_organizations).result()\nos.kill(os.getpid(), 9)")
    done = sandbox(tmp_path, path)
    assert done.returncode == 128 + signal.SIGKILL
    assert "what the platform saw" in done.stderr
    assert done.stderr.endswith(
        "Sandbox: the script was killed by SIGKILL\nSandbox: the log is my_script.sandbox/my_script.log\n"
    )
    assert "Traceback" not in done.stderr


# What must not be committed

KINDS = "csv db env feather har json jsonl lock log log.1 ods parquet part pdf pkl png sandbox/made.txt sqlite svg tsv"
NEVER_COMMITTED = [f"any.{kind}" for kind in [*KINDS.split(), "xls", "xlsx", "zip"]]


def test_git_leaves_out_every_kind_of_file_that_scripts_and_recipes_write(tmp_path: Path) -> None:
    recipes = [file.read_text(encoding="utf-8") for file in (TOP / "tests" / "recipes").glob("*.py")]
    writing = r"""(?:open|Path)\(\s*"([^"\n]+)"(?:, "[wax]|\)\.write)"""
    written = re.findall(writing, "".join([*blocks("python"), *recipes]))
    assert written, "no recipe writes a file"
    (tmp_path / ".gitignore").write_bytes((TOP / ".gitignore").read_bytes())
    (tmp_path / "any.sandbox").mkdir()
    for name in {*NEVER_COMMITTED, *written, "my_script.py", "requirements.txt", "README.md"}:
        (tmp_path / name).touch()
    git(tmp_path, "init", "--quiet")
    seen = git(tmp_path, "ls-files", "--others", "--exclude-standard").split()
    assert seen == [".gitignore", "README.md", "my_script.py", "requirements.txt"]


@pytest.mark.skipif(not (TOP / ".git").exists(), reason="only a clone has a history")
def test_git_leaves_out_nothing_that_belongs_to_the_repository_and_no_kind_is_named_twice() -> None:
    lines = (TOP / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert len(set(lines)) == len(lines)
    assert git(TOP, "ls-files", "--cached", "--ignored", "--exclude-standard") == ""
