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
            Ctrl-C, SIGTERM              queued work is dropped, calls in flight get 2 s; exit code 130, 143
            log, terminal                no password, no token; the log ends with a table of calls, retries, durations
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import email.utils
import functools
import getpass
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
import reprlib
import signal
import ssl
import sys
import threading
import time
import traceback
import urllib.parse
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed  # noqa: F401  as_completed is for your TODO block
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import httpx
from tqdm import tqdm as TqdmBar

# ======================================================================================= EDIT 1: constants and services

DEFAULT_USER_NAME = "ziwig-invest2@yopmail.com"  # offered at the prompt; EB_USER_NAME comes first
DEFAULT_PASSWORD = ""  # leave it empty: set EB_PASSWORD, or type it when asked
MAX_THREADS = 20  # threads of the main pool, at most and by default; EB_THREADS sets fewer, against many 429 or 503
SUBTASKS_POOL_SIZE = 40  # threads of the subtasks pool, beside those of the main pool
ERROR_MAX_RETRY = 10  # attempts per API call, the first included; 10 bridge about 2 minutes, 3 suit a trial
WAIT_BEFORE_RETRY = 0.5  # seconds before the first retry; doubles after each, with jitter
MAX_WAIT_BEFORE_RETRY = 60  # seconds; caps the doubling, and the longest Retry-After that is obeyed
API_TIMEOUT = 60  # seconds to connect, and without a byte of the answer; raise it for a slow endpoint
LOG_LEVEL = logging.INFO  # of the log file; logging.DEBUG writes a line per attempt
custom_bar_format = "{desc:<20.20} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"

TEMPLATE_VERSION = "1.3.0"  # of the template that this script was copied from; leave it as it is

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

logger = logging.getLogger(__name__)
P = ParamSpec("P")
Item = TypeVar("Item")
T = TypeVar("T")


class ConfigurationError(Exception):
    """A setting is missing or wrong; the text names it, its value and the fix. Exit code 2."""


class LoginError(Exception):
    """The platform does not let us in; the text names service and call. Exit code 1."""


RunStopped = SystemExit  # the run is ending: it passes `except Exception`, and no thread prints a traceback for it


class Stop:
    """Whether, why and until when the run is ending. It has no lock, so that a signal handler may set it."""

    code, reason, deadline = 0, "", math.inf

    def request(self, code: int, reason: str) -> None:
        """End the run in every thread, with this exit code; the first reason stays."""
        if not self.reason:
            self.code, self.deadline = code, time.monotonic() + GRACE_SECONDS
            self.reason = reason  # last: other threads look at it first

    def check(self) -> None:
        """Raise RunStopped if the run is ending."""
        if self.reason:
            raise RunStopped(self.reason)

    def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than the run goes on."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.1))


_stop = Stop()

# ========================================================================================================== Engine: log

_secrets: set[str] = set()  # the password and every token seen
_lock = threading.Lock()  # guards the tables of the engine; never held while waiting
_events: defaultdict[str, Counter[str]] = defaultdict(Counter)  # API function -> "calls", "retries", ... -> how often
_durations: defaultdict[str, Counter[int]] = defaultdict(Counter)  # API function -> milliseconds -> attempts


def redact(text: str) -> str:
    """`text` without password, tokens, bearer and cookie headers, logins in URLs, and query strings: patient ids."""
    for secret in sorted(_secrets.copy(), key=len, reverse=True):  # longest first: one may contain another
        text = text.replace(secret, "***")
    text = re.sub(r"(?i)\b(bearer\s+|cookie\W+(?:b['\"])?)[^\s'\",]+", r"\1***", text)
    text = re.sub(r"(https?://)[^\s/?#'\"]+@", r"\1***@", text)
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1?***", text)


def one_line(text: str) -> str:
    """`text` with its control characters escaped: a line break from a server would forge a log line (CWE-117)."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: repr(match[0])[1:-1], text)


class LogFile(logging.handlers.RotatingFileHandler):
    """The log, one line per record; its owner alone can read it, after a rotation too."""

    def _open(self) -> io.TextIOWrapper:
        os.close(os.open(self.baseFilename, os.O_CREAT | os.O_WRONLY, 0o600))
        os.chmod(self.baseFilename, 0o600)  # an older log may be open to others
        return super()._open()

    def format(self, record: logging.LogRecord) -> str:
        """One line with nothing secret in it; a traceback follows, indented."""
        plain = logging.Formatter()
        lines = [f"{plain.formatTime(record)} {record.levelname:<8} {record.threadName:<12} {record.getMessage()}"]
        if record.exc_info:
            lines += plain.formatException(record.exc_info).split("\n")
        if record.stack_info:
            lines += record.stack_info.split("\n")
        return redact("\n    ".join(one_line(line) for line in lines))

    def handleError(self, record: logging.LogRecord) -> None:
        """Name the line of the script; logging's own report would show the message's arguments, tokens too."""
        place = f"{record.pathname}:{record.lineno}: {sys.exc_info()[1]}"
        _terminal.emit(logging.makeLogRecord({"msg": place}))


class Terminal(logging.Handler):
    """Log messages on the terminal, above the bars; tqdm's own redirection ignores levels (tqdm#1272)."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # the terminal may be gone, or the arguments not fit: see LogFile
            stream = sys.stderr or io.StringIO()  # never stdout, tqdm's default: it is for the script's results
            # Without a terminal tqdm's lock may be held by a bar that waits for the log's.
            tqdm.write(redact(one_line(record.getMessage())), file=stream, nolock=not stream.isatty())


