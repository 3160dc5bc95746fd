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
            .venv/bin/python my_script.py             asks for user, threads, password; logs to my_script.log
Unattended  set EB_USER_NAME, EB_PASSWORD and EB_THREADS as well: nothing is asked; without a terminal no bar is drawn

You edit    EDIT 1  constants, and services: comment out those that you do not need, add endpoints or services
            EDIT 2  API functions: one short function for each endpoint
            EDIT 3  main(): your logic, in the TODO block

The engine between EDIT 1 and EDIT 2 takes care of the rest
            401                          one renewal of the access token for all threads, else a new login
            429, 5xx, timeout, bad body  up to 10 attempts, with exponential backoff and jitter; Retry-After is obeyed
            threads                      at most 20 + 40 calls at once, on as many connections to each host
            Ctrl-C, SIGTERM, SIGHUP      queued work is dropped, calls in flight get 2 s; exit code 130, 143, 129
            log, terminal                no password, no token; the terminal names no patient; the log ends with a table
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import as_completed  # noqa: F401  for your TODO block
from types import FrameType
from typing import Any

import httpx

# ======================================================================================= EDIT 1: constants and services

DEFAULT_USER_NAME = "ziwig-invest2@yopmail.com"  # offered at the prompt; EB_USER_NAME overrides it
DEFAULT_PASSWORD = ""  # leave it empty: set EB_PASSWORD, or type it when asked
MAX_THREADS = 20  # size of the main pool, and its upper limit; lower EB_THREADS if you see many 429 or 503
SUBTASKS_POOL_SIZE = 40  # threads of the subtasks pool, beside those of the main pool
ERROR_MAX_RETRY = 10  # attempts per API call, the first included; 10 bridge about 2 minutes, 3 suit a trial
WAIT_BEFORE_RETRY = 0.5  # seconds before the first retry; doubles after each, with jitter
MAX_WAIT_BEFORE_RETRY = 60  # seconds; caps the doubling, and the longest Retry-After that is obeyed
API_TIMEOUT = 60  # seconds without a byte of the response; raise it for a slow endpoint
API_DEADLINE = 300  # seconds that one attempt may take until the last byte of its body; raise it for long downloads
LOG_LEVEL = logging.INFO  # of the log file; logging.DEBUG writes a line per attempt
custom_bar_format = "{desc:<20.20} {percentage:3.0f}% |{bar}{r_bar}"  # tqdm's bar_format of every bar

TEMPLATE_VERSION = "3.3.0"  # of the template that this script was copied from; leave it as it is

# Comment out a service that you do not need; IAM must stay. A call goes to base_url + path.
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

# ============================================================ ENGINE BEGINS: read the names that follow, not all of it
# Use these names, but do not redefine them, the builtins, or any name that begins with an underscore: `run` refuses to
# start if that would disturb the engine. Every other name of the engine begins with an underscore.
#
# login                  reads the credentials or asks for them, and logs in; `run` calls it, and so does a notebook
# run                    the frame around main(): log, login, signals, summary
# tokens                 the tokens of each service; tokens["RC"]["access_token"] is always the current one
# get_httpx_client       the httpx.Client of this thread
# api_call_with_retry    decorator of a function that calls a service: renews its token, repeats what failed
# call_endpoint          calls an endpoint and returns its JSON
# url_of                 the address of an endpoint
# identifier             checks an id
# path_segment           an id, encoded for use in a path
# require_id             checks that a response is about the id that you asked for
# rows_on                the rows on one page
# every_page             the rows on all pages
# main_thread_pool       the pool for your tasks
# subtasks_thread_pool   the pool for the subtasks of a task
# run_parallel           calls a function for many items at once, with a progress bar
# get_thread_position    the row for the progress bar of this thread
# tqdm                   the progress bar
# get_nested_value       takes a value out of nested JSON
# logger                 the logger of the engine
# describe               describes an exception in a few words, without patient data
# TemplateError          base class of the next three: errors of the engine, whose texts appear on the terminal
# ConfigurationError     a setting is missing or wrong
# LoginError             the platform refuses the login
# WrongValue             a response or an argument is not as it should be
# WrongType              another name of WrongValue
# RunStopped             ends a task when the run is ending; `except Exception` does not catch it

# The names that exist above the engine.
_BEFORE = {**globals()}

# Imported under names that a script does not use, so that your own `time` or `re` does not disturb the engine.
import atexit as _atexit
import builtins as _builtins
import collections.abc as _abc
import concurrent.futures as _futures
import email.utils as _email
import gc as _gc
import getpass as _getpass
import gzip as _gzip
import io as _io
import itertools as _itertools
import json as _json
import logging as _logging
import math as _math
import os as _os
import queue as _queue
import random as _random
import re as _re
import signal as _signal
import socket as _socket
import ssl as _ssl
import sys as _sys
import threading as _threading
import time as _time
import traceback as _traceback
import typing as _typing
import urllib.parse as _url
import urllib.request as _proxies
import weakref as _weakref
from collections import Counter as _Counter, defaultdict as _defaultdict, deque as _deque
from contextlib import ExitStack as _ExitStack, redirect_stdout as _redirect_stdout, suppress as _suppress
from datetime import timedelta as _timedelta
from functools import cache as _cache, partial as _partial, wraps as _wraps
from time import perf_counter as _now

import tqdm as _tqdm

# The library that is imported above as httpx, whichever it is.
_httpx = httpx
# The globals of this file, including those of your script.
_NAMES = globals()

# ================================================================================================== Errors and stopping

_GRACE_SECONDS = 2.0
_CHECK = "python3 tests/check_platform.py says whether the platform differs from what is assumed"

_logger = logger = _logging.getLogger(__name__)
_P = _typing.ParamSpec("_P")
_Item = _typing.TypeVar("_Item")
_T = _typing.TypeVar("_T")


class TemplateError(Exception):
    """An error that the engine raises itself. Its text says why and holds no patient data, so it may be shown."""


class ConfigurationError(TemplateError):
    """A setting is missing or wrong. The text names the setting and the fix. Exit code 2."""


class LoginError(TemplateError):
    """The platform refuses the login. The text names the service and the call. Exit code 1."""


class WrongValue(TemplateError, TypeError, ValueError):
    """A response or an argument is not as it should be."""


class RunStopped(BaseException):
    """The run is ending. Not an Exception, so that an `except Exception` in a loop does not swallow it."""


# Older scripts use this name.
WrongType = WrongValue


# The objects that remember something have a `reset`. A forked child resets all of them, a new run _stop and _figures.


class _Stop:
    """Whether the run is ending, why, and when at the latest.

    It has no lock, because Ctrl-C could leave one locked (cpython#74174).
    """

    def __init__(self) -> None:
        # (exit code, closing words, end of the grace period) of each request to end. The first one counts.
        self.reasons: list[tuple[int, str, float]] = []
        # Failures that nobody has asked about: unique key -> words. The run goes on, but its exit code becomes 1.
        self.unheard: dict[object, str] = {}
        # Threads that wait for a retry -> when they will continue.
        self.waiting: dict[int, float] = {}
        # Whether `run` is active. If it is, `login` must not reset this object.
        self.is_running = False
        # Whether the next signal raises KeyboardInterrupt in the main thread. Only one does in a run.
        self.may_interrupt = False

    reset = __init__

    def request(self, code: int, words: str) -> None:
        """End the run in every thread, with this exit code and these words unless an earlier request gave others."""
        self.reasons.append((code, words, _now() + _GRACE_SECONDS))

    def outcome(self) -> tuple[int, str]:
        """Return the exit code and the closing words."""
        if self.reasons:
            return self.reasons[0][:2]
        unheard = list(self.unheard.values())
        if len(unheard) > 1:
            return 1, f"failed: {unheard[0]}, the first of {len(unheard):,} such failures"
        if unheard:
            return 1, f"failed: {unheard[0]}"
        return 0, "done"

    def grace_left(self) -> float:
        """Return how many seconds calls in flight may still take."""
        if self.reasons:
            return self.reasons[0][2] - _now()
        return _math.inf

    def check(self) -> None:
        """Raise RunStopped if the run is ending."""
        if self.reasons:
            raise RunStopped(self.reasons[0][1])

    def sleep(self, seconds: float) -> None:
        """Sleep, but raise RunStopped as soon as the run is ending."""
        end = _now() + seconds
        self.waiting[_threading.get_ident()] = end
        try:
            while (left := end - _now()) > 0:
                self.check()
                _time.sleep(min(left, 0.1))
        finally:
            self.waiting.pop(_threading.get_ident(), None)


_stop = _Stop()

# What OpenSSL or Windows says -> what to do about it. The first match counts. Another attempt would not help.
_TLS_HINTS = {
    "WRONG_VERSION_NUMBER|HTTP_REQUEST|RECORD_LAYER": "this port speaks no TLS: check the address and HTTPS_PROXY",
    "issuer|self.signed|not trusted": "set SSL_CERT_FILE to a PEM file with the CA certificates of your organisation",
    "CERTIFICATE_VERIFY_FAILED": "check the address and the clock of this machine",
}

_NO_BODY = "the response has no body, JSON was expected"


def _tls_hint(error: BaseException) -> str:
    """Return the advice for a certificate that is refused or a port without TLS, or "" if the error is another one."""
    for pattern, hint in _TLS_HINTS.items():
        if isinstance(error, _httpx.ConnectError) and _re.search(pattern, str(error), _re.IGNORECASE):
            return hint
    return ""


def _is_web_page(response: httpx.Response) -> bool:
    return "text/html" in response.headers.get("Content-Type", "")


def _retry_after_seconds(value: str, now: float) -> float:
    """Return the seconds that a Retry-After asks for, as a number or a date (RFC 9110, 10.2.3); 0 for nonsense."""
    if _re.fullmatch("[0-9]+", value.strip()):
        return float(value)
    with _suppress(OSError, ValueError, OverflowError):
        return max(0.0, _email.parsedate_to_datetime(value).timestamp() - now)
    return 0.0


def _retry_after(error: Exception) -> float:
    """Return how many seconds a refusal asks you to wait; 0 if it does not."""
    if isinstance(error, _httpx.HTTPStatusError):
        return _retry_after_seconds(error.response.headers.get("Retry-After", ""), _time.time())
    return 0.0


def _status_words(error: httpx.HTTPStatusError) -> str:
    """Return the status, and what shows where a refusal comes from. The text of httpx would repeat the URL."""
    # Otherwise the engine has replaced the text: see _Sessions.renew.
    if " for url " not in str(error):
        return str(error)
    words = f"HTTP {error.response.status_code}"
    if target := error.response.next_request:
        # Only the log shows the path, which may contain an id.
        words += f", redirects to {target.url.scheme}://{target.url.host}"
    elif _is_web_page(error.response):
        words += ", answered by a web page"
    if (seconds := _retry_after(error)) > MAX_WAIT_BEFORE_RETRY:
        words += f", Retry-After is {seconds:.0f} s, MAX_WAIT_BEFORE_RETRY {MAX_WAIT_BEFORE_RETRY} s: run again later"
    return words


def _request_words(error: httpx.RequestError) -> str:
    """Return what httpx says, without the bytes of a response that h11 quotes, then the host, the proxy and advice."""
    words = [_re.split(r":? (?:bytearray\()?b?['\"]", str(error))[0]]
    # An error that a script has created itself has no request.
    with _suppress(RuntimeError):
        url, proxy = error.request.url, _proxies.getproxies().get("https")
        words.append(f"host {url.host}")
        if proxy and url.scheme == "https":
            words.append(f"HTTPS_PROXY {proxy.rpartition('@')[2].rpartition('//')[2]}")
    return "; ".join(filter(None, (*words, _tls_hint(error))))


