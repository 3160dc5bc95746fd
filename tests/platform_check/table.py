"""The format of the table of the check."""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

from platform_check.changes import Edit
from platform_check.judgements import DIFFERS, NOT_SEEN, NOT_TRIED, OK, Finding
from platform_check.script import Script

WIDTH = 120
COLUMNS = "{:<10} {:<51} "
HEAD = COLUMNS.format("verdict", "assumed") + "seen"


def row(finding: Finding) -> str:
    """A line of the table, folded if it is long."""
    check, assumed = finding.about.check, finding.about.assumed
    return folded(COLUMNS.format(finding.verdict, f"{check}: {assumed}" if assumed else check), finding.seen)


def changes(findings: Sequence[Finding], script: Script) -> list[str]:
    """What to do about the differences, each once, by line of the script; steps outside the script come last."""
    todo: dict[tuple[int, str | Edit], list[Finding]] = {}
    for finding in findings:
        for change, line in finding.steps:
            todo.setdefault((line, change), []).append(finding)
    lines = []
    for (line, change), same in sorted(todo.items(), key=lambda item: (not item[0][0], item[0][0])):
        checks = ", ".join(finding.about.check for finding in same)
        place = f"{script.path.name}:{line}" if line else "outside the script"
        lines += ["", f"{place}  {change}"]
        if isinstance(change, Edit) and change.words:
            lines += ["", textwrap.indent(change.new, "    "), ""]
        lines.append(folded("    ", f"{checks}: otherwise {same[0].about.means}"))
    return ["", "What to do", *lines] if lines else []


def closing(findings: Sequence[Finding]) -> str:
    verdicts = Counter(finding.verdict for finding in findings)
    rest = [f"{verdicts[verdict]} {verdict}" for verdict in (NOT_TRIED, NOT_SEEN) if verdicts[verdict]]
    return ", ".join([f"{verdicts[OK]} as assumed", f"{verdicts[DIFFERS]} different", *(rest or ["0 not tried"])])


def passed_over(passed: Mapping[str, int], others: int) -> list[str]:
    """What a recording contains besides the calls of the platform."""
    counted = {**passed, "calls to something else": others}
    words = [f"{kind}: {number}" for kind, number in sorted(counted.items(), key=lambda pair: -pair[1]) if number]
    return [textwrap.fill(f"Ignored: {'; '.join(words)}", WIDTH)] if words else []


def exports(variables: Mapping[str, str], windows: bool) -> list[str]:
    """What to type so that a script uses these addresses."""
    form = '$env:{} = "{}"' if windows else "export {}={}"
    return ["", *(form.format(name, url) for name, url in variables.items())] if variables else []


def left_to_you(steps: Sequence[tuple[str | Edit, int]], script: Script) -> list[str]:
    """The changes that were not made automatically."""
    open_ones = [(str(change), line) for change, line in steps if not str(change).startswith("nothing to change")]
    places = [f"{script.shown(line)}  {change}" if line else change for change, line in open_ones]
    return ["Left to you:", *(f"  {place}" for place in places)] if places else []


def folded(start: str, text: str) -> str:
    """A text after a start, wrapped if necessary; a text with code is not wrapped."""
    if "`" in text:
        return start + text
    return textwrap.fill(
        start + text, WIDTH, subsequent_indent=" " * min(len(start), len(HEAD) - 4), break_on_hyphens=False
    )
