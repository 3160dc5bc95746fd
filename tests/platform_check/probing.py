"""The calls of the check: few, read-only, one at a time; later ones use what earlier ones found out."""

import os
import re
import socket
import ssl
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from platform_check import judgements, shape
from platform_check.assumed import SAMPLE, known, session_of
from platform_check.httpx_in_use import httpx
from platform_check.judgements import About, Finding, not_tried
from platform_check.script import Script
from platform_check.shape import Path, Seen

MOST_CALLS = 60
MOST_SECONDS = 90  # for all calls together; the last one may take a few seconds more to connect and to get its response
CALL_SECONDS = 20
LONGEST_WAIT = 30  # seconds; a longer Retry-After is not waited for
MOST_BYTES = 50_000_000
FEW = 5  # records to search for a tube
WRONG = "wrong-token-of-the-check"
PROXY_VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")  # in the order in which httpx reads them
UNTRUSTED = "certificate not trusted: set SSL_CERT_FILE to your organisation's CA certificates"
CERTIFICATE = {  # by X509_V_ERR_… of OpenSSL, for errors that another file of certificates does not fix
    9: "certificate not valid yet: check the clock of this machine",
    10: "certificate has expired: tell the platform's operator",
    62: "certificate for another host: the address is wrong, or something sits between you and the platform",
    64: "certificate for another host: the address is wrong, or something sits between you and the platform",
}
NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL")


class Prober:
    """Makes the calls, within a limit of number and time, and at the pace that the platform asks for."""

    def __init__(self, client: httpx.Client, sleep: Callable[[float], None] = time.sleep) -> None:
        self.client, self.sleep = client, sleep
        self.calls = self.refused = 0
        self.cut_short = False
        self.seen: list[Seen] = []
        self.end = time.monotonic() + MOST_SECONDS

    def call(self, method: str, url: str, token: str | None = None, **options: Any) -> Seen:
        """Make one call; repeat it once after a 429, unless the wait is too long."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        seen = self._attempt(method, url, headers, options)
        if seen.status == 429:
            self.refused += 1
            wait = shape.header_number(seen.headers, ["retry-after"])
            if self._wait(1 if wait is None else wait, "the platform returned a 429"):
                seen = self._attempt(method, url, headers, options)
        elif shape.header_number(seen.headers, shape.LEFT_HEADERS) in (0, 1, 2):
            self._wait(1, "")
        return seen

    def _wait(self, seconds: float, why: str) -> bool:
        """Wait, and say so; False if it would take too long."""
        if seconds > LONGEST_WAIT or time.monotonic() + seconds > self.end:
            return False
        if why:
            print(f"{why}: waiting {seconds:.0f} s", file=sys.stderr, flush=True)
        self.sleep(seconds)
        return True

    def _attempt(self, method: str, url: str, headers: dict[str, str], options: dict[str, Any]) -> Seen:
        left = self.end - time.monotonic()
        if self.calls >= MOST_CALLS or left <= 0:
            self.cut_short = True
            limit = f"{MOST_CALLS} calls" if left > 0 else shape.duration(MOST_SECONDS)
            return Seen(failure=f"not called: the check stops after {limit}")
        self.calls += 1
        try:
            seen = self._exchange(method, url, headers, min(left, CALL_SECONDS), options)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            seen = unanswered(error, url)
        self.seen.append(seen)
        return seen

    def _exchange(self, method: str, url: str, headers: dict[str, str], limit: float, options: dict[str, Any]) -> Seen:
        self.client.cookies.clear()  # a script's threads share none: a session cookie would give a wrong impression
        started = time.monotonic()
        with self.client.stream(method, url, headers=headers, timeout=limit, **options) as response:
            now, parts, size = time.time(), [], 0
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if time.monotonic() > started + limit or size > MOST_BYTES:
                    return Seen(failure=f"response not complete after {shape.duration(limit)}, {size:,} bytes")
            stream = response.extensions.get("network_stream")
            whole = b"".join(parts)
            return Seen(
                status=response.status_code,
                body=shape.parsed(whole),
                html=shape.is_web_page(whole, response.headers.get("Content-Type", "")),
                headers={name.lower(): value for name, value in response.headers.items()},
                seconds=time.monotonic() - started,
                connection=stream.get_extra_info("client_addr") if stream else None,
                certificate=certificate(stream.get_extra_info("ssl_object"), now) if stream else None,
                skew=shape.clock_skew(response.headers.get("Date", ""), now),
            )


def unanswered(error: Exception, url: str) -> Seen:
    """Why there was no response, in our own words: an exception's may repeat what was sent or received."""
    proxy, address = proxy_for(url)
    if isinstance(error, httpx.ProxyError):
        status = re.match(r"[1-5][0-9]{2}\b", str(error))
        return Seen(failure=f"the proxy refused the call{f' with HTTP {status[0]}' if status else ''}", proxy=proxy)
    if isinstance(error, httpx.TimeoutException):
        return Seen(failure="no response in time", proxy=proxy if isinstance(error, httpx.ConnectTimeout) else "")
    if isinstance(error, httpx.ConnectError):
        return unconnected(error, address or url, proxy)
    return Seen(failure=f"no valid response ({type(error).__name__})")


