"""Check what a real platform is like: python3 tests/check_platform.py [--har session.har] [--apply] [my_script.py].

Reads the services, addresses and endpoints from a copy of the template (by default, the template itself) and compares
what the script assumes about the platform with what the platform does. It makes at most 60 calls, one at a time, which
change nothing. It reads your credentials from EB_USER_NAME and EB_PASSWORD, or asks you for them. With --har, it calls
and asks nothing, and reads a browser's recording of a visit instead. With --apply, it writes what it found into
my_script.py. The output contains names of fields, addresses, paths, client ids, counts, types, status codes and
durations, but no values and no tokens, so you can send it to a colleague.

Exit code: 0 everything is as assumed, 1 something is not, 2 the configuration is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import io
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from environment import TEMPLATE, environment_python, missing_package, stop
from script_file import Refused

if TYPE_CHECKING:
    from platform_check.httpx_in_use import httpx
    from platform_check.judgements import Finding
    from platform_check.observed import Observation
    from platform_check.script import Script

T = TypeVar("T")
PROXY_FORM = "write http://user:password@host:port; in user and password, write %23, %2F, %40, %3F for #, /, @ and ?"


def main() -> int:
    """Check the platform of a script; returns the exit code."""
    options = read_command_line()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a Windows pipe cannot encode every script name
    if not options.script.is_file():
        stop(f"there is no script {options.script}")
    if options.apply and options.script.resolve() == TEMPLATE.resolve():
        stop("--apply changes a copy: name yours, for example check_platform.py --apply my_script.py")
    if options.har:
        return by_recording(options.har, options.script, options.apply)
    if missing_package(options.script):
        return subprocess.run([environment_python("simulation/requirements.txt"), *sys.argv]).returncode
    return by_calls(options.script, options.apply)


def read_command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("script", nargs="?", type=Path, default=TEMPLATE, help="a copy of the template; default: the template itself")
    add("--har", type=Path, metavar="FILE", help="read a browser's recording instead of calling the platform")
    add("--apply", action="store_true", help="write what was found into the script, and keep the old version")
    return parser.parse_args()


def by_calls(path: Path, apply: bool) -> int:
    """Check with calls; returns the exit code."""
    from platform_check.script import load

    script, module = script_of(path, load)
    check_addresses(script)
    user, password = credentials(module)
    with client() as connection:
        return told_by_calls(script, user, password, connection, apply=apply)


def told_by_calls(
    script: Script,
    user: str,
    password: str,
    connection: httpx.Client,
    sleep: Callable[[float], None] = time.sleep,
    apply: bool = False,
) -> int:
    """Make the calls and print the findings; returns the exit code."""
    from platform_check.probing import Check, Prober

    prober = Prober(connection, sleep)
    how = "calls that change nothing, one at a time"
    findings = Check(script, user, password, prober).findings()
    differs = reported(script, how, findings, lambda: [f"{prober.calls} calls"], apply)
    return int(differs or prober.cut_short)


def by_recording(recording: Path, path: Path, apply: bool) -> int:
    """Check with a browser's recording, without a call; returns the exit code."""
    from platform_check import har
    from platform_check.observed import Observation
    from platform_check.script import read

    script = script_of(path, read)
    try:
        calls, passed = har.read(recording)
    except Refused as reason:
        stop(f"{recording.name} {reason}")
    except OSError as error:
        stop(f"{recording.name} cannot be read: {error.strerror}")
    observation = Observation(script, calls)
    if not observation.used:
        stop(
            f"{recording.name} contains no call to {', '.join(script.services)}: "
            "open the developer tools first, then log in and look around"
        )
    return told_by_recording(recording, observation, passed, apply)


def told_by_recording(recording: Path, observation: Observation, passed: Counter[str], apply: bool) -> int:
    """Print the findings from a recording; returns the exit code."""
    from platform_check import table

    rest = [
        f"{observation.used} calls to the platform",
        *table.passed_over(passed, len(observation.calls) - observation.used),
        *table.exports(observation.exports(), os.name == "nt"),
    ]
    how = "from a browser's recording, without calling the platform"
    differs = reported(observation.script, how, observation.findings(), lambda: rest, apply)
    delete = f'del "{recording}"' if os.name == "nt" else f"rm {shlex.quote(str(recording))}"
    print("", f"The recording contains your password, tokens and patient data. Delete it: {delete}", sep="\n")
    return int(differs)


def reported(
    script: Script, how: str, findings: Iterable[Finding], rest: Callable[[], Sequence[str]], apply: bool
) -> bool:
    """Print the table as it grows, what to do, and the rest; returns whether anything differs."""
    from platform_check import table
    from platform_check.judgements import DIFFERS, Finding

    seen = list[Finding]()
    print(f"Check for {script.path.name}: {', '.join(script.services)}; {how}", table.HEAD, sep="\n", flush=True)
    for finding in findings:
        seen.append(finding)
        print(table.row(finding), flush=True)
    counted, *others = rest()
    print(*table.changes(seen, script), "", f"{table.closing(seen)}; {counted}", *others, sep="\n")
    if apply:
        apply_to(script, seen)
    return any(finding.verdict == DIFFERS for finding in seen)