_terminal = Terminal()


def script_name() -> str:
    """The file that Python was started with, without `.py`; in a notebook, this file."""
    path = Path(getattr(sys.modules["__main__"], "__file__", None) or globals().get("__file__", "eb_script.py"))
    return path.parent.name if path.stem == "__main__" else path.stem.strip("<>")  # as in <stdin>


def open_log(stack: contextlib.ExitStack) -> None:
    """Send what is logged, the script's own lines too, to the terminal and to a file, until `stack` is closed."""
    root, path = logging.getLogger(), f"{script_name()}.log"
    _terminal.setLevel(logging.WARNING)
    root.addHandler(_terminal)
    stack.callback(root.removeHandler, _terminal)
    try:
        log = LogFile(path, maxBytes=10_000_000, backupCount=5, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written ({error}): start the script in another folder") from error
    stack.callback(log.close)
    root.addHandler(log)
    stack.callback(root.removeHandler, log)
    log.setLevel(LOG_LEVEL if isinstance(LOG_LEVEL, int) else logging.INFO)  # login() raises for it
    root.setLevel(min(log.level, logging.INFO))
    for library in ("httpx", "httpcore"):  # their lines hold full URLs and cookies
        logging.getLogger(library).setLevel(logging.WARNING)
    python = f"Python {sys.version.split()[0]} on {sys.platform}"
    logger.info("%s started, template %s, %s", script_name(), TEMPLATE_VERSION, python)


def record_attempt(name: str, attempt: int, status: str, started: float) -> None:
    """Note an attempt of an API function that began at `started` (time.perf_counter)."""
    seconds = time.perf_counter() - started
    with _lock:
        _events[name]["calls" if attempt == 1 else "retries"] += 1
        _events[name]["returns"] += status == "ok"
        _durations[name][round(seconds * 1000)] += 1
    logger.debug("%s attempt %d: %s in %.3f s", name, attempt, status, seconds)


def summary() -> list[str]:
    """The table at the end of the log, a line per API function; its durations are those of single attempts."""
    titles = ("calls", "retries", "renewals", "failures", "p50 ms", "p95 ms", "max ms")
    lines = [f"{'API function':<28}" + "".join(f"{title:>10}" for title in titles)]
    for name, events in sorted(_events.items()):
        ordered = sorted(_durations[name].elements())
        figures = [events["calls"], events["retries"], events["renewals"], events["calls"] - events["returns"]]
        figures += [ordered[math.ceil(share * len(ordered)) - 1] for share in (0.50, 0.95, 1)]
        lines.append(f"{name:<28}" + "".join(f"{figure:>10,}" for figure in figures))
    return lines


# ================================================================================================ Engine: progress bars

LOG_EVERY = 30  # seconds between two log lines on a bar, where there is no terminal to draw it on

_rows: dict[threading.Thread, int] = {}  # the terminal row of each live worker


class tqdm(TqdmBar):  # type: ignore[type-arg]  # the name that scripts use
    """tqdm's bar. Without a terminal it draws nothing; its state then goes to the log now and then."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.next_line = time.monotonic() + LOG_EVERY
        if not self.on_terminal:
            options["file"] = io.StringIO()
        options.setdefault("leave", None)  # only the topmost bar stays: a lower one would tear the screen
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.on_terminal:
            for bar in [b for b in self._instances if pos == 0 and hasattr(b, "start_t")]:  # type: ignore[attr-defined]
                bar.clear(nolock=True)  # this one is closed and leaves a line, which moves those below
            super().display(msg, pos)
            self.fp.write("\r")  # what comes next, a line or the echo of Ctrl-C, starts at the left
        elif msg is None and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + LOG_EVERY
            logger.info("%s", self)


def get_thread_position() -> int:
    """The row for this thread's bar (tqdm's `position=`): 0 in the main thread, else unique among live threads."""
    thread = threading.current_thread()
    if thread is threading.main_thread():
        return 0
    with _lock:
        for ended in [owner for owner in _rows if not owner.is_alive()]:
            del _rows[ended]
        free = set(range(1, len(_rows) + 2)) - set(_rows.values())
        return _rows.setdefault(thread, min(free))


# ================================================================================================= Engine: HTTP clients


class ThreadState(threading.local):
    """What each thread has of its own."""

    client: httpx.Client | None = None
    level = 0  # see ThreadPool: 1 in a worker of the main pool, 2 in one of the subtasks pool


_thread = ThreadState()
_clients: weakref.WeakValueDictionary[int, httpx.Client] = weakref.WeakValueDictionary()  # thread -> its client


def get_httpx_client() -> httpx.Client:
    """This thread's client, kept alive between calls; one shared by all threads loses requests (httpcore#1110)."""
    client = _thread.client
    if client is None or client.is_closed:
        # Node.js and uvicorn close idle connections after 5 s: close ours first, rather than write into a closing one.
        limits = httpx.Limits(keepalive_expiry=4)
        with _lock:
            context = shared_tls_context()
        direct = {"http://": None}  # it goes to this machine only: never through a proxy
        client = _thread.client = httpx.Client(verify=context, timeout=API_TIMEOUT, limits=limits, mounts=direct)
        _clients[threading.get_ident()] = client
    return client


