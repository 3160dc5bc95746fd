# /// script
# requires-python = ">=3.10"
# dependencies = ["httpx>=0.28,<0.29", "tqdm>=4.66,<5"]
# ///
"""Endobest script template: pull data out of the Endobest clinical-research platform.

Its services: IAM (login), RC (centres, inclusions, records, questionnaires), GDD (laboratory requests by sample tube).

Try it      python3 tests/sandbox.py [my_script.py]   on a simulated platform: nothing to configure
Use it      cp eb_script_template.py my_script.py
            python3 -m venv .venv && .venv/bin/pip install "httpx>=0.28,<0.29" "tqdm>=4.66,<5"
            export EB_IAM_URL=https://... EB_RC_URL=https://... EB_GDD_URL=https://...
            .venv/bin/python my_script.py             asks for user, password, threads; logs to my_script.log
Unattended  set EB_USER_NAME, EB_PASSWORD and EB_THREADS as well: nothing is asked; without a terminal no bar is drawn

You edit    EDIT 1  constants, and services: comment out those that you do not need, add endpoints or services
            EDIT 2  API functions: one short function for each endpoint
            EDIT 3  main(): your logic, in the TODO block

The engine between EDIT 1 and EDIT 2
            401                          one renewal of the access token for all threads, else a new login
            429, 5xx, timeout, bad body  up to 10 attempts, with exponential backoff and jitter; Retry-After is obeyed
            threads                      at most 20 + 40 calls at once; the pools cannot deadlock
            Ctrl-C, SIGTERM, SIGHUP      queued work is dropped, calls in flight get 2 s; exit code 130, 143, 129
            log, terminal                no password, no token, no patient; the log ends with a table of the calls
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copyreg
import email.utils
import functools
import getpass
import glob
import io
import itertools
import json
import logging
import logging.handlers
import math
import operator
import os
import queue
import random
import re
import signal
import socket
import ssl
import sys
import threading
import time
import traceback
import urllib.parse
import weakref
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed  # noqa: F401  as_completed is for your TODO block
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import httpx
from tqdm import tqdm as PlainBar

# ======================================================================================= EDIT 1: constants and services

DEFAULT_USER_NAME = "ziwig-invest2@yopmail.com"  # offered at the prompt; EB_USER_NAME comes first
DEFAULT_PASSWORD = ""  # leave it empty: set EB_PASSWORD, or type it when asked
MAX_THREADS = 20  # threads of the main pool, at most and by default; EB_THREADS sets fewer, against many 429 or 503
SUBTASKS_POOL_SIZE = 40  # threads of the subtasks pool, beside those of the main pool
ERROR_MAX_RETRY = 10  # attempts per API call, the first included; 10 bridge about 2 minutes, 3 suit a trial
WAIT_BEFORE_RETRY = 0.5  # seconds before the first retry; doubles after each, with jitter
MAX_WAIT_BEFORE_RETRY = 60  # seconds; caps the doubling, and the longest Retry-After that is obeyed
API_TIMEOUT = 60  # seconds to connect, and without a byte of the answer; raise it for a slow endpoint
API_DEADLINE = 300  # seconds that one attempt may take until the last byte of its body; raise it for long downloads
LOG_LEVEL = logging.INFO  # of the log file; logging.DEBUG writes a line per attempt
custom_bar_format = "{desc:<20.20} {percentage:3.0f}% |{bar}{r_bar}"  # tqdm's bar_format of every bar

TEMPLATE_VERSION = "2.2.0"  # of the template that this script was copied from; leave it as it is

# Comment out a service that you do not need; IAM must stay. What is called is base_url + path.
# A service needs config_token, which opens its session; without refresh_token each renewal is a new login.
MICROSERVICES: dict[str, dict[str, Any]] = {
    "IAM": {
        "app_id": "",
        "base_url": os.environ.get("EB_IAM_URL") or "https://iam.endobest.example",
        "endpoints": {
            "login": "/api/auth/ziwig-pro/login",
        },
    },
    "RC": {
        "app_id": "endobest-rc",  # client id; assumed: ask the platform's operator
        "base_url": os.environ.get("EB_RC_URL") or "https://rc.endobest.example",
        "endpoints": {
            "config_token": "/api/auth/config-token",
            "refresh_token": "/api/auth/refreshToken",
            "organizations": "/api/inclusions/getAllOrganizations",
            "statistics": "/api/inclusions/inclusion-statistics",
            "search_inclusions": "/api/inclusions/search",
            "record_by_patient": "/api/records/byPatient",
            "surveys": "/api/surveys/filter/with-answers",
        },
    },
    "GDD": {
        "app_id": "endobest-gdd",  # client id; assumed: ask the platform's operator
        "base_url": os.environ.get("EB_GDD_URL") or "https://gdd.endobest.example",
        "endpoints": {
            "config_token": "/api/auth/config-token",
            "refresh_token": "/api/auth/refreshToken",
            "request_by_tube": "/api/requests/by-tube",
        },
    },
}

# ========================================================================================== Engine: errors and stopping

GRACE_SECONDS = 2.0  # how long calls in flight may go on once the run is told to end
CHECK = "if the platform differs from what this template assumes, python3 tests/check_platform.py says where"

logger = logging.getLogger(__name__)
P = ParamSpec("P")
Item = TypeVar("Item")
T = TypeVar("T")


class TemplateError(Exception):
    """What the engine refuses. Its text says why and holds nothing of a patient: it may be shown (see `describe`)."""


class ConfigurationError(TemplateError):
    """A setting is missing or wrong; the text names it, its value and the fix. Exit code 2."""


class LoginError(TemplateError):
    """The platform does not let us in; the text names service and call. Exit code 1."""


class WrongType(TemplateError, TypeError):
    """An answer or an argument is of another type than expected."""


class WrongValue(TemplateError, ValueError):
    """An answer or an argument is not as it has to be."""


RunStopped = SystemExit  # the run is ending: it passes `except Exception`, and no thread prints a traceback for it


class Stop:
    """Whether, why and until when the run is ending. It has no lock: Ctrl-C could leave one locked (cpython#74174)."""

    def __init__(self) -> None:
        self.reasons: list[tuple[int, str, float]] = []  # exit code, words, end of the grace; the first one counts
        self.in_run = False
        self.may_interrupt = False  # whether a signal raises KeyboardInterrupt in the main thread: once in a run

    def request(self, code: int, words: str) -> bool:
        """End the run in every thread, with this exit code; whether nothing was requested before, which prevails."""
        reason = (code, words, time.monotonic() + GRACE_SECONDS)
        self.reasons.append(reason)
        return self.reasons[0] is reason

    def outcome(self) -> tuple[int, str]:
        """Exit code and closing words."""
        return self.reasons[0][:2] if self.reasons else (0, "done")

    def grace_left(self) -> float:
        """Seconds that calls in flight may still take."""
        return self.reasons[0][2] - time.monotonic() if self.reasons else math.inf

    def check(self) -> None:
        """Raise RunStopped if the run is ending."""
        if self.reasons:
            raise RunStopped(self.reasons[0][1])

    def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than the run goes on."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.1))


_stop = Stop()


def reason_of(error: BaseException) -> BaseException | None:
    """What the system said, behind an httpx.ConnectError: a context, as httpcore raises `from None`."""
    return error.__cause__.__context__ if error.__cause__ else None


def is_untrusted(error: BaseException) -> bool:
    """Whether a certificate is not trusted; by httpx2, Windows and macOS say so in words of their own."""
    return isinstance(reason_of(error), ssl.SSLCertVerificationError)


def text_of(error: BaseException) -> str:
    """What an exception says, if that holds nothing of a patient: int(birth_date) quotes its value."""
    if isinstance(error, httpx.ConnectError):
        with contextlib.suppress(RuntimeError):  # raised where no request is known
            return f"{error}; host {error.request.url.host}"
    if isinstance(error, (httpx.RequestError, json.JSONDecodeError)):
        return re.split(r":? (?:bytearray\()?b?['\"]", str(error))[0]  # h11 quotes what it cannot read of an answer
    return str(error.strerror or "") if isinstance(error, OSError) else ""  # without the file: it may be named by an id


def describe(error: BaseException) -> str:
    """An exception in a few words, without anything of a patient; the whole text stands in a traceback in the log."""
    if isinstance(error, httpx.HTTPStatusError) and " for url " in str(error):  # httpx's own text repeats the URL
        return f"HTTP {error.response.status_code}"
    if isinstance(error, (TemplateError, httpx.HTTPStatusError)):
        return str(error)
    if isinstance(error, json.JSONDecodeError) and not error.doc:
        return "the answer has no body, JSON was expected"
    hint = "; set SSL_CERT_FILE to the CA certificates of your organisation, a PEM file" if is_untrusted(error) else ""
    text = text_of(error)
    return f"{type(error).__name__}{': ' * bool(text)}{text}{hint}"


def place_of(error: BaseException) -> str:
    """The last line on the way to an error that is the script's own, as " (my_script.py line 987)"."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        in_script = frame.f_globals.get("__name__") == "__main__"
        if line > END_OF_ENGINE if frame.f_globals is globals() else in_script:
            place = f" ({Path(frame.f_code.co_filename).name} line {line})"
    return place


# ========================================================================================================== Engine: log

LOG_BYTES = 10_000_000  # size at which the log is rotated; five older ones are kept
LONGEST_LINE = 10_000  # characters of a message, or of a line of a traceback, that are written


class Figures:
    """What the API functions did: the table at the end of the log. Its size does not grow with the number of calls."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.lock = threading.Lock()
        self.events: defaultdict[str, Counter[str]] = defaultdict(Counter)  # function, "" for tasks -> "calls", ...
        self.durations: defaultdict[str, Counter[int]] = defaultdict(Counter)  # function -> milliseconds -> attempts

    def count(self, function: str, event: str, milliseconds: int | None = None) -> None:
        """Count an event; "calls" and "retries" are attempts, and have a duration."""
        with self.lock:
            if milliseconds is not None:
                self.durations[function][milliseconds] += 1
            self.events[function][event] += 1

    def total(self, event: str) -> int:
        """How often an event happened, in all functions."""
        with self.lock:
            return sum(events[event] for events in self.events.values())

    def table(self) -> list[str]:
        """A line per API function; the durations are those of single attempts."""
        columns = ("calls", "retries", "renewals", "failures")
        titles = "".join(f"{title:>10}" for title in (*columns, "p50 ms", "p95 ms", "max ms"))
        lines = [f"{'API function':<28}{titles}"]
        with self.lock:
            for function in sorted(self.durations):
                figures = [self.events[function][column] for column in columns]
                ordered = sorted(self.durations[function].elements()) or [0]
                figures += [ordered[math.ceil(share * len(ordered)) - 1] for share in (0.50, 0.95, 1)]
                lines.append(f"{function:<28}" + "".join(f"{figure:>10,}" for figure in figures))
        return lines


_figures = Figures()
_secrets: deque[str] = deque(maxlen=400)  # the newest tokens, and the password, in each form that they are written in


def keep_secret(secret: str) -> None:
    """Mask it from now on: as it is, in a repr, in JSON, in a URL."""
    forms = {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    _secrets.extend({*forms, urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret)})


def redacted_url(match: re.Match[str]) -> str:
    """A URL without login and query string."""
    address, query = match[0].partition("?")[:2]
    return re.sub(r"://[^/#]*@", "://***@", address) + ("?***" if query else "")


def redacted(text: str) -> str:
    """`text` on one line, cut, without control characters, secrets, bearer and cookie headers, queries of URLs.

    A line break from a server would forge a log line (CWE-117). Each pattern takes time in proportion to the text.
    """
    rest, text = text[LONGEST_LINE:], text[: 2 * LONGEST_LINE]  # cut twice: a secret may stand where it is cut
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: repr(match[0])[1:-1], text)
    for secret in sorted(set(_secrets.copy()), key=len, reverse=True):  # longest first: one may contain another
        text = text.replace(secret, "***")
    text = re.sub(r"(?i)(\bbearer\s+|\bauthorization\W+(?:basic\s+)?|\bcookie\W+(?:b['\"])?)[^\s'\",]+", r"\1***", text)
    text = re.sub(r"(https?:/)?/[^\s'\"?]+(\?[^\s\"]*)?", redacted_url, text)
    return f"{text[:LONGEST_LINE]}... ({len(rest):,} characters more)" if rest else text