def _describe(error: BaseException) -> str:
    """Describe an exception in a few words, without any text that may quote patient data, as int(birth_date) does."""
    words: str | None = ""
    match error:
        case _httpx.HTTPStatusError():
            return _status_words(error)
        case TemplateError() | RunStopped():
            return str(error)
        case _httpx.RequestError():
            words = _request_words(error)
        case _json.JSONDecodeError():
            words = str(error) if error.doc else _NO_BODY
            if error.doc.lstrip().startswith("<"):
                words = "a web page, JSON was expected"
        case UnicodeDecodeError():
            words = "not UTF-8"
        case OSError():
            # The name of the file is left out, as it may be an id.
            words = error.strerror
    return ": ".join(filter(None, (type(error).__name__, words)))


describe = _describe

# ================================================================================================================= Log

_LOG_BYTES = 10_000_000
_LONGEST_LINE = 10_000
# Their messages contain full URLs and cookies: `login` sets them to WARNING.
_QUIET_LOGGERS = ("httpx", "httpcore", "httpx2", "httpcore2")


class _Figures:
    """What the API functions did, for the table at the end of the log. It hardly grows with the number of calls."""

    def __init__(self) -> None:
        # Reentrant, as the garbage collector may call _on_unheard meanwhile: its line redraws bars, which call `total`.
        self.lock = _threading.RLock()
        # API function -> "calls", "failures", ... -> how many
        self.events: dict[str, _Counter[str]] = _defaultdict(_Counter)
        # API function -> milliseconds -> attempts
        self.durations: dict[str, _Counter[int]] = _defaultdict(_Counter)

    reset = __init__

    def count(self, function: str, event: str, *seconds: float) -> None:
        """Count an event, and how long it took. "calls" are first attempts, "retries" are the others."""
        with self.lock:
            self.events[function][event] += 1
            for each in seconds:
                self.durations[function][round(each * 1000)] += 1

    def total(self, event: str) -> int:
        with self.lock:
            return sum(events[event] for events in self.events.values())

    def table(self) -> list[str]:
        """Return one line per API function. The durations are those of single attempts."""
        columns = ("calls", "retries", "renewals", "failures")
        line = "{:<28}" + "{:>10}" * 7
        lines = [line.format("API function", *columns, "p50 ms", "p95 ms", "max ms")]
        with self.lock:
            for function in sorted(self.durations):
                figures = [self.events[function][column] for column in columns]
                ordered = sorted(self.durations[function].elements())
                figures += [ordered[_math.ceil(share * len(ordered)) - 1] for share in (0.50, 0.95, 1)]
                lines.append(line.format(function, *(f"{figure:,}" for figure in figures)))
        return lines


_figures = _Figures()
# The password and the newest tokens, in every form in which they may be written.
_secrets: _deque[str] = _deque(maxlen=400)


def _keep_secret(secret: str) -> None:
    """Mask a secret from now on, whether it appears as it is, in a repr, in JSON or in a URL."""
    # The masks themselves would give away a very short one.
    if len(secret) < 4:
        return
    forms = {secret, repr(secret)[1:-1], _json.dumps(secret)[1:-1], _json.dumps(secret, ensure_ascii=False)[1:-1]}
    _secrets.extend({*forms, _url.quote(secret, safe=""), _url.quote_plus(secret)})


def _redact(text: str) -> str:
    """Return a text as one line, without secrets, headers that contain them, and query strings."""
    for secret in sorted(set(_secrets.copy()), key=len, reverse=True):
        text = text.replace(secret, "***")
    # It is cut now that it holds no known secret, and before the patterns, which would take long in a long text.
    text = text[:_LONGEST_LINE]
    # A line break from a server would forge a line of the log (CWE-117).
    text = _re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: repr(match[0])[1:-1], text)
    text = _re.sub(r"(?i)(\b(?:set-cookie|cookie|(?:proxy-)?authorization)\b['\"]?\s*[:=,]\s*).*", r"\1***", text)
    text = _re.sub(r"(?i)(\bbearer\s+)[^\s'\",]+", r"\1***", text)
    text = _re.sub(r"://[^\s'\"/#?]*@", "://***@", text)
    return _re.sub(r"\?[^\s\"]+", "?***", text)


def _is_terminal(stream: Any) -> bool:
    """Return whether a stream is a terminal. On Windows, NUL claims to be one (bpo-28654), but is a plain file."""
    if getattr(stream, "closed", True) or not stream.isatty():
        return False
    buffer = getattr(stream, "buffer", None)
    # Under `python -u` there is no buffer around the raw stream.
    raw = getattr(buffer, "raw", buffer)
    return _os.name != "nt" or not isinstance(raw, _io.FileIO)


def _say(text: str) -> None:
    """Write a line to the terminal, above the bars. It goes to stderr, as stdout is for the results of the script."""
    line, is_drawn = _redact(text), _is_terminal(_sys.stderr)
    if is_drawn:
        # Overwrite the echo of Ctrl-C.
        line = "\r" + line
    with _suppress(Exception):
        # Without a terminal, do not take tqdm's lock: a bar may hold it while it waits for the lock of the log.
        _tqdm.tqdm.write(line, file=_sys.stderr or _io.StringIO(), nolock=not is_drawn)


class _LogLine(_logging.Formatter):
    """Formats lines of the log file, with tracebacks. Only this file shows what a record calls private or failure."""

    def format(self, record: _logging.LogRecord) -> str:
        columns = f"{self.formatTime(record)} {record.levelname:<8} {_redact(record.threadName or ''):<12}"
        lines = [record.getMessage() + str(getattr(record, "private", ""))]
        for error in (getattr(record, "failure", None), record.exc_info and record.exc_info[1]):
            # Only once: a script may log an exception and raise it again.
            if isinstance(error, BaseException) and not hasattr(error, "_is_in_log"):
                vars(error)["_is_in_log"] = True
                lines += "".join(_traceback.format_exception(error)).rstrip("\n").split("\n")
        return f"{columns} " + "\n    ".join(map(_redact, lines))


class _LogFile(_logging.FileHandler):
    """The log file. A problem with it is reported on the terminal once, and does not end the run."""

    said = ""

    def handleError(self, record: _logging.LogRecord) -> None:
        """Report the problem. The report of `logging` would show the arguments of the message, even tokens."""
        error = _sys.exc_info()[1] or Exception()
        problem = f"{record.pathname}:{record.lineno}: {_describe(error)}"
        if isinstance(error, OSError):
            problem = f"{self.baseFilename}: {_describe(error)}"
        if problem != self.said:
            self.said = problem
            _say(problem)

    def close(self) -> None:
        # On a full disk, closing fails because it cannot write what is still buffered.
        with _suppress(OSError):
            super().close()


class _Terminal(_logging.Handler):
    """Shows log messages on the terminal, above the bars. The redirection of tqdm ignores levels (tqdm#1272)."""

    def emit(self, record: _logging.LogRecord) -> None:
        if hasattr(record, "file_only"):
            return
        with _suppress(Exception):
            words = record.getMessage()
            # These two log exceptions that nobody has asked about. The text may quote patient data.
            if record.name in ("concurrent.futures", "asyncio"):
                words = _stop.unheard[record] = f"unheard error in {record.name} (see the log)"
            _say(words)


def _script_name() -> str:
    """Return the name, without `.py`, of the file that Python was started with, or of this file in a notebook."""
    path: str = getattr(_sys.modules["__main__"], "__file__", None) or _NAMES.get("__file__", "eb_script.py")
    path = _os.path.abspath(path).removesuffix(f"{_os.sep}__main__.py")
    return _os.path.splitext(_os.path.basename(path))[0].strip("<>")


def _make_private(path: str) -> bool:
    """Create the log if there is none, and return whether it is a plain file of ours that only we can read."""
    # With O_NONBLOCK, a pipe without a reader is an error. Without it, we would wait for one.
    _os.close(_os.open(path, _os.O_CREAT | _os.O_WRONLY | getattr(_os, "O_NONBLOCK", 0), 0o600))
    with _suppress(PermissionError):
        if _os.path.isfile(path) and _os.stat(path).st_uid == getattr(_os, "geteuid", int)():
            _os.chmod(path, 0o600)
            return True
    return False


def _set_aside(path: str) -> str:
    """Rename a log over _LOG_BYTES, keep five of them, and return what went wrong: Windows cannot rename open files."""
    slots = [f"{path}.{number}" for number in range(1, 6)]
    try:
        if _os.path.isfile(path) and _os.path.getsize(path) >= _LOG_BYTES:
            _os.chmod(path, 0o600)
            free = [slot for slot in slots if not _os.path.exists(slot)]
            _os.replace(path, (free or sorted(slots, key=_os.path.getmtime))[0])
    except OSError as error:
        return f"{path} cannot be set aside, so it grows: {error.strerror}"
    return ""


def _log_to(stack: _ExitStack, handler: _logging.Handler) -> None:
    """Send all log messages, including those of the script, to a handler until `stack` closes."""
    root = _logging.getLogger()
    root.addHandler(handler)
    stack.callback(handler.close)
    stack.callback(root.removeHandler, handler)


def _open_log(stack: _ExitStack, path: str) -> None:
    """Send all log messages to a file until `stack` closes. Raises ConfigurationError if it cannot be written."""
    problem = _set_aside(path)
    try:
        is_private = _make_private(path)
        log = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written ({error.strerror}): start the script elsewhere") from error
    log.setFormatter(_LogLine())
    # `login` will refuse a wrong LOG_LEVEL, and needs a log to report it.
    log.setLevel(LOG_LEVEL if isinstance(LOG_LEVEL, int) else _logging.INFO)
    _log_to(stack, log)
    for each in map(_logging.getLogger, ("root", *_QUIET_LOGGERS)):
        stack.callback(each.setLevel, each.level)
    _logging.getLogger().setLevel(min(log.level, _logging.INFO))
    if problem:
        _logger.warning(problem)
    if not is_private:
        _logger.warning("%s is not a plain file of yours, or cannot be made private: others may read it", path)
    python = f"Python {_sys.version.split()[0]} on {_sys.platform}, process {_os.getpid()}"
    _logger.info("%s started, template %s, %s", _script_name(), TEMPLATE_VERSION, python)


# ============================================================================================================= Retries

# These statuses are never a success. The others are left to the API function.
_REFUSED_STATUSES = {401, 408, 425, 429, *range(500, 600)}
_RETRIED_STATUSES = _REFUSED_STATUSES - {401, 501}
_RETRIED_ERRORS = (_httpx.TransportError, _httpx.DecodingError, _json.JSONDecodeError, UnicodeDecodeError)
_NOT_SENT_ERRORS = (_httpx.ConnectError, _httpx.ConnectTimeout, _httpx.PoolTimeout)


def _status_of(error: BaseException | None) -> int:
    """Return the status of a call that was refused; 0 if it got no response."""
    if isinstance(error, _httpx.HTTPStatusError):
        return error.response.status_code
    return 0


def _is_rate_limit(error: Exception) -> bool:
    """Return whether a call was refused because it came too early: by 429, or by another 4xx with a Retry-After."""
    if not isinstance(error, _httpx.HTTPStatusError):
        return False
    response = error.response
    return response.status_code == 429 or (response.is_client_error and "Retry-After" in response.headers)


