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
MAX_THREADS = 20  # size of the main pool, and its limit; set EB_THREADS lower against many 429 or 503
SUBTASKS_POOL_SIZE = 40  # threads of the subtasks pool, beside those of the main pool
ERROR_MAX_RETRY = 10  # attempts per API call, the first included; 10 bridge about 2 minutes, 3 suit a trial
WAIT_BEFORE_RETRY = 0.5  # seconds before the first retry; doubles after each, with jitter
MAX_WAIT_BEFORE_RETRY = 60  # seconds; caps the doubling, and the longest Retry-After that is obeyed
API_TIMEOUT = 60  # seconds without a byte of the answer; raise it for a slow endpoint
API_DEADLINE = 300  # seconds that one attempt may take until the last byte of its body; raise it for long downloads
LOG_LEVEL = logging.INFO  # of the log file; logging.DEBUG writes a line per attempt
custom_bar_format = "{desc:<20.20} {percentage:3.0f}% |{bar}{r_bar}"  # tqdm's bar_format of every bar

TEMPLATE_VERSION = "3.1.0"  # of the template that this script was copied from; leave it as it is

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
# Use these names, but give none of them, no builtin, and none that begins with an underscore to something else: where
# that would disturb the engine, `run` refuses to start. Every other name of the engine begins with an underscore.
#
# login                  asks for or reads the credentials and logs in; `run` does it, a notebook calls it
# run                    the frame around main(): log, login, signals, summary
# tokens                 the tokens of each service; tokens["RC"]["access_token"] is always the current one
# get_httpx_client       the httpx.Client of this thread
# api_call_with_retry    decorator of a function that calls a service: renews its token, repeats what failed
# call_endpoint          calls an endpoint and returns its JSON
# url_of                 the address of an endpoint
# identifier             checks an id
# path_segment           an id as a part of a path
# require_id             checks that an answer is about the id that you asked for
# rows_on                the rows on one page
# every_page             the rows on all pages
# main_thread_pool       the pool for your tasks
# subtasks_thread_pool   the pool for what a task hands down
# run_parallel           calls a function for many items at once, with a bar
# get_thread_position    the row for a bar of this thread
# tqdm                   the bar
# get_nested_value       takes a value out of nested JSON
# logger                 the logger of the engine
# describe               an exception in a few words, without anything of a patient
# TemplateError          what the engine refuses: the base of the next three
# ConfigurationError     a setting is missing or wrong
# LoginError             the platform does not let you in
# WrongValue             an answer or an argument is not what it has to be
# WrongType              another name of WrongValue
# RunStopped             ends a task when the run is ending; `except Exception` does not catch it

# What is named above the engine.
_BEFORE = {**globals()}

# Imported by names that a script does not use: your own `time` or `re` must not disturb the engine.
import atexit as _atexit
import builtins as _builtins
import collections.abc as _abc
import concurrent.futures as _futures
import email.utils as _email
import gc as _gc
import getpass as _getpass
import glob as _glob
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
from collections import Counter as _Counter, defaultdict as _defaultdict, deque as _deque
from contextlib import ExitStack as _ExitStack, redirect_stdout as _redirect_stdout, suppress as _suppress
from datetime import timedelta as _timedelta
from functools import cache as _cache, partial as _partial, wraps as _wraps
from time import perf_counter as _now

import tqdm as _tqdm

# Whichever library is imported above as httpx.
_httpx = httpx
# The globals of this file, the script's included.
_NAMES = globals()

# ================================================================================================== Errors and stopping

_GRACE_SECONDS = 2.0
_CHECK = "python3 tests/check_platform.py says whether the platform differs from what is assumed"

_logger = logger = _logging.getLogger(__name__)
_P = _typing.ParamSpec("_P")
_Item = _typing.TypeVar("_Item")
_T = _typing.TypeVar("_T")


class TemplateError(Exception):
    """What the engine refuses. The text says why and holds nothing of a patient, so it may be shown."""


class ConfigurationError(TemplateError):
    """A setting is missing or wrong. The text names it and the fix. Exit code 2."""


class LoginError(TemplateError):
    """The platform does not let us in. The text names the service and the call. Exit code 1."""


class WrongValue(TemplateError, TypeError, ValueError):
    """An answer or an argument is not what it has to be."""


class RunStopped(BaseException):
    """The run is ending. Not an Exception, so that an `except Exception` in a loop does not swallow it."""


# Older scripts use this name.
WrongType = WrongValue


class _State:
    """What the engine remembers. A child made by fork resets all of it, a new run only _stop and _figures."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None: ...


class _Stop(_State):
    """Whether, why and until when the run is ending. It has no lock: Ctrl-C could leave it locked (cpython#74174)."""

    def reset(self) -> None:
        # Each is (exit code, closing words, end of the grace). The first one counts.
        self.reasons: list[tuple[int, str, float]] = []
        # What failed and nobody else hears of: a key of its own -> words. The run goes on; its exit code becomes 1.
        self.unheard: dict[object, str] = {}
        # Thread that waits for a retry -> when it will go on.
        self.waiting: dict[int, float] = {}
        # Whether `run` is at work, and whether a signal raises KeyboardInterrupt in the main thread: once in a run.
        self.is_running = self.may_interrupt = False

    def request(self, code: int, words: str) -> None:
        """End the run in every thread, with this exit code and these words unless an earlier reason has others."""
        self.reasons.append((code, words, _now() + _GRACE_SECONDS))

    def outcome(self) -> tuple[int, str]:
        """Return the exit code and the closing words."""
        if self.reasons:
            return self.reasons[0][:2]
        unheard = list(self.unheard.values())
        if not unheard:
            return 0, "done"
        words = f"failed: {unheard[0]}"
        if len(unheard) > 1:
            words += f", the first of {len(unheard):,} such failures"
        return 1, words

    def grace_left(self) -> float:
        """Return the seconds that calls in flight may still take."""
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

# What OpenSSL or Windows says -> what to do about it. The first match counts; another attempt would not help.
_TLS_HINTS = {
    "WRONG_VERSION_NUMBER|HTTP_REQUEST|RECORD_LAYER": "this port speaks no TLS: check the address and HTTPS_PROXY",
    "issuer|self.signed|not trusted": "set SSL_CERT_FILE to a PEM file with the CA certificates of your organisation",
    "CERTIFICATE_VERIFY_FAILED": "check the address and the clock of this machine",
}

_NO_BODY = "the answer has no body, JSON was expected"


def _tls_hint(error: BaseException) -> str:
    """Return what to do about a certificate, or a port without TLS; "" if the error is about something else."""
    for pattern, hint in _TLS_HINTS.items():
        if isinstance(error, _httpx.ConnectError) and _re.search(pattern, str(error), _re.IGNORECASE):
            return hint
    return ""


def _is_web_page(response: httpx.Response) -> bool:
    return "text/html" in response.headers.get("Content-Type", "")


def _retry_after_seconds(value: str, now: float) -> float:
    """Return the seconds that a Retry-After asks for, by a number or a date (RFC 9110, 10.2.3); 0 for nonsense."""
    if _re.fullmatch("[0-9]+", value.strip()):
        return float(value)
    with _suppress(TypeError, ValueError, OverflowError):
        if date := _email.parsedate_tz(value):
            return max(0.0, _email.mktime_tz(date) - now)
    return 0.0


def _retry_after(error: Exception) -> float:
    """Return the seconds that a refused answer asks to wait, if it does, else 0."""
    if isinstance(error, _httpx.HTTPStatusError):
        return _retry_after_seconds(error.response.headers.get("Retry-After", ""), _time.time())
    return 0.0


def _status_words(error: httpx.HTTPStatusError) -> str:
    """Return the status, and what tells where a refusal comes from; httpx's own text repeats the URL."""
    # The engine has put words of its own there: see _Sessions.renew.
    if " for url " not in str(error):
        return str(error)
    words = f"HTTP {error.response.status_code}"
    if target := error.response.next_request:
        # Its path may hold an id: it is in the log alone.
        words += f", redirects to {target.url.scheme}://{target.url.host}"
    elif _is_web_page(error.response):
        words += ", answered by a web page"
    if (seconds := _retry_after(error)) > MAX_WAIT_BEFORE_RETRY:
        words += f", Retry-After is {seconds:.0f} s, MAX_WAIT_BEFORE_RETRY {MAX_WAIT_BEFORE_RETRY} s: run again later"
    return words


def _request_words(error: httpx.RequestError) -> str:
    """Return what httpx says, without the bytes that h11 quotes of an answer; then host, proxy and what to do."""
    words = [_re.split(r":? (?:bytearray\()?b?['\"]", str(error))[0]]
    # An error that a script makes itself has no request.
    with _suppress(RuntimeError):
        url, proxy = error.request.url, _proxies.getproxies().get("https")
        words.append(f"host {url.host}")
        if proxy and url.scheme == "https":
            words.append(f"HTTPS_PROXY {proxy.rpartition('@')[2].rpartition('//')[2]}")
    return "; ".join(filter(None, (*words, _tls_hint(error))))


def _describe(error: BaseException) -> str:
    """Return an exception in a few words, without a text that may quote a patient, as that of int(birth_date) does."""
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
            # Without the name of the file, which may be an id.
            words = error.strerror
    return ": ".join(filter(None, (type(error).__name__, words)))


describe = _describe

# ================================================================================================================= Log

_LOG_BYTES = 10_000_000
_LONGEST_LINE = 10_000


class _Figures(_State):
    """What the API functions did: the table at the end of the log. It hardly grows with the number of calls."""

    def reset(self) -> None:
        # Reentrant: the garbage collector may call _on_unheard within, whose line redraws bars, and they call `total`.
        self.lock = _threading.RLock()
        # API function -> "calls", "failures", ... -> how many
        self.events: dict[str, _Counter[str]] = _defaultdict(_Counter)
        # API function -> milliseconds -> attempts
        self.durations: dict[str, _Counter[int]] = _defaultdict(_Counter)

    def count(self, function: str, event: str, *seconds: float) -> None:
        """Count an event. "calls" are first attempts, "retries" the others; they take some seconds."""
        with self.lock:
            self.events[function][event] += 1
            for each in seconds:
                self.durations[function][round(each * 1000)] += 1

    def total(self, event: str) -> int:
        with self.lock:
            return sum(events[event] for events in self.events.values())

    def table(self) -> list[str]:
        """Return a line per API function; the durations are those of single attempts."""
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
# The newest tokens, and the password, in each form that they are written in.
_secrets: _deque[str] = _deque(maxlen=400)


def _keep_secret(secret: str) -> None:
    """Mask a secret from now on: as it is, in a repr, in JSON, in a URL."""
    # Each gap in the log would give away one so short.
    if len(secret) < 4:
        return
    forms = {secret, repr(secret)[1:-1], _json.dumps(secret)[1:-1], _json.dumps(secret, ensure_ascii=False)[1:-1]}
    _secrets.extend({*forms, _url.quote(secret, safe=""), _url.quote_plus(secret)})


def _redact(text: str) -> str:
    """Return a text on one line, without secrets, headers that hold some, and queries of URLs."""
    for secret in sorted(set(_secrets.copy()), key=len, reverse=True):
        text = text.replace(secret, "***")
    # Cut once it holds no secret, and before the patterns that take long in a long text.
    rest = len(text) - _LONGEST_LINE
    # A line break from a server would forge a line of the log (CWE-117).
    text = _re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: repr(match[0])[1:-1], text[:_LONGEST_LINE])
    text = _re.sub(r"(?i)(\b(?:set-cookie|cookie|(?:proxy-)?authorization)\b['\"]?\s*[:=,]\s*).*", r"\1***", text)
    text = _re.sub(r"(?i)(\bbearer\s+)[^\s'\",]+", r"\1***", text)
    text = _re.sub(r"://[^\s'\"/#?]*@", "://***@", text)
    text = _re.sub(r"/[^\s'\"?]+(\?[^\s\"]*)?", lambda match: _re.sub(r"\?.*", "?***", match[0]), text)
    if rest > 0:
        text += f"... ({rest:,} characters more)"
    return text


