"""Changes to a script that can be made automatically, in place; the old script is kept next to it."""

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import script_file
from script_file import Refused


@dataclass(frozen=True)
class Edit:
    """A change of the source: `new` replaces `old`, or `new` is added as a line above it.

    A change of several lines is described in `words` and shown below them.
    """

    new: str
    old: str
    above: bool = False
    words: str = ""

    def __str__(self) -> str:
        return self.words or f"write `{self.new}` {'above' if self.above else 'instead of'} `{self.old}`"


def changed(source: str, steps: Iterable[tuple[Edit, int]]) -> tuple[str, list[tuple[Edit, int]]]:
    """The source after all edits, and the edits that do not fit it or overlap an earlier one."""
    starts, left = [0], []
    for text in source.split("\n"):
        starts.append(starts[-1] + len(text) + 1)
    places: list[tuple[int, int, str]] = []
    for edit, line in dict.fromkeys(steps):
        place = placed(source, edit, starts[line - 1 : line + 1])
        if place is None or any(place[0] < end and start < place[1] for start, end, _ in places):
            left.append((edit, line))
        else:
            places.append(place)
    for start, end, new in sorted(places, reverse=True):
        source = source[:start] + new + source[end:]
    return source, left


def placed(source: str, edit: Edit, line: list[int]) -> tuple[int, int, str] | None:
    """Start, end and new text of an edit; None unless the old text begins on its line exactly once."""
    if len(line) < 2 or not edit.old:
        return None
    text = source[line[0] : line[1]]
    first = edit.old.split("\n")[0]
    start = line[0] + text.find(first)
    if text.count(first) != 1 or not source.startswith(edit.old, start):
        return None
    if edit.above:
        indent = text[: len(text) - len(text.lstrip())]
        return line[0], line[0], f"{indent}{edit.new}\n"
    return start, start + len(edit.old), edit.new


def apply(path: Path, steps: Iterable[tuple[Edit, int]]) -> tuple[Path, list[tuple[Edit, int]]]:
    """Write the edits into a script; returns the old script's path, and the edits that did not fit. Raises Refused."""
    file, kept = script_file.read(path), script_file.free(path.resolve().with_name(f"{path.stem}.before.py"))
    new, left = changed(file.text, steps)
    try:
        ast.parse(new)
    except SyntaxError:
        raise Refused("would no longer be valid Python: nothing was changed") from None
    with script_file.all_or_nothing(kept):
        file.replace(new, kept)
    return kept, left
