"""Ways in which a platform may differ from what the template assumes: `--dialect NAME`. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from typing import Any

CLOCK_AHEAD = 300  # seconds
PAGE_CAP = 10  # inclusions
RATE_LIMIT = 100  # calls per second
PAGE, TOKENS, REFRESH = ["search_inclusions"], ["login", "config_token", "refresh_token"], ["refresh_token"]
MOVED = {"organizations": "/api/v2/organizations"}
MOVED_ALL = {
    "login": "/auth/v2/sign-in",
    "config_token": "/auth/v2/service-token",
    "refresh_token": "/auth/v2/renew",
    "organizations": "/v2/centres",
    "statistics": "/v2/centres/counts",
    "search_inclusions": "/v2/inclusions/find",
    "record_by_patient": "/v2/patients/record",
    "surveys": "/v2/questionnaires",
    "request_by_tube": "/v2/laboratory/tubes/{tube}",
}
RENAMED = {"access_token": "accessToken", "refresh_token": "refreshToken", "userId": "user_id"}


@dataclass(frozen=True)
class Answer:
    """A response before it is sent; a body of None is empty."""

    endpoint: str
    is_data: bool
    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dialect:
    """What is different: how the platform works, where its endpoints are, what its responses look like."""

    what: str
    settings: dict[str, Any] = field(default_factory=dict)  # such as a test sets
    moved: dict[str, str] = field(default_factory=dict)
    spoken: Callable[[Answer], Answer] = lambda answer: answer


def for_dead_token(**other: Any) -> Callable[[Answer], Answer]:
    """A different response to a data call that is rejected because of its token."""
    return lambda answer: replace(answer, **other) if answer.is_data and answer.status == 401 else answer


def of(endpoints: Container[str], change: Callable[[Any], Any]) -> Callable[[Answer], Answer]:
    """A different body in the responses of some endpoints."""

    def spoken(answer: Answer) -> Answer:
        fits = answer.endpoint in endpoints and answer.status == 200
        return replace(answer, body=change(answer.body)) if fits else answer

    return spoken


def renamed(names: dict[str, str]) -> Callable[[Any], Any]:
    """Rename some fields."""
    return lambda body: {names.get(name, name): value for name, value in body.items()}


def without(key: str) -> Callable[[Any], Any]:
    """Remove a field."""
    return lambda body: {name: value for name, value in body.items() if name != key}


def wrapped(answer: Answer) -> Answer:
    """Put every list into an object."""
    if not isinstance(answer.body, list):
        return answer
    return replace(answer, body={"items": answer.body, "count": len(answer.body)})


NAMED = of(TOKENS, renamed(RENAMED))
NESTED = of(TOKENS, lambda body: {"success": True, "data": body})
TO_LOGIN = for_dead_token(status=302, body=None, headers={"Location": "/login"})
AN_ERROR = for_dead_token(status=200, body={"error": "token expired"})
CUT = of(PAGE, lambda page: {**page, "data": page["data"][:PAGE_CAP]})
TOTAL_OF_PAGE = of(PAGE, lambda page: {**page, "total": len(page["data"])})
IN_CONTENT = of(PAGE, renamed({"data": "content"}))
BY_SUBJECT = of(PAGE, lambda page: {**page, "data": list(map(renamed({"patientId": "subjectId"}), page["data"]))})
KEPT = {"renewals": {"rotates": False}}

DIALECTS = {
    "token-names": Dialect("tokens are called accessToken, refreshToken, user_id", spoken=NAMED),
    "token-nested": Dialect("token responses are nested in data", spoken=NESTED),
    "dead-token-403": Dialect("an expired token gets a 403", spoken=for_dead_token(status=403)),
    "dead-token-302": Dialect("an expired token gets a 302 to a login page", spoken=TO_LOGIN),
    "dead-token-200": Dialect("an expired token gets a 200 with an error inside", spoken=AN_ERROR),
    "pages-from-0": Dialect("the first page has number 0", {"first_page": 0}),
    "pages-capped": Dialect(f"at most {PAGE_CAP} inclusions on a page", {"page_cap": PAGE_CAP}),
    "pages-cut": Dialect(f"at most {PAGE_CAP} inclusions on a page, and the others on no page", spoken=CUT),
    "total-of-page": Dialect("total counts only the page", spoken=TOTAL_OF_PAGE),
    "total-missing": Dialect("there is no total", spoken=of(PAGE, without("total"))),
    "page-content": Dialect("the list of a page is in content", spoken=IN_CONTENT),
    "page-ids": Dialect("inclusions have subjectId instead of patientId", spoken=BY_SUBJECT),
    "list-wrapped": Dialect("every list is wrapped in an object", spoken=wrapped),
    "refresh-kept": Dialect("a refresh returns the same refresh token again", KEPT),
    "refresh-omitted": Dialect(
        "a refresh returns no refresh token", KEPT, spoken=of(REFRESH, without("refresh_token"))
    ),
    "one-session": Dialect("a login ends the user's other sessions", {"one_session": True}),
    "clock-ahead": Dialect(f"the clock is {CLOCK_AHEAD // 60} minutes ahead", {"clock_ahead": CLOCK_AHEAD}),
    "rate-limit": Dialect(f"{RATE_LIMIT} calls per second, announced in headers", {"rate_limit": RATE_LIMIT}),
    "jwt": Dialect("access tokens are JWTs", {"jwt": True}),
    "moved": Dialect("the path of the centres is different", moved=MOVED),
    "moved-all": Dialect("every path is different", moved=MOVED_ALL),
}
