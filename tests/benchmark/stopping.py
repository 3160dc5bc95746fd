"""Measure how a run ends after a signal: python3 tests/benchmark/stopping.py [--runs N] [--only PLACE].

The table has a row for each place where the main thread can be, and a column for each signal. A cell shows the longest
time from the signal to the end of the process, as seen from outside, the exit codes, and how many logs were complete:
they have the summary, and end with the closing line and its reason. This needs POSIX; the silent name server also needs
Linux and the right to listen on port 53.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "simulation")]

from environment import TEMPLATE, environment_python  # noqa: E402

if not all(map(find_spec, ("pytest", "uvicorn", "faker"))):  # the tests' environment has what helpers needs
    python = environment_python("requirements.txt")
    os.execv(python, [str(python), *sys.argv])

from helpers import OWN_IMPORTS, answer, environment_for, wait_until  # noqa: E402
from server import Simulator  # noqa: E402

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AT_ONCE = 4  # processes that are measured at the same time
LIMIT = 30  # seconds; a process that takes longer counts as not ending
SILENT = ("127.0.0.9", 53)  # of the name server that never answers
RESOLVER = f"nameserver {SILENT[0]}\noptions timeout:30 attempts:2\n"
ASKS_THE_SILENT = ("unshare", "-rm", "sh", "-c", 'mount --bind resolv.conf /etc/resolv.conf && exec "$0" "$@"')


@dataclass(frozen=True)
class Place:
    """Where the main thread is: the script, what the platform does, and how to tell that it is there."""

    todo: str
    settings: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    waits_for: str = "busy"  # text in the script's output, log or prompt
    asks: str = ""  # a variable that is missing, so that the script asks for it on a terminal
    prefix: tuple[str, ...] = ()
    failed: bool = False


BUSY = "print('busy', flush=True)"
FOREVER = f"{BUSY}\nthreading.Event().wait()"
LONG_FINALLY = f"try:\n{textwrap.indent(FOREVER, '    ')}\nfinally:\n    time.sleep(30)"
QUEUED = f"futures = [main_thread_pool.submit(get_statistics, '1') for _ in range(1000)]\n{BUSY}\n"
HELD: dict[str, Any] = {"hold": 60}
PLACES = {
    "a call that is not answered for 60 s": Place(f"{BUSY}\nget_statistics('1')", HELD),
    "a silent name server": Place(f"{BUSY}\nsocket.create_connection(('silent.example', 443))", prefix=ASKS_THE_SILENT),
    "`future.result()` of 1,000 calls": Place(f"{QUEUED}[future.result() for future in futures]", HELD),
    "`as_completed`": Place(f"{QUEUED}for future in as_completed(futures):\n    future.result()", HELD),
    "`Event().wait()`": Place(FOREVER),
    "backing off": Place(
        "template.WAIT_BEFORE_RETRY = 60\nget_statistics('1')",
        {"answer": {"statistics": answer(503)}},
        waits_for="next in",
    ),
    "the loop over `run_parallel`": Place(f"{BUSY}\nlist(run_parallel(get_statistics, itertools.repeat('1')))", HELD),
    "the user name prompt": Place("", asks="EB_USER_NAME", waits_for="User name"),
    "the password prompt": Place("", asks="EB_PASSWORD", waits_for="Password"),
    "a login that is not answered": Place("", options=("--latency", "60"), waits_for="20 threads"),
    "`finally: time.sleep(30)`": Place(LONG_FINALLY),
    "`while True: try: ... except BaseException: pass`": Place(
        f"{BUSY}\nwhile True:\n    try:\n        threading.Event().wait()\n    except BaseException:\n        pass"
    ),
    "closing after a failure, with an unfinished task": Place(
        "begun = threading.Event()\nmain_thread_pool.submit(lambda: (begun.set(), threading.Event().wait()))\n"
        "begun.wait()\nprint('busy', flush=True)\nraise LookupError('no input')",
        failed=True,
    ),
    "20 computing threads, and `finally: time.sleep(30)`": Place(
        "def compute():\n    while True:\n        sum(number * number for number in range(1000))\n"
        "for _ in range(20):\n    threading.Thread(target=compute, daemon=True).start()\n" + LONG_FINALLY
    ),
}


@dataclass(frozen=True)
class End:
    """How a process ended, and how many seconds that took after the signal."""

    seconds: float
    code: int | None
    log: str

    def says(self, words: str) -> bool:
        """Whether the log has the summary and ends with a closing line that contains these words."""
        return "API function " in self.log and words in self.log.splitlines()[-1]


@contextlib.contextmanager
def started(place: Place, platform: Simulator, template: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a place's script in its own folder; yields the process and the folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        todo = textwrap.indent(place.todo or "pass", "    ")
        imports = f"{OWN_IMPORTS}import socket, sys\nimport {template.stem} as template\nfrom {template.stem} import *"
        text = f"{imports}\n\ndef main():\n{todo}\n\nsys.exit(template.run(main))\n"
        (folder / "my_script.py").write_text(text)
        (folder / "resolv.conf").write_text(RESOLVER)
        variables = environment_for(platform, PYTHONPATH=str(template.parent), PYTHONDONTWRITEBYTECODE="1")
        variables.pop(place.asks, None)
        master, terminal = os.openpty()
        with (folder / "output").open("wb") as output:
            stdin, stderr = (terminal, terminal) if place.asks else (subprocess.DEVNULL, output)
            command = [*place.prefix, sys.executable, "my_script.py"]
            process = subprocess.Popen(command, cwd=folder, env=variables, stdin=stdin, stdout=output, stderr=stderr)
        os.close(terminal)
        try:
            if place.asks:
                while place.waits_for.encode() not in os.read(master, 1000):
                    pass
            yield process, folder
        finally:
            process.kill()
            process.wait()
            os.close(master)


def is_there(place: Place, folder: Path) -> bool:
    """Whether the main thread has reached its place."""
    return any(place.waits_for in read(folder / name) for name in ("output", "my_script.log")) or bool(place.asks)


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def ending(process: subprocess.Popen[bytes], folder: Path, number: signal.Signals) -> End:
    """Send a signal once the main thread is waiting in its place; returns how the process ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.5)
    sent = time.time()
    process.send_signal(number)  # does nothing if it has ended
    try:
        code: int | None = process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        code = None
    return End(time.time() - sent, code, read(folder / "my_script.log"))


