"""Run a script against a simulated platform: python3 tests/sandbox.py [options] [script [its arguments]].

Without a script it runs the template itself. The script runs as it is, in the current folder, with the EB_* variables
set so that it reaches nothing but the simulation. What the simulation saw is told at the end.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent / "simulation"))

from environment import TESTS, environment_python, stop
from server import Simulator, add_options, parse_options

TEMPLATE = TESTS.parent / "eb_script_template.py"
LATENCY = 0.2  # seconds per call unless the command line says otherwise: about what a platform takes, and bars show
VERDICTS = {"login": "logins", "config_token": "configurations", "refresh_token": "refreshes"}


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line."""

    def error(self, message: str) -> NoReturn:
        """End without the whole usage."""
        stop(f"{message} (--help lists the options)")


def main() -> int:
    """Run the script and return its exit code."""
    command = script_and_arguments()
    options = sys.argv[1 : len(sys.argv) - len(command)]
    script = Path(command[0] if command else TEMPLATE)
    if not script.is_file():
        stop(f"there is no script {script}")
    python = environment_python("simulation/requirements.txt")
    try:
        with Simulator(python, "--latency", str(LATENCY), *options) as simulator:
            say(headline(simulator))
            code = run([interpreter(python), str(script), *command[1:]], simulator.environment())
            say("\n" + "\n".join(table(simulator.seen())))
    except (RuntimeError, OSError) as error:
        say(f"Sandbox: {error}")
        return 1
    return code


def script_and_arguments() -> list[str]:
    """Check the command line and return what follows the sandbox's own options."""
    parser = OneLineParser(description=__doc__, allow_abbrev=False)
    add_options(parser, LATENCY)
    parser.add_argument("script", nargs=argparse.REMAINDER, help="the script to run, with its arguments")
    command: list[str] = parse_options(parser).script
    return command


def interpreter(prepared: Path) -> str:
    """Return the calling interpreter if it can run the script, so that its other packages are there; else our own."""
    own = all(importlib.util.find_spec(package) for package in ("httpx", "tqdm"))
    return sys.executable if own else str(prepared)


def run(command: list[str], variables: dict[str, str]) -> int:
    """Run the script, leave Ctrl-C to it, hand SIGTERM on to it, and return its exit code as a shell would."""
    # A handler, as the script would inherit SIG_IGN and be deaf to Ctrl-C.
    signal.signal(signal.SIGINT, lambda *_: None)
    process = subprocess.Popen(command, env={**os.environ, **variables})
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    code = process.wait()
    return code if code >= 0 else 128 - code


def say(text: str) -> None:
    """Speak on stderr, as stdout belongs to the script; at once, as the script writes there too."""
    print(text, file=sys.stderr, flush=True)


def headline(simulator: Simulator) -> str:
    """Say what is simulated."""
    options = simulator.options
    size = f"{options.centres:,} centres, {options.patients:,} patients"
    return f"Sandbox: {size}, on {simulator.url}; user {options.user} (simulated)"


def table(seen: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that tell what the platform saw."""
    yield "Sandbox: what the platform saw"
    peak = f"at most {seen['peak_concurrency']} at a time, connections: {seen['connections']}"
    yield row("calls", sum(seen["requests"].values()), peak)
    for endpoint, count in seen["requests"].items():
        if count:
            yield row(endpoint, count, verdict(seen[VERDICTS[endpoint]]) if endpoint in VERDICTS else "")
    for status, count in sorted(seen["answers"].items()):
        yield row(f"answered {status}", count)
    for kind, count in seen["faults"].items():
        if count:
            yield row(f"fault {kind}", count)
    yield row("expired access tokens", seen["expiries"])


def row(label: str, count: int, note: str = "") -> str:
    """Lay out one line of the table."""
    return f"  {label:<24}{count:>10,}  {note}".rstrip()


def verdict(counts: dict[str, int]) -> str:
    """Tell how many were accepted, and how many refused if any were."""
    refused = f", {counts['refused']} refused" if counts["refused"] else ""
    return f"{counts['accepted']} accepted{refused}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