def unconnected(error: httpx.ConnectError, address: str, proxy: str) -> Seen:
    """Why there was no connection: the certificate, TLS, or the address of the platform or proxy."""
    reason = getattr(error.__cause__, "__context__", None)  # httpcore raises its own `from None`
    if isinstance(reason, ssl.SSLCertVerificationError):
        return Seen(failure=CERTIFICATE.get(reason.verify_code, UNTRUSTED))
    if isinstance(reason, ssl.SSLError) and reason.reason in NO_TLS:
        return Seen(failure="no TLS: https:// leads to a port that speaks HTTP", proxy=proxy)
    words = "connection refused or closed" if resolves(host_of(address)) else "name cannot be resolved"
    return Seen(failure=f"the proxy: {words}" if proxy else words, proxy=proxy)


def proxy_for(url: str) -> tuple[str, str]:
    """The variable that names the proxy on the way to an address, and that proxy; empty if there is none."""
    host = host_of(url)
    if not url.startswith("https:") or not host or urllib.request.proxy_bypass(host):
        return "", ""
    for name in PROXY_VARIABLES:
        if address := os.environ.get(name, ""):
            return name, address
    of_system = urllib.request.getproxies().get("https", "")
    return ("the proxy of this system", of_system) if of_system else ("", "")


def host_of(url: str) -> str:
    """The host of an address, or "" if it has none."""
    try:
        return urllib.parse.urlsplit(url).hostname or ""
    except ValueError:
        return ""


def resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return False


def certificate(tls: Any, now: float) -> tuple[str, float] | None:
    """The issuer of a server's certificate, and the days until it expires."""
    held = tls.getpeercert() if tls is not None else None
    if not held:
        return None
    issuer = dict(pair for parts in held.get("issuer", ()) for pair in parts)
    name = issuer.get("organizationName") or issuer.get("commonName") or "unknown"
    plain = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in name)[:40]
    return plain, (ssl.cert_time_to_seconds(held["notAfter"]) - now) / 86400