class LogLine(logging.Formatter):
    """A line of the log file; a traceback follows, indented. What `extra` holds is for the file alone."""

    def format(self, record: logging.LogRecord) -> str:
        columns = f"{self.formatTime(record)} {record.levelname:<8} {redacted(record.threadName or ''):<12}"
        lines = [record.getMessage() + getattr(record, "failed_id", "")]
        if failure := getattr(record, "failure", None):  # exc_info would be shown by a handler of the script's own, too
            lines += "".join(traceback.format_exception(failure)).rstrip("\n").split("\n")
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        if record.stack_info:
            lines += record.stack_info.split("\n")
        return f"{columns} " + "\n    ".join(map(redacted, lines))


def is_terminal(stream: Any) -> bool:
    """Whether a person is at the other end. On Windows NUL says so too (bpo-28654), but is a plain file underneath."""
    if stream is None or stream.closed or not stream.isatty():
        return False
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # under `python -u` there is no buffer around it
    return os.name != "nt" or not isinstance(raw, io.FileIO)


def say(text: str) -> None:
    """A line on the terminal, above the bars; never on stdout, which is for the script's results."""
    drawn = is_terminal(sys.stderr)
    line = ("\r" if drawn else "") + redacted(text)  # over the echo of Ctrl-C
    with contextlib.suppress(Exception):  # the terminal may be gone
        # Without a terminal tqdm's lock may be held by a bar that waits for the log's.
        PlainBar.write(line, file=sys.stderr or io.StringIO(), nolock=not drawn)


def make_private(path: str) -> None:
    """Make sure that a file is there, and that its owner alone can read it."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    os.chmod(path, 0o600)  # an older one may be open to others


class LogFile(logging.handlers.RotatingFileHandler):
    """The log. Its owner alone can read it; what goes wrong with it is said on the terminal, once, and ends no run."""

    def __init__(self, path: str) -> None:
        make_private(path)
        super().__init__(path, maxBytes=LOG_BYTES, backupCount=5, encoding="utf-8", errors="backslashreplace")
        self.said: set[str] = set()

    def doRollover(self) -> None:
        """Set the file aside under a name of its own: where that fails, nothing has moved, and it grows on."""
        stream, self.stream = self.stream, None  # the next line opens the file again
        if stream:
            with contextlib.suppress(OSError), stream:
                if not os.path.samestat(os.fstat(stream.fileno()), os.stat(self.baseFilename)):
                    return  # another process has set it aside
        try:
            os.rename(self.baseFilename, f"{self.baseFilename}.{time.time_ns()}")
            make_private(self.baseFilename)
            self.maxBytes = LOG_BYTES
            for old in sorted(glob.glob(f"{glob.escape(self.baseFilename)}.*"), key=os.path.getmtime)[:-5]:
                os.remove(old)
        except OSError as error:  # on Windows while another program has it open
            self.maxBytes += LOG_BYTES // 10  # so much later it tries again
            self.say_once(f"{self.baseFilename} cannot be rotated and grows on: {error.strerror}")

    def handleError(self, record: logging.LogRecord) -> None:
        """Logging's own report would show the arguments of the message, tokens too."""
        error = sys.exc_info()[1] or Exception()
        place = self.baseFilename if isinstance(error, OSError) else f"{record.pathname}:{record.lineno}"
        self.say_once(f"{place}: {describe(error)}")

    def say_once(self, problem: str) -> None:
        if problem not in self.said:
            self.said.add(problem)
            say(problem)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk keeps what could not be written for this moment
            super().close()


class Terminal(logging.Handler):
    """Log messages on the terminal, above the bars; tqdm's own redirection ignores levels (tqdm#1272)."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # the arguments may not fit the message: see LogFile
            say(record.getMessage())


def script_name() -> str:
    """The file that Python was started with, without `.py`; in a notebook, this file."""
    path = Path(getattr(sys.modules["__main__"], "__file__", None) or globals().get("__file__", "eb_script.py"))
    return path.parent.name if path.stem == "__main__" else path.stem.strip("<>")  # as in <stdin>


def open_log(stack: contextlib.ExitStack, terminal: Terminal) -> None:
    """Send what is logged, the script's own lines too, to a file and to the terminal, until `stack` is closed."""
    root, path = logging.getLogger(), f"{script_name()}.log"
    stack.callback(root.removeHandler, terminal)
    try:
        log = LogFile(path)
        stack.callback(log.close)
        root.addHandler(log)
        stack.callback(root.removeHandler, log)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written ({error}): start the script in another folder") from error
    finally:
        root.addHandler(terminal)  # after the file, which never waits for anybody
    log.setFormatter(LogLine())
    log.setLevel(LOG_LEVEL if isinstance(LOG_LEVEL, int) else logging.INFO)  # login() raises for it
    root.setLevel(min(log.level, logging.INFO))
    for library in ("httpx", "httpcore", "httpx2", "httpcore2"):  # their lines hold full URLs and cookies
        logging.getLogger(library).setLevel(logging.WARNING)
    if reconfigure := getattr(sys.stdout, "reconfigure", None):  # colorama's stand-in, which tqdm brings, has it too
        reconfigure(errors="backslashreplace")  # a letter that a pipe on Windows cannot hold ends no run
    python = f"Python {sys.version.split()[0]} on {sys.platform}, process {os.getpid()}"
    logger.info("%s started, template %s, %s", script_name(), TEMPLATE_VERSION, python)


