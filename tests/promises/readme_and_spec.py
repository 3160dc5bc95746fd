"""README and specification, split into parts for the tests."""

import re
from itertools import takewhile
from pathlib import Path
from textwrap import dedent

TOP = Path(__file__).resolve().parents[2]
README_FILE = TOP / "README_TEMPLATE.md"
SPECIFICATION_FILE = TOP / "Script_template_spec.md"
RECIPES = TOP / "tests" / "recipes"
README = README_FILE.read_text(encoding="utf-8")
SPECIFICATION = SPECIFICATION_FILE.read_text(encoding="utf-8")
CHANGELOG_FILE = TOP / "tests" / "CHANGELOG.md"


def blocks(language: str, text: str = README) -> list[str]:
    """The code blocks of a language, including those in lists, without their indentation."""
    return [dedent(block) for block in re.findall(rf"(?ms)^ *```{language}\n(.*?)^ *```$", text)]


def block(language: str, start: str) -> str:
    """The only block of the README that begins so."""
    (found,) = (each for each in blocks(language) if each.startswith(start))
    return found


def table(header: str, text: str = README) -> list[list[str]]:
    """The cells of the only table with this header: `table("exit code | meaning")`."""
    (found,) = re.findall(rf"(?m)^\| {re.escape(header)} \|\n\|[-|]+\|\n((?:\|.*\n)+)", text)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()]


def code(text: str) -> list[str]:
    """The `spans` of code in a text, without its blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^ *```.*?^ *```$", "", text))


def section(heading: str, text: str) -> str:
    """The text under a heading, up to the next heading of its level."""
    level = heading.split()[0] + " "
    lines = text.split(heading + "\n", 1)[1].split("\n")
    return "\n".join(takewhile(lambda line: not line.startswith(level), lines))
