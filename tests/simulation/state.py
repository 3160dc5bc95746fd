"""The state of the simulated platform, its counts, and how a test changes it while it runs."""

import asyncio
import base64
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any
from weakref import WeakSet

from dialects import DIALECTS
from faults import KINDS, checked
from responses import Trickling
from server import SERVICES
from sessions import Sessions
from starlette.responses import Response
from study import Study


def _verdicts() -> Counter[str]:
    return Counter(accepted=0, refused=0)


@dataclass
class Seen:
    """All counts; a request is in `answers` or in `faults`, or in neither if its caller disconnected."""

    requests: Counter[str] = field(default_factory=Counter)
    services: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(SERVICES, 0)))
    answers: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys((*KINDS, "outage"), 0)))
    logins: Counter[str] = field(default_factory=_verdicts)
    configurations: Counter[str] = field(default_factory=_verdicts)
    refreshes: Counter[str] = field(default_factory=_verdicts)
    creations: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    peak_concurrency: int = 0
    connections: int = 0
    peak_connections: int = 0  # open at the same time
    cookies: int = 0  # calls that sent some
    refresh_tokens_reused: int = 0
    expired: set[str] = field(default_factory=set)  # access tokens that were used after they had expired


@dataclass
class Conditions:
    """What tests and options can set; times are in seconds."""

    user: str
    password: str
    latency: float = 0.0
    hold: float = 0.0
    slow: float = 1.0
    slow_refresh: float = 0.0
    outage_kind: str = "503"  # or another argument of `refusal`; "empty" is a 200 without a body
    page_cap: int = 1_000_000
    first_page: int = 1
    one_session: bool = False
    rate_limit: int = 0  # calls per second; 0 is none
    omit: tuple[str, ...] = ()  # fields that token answers lack
    user_id: str | int = "6f0c2f0e-0000-4000-8000-000000000001"
    clock_ahead: float = 0.0
    cookies: bool = False  # every response sets one, and calls that send it back are rejected
    denied: tuple[str, ...] = ()  # patients, and numbers of echo, for which every token is rejected
    send_twice: dict[str, float] = field(default_factory=dict)  # endpoint -> seconds until the copy follows
    settling: dict[str, float] = field(default_factory=dict)  # service -> seconds until a new access token is known
    renewals: dict[str, bool] = field(default_factory=dict)  # of tokens: one "rotates" them, has "same_access"
    jwt: bool = False