def _is_terminal(stream: Any) -> bool:
    """Whether a person is at the other end. On Windows NUL says so too (bpo-28654), but is a plain file underneath."""
    if stream is None or stream.closed or not stream.isatty():
        return False
    buffer = getattr(stream, "buffer", None)
    # Under `python -u` there is no buffer around the raw stream.
    raw = getattr(buffer, "raw", buffer)
    return _os.name != "nt" or not isinstance(raw, _io.FileIO)


def _say(text: str) -> None:
    """Write a line to the terminal, above the bars; never to stdout, which is for the results of the script."""
    line, is_drawn = _redact(text), _is_terminal(_sys.stderr)
    if is_drawn:
        # It goes over the echo of Ctrl-C.
        line = "\r" + line
    with _suppress(Exception):
        # Without a terminal, tqdm's lock is not taken: a bar that holds it may be waiting for the lock of the log.
        _tqdm.tqdm.write(line, file=_sys.stderr or _io.StringIO(), nolock=not is_drawn)


def _traceback_of(error: BaseException) -> list[str]:
    """Return the lines of a traceback, or a reference if the log has had this one already."""
    if hasattr(error, "_is_in_log"):
        return ["(its traceback is above)"]
    vars(error)["_is_in_log"] = True
    return "".join(_traceback.format_exception(error)).rstrip("\n").split("\n")


class _LogLine(_logging.Formatter):
    """A line of the log file; a traceback follows, indented. `private` and `failure` of a record are for it alone."""

    def format(self, record: _logging.LogRecord) -> str:
        columns = f"{self.formatTime(record)} {record.levelname:<8} {_redact(record.threadName or ''):<12}"
        lines = [record.getMessage() + str(getattr(record, "private", ""))]
        for error in (getattr(record, "failure", None), record.exc_info and record.exc_info[1]):
            if isinstance(error, BaseException):
                lines += _traceback_of(error)
        lines += (record.stack_info or "").splitlines()
        return f"{columns} " + "\n    ".join(map(_redact, lines))


class _LogFile(_logging.FileHandler):
    """The log file. What goes wrong with it is said on the terminal, once, and ends no run."""

    said = ""

    def handleError(self, record: _logging.LogRecord) -> None:
        """Say what went wrong; the report of `logging` would show the arguments of the message, tokens too."""
        error = _sys.exc_info()[1] or Exception()
        problem = f"{record.pathname}:{record.lineno}: {_describe(error)}"
        if isinstance(error, OSError):
            problem = f"{self.baseFilename}: {_describe(error)}"
        if problem != self.said:
            self.said = problem
            _say(problem)

    def close(self) -> None:
        # On a full disk, closing fails to write what is left over.
        with _suppress(OSError):
            super().close()


class _Terminal(_logging.Handler):
    """Log messages on the terminal, above the bars; the redirection of tqdm ignores levels (tqdm#1272)."""

    def emit(self, record: _logging.LogRecord) -> None:
        if hasattr(record, "file_only"):
            return
        with _suppress(Exception):
            words = record.getMessage()
            # These two log exceptions that nobody fetched. The text may quote a patient.
            if record.name in ("concurrent.futures", "asyncio"):
                words = _stop.unheard[record] = f"unheard error in {record.name} (see the log)"
            _say(words)


def _script_name() -> str:
    """Return the name of the file that Python was started with, without `.py`; in a notebook, of this file."""
    path: str = getattr(_sys.modules["__main__"], "__file__", None) or _NAMES.get("__file__", "eb_script.py")
    path = _os.path.abspath(path).removesuffix(f"{_os.sep}__main__.py")
    return _os.path.splitext(_os.path.basename(path))[0].strip("<>")


def _make_private(path: str) -> bool:
    """Create the log if need be; return whether it is a plain file of ours that only its owner can read."""
    # O_NONBLOCK: a pipe without a reader is an error then, and not waited for.
    _os.close(_os.open(path, _os.O_CREAT | _os.O_WRONLY | getattr(_os, "O_NONBLOCK", 0), 0o600))
    with _suppress(PermissionError):
        if _os.path.isfile(path) and _os.stat(path).st_uid == getattr(_os, "geteuid", int)():
            _os.chmod(path, 0o600)
            return True
    return False


def _set_aside(path: str) -> str:
    """Rename a log over _LOG_BYTES, and keep five such; return what went wrong: Windows refuses while it is open."""
    try:
        if _os.path.isfile(path) and _os.path.getsize(path) >= _LOG_BYTES:
            _os.chmod(path, 0o600)
            _os.rename(path, f"{path}.{_time.time_ns()}")
            # What has another name is not ours; the versions before 3.0 counted from 1 to 5.
            names = [old for old in _glob.glob(f"{_glob.escape(path)}.*") if _re.search(r"\.(\d|\d{19})$", old)]
            for old in sorted(names, key=_os.path.getmtime)[:-5]:
                _os.remove(old)
    except OSError as error:
        return f"{path} cannot be set aside, so it grows: {error.strerror}"
    return ""


def _log_to(stack: _ExitStack, handler: _logging.Handler) -> None:
    """Send what is logged, also by the script, to a handler until `stack` closes."""
    root = _logging.getLogger()
    root.addHandler(handler)
    stack.callback(handler.close)
    stack.callback(root.removeHandler, handler)


def _open_log(stack: _ExitStack, path: str) -> None:
    """Send what is logged to a file, until `stack` closes. Raises ConfigurationError if it cannot be written."""
    problem = _set_aside(path)
    try:
        is_private = _make_private(path)
        log = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written ({error.strerror}): start the script elsewhere") from error
    log.setFormatter(_LogLine())
    # `login` refuses a wrong LOG_LEVEL, and needs the log to say so.
    log.setLevel(LOG_LEVEL if isinstance(LOG_LEVEL, int) else _logging.INFO)
    _log_to(stack, log)
    # The lines of httpx and httpcore hold full URLs and cookies.
    levels = dict.fromkeys(("httpx", "httpcore", "httpx2", "httpcore2"), _logging.WARNING)
    for name, level in {"root": min(log.level, _logging.INFO), **levels}.items():
        changed = _logging.getLogger(name)
        stack.callback(changed.setLevel, changed.level)
        changed.setLevel(level)
    if problem:
        _logger.warning(problem)
    if not is_private:
        _logger.warning("%s is not a plain file of yours, or cannot be made private: others may read it", path)
    python = f"Python {_sys.version.split()[0]} on {_sys.platform}, process {_os.getpid()}"
    _logger.info("%s started, template %s, %s", _script_name(), TEMPLATE_VERSION, python)