def _is_hopeless(error: Exception) -> bool:
    """Return whether an attempt soon after would fail in the same way. Repeating a proxy's 407 may lock the account."""
    if isinstance(error, _httpx.ProxyError):
        # httpcore puts the status first.
        return str(error).startswith("4")
    if isinstance(error, UnicodeDecodeError):
        # A body that was cut off may be complete next time.
        return error.reason != "unexpected end of data"
    waits_too_long = _retry_after(error) > MAX_WAIT_BEFORE_RETRY
    return waits_too_long or isinstance(error, _httpx.UnsupportedProtocol) or _tls_hint(error) != ""


def _is_retryable(error: Exception, idempotent: bool = True) -> bool:
    """Return whether another attempt may help, and cannot create something twice."""
    if _is_hopeless(error):
        return False
    # The call was not carried out.
    if _is_rate_limit(error) or isinstance(error, _NOT_SENT_ERRORS):
        return True
    return idempotent and (_status_of(error) in _RETRIED_STATUSES or isinstance(error, _RETRIED_ERRORS))


def _retry_delay(failures: int, retry_after: float) -> float:
    """Return how many seconds to wait: the Retry-After plus a capped exponential backoff with jitter."""
    backoff = min(MAX_WAIT_BEFORE_RETRY, WAIT_BEFORE_RETRY * 2.0 ** min(failures - 1, 30))
    return min(MAX_WAIT_BEFORE_RETRY, retry_after + backoff * _random.uniform(0.5, 1))


def _excerpt(error: Exception) -> str:
    """Return where a refusal redirects to, and the start of its body, which often says why: for the log file alone."""
    for refused in (error, error.__cause__):
        if isinstance(refused, _httpx.HTTPStatusError):
            with _suppress(_httpx.StreamError):
                body = refused.response.content[:500].decode(errors="replace")
                return f": {refused.response.headers.get('Location', '')} {body}"
    return ""


def _given_up_by(error: BaseException) -> str:
    """Return the name of the API function that has given up with this error, or "" if none has."""
    return str(getattr(error, "_given_up_by", ""))


def _with_retries(name: str, call: Callable[[], _T], retryable: Callable[[Exception], bool]) -> _T:
    """Return the result of `call`, retried as the functions above decide. Raises its last exception."""
    failures = 0
    while True:
        try:
            return call()
        except Exception as error:
            failures += 1
            words = f"{name}: {_describe(error)}, failure {failures} of {ERROR_MAX_RETRY}"
            private = {"private": _excerpt(error)}
            # If an API function that is called by this one has given up, it has made attempts enough.
            if _given_up_by(error) or failures >= ERROR_MAX_RETRY or not retryable(error):
                _logger.info("%s, given up", words, extra=private)
                _figures.count(name, "failures")
                vars(error).setdefault("_given_up_by", name)
                raise
            delay = _retry_delay(failures, _retry_after(error))
            _logger.warning("%s, next in %.1f s", words, delay, extra=private)
        _stop.sleep(delay)


# ======================================================================================================== HTTP clients

# Node.js and uvicorn close idle connections after 5 s. We close them earlier, so as not to write to a closing one.
_IDLE_SECONDS = 4
_CONNECT_SECONDS = 5


class _ThreadState(_threading.local):
    """What every thread has of its own: threading.local calls __init__ in each of them."""

    def __init__(self) -> None:
        self.client: httpx.Client | None = None
        # The service that the current API function names, and the status of its last call.
        self.app: str | None = None
        self.status = 200
        # Method, address and body of its calls that failed, and have not succeeded since -> how they failed.
        self.failures: dict[Any, Exception] = {}
        # 1 in a worker of the main pool, 2 in one of the subtasks pool: see _ThreadPool.
        self.depth = 0
        # The row of its progress bar: 1, 2, ... in the workers of both pools.
        self.position = 0
        self.is_main = _threading.current_thread() is _threading.main_thread()
        # Depth of a pool -> its `with` blocks that are open in this thread, each an object of its own.
        self.blocks: dict[int, list[object]] = _defaultdict(list)

    reset = __init__


class _Connections:
    """The idle connections of all threads, which are closed after some seconds."""

    def __init__(self) -> None:
        # While `_on_request` holds it, no connection that its call may use is closed. It is reentrant, as the garbage
        # collector may close a body meanwhile.
        self.lock = _threading.RLock()
        # Thread and host -> since when their connection has been idle, and that connection.
        self.idle: dict[tuple[int, bytes], tuple[float, Any]] = {}
        self.watcher: _threading.Thread | None = None
        # All that are open: a forked child closes its copies of them.
        self.opened: _weakref.WeakSet[Any] = _weakref.WeakSet()
        # Whether connections are kept. Once a response came before its call, the next one might come just after it.
        self.are_kept = True

    reset = __init__

    def watch(self) -> None:
        """Start the thread that closes idle connections, once."""
        if self.watcher is None:
            self.watcher = _threading.Thread(target=self.close_idle, name="connections", daemon=True)
            self.watcher.start()

    def close_idle(self) -> None:
        while True:
            _time.sleep(_IDLE_SECONDS / 4)
            with self.lock:
                for key, (since, connection) in tuple(self.idle.items()):
                    if since < _now() - _IDLE_SECONDS:
                        del self.idle[key]
                        # httpx notices that it is closed, and opens a new one.
                        connection.close()


_connections = _Connections()
_thread = _ThreadState()
tokens: dict[str, dict[str, Any]] = {}


def _key_of(request: httpx.Request) -> tuple[str, httpx.URL, bytes]:
    """Return what tells one call of an API function from another."""
    body = b""
    # If it came from a generator, it has been read already.
    with _suppress(_httpx.StreamError):
        body = request.read()
    return request.method, request.url, body


def _note_failure(request: httpx.Request, error: Exception) -> None:
    """Remember that a call of the current API function has failed, in case the function hides it."""
    if _thread.app:
        _thread.failures[_key_of(request)] = error


class _Body(_httpx.SyncByteStream):
    """The body of a response, cut off at a deadline. httpx only limits the wait for the next byte (httpx#1450)."""

    def __init__(self, response: httpx.Response) -> None:
        self.body: Any = response.stream
        self.request, self.connection = response.request, response.extensions["network_stream"]

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self.body:
                if _now() > self.request.extensions["sent"] + API_DEADLINE:
                    raise _httpx.ReadTimeout(f"not complete after API_DEADLINE = {API_DEADLINE} s")
                yield chunk
        except Exception as error:
            _note_failure(self.request, error)
            raise

    def close(self) -> None:
        self.body.close()
        with _connections.lock:
            _connections.idle[self.request.extensions["key"]] = _now(), self.connection


class _GzipBody(_Body):
    """A gzip body of one or more members (RFC 1952, 2.2). httpx reads only the first, and does not notice a cut."""

    def __iter__(self) -> Iterator[bytes]:
        packed = b"".join(super().__iter__())
        try:
            yield _gzip.decompress(packed)
        except Exception as error:
            raise _httpx.DecodingError("the gzip body is damaged") from error


def _on_request(request: httpx.Request) -> None:
    """Check the access token of a call, limit its time to connect, and mark its connection as no longer idle."""
    app, header = _thread.app, request.headers.get("Authorization")
    owners = [each for each, session in tokens.items() if header == f"Bearer {session['access_token']}"]
    if owners and app not in (None, *owners):
        raise ConfigurationError(f"the call sends the token of {owners[0]}, but its decorator names {app}: use one")
    timeouts = request.extensions["timeout"]
    # This holds whatever the `timeout=` of the call says. None would wait for ever.
    for each, seconds in timeouts.items():
        timeouts[each] = min(seconds or API_DEADLINE, API_DEADLINE)
    timeouts["connect"] = min(timeouts["connect"], _CONNECT_SECONDS)
    if not _connections.are_kept:
        request.headers["Connection"] = "close"
    key = _threading.get_ident(), request.url.netloc
    with _connections.lock:
        _connections.idle.pop(key, None)
    request.extensions |= {"key": key, "sent": _now()}


def _note_reads(connection: Any) -> None:
    """Make a connection note when it was last read from."""
    read = connection.read

    def read_and_note(*arguments: Any, **options: Any) -> Any:
        connection.last_read = _now()
        return read(*arguments, **options)

    connection.read, connection.last_read = read_and_note, _now()
    _connections.opened.add(connection)


def _refuse_early(response: httpx.Response) -> None:
    """Raise if a response was there before its call was sent: it is a copy of the response to an earlier call."""
    connection = response.extensions["network_stream"]
    if not hasattr(connection, "last_read"):
        _note_reads(connection)
    if connection.last_read < response.request.extensions["sent"]:
        _connections.are_kept = False
        raise _httpx.RemoteProtocolError("the response came before its call")


def _on_response(response: httpx.Response) -> None:
    """Take over the body. Raises if the response is another call's, or encoded in a way that may lose data."""
    _refuse_early(response)
    encoding, body = response.headers.get("Content-Encoding", "").lower(), _Body
    if encoding in ("gzip", "x-gzip"):
        del response.headers["Content-Encoding"]
        body = _GzipBody
    elif _re.search("gzip|compress|deflate|br|zstd", encoding):
        raise _httpx.DecodingError(f"the response is encoded as {encoding}, not gzip")
    response.stream = body(response)


@_cache
def _shared_tls_context() -> _ssl.SSLContext:
    """Return the TLS context that all clients share: loading the CA certificates for each takes 30 ms of CPU."""
    try:
        context = _httpx.create_ssl_context()
    except OSError as error:
        path = _os.environ.get("SSL_CERT_FILE") or _os.environ.get("SSL_CERT_DIR")
        raise ConfigurationError(f"SSL_CERT_FILE = {path!r}: {error}; name a PEM file of CA certificates") from error
    if not _os.environ.get("SSL_CERT_FILE"):
        context.load_default_certs()
    context.set_alpn_protocols(["http/1.1"])
    # httpcore sets them again on each connect, which corrupts the handshakes of other threads (cpython#141012).
    context.set_alpn_protocols = lambda protocols: None  # type: ignore[method-assign, assignment]
    return context