# ====================================================================================================== Engine: retries

RETRIED_STATUSES = (408, 425, 429)  # and every 5xx but 501
RETRIED_ERRORS = (httpx.TransportError, httpx.DecodingError, json.JSONDecodeError, UnicodeDecodeError)
NOT_SENT_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def pickled(error: httpx.HTTPStatusError) -> tuple[Any, ...]:
    """How it goes from a child process to its parent: without this, a multiprocessing.Pool would wait for ever."""
    make = functools.partial(httpx.HTTPStatusError, request=error.request, response=error.response)
    return make, error.args, vars(error)


copyreg.pickle(httpx.HTTPStatusError, pickled)


def is_retryable(error: Exception, idempotent: bool = True) -> bool:
    """Whether another attempt can help, and cannot create a second thing."""
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0
    if isinstance(error, httpx.UnsupportedProtocol) or is_untrusted(error):
        return False
    if isinstance(error, json.JSONDecodeError) and not error.doc:  # a 204, say: it means what it says
        return False
    if not idempotent:
        return status == 429 or isinstance(error, NOT_SENT_ERRORS)
    return status in RETRIED_STATUSES or (status >= 500 and status != 501) or isinstance(error, RETRIED_ERRORS)


def is_unknown_host(error: BaseException) -> bool:
    """Whether no such host is known."""
    reason = reason_of(error)
    return isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME


def http_date(value: str) -> datetime | None:
    """A date of an HTTP header (RFC 9110, section 5.6.7), in UTC where it does not say; None for nonsense."""
    try:
        date = email.utils.parsedate_to_datetime(value)
        return date.replace(tzinfo=date.tzinfo or timezone.utc)
    except Exception:  # TypeError, ValueError or OverflowError, by version of Python
        return None


def retry_after_seconds(value: str, now: datetime) -> float:
    """The seconds that a Retry-After header asks for (RFC 9110, section 10.2.3: a number or a date); 0 for nonsense."""
    if re.fullmatch("[0-9]+", value.strip()):
        return float(value)
    try:
        date = http_date(value)
        return max(0.0, (date - now).total_seconds()) if date else 0.0
    except OverflowError:  # an impossible time zone
        return 0.0


def retry_delay(failures: int, retry_after: float = 0.0) -> float:
    """Seconds to wait after so many failed attempts: exponential backoff on top of Retry-After, capped.

    Its jitter keeps threads that failed together from coming back together.
    """
    backoff = min(MAX_WAIT_BEFORE_RETRY, WAIT_BEFORE_RETRY * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1)
    return min(MAX_WAIT_BEFORE_RETRY, retry_after + backoff)


def plan_retry(error: Exception, failures: int, retryable: Callable[[Exception], bool]) -> float | None:
    """Seconds until the next attempt; None when there is to be none."""
    if hasattr(error, "api_function"):  # out of an API function that this one calls, and that has tried what it can
        return None
    if failures >= ERROR_MAX_RETRY or not retryable(error):
        return None
    if not isinstance(error, httpx.HTTPStatusError):
        return retry_delay(failures)
    headers = error.response.headers
    now = http_date(headers.get("Date", "")) or datetime.now(timezone.utc)  # this machine's clock may be wrong
    retry_after = retry_after_seconds(headers.get("Retry-After", ""), now)
    if retry_after > MAX_WAIT_BEFORE_RETRY:
        text = f"Retry-After is {retry_after:.0f} s, MAX_WAIT_BEFORE_RETRY {MAX_WAIT_BEFORE_RETRY} s: run again later"
        error.args = (text,)
        return None
    return retry_delay(failures, retry_after)


def with_retries(name: str, attempt: Callable[[], T], retryable: Callable[[Exception], bool] = is_retryable) -> T:
    """The result of `attempt`, made again as `plan_retry` says. When it gives up, the original exception is raised."""
    failures = 0
    while True:
        try:
            return attempt()
        except Exception as error:
            failures += 1
            delay = plan_retry(error, failures, retryable)
            if delay is None:
                logger.info("%s: %s, attempt %d, given up", name, describe(error), failures)
                _figures.count(name, "failures")
                vars(error).setdefault("api_function", name)  # for plan_retry, and for the closing line
                raise
            logger.warning("%s: %s, attempt %d, next in %.1f s", name, describe(error), failures, delay)
        _stop.sleep(delay)


def measured(name: str, call: Callable[[], T]) -> Callable[[], T]:
    """`call`, each attempt at which is counted, timed and, at DEBUG, logged under the name of its API function."""
    numbers = itertools.count(1)

    def attempt() -> T:
        _stop.check()
        number, status, started = next(numbers), "ended", time.perf_counter()
        try:
            result = call()
            status = "ok"
            return result
        except Exception as error:
            status = describe(error)
            raise
        finally:
            seconds = time.perf_counter() - started
            _figures.count(name, "calls" if number == 1 else "retries", round(seconds * 1000))
            logger.debug("%s attempt %d: %s in %.3f s", name, number, status, seconds)

    return attempt


# ================================================================================================= Engine: HTTP clients


class ThreadState(threading.local):
    """What each thread has of its own."""

    client: httpx.Client | None = None
    level = 0  # see ThreadPool: 1 in a worker of the main pool, 2 in one of the subtasks pool
    position = 0  # of its bar: 1, 2, ... in the workers of both pools
    app: str | None = None  # the service that the decorator of the API function it is in names
    tls_lock = threading.Lock()  # one for all threads


_thread = ThreadState()


def close_client(client: httpx.Client, process: int) -> None:
    """When its thread has ended; not in a child made by fork, where another thread's lock may be locked for ever."""
    if os.getpid() == process:
        client.close()


def skip_cookies(cookies: httpx.Cookies) -> None:
    """Look for cookies only in an answer that sets one: to find none takes httpx a tenth of the CPU of a call."""
    extract = cookies.extract_cookies
    cookies.extract_cookies = lambda answer: extract(answer) if "set-cookie" in answer.headers else None  # type: ignore


class DeadlineStream(httpx.SyncByteStream):
    """The body of an answer, cut off at a deadline: httpx only limits the wait for its next byte (httpx#1450)."""

    def __init__(self, body: Any, deadline: float) -> None:
        self.body, self.deadline = body, deadline

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.body:
            if time.monotonic() > self.deadline:
                raise httpx.ReadTimeout(f"not complete after API_DEADLINE = {API_DEADLINE} s")
            yield chunk

    def close(self) -> None:
        self.body.close()


def start_deadline(request: httpx.Request) -> None:
    request.extensions["deadline"] = time.monotonic() + API_DEADLINE


def keep_deadline(response: httpx.Response) -> None:
    response.stream = DeadlineStream(response.stream, response.request.extensions["deadline"])


@functools.cache  # call it under tls_lock: the cache alone lets threads that start together make one each
def shared_tls_context() -> ssl.SSLContext:
    """The TLS context of all clients: loading the CA certificates for each would take 30 ms of CPU.

    It holds those of SSL_CERT_FILE, else those of the operating system (on Windows its store) and of certifi.
    """
    try:
        context = httpx.create_ssl_context()
    except OSError as error:
        path = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
        raise ConfigurationError(f"SSL_CERT_FILE = {path!r}: {error}; name a PEM file of CA certificates") from error
    if not os.environ.get("SSL_CERT_FILE"):
        context.load_default_certs()
    context.set_alpn_protocols(["http/1.1"])
    # httpcore sets it again on each connect, which corrupts other threads' handshakes (cpython#141012).
    context.set_alpn_protocols = lambda protocols: None  # type: ignore[method-assign, assignment]
    return context


def get_httpx_client() -> httpx.Client:
    """This thread's client, kept alive between calls; one shared by all threads loses requests (httpcore#1110)."""
    client = _thread.client
    if client is None or client.is_closed:
        with _thread.tls_lock:
            context = shared_tls_context()
        # Node.js and uvicorn close idle connections after 5 s: close ours first, rather than write into a closing one.
        limits = httpx.Limits(keepalive_expiry=4)
        direct = {"http://": None}  # it goes to this machine only: never through a proxy
        try:
            client = httpx.Client(verify=context, timeout=API_TIMEOUT, limits=limits, mounts=direct)
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise ConfigurationError(f"HTTPS_PROXY, ALL_PROXY or NO_PROXY cannot be used: {error}") from error
        client.event_hooks = {"request": [start_deadline], "response": [keep_deadline]}
        _thread.client = client
        skip_cookies(client.cookies)
        weakref.finalize(threading.current_thread(), close_client, client, os.getpid()).atexit = False
    return client