def cell(ends: list[End], place: Place, number: signal.Signals) -> str:
    """Sum up the runs of a place and a signal."""
    wanted = "my_script: failed: LookupError (" if place.failed else f"my_script: stopped by {number.name}"
    complete = sum(end.says(wanted) for end in ends)
    codes = ", ".join(sorted({"does not end" if end.code is None else str(end.code) for end in ends}))
    return f"{max(end.seconds for end in ends):.1f} s, {codes}, {complete}/{len(ends)}"


def row(name: str, place: Place, runs: int, template: Path) -> str:
    """Measure a place with each signal."""
    with Simulator(sys.executable, "--centres", "5", "--patients", "60", *place.options) as platform:
        platform.control(**place.settings)

        def measure(number: signal.Signals) -> End:
            with started(place, platform, template) as (process, folder):
                wait_until(lambda: process.poll() is not None or is_there(place, folder))
                return ending(process, folder, number)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            ends = list(pool.map(measure, [number for number in SIGNALS for _ in range(runs)]))
    cells = [cell(ends[i * runs : (i + 1) * runs], place, number) for i, number in enumerate(SIGNALS)]
    return f"| {name} | {' | '.join(cells)} |"


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--runs", type=int, default=10, metavar="N", help="runs for each place and signal; default: %(default)s")
    add("--only", default="", metavar="PLACE", help="only the places whose name contains this")
    add("--template", type=Path, default=TEMPLATE, metavar="FILE", help="the copy to measure")
    return parser.parse_args()


def main() -> None:
    """Print the table, line by line."""
    options = parsed()
    template = options.template.resolve()
    print("| main thread in | Ctrl-C | SIGTERM | SIGHUP |\n|---|---|---|---|", flush=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        try:
            server.bind(SILENT)
        except OSError as error:
            PLACES.pop("a silent name server")
            print(f"| a silent name server | not measured: {error} | | |")
        for name, place in PLACES.items():
            if options.only in name:
                print(row(name, place, options.runs, template), flush=True)


if __name__ == "__main__":
    main()