# ============================================================================================================= Retries

# And every 5xx but 501.
_RETRIED_STATUSES = (408, 425, 429)
_RETRIED_ERRORS = (_httpx.TransportError, _httpx.DecodingError, _json.JSONDecodeError, UnicodeDecodeError)
_NOT_SENT_ERRORS = (_httpx.ConnectError, _httpx.ConnectTimeout, _httpx.PoolTimeout)


def _status_of(error: BaseException | None) -> int:
    """Return the status of a refused call; 0 if it got no answer."""
    if isinstance(error, _httpx.HTTPStatusError):
        return error.response.status_code
    return 0


def _is_rate_limit(error: Exception) -> bool:
    """Whether the platform has refused a call because it came too early: by 429, or another 4xx with a Retry-After."""
    if not isinstance(error, _httpx.HTTPStatusError):
        return False
    response = error.response
    return response.status_code == 429 or (response.is_client_error and "Retry-After" in response.headers)


def _is_hopeless(error: Exception) -> bool:
    """Whether another attempt soon would fail in the same way. A 407 of a proxy, repeated, locks the account."""
    if isinstance(error, _httpx.ProxyError):
        # httpcore puts the status first.
        return str(error).startswith("4")
    if isinstance(error, UnicodeDecodeError):
        # A body that was cut may come whole next time.
        return error.reason != "unexpected end of data"
    waits_too_long = _retry_after(error) > MAX_WAIT_BEFORE_RETRY
    return waits_too_long or isinstance(error, _httpx.UnsupportedProtocol) or _tls_hint(error) != ""


def _is_retryable(error: Exception, idempotent: bool = True) -> bool:
    """Whether another attempt can help, and cannot create a second thing."""
    if _is_hopeless(error):
        return False
    # Nothing of the call was carried out.
    if _is_rate_limit(error) or isinstance(error, _NOT_SENT_ERRORS):
        return True
    status = _status_of(error)
    is_temporary = status in _RETRIED_STATUSES or (status >= 500 and status != 501)
    return idempotent and (is_temporary or isinstance(error, _RETRIED_ERRORS))


def _retry_delay(failures: int, retry_after: float) -> float:
    """Return the seconds to wait after so many failures: Retry-After and a capped, jittered exponential backoff."""
    backoff = min(MAX_WAIT_BEFORE_RETRY, WAIT_BEFORE_RETRY * 2.0 ** min(failures - 1, 30))
    return min(MAX_WAIT_BEFORE_RETRY, retry_after + backoff * _random.uniform(0.5, 1))


def _excerpt(error: Exception) -> str:
    """Return where a refused answer leads, and its start, which often says why: for the log file, which is private."""
    for refused in (error, error.__cause__):
        if isinstance(refused, _httpx.HTTPStatusError):
            with _suppress(_httpx.StreamError):
                return f": {refused.response.headers.get('Location', '')} {refused.response.text[:500]}"
    return ""


def _given_up_by(error: BaseException) -> str:
    """Return the API function that has tried what it can, and has given up with this error; "" if there is none."""
    return str(getattr(error, "_given_up_by", ""))


def _with_retries(name: str, call: Callable[[], _T], retryable: Callable[[Exception], bool]) -> _T:
    """Return the result of `call`, made again as the functions above say; in the end raise its last exception."""
    failures = 0
    while True:
        try:
            return call()
        except Exception as error:
            failures += 1
            words = f"{name}: {_describe(error)}, failure {failures} of {ERROR_MAX_RETRY}"
            private = {"private": _excerpt(error)}
            # An API function that this one calls has tried it often enough.
            if _given_up_by(error) or failures >= ERROR_MAX_RETRY or not retryable(error):
                _logger.info("%s, given up", words, extra=private)
                _figures.count(name, "failures")
                vars(error).setdefault("_given_up_by", name)
                raise
            delay = _retry_delay(failures, _retry_after(error))
            _logger.warning("%s, next in %.1f s", words, delay, extra=private)
        _stop.sleep(delay)


# ======================================================================================================== HTTP clients

# Node.js and uvicorn close idle connections after 5 s. We close first, so as not to write into a closing one.
_IDLE_SECONDS = 4
_CONNECT_SECONDS = 5


class _ThreadState(_State, _threading.local):
    """What each thread has of its own: threading.local calls __init__, and so reset, in every thread."""

    def reset(self) -> None:
        self.client: httpx.Client | None = None
        # The service that the API function in progress names, and the status of the last answer.
        self.app: str | None = None
        self.status = 200
        # 1 in a worker of the main pool, 2 in one of the subtasks pool: see _ThreadPool.
        self.depth = 0
        # The row of its bar: 1, 2, ... in the workers of both pools.
        self.position = 0
        # Host and port -> the newest connection to it, and whether a call is using that.
        self.connections: dict[bytes, tuple[Any, bool]] = {}


class _Connections(_State):
    """The connections of threads without a call. They are closed after some seconds."""

    def reset(self) -> None:
        self.lock = _threading.RLock()
        # id() of the connections of a thread -> since when it has no call, and these connections.
        self.idle: dict[int, tuple[float, dict[bytes, tuple[Any, bool]]]] = {}
        self.watcher: _threading.Thread | None = None
        # Whether they are kept: no more once an answer came before its call, since the next one might come just after.
        self.are_kept = True

    def watch(self) -> None:
        """Start the thread that closes them, but only once."""
        if self.watcher is None:
            self.watcher = _threading.Thread(target=self.close_idle, name="connections", daemon=True)
            self.watcher.start()

    def close_idle(self) -> None:
        while True:
            _time.sleep(_IDLE_SECONDS / 4)
            with self.lock:
                for key, (since, connections) in tuple(self.idle.items()):
                    if since < _now() - _IDLE_SECONDS:
                        del self.idle[key]
                        for connection, has_call in connections.values():
                            # httpx notices that it is closed before it would use it again.
                            if not has_call:
                                connection.close()


_connections = _Connections()
_thread = _ThreadState()
tokens: dict[str, dict[str, Any]] = {}


class _Body(_httpx.SyncByteStream):
    """The body of an answer, cut off at a deadline: httpx only limits the wait for its next byte (httpx#1450)."""

    def __init__(self, response: httpx.Response) -> None:
        self.body: Any = response.stream
        self.end = response.request.extensions["sent"] + API_DEADLINE
        self.connection = response.extensions["network_stream"]
        self.host, self.connections = response.request.url.netloc, _thread.connections
        with _connections.lock:
            self.connections[self.host] = self.connection, True

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.body:
            if _now() > self.end:
                raise _httpx.ReadTimeout(f"not complete after API_DEADLINE = {API_DEADLINE} s")
            yield chunk

    def close(self) -> None:
        self.body.close()
        with _connections.lock:
            self.connections[self.host] = self.connection, False
            _connections.idle[_builtins.id(self.connections)] = _now(), self.connections


class _GzipBody(_Body):
    """A body in gzip, of one part or more (RFC 1952, 2.2): httpx reads only the first, and overlooks a cut."""

    def __iter__(self) -> Iterator[bytes]:
        packed = b"".join(super().__iter__())
        try:
            yield _gzip.decompress(packed)
        except Exception as error:
            raise _httpx.DecodingError("the gzip body is damaged") from error


def _on_request(request: httpx.Request) -> None:
    """Check the access token of a call, limit its time to connect, and keep the connections of this thread open."""
    app, header = _thread.app, request.headers.get("Authorization")
    owners = [each for each, session in tokens.items() if header == f"Bearer {session['access_token']}"]
    if owners and app not in (None, *owners):
        raise ConfigurationError(f"the call sends the token of {owners[0]}, but its decorator names {app}: use one")
    timeouts = request.extensions["timeout"]
    # Whatever the `timeout=` of the call says; None would wait for ever.
    timeouts["connect"] = min(timeouts["connect"] or _CONNECT_SECONDS, _CONNECT_SECONDS)
    if not _connections.are_kept:
        request.headers["Connection"] = "close"
    with _connections.lock:
        _connections.idle.pop(_builtins.id(_thread.connections), None)
    request.extensions["sent"] = _now()


def _note_reads(connection: Any) -> None:
    """Have a connection note when it was last read from."""
    read = connection.read

    def read_and_note(*arguments: Any, **options: Any) -> Any:
        connection.last_read = _now()
        return read(*arguments, **options)

    connection.read, connection.last_read = read_and_note, _now()


def _refuse_early(response: httpx.Response) -> None:
    """Raise for an answer that was there before its call was sent: it is a copy of the answer to an earlier call."""
    connection = response.extensions["network_stream"]
    if not hasattr(connection, "last_read"):
        _note_reads(connection)
    if connection.last_read < response.request.extensions["sent"]:
        _connections.are_kept = False
        raise _httpx.RemoteProtocolError("the answer came before its call")