# ============================================================================================= Engine: login and tokens

REFRESH, LOGIN = 1, 2  # the ways to new tokens, in the order in which they are tried

tokens: dict[str, dict[str, Any]] = {}  # service -> {"access_token", "refresh_token", ...}


def url_of(app: str, endpoint: str) -> str:
    """The address of an endpoint. Raises ConfigurationError for one that MICROSERVICES does not have."""
    endpoints = MICROSERVICES[app]["endpoints"]
    if endpoint not in endpoints:
        raise ConfigurationError(f"{app} has no endpoint {endpoint!r} in MICROSERVICES; it has {', '.join(endpoints)}")
    return f"{MICROSERVICES[app]['base_url'].rstrip('/')}/{endpoints[endpoint].lstrip('/')}"


def checked_tokens(url: str, endpoint: str, answer: Any) -> dict[str, Any]:
    """`answer`, if it holds what a session needs; a token must fit into a header (RFC 6750, section 2.1)."""
    session: dict[str, Any] = dict(answer) if isinstance(answer, dict) else {}
    token, user, refresh_token = (session.get(key) for key in ("access_token", "userId", "refresh_token"))
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise LoginError(f"no usable access_token in the answer of {url}; check the address; {CHECK}")
    if endpoint == "login" and (isinstance(user, bool) or not isinstance(user, (str, int)) or user == ""):
        raise LoginError(f"no usable userId in the answer of {url}; {CHECK}")
    if not isinstance(refresh_token, str):
        session.pop("refresh_token", None)
    return session


def refuse_other_service(app: str, request: httpx.Request) -> None:
    """Raise ConfigurationError if a call was sent with the access token of another service than its decorator names."""
    sent = request.headers.get("Authorization")
    senders = [each for each in tokens if sent == f"Bearer {tokens[each]['access_token']}"]
    if senders and app not in senders:
        raise ConfigurationError(f"a call sends the access token of {senders[0]}, its decorator names {app}: name one")


class Sessions:
    """Who is logged in, and how the tokens are renewed that the platform refuses (401).

    One renewal for each refused token, however many threads saw it refused: a refresh, else a new login everywhere.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held while sessions are opened or renewed
        self.credentials: dict[str, str] = {}
        self.renewals: Counter[str] = Counter()  # service -> how often its tokens came: the number of the current ones
        self.tried: Counter[str] = Counter()  # service -> REFRESH or LOGIN, for refused ones; 0 once it accepts them
        self.received: dict[str, float] = {}  # service -> when its tokens came (time.monotonic)

    def log_in(self, user: str, password: str) -> None:
        """Open all sessions for this user; a host that is unknown now will not be known soon. Raises LoginError."""
        with self.lock:
            self.credentials = {"username": user, "password": password}
            self.open(lambda error: is_retryable(error) and not is_unknown_host(error))

    def open(self, retryable: Callable[[Exception], bool] = is_retryable, refused: str = "") -> None:
        """Open every session from the start: on IAM by the credentials, then elsewhere by IAM's access token."""
        for app in sorted(MICROSERVICES, key=lambda app: app != "IAM"):
            endpoint, body, bearer = "login", dict[str, Any](self.credentials), ""
            if app != "IAM":
                body = {"userId": tokens["IAM"]["userId"], "clientId": MICROSERVICES[app]["app_id"]}
                endpoint, bearer = "config_token", tokens["IAM"]["access_token"]
            name, call = f"{app}_{endpoint}", functools.partial(self.post, app, endpoint, body, bearer)
            try:
                self.keep(app, with_retries(name, measured(name, call), retryable), LOGIN * (app == refused))
            except (LoginError, httpx.HTTPError, ValueError, RecursionError) as error:
                raise LoginError(f"{app} {endpoint}: {describe(error)}") from error

    def post(self, app: str, endpoint: str, body: dict[str, Any], bearer: str = "") -> dict[str, Any]:
        """One call of login, config_token or refresh_token; its checked answer. Raises LoginError when refused."""
        url, headers = url_of(app, endpoint), {"Authorization": f"Bearer {bearer}"} if bearer else None
        response = get_httpx_client().post(url, json=body, headers=headers, timeout=API_TIMEOUT)
        if response.is_client_error and response.status_code not in RETRIED_STATUSES:
            user = f"for user {self.credentials['username']} (EB_USER_NAME, EB_PASSWORD)"
            who = user if response.status_code in (401, 403) else f"at {url}; check the address"
            raise LoginError(f"refused with HTTP {response.status_code} {who}")
        response.raise_for_status()
        return checked_tokens(url, endpoint, response.json())

    def refresh(self, app: str) -> bool:
        """Whether one refresh worked. It is never sent twice: if the platform carried it out, its token is spent."""
        spent = tokens[app].pop("refresh_token", None)  # before it is sent, which may be interrupted
        if not spent or "refresh_token" not in MICROSERVICES[app]["endpoints"]:
            return False
        try:
            answer = self.post(app, "refresh_token", {"refresh_token": spent})
        except Exception as error:
            logger.warning("%s refresh_token: %s; logging in again", app, describe(error))
            return False
        self.keep(app, {"refresh_token": spent, **answer}, REFRESH)  # without a new one it stays: RFC 6749, section 6
        logger.info("%s: access token renewed", app)
        return True

    def keep(self, app: str, answer: dict[str, Any], way: int) -> None:
        """Let the tokens of an answer be the current ones."""
        tokens[app] = answer
        current = [session.get(key) for session in tokens.values() for key in ("access_token", "refresh_token")]
        for secret in filter(None, (self.credentials["password"], *current)):
            keep_secret(secret)  # all of them again, since the newest alone are kept
        self.received[app], self.tried[app] = time.monotonic(), way
        self.renewals[app] += 1  # last: from now on calls count as made with these tokens

    def call(self, app: str, name: str, attempt: Callable[[], T]) -> T:
        """The result of `attempt`, made again with new tokens after a 401; a 401 that is not about them is raised."""
        tried = 0
        while True:
            number = self.renewals[app]  # of the tokens that it is made with
            try:
                result = attempt()
            except httpx.HTTPStatusError as error:
                if error.response.status_code != 401:
                    self.accept(app, number)
                    raise
                if hasattr(error, "api_function"):  # out of an API function that this one calls
                    raise
                tried = self.renew(app, name, number, tried, error)
            else:
                self.accept(app, number)
                return result

    def accept(self, app: str, number: int) -> None:
        """Note that a service has answered to the current tokens by something else than 401."""
        if number == self.renewals[app]:
            self.tried[app] = 0

    def renew(self, app: str, name: str, number: int, tried: int, error: httpx.HTTPStatusError) -> int:
        """Replace the tokens that a call was refused with, unless another thread has; what was tried for it by now.

        A refresh comes first, then a login. If the tokens of a new login are refused, the 401 is about something else.
        """
        with self.lock:
            _stop.check()
            if self.renewals[app] != number:
                return tried
            refuse_other_service(app, error.request)
            if time.monotonic() < self.received.get(app, 0) + API_TIMEOUT:  # else they may have expired since
                tried = max(tried, self.tried[app])
            if tried == LOGIN:
                error.args = (f"HTTP 401: {app} refuses what the call asks for, with the token of a new login, too",)
                raise error
            _figures.count(name, "renewals")
            if tried != REFRESH and self.refresh(app):
                return REFRESH
            try:
                self.open(refused=app)
            except LoginError as failure:
                _stop.request(1, str(failure))
                _stop.check()
            return LOGIN


_sessions = Sessions()


def address_problem(url: Any) -> str:
    """What is wrong with a base_url; "" if nothing is."""
    if isinstance(url, str) and re.search(r"[\s?#]", url):
        return "has white space, ? or # in it: give https://, host and path alone"
    try:
        parts = httpx.URL(url)  # read as it will be when it is called
        scheme, host = parts.scheme, parts.host
    except Exception:  # InvalidURL, TypeError, what the codec of host names in other alphabets raises
        return "is no https:// address"
    if host.endswith(".example") or host == "...":
        return "is a placeholder"
    if scheme == "http" and not re.fullmatch(r"localhost|127(\.\d+){3}|::1", host):
        return "would send password and tokens unencrypted: use https://"
    return "" if host.strip(".") and scheme in ("http", "https") else "is no https:// address"