class Platform:
    """The state that all endpoints share."""

    def __init__(self, options: Namespace, endpoints: tuple[str, ...]) -> None:
        self.study = Study(options.centres, options.patients, options.seed)
        self.failing = self.study.some_patients(options.failing)
        lifetimes = dict.fromkeys((*SERVICES, *options.service), options.token_lifetime)
        lifetimes["IAM"] = options.iam_token_lifetime
        self.sessions = {service: Sessions(self, service, lifetime) for service, lifetime in lifetimes.items()}
        self._random = Random(options.seed)
        self.dialects = [DIALECTS[name] for name in options.dialect]
        self.moved: dict[str, str] = {}
        self._window = (0, 0)
        self._endpoints = endpoints
        self._connections: WeakSet[asyncio.Transport] = WeakSet()
        self._options = options
        self.set_as_new()
        self.set_reset_counts()
        for dialect in self.dialects:
            self.control(dialect.settings)
            self.moved.update(dialect.moved)

    @property
    def outage(self) -> bool:
        return time.monotonic() < self._outage_until

    @property
    def open_connections(self) -> int:
        """Return how many connections that made a call are still open."""
        return sum(not connection.is_closing() for connection in self._connections)

    def fault(self) -> str | None:
        """Draw the fault of the next call, None for most; the sequence depends only on the seed."""
        none = max(0.0, 1 - sum(self.rates.values()))
        return self._random.choices([*self.rates, None], [*self.rates.values(), none])[0]

    def fixed_answer(self, endpoint: str) -> Response | None:
        """Return the response that was set for an endpoint, or None if there is none or it was used often enough."""
        left = self._answers_left.get(endpoint, 0)
        self._answers_left[endpoint] = left - 1
        return self.answers.get(endpoint) if left > 0 else None

    @contextmanager
    def counted(self, service: str, endpoint: str, connection: asyncio.Transport) -> Iterator[None]:
        """Count a call until its response; a call during which the counts are reset is no longer counted."""
        seen = self.seen
        seen.requests[endpoint] += 1
        seen.services[service] += 1
        if connection not in self._connections:
            self._connections.add(connection)
            seen.connections += 1
            seen.peak_connections = max(seen.peak_connections, self.open_connections)
        seen.in_flight += 1
        seen.peak_concurrency = max(seen.peak_concurrency, seen.in_flight)
        try:
            yield
        finally:
            seen.in_flight -= 1

    def ration(self) -> dict[str, str]:
        """Count a call against the rate limit and return its headers; beyond the limit, they include Retry-After."""
        limit = self.conditions.rate_limit
        second, used = self._window
        now = int(time.monotonic())
        self._window = now, (used if now == second else 0) + 1
        left = limit - self._window[1]
        told = {"X-RateLimit-Limit": str(limit), "X-RateLimit-Remaining": str(max(0, left)), "X-RateLimit-Reset": "1"}
        return {} if not limit else told if left >= 0 else {**told, "Retry-After": "1"}

    def report(self) -> dict[str, Any]:
        """Return what was seen since the start or the last reset of the counts."""
        counted = {item.name: getattr(self.seen, item.name) for item in fields(self.seen)}
        expired = counted.pop("expired")
        return {**counted, "expiries": len(expired), "open_connections": self.open_connections}

    def tokens(self) -> list[str]:
        return [token for each in self.sessions.values() for token in each.issued]

    def control(self, settings: dict[str, Any]) -> None:
        """Apply settings; if one of them is unknown, apply none and raise ValueError."""
        conditions = {item.name for item in fields(self.conditions)}
        unknown = [name for name in settings if name not in conditions and not hasattr(self, f"set_{name}")]
        if unknown:
            raise ValueError(f"unknown setting {', '.join(sorted(unknown))}")
        for name, value in settings.items():
            if name in conditions:
                setattr(self.conditions, name, value)
            else:
                getattr(self, f"set_{name}")(value)

    def set_as_new(self, _: object = True) -> None:
        """Go back to the options, whatever was set since the start."""
        options = self._options
        self.conditions = Conditions(options.user, options.password, options.latency, slow=options.slow)
        self.rates: dict[str, float] = options.rates
        self.answers: dict[str, Response] = {}
        self._answers_left: dict[str, int] = {}
        self._outage_until = 0.0

    def set_faults(self, rates: dict[str, float]) -> None:
        self.rates = checked(rates)

    def set_outage(self, seconds: float) -> None:
        self._outage_until = time.monotonic() + seconds

    def set_answer(self, answers: dict[str, dict[str, Any] | None]) -> None:
        """Set fixed responses of some endpoints, see `helpers.answer`; None removes one."""
        for endpoint, answer in answers.items():
            self.answers.pop(endpoint, None)
            if answer is not None:
                self._answers_left[endpoint] = answer.get("times") or sys.maxsize
                body = base64.b64decode(answer["body_base64"])
                headers = {"Content-Type": answer["content_type"], **answer.get("headers", {})}
                self.answers[endpoint] = Response(body, answer["status"], headers)
                if answer.get("trickle"):
                    self.answers[endpoint] = Trickling(self.answers[endpoint], answer["trickle"])

    def set_expire(self, service: str) -> None:
        """Make the access tokens of a service, or of "all", expire now."""
        for sessions in self.sessions.values() if service == "all" else [self.sessions[service]]:
            sessions.expire()

    def set_refuse_access(self, service: str) -> None:
        """Reject the open sessions of a service."""
        self.sessions[service].refuse()

    def set_revoke_refresh(self, _: object) -> None:
        """Make the open sessions of RC and GDD expire, with no way to renew them."""
        for service in ("RC", "GDD"):
            self.sessions[service].forget_refresh_tokens()

    def set_restart(self, _: object) -> None:
        for sessions in self.sessions.values():
            sessions.forget()

    def set_reset_counts(self, _: object = True) -> None:
        self.seen = Seen(requests=Counter(dict.fromkeys(self._endpoints, 0)))