class _Client(_httpx.Client):
    """A client that closes when its thread ends, but not in a forked child, where a lock that it needs may be held."""

    process = 0

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Make a call. Raises if it is refused."""
        try:
            if self.params:
                raise ConfigurationError("client.params applies to all functions: pass params= to the call instead")
            response = super().send(request, **options)
            _thread.status = response.status_code
            # A redirect that is not followed is no success either.
            if response.next_request or response.status_code in _REFUSED_STATUSES:
                response.read()
                response.raise_for_status()
        except Exception as error:
            _note_failure(request, error)
            raise
        if _thread.failures:
            _thread.failures.pop(_key_of(request), None)
        return response

    # When Python ends, the names of the module may be gone, but the defaults are not.
    def __del__(self, getpid: Any = _os.getpid, is_ending: Any = _sys.is_finalizing) -> None:
        if self.process == getpid() and not is_ending():
            self.close()


def get_httpx_client() -> httpx.Client:
    """Return the client of this thread, which is kept between calls. A shared one loses requests (httpcore#1110)."""
    if _thread.client is not None and not _thread.client.is_closed:
        return _thread.client
    # Without the lock, threads that start at the same time would each create a context.
    with _connections.lock:
        context = _shared_tls_context()
    client = _Client(
        verify=context,
        timeout=API_TIMEOUT,
        limits=_httpx.Limits(keepalive_expiry=_IDLE_SECONDS),
        # http:// is for this machine alone, and never goes through a proxy.
        mounts={"http://": None},
        headers={"Accept-Encoding": "gzip"},
        # Without a charset, httpx would put a question mark in the place of each letter that is not UTF-8.
        default_encoding=lambda content: content.decode() and "utf-8-sig",
        event_hooks={"request": [_on_request], "response": [_on_response]},
    )
    client.process = _os.getpid()
    # Keep no cookies: an expired one may override a good access token.
    client.cookies.extract_cookies = lambda response: None  # type: ignore[method-assign]
    _thread.client = client
    return client


def _complete(name: str, call: Callable[[], _T]) -> _T:
    """Return the result of `call`. Raises WrongValue if its code has not run, or if its error would end a loop."""
    try:
        result = call()
    except StopIteration as error:
        # A loop, such as that of map(), would take it for its own end (PEP 479), and leave out the rest.
        raise WrongValue(f"{name} raises StopIteration: give next() a default") from error
    if isinstance(result, (_abc.Generator, _abc.Coroutine, _abc.AsyncGenerator)):
        if isinstance(result, _abc.Coroutine):
            result.close()
        raise WrongValue(f"{name} returns a {type(result).__name__}: use return, not yield or async")
    return result


def _attempt(app: str | None, name: str, numbers: Iterator[int], call: Callable[[], _T]) -> _T:
    """Make one attempt at a call. It is counted, timed and, at DEBUG, logged."""
    _stop.check()
    number = next(numbers)
    outer = _thread.app, _thread.status, _thread.failures
    _thread.app, _thread.status, _thread.failures = app, 200, {}
    outcome, started = "ended", _now()
    try:
        result = _complete(name, call)
        # Otherwise, what could not be fetched would look like missing data.
        if _thread.failures:
            raise WrongValue(f"{name} hides the failure of a call")
        outcome = "ok"
        return result
    except Exception as error:
        # The failure of a call counts more than what the function makes of it.
        error = next(iter(_thread.failures.values()), error)
        outcome = _describe(error)
        # An empty 200 is a fault. Other empty responses are intended, and repeating a 201 may create something twice.
        if isinstance(error, _json.JSONDecodeError) and not error.doc and _thread.status != 200:
            raise WrongValue(f"HTTP {_thread.status}: {_NO_BODY}") from error
        raise error
    finally:
        seconds = _now() - started
        _thread.app, _thread.status, _thread.failures = outer
        _figures.count(name, "calls" if number == 1 else "retries", seconds)
        _logger.debug("%s attempt %d: %s in %.3f s", name, number, outcome, seconds)


# ==================================================================================================== Login and tokens

# The steps against a 401, each taken once: refresh, log in again, wait until the new token is known, give up. The wait
# is left to the call: nobody may sleep while the lock is held.
_NONE, _REFRESH, _LOGIN, _WAIT, _GIVE_UP = range(5)
# Seconds until a new token is known everywhere on the platform.
_NEW_TOKEN_SECONDS = 3
# Seconds: we assume that no token expires sooner. If refreshing works, one login in this time is enough for a service.
_LIFETIME_SECONDS = 60


def _check_enabled(app: str, user: str) -> None:
    """Raise ConfigurationError if a service that `user` needs is not in MICROSERVICES."""
    if app not in MICROSERVICES:
        raise ConfigurationError(f"{user}: {app} is not enabled; MICROSERVICES has {', '.join(MICROSERVICES)}")


def url_of(app: str, endpoint: str) -> str:
    """Return the address of an endpoint. Raises ConfigurationError if MICROSERVICES does not have it."""
    _check_enabled(app, endpoint)
    service, paths = MICROSERVICES[app], MICROSERVICES[app]["endpoints"]
    if endpoint not in paths:
        # A path may have been passed instead of a key, and contain an id.
        key = endpoint.partition("/")[0]
        raise ConfigurationError(f"{app} has no endpoint {key!r} in MICROSERVICES; it has {', '.join(paths)}")
    return f"{service['base_url'].rstrip('/')}/{paths[endpoint].lstrip('/')}"


class _WebPage(LoginError):
    """The response was a web page instead of tokens. Unlike a refusal, that may pass."""


def _refusal(app: str, endpoint: str, error: httpx.HTTPStatusError, user: str) -> LoginError:
    """Return an error that says why a call for tokens was refused, and how to fix it."""
    words, status = f"refused with {_describe(error)}", _status_of(error)
    if _is_web_page(error.response):
        return _WebPage(f"{words} at {error.request.url}: a firewall, a portal, or a wrong address")
    if status == 401 and endpoint == "login":
        return LoginError(f"{words} for user {user}: check EB_USER_NAME and EB_PASSWORD")
    if endpoint == "refresh_token":
        return LoginError(words)
    if status in (401, 403) and endpoint == "config_token":
        return LoginError(f"{words}: user {user} may not use {app}, or its app_id in MICROSERVICES is wrong")
    return LoginError(f"{words} at {error.request.url}; check the address")


def _checked_tokens(url: str, endpoint: str, answer: Any) -> dict[str, Any]:
    """Return a response that opens a session, with a token that fits into a header (RFC 6750), or raise LoginError."""
    session: dict[str, Any] = answer if isinstance(answer, dict) else {}
    token, user_id = session.get("access_token"), session.get("userId")
    if not isinstance(token, str) or not _re.fullmatch(r"[\x21-\x7e]+", token):
        raise LoginError(f"no usable access_token in the response of {url}; check the address; {_CHECK}")
    if endpoint == "login" and (type(user_id) not in (str, int) or user_id == ""):
        raise LoginError(f"no usable userId in the response of {url}; {_CHECK}")
    if not isinstance(session.get("refresh_token"), str):
        session.pop("refresh_token", None)
    return session


def _next_step(step: int, is_new: bool, is_enough: bool) -> int:
    """Return what to do about a 401 when `step` has been taken already.

    `is_new`: the token may not be known everywhere yet. `is_enough`: another login would not help.
    """
    if step == _NONE:
        return _REFRESH
    if step == _REFRESH and not is_enough:
        return _LOGIN
    if step < _WAIT and is_new:
        return _WAIT
    return _GIVE_UP


class _Sessions:
    """Logs in, and renews the tokens that the platform refuses (401).

    All threads whose calls were refused with the same token share one renewal.
    """

    def __init__(self) -> None:
        # Held while sessions are opened or tokens are renewed.
        self.lock = _threading.Lock()
        self.credentials: dict[str, str] = {}
        # Service -> when its tokens came.
        self.received: dict[str, float] = {}
        # Service -> the step that brought them for a refused call; _NONE once the service has accepted them.
        self.steps: dict[str, int] = {}
        # Service -> when a call that it refused last led to a login.
        self.last_login: dict[str, float] = {}
        tokens.clear()

    reset = __init__

    def log_in(self, user: str, password: str) -> None:
        """Open all sessions for a user."""
        with self.lock:
            self.credentials = {"username": user, "password": password}
            self.last_login.clear()
            try:
                self.open()
            except BaseException:
                # The tokens of another user may be left.
                tokens.clear()
                raise

    def open(self) -> None:
        """Open the session of IAM with the credentials, then all others with the access token of IAM."""
        self.open_one("IAM", "login", self.credentials)
        for app in MICROSERVICES:
            if app != "IAM":
                body = {"userId": tokens["IAM"]["userId"], "clientId": MICROSERVICES[app]["app_id"]}
                self.open_one(app, "config_token", body)

    def open_one(self, app: str, endpoint: str, body: dict[str, Any]) -> None:
        """Open the session of a service. Raises LoginError."""
        attempt, retryable = self.attempt(app, endpoint, body), _partial(self.may_pass, app)
        try:
            self.keep(app, _with_retries(f"{app}_{endpoint}", attempt, retryable))
        except (LoginError, _httpx.HTTPError, ValueError, RecursionError) as error:
            raise LoginError(f"{app} {endpoint}: {_describe(error)}") from error

    def attempt(self, app: str, endpoint: str, body: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        """Return a function that makes a call for tokens."""
        call = _partial(self.post, app, endpoint, body)
        return _partial(_attempt, None, f"{app}_{endpoint}", _itertools.count(1), call)

    def post(self, app: str, endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
        """Make one call for tokens, and return its response. Raises LoginError if it is refused."""
        url, headers, client = url_of(app, endpoint), {}, get_httpx_client()
        # An API function may have set one for all calls.
        client.headers.pop("Authorization", None)
        if endpoint == "config_token":
            headers["Authorization"] = f"Bearer {tokens['IAM']['access_token']}"
        try:
            response = client.post(url, json=body, headers=headers, timeout=API_TIMEOUT)
            response.raise_for_status()
        except _httpx.HTTPStatusError as error:
            if _is_retryable(error):
                raise
            raise _refusal(app, endpoint, error, self.credentials["username"]) from error
        if _is_web_page(response):
            raise _WebPage(f"answered by a web page at {url}: a firewall, a portal, or a wrong address")
        return _checked_tokens(url, endpoint, response.json())

    def may_pass(self, app: str, error: Exception) -> bool:
        """Return whether another attempt to open a session may work."""
        if isinstance(error, _WebPage):
            # At the first login, somebody is waiting. Later on, the page may come from an outage that passes.
            return bool(self.last_login)
        if _status_of(error.__cause__) == 401 and app != "IAM":
            # The service may not know the access token of IAM yet.
            return _now() < self.received["IAM"] + _NEW_TOKEN_SECONDS
        return _is_retryable(error)

    def refresh(self, app: str) -> bool:
        """Refresh the tokens of a service, and return whether that worked. A refresh token is never sent twice."""
        # It is removed before it is sent, in case a signal interrupts.
        spent = tokens[app].pop("refresh_token", None)
        if not spent or "refresh_token" not in MICROSERVICES[app]["endpoints"]:
            return False
        try:
            answer = self.attempt(app, "refresh_token", {"refresh_token": spent})()
        except Exception as error:
            _logger.warning("%s refresh_token: %s; logging in again", app, _describe(error))
            return False
        # If the response has no new refresh token, the old one stays valid (RFC 6749, section 6).
        self.keep(app, {"refresh_token": spent, **answer})
        _logger.info("%s: access token renewed", app)
        return True

    def keep(self, app: str, answer: dict[str, Any]) -> None:
        """Make the tokens of a response the current ones."""
        # Mask all of them again, since only the newest secrets are kept.
        _keep_secret(self.credentials["password"])
        for session in (*tokens.values(), answer):
            _keep_secret(session["access_token"])
            _keep_secret(session.get("refresh_token", ""))
        self.received[app], self.steps[app] = _now(), _NONE
        # This comes last, as calls now use these tokens. It is always a new dict: `renew` compares dicts, not tokens.
        tokens[app] = answer

    def with_renewals(self, app: str, name: str, call: Callable[[], _T]) -> _T:
        """Return the result of `call`, which is repeated with new tokens after a 401."""
        step = _NONE
        while True:
            session, sent = tokens.get(app), _now()
            try:
                result = call()
                self.accept(app, session)
                return result
            except _httpx.HTTPStatusError as error:
                if _status_of(error) != 401:
                    # A 503 may come from a proxy, which does not look at tokens.
                    if not _is_retryable(error):
                        self.accept(app, session)
                    raise
                # An API function that is called by this one has tried everything.
                if _given_up_by(error):
                    raise
                step = self.renew(app, name, session, sent, step, error)
                if step == _WAIT:
                    _stop.sleep(self.received[app] + _NEW_TOKEN_SECONDS - _now())

    def accept(self, app: str, session: object) -> None:
        """Note that a service has accepted these tokens, as its response was not a 401."""
        if tokens.get(app) is session:
            self.steps[app] = _NONE

    def renew(self, app: str, name: str, session: object, sent: float, step: int, error: httpx.HTTPStatusError) -> int:
        """Take the next step for a refused call, unless another thread has taken it; return the last step of this call.

        Raises the error if no step is left, because it is not about the tokens then.
        """
        with self.lock:
            _stop.check()
            if tokens.get(app) is not session:
                return step
            if sent < self.received[app] + _LIFETIME_SECONDS:
                # The tokens cannot have expired, so what was tried for another call counts for this one, too.
                step = max(step, self.steps[app])
            is_new = sent < self.received[app] + _NEW_TOKEN_SECONDS
            # If refreshed tokens work, or may not be known yet, do not log in twice in a short time.
            may_work = is_new or self.steps[app] == _NONE
            is_enough = may_work and _now() < self.last_login.get(app, -_math.inf) + _LIFETIME_SECONDS
            step = _next_step(step, is_new, is_enough)
            if step == _REFRESH and not self.refresh(app):
                step = _LOGIN
            if step == _LOGIN:
                self.open_again(app)
            if step in (_REFRESH, _LOGIN):
                _figures.count(name, "renewals")
                self.steps[app] = step
        if step == _GIVE_UP:
            error.args = (f"HTTP 401: {app} refuses what the call asks for, with new tokens, too",)
            raise error
        return step

    def open_again(self, app: str) -> None:
        """Open all sessions anew because a service refused a call. If that is refused, too, end the run."""
        self.last_login[app] = _now()
        try:
            self.open()
        except LoginError as failure:
            _stop.request(1, str(failure))
            _stop.check()


_sessions = _Sessions()


def _address_problem(url: str) -> str:
    """Return what is wrong with a base_url, or "" if nothing is."""
    if "@" in url:
        return "the address has a user and a password in it: leave them out"
    scheme = host = ""
    # This raises InvalidURL, or whatever the codec for international host names raises.
    with _suppress(Exception):
        # Read the address as calls will read it.
        scheme, host = _httpx.URL(url).scheme, _httpx.URL(url).host
    if host.endswith(".example") or host == "...":
        return f"{url!r} is a placeholder"
    if scheme not in ("http", "https") or not host.strip(".") or _re.search(r"[\s?#]", url):
        return f"{url!r} is not an address like https://host/path"
    if scheme == "http" and not _re.fullmatch(r"localhost|127(\.\d+){3}|::1", host):
        return f"{url!r} would send password and tokens unencrypted: use https://"
    return ""


def _check_proxies() -> None:
    """Raise ConfigurationError if the password of a proxy is not percent-encoded: errors would show part of it."""
    for scheme, address in _proxies.getproxies().items():
        if scheme in ("http", "https", "all") and not _re.fullmatch(r"(\w+://)?([^@/?#\s]*@)?[^@/?#\s]+/?", address):
            raise ConfigurationError(f"{scheme.upper()}_PROXY: percent-encode #, /, ? and @ in its user and password")
    try:
        get_httpx_client()
    except (ImportError, ValueError, _httpx.InvalidURL) as error:
        raise ConfigurationError(f"HTTPS_PROXY, ALL_PROXY or NO_PROXY cannot be used: {error}") from error


def _check_constants() -> None:
    """Raise ConfigurationError if a constant has a value that cannot work."""
    for names, kinds, low, fix in (
        ("MAX_THREADS SUBTASKS_POOL_SIZE ERROR_MAX_RETRY", (int,), 1, "a whole number, 1 or more"),
        ("API_TIMEOUT API_DEADLINE", (int, float), 0.001, "a number, 0.001 or more"),
        ("WAIT_BEFORE_RETRY MAX_WAIT_BEFORE_RETRY", (int, float), 0, "a number, 0 or more"),
        ("LOG_LEVEL", (int,), 0, "logging.INFO or logging.DEBUG"),
    ):
        for name in names.split():
            value: Any = _NAMES.get(name)
            if type(value) not in kinds or not low <= value < _math.inf:
                raise ConfigurationError(f"{name} = {value!r}: give {fix}")
    for name in ("DEFAULT_USER_NAME", "DEFAULT_PASSWORD"):
        if not isinstance(_NAMES.get(name), str):
            raise ConfigurationError(f"{name} is not text: put it in quotes")


def _check_services() -> None:
    """Raise ConfigurationError if MICROSERVICES cannot work."""
    if "IAM" not in MICROSERVICES:
        raise ConfigurationError("MICROSERVICES has no IAM: put its entry back, every login goes through it")
    problems: dict[str, str] = {}
    for app, service in MICROSERVICES.items():
        for key, kind in {"app_id": str, "base_url": str, "endpoints": dict}.items():
            if not isinstance(service.get(key), kind):
                raise ConfigurationError(f"MICROSERVICES: {key} of {app} is {service.get(key)!r}: set it as others do")
        if problem := _address_problem(service["base_url"]):
            problems[f"EB_{app}_URL"] = problem
        # This raises if there is no such endpoint.
        url_of(app, "login" if app == "IAM" else "config_token")
    if problems:
        words = f"set {', '.join(problems)}: {next(iter(problems.values()))}"
        if len(problems) == len(MICROSERVICES):
            words += f"; or try python3 tests/sandbox.py {_script_name()}.py"
        raise ConfigurationError(words)


def _ask(variable: str, question: str, default: str, read: Callable[[str], str] = input) -> str:
    """Return a setting from the environment, else as typed by somebody who can see the question, else the default."""
    value = _os.environ.get(variable, "")
    if value or not _is_terminal(_sys.stdin) or not _is_terminal(_sys.stderr):
        return value or default
    # Ask on stderr, as stdout may be a data file.
    with _suppress(EOFError), _redirect_stdout(_sys.stderr):
        try:
            value = read(question)
        except BaseException:
            # End the line of the question.
            _sys.stderr.write("\n")
            raise
    return value or default


def _ask_threads() -> int:
    """Return the size of the main pool. Raises ConfigurationError if it is not a number, or out of range."""
    threads = _ask("EB_THREADS", f"Threads, 1 to {MAX_THREADS} [{MAX_THREADS}]: ", str(MAX_THREADS))
    if threads in map(str, range(1, MAX_THREADS + 1)):
        return int(threads)
    if not _os.environ.get("EB_THREADS"):
        # It may be the password, typed too early.
        _keep_secret(threads)
    raise ConfigurationError(f"EB_THREADS = {threads!r}: give a whole number from 1 to {MAX_THREADS} (MAX_THREADS)")


# =========================================================================================================== API calls

_NO_IDS = ("", ".", "..", "nan", "nat", "none", "null", "<na>")


def identifier(value: str | int) -> str | int:
    """Return an id for a call. Raises WrongValue for a value that would ask for something else, such as "" or ".."."""
    if isinstance(value, str) and value.isprintable() and value == value.strip() and value.lower() not in _NO_IDS:
        return value
    # A numpy integer is not an int, but has __index__.
    if isinstance(value, _typing.SupportsIndex) and not isinstance(value, bool):
        return value.__index__()
    kind = type(value).__name__
    raise WrongValue(f"this {kind} is not an id: pass an integer or a text, not empty and without blanks around it")


def path_segment(value: str | int) -> str:
    """Return an id, percent-encoded for use in a path."""
    return _url.quote(str(identifier(value)), safe="")


def require_id(answer: dict[str, Any], key: str, value: str | int) -> dict[str, Any]:
    """Return a response whose `key` is the id that you asked for, or raise WrongValue: it may be another call's."""
    if answer.get(key) is None or str(answer[key]) != str(value):
        raise WrongValue(f"the response has no {key}, or not the one that you asked for; {_CHECK}")
    return answer


def _query_of(params: Any) -> str:
    """Return a query string, without what is None: httpx would send an empty value, which finds nothing."""
    if isinstance(params, (str, _httpx.QueryParams)):
        return str(params).lstrip("?")
    if isinstance(params, _abc.Mapping):
        params = params.items()
    pairs: list[tuple[str, Any]] = []
    for key, value in params:
        if value is None:
            continue
        values = [value]
        if isinstance(value, _abc.Iterable) and not isinstance(value, (str, bytes)):
            values = [each for each in value if each is not None]
        # Without its values, the parameter would ask for everything. NaN alone differs from itself.
        if not values or isinstance(value, _abc.Mapping) or any(each != each for each in values):
            raise WrongValue(f"the parameter {key} needs a value or a list of values; pass None to leave it out")
        pairs += [(key, each) for each in values]
    return str(_httpx.QueryParams(pairs))


def call_endpoint(
    app: str, method: str, endpoint: str, expected: type[_T], suffix: str = "", params: Any = (), **options: Any
) -> _T:
    """Make one call with the access token of a service, and return its JSON.

    `expected` is the type of the response, dict or list. `suffix` is added to the path, `params` become the query, and
    `options`, such as json= and timeout=, go to httpx. Raises httpx.HTTPError, and WrongValue for a wrong response.
    """
    if _re.search(r"[?#]|/\.\.?(/|$)", suffix):
        raise WrongValue(f"{app} {endpoint}: the suffix leads to another path: put ids into it by path_segment()")
    address, _, query = url_of(app, endpoint).partition("?")
    headers = {"Authorization": f"Bearer {tokens[app]['access_token']}"}
    # httpx would replace the query of an endpoint by `params`.
    query = "&".join(filter(None, (query, _query_of(params or ()))))
    url = f"{address}{suffix}?{query}" if query else f"{address}{suffix}"
    response = get_httpx_client().request(method, url, headers=headers, **options)
    response.raise_for_status()
    body: Any = response.json()
    if not isinstance(body, expected):
        kind = type(body).__name__
        raise WrongValue(f"{app} {endpoint}: the response is a {kind}, not a {expected.__name__}; {_CHECK}")
    if isinstance(body, dict) and body.get("error"):
        raise WrongValue(f"{app} {endpoint}: the response is an error with HTTP {response.status_code}; {_CHECK}")
    return body


def _check_call(app: str, name: str, arguments: Iterable[Any]) -> None:
    """Raise an error if a call cannot work, or could not be repeated."""
    _stop.check()
    _check_enabled(app, name)
    if app not in tokens:
        raise ConfigurationError(f"{name}: {app} has no access token yet: call login() first")
    for value in arguments:
        if isinstance(value, _abc.Iterator) or hasattr(value, "read"):
            kind = type(value).__name__
            raise WrongValue(f"{name}: a {kind} would be empty at the second attempt: pass a list, bytes or a path")


def api_call_with_retry(app: str, *, idempotent: bool = True) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Decorate a function that calls a service: renew its tokens after a 401, and retry what may pass.

    If a call fails, the function fails, even if it catches the exception. After the last attempt, that exception is
    raised as it is. Pass `idempotent=False` if the call creates something. It is then repeated only if it cannot have
    been carried out, and the function must make one call only.
    """
    if not isinstance(app, str):
        raise WrongValue('name the service that the function calls: @api_call_with_retry("RC")')
    retryable = _partial(_is_retryable, idempotent=idempotent)

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        name = function.__name__

        @_wraps(function)
        def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            _check_call(app, name, (*args, *kwargs.values()))
            attempt = _partial(_attempt, app, name, _itertools.count(1), _partial(function, *args, **kwargs))
            return _with_retries(name, lambda: _sessions.with_renewals(app, name, attempt), retryable)

        return wrapper

    return decorate


def rows_on(page: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows on a page {"data": [...], ...}. Raises WrongValue if it is not such a page."""
    rows = page.get("data")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise WrongValue(f"the page is not {{'data': [{{...}}, ...]}}; {_CHECK}")
    return rows


def every_page(fetch: Callable[[int, int], dict[str, Any]], key: str, limit: int = 1000) -> list[dict[str, Any]]:
    """Return all rows of a paged endpoint, each of them once. `key` tells one row from another.

    `fetch(limit, page)` returns {"data": [...], "total": n}; pages start at 1. Pages are requested until one has no new
    rows, since `total` may count a single page. Raises WrongValue rather than return a short or a doubled list. If a
    row is deleted and another one is created meanwhile, nothing shows it.
    """
    rows: dict[Any, dict[str, Any]] = {}
    number, total = 0, None
    while True:
        number += 1
        page = fetch(limit, number)
        found = {row.get(key): row for row in rows_on(page)}
        new = found.keys() - rows.keys()
        if number == 1:
            total = page.get("total")
            # A server may cap pages, and count them by our limit or by its own. From now on the two are the same.
            limit = len(found)
        if not new and len(rows) == page.get("total") == total:
            return list(rows.values())
        is_whole = len(found) == len(page["data"]) == len(new) > 0 and None not in found
        # When a row is deleted, all later ones move up, and one of them moves to a page that was read before.
        if not is_whole or type(total) is not int or page.get("total") != total or len(rows) + len(new) > total:
            sizes = f"{len(rows)} rows before it, {len(new)} new ones with a {key}, total {total!r}"
            raise WrongValue(f"page {number} does not fit: {sizes}, then {page.get('total')!r}: run again; {_CHECK}")
        rows |= found


def _describe_with_line(error: BaseException) -> str:
    """Describe an exception in a few words, with the line of the script that led to it, outside its API functions."""
    place = ""
    for frame, line in _traceback.walk_tb(error.__traceback__):
        if frame.f_code is _attempt.__code__:
            break
        is_engine = frame.f_globals is _NAMES and line in _ENGINE_LINES
        if frame.f_globals.get("__name__") == "__main__" and not is_engine:
            place = f" ({_os.path.basename(frame.f_code.co_filename)} line {line})"
    return _describe(error) + place


# ====================================================================================================== Pools and bars

_LOG_EVERY = 30


def _retries_in_words() -> str:
    """Return for a progress bar how many retries there were, and how many calls wait for one."""
    words = []
    if retries := _figures.total("retries"):
        words.append(f"{retries:,} retries")
    waiting = list(_stop.waiting.values())
    wait = min(waiting, default=0) - _now()
    # A wait of less than a second is not worth mentioning.
    if wait > 1:
        words.append(f"{len(waiting)} waiting, next in {wait:.0f} s")
    return ", ".join(words)


class _Bar(_tqdm.tqdm):  # type: ignore[type-arg]
    """The progress bar. Without a terminal it draws nothing, and writes its state to the log now and then."""

    # Whether the run is over: no bar may appear below the closing line.
    is_over = False
    tells_retries = False

    def __init__(self, *args: Any, **options: Any) -> None:
        self.is_drawn = _is_terminal(_sys.stderr) or hasattr(_sys, "ps1")
        self.next_line = _now() + _LOG_EVERY
        if not self.is_drawn:
            options["file"] = _io.StringIO()
        # Only the topmost bar stays on the screen: a lower one would leave gaps.
        options.setdefault("leave", None)
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.tells_retries:
            self.postfix = _retries_in_words()
        if self.is_drawn and not _Bar.is_over:
            super().display(msg, pos)
            # The next line, or the echo of Ctrl-C, starts at the left.
            self.fp.write("\r")
        elif not self.is_drawn and msg is None and _now() >= self.next_line:
            self.next_line = _now() + _LOG_EVERY
            _logger.info(str(self))


tqdm = _Bar
# The lock that tqdm would create works across processes. From Python 3.14 on, that starts another process.
_tqdm.tqdm.set_lock(_threading.RLock())


def get_thread_position() -> int:
    """Return the row for the bar of this thread (`position=`): 1, 2, ... in the workers of both pools, 0 elsewhere."""
    return _thread.position


def _note_unheard(words: str, error: BaseException) -> None:
    """Log a failure that nobody can ask about. The exit code becomes 1, since the work that it ended is missing."""
    _stop.unheard[object()] = words
    _logger.error(words, extra={"failure": error})


def _call_back(function: Callable[[Any], object], future: _futures.Future[Any]) -> None:
    """Call a callback of a future, and note its failure."""
    try:
        function(future)
    except (RunStopped, KeyboardInterrupt):
        raise
    except BaseException as error:
        _note_unheard(f"a callback: {_describe_with_line(error)}", error)


class _Task(_futures.Future[_T]):
    """The future of a task. To ask for its result or its exception is to hear of its failure."""

    # Its key in _stop.unheard. The future itself would keep everything alive that its traceback refers to.
    key: object = None
    # The `with` block that waits for it.
    block: object = None

    def add_done_callback(self, fn: Callable[[_futures.Future[_T]], object]) -> None:
        super().add_done_callback(_partial(_call_back, fn))

    def result(self, timeout: float | None = None) -> _T:
        try:
            self.exception(timeout)
            return super().result()
        finally:
            # As in _carry_out.
            del self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        error = super().exception(timeout)
        _stop.unheard.pop(self.key, None)
        return error


def _carry_out(future: _Task[_T], function: Callable[..., _T], args: Any, kwargs: Any) -> None:
    """Run a task, unless the run is ending. Log its failure, in case the script does not ask for its result."""
    if not future.set_running_or_notify_cancel():
        return
    name = getattr(function, "__name__", "?")
    try:
        _stop.check()
        future.set_result(_complete(name, _partial(function, *args, **kwargs)))
    except BaseException as error:
        failure = error
        if isinstance(error, SystemExit):
            failure = TemplateError("a task has called sys.exit(); only main() can")
        # A log handler of the script may raise.
        with _suppress(Exception):
            if not isinstance(failure, RunStopped):
                future.key = object()
                words = _stop.unheard[future.key] = f"task {name}: {_describe_with_line(failure)}"
                # API functions log their failures themselves.
                if not _given_up_by(failure):
                    _logger.info(words)
        future.set_exception(failure)
        # The traceback of the failure refers to this frame, which would keep them and the data of the task alive.
        del future, failure


def _cancel(futures: Iterable[_futures.Future[Any]]) -> None:
    """Cancel tasks. The failures of those that have begun already are of no interest any more."""
    for future in tuple(futures):
        if not future.cancel():
            future.add_done_callback(lambda ended: ended.exception())


# The block of tasks that tasks, and threads other than the main one, submit outside a `with`.
_OUTSIDE = object()


class _ThreadPool(_futures.Executor):
    """A pool of threads that can be used any number of times, from any thread, without a deadlock.

    Work only goes down: from the main thread (depth 0) to the main pool (1) to the subtasks pool (2). A submit to the
    same pool or up runs inline, in the submitting thread: a task that waited for a place in its own pool might hold the
    very place that it waits for.
    """

    def __init__(self, name: str, depth: int, size: int) -> None:
        self.name, self.depth, self.size = name, depth, size
        self.reset()

    def reset(self) -> None:
        """Start anew, and forget all threads and tasks."""
        self.lock = _threading.Lock()
        self.tasks: _queue.SimpleQueue[Any] = _queue.SimpleQueue()
        # How many threads take tasks. They are started one by one, until there are `size`.
        self.threads = 0
        # The tasks that are queued or in progress, including the callbacks of their futures.
        self.pending: set[_Task[Any]] = set()

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _futures.Future[_T]:
        future: _Task[_T] = _Task()
        if _thread.depth >= self.depth or _stop.reasons:
            _carry_out(future, fn, args, kwargs)
            return future
        if blocks := _thread.blocks[self.depth]:
            future.block = blocks[-1]
        elif not _thread.is_main:
            future.block = _OUTSIDE
        with self.lock:
            if self.threads < self.size:
                name, arguments = f"{self.name}_{self.threads}", (self.tasks, self.threads + 1)
                _threading.Thread(target=self.work, args=arguments, name=name, daemon=True).start()
                self.threads += 1
            self.tasks.put((future, fn, args, kwargs))
            # This comes last: a Ctrl-C in between loses sight of the task, but never waits for one that was not queued.
            self.pending.add(future)
        return future

    def work(self, tasks: Any, number: int) -> None:
        """Run tasks until None comes.

        The threads are daemons, so Python does not wait for one that is blocked. `run` waits for the tasks.
        """
        _thread.depth = self.depth
        _thread.position = number + sum(pool.size for pool in _POOLS if pool.depth < self.depth)
        for future, *task in iter(tasks.get, None):
            # A callback raises if the run is ending, and so may a log handler of the script.
            with _suppress(BaseException):
                _carry_out(future, *task)
            with self.lock:
                self.pending.discard(future)
            del future, task

    def tasks_of(self, block: object) -> list[_Task[Any]]:
        """Return the pending tasks of a block, or all if it is None."""
        return [task for task in self.pending.copy() if block in (None, task.block)]

    def wait_for(self, block: object) -> None:
        """Wait until the tasks of a block are over, but only until the grace period is over if the run is ending."""
        for task in self.tasks_of(block):
            while task in self.pending and not task.cancelled() and _stop.grace_left() > 0:
                # Wait in steps: on Windows, a long wait does not hear Ctrl-C.
                _futures.wait([task], timeout=0.2)
                # A future is done before its callbacks are.
                _time.sleep(0.001)

    def leave(self, block: object) -> None:
        """Wait for a block. The main thread also waits for tasks outside all blocks, in this pool and below."""
        self.wait_for(block)
        for pool in _POOLS:
            if _thread.is_main and pool.depth >= self.depth:
                pool.wait_for(_OUTSIDE)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel or await the tasks of the innermost `with` of this thread, or all if there is none.

        You can go on using the pool.
        """
        blocks = _thread.blocks[self.depth]
        block = blocks[-1] if blocks else None
        if cancel_futures:
            _cancel(self.tasks_of(block))
        # A task would wait for itself, or for a task that waits for it.
        if wait and _thread.depth < self.depth:
            self.leave(block)
        elif blocks:
            # As if a new block began: the end of the `with` does not wait for these tasks either.
            blocks[-1] = object()

    def __enter__(self) -> _ThreadPool:
        _thread.blocks[self.depth].append(object())
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        # A generator that contains the `with` may be closed by another thread, which has no block.
        block = (_thread.blocks[self.depth] or [object()]).pop()
        if kind is not None and not issubclass(kind, (SystemExit, GeneratorExit)):
            _cancel(self.tasks_of(block))
        self.leave(block)
        # Otherwise the script would go on without the tasks that were dropped.
        if kind is None:
            _stop.check()

    def renew_threads(self) -> None:
        """Let the threads end when the queued tasks are done. The next submit starts new ones, up to `size`."""
        with self.lock:
            for _ in range(self.threads):
                self.tasks.put(None)
            self.threads, self.tasks = 0, _queue.SimpleQueue()


main_thread_pool = _ThreadPool("main", 1, MAX_THREADS)
subtasks_thread_pool = _ThreadPool("subtasks", 2, SUBTASKS_POOL_SIZE)
_POOLS = (main_thread_pool, subtasks_thread_pool)


def _id_of(item: object) -> str:
    """Return what names an item in the log file: the item if it is an id, or its `id` or first key that ends in Id."""
    if isinstance(item, dict):
        ids = (value for key, value in item.items() if str(key).endswith("Id"))
        item = item.get("id", next(ids, None))
    if isinstance(item, (str, int)):
        return f" (id {item})"
    return ""


def _log_failed_item(number: int, item: object, error: Exception, goes_on: bool) -> None:
    words = f"failed on item {number}: {_describe_with_line(error)}"
    level = _logging.WARNING if goes_on else _logging.ERROR
    _logger.log(level, words, extra={"private": _id_of(item)})


def _check_begun(begun: list[bool], name: str) -> None:
    """Log an error if nobody has looped over a `run_parallel`."""
    if not begun:
        _logger.error("run_parallel(%s, ...) has done nothing: loop over it, or take list(run_parallel(...))", name)


def _results_of(function: Any, items: Any, desc: str, return_exceptions: bool, begun: list[bool]) -> Iterator[Any]:
    """Yield what `run_parallel` promises, with a bar and few items in flight: a queued task takes 2 KB."""
    begun.append(True)
    pool = subtasks_thread_pool if _thread.depth else main_thread_pool
    window = 2 * pool.size if _thread.depth < pool.depth else 1
    source, submitted = iter(items), 0
    in_flight: dict[_futures.Future[Any], tuple[int, Any]] = {}
    finished: _queue.SimpleQueue[Any] = _queue.SimpleQueue()
    with _Bar(items, desc=desc, bar_format=custom_bar_format) as bar, _ExitStack() as stack:
        stack.callback(_cancel, in_flight)
        bar.tells_retries = True
        while True:
            free = window - len(in_flight)
            # A list may still grow, but its iterator would not go on once it has ended.
            more = items[submitted : submitted + free] if isinstance(items, list) else _itertools.islice(source, free)
            for item in more:
                submitted += 1
                future = pool.submit(function, item)
                in_flight[future] = submitted, item
                future.add_done_callback(finished.put)
            if isinstance(items, list) and len(items) < submitted:
                raise WrongValue("the list of items has shrunk: some items were left out")
            if not in_flight:
                return
            try:
                # Wait in steps: see _ThreadPool.wait_for.
                future = finished.get(timeout=0.2)
            except _queue.Empty:
                _stop.check()
                bar.refresh()
                continue
            number, item = in_flight.pop(future)
            bar.update()
            error = future.exception()
            if isinstance(error, Exception):
                _log_failed_item(number, item, error, return_exceptions)
                if return_exceptions:
                    yield item, error
                    continue
            yield item, future.result()


def run_parallel(
    function: Callable[[_Item], _T], items: Iterable[_Item], desc: str = "", return_exceptions: bool = False
) -> Iterator[tuple[_Item, _T]]:
    """Yield `(item, function(item))` as they finish, with a progress bar. Nothing runs until you loop over it.

    The calls run on the main pool, or on the subtasks pool if you are in a task. `items` may be endless, as few are in
    flight. The first failure cancels the rest and is raised, and the log names its item. With `return_exceptions=True`,
    the exception takes the place of the result.
    """
    begun: list[bool] = []
    results = _results_of(function, items, desc, return_exceptions, begun)
    _weakref.finalize(results, _check_begun, begun, getattr(function, "__name__", "function"))
    return results


# ================================================================================================================ JSON

_MISSING: Any = object()


def _children(node: Any, key: Any, gap: list[Any]) -> Iterable[Any]:
    """Return the nodes that a key leads to from a node, or `gap` if there are none."""
    # A text has no nodes, although it can be indexed.
    if not isinstance(node, (dict, list)):
        return gap
    if key == "*":
        return node.values() if isinstance(node, dict) else node
    with _suppress(LookupError, TypeError):
        # A defaultdict would add a key that it lacks.
        if isinstance(node, list) or key in node:
            return [node[key]]
    return gap


def get_nested_value(data: Any, path: Sequence[str | int], default: Any = _MISSING) -> Any:
    """Return the value at `path` in nested JSON: keys, list indices, and "*" for every element of a list or dict.

    Without "*", you get the value, or the default (None if you give none). With "*", you get a flat list of the nodes
    that the JSONPath query (RFC 9535) of these segments has. If you give a default, it stands for each missing node.
    """
    if isinstance(path, str):
        raise WrongValue(f"the path is a list of keys, as [{path!r}], not the text {path!r}")
    nodes, path = [data], list(path)
    # What stands for a missing node: nothing, but after a "*" a place for the default, if there is one.
    gap: list[Any] = []
    for key in path:
        nodes = [child for node in nodes for child in _children(node, key, gap)]
        if key == "*" and default is not _MISSING:
            gap = [_MISSING]
    if "*" in path:
        return [default if node is _MISSING else node for node in nodes]
    if nodes:
        return nodes[0]
    return None if default is _MISSING else default


# ================================================================================================================= Run

# The events that the closing line counts.
_EVENTS = {"call": "calls", "retry": "retries", "failure": "failures"}
_STOP_SIGNALS = [signal for signal in _signal.Signals if signal.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")]


def _names_problem() -> str:
    """Return what is wrong if the script replaces names that the engine needs, or "". It must use none of them here."""
    if replaced := [name for name in _NEEDED if _NAMES.get(name, _NEEDED[name]) is not _NEEDED[name]]:
        return f"the script replaces {', '.join(replaced)}, which the engine needs: rename it"
    return ""


def login() -> None:
    """Read the credentials or ask for them, log in to IAM, and open a session on every enabled service.

    In a notebook, call it instead of `run`. Raises ConfigurationError before anything is sent, and LoginError if the
    platform refuses the login.
    """
    # In a notebook, a refused renewal may have stopped all calls.
    if not _stop.is_running:
        _stop.reset()
    if problem := _names_problem():
        raise ConfigurationError(problem)
    _check_constants()
    _check_services()
    _check_proxies()
    user = _ask("EB_USER_NAME", f"User name [{DEFAULT_USER_NAME}]: ", DEFAULT_USER_NAME)
    threads = _ask_threads()
    password = _ask("EB_PASSWORD", "Password: ", DEFAULT_PASSWORD, _getpass.getpass)
    if not password:
        raise ConfigurationError("EB_PASSWORD is empty: set it, or type the password in a terminal")
    if _re.search("[\ud800-\udfff]", user + password):
        raise ConfigurationError("EB_USER_NAME or EB_PASSWORD is not UTF-8 text: set it in a UTF-8 locale")
    _keep_secret(password)
    main_thread_pool.size = threads
    for pool in _POOLS:
        pool.renew_threads()
    for name in _QUIET_LOGGERS:
        _logging.getLogger(name).setLevel(_logging.WARNING)
    _logger.info("user %s, %d threads, services %s", user, threads, ", ".join(MICROSERVICES))
    _connections.watch()
    _sessions.log_in(user, password)
    # Most of the calls to come are made by other threads.
    get_httpx_client().close()


def _stop_by(signal: int) -> None:
    """End the run because of a signal; Ctrl-Break counts as Ctrl-C."""
    name = _signal.Signals(signal).name
    if name == "SIGBREAK":
        signal = _signal.SIGINT
    _stop.request(128 + signal, f"stopped by {name}")


def _on_signal(signal: int, frame: FrameType | None) -> None:
    """Interrupt the script in the main thread, once, so that its `finally` blocks run."""
    _stop_by(signal)
    if _stop.may_interrupt:
        _stop.may_interrupt = False
        raise KeyboardInterrupt


def _outcome_of(ending: BaseException) -> tuple[int, str]:
    """Return the exit code and the closing words for the exception that ends `main` or a thread of the script."""
    match ending:
        case SystemExit(code=None | int(0)):
            return 0, "done"
        case SystemExit(code=int(code)):
            # The system keeps only eight bits: 256 would become 0.
            return code if 0 < code < 256 else 1, f"exit {code}"
        case KeyboardInterrupt():
            # Ctrl-C at the password prompt on Windows is not a signal.
            return 128 + _signal.SIGINT, "stopped by SIGINT"
        case ConfigurationError():
            return 2, str(ending)
        case LoginError() | SystemExit(code=str()):
            return 1, str(ending) or "failed"
    words = _describe_with_line(ending)
    if name := _given_up_by(ending):
        words = f"{name}: {words}"
    if _status_of(ending) in (302, 403, 404):
        words += f"; {_CHECK}"
    return 1, f"failed: {words}"


def _on_unheard(caught: Any) -> None:
    """Note an exception that ends a thread of the script, or comes from a `__del__` or from a discarded generator."""
    failure = caught.exc_value
    if failure is None or isinstance(failure, RunStopped):
        return
    code, words = _outcome_of(failure)
    if code:
        _note_unheard(f"outside main(): {words.removeprefix('failed: ')}", failure)


def _in_time(seconds: float, function: Callable[[], object]) -> None:
    """Call a function in a thread, and wait for a limited time: a lock or a full pipe may block it for ever."""
    thread = _threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)


def _flush(stream: Any) -> None:
    """Write out what a stream has buffered. If that fails for the output of the script, the run has failed."""
    # Under pythonw, there is no stream.
    if not hasattr(stream, "flush"):
        return
    try:
        stream.flush()
    except (OSError, ValueError) as error:
        if stream is _sys.stdout:
            _stop.request(1, f"failed: standard output: {error}")
        # Python flushes again at exit, and would report the same error.
        with _suppress(OSError, ValueError):
            _os.dup2(_os.open(_os.devnull, _os.O_WRONLY), stream.fileno())


def _watch_signals(receiver: _socket.socket, write_end: Callable[[], None]) -> None:
    """Stop the run at the first signal, and end the process at a second Ctrl-C or when the grace period is over.

    This thread hears signals at once. Only the main thread runs handlers, and it may be blocked: in the look-up of a
    host, on Windows in any call or wait (cpython#85609), or in a `finally` or `except` of the script.
    """
    is_stopping = False
    # The main thread gets 0.2 s more, to end the run itself.
    while not is_stopping or _stop.grace_left() > -0.2:
        with _suppress(TimeoutError):
            heard = receiver.recv(1)
            # The run is over.
            if not heard:
                return
            signal = heard[0]
            # The script has a handler of its own.
            if _signal.getsignal(signal) is not _on_signal:
                continue
            if is_stopping and signal == _signal.SIGINT:
                break
            is_stopping = True
            _stop_by(signal)
            receiver.settimeout(0.05)
            # Otherwise, threads that compute would delay this one.
            _sys.setswitchinterval(0.0005)
    _in_time(0.2, _partial(_flush, _sys.stdout))
    _in_time(0.4, write_end)
    _os._exit(_stop.outcome()[0])


def _catch_signals(stack: _ExitStack, write_end: Callable[[], None]) -> None:
    """Install our signal handlers until `stack` closes. Signals that are ignored stay ignored."""
    sender, receiver = map(stack.enter_context, _socket.socketpair())
    sender.setblocking(False)
    watcher = _threading.Thread(target=_watch_signals, args=(receiver, write_end), name="signals", daemon=True)
    watcher.start()
    stack.callback(watcher.join)
    # On Windows, a send may fail. A close would have no effect while a forked child has a copy of the socket.
    stack.callback(sender.shutdown, _socket.SHUT_WR)
    stack.callback(_sys.setswitchinterval, _sys.getswitchinterval())
    stack.callback(_signal.set_wakeup_fd, _signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False))
    for signal in _STOP_SIGNALS:
        if _signal.getsignal(signal) not in (_signal.SIG_IGN, None):
            stack.callback(_signal.signal, signal, _signal.signal(signal, _on_signal))


def _set_errors(stream: Any, errors: str) -> None:
    """Set how a stream treats characters that it cannot encode. The script may have closed or replaced the stream."""
    with _suppress(AttributeError, OSError, ValueError):
        stream.reconfigure(errors=errors)


def _catch_errors(stack: _ExitStack) -> None:
    """Until `stack` closes, log errors that would go unnoticed, and print characters that stdout cannot encode."""
    hooks: tuple[tuple[Any, str], ...] = (_threading, "excepthook"), (_sys, "unraisablehook")
    for module, hook in hooks:
        stack.callback(setattr, module, hook, getattr(module, hook))
        setattr(module, hook, _on_unheard)
    # On Windows, a pipe cannot encode every character.
    stack.callback(_set_errors, _sys.stdout, getattr(_sys.stdout, "errors", "strict"))
    _set_errors(_sys.stdout, "backslashreplace")


def _note_ending(ending: BaseException) -> None:
    """Log why `main` has ended, before anything waits. The terminal shows it only in the closing line."""
    code, words = _outcome_of(ending)
    if code:
        _stop.request(code, words)
    if isinstance(ending, Exception) and not isinstance(ending, (ConfigurationError, LoginError)):
        _logger.critical(_stop.outcome()[1], extra={"failure": ending, "file_only": True})
    # This closes the loops that it left open, and their bars.
    _traceback.clear_frames(ending.__traceback__)


def _end_executors() -> None:
    """End the executors of the script, as Python does when it ends: otherwise their threads wait for work for ever."""
    for each in _gc.get_objects():
        if issubclass(type(each), _futures.Executor) and each not in _POOLS:
            with _suppress(Exception):
                each.shutdown(wait=False)


def _wait_for_work(older: set[_threading.Thread]) -> None:
    """Wait for tasks, and like Python for the threads of this run; if it is ending, until the grace period is over."""
    while _stop.grace_left() > 0:
        threads = [each for each in _threading.enumerate() if not each.daemon and each not in older]
        # Look only now: a thread that has ended may have left tasks, and a task may have left others.
        if not threads and not any(pool.pending for pool in _POOLS):
            return
        for pool in _POOLS:
            pool.wait_for(None)
        _time.sleep(0.01)
        if threads:
            _end_executors()
            threads[0].join(0.2)


def _write_end(started: float, once: _threading.Lock) -> None:
    """Write the end of the log: the table, and the closing line, which the terminal shows, too."""
    # It is never released: if both `run` and `_watch_signals` come here, the second waits until the process ends.
    once.acquire()
    for line in _figures.table():
        _logger.info(line)
    code, words = _stop.outcome()
    totals = []
    for one, several in _EVENTS.items():
        if count := _figures.total(several):
            totals.append(f"{count:,} {one if count == 1 else several}")
    if totals:
        took = _timedelta(seconds=round(_now() - started))
        words += f"; {', '.join(totals)} in {took}, log in {_script_name()}.log"
    _Bar.is_over = True
    level = _logging.CRITICAL if code else _logging.INFO
    _logger.log(level, "%s: %s", _script_name(), words, extra={"file_only": True})
    _say(f"{_script_name()}: {words}")
    _flush(_sys.stderr)


def _ending_of(script: Callable[[], object], stack: _ExitStack, write_end: Callable[[], None]) -> BaseException:
    """Open the log, log in, call the script, and return the exception that this ends with."""
    terminal = _Terminal(_logging.WARNING)
    try:
        try:
            _stop.is_running = _stop.may_interrupt = True
            _log_to(stack, terminal)
            _open_log(stack, f"{_script_name()}.log")
            _catch_errors(stack)
            _catch_signals(stack, write_end)
            login()
            # From here on retries are routine.
            terminal.setLevel(_logging.ERROR)
            result = _complete("main", script)
            if not isinstance(result, (int, str, type(None))) or isinstance(result, bool):
                raise WrongValue(f"main returns a {type(result).__name__}: return nothing, an exit code or a text")
            _sys.exit(result)
        finally:
            _stop.may_interrupt = False
    except BaseException as error:
        return error


def run(main: Callable[[], object]) -> int:
    """Run a script, in its main thread: open the log, check the settings, log in, call `main`, write the summary.

    Returns the exit code: 0 done, 1 failed, 2 a wrong setting, 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP. `main` returns what
    you would pass to sys.exit: nothing, an exit code, or a text.
    """
    if problem := _names_problem():
        _sys.stderr.write(f"{problem}\n")
        return 2
    if hasattr(_sys, "ps1") or _threading.current_thread() is not _threading.main_thread():
        raise ConfigurationError("run() is for the main thread of a script: here, call login()")
    _stop.reset()
    _figures.reset()
    _Bar.is_over = False
    process, older = _os.getpid(), set(_threading.enumerate())
    write_end = _partial(_write_end, started=_now(), once=_threading.Lock())
    with _ExitStack() as stack:
        ending = _ending_of(main, stack, write_end)
        # A child made by os.fork() has returned from main(). The rest is for its parent.
        if _os.getpid() != process:
            _flush(_sys.stdout)
            code, words = _outcome_of(ending)
            if code:
                _say(f"{_script_name()}, process {_os.getpid()}: {words}")
            _os._exit(code)
        _note_ending(ending)
        _wait_for_work(older)
        if not _stop.reasons:
            # asyncio reports a task that has failed unheard when it is collected.
            _gc.collect()
        _flush(_sys.stdout)
        write_end()
        code = _stop.outcome()[0]
        # Python would wait for a thread that is blocked.
        if _stop.grace_left() <= 0:
            _os._exit(code)
    _stop.reset()
    return code


# Type checkers do not know `_sys.platform`.
if sys.platform != "win32":
    # Signals are blocked during a fork: a child that received one would stop its parent.
    _hold_signals = _partial(_signal.pthread_sigmask, _signal.SIG_BLOCK, _STOP_SIGNALS)
    _hear_signals = _partial(_signal.pthread_sigmask, _signal.SIG_UNBLOCK, _STOP_SIGNALS)

    def _forget_parent() -> None:
        """Let a forked child start as if nothing had happened, so that it has to call login().

        With an inherited client, parent and children would read each other's responses.
        """
        defaults = {_signal.SIGINT: _signal.default_int_handler}
        for signal in _STOP_SIGNALS:
            if _signal.getsignal(signal) is _on_signal:
                _signal.signal(signal, defaults.get(signal, _signal.SIG_DFL))
                _signal.set_wakeup_fd(-1)
        # A client that the script has kept would go on using its connection.
        for connection in tuple(_connections.opened):
            connection.close()
        everything: tuple[Any, ...] = (_stop, _figures, _thread, _connections, _sessions, *_POOLS)
        for state in everything:
            state.reset()
        _tqdm.tqdm.set_lock(_threading.RLock())
        _hear_signals()

    _os.register_at_fork(before=_hold_signals, after_in_parent=_hear_signals, after_in_child=_forget_parent)


@_atexit.register
def _at_exit() -> None:
    """For a script that does not use `run`, or has replaced it: wait for its tasks, and say what went wrong."""
    problem = _names_problem()
    if not problem:
        _wait_for_work(set(_threading.enumerate()))
        if _stop.unheard:
            _say(_stop.outcome()[1])
    elif __name__ == "__main__" and _NAMES["run"] is not _OWN["run"]:
        _sys.stderr.write(f"{problem}; nothing was run\n")
        _os._exit(2)


# The builtins that the engine and the API functions below call. If you call another one, add it.
_NEEDED_BUILTINS = """
AttributeError BaseException EOFError Exception ImportError KeyboardInterrupt LookupError OSError OverflowError
PermissionError RecursionError RuntimeError StopIteration SystemExit TimeoutError TypeError UnicodeDecodeError
ValueError all any bool bytes dict filter float getattr hasattr int isinstance issubclass iter len list map max min next
object range repr round set setattr sorted str sum super tuple type vars
"""
# The names of the engine that only a script uses.
_FREE_NAMES = ("WrongType", "describe", "get_nested_value", "get_thread_position", "logger", "run_parallel", "tqdm")
_ENGINE_LINES = range(_Stop.__init__.__code__.co_firstlineno, _at_exit.__code__.co_firstlineno)
_NEEDED = {name: getattr(_builtins, name) for name in _NEEDED_BUILTINS.split()}
_OWN = {name: value for name, value in _NAMES.items() if _BEFORE.get(name, _MISSING) is not value}
_NEEDED |= {name: value for name, value in _OWN.items() if name not in _FREE_NAMES}
# What the script had set before the engine did is lost. When a module is reloaded, it has set all of these names.
_LOST = [name for name in _OWN if name in _BEFORE and name not in ("logger", "tqdm") and "_OWN" not in _BEFORE]
_NEEDED |= dict.fromkeys(_LOST, _MISSING)
# ========================================================================================================= ENGINE ENDS

# ================================================================================================ EDIT 2: API functions
# In each function, both lines name the same service: the decorator renews its access token, call_endpoint sends it.
# If a function creates something, use @api_call_with_retry("RC", idempotent=False). Otherwise it may create it twice.


@api_call_with_retry("RC")
def get_all_organizations() -> list[dict[str, Any]]:
    """Return all centres: dicts with at least `id` and `name`."""
    return call_endpoint("RC", "GET", "organizations", list)


@api_call_with_retry("RC")
def get_statistics(organization_id: str) -> dict[str, Any]:
    """Return the counts of one centre."""
    return call_endpoint("RC", "GET", "statistics", dict, params={"organization": identifier(organization_id)})


@api_call_with_retry("RC")
def search_inclusions_page(organization_id: str, limit: int, page: int) -> dict[str, Any]:
    """Return one page of the inclusions of a centre, pages from 1: {"data": [...], "total": n}."""
    params, body = {"limit": limit, "page": page}, {"organization": identifier(organization_id)}
    return call_endpoint("RC", "POST", "search_inclusions", dict, params=params, json=body)


def search_inclusions(organization_id: str, limit: int, page: int) -> list[dict[str, Any]]:
    """Return the inclusions on one page, pages from 1."""
    return rows_on(search_inclusions_page(organization_id, limit, page))


def get_all_inclusions(organization_id: str) -> list[dict[str, Any]]:
    """Return all inclusions of a centre, each once. Raises WrongValue if the pages do not add up."""
    return every_page(lambda limit, page: search_inclusions_page(organization_id, limit, page), key="patientId")


@api_call_with_retry("RC")
def get_record_by_patient(patient_id: str) -> dict[str, Any]:
    """Return the record of one patient, by the `patientId` of an inclusion. Raises WrongValue for another record."""
    record = call_endpoint("RC", "GET", "record_by_patient", dict, params={"patient": identifier(patient_id)})
    return require_id(record, "patientId", patient_id)


@api_call_with_retry("RC")
def get_surveys(patient_id: str) -> list[dict[str, Any]]:
    """Return the questionnaires of one patient, with answers."""
    return call_endpoint("RC", "POST", "surveys", list, json={"subject": identifier(patient_id)})


@api_call_with_retry("GDD")
def get_request_by_tube(tube_id: str) -> dict[str, Any]:
    """Return the laboratory request that a sample tube belongs to. Raises WrongValue for another one."""
    request = call_endpoint("GDD", "GET", "request_by_tube", dict, suffix="/" + path_segment(tube_id))
    return require_id(request, "tubeId", tube_id)


# ================================================================================================== EDIT 3: your script


def main() -> None:
    # TODO: replace this block with your script ------------------------------------------------------------------------
    def count(centre: dict[str, Any]) -> int:
        return len(get_all_inclusions(centre["id"]))

    counts = run_parallel(count, get_all_organizations(), desc="Centres")
    rows = sorted(((number, centre["name"]) for centre, number in counts), reverse=True)
    print("inclusions  centre (the ten largest)")
    for number, name in rows[:10]:
        print(f"{number:>10,}  {name}")
    print(f"{sum(number for number, _ in rows):>10,}  in all {len(rows)} centres")
    # end of the TODO block --------------------------------------------------------------------------------------------


if __name__ == "__main__":
    sys.exit(run(main))
