"""What the tests share besides the fixtures: running scripts as a user does, logs, git, waiting, the study."""

import base64
import functools
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from server import WATCHDOG, Simulator
from study import Study

TEMPLATE = Path(__file__).resolve().parent.parent / "eb_script_template.py"
TODO_BLOCK = re.compile(r"(?<=    # TODO: ).*?(?=\n    # end of the TODO block)", re.DOTALL)
SUMMARY = ["calls", "retries", "renewals", "failures", "p50", "p95", "max"]  # columns at the end of a log
needs_posix = functools.partial(pytest.mark.skipif, os.name == "nt")  # needs a reason, like the mark itself

# What scripts import for their own use: names that the engine must not depend on.
OWN_IMPORTS = """\
import concurrent.futures
import contextlib
import functools
import io
import itertools
import json
import math
import queue
import random
import re
import signal
import threading
import time
import traceback
import urllib.parse
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
"""
# What a script has at its head: these, and a way to change the simulated platform as a test does.
OWN_HEAD = f"""{OWN_IMPORTS}

def control(**settings):
    address = MICROSERVICES["RC"]["base_url"].removesuffix("/rc") + "/_sandbox/control"
    httpx.post(address, json=settings).raise_for_status()
"""

# What a script adds for the two endpoints that only the simulated platform has.
OWN_CALLS = """
@api_call_with_retry("RC")
def echo(number):
    client = get_httpx_client()
    client.base_url = MICROSERVICES["RC"]["base_url"]
    headers = {"Authorization": f"Bearer {tokens['RC']['access_token']}"}
    response = client.get(f"/api/echo/{number}", headers=headers, timeout=API_TIMEOUT)
    response.raise_for_status()
    return response.json()["n"]


@api_call_with_retry("RC", idempotent=False)
def create(key):
    client = get_httpx_client()
    client.base_url = MICROSERVICES["RC"]["base_url"]
    headers = {"Authorization": f"Bearer {tokens['RC']['access_token']}"}
    response = client.post("/api/requests/create", headers=headers, json={"key": key}, timeout=API_TIMEOUT)
    response.raise_for_status()
    return response.json()["id"]
"""

Start = Callable[..., Simulator]
Load = Callable[..., Any]
Script = Callable[..., Path]
Run = Callable[..., "Ran"]


def release(module: Any) -> None:
    """Release what a test used without `run`, which would do it: threads, connections, failed tasks."""
    module.main_thread_pool.renew_threads()
    module.subtasks_thread_pool.renew_threads()
    if module._thread.client is not None:  # clients of ended threads close by themselves
        module._thread.client.close()
    module._stop.unheard.clear()


def environment_for(platform: Simulator | None, **variables: str) -> dict[str, str]:
    """This process's environment with a platform's variables, or without any EB_ variable; output is UTF-8."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EB_")}
    clean["PYTHONIOENCODING"] = "utf-8"  # Windows would write its code page into a pipe; this does not change `open`
    return {**clean, **(platform.environment() if platform else {}), **variables}


def finished_in(
    folder: Path, command: list[str], environment: dict[str, str], text: str = "", **streams: int
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder without a terminal, with a text on standard input; its output and exit code."""
    given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    if "stdin" not in given:
        given["input"] = text
    return subprocess.run(command, cwd=folder, env=environment, encoding="utf-8", timeout=WATCHDOG, **given)


@dataclass(frozen=True)
class Ran:
    """What came of a run of a script; its log is beside it."""

    path: Path
    returncode: int
    stdout: str
    stderr: str

    @property
    def log(self) -> str:
        return log_of(self.path)

    @property
    def said(self) -> str:
        """All that it has said: on the terminal, in its output and in its log."""
        return self.stdout + self.stderr + self.log


def run_script(
    path: Path,
    platform: Simulator | None,
    streams: dict[str, int] | None = None,
    redirect: str = "",
    **variables: str,
) -> Ran:
    """Run a script in its folder, with other `streams` than pipes, or by a shell that has them in its `redirect`."""
    command = [sys.executable, str(path)]
    if redirect:
        command = ["/bin/sh", "-c", f"exec {shlex.join(command)} {redirect}"]
    done = finished_in(path.parent, command, environment_for(platform, **variables), **(streams or {}))
    return Ran(path, done.returncode, done.stdout, done.stderr)


def log_of(path: Path) -> str:
    """The log next to a script; only this system's line ends are translated, because a lone CR would be a forgery."""
    return path.with_suffix(".log").read_bytes().decode("utf-8").replace(os.linesep, "\n")


def line_of(path: Path, mark: str = "# here") -> int:
    """The number of the one line of a script that ends with a mark."""
    [number] = [n for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if line.endswith(mark)]
    return number