class Check:
    """The whole check: yields the table line by line."""

    def __init__(self, script: Script, user: str, password: str, prober: Prober) -> None:
        self.script, self.prober = script, prober
        self.credentials: dict[str, Any] = {"username": user, "password": password}
        self.user_id: Any = None
        self.fields: dict[str, Path] = {}  # where token responses have which field
        self.tokens: dict[str, str] = {}  # service -> access token
        self.refresh_tokens: dict[str, str] = {}
        self.ids: dict[str, list[str]] = {}  # kind of thing -> some ids
        self.good: dict[str, tuple[str, Seen]] = {}  # service -> a data endpoint that works, and its response
        self.repeated: list[Seen] = []  # calls of one kind, to measure the latency

    def findings(self) -> Iterator[Finding]:
        """The table, in the order in which a script would encounter differences."""
        yield from (self.address(app) for app in self.script.apps)
        yield from (self.session(app) for app in self.script.apps)
        others = [app for app in self.script.apps if app in self.tokens and app != "IAM"]
        for app in others:
            yield from self.data(app)
        yield from (self.wrong_token(app) for app in others)
        for app in others:
            yield from self.refresh(app)
        yield self.second_session()
        yield from self.paging()
        yield from self.behaviour()
        yield not_tried(
            About("calls that create"), "would write: ask the operator if a lost response can leave something behind"
        )

    def address(self, app: str) -> Finding:
        """How a service responds without a token, at a data endpoint if it has one."""
        keys = self.script.data_endpoints(app)
        seen = self.request(app, keys[0]) if keys else self.prober.call("GET", self.base_url(app))
        return judgements.address(app, seen, self.script)

    def session(self, app: str) -> Finding:
        """Log in, or configure a service, and keep the tokens; a service without a session is not tried further."""
        endpoint = session_of(app)
        if endpoint not in self.script.services[app]["endpoints"]:
            return not_tried(About(f"{app} {endpoint}"), "the script has no such endpoint")
        if app != "IAM" and "IAM" not in self.tokens:
            return not_tried(About(f"{app} {endpoint}"), "no login")
        return self.token_answer(app, endpoint, self.opened(app))

    def opened(self, app: str) -> Seen:
        """Open a session and keep its tokens."""
        url, body = self.url(app, session_of(app)), self.credentials
        if app != "IAM":
            body = {"userId": self.user_id, "clientId": self.script.services[app].get("app_id")}
        seen = self.prober.call("POST", url, None if app == "IAM" else self.tokens["IAM"], json=body)
        if access := seen.token("access_token"):
            self.tokens[app] = access
            if app == "IAM":
                self.user_id = shape.at(seen.body, *(shape.find_field(seen.body, "userId") or ("userId",)))
        if refresh := seen.token("refresh_token"):
            self.refresh_tokens[app] = refresh
        return seen

    def token_answer(self, app: str, endpoint: str, seen: Seen) -> Finding:
        """Judge a token response by itself and by earlier ones."""
        finding = judgements.token_answer(app, endpoint, seen, self.fields, self.script)
        self.fields = judgements.token_fields(endpoint, seen) | self.fields
        return finding

    def data(self, app: str) -> Iterator[Finding]:
        for key in self.script.data_endpoints(app):
            needed, is_own = known(key).needs, known(key).kind is None
            if needed and not self.ids.get(needed):
                yield not_tried(About(f"{app} {key}"), f"needs the id of one {needed}, and none was seen")
            elif is_own and not self.script.plain_get(app, key):
                yield not_tried(About(f"{app} {key}"), "no function calls it by GET without parameters")
            else:
                seen = self.tried(app, key)
                yield judgements.data_answer(app, key, seen, self.script)
                yield from judgements.names_what_was_asked(app, key, seen, self.first_id(needed), self.script)

    def tried(self, app: str, key: str) -> Seen:
        """Call a data endpoint, and keep what the next ones need."""
        seen = self.request(app, key, self.tokens[app])
        if seen.good:
            self.good.setdefault(app, (key, seen))
        if key == "organizations":
            self.ids["organization"] = shape.ids_in(seen.rows[:SAMPLE], "id")
        elif key == "statistics":
            self.order_centres(app, seen)
        elif key == "search_inclusions":
            self.ids["patient"] = shape.ids_in(seen.rows[:SAMPLE], "patientId")
        elif key == "record_by_patient":
            self.ids["tube"] = self.tubes(app, seen)
        return seen

    def order_centres(self, app: str, first: Seen) -> None:
        """Put the centre with the largest count in its statistics first: it says most about pages."""
        one, *others = self.ids["organization"]
        self.repeated = [first, *(self.request(app, "statistics", self.tokens[app], each) for each in others)]
        sizes = [judgements.largest_count(seen.body) for seen in self.repeated]
        order = sorted(zip(sizes, [one, *others], strict=True), key=lambda pair: -pair[0])
        self.ids["organization"] = [each for _, each in order]

    def tubes(self, app: str, record: Seen) -> list[str]:
        """The id of a sample tube, from the first record that has one."""
        for patient in self.ids["patient"][1:FEW]:
            if shape.find_tube(record.body):
                break
            record = self.request(app, "record_by_patient", self.tokens[app], patient)
        tube = shape.find_tube(record.body)
        return [tube] if tube else []

    def wrong_token(self, app: str) -> Finding:
        if app not in self.good:
            return not_tried(About(f"{app} wrong token"), "no data endpoint works")
        key, good = self.good[app]
        return judgements.wrong_token(app, self.request(app, key, WRONG), good, self.script)

    def refresh(self, app: str) -> Iterator[Finding]:
        """One refresh, and whether the new and the old access token work after it."""
        if "refresh_token" not in self.script.services[app]["endpoints"] or app not in self.refresh_tokens:
            yield not_tried(About(f"{app} refresh_token"), "no refresh token: the script logs in again instead")
            return
        before = self.refresh_tokens[app]
        seen = self.prober.call("POST", self.url(app, "refresh_token"), json={"refresh_token": before})
        yield self.token_answer(app, "refresh_token", seen)
        access = seen.token("access_token")
        if access and app in self.good:
            key, _ = self.good[app]
            new, old = (self.request(app, key, token) for token in (access, self.tokens[app]))
            yield judgements.after_refresh(app, before, seen.token("refresh_token"), new, old)
            self.tokens[app] = access

    def second_session(self) -> Finding:
        """Log in again, as a second script would, and see what happened to the first session."""
        app = next(iter(self.good), None)
        if app is None:
            return not_tried(About("second session"), "no data endpoint works")
        first = self.tokens[app]
        for each in ("IAM", app):
            seen = self.opened(each)
            if not seen.token("access_token"):
                return judgements.second_login(app, seen)
        return judgements.second_session(app, self.request(app, self.good[app][0], first), self.script)

    def paging(self) -> Iterator[Finding]:
        """The pages of the largest centre that was seen."""
        app = next((app for app in self.tokens if "search_inclusions" in self.script.data_endpoints(app)), None)
        if app is None or not self.ids.get("organization"):
            yield not_tried(About("paging"), "no centre was seen")
            return
        token, size = self.tokens[app], self.script.page_size().number
        zero, one, two = (self.request(app, "search_inclusions", token, limit=1, page=page) for page in (0, 1, 2))
        first = judgements.first_of(zero, one, two)
        large = self.request(app, "search_inclusions", token, limit=size, page=1 if first is None else first)
        yield from judgements.paging(judgements.facts_of((zero, one, two), large, size), self.script)

    def behaviour(self) -> Iterator[Finding]:
        """What all calls together show: latency, connections, rate limits and clock."""
        calls = [seen for seen in self.repeated if seen.good]
        if self.good:
            app, (key, _) = next(iter(self.good.items()))
            calls += [self.request(app, key, self.tokens[app]) for _ in range(SAMPLE - len(calls))]
        answered = [seen for seen in self.prober.seen if seen.status]
        yield judgements.latency([seen for seen in calls if seen.status])
        yield judgements.rate_limit(answered, self.prober.refused, self.script)
        yield judgements.clock(answered)

    def base_url(self, app: str) -> str:
        return str(self.script.services[app]["base_url"]).rstrip("/")

    def url(self, app: str, key: str) -> str:
        return f"{self.base_url(app)}{self.script.services[app]['endpoints'][key]}"

    def first_id(self, kind: str) -> str:
        return next(iter(self.ids.get(kind, ())), "")

    def request(self, app: str, key: str, token: str | None = None, held: str = "", **changed: Any) -> Seen:
        """Call a data endpoint once, for the thing with the id `held`, or else for the first known one."""
        call = known(key)
        held = held or self.first_id(call.needs) or "0"
        query = {name: held if value == "{}" else value for name, value in call.params.items()} | changed
        options: dict[str, Any] = {"json": dict.fromkeys(call.body, held)} if call.body else {}
        address = self.url(app, key) + call.suffix.replace("{}", urllib.parse.quote(held, safe="", errors="replace"))
        return self.prober.call(call.method, address, token, params=query or None, **options)