@functools.cache  # call it under _lock: the cache alone lets threads that start together make one each
def shared_tls_context() -> ssl.SSLContext:
    """The TLS context of all clients: loading the CA bundle, or SSL_CERT_FILE, for each would take 30 ms of CPU."""
    try:
        context = httpx.create_ssl_context()
    except OSError as error:
        path = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
        raise ConfigurationError(f"SSL_CERT_FILE = {path!r}: {error}; name a file of CA certificates") from error
    context.set_alpn_protocols(["http/1.1"])
    # httpcore sets it again on each connect, which corrupts other threads' handshakes (cpython#141012).
    context.set_alpn_protocols = lambda protocols: None  # type: ignore[method-assign, assignment]
    return context


# ============================================================================================= Engine: login and tokens

MAX_REFUSALS = 5  # how often one call may meet a 401 and be made again

tokens: dict[str, dict[str, Any]] = {}  # service -> {"access_token", "refresh_token", ...}
_credentials: dict[str, str] = {}
_token_lock = threading.Lock()
_refusals: Counter[str] = Counter()  # service -> 401s to its newest access token since another answer


def url_problem(url: str) -> str:
    """What is wrong with a base_url; "" if nothing is."""
    try:
        parts = httpx.URL(url)  # read as it will be when it is called
    except (httpx.InvalidURL, TypeError):
        return "is no https:// address"
    if parts.host.endswith(".example"):
        return "is a placeholder"
    if parts.scheme == "http" and not re.fullmatch(r"localhost|127(\.\d+){3}|::1", parts.host):
        return "would send password and tokens unencrypted: use https://"
    return "" if parts.host and parts.scheme in ("http", "https") else "is no https:// address"


def check_configuration() -> None:
    """Raise ConfigurationError if constants or services cannot work, before anything is sent."""
    counts = {"MAX_THREADS": 1, "SUBTASKS_POOL_SIZE": 1, "ERROR_MAX_RETRY": 1, "LOG_LEVEL": 0}
    seconds = {"API_TIMEOUT": 0.001, "WAIT_BEFORE_RETRY": 0, "MAX_WAIT_BEFORE_RETRY": 0}
    for name, low in {**counts, **seconds}.items():
        value = globals()[name]
        if not isinstance(value, int if name in counts else (int, float)) or not low <= value < math.inf:
            raise ConfigurationError(
                f"{name} = {value!r}: give a {'whole ' if name in counts else ''}number, {low} or more"
            )
    if "IAM" not in MICROSERVICES:
        raise ConfigurationError("MICROSERVICES has no IAM: put its entry back, every login goes through it")
    urls = {app: service["base_url"] for app, service in MICROSERVICES.items()}
    problems = [f"EB_{app}_URL ({url!r} {url_problem(url)})" for app, url in urls.items() if url_problem(url)]
    if problems:
        trial = f"to try without the platform: python tests/sandbox.py {script_name()}.py"
        raise ConfigurationError(f"set {', '.join(problems)}; {trial}")


def ask(variable: str, question: str, default: str, read: Callable[[str], str] = input) -> str:
    """A setting: from the environment, else typed in a terminal, else the default."""
    value = os.environ.get(variable, "")
    if not value and all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        with contextlib.suppress(EOFError), contextlib.redirect_stdout(sys.stderr):  # stdout may be a data file
            try:
                value = read(question)
            except BaseException:
                print()  # the cursor still stands behind the question
                raise
    return value or default


