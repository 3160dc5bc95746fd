"""Facts about a script, read from its source without running it. Standard library only."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from script_file import assigned, entries, literal


class Facts(NamedTuple):
    """What the sandbox has to know about a script; what cannot be read is left out."""

    max_threads: int | None
    services: list[str]
    variables: dict[str, str]  # environment variable -> service whose address it sets
    fixed: dict[str, int]  # service whose address no variable sets -> line of that address
    endpoints: list[tuple[str, str, str]]  # name, service, path without its query


def read(script: Path) -> Facts:
    """Return the facts about a script."""
    found = _constants(script)
    services = entries(found.get("MICROSERVICES"))
    addresses = {name: entries(entry).get("base_url") for name, entry in services.items()}
    threads = literal(found.get("MAX_THREADS"))
    return Facts(
        threads if type(threads) is int else None,
        list(services),
        {variable: name for name, address in addresses.items() for variable in _variables(address)},
        {name: address.lineno for name, address in addresses.items() if address and _leads_out(address)},
        [endpoint for name, entry in services.items() for endpoint in _endpoints(name, entry)],
    )


def _constants(script: Path) -> dict[str, ast.expr]:
    """Return the values of the top-level names of a script; a file that is not Python has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python shows them when it runs the script
            statements = ast.parse(script.read_bytes()).body
    except (SyntaxError, ValueError):  # ValueError: a null byte, before Python 3.11.4
        return {}
    return {name: value for statement in statements for name, value in assigned(statement)}


def _endpoints(service: str, entry: ast.expr) -> Iterator[tuple[str, str, str]]:
    for name, path in entries(entries(entry).get("endpoints")).items():
        if isinstance(text := literal(path), str):
            yield name, service, text.split("?")[0].lstrip("/")


def _variables(address: ast.expr | None) -> Iterator[str]:
    """Yield the texts in an expression that look like environment variables."""
    for node in ast.walk(address) if address else ():
        if re.fullmatch("[A-Z][A-Z0-9_]*", str(literal(node))):
            yield str(literal(node))


def _leads_out(address: ast.expr) -> bool:
    """Tell whether an address is only a text, and not an address of this machine."""
    text = literal(address)
    return isinstance(text, str) and not re.match(r"http://(127\.0\.0\.1|\[::1\]|localhost)(:|/|$)", text)
