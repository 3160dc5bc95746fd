"""A copy of the template: its services, and the line in which it relies on something of the platform.

Lines are found by the literals that would have to change, not by the names of functions: those differ by version.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef
TOKEN_ENDPOINTS = ("login", "config_token", "refresh_token")


def imported(path: Path) -> ModuleType:
    """The copy as a module; its guard keeps it from running."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent))  # where it may have modules of its own
    specification.loader.exec_module(module)
    return module


class Script:
    """The copy's settings, and its source as a tree."""

    def __init__(self, path: Path, source: str, services: dict[str, dict[str, Any]], max_threads: int = 20) -> None:
        self.path, self.services, self.max_threads = path, services, max_threads
        self.source = source
        self.lines = source.splitlines()
        self.tree = ast.parse(source)
        self.functions = [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    def text(self, node: ast.AST | None) -> str:
        """A part of the source as it is written."""
        return ast.get_source_segment(self.source, node) or "" if node else ""

    def place(self, line: int) -> str:
        """A line as editors and terminals link to it."""
        return f"{self.path.name}:{line}"

    def constant(self, name: str) -> int:
        """The line in which a constant is set."""
        node = self._assignment(name)
        return node.lineno if node else 1

    def setting(self, app: str, key: str) -> int:
        """The line of a service's entry: app_id, base_url, or an endpoint."""
        node = self._assignment("MICROSERVICES")
        for name, value in pairs(node.value if node else None):
            if name == app:
                found = (each.lineno for each in constants(value) if each.value == key)
                return next(found, value.lineno)
        return node.lineno if node else 1

    def call(self, endpoint: str) -> tuple[int, Function | None]:
        """The line that calls an endpoint, with its function."""
        for function in self.functions:
            for node in constants(function):
                if node.value == endpoint:
                    return node.lineno, function
        return self.constant("MICROSERVICES"), None

    def token_answers(self) -> tuple[int, Function | None, str]:
        """The line that reads the JSON of a token answer, its function, and what is written there."""
        in_sessions = [
            node
            for parent in ast.walk(self.tree)
            if isinstance(parent, ast.ClassDef) and parent.name == "Sessions"
            for node in ast.walk(parent)
            if isinstance(node, Function)
        ]
        posting = [each for each in self.functions if calls(each, "post") and not decorated(each)]
        for function in [*in_sessions, *posting]:
            for node in calls(function, "json"):
                return node.lineno, function, self.text(node)
        return *self.first("access_token"), "response.json()"

    def dead_token(self) -> tuple[int, set[int], str]:
        """The line that takes a status for a dead token, all such statuses, and the comparison."""
        _, reader, _ = self.token_answers()
        found = [
            (not in_handler(function, node), node.lineno, node)
            for function in self.functions
            if function is not reader
            for node in ast.walk(function)
            if isinstance(node, ast.Compare) and 401 in literals(node)
        ]
        if not found:
            return 1, {401}, "== 401"
        node = min(found, key=lambda row: row[:2])[2]
        return node.lineno, {number for number in literals(node) if type(number) is int}, self.text(node)

    def error_raising(self) -> tuple[int, Function | None, str]:
        """The line at which an answer that is an error is raised as one."""
        _, reader, _ = self.token_answers()
        for function in self.functions:
            if function is not reader and "Authorization" in literals(function):
                for node in calls(function, "raise_for_status"):
                    return node.lineno, function, self.text(node)
        return 1, None, ""

    def list_of(self, endpoint: str) -> tuple[int, Function | None, str]:
        """The line that expects an endpoint's answer to be a list, and what is written there."""
        line, function = self.call(endpoint)
        found = [node for node in ast.walk(function) if isinstance(node, ast.Call)] if function else []
        asking = [node for node in found if any(isinstance(each, ast.Name) and each.id == "list" for each in node.args)]
        for node in [*asking, *(calls(function, "json") if function else ())]:
            return node.lineno, function, self.text(node)
        return line, function, ""

    def page(self) -> tuple[int, int, str]:
        """The line that sends the number of a page, the number of the first one, and what is written for it."""
        for node in ast.walk(self.tree):
            for name, value in pairs(node):
                if name == "page":
                    shift = value.right if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Sub) else None
                    moved = literal(shift) if shift else 0
                    return value.lineno, 1 - moved if isinstance(moved, int) else 1, f'"page": {self.text(value)}'
        return self.first("page")[0], 1, ""

    def page_size(self) -> tuple[int, int, str]:
        """The line that says how many inclusions a page is to have, the number, and how it is written."""
        for node in (node for function in self.pagers() for node in ast.walk(function)):
            name = node.id if isinstance(node, ast.Name) else ""
            assigned = self._assignment(name) if name.isupper() else None
            place = assigned.value if assigned else node
            number = literal(place)
            if isinstance(place, ast.Constant) and type(number) is int and number >= 10:
                return place.lineno, number, self.text(place)
        return self.call("search_inclusions")[0], 1000, ""

    def total(self) -> tuple[int, bool]:
        """The line of the function that asks for all pages, and whether it, or one that it calls, trusts in `total`."""
        pagers = self.pagers()
        return pagers[0].lineno if pagers else 1, any("total" in literals(function) for function in pagers)

    def pagers(self) -> list[Function]:
        """get_all_inclusions and the functions that it calls, which ask for all pages; without it, what has a total."""
        own = [function for function in self.functions if function.name == "get_all_inclusions"]
        if not own:
            return [function for function in self.functions if "total" in literals(function)]
        named = {node.id for function in own for node in ast.walk(function) if isinstance(node, ast.Name)}
        return [*own, *(function for function in self.functions if function.name in named)]

    def plain_get(self, app: str, endpoint: str) -> bool:
        """Whether some function calls an endpoint by GET and without parameters."""
        return any(is_plain_get(node, app, endpoint) for node in ast.walk(self.tree) if isinstance(node, ast.Call))

    def first(self, text: str) -> tuple[int, Function | None]:
        """The first function that has this text as a literal, with its line."""
        for function in self.functions:
            for node in constants(function):
                if node.value == text:
                    return node.lineno, function
        return 1, None

    def _assignment(self, name: str) -> ast.Assign | ast.AnnAssign | None:
        for node in self.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return node  # type: ignore[return-value]
        return None


