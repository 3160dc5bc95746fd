"""Where a study's time goes beyond its limit, told from when each of its calls began and ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

Call = tuple[float, float]  # when it began, when it had its result
PHASES = (
    "threads without a call until the first answer",
    "the same from then on until all threads have one",
    "the same in between",
    "the same from when they last had one to the end",
    "calls that take longer than their latency",
    "all of it",
)


def beyond_the_limit(calls: Sequence[Call], wall: float, threads: int, latency: float) -> dict[str, float]:
    """Divide what a study, from its first call on, takes longer than len(calls) * latency / threads, in seconds.

    A thread that has no call for a second, or one that is a second late, costs the study 1/threads of a second: so it
    adds up. If fewer calls are ever in flight than there are threads, "all threads" means as many as were the most.
    """
    start = min(began for began, _ in calls)
    steps = list(in_flight(calls))
    most = max(count for _, _, count in steps)
    full = [(since, until) for since, until, count in steps if count == most]
    first_answer = min(full[0][0], *(ended for _, ended in calls))
    moments = (start, first_answer, full[0][0], full[-1][1], start + wall)
    idle = [threads * (until - since) - in_calls(calls, since, until) for since, until in pairwise(moments)]
    late = sum(ended - began - latency for began, ended in calls)
    return dict(zip(PHASES, (seconds / threads for seconds in (*idle, late, sum(idle) + late)), strict=True))


def in_flight(calls: Sequence[Call]) -> Iterator[tuple[float, float, int]]:
    """Yield since when and until when how many calls were in flight; one that begins as another ends comes after it."""
    events = sorted([(began, 1) for began, _ in calls] + [(ended, -1) for _, ended in calls])
    counts = accumulate(change for _, change in events)
    for ((since, _), (until, _)), count in zip(pairwise(events), counts, strict=False):
        yield since, until, count


def in_calls(calls: Sequence[Call], since: float, until: float) -> float:
    """Return how many seconds all calls together took within a time."""
    return sum(max(0.0, min(ended, until) - max(began, since)) for began, ended in calls)