def ran(template: Any, main: Callable[[], object]) -> tuple[int, str]:
    """Run a script's main in this process; returns the exit code and the log."""
    code = template.run(main)
    [log] = Path.cwd().glob("*.log")
    return code, log_of(log)


def python(arguments: list[str], folder: Path, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with no EB_ variables except those given."""
    return finished_in(folder, [sys.executable, *arguments], environment_for(None, **variables), stdin)


def summary_of(log: str) -> dict[str, dict[str, int]]:
    """The last summary table of a log: API function -> column -> figure."""
    head, *lines = log[log.rindex(" API function ") :].splitlines()
    before = log[: log.rindex(" API function ")].rpartition("\n")[2]  # date, level and thread, like the lines below
    assert head.replace(" ms", "").split()[2:] == SUMMARY
    rows = {}
    for line in lines:
        name, *figures = line[len(before) :].split()
        if len(figures) != len(SUMMARY):
            break
        rows[name] = dict(zip(SUMMARY, (int(figure.replace(",", "")) for figure in figures), strict=True))
    return rows


def answer(
    status: int,
    body: bytes = b"{}",
    content_type: str = "application/json",
    trickle: float = 0,
    times: int = 0,
    **headers: str,
) -> dict[str, Any]:
    """The response of an endpoint from now on: `platform.control(answer={"echo": answer(503)})`.

    `trickle` is the seconds between two bytes of the body, and `times` how often this is the response (0: always).
    Headers are keywords, such as `retry_after="5"`.
    """
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content = {"body_base64": base64.b64encode(body).decode(), "content_type": content_type}
    return {"status": status, **content, "headers": named, "trickle": trickle, "times": times}


def untrusted() -> httpx.ConnectError:
    """What a call raises if the server's certificate is not trusted, with its causes."""
    reason = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate"
    error = httpx.ConnectError(reason)
    error.__cause__ = OSError()  # httpcore's own exception: it has the cause, but no context
    error.__cause__.__context__ = ssl.SSLCertVerificationError(1, reason)
    return error


def on_terminal(folder: Path, arguments: str, environment: dict[str, str], size: tuple[int, int] = (24, 200)) -> Any:
    """Start Python in a folder on a pseudo-terminal of so many rows and columns, by pexpect."""
    import pexpect  # not on Windows

    command = f"exec {shlex.quote(sys.executable)} {arguments}"
    there: dict[str, Any] = {"cwd": folder, "env": environment, "encoding": "utf-8", "dimensions": size}
    return pexpect.spawn("/bin/sh", ["-c", command], timeout=WATCHDOG, **there)


def shell(command: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run shell commands in a folder; returns their output and exit code."""
    return finished_in(folder, ["sh", "-c", command], environment)


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, in `git_environment`; returns its output."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    run = ["git", *arguments]
    return subprocess.run(run, cwd=folder, env=git_environment(), check=True, capture_output=True, text=True).stdout


def git_environment() -> dict[str, str]:
    """This process's environment without the git settings of a hook, a person or the machine."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    who = {f"GIT_{role}_{what}": "tests@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    trust = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    return {**clean, **who, **trust, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def base_python() -> Path:
    """The interpreter, with pip, that the tests' environment was made from."""
    name = "python.exe" if os.name == "nt" else f"bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    return Path(sys.base_prefix, name)


def wait_until(condition: Callable[[], object], within: float = WATCHDOG) -> None:
    """Wait for a condition instead of sleeping."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


@contextmanager
def outage(platform: Simulator, kind: str = "503") -> Iterator[None]:
    """An outage that ends after rejecting two more calls."""
    enough = platform.seen()["faults"]["outage"] + 2

    def end() -> None:
        wait_until(lambda: platform.seen()["faults"]["outage"] >= enough)
        platform.control(outage=0)

    platform.control(outage=600, outage_kind=kind)
    with ThreadPoolExecutor(1) as outside:
        ended = outside.submit(end)
        yield
    ended.result()


def study_of(platform: Simulator) -> Study:
    """The study that the platform simulates, without asking the platform."""
    return Study(platform.options.centres, platform.options.patients, platform.options.seed)


def all_inclusions(study: Study, centre: str) -> list[dict[str, Any]]:
    whole = study.inclusions(centre, 1_000_000, 1)
    assert whole is not None
    return list(whole["data"])


def patients_of(study: Study) -> list[str]:
    return [
        inclusion["patientId"]
        for organization in study.organizations
        for inclusion in all_inclusions(study, organization["id"])
    ]


def a_tube(study: Study) -> str:
    for record in map(study.record, patients_of(study)):
        for visit in (record or {"visits": []})["visits"]:
            for sample in visit.get("samples") or []:
                return str(sample["tubeId"])
    raise AssertionError("no patient has a sample")