def check_configuration() -> None:
    """Raise ConfigurationError if constants or services cannot work, before anything is sent."""
    counts = {"MAX_THREADS": 1, "SUBTASKS_POOL_SIZE": 1, "ERROR_MAX_RETRY": 1, "LOG_LEVEL": 0}
    seconds = {"API_TIMEOUT": 0.001, "API_DEADLINE": 0.001, "WAIT_BEFORE_RETRY": 0, "MAX_WAIT_BEFORE_RETRY": 0}
    for name, low in {**counts, **seconds}.items():
        value, whole = globals().get(name), name in counts
        if not isinstance(value, int if whole else (int, float)) or not low <= value < math.inf:
            number = f"a {'whole ' * whole}number, {low} or more"
            fix = "logging.INFO or logging.DEBUG" if name == "LOG_LEVEL" else number
            raise ConfigurationError(f"{name} = {value!r}: give {fix}")
    if "IAM" not in MICROSERVICES:
        raise ConfigurationError("MICROSERVICES has no IAM: put its entry back, every login goes through it")
    for app, service in MICROSERVICES.items():
        if missing := {"app_id", "base_url", "endpoints"} - service.keys():
            raise ConfigurationError(f"MICROSERVICES has no {min(missing)} in {app}: write it as the other entries do")
        url_of(app, "login" if app == "IAM" else "config_token")
    urls = {app: service["base_url"] for app, service in MICROSERVICES.items()}
    wrong = [f"EB_{app}_URL ({url!r} {problem})" for app, url in urls.items() if (problem := address_problem(url))]
    trial = (
        f"; to try without the platform: python tests/sandbox.py {script_name()}.py" if len(wrong) == len(urls) else ""
    )
    if wrong:
        raise ConfigurationError(f"set {', '.join(wrong)}{trial}")


def may_ask() -> bool:
    """Whether there is somebody to ask, who also sees the question."""
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


def ask(variable: str, question: str, default: str, read: Callable[[str], str] = input) -> str:
    """A setting: from the environment, else typed in a terminal, else the default."""
    value = os.environ.get(variable, "")
    if not value and may_ask():
        with contextlib.suppress(EOFError), contextlib.redirect_stdout(sys.stderr):  # stdout may be a data file
            try:
                value = read(question)
            except BaseException:
                print()  # the cursor still stands behind the question
                raise
    return value or default


def ask_threads() -> int:
    """The size of the main pool; what is typed wrongly is asked again. Raises ConfigurationError."""
    while True:
        threads = ask("EB_THREADS", f"Threads, 1 to {MAX_THREADS} [{MAX_THREADS}]: ", str(MAX_THREADS))
        if re.fullmatch("[0-9]{1,9}", threads) and 1 <= int(threads) <= MAX_THREADS:
            return int(threads)
        problem = f"EB_THREADS = {threads!r}: give a whole number from 1 to {MAX_THREADS} (MAX_THREADS)"
        if os.environ.get("EB_THREADS") or not may_ask():
            raise ConfigurationError(problem)
        say(problem)


# ==================================================================================================== Engine: API calls


def identifier(value: str | int) -> str | int:
    """The id that a call is about. Raises ValueError for an empty one, which would ask for something else."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        kind = "empty text" if isinstance(value, str) else type(value).__name__
        raise WrongValue(f"{kind} is no id: pass a number, or a text that is not empty")
    return value


def path_segment(value: str | int) -> str:
    """An id as a part of a path, percent-encoded. "." and ".." would lead to another path (RFC 3986, section 5.2.4)."""
    if value in (".", ".."):
        raise WrongValue(f"{value!r} is no id")
    return urllib.parse.quote(str(identifier(value)), safe="")


def call_endpoint(
    app: str, method: str, endpoint: str, expected: type[T], suffix: str = "", params: Any = None, **options: Any
) -> T:
    """One request with the service's access token; its JSON body, a list or dict as `expected` says.

    `suffix` is added to the path; `params` and `options` (json=, timeout=) are httpx's. Raises httpx.HTTPError, and
    TypeError for a body of another type.
    """
    if _thread.app not in (app, None):
        raise ConfigurationError(f"{app} {endpoint}: the decorator of this call names {_thread.app}: name one service")
    headers = {"Authorization": f"Bearer {tokens[app]['access_token']}"}
    address, *query = url_of(app, endpoint).split("?", 1)
    if params:  # params= would make httpx parse the URL three times
        query.append(str(httpx.QueryParams(params)))
    url = address + suffix + "?" * bool(query) + "&".join(query)
    response = get_httpx_client().request(method, url, headers=headers, **options)
    response.raise_for_status()
    body = response.json()
    if not isinstance(body, expected):
        kinds = f"{type(body).__name__}, not a {expected.__name__}"
        raise WrongType(f"{app} {endpoint}: the answer is a {kinds}; {CHECK}")
    return body


def check_session(app: str) -> None:
    """Raise ConfigurationError if the service has no tokens, RunStopped if the run is ending."""
    _stop.check()
    if app not in MICROSERVICES:
        raise ConfigurationError(f"{app} is not enabled: put its entry back into MICROSERVICES")
    if app not in tokens:
        raise ConfigurationError(f"{app} has no access token yet: call login() first")


def api_call_with_retry(app: str, *, idempotent: bool = True) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator of a function that calls a service: renews its tokens on 401, retries what may pass.

    Pass `idempotent=False` for a call that creates something: it is then repeated only if it cannot have been carried
    out. After the last attempt the original exception is raised.
    """
    if not isinstance(app, str):
        raise TypeError('name the service that the function calls: @api_call_with_retry("RC")')
    retryable = functools.partial(is_retryable, idempotent=idempotent)

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        name = function.__name__

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            check_session(app)
            given = (*args, *kwargs.values())
            if any(isinstance(value, Iterator) and not isinstance(value, io.IOBase) for value in given):
                raise WrongType(f"{name}: an iterator would be empty at the second attempt: pass a list")
            attempt = measured(name, functools.partial(function, *args, **kwargs))
            outer, _thread.app = _thread.app, app
            try:
                return with_retries(name, functools.partial(_sessions.call, app, name, attempt), retryable)
            finally:
                _thread.app = outer

        return wrapper

    return decorate


