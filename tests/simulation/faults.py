"""Which call meets which fault: a decision without clock or network. Standard library only."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from random import Random

REFUSED = ("reset", "500", "503", "503-retry-after", "429")  # strike before the call is carried out
SPOILED = ("reset-after", "truncated", "html", "slow", "bad-gzip")  # strike when it has been carried out
KINDS = REFUSED + SPOILED


class Faults:
    """Draws the fault of each call, the same sequence for the same seed."""

    def __init__(self, rates: Mapping[str, float], seed: int) -> None:
        self.rates = rates
        self._random = Random(seed)

    def draw(self) -> str | None:
        """Return the kind of fault that the next call meets, None for most."""
        return choose(self.rates, self._random.random())


def choose(rates: Mapping[str, float], position: float) -> str | None:
    """Return the kind that lies at a position from 0 to 1 when the rates are laid end to end, None beyond the last."""
    for kind, rate in rates.items():
        if position < rate:
            return kind
        position -= rate
    return None


def combined(every: float, single: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the rate of each kind: an equal share of `every`, unless it has one of its own."""
    return checked({**dict.fromkeys(KINDS, every / len(KINDS)), **dict(single)})


def checked(rates: Mapping[str, float]) -> dict[str, float]:
    """Return the rates if they make sense, raise ValueError otherwise."""
    unknown = [kind for kind in rates if kind not in KINDS]
    if unknown:
        raise ValueError(f"unknown fault {', '.join(unknown)}; choose from {', '.join(KINDS)}")
    if min(rates.values(), default=0) < 0 or sum(rates.values()) > 1.000001:
        raise ValueError("fault rates must lie between 0 and 1, and so must their sum")
    return dict(rates)


def rate(text: str) -> float:
    """Read a rate from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate between 0 and 1")
    return value


def kind_and_rate(text: str) -> tuple[str, float]:
    """Read KIND=RATE from the command line."""
    kind, _, value = text.partition("=")
    if kind not in KINDS:
        raise argparse.ArgumentTypeError(f"unknown fault {kind!r}; choose from {', '.join(KINDS)}")
    return kind, rate(value)
