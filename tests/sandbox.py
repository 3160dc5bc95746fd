"""Run a script against a simulated platform to try it safely. Nothing leaves your machine.

  python3 tests/sandbox.py                 runs the template
  python3 tests/sandbox.py my_script.py    runs your script; you can add its own arguments
  python3 tests/sandbox.py --stay          keeps a platform running for a script or notebook that you start yourself

Your script runs unchanged, in the folder my_script.sandbox, so that simulated results never mix with real ones. The
sandbox sets the EB_* variables for it. At the end, it shows what the platform saw and where the log is.

Your script can log in to services that you added to MICROSERVICES, but the sandbox has no data for them: their data
calls return 404, and so do endpoints that you added to a service. To try an endpoint, write the response that it should
return to a file, and name both:

  python3 tests/sandbox.py --answer sites=sites.json my_script.py
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent / "simulation"))

from environment import TEMPLATE, TESTS, environment_python, missing_package, stop
from script_source import Facts, read
from server import SERVICES, UNKNOWN, Simulator, add_options, parse_options

LATENCY = 0.2  # default seconds per call: about what a platform takes, and enough to see the bars
VERDICTS = {"login": "logins", "config_token": "configurations", "refresh_token": "refreshes"}


class OneLineParser(argparse.ArgumentParser):
    """Reports errors of a command line in one line."""

    def error(self, message: str) -> NoReturn:
        """End without the whole usage."""
        stop(f"{message} (--help lists the options)")


def main() -> int:
    options = parse_options(sandbox_parser())
    if options.stay and options.script:
        stop(f"--stay takes no script: start {options.script[0]} yourself, with the variables that --stay prints")
    try:
        return stay(options) if options.stay else run(options)
    except (RuntimeError, OSError) as error:
        say(f"Sandbox: {error}")
        return 1


def sandbox_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        usage="python3 tests/sandbox.py [options] [script [its arguments]]",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--here", action="store_true", help="run the script in the current folder")
    parser.add_argument("--stay", action="store_true", help="print the variables to set, and keep running until Ctrl-C")
    add_options(parser, LATENCY)
    parser.add_argument("script", nargs=argparse.REMAINDER, help="the script to run, and its own arguments")
    return parser


def stay(options: argparse.Namespace) -> int:
    """Keep the platform running for scripts that are started elsewhere."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    own = own_options(options, read(TEMPLATE), TEMPLATE.name)
    with platform(options, own) as simulator, suppress(KeyboardInterrupt):
        print("\n".join(assignments(simulator.environment(""), os.name == "nt")), flush=True)
        say("Sandbox: set these variables where you start your script or notebook; Ctrl-C stops the platform")
        while True:
            time.sleep(1)  # on Windows, Ctrl-C interrupts a sleep, but not a wait for an event
    return 0


def assignments(variables: dict[str, str], windows: bool) -> Iterator[str]:
    """Yield the lines that set variables, in PowerShell or in a POSIX shell; empty ones are left out."""
    for name, value in variables.items():
        if value and windows:
            yield f"$env:{name} = '" + value.replace("'", "''") + "'"
        elif value:
            yield f"export {name}={shlex.quote(value)}"


def run(options: argparse.Namespace) -> int:
    script = Path(options.script[0] if options.script else TEMPLATE)
    facts = checked_facts(script)
    own = own_options(options, facts, script.name)
    folder = Path() if options.here else own_folder(script)
    python, reason = interpreter(script)
    with platform(options, own) as simulator:
        where = "this folder" if options.here else f"{folder} (use --here to run in this folder)"
        say(f"Sandbox: running in {where}{reason}")
        code = execute([python, str(script.absolute()), *options.script[1:]], folder, variables(simulator, facts))
    for line in last_words(script, folder, code):
        say(f"Sandbox: {line}")
    return code if code >= 0 else 128 - code  # as in a shell


def checked_facts(script: Path) -> Facts:
    """Return the facts about the script; end if it cannot run in the sandbox."""
    if not script.is_file():
        stop(f"there is no script {script}")
    facts = read(script)
    for service, line in facts.fixed.items():
        fix = f'nothing may leave the sandbox: write os.environ.get("EB_{service}_URL") or "https://..." there'
        stop(f"{script.name}, line {line}: the address of {service} is hard-coded, but {fix}")
    return facts


