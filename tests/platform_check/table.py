"""How the table of the check looks."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

from platform_check.judgements import DIFFERS, NOT_TRIED, OK, Finding
from platform_check.script import Script

WIDTH = 120
COLUMNS = "{:<10} {:<51} "
HEAD = COLUMNS.format("verdict", "assumed") + "seen"


def row(finding: Finding) -> str:
    """A line of the table, folded if it is long."""
    check, assumed = finding.about.check, finding.about.assumed
    return folded(COLUMNS.format(finding.verdict, f"{check}: {assumed}" if assumed else check), finding.seen)


def changes(findings: Sequence[Finding], script: Script) -> list[str]:
    """What to do about the differences, each thing once, by line of the script; what is not in the script last."""
    todo: dict[tuple[int, str], list[Finding]] = {}
    for finding in findings:
        if finding.change:
            todo.setdefault((finding.line, finding.change), []).append(finding)
    lines = []
    for (line, change), same in sorted(todo.items(), key=lambda item: (not item[0][0], item[0][0])):
        checks = ", ".join(finding.about.check for finding in same)
        place = f"{script.path.name}:{line}" if line else "outside the script"
        lines += ["", f"{place}  {change}", folded("    ", f"{checks}: otherwise {same[0].about.means}")]
    return ["", "What to do", *lines] if lines else []


def closing(findings: Sequence[Finding], calls: int) -> str:
    """The count of the verdicts."""
    verdicts = Counter(finding.verdict for finding in findings)
    return f"{verdicts[OK]} as assumed, {verdicts[DIFFERS]} different, {verdicts[NOT_TRIED]} not tried; {calls} calls"


def folded(start: str, text: str) -> str:
    """Some text after a start, on as many lines as it takes; code in it stays whole."""
    if "`" in text:
        return start + text
    return textwrap.fill(
        start + text, WIDTH, subsequent_indent=" " * min(len(start), len(HEAD) - 4), break_on_hyphens=False
    )
