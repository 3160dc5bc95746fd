"""Which parts of a copy are still as they were shipped: those belong to the template, whose current ones replace them.

shipped.json has the fingerprints of the parts of every older template, so that nothing but this folder is needed.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from upgrading.script import Edit, Lines, Script, dotted, lines_of

FILE = Path(__file__).with_name("shipped.json")
NAME = "eb_script_template.py"


def plain(text: str) -> str:
    """A text without what editors change by themselves: trailing blanks, and blank lines before and after."""
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")


def fingerprint(text: str) -> str:
    """A hash by which a shipped text is recognised."""
    return hashlib.sha256(plain(text).encode()).hexdigest()[:16]


def fingerprints(script: Script) -> str:
    """The fingerprints of the engine and all parts of a template: its line in shipped.json."""
    return " ".join(fingerprint(script.part(lines)) for lines in [script.engine, *parts_of(script).values()])


def shipped(template: Script) -> dict[str, list[str]]:
    """The fingerprints of each version, including the current one."""
    lines = {**json.loads(FILE.read_text(encoding="utf-8")), dotted(template.version): fingerprints(template)}
    return {version: line.split() for version, line in lines.items()}


def is_shipped(text: str, template: Script) -> bool:
    """Whether a text is a part of any template."""
    return any(fingerprint(text) in known for known in shipped(template).values())


def parts_of(script: Script) -> dict[str, Lines]:
    """What belongs to the template until the author edits it: requirements block, docstring and API functions."""
    parts = {"the requirements block": block} if (block := block_of(script)) else {}
    if ast.get_docstring(script.tree) is not None:
        parts["the docstring"] = lines_of(script.tree.body[0])
    return parts | script.functions()


def block_of(script: Script) -> Lines | None:
    """The lines of the requirements block (PEP 723)."""
    lines = [line.rstrip() for line in script.lines]
    first = lines.index("# /// script") if "# /// script" in lines else len(lines)
    return (first + 1, lines.index("# ///", first) + 1) if "# ///" in lines[first:] else None


def outdated(copy: Script, template: Script) -> dict[str, Edit]:
    """The parts that the author never edited and the template has changed, with the edits that update them."""
    present = parts_of(template)
    own = {name: (lines, copy.part(lines)) for name, lines in parts_of(copy).items() if name in present}
    return {
        name: (*lines, template.part(present[name]))
        for name, (lines, text) in own.items()
        if plain(text) != plain(template.part(present[name])) and is_shipped(text, template)
    }


def stay_as_they_are(before: Script, after: Script, template: Script) -> Iterator[str]:
    """The API functions that the author edited and the template has changed since, as sentences with their lines."""
    known = shipped(template).get(dotted(before.version), [])
    for name, lines in after.functions().items():
        present = template.functions().get(name)
        if present and not is_shipped(after.part(lines), template) and fingerprint(template.part(present)) not in known:
            see = f"see {NAME}, line {present[0]}"
            yield f"line {lines[0]}: {name} stays as you wrote it, but the template's has changed: {see}"