def login() -> None:
    """Ask for or read the credentials, log in to IAM, configure every enabled service; enough for a notebook.

    Raises ConfigurationError before anything is sent, LoginError when the platform does not let us in.
    """
    global _stop
    _stop = Stop()  # a refused renewal may have stopped all calls before
    check_configuration()
    user = ask("EB_USER_NAME", f"User name [{DEFAULT_USER_NAME}]: ", DEFAULT_USER_NAME)
    password = ask("EB_PASSWORD", "Password: ", DEFAULT_PASSWORD, getpass.getpass)
    if not password:
        raise ConfigurationError("EB_PASSWORD is empty: set it, or start the script in a terminal and type it")
    threads = ask("EB_THREADS", f"Threads, 1 to {MAX_THREADS} [{MAX_THREADS}]: ", str(MAX_THREADS))
    if not re.fullmatch("[0-9]{1,9}", threads) or not 1 <= int(threads) <= MAX_THREADS:
        raise ConfigurationError(f"EB_THREADS = {threads!r}: give a whole number from 1 to {MAX_THREADS} (MAX_THREADS)")
    main_thread_pool.size, subtasks_thread_pool.size = int(threads), SUBTASKS_POOL_SIZE
    _credentials.update(username=user, password=password)
    _secrets.update((password, repr(password)[1:-1], json.dumps(password, ensure_ascii=False)[1:-1]))
    logger.info("user %s, %s threads, services %s", user, threads, ", ".join(MICROSERVICES))
    with _token_lock:
        open_sessions()
        _refusals.clear()


def open_sessions() -> None:
    """Open every session from the start, IAM's first. The caller holds the token lock."""
    started = time.monotonic()
    for app in sorted(MICROSERVICES, key=lambda app: app != "IAM"):
        endpoint = "login" if app == "IAM" else "config_token"
        try:
            call = functools.partial(open_session, app, endpoint)
            tokens[app] = call_until_done("IAM", True, f"{app}_{endpoint}", call)
        except (LoginError, httpx.HTTPError, ValueError, RecursionError) as error:
            if app != "IAM" and isinstance(error, LoginError) and time.monotonic() > started + API_TIMEOUT:
                return open_sessions()  # IAM's token may have run out while this service was down
            raise LoginError(f"{app} {endpoint}: {describe(error)}") from error


def open_session(app: str, endpoint: str) -> dict[str, Any]:
    """A new session: on IAM by the credentials, on any other service by IAM's access token."""
    if app == "IAM":
        return post_for_tokens(app, endpoint, _credentials)
    body = {"userId": tokens["IAM"]["userId"], "clientId": MICROSERVICES[app]["app_id"]}
    return post_for_tokens(app, endpoint, body, tokens["IAM"]["access_token"])


def post_for_tokens(app: str, endpoint: str, body: dict[str, Any], bearer: str | None = None) -> dict[str, Any]:
    """One call of login, config_token or refresh_token; its checked answer. Raises LoginError when refused."""
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else None
    response = get_httpx_client().post(url_of(app, endpoint), json=body, headers=headers, timeout=API_TIMEOUT)
    if response.is_client_error and response.status_code not in RETRIED_STATUSES:
        user = f"for user {_credentials['username']} (EB_USER_NAME, EB_PASSWORD)"
        who = user if response.status_code in (401, 403) else f"at {url_of(app, endpoint)}; check the address"
        raise LoginError(f"refused with HTTP {response.status_code} {who}")
    response.raise_for_status()
    return checked_tokens(app, endpoint, response.json())


def checked_tokens(app: str, endpoint: str, answer: Any) -> dict[str, Any]:
    """`answer`, if it holds what a session needs; tokens must fit into a header (RFC 6750, section 2.1)."""
    for key in ("access_token", "refresh_token", *(["userId"] if endpoint == "login" else [])):
        value = answer.get(key) if isinstance(answer, dict) else None
        if not isinstance(value, str) or not re.fullmatch(r"[\x21-\x7e]+", value):
            raise LoginError(f"no usable {key} in the answer of {url_of(app, endpoint)}; check the address")
    _secrets.update((answer["access_token"], answer["refresh_token"]))
    return {**answer, "received": time.monotonic()}


def renew_token(app: str, error: httpx.HTTPStatusError, name: str, refusals: int) -> bool:
    """Whether the API function `name` may make its call again after a 401, its `refusals`th: with a newer token.

    Comparing inside the lock makes it one renewal per token, however many threads saw it refused. It is a refresh, then
    a new login; a token that is refused even so has not expired: the 401 is about what the call asks for.
    """
    with _token_lock:
        _stop.check()
        if error.request.headers.get("Authorization") != f"Bearer {tokens[app]['access_token']}":
            return True
        if time.monotonic() > tokens[app].get("received", 0) + API_TIMEOUT:  # it may have expired since
            _refusals[app] = 0
        _refusals[app] += 1
        in_a_row = max(_refusals[app], refusals)
        if in_a_row > 2:
            error.args = (f"{app} refuses the access token of a new login (HTTP 401)",)
            return False
        _events[name]["renewals"] += 1
        try:
            if in_a_row > 1 or not refresh_session(app):
                open_sessions()
        except LoginError as failure:
            _stop.request(1, str(failure))
            _stop.check()
    return True