def _on_response(response: httpx.Response) -> None:
    """Take over the body, and raise for a status that is never a success, even if the function forgets to."""
    _refuse_early(response)
    _thread.status = response.status_code
    encoding, body = response.headers.get("Content-Encoding", "").lower(), _Body
    if encoding in ("gzip", "x-gzip"):
        del response.headers["Content-Encoding"]
        body = _GzipBody
    elif _re.search("gzip|compress|deflate|br|zstd", encoding):
        raise _httpx.DecodingError(f"the answer is encoded as {encoding}, not gzip")
    response.stream = body(response)
    is_refused = response.status_code in (401, *_RETRIED_STATUSES) or response.status_code >= 500
    if is_refused and _thread.app is not None:
        response.read()
        response.raise_for_status()


@_cache
def _shared_tls_context() -> _ssl.SSLContext:
    """Return the TLS context of all clients, as loading the CA certificates for each would take 30 ms of CPU."""
    try:
        context = _httpx.create_ssl_context()
    except OSError as error:
        path = _os.environ.get("SSL_CERT_FILE") or _os.environ.get("SSL_CERT_DIR")
        raise ConfigurationError(f"SSL_CERT_FILE = {path!r}: {error}; name a PEM file of CA certificates") from error
    if not _os.environ.get("SSL_CERT_FILE"):
        context.load_default_certs()
    context.set_alpn_protocols(["http/1.1"])
    # httpcore sets it again on each connect, which corrupts the handshakes of other threads (cpython#141012).
    context.set_alpn_protocols = lambda protocols: None  # type: ignore[method-assign, assignment]
    return context


class _Client(_httpx.Client):
    """A client that closes when its thread ends; not in a child made by fork: a lock that it needs may be held."""

    process = 0

    # Names of the module may be gone when Python ends, defaults are not.
    def __del__(self, getpid: Any = _os.getpid, is_ending: Any = _sys.is_finalizing) -> None:
        if self.process == getpid() and not is_ending():
            self.close()


def get_httpx_client() -> httpx.Client:
    """Return the client of this thread, kept alive between calls: a shared one loses requests (httpcore#1110)."""
    if _thread.client is not None and not _thread.client.is_closed:
        return _thread.client
    # Without the lock, threads that start together would make a context each.
    with _connections.lock:
        context = _shared_tls_context()
    client = _Client(
        verify=context,
        timeout=API_TIMEOUT,
        limits=_httpx.Limits(keepalive_expiry=_IDLE_SECONDS),
        # http:// goes to this machine only, and never through a proxy.
        mounts={"http://": None},
        headers={"Accept-Encoding": "gzip"},
        event_hooks={"request": [_on_request], "response": [_on_response]},
    )
    client.process = _os.getpid()
    # The access token alone says who calls: an expired cookie may override a good token.
    client.cookies.extract_cookies = lambda response: None  # type: ignore[method-assign]
    _thread.client = client
    return client


def _complete(name: str, call: Callable[[], _T]) -> _T:
    """Return the result of `call`. Raises WrongValue if none of its code has run, or if it would end another loop."""
    try:
        result = call()
    except StopIteration as error:
        # A loop of the script, as that of map(), would take it for its own end (PEP 479), and leave out the rest.
        raise WrongValue(f"{name} raises StopIteration: give next() a default") from error
    if isinstance(result, (_abc.Generator, _abc.Coroutine, _abc.AsyncGenerator)):
        if isinstance(result, _abc.Coroutine):
            result.close()
        raise WrongValue(f"{name} returns a {type(result).__name__}: use return, not yield or async")
    return result


class _Attempts:
    """The attempts at one call. Each is counted, timed and, at DEBUG, logged."""

    def __init__(self, app: str | None, name: str, call: Callable[[], Any]) -> None:
        self.app, self.name, self.call = app, name, call
        self.number, self.event = 0, "calls"

    def __call__(self) -> Any:
        _stop.check()
        self.number += 1
        outer, _thread.app, _thread.status = _thread.app, self.app, 200
        outcome, started = "ended", _now()
        try:
            result = _complete(self.name, self.call)
            outcome = "ok"
            return result
        except Exception as error:
            outcome = _describe(error)
            # An empty 200 is a fault. Other empty answers are meant; a 201 asked for again may create a second thing.
            if isinstance(error, _json.JSONDecodeError) and not error.doc and _thread.status != 200:
                raise WrongValue(f"HTTP {_thread.status}: {_NO_BODY}") from error
            raise
        finally:
            seconds = _now() - started
            _thread.app = outer
            _figures.count(self.name, self.event, seconds)
            self.event = "retries"
            _logger.debug("%s attempt %d: %s in %.3f s", self.name, self.number, outcome, seconds)


# ==================================================================================================== Login and tokens

# The steps against a 401: refresh, log in again, wait until the new token is known. 0 stands for none so far.
_REFRESH, _LOGIN, _WAIT = 1, 2, 3
# Seconds until a new token is known on every machine of the platform.
_NEW_TOKEN_SECONDS = 3
# We assume that no token expires sooner. Where a refresh works, one login in this time is enough for a service.
_YOUNG_TOKEN_SECONDS = 60


def _check_enabled(app: str, user: str) -> None:
    """Raise ConfigurationError for a service that is commented out, or never was there; `user` asks for it."""
    if app not in MICROSERVICES:
        raise ConfigurationError(f"{user}: {app} is not enabled; MICROSERVICES has {', '.join(MICROSERVICES)}")


def url_of(app: str, endpoint: str) -> str:
    """Return the address of an endpoint. Raises ConfigurationError for one that MICROSERVICES does not have."""
    _check_enabled(app, endpoint)
    service, paths = MICROSERVICES[app], MICROSERVICES[app]["endpoints"]
    if endpoint not in paths:
        raise ConfigurationError(f"{app} has no endpoint {endpoint!r} in MICROSERVICES; it has {', '.join(paths)}")
    return f"{service['base_url'].rstrip('/')}/{paths[endpoint].lstrip('/')}"


class _WebPage(LoginError):
    """A page in HTML, where tokens were expected. It may go away, unlike a refusal."""


def _refusal(app: str, endpoint: str, error: httpx.HTTPStatusError, user: str) -> LoginError:
    """Return why a call for tokens was refused, in words that lead to the fix."""
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
    """Return an answer if a session can use it: its token fits into a header (RFC 6750). Else raise LoginError."""
    session: dict[str, Any] = answer if isinstance(answer, dict) else {}
    token, user_id = session.get("access_token"), session.get("userId")
    if not isinstance(token, str) or not _re.fullmatch(r"[\x21-\x7e]+", token):
        raise LoginError(f"no usable access_token in the answer of {url}; check the address; {_CHECK}")
    if endpoint == "login" and (type(user_id) not in (str, int) or user_id == ""):
        raise LoginError(f"no usable userId in the answer of {url}; {_CHECK}")
    if not isinstance(session.get("refresh_token"), str):
        session.pop("refresh_token", None)
    return session


