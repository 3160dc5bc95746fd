"""The simulated platform as others use it: its options, and a handle for its process. Standard library only."""

from __future__ import annotations

import argparse
import json
import math
import os
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from dialects import DIALECTS
from faults import KINDS, combined

SERVICES = ("IAM", "RC", "GDD")
UNKNOWN = "no such endpoint"  # the name under which all other calls are counted
SIMULATOR = Path(__file__).resolve().with_name("simulator.py")
WATCHDOG = 600  # seconds; whatever takes longer is considered to hang
STOP_LIMIT = 5  # seconds for the process to end before it is killed
THREADS = "20"  # for scripts whose user has not set EB_THREADS


def add_options(parser: argparse.ArgumentParser, latency: float = 0.0) -> None:
    """Add the options of the simulated platform to a parser; `latency` is the default of --latency."""
    add = parser.add_argument_group("the simulated platform").add_argument
    add("--centres", type=_number(int, 1), default=100, metavar="N", help="number of centres (%(default)s)")
    add("--patients", type=_number(int, 0), default=2500, metavar="N", help="number of patients (%(default)s)")
    add("--seed", type=int, default=2022, metavar="N", help="seed for the data and the faults (%(default)s)")
    seconds = {"type": _number(float, 0), "metavar": "SECONDS"}
    add("--latency", **seconds, default=latency, help="how long every call takes (%(default)s)")
    add("--token-lifetime", **seconds, default=300.0, help="time until a token of RC or GDD expires (%(default)s)")
    add("--iam-token-lifetime", **seconds, default=300.0, help="time until a token of IAM expires (%(default)s)")
    rate = _number(float, 0, 1)
    add("--faults", type=rate, default=0.0, metavar="RATE", help="share of calls with a fault of any kind, 0 to 1")
    kinds = f"share of calls with one kind of fault: {', '.join(KINDS)}"
    add("--fault", **_several("KIND=RATE", fault), help=kinds)
    add("--slow", **seconds, default=1.0, help="extra time for calls with the fault slow (%(default)s)")
    add("--failing", type=_number(int, 0), default=0, metavar="N", help="patients whose record is always an error 500")
    add("--answer", **_several("NAME=FILE.json", answer_from), help="file that an endpoint you added returns")
    add("--endpoint", **_several("NAME=SERVICE/PATH", place_of), help=argparse.SUPPRESS)  # where --answer is served
    add("--service", **_several("NAME", str), help="extra service: it opens sessions, and all else is an error 404")
    spoken = "; ".join(f"{name}: {dialect.what}" for name, dialect in DIALECTS.items())
    add("--dialect", **_several("NAME", str), choices=DIALECTS, help=f"difference from the assumed platform. {spoken}")
    add("--user", default="investigatrice@sandbox.example", metavar="NAME", help="user who can log in (%(default)s)")
    add("--password", default="Xq7-simulated-Zw3", help="password of this user (%(default)s)")
    add("--certfile", metavar="FILE", help="serve HTTPS with the certificate and key in this file")


def fault(text: str) -> tuple[str, float]:
    """Read KIND=RATE from the command line."""
    kind, _, rate = text.partition("=")
    return kind, float(rate)


def answer_from(text: str) -> tuple[str, bytes]:
    """Read NAME=FILE.json from the command line: the name of an endpoint, and the JSON that it returns."""
    name, _, path = text.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError(f"write NAME=FILE.json, not {text!r}")
    try:
        body = Path(path).read_bytes()
        json.loads(body)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{path} is not JSON ({error})") from None
    return name, body


def place_of(text: str) -> tuple[str, str, str]:
    """Read NAME=SERVICE/PATH from the command line."""
    name, _, place = text.partition("=")
    service, _, path = place.partition("/")
    return name, service, f"/{path}"


def _several(metavar: str, kind: Callable[[str], object]) -> dict[str, Any]:
    """Return the arguments for an option that may be repeated."""
    return {"action": "append", "default": [], "metavar": metavar, "type": kind}


def parse_options(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line and check that the options fit together; the fault rates are in `rates`."""
    options = parser.parse_args(arguments)
    try:
        options.rates = combined(options.faults, options.fault)
    except ValueError as wrong:
        parser.error(str(wrong))
    if options.failing > options.patients:
        parser.error(f"--failing {options.failing} is more than --patients {options.patients}")
    return options


def _number(kind: Callable[[str], float], least: int, most: float = math.inf) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not least <= value <= most or value == math.inf:
            limit = "infinity" if most == math.inf else most
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {limit}")
        return value

    return number


class Simulator:
    """The simulated platform in its own process, until the `with` ends."""

    def __init__(self, python: Path | str, *arguments: str) -> None:
        parser = argparse.ArgumentParser(SIMULATOR.name)
        add_options(parser)
        self.options = parse_options(parser, arguments)
        self.url = ""
        self._command = [str(python), str(SIMULATOR), *arguments]
        self._opener = _direct_opener()

    def __enter__(self) -> Simulator:
        self._errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            self._command,
            stdin=pipe,
            stdout=pipe,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # so that a terminal's Ctrl-C reaches only the script
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
        )
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self._process.communicate()
            raise RuntimeError(f"the simulated platform did not start: {self._complaints() or 'no response'}")
        self.url = json.loads(line)["url"]
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, and show its error messages."""
        try:
            self._process.communicate(timeout=STOP_LIMIT)  # closes its standard input, which ends it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        sys.stderr.write(self._complaints())

    def address(self, service: str) -> str:
        return f"{self.url}/{urllib.parse.quote(service.lower(), safe='')}"

    def environment(self, threads: str = THREADS) -> dict[str, str]:
        """Return the variables that make a script use this platform, without a proxy, and block other connections."""
        return {
            **{f"EB_{service}_URL": self.address(service) for service in (*SERVICES, *self.options.service)},
            "EB_USER_NAME": self.options.user,
            "EB_PASSWORD": self.options.password,
            "EB_THREADS": os.environ.get("EB_THREADS", threads),
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
            **dict.fromkeys(("HTTPS_PROXY", "https_proxy"), self.url),  # which forwards nothing
        }

    def seen(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self._call("seen"))

    def tokens(self) -> list[str]:
        return cast("list[str]", self._call("tokens"))

    def control(self, **settings: object) -> None:
        self._call("control", json.dumps(settings).encode())

    def _call(self, name: str, body: bytes | None = None) -> object:
        try:
            with self._opener.open(f"{self.url}/_sandbox/{name}", body, timeout=WATCHDOG) as response:
                return json.load(response)
        except urllib.error.HTTPError as refused:
            with refused:
                raise ValueError(refused.read().decode()) from None

    def _complaints(self) -> str:
        with self._errors:
            self._errors.seek(0)
            return self._errors.read()


def _direct_opener() -> urllib.request.OpenerDirector:
    """Return an opener that ignores proxy settings and accepts a test's own certificate."""
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting))
