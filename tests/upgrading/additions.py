"""What a copy lacks: constants, endpoints, imports, requirements."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from script_file import assigned, entries
from upgrading.names import Names, undefined
from upgrading.script import Edit, Lines, Script, lines_of

Added = Iterator[tuple[str, Edit]]  # what is added, and the edit that adds it
LEFT_OUT = "refresh_token"  # its absence is deliberate: a service without it renews its session by a new login


def lacking_constants(copy: Script, template: Script) -> Added:
    """The template's constants that the copy does not set, each after the one that it follows in the template."""
    own, known = constants_of(copy), Names(copy.text).bound
    line = min((first for first, _ in own.values()), default=copy.engine[0]) - 1
    for name, lines in constants_of(template).items():
        if name in own:
            line = own[name][1]
        elif name not in known:
            yield name, (line + 1, line, with_comments(template, lines))


def constants_of(script: Script) -> dict[str, Lines]:
    """The names set above the engine, with the lines that set them."""
    return {name: lines_of(node) for node in script.above_engine() for name, _ in assigned(node)}


def with_comments(script: Script, lines: Lines) -> str:
    """The text of some lines, with the comments directly above them."""
    first, last = lines
    while script.lines[first - 2].lstrip().startswith("#"):
        first -= 1
    return script.part((first, last))


def lacking_endpoints(copy: Script, template: Script) -> Iterator[tuple[str, Edit | None]]:
    """The template's endpoints that a service of the copy does not have, even in a comment.

    If the opening brace is not the end of its line, there is no edit: the author has to add them.
    """
    wanted = endpoints_of(template)
    for service, own in endpoints_of(copy).items():
        text = copy.part((own.lineno, own.end_lineno or own.lineno))
        for key, value in entries(wanted.get(service)).items():
            if key != LEFT_OUT and not re.search(rf"[\"']{re.escape(key)}[\"']\s*:", text):
                lines = (value.lineno, value.end_lineno or value.lineno)
                fits = re.match(rb"\s*(#.*)?$", copy.lines[own.lineno - 1].encode()[own.col_offset + 1 :])
                edit = (own.lineno + 1, own.lineno, with_comments(template, lines))
                yield f"{service}: {key}", edit if fits else None


def endpoints_of(script: Script) -> dict[str, ast.Dict]:
    """The endpoints of each service, if they are a dict literal."""
    settings = {name: value for node in script.above_engine() for name, value in assigned(node)}
    services = entries(settings.get("MICROSERVICES")).items()
    endpoints = {name: entries(service).get("endpoints") for name, service in services}
    return {name: written for name, written in endpoints.items() if isinstance(written, ast.Dict)}


def lacking_imports(copy: Script, template: Script) -> Added:
    """The template's imports of names that the copy or its new engine uses, but does not import."""
    needed = undefined(copy.text)
    own = [lines_of(node)[1] for node in copy.above_engine() if isinstance(node, (ast.Import, ast.ImportFrom))]
    line = max(own, default=copy.engine[0] - 1)
    for node in template.above_engine():
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in (alias for alias in node.names if (alias.asname or alias.name) in needed):
                source = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
                text = f"{source}import {ast.unparse(alias)}"
                yield text, (line + 1, line, text)


def with_pins(block: str, template: str) -> str:
    """An author's requirements block with the template's versions of packages, and with packages that it lacks."""
    for pin in re.findall('"([^"]+)"', re.findall("(?m)^# dependencies = .*", template)[0]):
        name, versions = re.findall(r"([\w-]+)(.*)", pin)[0]
        own = re.compile(rf"""(["']{name}(?:\[[^]]*\])?)(?![\w.-])[^;"'\[]*""", re.IGNORECASE)
        if own.search(block):
            block = own.sub(rf"\g<1>{versions}", block)
        elif not re.search(f"[\"']{name}2\\b", block):  # httpx2, if the copy has moved to it
            block = re.sub(r"(?m)^(# dependencies\s*=\s*\[)", rf'\g<1>"{pin}", ', block)
    return block