class _Sessions(_State):
    """Who is logged in, and how tokens that the platform refuses (401) are renewed.

    Threads that saw the same token refused share one renewal.
    """

    def reset(self) -> None:
        # Held while sessions are opened or renewed.
        self.lock = _threading.Lock()
        self.credentials: dict[str, str] = {}
        # Service -> when its tokens came.
        self.received: dict[str, float] = {}
        # Service -> by which step they came, if for a refused call; 0 once the service accepts them.
        self.steps: dict[str, int] = {}
        # Service -> when a call that it refused last led to a login.
        self.last_login: dict[str, float] = {}
        tokens.clear()

    def log_in(self, user: str, password: str) -> None:
        """Open all sessions for a user."""
        with self.lock:
            self.credentials = {"username": user, "password": password}
            self.last_login.clear()
            try:
                self.open()
            except BaseException:
                # Those of another user may be left.
                tokens.clear()
                raise

    def open(self) -> None:
        """Open every session: that of IAM by the credentials, then the others by the access token of IAM."""
        self.open_one("IAM", "login", self.credentials)
        for app in MICROSERVICES:
            if app != "IAM":
                body = {"userId": tokens["IAM"]["userId"], "clientId": MICROSERVICES[app]["app_id"]}
                self.open_one(app, "config_token", body)

    def open_one(self, app: str, endpoint: str, body: dict[str, Any]) -> None:
        """Open the session of a service. Raises LoginError."""
        name = f"{app}_{endpoint}"
        attempts = _Attempts(None, name, _partial(self.post, app, endpoint, body))
        try:
            self.keep(app, _with_retries(name, attempts, _partial(self.may_pass, app)))
        except (LoginError, _httpx.HTTPError, ValueError, RecursionError) as error:
            raise LoginError(f"{app} {endpoint}: {_describe(error)}") from error

    def post(self, app: str, endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
        """Make one call for tokens and return its answer. Raises LoginError if it is refused."""
        url, headers = url_of(app, endpoint), {}
        if endpoint == "config_token":
            headers["Authorization"] = f"Bearer {tokens['IAM']['access_token']}"
        try:
            response = get_httpx_client().post(url, json=body, headers=headers, timeout=API_TIMEOUT)
            response.raise_for_status()
        except _httpx.HTTPStatusError as error:
            if _is_retryable(error):
                raise
            raise _refusal(app, endpoint, error, self.credentials["username"]) from error
        if _is_web_page(response):
            raise _WebPage(f"answered by a web page at {url}: a firewall, a portal, or a wrong address")
        return _checked_tokens(url, endpoint, response.json())

    def may_pass(self, app: str, error: Exception) -> bool:
        """Whether another attempt to open a session may work."""
        if isinstance(error, _WebPage):
            # At the first login somebody is waiting. Later on, the page may be that of a passing outage.
            return bool(self.last_login)
        if _status_of(error.__cause__) == 401 and app != "IAM":
            # The service may not know the access token of IAM yet.
            return _now() < self.received["IAM"] + _NEW_TOKEN_SECONDS
        return _is_retryable(error)

    def refresh(self, app: str) -> bool:
        """Return whether a refresh worked. It is never sent twice: once carried out, its token is spent."""
        # Removed before it is sent, in case a signal interrupts.
        spent = tokens[app].pop("refresh_token", None)
        if not spent or "refresh_token" not in MICROSERVICES[app]["endpoints"]:
            return False
        try:
            answer = self.post(app, "refresh_token", {"refresh_token": spent})
        except Exception as error:
            _logger.warning("%s refresh_token: %s; logging in again", app, _describe(error))
            return False
        # Without a new one the old one stays (RFC 6749, section 6).
        self.keep(app, {"refresh_token": spent, **answer})
        _logger.info("%s: access token renewed", app)
        return True

    def keep(self, app: str, answer: dict[str, Any]) -> None:
        """Let the tokens of an answer be the current ones."""
        # All of them again, since only the newest secrets are kept.
        _keep_secret(self.credentials["password"])
        for session in (*tokens.values(), answer):
            _keep_secret(session["access_token"])
            _keep_secret(session.get("refresh_token", ""))
        self.received[app], self.steps[app] = _now(), 0
        # Last: from now on calls use these tokens. It is always a new dict: `renew` compares dicts, not tokens.
        tokens[app] = answer

    def with_renewals(self, app: str, name: str, call: Callable[[], _T]) -> _T:
        """Return the result of `call`, which is made again with new tokens after a 401."""
        step = 0
        while True:
            session, sent = tokens.get(app), _now()
            try:
                result = call()
                self.accept(app, session)
                return result
            except _httpx.HTTPStatusError as error:
                if _status_of(error) != 401:
                    # A 503 may come from a proxy, which knows no tokens.
                    if not _is_retryable(error):
                        self.accept(app, session)
                    raise
                # An API function that this one calls has done what can be done.
                if _given_up_by(error):
                    raise
                step = self.renew(app, name, session, sent, step, error)
                if step == _WAIT:
                    _stop.sleep(self.received[app] + _NEW_TOKEN_SECONDS - _now())

    def accept(self, app: str, session: object) -> None:
        """Note that a service has answered to these tokens by something else than 401."""
        if tokens.get(app) is session:
            self.steps[app] = 0

    def renew(self, app: str, name: str, session: object, sent: float, step: int, error: httpx.HTTPStatusError) -> int:
        """Take the next step for a call that was refused, unless another thread has; return its last step so far.

        Raises the error if no step is left: then it is not about the tokens.
        """
        with self.lock:
            _stop.check()
            if tokens.get(app) is not session:
                return step
            if sent < self.received[app] + _YOUNG_TOKEN_SECONDS:
                # They cannot have expired: what was tried for another call counts for this one, too.
                step = max(step, self.steps[app])
            is_new = sent < self.received[app] + _NEW_TOKEN_SECONDS
            if step < _LOGIN and (taken := self.replace(app, step, is_new)):
                _figures.count(name, "renewals")
                self.steps[app] = taken
                return taken
            if step < _WAIT and is_new:
                return _WAIT
        error.args = (f"HTTP 401: {app} refuses what the call asks for, with new tokens, too",)
        raise error

    def replace(self, app: str, step: int, is_new: bool) -> int:
        """Get new tokens by a refresh, else by a login; return the step that was taken, 0 for none.

        Where refreshed tokens work, or may not be known yet, and a login was a moment ago, another one would not help.
        """
        may_work = is_new or self.steps[app] == 0
        if step == _REFRESH and may_work and _now() < self.last_login.get(app, -_math.inf) + _YOUNG_TOKEN_SECONDS:
            return 0
        if step == 0 and self.refresh(app):
            return _REFRESH
        self.last_login[app] = _now()
        try:
            self.open()
        except LoginError as failure:
            _stop.request(1, str(failure))
            _stop.check()
        return _LOGIN


_sessions = _Sessions()


def _address_problem(url: str) -> str:
    """Return what is wrong with a base_url; "" if nothing is."""
    if "@" in url:
        return "the address has a user and a password in it: leave them out"
    scheme = host = ""
    # It raises InvalidURL, or whatever the codec of international host names raises.
    with _suppress(Exception):
        # Read as it will be when it is called.
        scheme, host = _httpx.URL(url).scheme, _httpx.URL(url).host
    if host.endswith(".example") or host == "...":
        return f"{url!r} is a placeholder"
    if scheme not in ("http", "https") or not host.strip(".") or _re.search(r"[\s?#]", url):
        return f"{url!r} is not an address like https://host/path"
    if scheme == "http" and not _re.fullmatch(r"localhost|127(\.\d+){3}|::1", host):
        return f"{url!r} would send password and tokens unencrypted: use https://"
    return ""


def _check_proxies() -> None:
    """Raise ConfigurationError for a proxy whose password is not percent-encoded: errors would show part of it."""
    for scheme, address in _proxies.getproxies().items():
        if scheme in ("http", "https", "all") and not _re.fullmatch(r"(\w+://)?([^@/?#\s]*@)?[^@/?#\s]+/?", address):
            raise ConfigurationError(f"{scheme.upper()}_PROXY: percent-encode #, /, ? and @ in its user and password")
    try:
        get_httpx_client()
    except (ImportError, ValueError, _httpx.InvalidURL) as error:
        raise ConfigurationError(f"HTTPS_PROXY, ALL_PROXY or NO_PROXY cannot be used: {error}") from error


def _check_constants() -> None:
    """Raise ConfigurationError for a constant that cannot work."""
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
        # An error if there is no such endpoint.
        url_of(app, "login" if app == "IAM" else "config_token")
    if problems:
        words = f"set {', '.join(problems)}: {next(iter(problems.values()))}"
        if len(problems) == len(MICROSERVICES):
            words += f"; or try python3 tests/sandbox.py {_script_name()}.py"
        raise ConfigurationError(words)


def _ask(variable: str, question: str, default: str, read: Callable[[str], str] = input) -> str:
    """Return a setting: from the environment, else typed by somebody who also sees the question, else the default."""
    value = _os.environ.get(variable, "")
    if value or not _is_terminal(_sys.stdin) or not _is_terminal(_sys.stderr):
        return value or default
    # stdout may be a data file.
    with _suppress(EOFError), _redirect_stdout(_sys.stderr):
        try:
            value = read(question)
        except BaseException:
            # The cursor is still behind the question.
            _sys.stderr.write("\n")
            raise
    return value or default


def _ask_threads() -> int:
    """Return the size of the main pool. Raises ConfigurationError if it is no number, or out of range."""
    threads = _ask("EB_THREADS", f"Threads, 1 to {MAX_THREADS} [{MAX_THREADS}]: ", str(MAX_THREADS))
    if threads in map(str, range(1, MAX_THREADS + 1)):
        return int(threads)
    raise ConfigurationError(f"EB_THREADS = {threads!r}: give a whole number from 1 to {MAX_THREADS} (MAX_THREADS)")


# =========================================================================================================== API calls

_NO_IDS = ("", ".", "..", "nan", "nat", "none", "null", "<na>")


def identifier(value: str | int) -> str | int:
    """Return the id that a call is about. Raises WrongValue for what would ask for something else, as "" or ".." do."""
    if isinstance(value, str) and value.isprintable() and value == value.strip() and value.lower() not in _NO_IDS:
        return value
    # A numpy integer is not an int, but has __index__.
    if isinstance(value, _typing.SupportsIndex) and not isinstance(value, bool):
        return value.__index__()
    kind = type(value).__name__
    raise WrongValue(f"this {kind} is not an id: pass an integer or a text, not empty and without blanks around it")


def path_segment(value: str | int) -> str:
    """Return an id as a part of a path, percent-encoded."""
    return _url.quote(str(identifier(value)), safe="")


def require_id(answer: dict[str, Any], key: str, value: str | int) -> dict[str, Any]:
    """Return an answer if its `key` is the id that you asked for, else raise WrongValue: it may be another call's."""
    if answer.get(key) is None or str(answer[key]) != str(value):
        raise WrongValue(f"the answer has no {key}, or another than was asked for; {_CHECK}")
    return answer


def _query_of(params: Any) -> str:
    """Return a query string. None is left out: httpx would send it as an empty value, which finds nothing."""
    if isinstance(params, (str, _httpx.QueryParams)):
        return str(params)
    if isinstance(params, _abc.Mapping):
        params = params.items()
    pairs: list[tuple[str, Any]] = []
    for key, value in params:
        values = [value]
        if isinstance(value, _abc.Iterable) and not isinstance(value, (str, bytes)):
            values = list(value)
        if not values:
            raise WrongValue(f"the parameter {key} is empty, which would ask for everything: pass None to do so")
        pairs += [(key, each) for each in values if each is not None]
    return str(_httpx.QueryParams(pairs))


def call_endpoint(
    app: str, method: str, endpoint: str, expected: type[_T], suffix: str = "", params: Any = (), **options: Any
) -> _T:
    """Make one call with the access token of a service, and return its JSON.

    `expected` is dict or list. `suffix` is added to the path, `params` become the query, `options` (json=, timeout=)
    are those of httpx. Raises httpx.HTTPError, and WrongValue for a wrong answer.
    """
    if _re.search(r"[?#]|/\.\.?(/|$)", suffix):
        raise WrongValue(f"{app} {endpoint}: the suffix leads to another path: put ids into it by path_segment()")
    address, _, query = url_of(app, endpoint).partition("?")
    headers = {"Authorization": f"Bearer {tokens[app]['access_token']}"}
    # httpx would drop the query of an endpoint for params.
    query = "&".join(filter(None, (query, _query_of(params or ()))))
    url = f"{address}{suffix}?{query}" if query else f"{address}{suffix}"
    response = get_httpx_client().request(method, url, headers=headers, **options)
    response.raise_for_status()
    body: Any = response.json()
    if not isinstance(body, expected):
        kind = type(body).__name__
        raise WrongValue(f"{app} {endpoint}: the answer is a {kind}, not a {expected.__name__}; {_CHECK}")
    if isinstance(body, dict) and body.get("error"):
        raise WrongValue(f"{app} {endpoint}: the answer is an error with HTTP {response.status_code}; {_CHECK}")
    return body


def _check_call(app: str, name: str, arguments: Iterable[Any]) -> None:
    """Raise an error for a call that cannot work, or could not be repeated."""
    _stop.check()
    _check_enabled(app, name)
    if app not in tokens:
        raise ConfigurationError(f"{name}: {app} has no access token yet: call login() first")
    for value in arguments:
        if isinstance(value, _abc.Iterator) or hasattr(value, "read"):
            kind = type(value).__name__
            raise WrongValue(f"{name}: a {kind} would be empty at the second attempt: pass a list, bytes or a path")


def api_call_with_retry(app: str, *, idempotent: bool = True) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Decorate a function that calls a service: renew its tokens on 401, repeat what may pass.

    Pass `idempotent=False` for a call that creates something: it is then repeated only if it cannot have been carried
    out. Make one call in such a function. After the last attempt the exception of that attempt is raised.
    """
    if not isinstance(app, str):
        raise WrongValue('name the service that the function calls: @api_call_with_retry("RC")')
    retryable = _partial(_is_retryable, idempotent=idempotent)

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        name = function.__name__

        @_wraps(function)
        def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            _check_call(app, name, (*args, *kwargs.values()))
            attempts: Callable[[], _T] = _Attempts(app, name, _partial(function, *args, **kwargs))
            return _with_retries(name, lambda: _sessions.with_renewals(app, name, attempts), retryable)

        return wrapper

    return decorate


def rows_on(page: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows on a page {"data": [...], ...}. Raises WrongValue if it is none."""
    rows = page.get("data")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise WrongValue(f"a page is no {{'data': [{{...}}, ...]}}; {_CHECK}")
    return rows


def every_page(fetch: Callable[[int, int], dict[str, Any]], key: str, limit: int = 1000) -> list[dict[str, Any]]:
    """Return all rows of a paged endpoint, each once; `key` tells one row from another.

    `fetch(limit, page)` returns {"data": [...], "total": n}, pages from 1. Pages are asked for until one brings
    nothing new, since `total` may count a single page. Raises WrongValue rather than return a short or a doubled list.
    A row that is deleted and one that is created meanwhile cancel out: that cannot be seen.
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
            # A server may cap pages, and count them by our limit or by its own: from here on they are the same.
            limit = len(found)
        if not new and len(rows) == page.get("total") == total:
            return list(rows.values())
        is_whole = len(found) == len(page["data"]) == len(new) > 0 and None not in found
        # Once a row is deleted, all later ones move up, one of them onto a page that was read before.
        if not is_whole or type(total) is not int or page.get("total") != total or len(rows) + len(new) > total:
            sizes = f"{len(rows)} rows before it, {len(new)} new ones with a {key}, total {total!r}"
            raise WrongValue(f"page {number} does not fit: {sizes}, then {page.get('total')!r}: run again; {_CHECK}")
        rows |= found


def _describe_with_line(error: BaseException) -> str:
    """Return an exception in a few words, with the last line of the script before its API functions."""
    place = ""
    for frame, line in _traceback.walk_tb(error.__traceback__):
        if frame.f_code is _Attempts.__call__.__code__:
            break
        is_engine = frame.f_globals is _NAMES and line in _ENGINE_LINES
        if frame.f_globals.get("__name__") == "__main__" and not is_engine:
            place = f" ({_os.path.basename(frame.f_code.co_filename)} line {line})"
    return _describe(error) + place


# ====================================================================================================== Pools and bars

_LOG_EVERY = 30


def _retries_in_words() -> str:
    """Return how many retries there were, and how many calls wait for one, for a bar."""
    words = []
    if retries := _figures.total("retries"):
        words.append(f"{retries:,} retries")
    waiting = list(_stop.waiting.values())
    wait = min(waiting, default=0) - _now()
    # What goes on within a second is not worth a word.
    if wait > 1:
        words.append(f"{len(waiting)} waiting, next in {wait:.0f} s")
    return ", ".join(words)


class _Bar(_tqdm.tqdm):  # type: ignore[type-arg]
    """The bar. Without a terminal it draws nothing; its state then goes to the log now and then."""

    # Whether the run is over: a bar would then appear below its closing line.
    is_over = False
    # Whether it tells of retries.
    tells_retries = False

    def __init__(self, *args: Any, **options: Any) -> None:
        self.is_drawn = _is_terminal(_sys.stderr) or hasattr(_sys, "ps1")
        self.next_line = _now() + _LOG_EVERY
        if not self.is_drawn:
            options["file"] = _io.StringIO()
        # Only the topmost bar stays: a lower one would tear the screen.
        options.setdefault("leave", None)
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.tells_retries:
            self.postfix = _retries_in_words()
        if self.is_drawn and not _Bar.is_over:
            super().display(msg, pos)
            # What comes next, a line or the echo of Ctrl-C, starts at the left.
            self.fp.write("\r")
        elif not self.is_drawn and msg is None and _now() >= self.next_line:
            self.next_line = _now() + _LOG_EVERY
            _logger.info(str(self))


tqdm = _Bar
# tqdm's own lock works across processes; from Python 3.14 on, making it starts another process.
_tqdm.tqdm.set_lock(_threading.RLock())


def get_thread_position() -> int:
    """Return the row for a bar of this thread (`position=`): 1, 2, ... in the workers of both pools, 0 elsewhere."""
    return _thread.position


class _Task(_futures.Future[_T]):
    """The future of a task. Whoever asks for its result or its exception hears of its failure."""

    # Its key in _stop.unheard, which must not keep the future itself, and so all that its traceback holds.
    key: object = None

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
    """Do a task, unless the run is ending; log its failure, for a script that does not ask for the result."""
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
        # A log handler of the script's own may raise.
        with _suppress(Exception):
            if not isinstance(failure, RunStopped):
                future.key = object()
                words = _stop.unheard[future.key] = f"task {name}: {_describe_with_line(failure)}"
                # An API function has logged its failure itself.
                if not _given_up_by(failure):
                    _logger.info(words)
        future.set_exception(failure)
        # This frame is in the traceback of the failure: it would keep both, and with them the data of the task.
        del future, failure


def _cancel(futures: Iterable[_futures.Future[Any]]) -> None:
    """Cancel tasks. How those end that have begun is of no interest any more."""
    for future in tuple(futures):
        if not future.cancel():
            future.add_done_callback(lambda ended: ended.exception())


def _wait_for(futures: Iterable[_futures.Future[Any]]) -> None:
    """Wait until futures are done; once the run is ending, no longer than its grace."""
    for future in tuple(futures):
        while not future.done() and _stop.grace_left() > 0:
            # In steps: on Windows a long wait does not hear Ctrl-C.
            _futures.wait([future], timeout=0.2)


class _ThreadPool(_futures.Executor):
    """A pool of threads that can be used again and again, from any thread; no task waits for a place that it holds.

    Work only goes down: from the main thread (depth 0) to the main pool (1) to the subtasks pool (2). A submit sideways
    or up runs inline, in the submitting thread: waiting for a place in a pool that waits for you would never end.
    """

    def __init__(self, name: str, depth: int, size: int) -> None:
        self.name, self.depth, self.size = name, depth, size
        self.reset()

    def reset(self) -> None:
        """Start anew, without a word to threads and tasks."""
        self.lock = _threading.Lock()
        self.tasks: _queue.SimpleQueue[Any] = _queue.SimpleQueue()
        # How many threads take tasks. They start one by one, until there are `size`.
        self.threads = 0
        # The tasks that are queued or in progress. One is over when the callbacks of its future are, too.
        self.pending: set[_futures.Future[Any]] = set()
        # Thread -> what was submitted in each of its open `with` blocks.
        self.blocks: dict[int, list[set[_futures.Future[Any]]]] = _defaultdict(list)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _futures.Future[_T]:
        future: _Task[_T] = _Task()
        if _thread.depth >= self.depth or _stop.reasons:
            _carry_out(future, fn, args, kwargs)
            return future
        with self.lock:
            if self.threads < self.size:
                name, arguments = f"{self.name}_{self.threads}", (self.tasks, self.threads + 1)
                _threading.Thread(target=self.work, args=arguments, name=name, daemon=True).start()
                self.threads += 1
            self.tasks.put((future, fn, args, kwargs))
            # Last: if Ctrl-C came between the two lines, the run would wait for a task that was never queued.
            self.pending.add(future)
        if blocks := self.blocks.get(_threading.get_ident()):
            blocks[-1].add(future)
            future.add_done_callback(blocks[-1].discard)
        return future

    def work(self, tasks: Any, number: int) -> None:
        """Do tasks until there comes None.

        Threads are daemons: Python does not wait for one that is blocked, but `run` waits for tasks.
        """
        _thread.depth = self.depth
        _thread.position = number + sum(pool.size for pool in _POOLS if pool.depth < self.depth)
        for task in iter(tasks.get, None):
            # A callback of the future may call sys.exit().
            with _suppress(BaseException):
                _carry_out(*task)
            with self.lock:
                self.pending.discard(task[0])
            del task

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel or await what the innermost `with` of this thread submitted, else all; the pool stays usable."""
        blocks = self.blocks.get(_threading.get_ident())
        block = blocks[-1] if blocks else self.pending.copy()
        if cancel_futures:
            _cancel(block)
        # A task would wait for itself, or for one that waits for it.
        if wait and _thread.depth < self.depth:
            _wait_for(block)
        else:
            # Forgotten, not cancelled: the end of the `with` does not wait for them either.
            block.clear()

    def __enter__(self) -> _ThreadPool:
        self.blocks[_threading.get_ident()].append(set())
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        # A generator that holds the `with` may be closed by another thread, which has none.
        block = (self.blocks[_threading.get_ident()] or [set()]).pop()
        if kind is not None:
            _cancel(block)
        _wait_for(block)
        # Or the script would go on without what was not done.
        if kind is None:
            _stop.check()

    def close(self) -> None:
        """Let the threads end when what is queued is done; the next submit starts new ones, up to `size`."""
        with self.lock:
            for _ in range(self.threads):
                self.tasks.put(None)
            self.threads, self.tasks = 0, _queue.SimpleQueue()


main_thread_pool = _ThreadPool("main", 1, MAX_THREADS)
subtasks_thread_pool = _ThreadPool("subtasks", 2, SUBTASKS_POOL_SIZE)
_POOLS = (main_thread_pool, subtasks_thread_pool)


def _id_of(item: object) -> str:
    """Return what names an item in the log file: itself if it is an id, its `id`, its first key that ends in Id."""
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


class _Results(_abc.Iterator[Any]):
    """An iterator of `(item, result)` that logs an error if nobody loops over it."""

    def __init__(self, results: Any, name: str) -> None:
        self.results, self.name, self.begun = results, name, False

    def __next__(self) -> Any:
        self.begun = True
        return next(self.results)

    def close(self) -> None:
        """Cancel what is queued."""
        self.results.close()

    def __del__(self) -> None:
        # When Python ends there is no logger any more.
        if not self.begun and _logger is not None:
            words = "run_parallel(%s, ...) has done nothing: loop over it, or take list(run_parallel(...))"
            _logger.error(words, self.name)


def _results_of(function: Callable[[_Item], _T], items: Iterable[_Item], desc: str, return_exceptions: bool) -> Any:
    """Yield what `run_parallel` promises, with a bar. A queue of all items would take 2 KB for each."""
    pool = subtasks_thread_pool if _thread.depth else main_thread_pool
    window = 2 * pool.size if _thread.depth < pool.depth else 1
    source, submitted = iter(items), 0
    in_flight: dict[_futures.Future[_T], tuple[int, _Item]] = {}
    finished: _queue.SimpleQueue[Any] = _queue.SimpleQueue()
    with _Bar(items, desc=desc, bar_format=custom_bar_format) as bar, _ExitStack() as stack:
        stack.callback(_cancel, in_flight)
        bar.tells_retries = True
        while True:
            free = window - len(in_flight)
            # A list may grow while it is worked on; its iterator would not go on once it has ended.
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
                # In steps: see _wait_for.
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
            if isinstance(error, Exception) and return_exceptions:
                yield item, error
            else:
                yield item, future.result()


def run_parallel(
    function: Callable[[_Item], _T], items: Iterable[_Item], desc: str = "", return_exceptions: bool = False
) -> Iterator[tuple[_Item, _T]]:
    """Yield `(item, function(item))` as they finish, on the main pool, with a bar; nothing runs until you loop over it.

    `items` may be endless: few are in flight. The first failure cancels the rest and is raised, and the log names its
    item. With `return_exceptions=True` the exception takes the place of the result. From within a task of the main
    pool it runs on the subtasks pool.
    """
    name = getattr(function, "__name__", "function")
    return _Results(_results_of(function, items, desc, return_exceptions), name)


# ================================================================================================================ JSON

_MISSING: Any = object()


def _children(node: Any, key: str | int, gap: list[Any]) -> Iterable[Any]:
    """Return what a key leads to from a node; `gap` where it leads nowhere."""
    if key == "*" and isinstance(node, dict):
        return node.values()
    if key == "*" and isinstance(node, list):
        return node
    if isinstance(node, dict) and key in node:
        return [node[key]]
    if isinstance(node, list) and isinstance(key, int) and -len(node) <= key < len(node):
        return [node[key]]
    return gap


def get_nested_value(data: Any, path: Sequence[str | int], default: Any = _MISSING) -> Any:
    """Return the value at `path` in nested JSON: keys, list indices, and "*" for each element of a list or dict.

    Without "*": the value, or the default (None if none is given). With "*": a flat list of the nodes of the JSONPath
    query (RFC 9535) of these segments. An element that lacks the rest of the path gives the default, if there is one.
    """
    if isinstance(path, str):
        raise WrongValue(f"the path is a list of keys, as [{path!r}], not the text {path!r}")
    nodes: list[Any] = [data]
    # What stands for a missing node: nothing; from the first "*" on a place for the default, if there is one.
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

# What the closing line counts.
_EVENTS = {"call": "calls", "retry": "retries", "failure": "failures"}
_STOP_SIGNALS = [signal for signal in _signal.Signals if signal.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")]


def _names_problem() -> str:
    """Return what is wrong if a script replaces a name that the engine needs, else "". Use none of them here."""
    replaced = [name for name in _NEEDED if _NAMES.get(name, _NEEDED[name]) is not _NEEDED[name]]
    replaced += _OVERWRITTEN
    if replaced:
        return f"the script replaces {', '.join(replaced)}, which the engine needs: rename it"
    return ""


def login() -> None:
    """Ask for or read the credentials, log in to IAM, configure every enabled service; enough for a notebook.

    Raises ConfigurationError before anything is sent, LoginError when the platform does not let us in.
    """
    # In a notebook a refused renewal may have stopped all calls before.
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
        pool.close()
    _logger.info("user %s, %d threads, services %s", user, threads, ", ".join(MICROSERVICES))
    _connections.watch()
    _sessions.log_in(user, password)
    # What follows is mostly done by other threads.
    get_httpx_client().close()


def _stop_by(signal: int) -> None:
    """End the run because of a signal; Ctrl-Break counts as Ctrl-C."""
    name = _signal.Signals(signal).name
    if name == "SIGBREAK":
        signal = _signal.SIGINT
    _stop.request(128 + signal, f"stopped by {name}")


def _on_signal(signal: int, frame: FrameType | None) -> None:
    """In the main thread: interrupt the script, once, so that its `finally` blocks run."""
    _stop_by(signal)
    if _stop.may_interrupt:
        _stop.may_interrupt = False
        raise KeyboardInterrupt


def _outcome_of(ending: BaseException) -> tuple[int, str]:
    """Return the exit code and the closing words for what `main`, or a thread of the script, ends with."""
    match ending:
        case SystemExit(code=None | int(0)):
            return 0, "done"
        case SystemExit(code=int(code)):
            # The system keeps eight bits of it: 256 would be 0.
            return code if 0 < code < 256 else 1, f"exit {code}"
        case KeyboardInterrupt():
            # No signal: Ctrl-C at the password prompt on Windows.
            return 128 + _signal.SIGINT, "stopped by SIGINT"
        case ConfigurationError():
            return 2, str(ending)
        case LoginError() | SystemExit(code=str()):
            return 1, str(ending) or "failed"
        case SystemExit(code=code):
            return 1, f"failed: sys.exit() got a {type(code).__name__}: give it an exit code or a text"
    words = _describe_with_line(ending)
    if name := _given_up_by(ending):
        words = f"{name}: {words}"
    if _status_of(ending) in (302, 403, 404):
        words += f"; {_CHECK}"
    return 1, f"failed: {words}"


def _on_unheard(caught: Any) -> None:
    """Log what ends a thread of the script, or is raised in a `__del__` or a generator that is thrown away.

    The exit code becomes 1, since what was to be done there is missing.
    """
    failure = caught.exc_value
    if failure is None or isinstance(failure, RunStopped):
        return
    code, words = _outcome_of(failure)
    if code:
        words = f"thread {_threading.current_thread().name}: {words.removeprefix('failed: ')}"
        _stop.unheard[object()] = words
        _logger.error(words, extra={"failure": failure})


def _in_time(seconds: float, function: Callable[[], object]) -> None:
    """Call a function in a thread, and wait so long at most: a lock or a full pipe may block it for ever."""
    thread = _threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)


def _flush(stream: Any) -> None:
    """Let what was printed go out. If the output of the script cannot, the run has failed."""
    # Under pythonw there is no stream.
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError) as error:
        if stream is _sys.stdout:
            _stop.request(1, f"failed: standard output: {error}")
        # Python flushes again at exit, and would report the same.
        with _suppress(OSError, ValueError):
            _os.dup2(_os.open(_os.devnull, _os.O_WRONLY), stream.fileno())


