"""Check what a real platform is like: python3 tests/check_platform.py [my_script.py].

Takes the services, addresses and endpoints of a copy of the template, by default of the template itself, and holds what
the script assumes of the platform against what the platform does: some 60 calls, one at a time, that change nothing.
Credentials come from EB_USER_NAME and EB_PASSWORD, or are asked for. What is printed, and written to
my_script.platform.txt, holds names of fields, counts, kinds, status codes and durations: no value, no token.

Exit code: 0 all is as assumed, 1 something is not, 2 configuration.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from environment import TESTS, environment_python, missing_package, stop

if TYPE_CHECKING:
    from platform_check.httpx_in_use import httpx
    from platform_check.script import Script

TEMPLATE = TESTS.parent / "eb_script_template.py"
FOR_COLLEAGUES = ".platform.txt"


def main() -> int:
    """Check the platform of a script; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=list_of_checks(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "script", nargs="?", type=Path, default=TEMPLATE, help="a copy of the template; default: itself"
    )
    path = parser.parse_args().script
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a Windows pipe cannot take every name of a script
    if not path.is_file():
        stop(f"there is no script {path}")
    if missing_package(path):
        return subprocess.run([environment_python("simulation/requirements.txt"), *sys.argv]).returncode
    script, module = loaded(path)
    check_addresses(script)
    user, password = credentials(module)
    with client() as connection:
        return reported(script, user, password, connection)


def list_of_checks() -> str:
    """How each check is tried, and what it means if it fails."""
    from platform_check.judgements import KINDS

    return "checks:\n" + "\n".join(f"  {name}: {kind.tried}; else {kind.means}" for name, kind in KINDS.items())


def loaded(path: Path) -> tuple[Script, ModuleType]:
    """The script with its settings, imported but not run."""
    from platform_check.script import Script, imported

    try:
        module = imported(path.resolve())
        services = module.MICROSERVICES
        urls = [(service["base_url"] + "", dict(service["endpoints"])) for service in services.values()]
        assert urls
        return Script(path, path.read_text(encoding="utf-8"), services, module.MAX_THREADS), module
    except SystemExit as ended:
        stop(f"{path.name} ends with exit code {ended.code} when it is imported: keep its last two lines as they were")
    except Exception as error:
        stop(f"{path.name} cannot be read as a copy of the template ({type(error).__name__}: {error})")


def check_addresses(script: Script) -> None:
    """Stop if a password would go nowhere, or unencrypted."""
    if "IAM" not in script.services:
        stop("MICROSERVICES has no IAM: put its entry back, every login goes through it")
    problems = [
        (app, script.setting(app, "base_url"), problem)
        for app, service in script.services.items()
        if (problem := url_problem(service["base_url"]))
    ]
    if problems:
        stop("; ".join(f"set EB_{app}_URL ({script.place(line)}): {problem}" for app, line, problem in problems))


def url_problem(url: str) -> str:
    """What is wrong with a base_url, "" if nothing is; a login in it is not repeated."""
    from platform_check.httpx_in_use import httpx

    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        return "it is no https:// address"
    shown = repr(str(parts.copy_with(userinfo=b"")))
    if parts.userinfo:
        return f"{shown} has a login in it: EB_USER_NAME and EB_PASSWORD are the place for that"
    if parts.host.endswith(".example"):
        return f"{shown} is a placeholder"
    if parts.scheme == "http" and not re.fullmatch(r"localhost|127(\.\d+){3}|::1", parts.host):
        return f"{shown} would send password and tokens unencrypted: use https://"
    return "" if parts.host and parts.scheme in ("http", "https") else f"{shown} is no https:// address"


def credentials(module: ModuleType) -> tuple[str, str]:
    """User and password: from the environment, else typed in a terminal, else the script's constants."""
    user = ask("EB_USER_NAME", f"User name [{module.DEFAULT_USER_NAME}]: ", module.DEFAULT_USER_NAME, input)
    password = ask("EB_PASSWORD", "Password: ", module.DEFAULT_PASSWORD, getpass.getpass)
    if not password:
        stop("EB_PASSWORD is empty: set it, or start the check in a terminal and type it")
    return user, password


def ask(variable: str, question: str, default: str, read: Callable[[str], str]) -> str:
    """A setting: from the environment, else typed in a terminal, else the default."""
    value = os.environ.get(variable, "")
    if not value and all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        with contextlib.suppress(EOFError), contextlib.redirect_stdout(sys.stderr):
            value = read(question)
    return value or default


def client() -> httpx.Client:
    """A client that trusts what the operating system trusts; it goes to this machine without a proxy."""
    from platform_check.httpx_in_use import httpx

    try:
        context = httpx.create_ssl_context()
    except OSError as error:
        stop(f"SSL_CERT_FILE: {error}; name a file of CA certificates")
    context.load_default_certs()
    return httpx.Client(verify=context, mounts={"http://": None})


def reported(
    script: Script, user: str, password: str, connection: httpx.Client, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Run the check, print its table as it grows, write it to a file; the exit code."""
    from platform_check import table
    from platform_check.judgements import DIFFERS, Finding
    from platform_check.probing import Check, Prober

    lines, findings = list[str](), list[Finding]()

    def say(*more: str) -> None:
        lines.extend(more)
        print(*more, sep="\n", flush=True)

    say(
        f"Check for {script.path.name}: {', '.join(script.services)}; calls that change nothing, one at a time",
        table.HEAD,
    )
    prober = Prober(connection, sleep)
    for finding in Check(script, user, password, prober).findings():
        findings.append(finding)
        say(table.row(finding))
    say(*table.changes(findings, script), "", table.closing(findings, prober.calls))
    write(Path(f"{script.path.stem}{FOR_COLLEAGUES}"), "\n".join(lines) + "\n")
    return int(prober.cut_short or any(finding.verdict == DIFFERS for finding in findings))


def write(path: Path, text: str) -> None:
    """Write the table for a colleague; its owner alone can read it until it is sent."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        os.chmod(path, 0o600)  # an older one may be open to others
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"{path} could not be written ({error.strerror}): start the check in another folder", file=sys.stderr)
    else:
        print(f"Written to {path}, without values, credentials, tokens: to be sent to a colleague")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