def refresh_session(app: str) -> bool:
    """Whether one refresh worked. It is never sent twice: if the platform carried it out, its token is spent."""
    spent = tokens[app].pop("refresh_token", None)  # before it is sent, which may be interrupted
    if spent is None or "refresh_token" not in MICROSERVICES[app]["endpoints"]:
        return False
    try:
        tokens[app] = post_for_tokens(app, "refresh_token", {"refresh_token": spent})
    except Exception as error:
        logger.warning("%s refresh_token: %s; logging in again", app, describe(error))
        return False
    logger.info("%s: access token renewed", app)
    return True


# ==================================================================================================== Engine: API calls

RETRIED_STATUSES = (408, 425, 429)  # and every 5xx but 501
RETRIED_ERRORS = (httpx.TransportError, httpx.DecodingError, json.JSONDecodeError, UnicodeDecodeError)
NOT_SENT_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"  # OpenSSL's word for it, in the text of a ConnectError


def url_of(app: str, endpoint: str) -> str:
    return f"{MICROSERVICES[app]['base_url'].rstrip('/')}{MICROSERVICES[app]['endpoints'][endpoint]}"


def call_endpoint(
    app: str, method: str, endpoint: str, kind: type[T], suffix: str = "", params: Any = None, **options: Any
) -> T:
    """One request with the service's access token; its JSON body, a list or dict as `kind` says.

    `suffix` is added to the path; `params` and `options` (json=, timeout=) are httpx's. Raises httpx.HTTPError, and
    TypeError for a body of another kind.
    """
    headers = {"Authorization": f"Bearer {tokens[app]['access_token']}"}
    query = f"?{httpx.QueryParams(params)}" if params else ""  # params= would make httpx parse the URL three times
    url = url_of(app, endpoint) + suffix + query
    response = get_httpx_client().request(method, url, headers=headers, **options)
    response.raise_for_status()
    body = response.json()
    if not isinstance(body, kind):
        raise TypeError(f"{app} {endpoint}: the answer is a {type(body).__name__}, not a {kind.__name__}")
    return body


def describe(error: BaseException) -> str:
    """An exception in a few words; not in those of httpx, which repeat the URL."""
    if isinstance(error, httpx.HTTPStatusError) and " for url " in str(error):
        return f"HTTP {error.response.status_code}"
    if isinstance(error, (LoginError, httpx.HTTPStatusError)):
        return str(error)
    hint = "; set SSL_CERT_FILE to the CA certificates of your organisation" if UNTRUSTED in str(error) else ""
    return f"{type(error).__name__}: {error}{hint}"


def is_retryable(error: Exception, idempotent: bool) -> bool:
    """Whether another attempt can help, and cannot create a second thing."""
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0
    if isinstance(error, httpx.UnsupportedProtocol) or UNTRUSTED in str(error):
        return False
    if not idempotent:
        return status == 429 or isinstance(error, NOT_SENT_ERRORS)
    return status in RETRIED_STATUSES or (status >= 500 and status != 501) or isinstance(error, RETRIED_ERRORS)


def retry_after_seconds(value: str, now: datetime) -> float:
    """The seconds that a Retry-After header asks for (RFC 9110, section 10.2.3: a number or a date); 0 for nonsense."""
    if re.fullmatch("[0-9]+", value.strip()):
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
        seconds: float = (date.replace(tzinfo=date.tzinfo or timezone.utc) - now).total_seconds()
        return max(0.0, seconds)
    except Exception:  # TypeError, ValueError or OverflowError, by version of Python
        return 0.0


def retry_delay(failures: int, retry_after: float = 0.0) -> float:
    """Seconds to wait after so many failed attempts: exponential backoff on top of Retry-After, capped.

    Its jitter keeps threads that failed together from coming back together.
    """
    backoff = min(MAX_WAIT_BEFORE_RETRY, WAIT_BEFORE_RETRY * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1)
    return min(MAX_WAIT_BEFORE_RETRY, retry_after + backoff)


def plan_retry(error: Exception, failures: int, idempotent: bool) -> float:
    """Seconds until the next attempt; raises `error` when there is to be none."""
    if failures >= ERROR_MAX_RETRY or not is_retryable(error, idempotent):
        raise error
    if not isinstance(error, httpx.HTTPStatusError):
        return retry_delay(failures)
    retry_after = retry_after_seconds(error.response.headers.get("Retry-After", ""), datetime.now(timezone.utc))
    if retry_after > MAX_WAIT_BEFORE_RETRY:
        text = f"Retry-After is {retry_after:.0f} s, MAX_WAIT_BEFORE_RETRY {MAX_WAIT_BEFORE_RETRY} s: run again later"
        error.args = (text,)
        raise error
    return retry_delay(failures, retry_after)