def _watch_signals(receiver: _socket.socket, write_end: Callable[[], None]) -> None:
    """Stop the run at the first signal; end the process at a second Ctrl-C, or when the grace is over.

    This thread hears them at once. The main thread, which alone runs handlers, may stand in a look-up of a host, on
    Windows in any call or wait (cpython#85609), or in a `finally` or an `except` of the script.
    """
    is_stopping = False
    # The main thread has 0.2 s to be first.
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
            # Or threads that compute would keep this one waiting.
            _sys.setswitchinterval(0.0005)
    _in_time(0.2, _partial(_flush, _sys.stdout))
    _in_time(0.4, write_end)
    _os._exit(_stop.outcome()[0])


def _catch_signals(stack: _ExitStack, write_end: Callable[[], None]) -> None:
    """Install our signal handlers until `stack` closes; leave ignored signals ignored."""
    sender, receiver = map(stack.enter_context, _socket.socketpair())
    sender.setblocking(False)
    watcher = _threading.Thread(target=_watch_signals, args=(receiver, write_end), name="signals", daemon=True)
    watcher.start()
    stack.callback(watcher.join)
    # A send may fail on Windows. A close would not be heard while a child made by fork has a copy.
    stack.callback(sender.shutdown, _socket.SHUT_WR)
    stack.callback(_sys.setswitchinterval, _sys.getswitchinterval())
    stack.callback(_signal.set_wakeup_fd, _signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False))
    for signal in _STOP_SIGNALS:
        if _signal.getsignal(signal) not in (_signal.SIG_IGN, None):
            stack.callback(_signal.signal, signal, _signal.signal(signal, _on_signal))


