"""How the template calls each data endpoint, and what it expects of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SAMPLE = 10  # inclusions on the page of a first look; centres to choose the largest from


@dataclass(frozen=True)
class Call:
    """How the template calls a data endpoint, and what it expects; `{}` stands for the id of what it `needs`."""

    method: str = "GET"
    needs: str = ""
    kind: type | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""


# In an order in which one gives the ids for the next.
KNOWN = {
    "organizations": Call(kind=list),
    "statistics": Call(needs="organization", kind=dict, params={"organization": "{}"}),
    "search_inclusions": Call("POST", "organization", dict, {"limit": SAMPLE, "page": 1}, {"organization": "{}"}),
    "record_by_patient": Call(needs="patient", kind=dict, params={"patient": "{}"}),
    "surveys": Call("POST", "patient", list, body={"subject": "{}"}),
    "request_by_tube": Call(needs="tube", kind=dict, suffix="/{}"),
}
UNKNOWN = Call()
