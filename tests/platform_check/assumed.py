"""What the template assumes of each endpoint: how it calls it, what it expects of the answer, who makes such a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SAMPLE = 10  # inclusions on the page of a first look; centres to choose the largest from


@dataclass(frozen=True)
class Call:
    """How the template calls an endpoint, and what it expects; `{}` stands for the id of what it `needs`."""

    method: str = "GET"
    needs: str = ""
    kind: type | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""
    wanted: tuple[str, ...] = ()  # of a token answer
    clicks: str = ""  # what a person does so that a browser makes this call


# In an order in which one gives what the next need.
TOKEN_CALLS = {
    "login": Call(
        "POST",
        body={"username": "{}", "password": "{}"},
        wanted=("access_token", "userId"),
        clicks="log out, open the developer tools, then log in",
    ),
    "config_token": Call(
        "POST",
        body={"userId": "{}", "clientId": "{}"},
        wanted=("access_token",),
        clicks="log out, open the developer tools, then log in and open this part of the platform",
    ),
    "refresh_token": Call(
        "POST",
        body={"refresh_token": "{}"},
        wanted=("access_token",),
        clicks="leave the page open until the session has to be renewed, then click on",
    ),
}
DATA_CALLS = {
    "organizations": Call(kind=list, clicks="open the list of centres"),
    "statistics": Call(
        needs="organization",
        kind=dict,
        params={"organization": "{}"},
        clicks="open a page that counts the inclusions of a centre",
    ),
    "search_inclusions": Call(
        "POST",
        "organization",
        dict,
        {"limit": SAMPLE, "page": 1},
        {"organization": "{}"},
        clicks="open the list of a centre's patients",
    ),
    "record_by_patient": Call(needs="patient", kind=dict, params={"patient": "{}"}, clicks="open a patient"),
    "surveys": Call("POST", "patient", list, body={"subject": "{}"}, clicks="open a patient's questionnaires"),
    "request_by_tube": Call(
        needs="tube",
        kind=dict,
        suffix="/{}",
        clicks="look up a sample tube that stands in a patient's record you opened",
    ),
}


def known(endpoint: str) -> Call:
    """What is assumed of an endpoint; next to nothing of one that is the script's own."""
    return {**TOKEN_CALLS, **DATA_CALLS}.get(endpoint, Call())


def session_of(app: str) -> str:
    """The endpoint that opens a session of a service."""
    return "login" if app == "IAM" else "config_token"