def check_session(app: str) -> None:
    """Raise ConfigurationError if the service has no tokens, RunStopped if the run is ending."""
    _stop.check()
    if app not in MICROSERVICES:
        raise ConfigurationError(f"{app} is not enabled: put its entry back into MICROSERVICES")
    if app not in tokens and app != "IAM":
        raise ConfigurationError(f"{app} has no access token yet: call login() first")


def call_until_done(app: str, idempotent: bool, name: str, call: Callable[[], T]) -> T:
    """Make attempts as `renew_token` and `plan_retry` decide."""
    failures = refusals = 0
    while True:
        check_session(app)
        started, attempt = time.perf_counter(), failures + refusals + 1
        try:
            result = call()
        except Exception as error:
            record_attempt(name, attempt, describe(error), started)
            if "api_function" in vars(error):
                raise  # out of a decorated function that this one calls, and that has tried what can be tried
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 401:
                refusals += 1
                if refusals <= MAX_REFUSALS and renew_token(app, error, name, refusals):
                    continue
            elif isinstance(error, httpx.HTTPStatusError):
                _refusals[app] = 0
            failures += 1
            vars(error)["api_function"] = name  # for the closing line, too
            delay = plan_retry(error, failures, idempotent)
            logger.warning("%s: %s, attempt %d, next in %.1f s", name, describe(error), attempt, delay)
            _stop.sleep(delay)
        else:
            record_attempt(name, attempt, "ok", started)
            _refusals[app] = 0
            return result


def api_call_with_retry(app: str, *, idempotent: bool = True) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator of a function that calls a service: renews its token on 401, retries what may pass.

    Pass `idempotent=False` for a call that creates something: it is then repeated only if it cannot have been carried
    out. After the last attempt the original exception is raised.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            call = functools.partial(function, *args, **kwargs)
            return call_until_done(app, idempotent, function.__name__, call)

        return wrapper

    return decorate


# ======================================================================================================== Engine: pools


class ThreadPool(concurrent.futures.Executor):
    """A pool of threads that can be used again and again, from any thread, and that cannot deadlock.

    Work only goes down: from the main thread (level 0) to the main pool (1) to the subtasks pool (2). A submit sideways
    or up runs inline, in the submitting thread: waiting for a place in a pool that waits for you would never end.
    """

    def __init__(self, name: str, level: int, size: int) -> None:
        self.name, self.level, self.size = name, level, size
        self._pool: ThreadPoolExecutor | None = None  # made at the first submit: an import starts no thread
        self._pending: set[Future[Any]] = set()
        self._blocks: defaultdict[int, list[set[Future[Any]]]] = defaultdict(list)  # thread -> its open `with` blocks

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if _thread.level >= self.level or _stop.reason:  # the latter only to say so: a closed pool stays closed
            return run_inline(fn, *args, **kwargs)
        with _lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.size, self.name, lambda: setattr(_thread, "level", self.level))
            future = self._pool.submit(run_task, fn, *args, **kwargs)
        for group in (self._pending, *self._blocks[threading.get_ident()][-1:]):
            group.add(future)
            future.add_done_callback(group.discard)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel or await what this thread's innermost `with` submitted, else everything; the pool stays usable."""
        block = [self._pending, *self._blocks[threading.get_ident()]][-1]
        if cancel_futures:
            cancel(block)
        if wait and _thread.level < self.level:  # a task would wait for itself, or for one that waits for it
            wait_for(block)
        elif block is not self._pending:
            block.clear()  # so that the end of the `with` does not wait either

    def __enter__(self) -> ThreadPool:
        self._blocks[threading.get_ident()].append(set())
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        block = self._blocks[threading.get_ident()].pop()
        if kind is not None:
            cancel(block)
        wait_for(block)

    def close(self) -> None:
        """Drop what is queued, let the threads go when they are done. The next submit starts anew."""
        with _lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        wait_for(self._pending)