def apply_to(script: Script, findings: Sequence[Finding]) -> None:
    """Write what was found into the script, and list what is left to a person."""
    from platform_check import changes, table

    steps = dict.fromkeys(step for finding in findings for step in finding.steps)
    edits = [(change, line) for change, line in steps if isinstance(change, changes.Edit) and line]
    said, left = f"Nothing in {script.path.name} can be changed automatically", edits
    if edits:
        try:
            kept, left = changes.apply(script.path, edits)
        except Refused as reason:
            stop(f"{script.path.name} {reason}")
        made = len(edits) - len(left)
        places = "1 place" if made == 1 else f"{made} places"
        said = f"Changed {script.path.name} in {places}, as shown above; the old version is {kept.name}"
    by_hand = [step for step in steps if step not in edits or step in left]
    print("", said, *table.left_to_you(by_hand, script), sep="\n")


def script_of(path: Path, read: Callable[[Path], T]) -> T:
    """What a reader returns for a script; stops if it is not a copy of the template."""
    try:
        return read(path)
    except SystemExit as ended:
        stop(f"{path.name} ends with exit code {ended.code} when it is imported: keep its last two lines unchanged")
    except Exception as error:
        stop(f"{path.name} cannot be read as a copy of the template ({type(error).__name__}: {error})")


def check_addresses(script: Script) -> None:
    """Stop if the password would be sent nowhere, or unencrypted."""
    if "IAM" not in script.services:
        stop("MICROSERVICES has no IAM: put its entry back, every login goes through it")
    problems = [
        (app, script.entry(app, "base_url").line, problem)
        for app, service in script.services.items()
        if (problem := url_problem(service["base_url"]))
    ]
    if problems:
        stop("; ".join(f"set EB_{app}_URL ({script.shown(line)}): {problem}" for app, line, problem in problems))


def url_problem(url: str) -> str:
    """What is wrong with a base_url, or ""; a login in it is not shown."""
    from platform_check.httpx_in_use import httpx

    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        return "it is not an https:// address"
    shown = repr(str(parts.copy_with(userinfo=b"")))
    if parts.userinfo:
        return f"{shown} contains a login: set EB_USER_NAME and EB_PASSWORD instead"
    if parts.host.endswith(".example"):
        return f"{shown} is a placeholder"
    if parts.scheme == "http" and not re.fullmatch(r"localhost|127(\.\d+){3}|::1", parts.host):
        return f"{shown} would send password and tokens unencrypted: use https://"
    return "" if parts.host and parts.scheme in ("http", "https") else f"{shown} is not an https:// address"


def credentials(module: ModuleType) -> tuple[str, str]:
    """User and password: from the environment, or typed in a terminal, or the script's constants."""
    user = ask("EB_USER_NAME", f"User name [{module.DEFAULT_USER_NAME}]: ", module.DEFAULT_USER_NAME, input)
    password = ask("EB_PASSWORD", "Password: ", module.DEFAULT_PASSWORD, getpass.getpass)
    if not password:
        stop("EB_PASSWORD is empty: set it, or start the check in a terminal and type it")
    return user, password


def ask(variable: str, question: str, default: str, read: Callable[[str], str]) -> str:
    """A setting: from the environment, or typed in a terminal, or the default."""
    value = os.environ.get(variable, "")
    if not value and all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        with contextlib.suppress(EOFError), contextlib.redirect_stdout(sys.stderr):
            value = read(question)
    return value or default


def client() -> httpx.Client:
    """A client that trusts what the operating system trusts, and uses no proxy for this machine."""
    from platform_check.httpx_in_use import httpx

    check_proxies()
    try:
        context = httpx.create_ssl_context()
    except OSError as error:
        stop(f"SSL_CERT_FILE: {error}; set it to a file of CA certificates")
    context.load_default_certs()
    try:
        return httpx.Client(verify=context, mounts={"http://": None})
    except Exception as error:  # its text may quote a password
        stop(f"HTTPS_PROXY, ALL_PROXY or NO_PROXY cannot be used ({type(error).__name__}): {PROXY_FORM}")


def check_proxies() -> None:
    """Stop if a proxy's address is invalid, without showing it: a raw # or / in a password would be read as a port."""
    from platform_check.probing import PROXY_VARIABLES

    for name in PROXY_VARIABLES:
        value = os.environ.get(name, "")
        try:
            parts = urllib.parse.urlsplit(value if "://" in value else f"http://{value}")
            sound = parts.port != 0 and parts.hostname and not parts.query and not parts.fragment
        except ValueError:
            sound = False
        if value and (not sound or parts.path.strip("/") or parts.netloc.count("@") > 1):
            stop(f"{name} is not the address of a proxy: {PROXY_FORM}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
