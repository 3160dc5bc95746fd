"""What the template assumes about each endpoint: how it is called, what it returns, what makes a browser call it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SAMPLE = 10  # inclusions on the first page; centres from which the largest is chosen


@dataclass(frozen=True)
class Call:
    """How the template calls an endpoint, and what it expects; `{}` stands for the id of what it `needs`."""

    method: str = "GET"
    needs: str = ""
    kind: type | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""
    wanted: tuple[str, ...] = ()  # fields of a token response


# In an order in which each returns what the next ones need.
TOKEN_CALLS = {
    "login": Call("POST", body={"username": "{}", "password": "{}"}, wanted=("access_token", "userId")),
    "config_token": Call("POST", body={"userId": "{}", "clientId": "{}"}, wanted=("access_token",)),
    "refresh_token": Call("POST", body={"refresh_token": "{}"}, wanted=("access_token",)),
}
DATA_CALLS = {
    "organizations": Call(kind=list),
    "statistics": Call(needs="organization", kind=dict, params={"organization": "{}"}),
    "search_inclusions": Call("POST", "organization", dict, {"limit": SAMPLE, "page": 1}, {"organization": "{}"}),
    "record_by_patient": Call(needs="patient", kind=dict, params={"patient": "{}"}),
    "surveys": Call("POST", "patient", list, body={"subject": "{}"}),
    "request_by_tube": Call(needs="tube", kind=dict, suffix="/{}"),
}

# What a person does so that a browser makes these calls.
CLICKS = {
    "login": "log out, open the developer tools, then log in",
    "config_token": "log out, open the developer tools, then log in and open this part of the platform",
    "refresh_token": "leave the page open until the session has to be renewed, then click something",
    "organizations": "open the list of centres",
    "statistics": "open a page that counts the inclusions of a centre",
    "search_inclusions": "open the list of a centre's patients",
    "record_by_patient": "open a patient",
    "surveys": "open a patient's questionnaires",
    "request_by_tube": "look up a sample tube from a patient's record that you opened",
}


def known(endpoint: str) -> Call:
    """What is assumed about an endpoint; almost nothing about one that the script added."""
    return {**TOKEN_CALLS, **DATA_CALLS}.get(endpoint, Call())


def session_of(app: str) -> str:
    return "login" if app == "IAM" else "config_token"
