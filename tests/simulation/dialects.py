"""Other ways in which a platform may speak than the template assumes: `--dialect NAME`. Standard library only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

CLOCK_AHEAD = 300  # seconds
PAGE_CAP = 10  # inclusions
RATE_LIMIT = 100  # calls per second
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
    """An answer on its way out; a body of None is an empty one."""

    endpoint: str
    is_data: bool
    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def is_token(self) -> bool:
        """Whether it brings tokens."""
        return not self.is_data and self.status < 300

    @property
    def is_dead_token(self) -> bool:
        """Whether it refuses a data call for its token."""
        return self.is_data and self.status == 401


@dataclass(frozen=True)
class Dialect:
    """What is different: in how the platform works, in what its answers look like."""

    what: str
    prepare: Callable[[Any], None] = lambda platform: None
    spoken: Callable[[Answer], Answer] = lambda answer: answer


def renamed(answer: Answer) -> Answer:
    """Token answers in camel case."""
    if not answer.is_token:
        return answer
    return replace(answer, body={RENAMED.get(key, key): value for key, value in answer.body.items()})


def nested(answer: Answer) -> Answer:
    """Token answers inside `data`."""
    return replace(answer, body={"success": True, "data": answer.body}) if answer.is_token else answer


def forbidden(answer: Answer) -> Answer:
    """403 for a dead token."""
    return replace(answer, status=403) if answer.is_dead_token else answer


def redirected(answer: Answer) -> Answer:
    """302 to a login page for a dead token."""
    return replace(answer, status=302, body=None, headers={"Location": "/login"}) if answer.is_dead_token else answer


def error_as_success(answer: Answer) -> Answer:
    """200 with an error inside for a dead token."""
    return replace(answer, status=200, body={"error": "token expired"}) if answer.is_dead_token else answer


def total_of_page(answer: Answer) -> Answer:
    """`total` counts the page, not the centre."""
    if answer.endpoint != "search_inclusions" or answer.status != 200:
        return answer
    return replace(answer, body={**answer.body, "total": len(answer.body["data"])})


def in_content(answer: Answer) -> Answer:
    """The list of a page has another name."""
    if answer.endpoint != "search_inclusions" or answer.status != 200:
        return answer
    return replace(answer, body={"content": answer.body["data"], "total": answer.body["total"]})


def by_subject(answer: Answer) -> Answer:
    """An inclusion calls its patient's id otherwise."""
    if answer.endpoint != "search_inclusions" or answer.status != 200:
        return answer
    rows = [{"subjectId" if key == "patientId" else key: row[key] for key in row} for row in answer.body["data"]]
    return replace(answer, body={**answer.body, "data": rows})


def cut(answer: Answer) -> Answer:
    """What is beyond the cap is on no page."""
    if answer.endpoint != "search_inclusions" or answer.status != 200:
        return answer
    return replace(answer, body={**answer.body, "data": answer.body["data"][:PAGE_CAP]})


def without(key: str, endpoint: str) -> Callable[[Answer], Answer]:
    """Answers of an endpoint that lack a field."""

    def spoken(answer: Answer) -> Answer:
        if answer.endpoint != endpoint or answer.status != 200:
            return answer
        return replace(answer, body={name: value for name, value in answer.body.items() if name != key})

    return spoken


def wrapped(answer: Answer) -> Answer:
    """Every list inside an object."""
    if not isinstance(answer.body, list):
        return answer
    return replace(answer, body={"items": answer.body, "count": len(answer.body)})


def count_pages_from_0(platform: Any) -> None:
    """The first page has number 0."""
    platform.conditions.first_page = 0


def cap_pages(platform: Any) -> None:
    """No page is larger, whatever is asked for."""
    platform.conditions.page_cap = PAGE_CAP


def keep_refresh_tokens(platform: Any) -> None:
    """A refresh gives the same refresh token again."""
    for sessions in platform.sessions.values():
        sessions.rotates = False


def end_other_sessions(platform: Any) -> None:
    """A login ends all sessions from before."""
    platform.conditions.one_session = True


def set_clock(platform: Any) -> None:
    """`Date` tells a time to come."""
    platform.conditions.clock_ahead = CLOCK_AHEAD


def limit_rate(platform: Any) -> None:
    """So many calls per second, told in headers; 429 beyond."""
    platform.conditions.rate_limit = RATE_LIMIT


def issue_jwts(platform: Any) -> None:
    """Access tokens are JWTs."""
    for sessions in platform.sessions.values():
        sessions.jwt = True


def move_endpoints(platform: Any) -> None:
    """An endpoint has another path."""
    platform.moved.update(MOVED)


def move_all_endpoints(platform: Any) -> None:
    """No endpoint has the path that is assumed."""
    platform.moved.update(MOVED_ALL)


DIALECTS = {
    "token-names": Dialect("tokens are called accessToken, refreshToken, user_id", spoken=renamed),
    "token-nested": Dialect("token answers are nested in data", spoken=nested),
    "dead-token-403": Dialect("403 for a dead token", spoken=forbidden),
    "dead-token-302": Dialect("302 to a login page for a dead token", spoken=redirected),
    "dead-token-200": Dialect("200 with an error inside for a dead token", spoken=error_as_success),
    "pages-from-0": Dialect("the first page has number 0", count_pages_from_0),
    "pages-capped": Dialect(f"at most {PAGE_CAP} inclusions on a page", cap_pages),
    "pages-cut": Dialect(f"at most {PAGE_CAP} inclusions on a page, the others on none", spoken=cut),
    "total-of-page": Dialect("total counts the page alone", spoken=total_of_page),
    "total-missing": Dialect("no total", spoken=without("total", "search_inclusions")),
    "page-content": Dialect("the list of a page is in content", spoken=in_content),
    "page-ids": Dialect("inclusions have subjectId in place of patientId", spoken=by_subject),
    "list-wrapped": Dialect("every list is wrapped in an object", spoken=wrapped),
    "refresh-kept": Dialect("a refresh gives the same refresh token again", keep_refresh_tokens),
    "refresh-omitted": Dialect(
        "a refresh gives no refresh token", keep_refresh_tokens, without("refresh_token", "refresh_token")
    ),
    "one-session": Dialect("a login ends the user's other sessions", end_other_sessions),
    "clock-ahead": Dialect(f"the clock is {CLOCK_AHEAD // 60} minutes ahead", set_clock),
    "rate-limit": Dialect(f"{RATE_LIMIT} calls per second, told in headers", limit_rate),
    "jwt": Dialect("access tokens are JWTs", issue_jwts),
    "moved": Dialect("the path of the centres is another", move_endpoints),
    "moved-all": Dialect("every path is another", move_all_endpoints),
}