def own_options(options: argparse.Namespace, facts: Facts, script: str) -> list[str]:
    """Return the options for what a script adds to the platform; end if --answer names no endpoint of the script."""
    answered = dict(options.answer)
    for name in answered.keys() - {name for name, *_ in facts.endpoints}:
        stop(f"--answer {name}: {script} has no endpoint {name!r} in MICROSERVICES")
    services = [f"--service={service}" for service in facts.services if service not in SERVICES]
    places = [f"--endpoint={name}={service}/{path}" for name, service, path in facts.endpoints if name in answered]
    return [*services, *places]


def own_folder(script: Path) -> Path:
    """Create the folder that keeps simulated results separate from real ones."""
    folder = Path(f"{script.stem}.sandbox")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        stop(f"{folder} cannot be created ({error.strerror}): start the sandbox in another folder, or with --here")
    return folder


def interpreter(script: Path) -> tuple[str, str]:
    """Return the interpreter for the script, and why it is not the calling one, which may have more packages."""
    if package := missing_package(script):
        ours = environment_python("simulation/requirements.txt")
        home = ours.parent.parent.relative_to(TESTS.parent).as_posix()
        return str(ours), f"\nSandbox: using {home}, because your Python has no {package}"
    return sys.executable, ""


def variables(simulator: Simulator, facts: Facts) -> dict[str, str]:
    """Return the variables for this script; one whose MAX_THREADS cannot be read uses its own default."""
    threads = "" if facts.max_threads is None else str(facts.max_threads)
    own = {variable: simulator.address(service) for variable, service in facts.variables.items()}
    return {**simulator.environment(threads), **own}


def execute(command: list[str], folder: Path, variables: dict[str, str]) -> int:
    """Run the script, leave Ctrl-C to it, pass SIGTERM on; return its exit code, or minus the signal that ended it."""
    # A handler, because the script would inherit SIG_IGN and ignore Ctrl-C.
    signal.signal(signal.SIGINT, lambda *_: None)
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, **variables})
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    return process.wait()


def last_words(script: Path, folder: Path, code: int) -> Iterator[str]:
    """Yield the lines to print when the script has ended."""
    if code < 0:
        names = {each.value: each.name for each in signal.Signals}  # most real-time signals have no name
        yield f"the script was killed by {names.get(-code, f'signal {-code}')}"
    log = folder / f"{script.stem}.log"
    if log.is_file():
        yield f"the log is {log}"


@contextmanager
def platform(options: argparse.Namespace, own: Sequence[str]) -> Iterator[Simulator]:
    """Start the platform with the options for this script; print what it simulates and, at the end, what it saw."""
    typed = sys.argv[1 : len(sys.argv) - len(options.script)]
    arguments = [each for each in typed if each not in ("--here", "--stay")]
    python = environment_python("simulation/requirements.txt")
    with Simulator(python, "--latency", str(LATENCY), *arguments, *own) as simulator:
        say(headline(simulator))
        yield simulator
        say("\n" + "\n".join(table(simulator.seen())))


def say(text: str) -> None:
    """Print to stderr, because stdout belongs to the script; at once, because the script writes there, too."""
    print(text, file=sys.stderr, flush=True)


def headline(simulator: Simulator) -> str:
    options = simulator.options
    size = f"{options.centres:,} centres, {options.patients:,} patients"
    if options.failing:
        size += f" ({options.failing:,} failing)"
    return f"Sandbox: {size}, on {simulator.url}\nSandbox: simulated user {options.user}"


def table(seen: dict[str, Any]) -> Iterator[str]:
    yield "Sandbox: what the platform saw"
    peak = f"at most {seen['peak_concurrency']} at a time, connections: {seen['connections']}"
    yield row("calls", sum(seen["requests"].values()), peak)
    for endpoint, count in seen["requests"].items():
        if count:
            yield row(endpoint, count, note(endpoint, seen))
    for status, count in sorted(seen["answers"].items()):
        yield row(f"answered {status}", count)
    for kind, count in seen["faults"].items():
        if count:
            yield row(f"fault {kind}", count)
    yield row("expired access tokens", seen["expiries"])
    if seen["unknown"]:
        yield "Sandbox: endpoints that are not simulated return 404; --answer NAME=FILE.json makes one return your file"


def row(label: str, count: int, note: str = "") -> str:
    return f"  {label:<24}{count:>10,}  {note}".rstrip()


def note(endpoint: str, seen: dict[str, Any]) -> str:
    """Return the remark about an endpoint, after the number of its calls."""
    if endpoint in VERDICTS:
        counts = seen[VERDICTS[endpoint]]
        refused = f", {counts['refused']} refused" if counts["refused"] else ""
        return f"{counts['accepted']} accepted{refused}"
    first, *others = seen["unknown"] if endpoint == UNKNOWN else [""]
    return f"{first} and others" if others else first


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