def _set_errors(stream: Any, errors: str) -> None:
    """Set what becomes of a character that a stream cannot encode. The script may have closed or replaced it."""
    with _suppress(AttributeError, OSError, ValueError):
        stream.reconfigure(errors=errors)


def _catch_errors(stack: _ExitStack) -> None:
    """Log errors that would go unnoticed, and let no character end the run, until `stack` closes."""
    stack.callback(setattr, _threading, "excepthook", _threading.excepthook)
    _threading.excepthook = _on_unheard
    stack.callback(setattr, _sys, "unraisablehook", _sys.unraisablehook)
    _sys.unraisablehook = _on_unheard
    # A pipe on Windows cannot encode every character.
    stack.callback(_set_errors, _sys.stdout, getattr(_sys.stdout, "errors", "strict"))
    _set_errors(_sys.stdout, "backslashreplace")


def _note_ending(ending: BaseException) -> None:
    """Log the reason before anything waits; the terminal gets the closing line alone."""
    code, words = _outcome_of(ending)
    if code:
        _stop.request(code, words)
    if isinstance(ending, Exception) and not isinstance(ending, (ConfigurationError, LoginError)):
        _logger.critical(_stop.outcome()[1], extra={"failure": ending, "file_only": True})
    # Closes the loops that it left open, and their bars.
    _traceback.clear_frames(ending.__traceback__)