def run_task(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What a worker does: once the run is ending, nothing."""
    _stop.check()
    return fn(*args, **kwargs)


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
        while not future.done() and time.monotonic() < _stop.deadline:
            concurrent.futures.wait([future], timeout=0.2)  # in steps: on Windows a long wait ignores Ctrl-C


main_thread_pool = ThreadPool("main", 1, MAX_THREADS)
subtasks_thread_pool = ThreadPool("subtasks", 2, SUBTASKS_POOL_SIZE)


def run_parallel(
    function: Callable[[Item], T], items: Iterable[Item], desc: str = "", return_exceptions: bool = False
) -> Iterator[tuple[Item, T]]:
    """Yield `(item, function(item))` as they finish, on the main pool, with a bar; nothing runs until you loop over it.

    `items` may be endless: few are in flight.
    The first failure cancels the rest and is raised, its item named in the log; with `return_exceptions=True` the
    exception takes the place of the result. From within a task of the main pool it runs on the subtasks pool.
    """
    pool = subtasks_thread_pool if _thread.level else main_thread_pool
    window = 2 * pool.size if _thread.level < pool.level else 1  # a queue of all items would take 2 KB for each
    source, in_flight = iter(items), dict[Future[T], Item]()
    finished: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()
    total = operator.length_hint(items) or None
    with tqdm(total=total, desc=desc, bar_format=custom_bar_format) as bar, contextlib.ExitStack() as stack:
        stack.callback(cancel, in_flight)
        while True:
            for item in itertools.islice(source, window - len(in_flight)):
                future = pool.submit(function, item)
                in_flight[future] = item
                future.add_done_callback(finished.put)
            if not in_flight:
                return
            try:
                future = finished.get(timeout=0.2)  # in steps: see wait_for
            except queue.Empty:
                _stop.check()
                continue
            item = in_flight.pop(future)
            bar.update()
            error = future.exception()
            if isinstance(error, Exception) and return_exceptions:
                yield item, error  # type: ignore[misc]  # asked for by return_exceptions
                continue
            if isinstance(error, Exception):
                logger.error("failed on item %s: %s", reprlib.repr(item), describe(error))
            yield item, future.result()


# ========================================================================================================= Engine: JSON

MISSING: Any = object()


def get_nested_value(data: Any, path: Sequence[str | int], default: Any = MISSING) -> Any:
    """The value at `path` in nested JSON: keys, list indices, and "*" for each element of a list or value of a dict.

    Without "*": the value, or the default (None if none is given). With "*": a flat list, the nodes of the JSONPath
    query (RFC 9535) of these segments; an element that lacks the rest of the path gives the default, if there is one.
    """
    nodes: list[Any] = [data]
    gap: list[Any] = []  # what stands for a missing node: nothing, or from the first "*" on a place for the default
    for key in path:
        nodes = [child for node in nodes for child in children(node, key, gap)]
        if key == "*" and default is not MISSING:
            gap = [MISSING]
    if "*" in path:
        return [default if node is MISSING else node for node in nodes]
    return next(iter(nodes), None if default is MISSING else default)


def children(node: Any, key: str | int, gap: list[Any]) -> Iterable[Any]:
    """What `key` leads to from a node; `gap` where it leads nowhere."""
    if key == "*" and isinstance(node, (list, dict)):
        return node.values() if isinstance(node, dict) else node
    if isinstance(node, dict) and key in node:
        return [node[key]]
    if isinstance(node, list) and isinstance(key, int) and -len(node) <= key < len(node):
        return [node[key]]
    return gap


# ========================================================================================================== Engine: run


def on_signal(number: int, frame: FrameType | None) -> None:
    """Ctrl-C, SIGTERM: stop every thread, the main one by KeyboardInterrupt. A second one ends the process at once."""
    if _stop.reason:
        os._exit(128 + number)
    _stop.request(128 + number, f"stopped by {signal.Signals(number).name}")
    raise KeyboardInterrupt


def catch_signals(stack: contextlib.ExitStack) -> None:
    """Until `stack` is closed; one that is ignored, as under nohup, stays so."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if threading.current_thread() is threading.main_thread() and signal.getsignal(number) != signal.SIG_IGN:
            stack.callback(signal.signal, number, signal.signal(number, on_signal))


def outcome(failure: BaseException | None) -> tuple[int, str]:
    """Exit code and closing words for what `main` ended with."""
    match failure:
        case None | SystemExit(code=None):
            return 0, "done"
        case SystemExit(code=int(code)):
            return code, f"exit {code}"
        case ConfigurationError():
            return 2, str(failure)
        case LoginError() | SystemExit():
            return 1, str(failure) or "failed"
    if "api_function" in vars(failure):
        return 1, f"failed: {vars(failure)['api_function']}: {describe(failure)}"
    return 1, f"failed: {describe(failure)}{place_of(failure)}"


def place_of(error: BaseException) -> str:
    """The last line on the way to an error that is the script's own, as " (my_script.py line 987)"."""
    place, end_of_engine = "", run.__code__.co_firstlineno
    for frame, line in traceback.walk_tb(error.__traceback__):
        own = line > end_of_engine if frame.f_globals is globals() else frame.f_globals.get("__name__") == "__main__"
        if own and frame.f_code is not run.__code__:
            place = f" ({Path(frame.f_code.co_filename).name} line {line})"
    return place


def await_threads() -> bool:
    """Wait for the pools' threads, after a signal for all, while the grace lasts; whether they ended.

    A call may hold one, or a lock: Ctrl-C at the moment in which Python code takes it leaves it locked (cpython#74174).
    """
    names = ("",) if _stop.code >= 128 else (f"{main_thread_pool.name}_", f"{subtasks_thread_pool.name}_")
    ours = (threading.main_thread(), threading.current_thread())
    deadline = max(_stop.deadline, time.monotonic() + 0.5)  # idle ones need a moment, too
    while any(t.name.startswith(names) and t not in ours and not t.daemon for t in threading.enumerate()):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def conclude(failure: BaseException | None, started: float) -> int:
    """End all work, write the summary and the closing line; the exit code."""
    _stop.request(*outcome(failure))  # what was requested before prevails
    traceback.clear_frames(failure.__traceback__ if failure else None)  # closes the loops that it left, and their bars
    clients = [reference() for reference in _clients.valuerefs()]  # now: those of ended threads would vanish unclosed
    main_thread_pool.close()
    subtasks_thread_pool.close()
    ended = await_threads()
    for line in summary():
        logger.info("%s", line)
    calls = sum(events["calls"] for events in _events.values())
    took = timedelta(seconds=round(time.monotonic() - started))
    figures = f"; {calls:,} calls in {took}, log in {script_name()}.log" if calls else ""
    unforeseen = isinstance(failure, Exception) and not isinstance(failure, (ConfigurationError, LoginError))
    level = logging.CRITICAL if _stop.code else logging.INFO
    _terminal.setLevel(logging.NOTSET)
    logger.log(level, "%s: %s%s", script_name(), _stop.reason, figures, exc_info=failure if unforeseen else None)
    if not ended and not hasattr(sys, "ps1"):  # Python would wait for them; a notebook goes on, with what it holds
        with contextlib.suppress(OSError, ValueError):  # the reader of a pipe may be gone
            print(end="", flush=True)  # unlike sys.stdout.flush(), this works under pythonw, which has no stdout
        with tqdm.external_write_mode(sys.stderr):  # their bars are wiped away, and not drawn again
            os._exit(_stop.code)
    if ended and _stop.code < 128:  # after a signal httpcore may wait for ever for a lock of its own (cpython#74174)
        for client in filter(None, clients):
            client.close()
    return _stop.code


def run(main: Callable[[], object]) -> int:
    """The frame around a script: log, login, `main`, summary.

    Returns the exit code: 0 done, 1 failed, 2 configuration, 130 Ctrl-C, 143 SIGTERM.
    """
    global _stop
    _events.clear()
    _durations.clear()
    started, failure = time.monotonic(), None
    with contextlib.ExitStack() as stack:
        try:
            open_log(stack)
            catch_signals(stack)
            login()
            _terminal.setLevel(logging.ERROR)  # from here on retries are routine
            main()
            main_thread_pool.shutdown()
            subtasks_thread_pool.shutdown()
        except BaseException as error:
            failure = error
        code = conclude(failure, started)
    _stop = Stop()
    return code


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
    return call_endpoint("RC", "GET", "statistics", dict, params={"organization": organization_id})


@api_call_with_retry("RC")
def search_inclusions_page(organization_id: str, limit: int, page: int) -> dict[str, Any]:
    """One page of a centre's inclusions, pages from 1: {"data": [...], "total": n}."""
    params, body = {"limit": limit, "page": page}, {"organization": organization_id}
    return call_endpoint("RC", "POST", "search_inclusions", dict, params=params, json=body)


def search_inclusions(organization_id: str, limit: int, page: int) -> list[dict[str, Any]]:
    """The inclusions on one page, pages from 1."""
    return list(search_inclusions_page(organization_id, limit, page)["data"])


def get_all_inclusions(organization_id: str) -> list[dict[str, Any]]:
    """All inclusions of a centre, however many pages that takes: dicts with at least `patientId`."""
    inclusions: list[dict[str, Any]] = []
    for number in itertools.count(1):
        page = search_inclusions_page(organization_id, 1000, number)
        inclusions += page["data"]
        if not page["data"] or len(inclusions) >= (page.get("total") or math.inf):
            break
    return inclusions


@api_call_with_retry("RC")
def get_record_by_patient(patient_id: str) -> dict[str, Any]:
    """The record of one patient, by the `patientId` of an inclusion."""
    return call_endpoint("RC", "GET", "record_by_patient", dict, params={"patient": patient_id})


@api_call_with_retry("RC")
def get_surveys(patient_id: str) -> list[dict[str, Any]]:
    """The questionnaires of one patient, with answers."""
    return call_endpoint("RC", "POST", "surveys", list, json={"subject": patient_id})


@api_call_with_retry("GDD")
def get_request_by_tube(tube_id: str) -> dict[str, Any]:
    """The laboratory request that a sample tube belongs to."""
    return call_endpoint("GDD", "GET", "request_by_tube", dict, suffix="/" + urllib.parse.quote(tube_id, safe=""))


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