def rows_on(page: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows on a page {"data": [...], ...}. Raises WrongType if it is none."""
    if not isinstance(page.get("data"), list):
        raise WrongType(f"a page is no {{'data': [...], 'total': n}}; {CHECK}")
    return list(page["data"])


def every_page(fetch: Callable[[int, int], dict[str, Any]], key: str, limit: int = 1000) -> list[dict[str, Any]]:
    """All rows of a paged endpoint, each once: `fetch(limit, page)` gives {"data": [...], "total": n}, pages from 1.

    `key` tells one row from another. It asks for one page more than `total` needs, which may count a single page, and
    raises ValueError rather than return a short or a doubled list.
    """
    rows: dict[Any, dict[str, Any]] = {}
    totals: list[Any] = []
    while True:
        number = len(totals) + 1
        page = fetch(limit, number)
        data, total = rows_on(page), page.get("total")
        totals.append(total)
        if not isinstance(total, int):
            raise WrongType(f"page {number} has no total; {CHECK}")
        if total != totals[0]:  # where a row has gone, each one after it moves, one of them onto a page already read
            raise WrongValue(f"page {number} does not fit: total was {totals[0]}, is {total}: run again; {CHECK}")
        found = {row.get(key): row for row in data}
        if len(rows) == total and found.keys() <= rows.keys():
            return list(rows.values())
        new = found.keys() - rows.keys() - {None}
        if not new or len(new) < len(data) or len(rows) + len(new) > total:
            sizes = f"{len(rows)} rows before it, {len(new)} new ones with a {key} in it, total {total!r}"
            raise WrongValue(f"page {number} does not fit: {sizes}; {CHECK}")
        rows |= found
        if number == 1:  # pages may be capped, and counted by the limit that was asked for or by the one that holds
            limit = len(found)


# =============================================================================================== Engine: pools and bars

LOG_EVERY = 30  # seconds between two log lines on a bar, where there is no terminal to draw it on


class tqdm(PlainBar):  # type: ignore[type-arg]  # the name that scripts use
    """tqdm's bar. Without a terminal it draws nothing; its state then goes to the log now and then."""

    shows_retries = False  # those of all API functions, in the place of the postfix

    def __init__(self, *args: Any, **options: Any) -> None:
        self.is_drawn = is_terminal(sys.stderr) or hasattr(sys, "ps1")
        self.next_line = time.monotonic() + LOG_EVERY
        if not self.is_drawn:
            options["file"] = io.StringIO()
        options.setdefault("leave", None)  # only the topmost bar stays: a lower one would tear the screen
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.shows_retries and (retries := _figures.total("retries")):
            self.postfix = f"{retries:,} retries"
        if self.is_drawn:
            super().display(msg, pos)
            self.fp.write("\r")  # what comes next, a line or the echo of Ctrl-C, starts at the left
        elif msg is None and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + LOG_EVERY
            logger.info("%s", self)


PlainBar.set_lock(threading.RLock())  # tqdm's own works across processes: from Python 3.14 on, that starts one


def get_thread_position() -> int:
    """The row for this thread's bar (tqdm's `position=`): 1, 2, ... in the workers of both pools, 0 elsewhere."""
    return _thread.position


def become_worker(level: int, positions: Iterator[int]) -> None:
    _thread.level, _thread.position = level, next(positions)


def run_task(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What a worker does: once the run is ending, nothing. A task cannot end the run by sys.exit().

    A failure is noted: a script that does not ask for its result would hear nothing of it.
    """
    _stop.check()
    try:
        return fn(*args, **kwargs)
    except SystemExit as leaving:
        if _stop.reasons:
            raise
        raise TemplateError("a task has called sys.exit(); only main() can") from leaving
    except BaseException as error:  # asyncio.CancelledError is no Exception
        if not hasattr(error, "api_function"):  # those are noted as calls
            _figures.count("", "failed tasks")
            logger.info("task %s: %s%s", getattr(fn, "__name__", "?"), describe(error), place_of(error))
        raise


def run_inline(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Do it here and now; a finished future, as a submit would give."""
    future: Future[T] = Future()
    try:
        future.set_result(run_task(fn, *args, **kwargs))
    except BaseException as error:
        future.set_exception(error)
    return future


def cancel(futures: Iterable[Future[Any]]) -> None:
    for future in tuple(futures):
        future.cancel()


def wait_for(futures: Iterable[Future[Any]]) -> None:
    """Until all are done; once the run is ending, only while its grace lasts."""
    for future in tuple(futures):
        while not future.done() and _stop.grace_left() > 0:
            concurrent.futures.wait([future], timeout=0.2)  # in steps: on Windows a long wait ignores Ctrl-C


class ThreadPool(concurrent.futures.Executor):
    """A pool of threads that can be used again and again, from any thread, and that cannot deadlock.

    Work only goes down: from the main thread (level 0) to the main pool (1) to the subtasks pool (2). A submit sideways
    or up runs inline, in the submitting thread: waiting for a place in a pool that waits for you would never end.
    """

    def __init__(self, name: str, size: int, above: ThreadPool | None = None) -> None:
        self.name, self.size, self.above = name, size, above
        self.level: int = above.level + 1 if above else 1
        self.reset()

    def reset(self) -> None:
        """Forget all threads and tasks, without a word to them."""
        self.lock = threading.Lock()
        self.executor: ThreadPoolExecutor | None = None  # made at the first submit, when its size is known
        self.pending: set[Future[Any]] = set()
        self.blocks: defaultdict[int, list[set[Future[Any]]]] = defaultdict(list)  # thread -> its open `with` blocks

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if _thread.level >= self.level or _stop.reasons:  # the latter only to say so: a closed pool stays closed
            return run_inline(fn, *args, **kwargs)
        with self.lock:
            if self.executor is None:
                positions = itertools.count(self.above.size + 1 if self.above else 1)
                self.executor = ThreadPoolExecutor(self.size, self.name, become_worker, (self.level, positions))
            future = self.executor.submit(run_task, fn, *args, **kwargs)
        for group in (self.pending, *self.blocks[threading.get_ident()][-1:]):
            group.add(future)
            future.add_done_callback(group.discard)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel or await what this thread's innermost `with` submitted, else everything; the pool stays usable."""
        block = [self.pending, *self.blocks[threading.get_ident()]][-1]
        if cancel_futures:
            cancel(block)
        if wait and _thread.level < self.level:  # a task would wait for itself, or for one that waits for it
            wait_for(block)
        elif block is not self.pending:
            block.clear()  # so that the end of the `with` does not wait either

    def __enter__(self) -> ThreadPool:
        self.blocks[threading.get_ident()].append(set())
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        block = self.blocks[threading.get_ident()].pop()
        if kind is not None:
            cancel(block)
        wait_for(block)

    def close(self, cancel_futures: bool = True) -> None:
        """Let the threads go when they are done, without what is queued. The next submit starts anew."""
        with self.lock:
            executor, self.executor = self.executor, None
        if executor:
            executor.shutdown(wait=False, cancel_futures=cancel_futures)

    def resize(self, size: int) -> None:
        """Have so many threads from the next submit on."""
        if size != self.size:
            self.size = size
            self.close(cancel_futures=False)


main_thread_pool = ThreadPool("main", MAX_THREADS)
subtasks_thread_pool = ThreadPool("subtasks", SUBTASKS_POOL_SIZE, above=main_thread_pool)


def id_of(item: object) -> str:
    """What names an item in the log, which is private: itself if it is an id, its `id`, its first key in ...Id."""
    if isinstance(item, dict):
        keys = [key for key in item if key == "id"] or [key for key in item if str(key).endswith("Id")]
        item = item[keys[0]] if keys else None
    return f" (id {item})" if isinstance(item, (str, int)) else ""


def finished_tasks(
    function: Callable[[Item], T], items: Iterable[Item]
) -> Generator[tuple[int, Item, Future[T]] | None, None, None]:
    """Number, item and future of each task as it finishes; None while none does. What is left is cancelled."""
    pool = subtasks_thread_pool if _thread.level else main_thread_pool
    window = 2 * pool.size if _thread.level < pool.level else 1  # a queue of all items would take 2 KB for each
    source, in_flight = enumerate(items, 1), dict[Future[T], tuple[int, Item]]()
    finished: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()
    try:
        while True:
            for number, item in itertools.islice(source, window - len(in_flight)):
                future = pool.submit(function, item)
                in_flight[future] = number, item
                future.add_done_callback(finished.put)
            if not in_flight:
                return
            try:
                future = finished.get(timeout=0.2)  # in steps: see wait_for
            except queue.Empty:
                _stop.check()
                yield None
                continue
            yield (*in_flight.pop(future), future)
    finally:
        cancel(in_flight)


def results_of(
    function: Callable[[Item], T], items: Iterable[Item], desc: str, return_exceptions: bool, begun: list[bool]
) -> Iterator[tuple[Item, T]]:
    """The generator behind `run_parallel`: the bar, and what becomes of failures."""
    begun.append(True)
    tasks, total = finished_tasks(function, items), operator.length_hint(items) or None
    with contextlib.closing(tasks), tqdm(total=total, desc=desc, bar_format=custom_bar_format) as bar:
        bar.shows_retries = True
        for task in tasks:
            if task is None:
                bar.refresh()
                continue
            number, item, future = task
            bar.update()
            error = future.exception()
            if isinstance(error, Exception) and return_exceptions:
                yield item, error  # type: ignore[misc]  # asked for by return_exceptions
                continue
            if isinstance(error, Exception):
                words = describe(error) + place_of(error)
                logger.error("failed on item %d: %s", number, words, extra={"failed_id": id_of(item)})
            yield item, future.result()


def warn_unless(begun: list[bool], function: str) -> None:
    if not begun:
        logger.error("run_parallel(%s, ...) has done nothing: loop over it, or take list(run_parallel(...))", function)


def run_parallel(
    function: Callable[[Item], T], items: Iterable[Item], desc: str = "", return_exceptions: bool = False
) -> Iterator[tuple[Item, T]]:
    """Yield `(item, function(item))` as they finish, on the main pool, with a bar; nothing runs until you loop over it.

    `items` may be endless: few are in flight. The first failure cancels the rest and is raised, and the log names its
    item; with `return_exceptions=True` the exception takes the place of the result. From within a task of the main
    pool it runs on the subtasks pool.
    """
    begun: list[bool] = []
    results = results_of(function, items, desc, return_exceptions, begun)
    weakref.finalize(results, warn_unless, begun, getattr(function, "__name__", "function"))
    return results


# ========================================================================================================= Engine: JSON

MISSING: Any = object()


def children(node: Any, key: str | int, gap: list[Any]) -> Iterable[Any]:
    """What `key` leads to from a node; `gap` where it leads nowhere."""
    if key == "*" and isinstance(node, (list, dict)):
        return node.values() if isinstance(node, dict) else node
    if isinstance(node, dict) and key in node:
        return [node[key]]
    if isinstance(node, list) and isinstance(key, int) and -len(node) <= key < len(node):
        return [node[key]]
    return gap


def get_nested_value(data: Any, path: Sequence[str | int], default: Any = MISSING) -> Any:
    """The value at `path` in nested JSON: keys, list indices, and "*" for each element of a list or value of a dict.

    Without "*": the value, or the default (None if none is given). With "*": a flat list, the nodes of the JSONPath
    query (RFC 9535) of these segments; an element that lacks the rest of the path gives the default, if there is one.
    """
    if isinstance(path, str):
        raise WrongType(f"the path is a list of keys, as [{path!r}], not the text {path!r}")
    nodes: list[Any] = [data]
    gap: list[Any] = []  # what stands for a missing node: nothing, or from the first "*" on a place for the default
    for key in path:
        nodes = [child for node in nodes for child in children(node, key, gap)]
        if key == "*" and default is not MISSING:
            gap = [MISSING]
    if "*" in path:
        return [default if node is MISSING else node for node in nodes]
    return next(iter(nodes), None if default is MISSING else default)


# ========================================================================================================== Engine: run


def login() -> None:
    """Ask for or read the credentials, log in to IAM, configure every enabled service; enough for a notebook.

    Raises ConfigurationError before anything is sent, LoginError when the platform does not let us in.
    """
    if not _stop.in_run:  # as in a notebook, where a refused renewal may have stopped all calls before
        _stop.reasons.clear()
    check_configuration()
    user = ask("EB_USER_NAME", f"User name [{DEFAULT_USER_NAME}]: ", DEFAULT_USER_NAME)
    password = ask("EB_PASSWORD", "Password: ", DEFAULT_PASSWORD, getpass.getpass)
    if not password:
        raise ConfigurationError("EB_PASSWORD is empty: set it, or start the script in a terminal and type it")
    if not (user + password).isascii() and re.search("[\ud800-\udfff]", user + password):
        raise ConfigurationError("EB_USER_NAME or EB_PASSWORD is no UTF-8 text: set it in a UTF-8 locale")
    keep_secret(password)
    threads = ask_threads()
    main_thread_pool.resize(threads)
    subtasks_thread_pool.resize(SUBTASKS_POOL_SIZE)
    logger.info("user %s, %d threads, services %s", user, threads, ", ".join(MICROSERVICES))
    _sessions.log_in(user, password)


PAIR_SECONDS = 0.5  # a second SIGTERM or SIGHUP within so short a time is the first one once more
STOP_SIGNALS = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")]


def write_end(terminal: Terminal, started: float) -> int:
    """The end of the log: the table, and the closing line, which goes to the terminal as well; the exit code."""
    for line in _figures.table():
        logger.info("%s", line)
    code, words = _stop.outcome()
    words_for = {"calls": "call", "retries": "retry", "failures": "failure", "failed tasks": "failed task"}
    counts = {event: _figures.total(event) for event in words_for}
    totals = [f"{n:,} {event if n > 1 else words_for[event]}" for event, n in counts.items() if n]
    took = timedelta(seconds=round(time.monotonic() - started))
    text = f"; {', '.join(totals)} in {took}, log in {script_name()}.log" if totals else ""
    terminal.setLevel(logging.NOTSET)
    logger.log(logging.CRITICAL if code else logging.INFO, "%s: %s%s", script_name(), words, text)
    return code


def owns_process() -> bool:
    """Whether the process is there for this run alone: not in a notebook, nor in a thread beside the main one."""
    return threading.current_thread() is threading.main_thread() and not hasattr(sys, "ps1")


def exit_code(number: int) -> int:
    """What a process that a signal has ended returns; Ctrl-Break counts as Ctrl-C."""
    return 128 + (signal.SIGINT if signal.Signals(number).name == "SIGBREAK" else number)


def interrupt_main(number: int) -> None:
    """Let the main thread hear a signal, wherever it waits; on Windows `watch_signals` alone may hear it."""
    if sys.platform == "win32":
        signal.raise_signal(number)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, number)


def on_signal(number: int, frame: FrameType | None) -> None:
    """Stop the run, and interrupt the script, once: its `finally` blocks run. `watch_signals` does all the rest."""
    _stop.request(exit_code(number), f"stopped by {signal.Signals(number).name}")
    if _stop.may_interrupt:
        _stop.may_interrupt = False
        raise KeyboardInterrupt


def on_thread_failure(caught: threading.ExceptHookArgs) -> None:
    """What ends a thread of the script's own by an error ends the run: what the thread was to do is missing."""
    failure, name = caught.exc_value, getattr(caught.thread, "name", "?")
    if failure is None or (isinstance(failure, SystemExit) and (_stop.reasons or not failure.code)):
        return  # RunStopped, or sys.exit() without an error
    text = str(failure) if isinstance(failure, SystemExit) else describe(failure)
    words = f"thread {name}: {text}{place_of(failure)}"
    if not logger.hasHandlers():  # after the run, for which Python waits no longer than for its main thread
        return say(words)
    logger.error("%s", words, extra={"failure": failure})
    ours = [number for number in STOP_SIGNALS if signal.getsignal(number) is on_signal]
    if _stop.request(1, f"failed: {words}") and ours:
        interrupt_main(ours[0])  # it may wait for this very thread


def in_time(seconds: float, function: Callable[[], object]) -> None:
    """Do it in a thread of its own and wait no longer than that: a lock or a full pipe may hold it for ever."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)


def flush_output() -> None:
    """Let what the script has printed go out before the closing line; if it cannot, the run has failed."""
    try:
        print(end="", flush=True)  # unlike sys.stdout.flush(), this works under pythonw, which has no stdout
    except (OSError, ValueError) as error:
        _stop.request(1, f"failed: standard output: {error}")
        with contextlib.suppress(OSError, ValueError):  # or Python tries again at its end, with exit code 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def next_signal(receiver: socket.socket, seconds: float | None = None) -> int:
    """The next signal of ours; 0 when the run is over. Raises TimeoutError after so many seconds."""
    end = time.monotonic() + (seconds or 0)
    while True:
        receiver.settimeout(None if seconds is None else max(0.001, end - time.monotonic()))
        number = receiver.recv(1)[0]
        if number == 0 or signal.getsignal(number) is on_signal:
            return number


def watch_signals(receiver: socket.socket, end: threading.Lock, write: Callable[[], int]) -> None:
    """Stop the run at the first signal, end the process at a second one or when the grace is over.

    This thread hears them at once. The main thread, which alone runs handlers, may stand in a look-up of a host, on
    Windows in any call or wait (cpython#85609), or in a `finally` or an `except` of the script.
    """
    if not (number := next_signal(receiver)):
        return
    sys.setswitchinterval(0.0005)  # or threads that compute would keep this one waiting
    _stop.request(exit_code(number), f"stopped by {signal.Signals(number).name}")
    last = time.monotonic() + max(0, _stop.grace_left()) + 0.2  # the main thread comes first
    with contextlib.suppress(TimeoutError):
        # Programs send theirs in pairs: a shell and the kernel SIGHUP, timeout(1) SIGTERM to its child and its group.
        pair = time.monotonic() + PAIR_SECONDS
        while number := next_signal(receiver, last - time.monotonic()):
            if number == signal.SIGINT or time.monotonic() > pair:
                break
        else:
            return
    in_time(0.2, flush_output)
    in_time(0.4, write if end.acquire(blocking=False) else end.acquire)  # whoever has it writes the end
    os._exit(_stop.outcome()[0])


def catch_signals(stack: contextlib.ExitStack, end: threading.Lock, write: Callable[[], int]) -> None:
    """Until `stack` is closed; one that is ignored, as under nohup, stays so."""
    sender, receiver = socket.socketpair()
    sender.setblocking(False)
    watcher = threading.Thread(target=watch_signals, args=(receiver, end, write), name="signals", daemon=True)
    watcher.start()
    for step in (receiver.close, sender.close, watcher.join):
        stack.callback(step)
    stack.callback(sender.send, bytes(1))
    stack.callback(sys.setswitchinterval, sys.getswitchinterval())
    stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False))
    for number in STOP_SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            stack.callback(signal.signal, number, signal.signal(number, on_signal))


def outcome_of(failure: BaseException) -> tuple[int, str]:
    """Exit code and closing words for what `main` ended with."""
    match failure:
        case SystemExit(code=int(code)):
            return code if 0 < code < 256 else 1, f"exit {code}"  # the system keeps eight bits of it: 256 would be 0
        case KeyboardInterrupt():  # no signal: a question for a password on Windows, or a notebook
            return exit_code(signal.SIGINT), "stopped by SIGINT"
        case ConfigurationError():
            return 2, str(failure)
        case LoginError() | SystemExit():
            return 1, str(failure) or "failed"
    name, text = getattr(failure, "api_function", None), describe(failure)
    if isinstance(failure, httpx.HTTPStatusError) and text in ("HTTP 302", "HTTP 403", "HTTP 404"):
        text += f"; {CHECK}"
    return 1, f"failed: {name}: {text}" if name else f"failed: {text}{place_of(failure)}"


def note_failure(failure: BaseException, terminal: Terminal) -> None:
    """Have the reason in the log before anything waits; the terminal gets the closing line alone."""
    _stop.request(*outcome_of(failure))
    if isinstance(failure, Exception) and not isinstance(failure, (ConfigurationError, LoginError)):
        terminal.setLevel(logging.CRITICAL + 1)
        logger.critical("%s", _stop.outcome()[1], extra={"failure": failure})
    traceback.clear_frames(failure.__traceback__)  # closes the loops that it left, and their bars


def end_work() -> bool:
    """Wait for what was submitted; if the run is to stop, drop what is queued, and wait while the grace lasts.

    Whether the pools' threads, after a signal all threads, have ended, or may go on, as in a notebook.
    """
    pools = (main_thread_pool, subtasks_thread_pool)
    for pool in pools:
        pool.close(cancel_futures=bool(_stop.reasons))
        wait_for(pool.pending)
    names = ".*" if _stop.outcome()[0] >= 128 else rf"({'|'.join(pool.name for pool in pools)})_\d+"
    ours = (threading.main_thread(), threading.current_thread())
    while any(re.fullmatch(names, t.name) and t not in ours and not t.daemon for t in threading.enumerate()):
        if _stop.grace_left() <= 0 or not owns_process():
            return not owns_process()
        for pool in pools:  # a thread of the script's own may use it once more
            pool.close(cancel_futures=bool(_stop.reasons))
        time.sleep(0.01)
    return True


if sys.platform != "win32":

    def hear_signals(heard: bool = True) -> None:
        """Let this thread hear signals, or keep them waiting: a child that hears one too early stops its parent."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK if heard else signal.SIG_BLOCK, STOP_SIGNALS)

    def forget_parent() -> None:
        """In a child made by fork: go on without the parent's clients, locks, threads, handlers and refresh tokens.

        By an inherited client, parent and children would read each other's answers.
        """
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is on_signal:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
                signal.set_wakeup_fd(-1)
        _thread.__dict__.clear()
        _stop.__dict__.update(vars(Stop()))
        _figures.reset()
        _sessions.lock, ThreadState.tls_lock = threading.Lock(), threading.Lock()
        main_thread_pool.reset()
        subtasks_thread_pool.reset()
        PlainBar.set_lock(threading.RLock())
        for session in tokens.values():
            session.pop("refresh_token", None)  # each process refreshes a session of its own: a new login
        hear_signals()

    os.register_at_fork(
        before=functools.partial(hear_signals, False), after_in_parent=hear_signals, after_in_child=forget_parent
    )


def failure_of(work: Callable[[], None]) -> BaseException | None:
    """What some work ends with, which a signal may interrupt, once."""
    try:
        try:
            _stop.may_interrupt = True
            work()
        except BaseException as error:
            return None if isinstance(error, SystemExit) and not error.code else error
        finally:
            _stop.may_interrupt = False
    except KeyboardInterrupt as late:  # on the way out
        return late.__context__ or late
    return None


def asked_about() -> str | None:
    """What `--help` or `--version`, alone on the command line, asks for."""
    about = sys.modules["__main__"].__doc__
    answers = {"--help": about, "-h": about, "--version": f"{script_name()}, template {TEMPLATE_VERSION}"}
    return answers.get(" ".join(sys.argv[1:]))


def run(main: Callable[[], object]) -> int:
    """The frame around a script: log, login, `main`, summary.

    Returns the exit code: 0 done, 1 failed, 2 configuration, 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP.
    """
    if text := asked_about():
        print(text)
        return 0
    _figures.reset()
    _stop.reasons.clear()
    _stop.in_run, process = True, os.getpid()
    terminal, end = Terminal(logging.WARNING), threading.Lock()
    write = functools.partial(write_end, terminal, time.monotonic())

    def work() -> None:
        open_log(stack, terminal)
        threading.excepthook = on_thread_failure
        if owns_process():
            catch_signals(stack, end, write)
        login()
        terminal.setLevel(logging.ERROR)  # from here on retries are routine
        main()

    with contextlib.ExitStack() as stack:
        failure = failure_of(work)
        if os.getpid() != process:  # a child made by os.fork() has come out of main(); the rest is for its parent
            flush_output()
            os._exit(outcome_of(failure)[0] if failure else 0)
        if failure:
            note_failure(failure, terminal)
        ended = end_work()
        flush_output()
        end.acquire()
        code = write()
        if not ended:  # Python would wait for the threads that are held; their bars are wiped away, and not drawn again
            with PlainBar.external_write_mode(sys.stderr):
                os._exit(code)
    _stop.in_run = False
    _stop.reasons.clear()
    return code


END_OF_ENGINE = max(line or 0 for *_, line in run.__code__.co_lines())  # what follows is the script's own: see place_of

# ================================================================================================ EDIT 2: API functions
# Both lines of a function name the same service: the decorator renews its access token, call_endpoint sends it.
# What creates something takes @api_call_with_retry("RC", idempotent=False): else a lost answer may make two of it.


@api_call_with_retry("RC")
def get_all_organizations() -> list[dict[str, Any]]:
    """All centres: dicts with at least `id` and `name`."""
    return call_endpoint("RC", "GET", "organizations", list)


@api_call_with_retry("RC")
def get_statistics(organization_id: str) -> dict[str, Any]:
    """The counts of one centre."""
    return call_endpoint("RC", "GET", "statistics", dict, params={"organization": identifier(organization_id)})


@api_call_with_retry("RC")
def search_inclusions_page(organization_id: str, limit: int, page: int) -> dict[str, Any]:
    """One page of a centre's inclusions, pages from 1: {"data": [...], "total": n}."""
    params, body = {"limit": limit, "page": page}, {"organization": identifier(organization_id)}
    return call_endpoint("RC", "POST", "search_inclusions", dict, params=params, json=body)


def search_inclusions(organization_id: str, limit: int, page: int) -> list[dict[str, Any]]:
    """The inclusions on one page, pages from 1."""
    return rows_on(search_inclusions_page(organization_id, limit, page))


def get_all_inclusions(organization_id: str) -> list[dict[str, Any]]:
    """All inclusions of a centre, each once, however many pages that takes; ValueError if the pages do not add up."""
    return every_page(functools.partial(search_inclusions_page, organization_id), key="patientId")


@api_call_with_retry("RC")
def get_record_by_patient(patient_id: str) -> dict[str, Any]:
    """The record of one patient, by the `patientId` of an inclusion."""
    return call_endpoint("RC", "GET", "record_by_patient", dict, params={"patient": identifier(patient_id)})


@api_call_with_retry("RC")
def get_surveys(patient_id: str) -> list[dict[str, Any]]:
    """The questionnaires of one patient, with answers."""
    return call_endpoint("RC", "POST", "surveys", list, json={"subject": identifier(patient_id)})


@api_call_with_retry("GDD")
def get_request_by_tube(tube_id: str) -> dict[str, Any]:
    """The laboratory request that a sample tube belongs to."""
    return call_endpoint("GDD", "GET", "request_by_tube", dict, suffix="/" + path_segment(tube_id))


# ================================================================================================== EDIT 3: your script


def main() -> None:
    # TODO: replace this block by your script --------------------------------------------------------------------------
    def counts_of(organization: dict[str, Any]) -> Counter[str]:  # a task: its two calls are subtasks
        inclusions = subtasks_thread_pool.submit(get_all_inclusions, organization["id"])
        statistics = subtasks_thread_pool.submit(get_statistics, organization["id"])
        return Counter({"inclusions": len(inclusions.result()), **statistics.result()})

    centres = run_parallel(counts_of, get_all_organizations(), desc="Centres")
    rows = sorted((str(organization["name"]), counts) for organization, counts in centres)
    total: Counter[str] = Counter()
    for _, counts in rows:
        total.update(counts)
    print(f"{'centre':<20}" + "".join(f" {column:>6}" for column in total))
    for name, counts in [*rows, ("Total", total)]:
        figures = "".join(f" {counts[column]:>{max(6, len(column))},}" for column in total)
        print(f"{name:<20.20}{figures}")
    # end of the TODO block --------------------------------------------------------------------------------------------


if __name__ == "__main__":
    sys.exit(run(main))
