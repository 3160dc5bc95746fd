"""The results of the benchmark: as data, with judgements, and as tables in Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from measure import Cost
from parts import Goal, Table


@dataclass
class Results:
    """The results of a part: costs by contender, or why there are none."""

    costs: dict[str, list[Cost]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def figures(self, table: Table) -> dict[str, list[float]]:
        """Return each contender's figures for a table, one per round."""
        return {label: [table.figure(cost) for cost in costs] for label, costs in self.costs.items()}


def report(table: Table, results: Results, quick: bool) -> dict[str, Any]:
    """Return a table as data; goals are not judged in the quick form, which is too short."""
    figures = results.figures(table)
    rounds = max(map(len, figures.values()), default=0)
    bases = {table.over: [table.limit] * rounds, **figures}
    rows = [
        {
            "contender": label,
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "ratio": ratio(values, bases[table.over]),
            "rounds": values,
        }
        for label, values in figures.items()
    ]
    goals = [judged(goal, bases) for goal in table.goals if not quick]
    missing = [{"contender": label, "missing": why} for label, why in results.missing.items()]
    return {"title": table.title, "unit": table.unit, "over": table.over, "rows": rows + missing, "goals": goals}


def ratio(figures: Sequence[float], bases: Sequence[float]) -> float:
    """Return the median of the ratios within each round, so that a slow round does not matter."""
    return statistics.median(figure / base for figure, base in zip(figures, bases, strict=True))


def judged(goal: Goal, figures: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Judge whether a goal is reached; None if one of the two did not take part."""
    ours = figures.get(goal.contender, ())
    theirs = figures.get(goal.over, ()) if goal.over else [1.0] * len(ours)
    reached = ratio(ours, theirs) if ours and theirs else math.nan
    verdict = None if math.isnan(reached) else reached <= goal.at_most
    return {"contender": goal.contender, "over": goal.over, "at most": goal.at_most, "is": reached, "reached": verdict}


def lines_of(table: dict[str, Any]) -> Iterator[str]:
    """Format a table in Markdown."""
    yield f"\n**{table['title']}**\n"
    yield f"| contender | median, {table['unit']} | lowest to highest | over {table['over']} |"
    yield "|---|---:|---:|---:|"
    for row in table["rows"]:
        if "missing" in row:
            yield f"| {row['contender']} | {row['missing']} | | |"
        else:
            spread = f"{digits(row['min'])} to {digits(row['max'])}"
            yield f"| {row['contender']} | {digits(row['median'])} | {spread} | {row['ratio']:.3f} |"
    yield ""
    for goal in table["goals"]:
        yield f"- {goal_line(goal, table['unit'])}"


def goal_line(goal: dict[str, Any], unit: str) -> str:
    """Describe a goal and what was reached."""
    wanted = f"{goal['at most']:.2f} x {goal['over']}" if goal["over"] else f"{goal['at most']:g} {unit}"
    verdict = {True: "reached", False: "NOT reached", None: "not judged"}[goal["reached"]]
    return f"{goal['contender']}, at most {wanted}: {goal['is']:.3f}, {verdict}"


def summary(tables: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Format all tables as one, with a line for each."""
    yield "\n**Summary: the ratio to the contender or limit in square brackets, then the median**\n"
    yield "| table | goals | figures |"
    yield "|---|---|---|"
    for table in tables:
        unit, rows = table["unit"], [row for row in table["rows"] if "missing" not in row]
        goals = "; ".join(goal_line(goal, unit) for goal in table["goals"]) or "-"
        figures = (f"{row['contender']} {row['ratio']:.3f} ({digits(row['median'])} {unit})" for row in rows)
        yield f"| {table['title']} [over {table['over']}] | {goals} | {'; '.join(figures)} |"


def digits(value: float) -> str:
    """Format a value with three or four significant digits."""
    if math.isnan(value):
        return "unknown"
    return f"{value:,.{max(0, 3 - len(str(int(abs(value)))) + (abs(value) < 1))}f}"
