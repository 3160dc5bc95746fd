"""Kinds and rates of simulated faults. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

REFUSED = ("reset", "500", "503", "503-retry-after", "429")  # occur before the call is carried out
SPOILED = ("reset-after", "truncated", "html", "slow", "bad-gzip")  # occur after it was carried out
KINDS = REFUSED + SPOILED


def combined(every: float, single: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the rate of each kind: its own, or else an equal share of `every`."""
    return checked({**dict.fromkeys(KINDS, every / len(KINDS)), **dict(single)})


def checked(rates: Mapping[str, float]) -> dict[str, float]:
    """Return the rates if they are valid; raise ValueError otherwise."""
    unknown = [kind for kind in rates if kind not in KINDS]
    if unknown:
        raise ValueError(f"unknown fault {', '.join(unknown)}; choose from {', '.join(KINDS)}")
    if not all(0 <= rate <= 1 for rate in rates.values()) or sum(rates.values()) > 1.000001:
        raise ValueError("fault rates must lie between 0 and 1, and so must their sum")
    return dict(rates)