def _end_executors() -> None:
    """End the pools of the script, as Python does at its end: their threads would otherwise wait for work for ever."""
    for each in _gc.get_objects():
        if issubclass(type(each), _futures.Executor) and each not in _POOLS:
            with _suppress(Exception):
                each.shutdown(wait=False)


def _wait_for_work(older: set[_threading.Thread]) -> None:
    """Wait for tasks, and for threads that are new in this run, as Python would; once it is ending, for its grace."""
    while _stop.grace_left() > 0:
        threads = [each for each in _threading.enumerate() if not each.daemon and each not in older]
        # Only now: a thread that has ended may have left tasks, and a task may have left others.
        tasks = main_thread_pool.pending | subtasks_thread_pool.pending
        if not threads and not tasks:
            return
        _wait_for(tasks)
        _time.sleep(0.01)
        if threads:
            _end_executors()
            threads[0].join(0.2)


def _write_end(started: float, once: _threading.Lock) -> None:
    """Write the end of the log: the table, and the closing line, which goes to the terminal as well."""
    # Never released: `run` and `_watch_signals` may both come here, and the second one waits until the process ends.
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
    """Open the log, log in, call a script, and return what that ends with; a signal may interrupt it, once."""
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
            if not isinstance(result, (int, str, type(None))):
                raise WrongValue(f"main returns a {type(result).__name__}: return nothing, an exit code or a text")
            _sys.exit(result)
        finally:
            _stop.may_interrupt = False
    except BaseException as error:
        return error


def run(main: Callable[[], object]) -> int:
    """Run a script: log, checks, login, `main`, summary. It is for the main thread of a script.

    Returns the exit code: 0 done, 1 failed, 2 a wrong setting, 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP. What `main` returns
    is for sys.exit: nothing, an exit code, or a text.
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
        # A child made by os.fork() has come out of main(). The rest is for its parent.
        if _os.getpid() != process:
            _flush(_sys.stdout)
            code, words = _outcome_of(ending)
            if code:
                _say(f"{_script_name()}, process {_os.getpid()}: {words}")
            _os._exit(code)
        _note_ending(ending)
        _wait_for_work(older)
        _flush(_sys.stdout)
        write_end()
        code = _stop.outcome()[0]
        # Python would wait for a thread that is blocked.
        if _stop.grace_left() <= 0:
            _os._exit(code)
    _stop.reset()
    return code


# Type checkers know `sys.platform` by this name alone.
if sys.platform != "win32":
    # Signals are blocked meanwhile: a child that got one would stop its parent.
    _hold_signals = _partial(_signal.pthread_sigmask, _signal.SIG_BLOCK, _STOP_SIGNALS)
    _hear_signals = _partial(_signal.pthread_sigmask, _signal.SIG_UNBLOCK, _STOP_SIGNALS)

    def _forget_parent() -> None:
        """In a child made by fork: start as if nothing had happened before; the child may call login().

        With an inherited client, parent and children would read each other's answers.
        """
        defaults = {_signal.SIGINT: _signal.default_int_handler}
        for signal in _STOP_SIGNALS:
            if _signal.getsignal(signal) is _on_signal:
                _signal.signal(signal, defaults.get(signal, _signal.SIG_DFL))
                _signal.set_wakeup_fd(-1)
        for state in (_stop, _figures, _thread, _connections, _sessions, *_POOLS):
            state.reset()
        _tqdm.tqdm.set_lock(_threading.RLock())
        _hear_signals()

    _os.register_at_fork(before=_hold_signals, after_in_parent=_hear_signals, after_in_child=_forget_parent)


@_atexit.register
def _at_exit() -> None:
    """Do what a script without `run`, or with one of its own, leaves undone: wait for its tasks, say what is wrong."""
    problem = _names_problem()
    if not problem:
        _wait_for_work(set(_threading.enumerate()))
        if _stop.unheard:
            _say(_stop.outcome()[1])
    elif __name__ == "__main__" and _NAMES["run"] is not _NEEDED["run"]:
        _sys.stderr.write(f"{problem}; nothing was run\n")
        _os._exit(2)


# The builtins, and the public names, that the engine and its API functions call. Add what you newly call.
_NEEDED_NAMES = """
login run tokens get_httpx_client api_call_with_retry call_endpoint url_of identifier path_segment require_id rows_on
every_page main_thread_pool subtasks_thread_pool TemplateError ConfigurationError LoginError WrongValue RunStopped
BaseException EOFError Exception ImportError KeyboardInterrupt OSError OverflowError PermissionError RecursionError
RuntimeError StopIteration SystemExit TimeoutError TypeError UnicodeDecodeError ValueError all bool bytes dict filter
float getattr hasattr int isinstance issubclass iter len list map max min next object range repr round set setattr
sorted str sum super tuple type vars
"""
_ENGINE_LINES = range(_State.__init__.__code__.co_firstlineno, _at_exit.__code__.co_firstlineno)
_NEEDED = {name: _builtins.__dict__.get(name, _NAMES.get(name)) for name in _NEEDED_NAMES.split()}
_NEEDED |= {name: value for name, value in _NAMES.items() if name.startswith("_") and name not in _BEFORE}
# What the script has named before the engine did. A module that is loaded anew has named all of it.
_OVERWRITTEN = [
    name
    for name, value in _BEFORE.items()
    if _NAMES[name] is not value and name not in ("logger", "tqdm") and "_NEEDED" not in _BEFORE
]
# ========================================================================================================= ENGINE ENDS

# ================================================================================================ EDIT 2: API functions
# Both lines of a function name the same service: the decorator renews its access token, call_endpoint sends it.
# A function that creates something takes @api_call_with_retry("RC", idempotent=False), or it may create it twice.


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
