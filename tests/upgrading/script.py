"""A script as lines and as a syntax tree, and where its engine is."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable

from script_file import Refused

VERSION = re.compile(r"^TEMPLATE_VERSION\b[^=\n]*=\s*[\"']([^\"'\n]*)[\"']", re.MULTILINE)
OLDEST, WITH_MARKS = (1, 3, 0), (3, 0, 0)  # before 3.0.0, the engine is between two banners
Lines = tuple[int, int]  # first and last
Edit = tuple[int, int, str]  # replaces these lines, or is inserted between them if the last is before the first


class Script:
    """A copy of the template. Lines are counted from 1, as in its syntax tree."""

    def __init__(self, text: str) -> None:
        self.text, self.lines, self.version = text, text.split("\n"), version_of(text)
        self.engine = engine_in(self.lines, self.version)
        self.tree = parsed(text)

    def part(self, lines: Lines) -> str:
        return "\n".join(self.lines[lines[0] - 1 : lines[1]])

    def edited(self, edits: Iterable[Edit]) -> Script:
        """The script after some edits, which do not overlap."""
        lines = list(self.lines)
        for first, last, text in sorted(edits, key=lambda edit: edit[:2])[::-1]:
            lines[first - 1 : last] = [text]
        return Script("\n".join(lines))

    def authors_part(self) -> str:
        """The script with the engine's lines blanked, so that all others keep their numbers."""
        first, last = self.engine
        return "\n".join([*self.lines[: first - 1], *[""] * (last - first + 1), *self.lines[last:]])

    def above_engine(self) -> list[ast.stmt]:
        return [node for node in self.tree.body if node.lineno < self.engine[0]]

    def functions(self) -> dict[str, Lines]:
        """The functions below the engine, except main: the API functions and the author's own."""
        below = [node for node in self.tree.body if node.lineno > self.engine[1]]
        return {
            node.name: lines_of(node) for node in below if isinstance(node, ast.FunctionDef) and node.name != "main"
        }


def lines_of(node: ast.stmt) -> Lines:
    """The lines of a statement, including its decorators."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(each.lineno for each in decorators)]), node.end_lineno or node.lineno


def parsed(text: str) -> ast.Module:
    """The syntax tree of a script, which Python must be able to compile."""
    try:
        compile(text, "the script", "exec", dont_inherit=True)
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # ValueError: a null byte, before 3.11.4
        raise Refused(f"cannot be read by this Python {sys.version_info[0]}.{sys.version_info[1]}: {error}") from error


def version_of(text: str) -> tuple[int, ...]:
    """The version of the template from which a script was copied."""
    found = VERSION.search(text)
    if not found:
        raise Refused('is not a copy of the template: it has no line TEMPLATE_VERSION = "..."')
    if not re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}", found[1]):
        raise Refused(f'says TEMPLATE_VERSION = "{found[1]}", which is not a version of the template')
    version = tuple(map(int, found[1].split(".")))
    if version < OLDEST:
        fix = "copy eb_script_template.py and move your parts into it"
        raise Refused(f"is from template {found[1]}, but upgrades start at {dotted(OLDEST)}: {fix}")
    return version


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def engine_in(lines: list[str], version: tuple[int, ...]) -> Lines:
    """The lines of the engine, without blank lines after it."""
    if version >= WITH_MARKS:
        first, last = only_one(lines, "ENGINE BEGINS"), only_one(lines, "ENGINE ENDS")
    else:
        first, last = only_one(lines, "Engine: errors and stopping"), only_one(lines, "EDIT 2") - 1
    if first >= last:
        raise Refused("has the line that ends the engine above the one that begins it")
    while not lines[last - 1].strip():
        last -= 1
    return first, last


def only_one(lines: list[str], words: str) -> int:
    """The only line that is a banner with these words."""
    found = [number for number, line in enumerate(lines, 1) if re.match(rf"# =+ {words}\b", line)]
    if len(found) != 1:
        times = "no line" if not found else f"{len(found)} lines"
        raise Refused(f'has {times} "# ==== {words}", where the template has one to mark the engine')
    return found[0]