def literal(node: ast.AST | None) -> Any:
    """The value of a literal, None for any other node."""
    return node.value if isinstance(node, ast.Constant) else None


def constants(node: ast.AST) -> list[ast.Constant]:
    """All literals in a part of the source, as nodes, from the top down."""
    found = [each for each in ast.walk(node) if isinstance(each, ast.Constant)]
    return sorted(found, key=lambda each: (each.lineno, each.col_offset))


def literals(node: ast.AST | None) -> set[Any]:
    """All literals in a part of the source."""
    return {each.value for each in constants(node)} if node else set()


def pairs(node: ast.AST | None) -> Iterator[tuple[Any, ast.expr]]:
    """Key and value of each entry of a dict that is written out."""
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            yield literal(key), value


def calls(node: ast.AST, method: str) -> list[ast.Call]:
    """All calls of a method of this name in a part of the source."""
    found = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
    return [each for each in found if isinstance(each.func, ast.Attribute) and each.func.attr == method]


def decorated(function: Function) -> bool:
    """Whether a function is one of those that call the platform's data endpoints."""
    return any("api_call_with_retry" in ast.dump(decorator) for decorator in function.decorator_list)


def in_handler(function: Function, node: ast.AST) -> bool:
    """Whether a node stands where a function deals with an exception."""
    handlers = [each for each in ast.walk(function) if isinstance(each, ast.ExceptHandler)]
    return any(node is each for handler in handlers for each in ast.walk(handler))


def is_plain_get(node: ast.Call, app: str, endpoint: str) -> bool:
    """Whether a call is call_endpoint(APP, "GET", ENDPOINT, kind) or client.get(MICROSERVICES[APP][…][ENDPOINT])."""
    options = {keyword.arg for keyword in node.keywords}
    given = [literal(argument) for argument in node.args]
    if given[:3] == [app, "GET", endpoint]:
        return len(given) <= 4 and not options & {"suffix", "params", "json"}
    is_get = isinstance(node.func, ast.Attribute) and node.func.attr == "get" and bool(node.args)
    address = node.args[0] if is_get else None
    plain = isinstance(address, ast.Subscript) and literal(address.slice) == endpoint and app in literals(address)
    return plain and not options & {"params"}
