"""A copy of the template: its services, and the line in which it relies on something of the platform.

Lines are found by the literals that would have to change, not by the names of functions: those differ by version.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from platform_check.changes import Edit

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


UNTIL_EMPTY = '''def get_all_inclusions(organization_id: str) -> list[dict[str, Any]]:
    """All inclusions of a centre, each once: page after page until one is empty, whatever `total` says."""
    inclusions: dict[Any, dict[str, Any]] = {{}}
    number = 1
    while page := search_inclusions(organization_id, {size}, number):
        before = len(inclusions)
        inclusions.update({{inclusion["{key}"]: inclusion for inclusion in page}})
        if len(inclusions) < before + len(page):
            raise {error}(f"page {{number}} has an inclusion that another page has, too: run again")
        number += 1
    return list(inclusions.values())'''


@dataclass(frozen=True)
class PageSize:
    """Where a script says how many inclusions a page is to have; `form` is what stands there, `{}` for the number."""

    line: int
    number: int
    written: str
    form: str = "{}"

    def to(self, number: int) -> tuple[str, str]:
        """What to write for another number, and for what."""
        return self.form.replace("{}", str(number)), self.written


class Script:
    """The copy's settings, and its source as a tree."""

    def __init__(
        self,
        path: Path,
        source: str,
        services: dict[str, dict[str, Any]],
        max_threads: int = 20,
        subtasks: int = 40,
    ) -> None:
        self.path, self.services, self.max_threads, self.subtasks = path, services, max_threads, subtasks
        self.source = source
        self.lines = source.split("\n")
        self.tree = ast.parse(source)
        self.functions = [node for node in ast.walk(self.tree) if isinstance(node, Function)]
        self.constants = {function: constants(function) for function in self.functions}

    def text(self, node: ast.AST | None) -> str:
        """A part of the source as it is written; ast.get_source_segment reads all of it for each."""
        if node is None or not hasattr(node, "end_lineno"):
            return ""
        part = [line.encode("utf-8") for line in self.lines[node.lineno - 1 : node.end_lineno]]  # type: ignore[attr-defined]
        part[-1] = part[-1][: node.end_col_offset]  # type: ignore[attr-defined]
        part[0] = part[0][node.col_offset :]  # type: ignore[attr-defined]
        return b"\n".join(part).decode("utf-8")

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

    def value(self, app: str, *keys: str) -> tuple[int, str]:
        """The line of a value in a service's entry, and how it is written there; "" if it is no text."""
        node = self._entry(app, *keys)
        return (node.lineno, self.text(node)) if isinstance(literal(node), str) else (self.setting(app, keys[-1]), "")

    def address(self, app: str) -> tuple[int, str]:
        """The line of the address of a service that holds if no variable sets another, and how it is written."""
        node = self._entry(app, "base_url")
        found = [each for each in constants(node) if "://" in str(each.value)] if node else []
        return (found[-1].lineno, self.text(found[-1])) if found else (self.setting(app, "base_url"), "")

    def _entry(self, *keys: str) -> ast.expr | None:
        node = self._assignment("MICROSERVICES")
        found = node.value if node else None
        for key in keys:
            found = next((value for name, value in pairs(found) if name == key), None)
        return found

    def method(self, endpoint: str) -> str:
        """The method by which a function calls an endpoint, "" if that cannot be seen."""
        for function in self.functions:
            if not decorated(function) or all(each.value != endpoint for each in self.constants[function]):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and endpoint in literals(node):
                    given = [literal(argument) for argument in node.args]
                    method = next((each for each in given if each in ("GET", "POST", "PUT", "PATCH", "DELETE")), None)
                    of_client = node.func.attr if isinstance(node.func, ast.Attribute) else ""
                    if method or of_client in ("get", "post", "put", "patch", "delete"):
                        return str(method or of_client.upper())
        return ""

    def call(self, endpoint: str) -> tuple[int, Function | None]:
        """The line that calls an endpoint, with its function."""
        for function in self.functions:
            for node in self.constants[function]:
                if node.value == endpoint:
                    return node.lineno, function
        return self.constant("MICROSERVICES"), None

    def token_answers(self) -> tuple[int, Function | None, str]:
        """The line that reads the JSON of a token answer, its function, and what is written there."""
        in_sessions = [
            node
            for parent in ast.walk(self.tree)
            if isinstance(parent, ast.ClassDef) and parent.name.strip("_") == "Sessions"
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

    def answer_of(self, endpoint: str) -> tuple[int, Function | None, str]:
        """The line on which a function has the JSON of an endpoint, the function, and what is written there."""
        line, function = self.call(endpoint)
        found = [node for node in ast.walk(function) if isinstance(node, ast.Call)] if function else []
        short = [node for node in found if isinstance(node.func, ast.Name) and node.func.id == "call_endpoint"]
        for node in [*short, *(calls(function, "json") if function else ())]:
            return node.lineno, function, self.text(node)
        return line, function, ""

    def key_of_rows(self) -> tuple[int, str, str]:
        """The line on which get_all_inclusions says by what it tells inclusions apart, the name, how it is written."""
        for function in self.functions:
            if function.name == "get_all_inclusions":
                for each in keywords(function, "key"):
                    return each.lineno, str(literal(each.value)), self.text(each)
        return 1, "patientId", ""

    def page(self) -> tuple[int, int, str]:
        """The line that sends the number of a page, the number of the first one, and what is written for it."""
        for node in ast.walk(self.tree):
            for name, value in pairs(node):
                if name == "page":
                    shift = value.right if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Sub) else None
                    moved = literal(shift) if shift else 0
                    return value.lineno, 1 - moved if isinstance(moved, int) else 1, f'"page": {self.text(value)}'
        return self.first("page")[0], 1, ""

    def page_size(self) -> PageSize:
        """Where the script says how many inclusions a page is to have; for a default, what takes its place."""
        own = [function for function in self.functions if function.name == "get_all_inclusions"]
        for function in [*own, *self.pagers()]:
            for node in ast.walk(function):
                name = node.id if isinstance(node, ast.Name) else ""
                assigned = self._assignment(name) if name.isupper() else None
                place = assigned.value if assigned else node
                number = literal(place)
                if not isinstance(place, ast.Constant) or type(number) is not int or number < 10:
                    continue
                key = next((each for part in own for each in keywords(part, "key")), None)
                if function in own or assigned or key is None:
                    return PageSize(place.lineno, number, self.text(place))
                return PageSize(key.lineno, number, self.text(key), f"{self.text(key)}, limit={{}}")
        return PageSize(self.call("search_inclusions")[0], 1000, "")

    def until_empty(self, size: int = 0) -> str | Edit:
        """The code of a get_all_inclusions that trusts in no `total`, and what it takes the place of."""
        words = "write get_all_inclusions anew: ask for page after page until one is empty, and leave total alone"
        named = {function.name: function for function in self.functions}
        own = named.get("get_all_inclusions")
        if own is None or "search_inclusions" not in named:
            return words
        [key, *_] = [*(literal(each.value) for each in keywords(own, "key")), "patientId"]
        error = "WrongValue" if re.search(r"(?m)^class WrongValue\b", self.source) else "ValueError"
        code = UNTIL_EMPTY.format(size=size or self.page_size().number, key=key, error=error)
        return Edit(code, self.text(own), words=f"{words}:")

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

    def parameter(self, endpoint: str, name: str) -> tuple[int, str]:
        """The line on which the call of an endpoint names a parameter, and how it is written; "" if it is not found."""
        line, function = self.call(endpoint)
        for node in ast.walk(function) if function else ():
            for key in node.keys if isinstance(node, ast.Dict) else ():
                if literal(key) == name and key:
                    return key.lineno, self.text(key)
        return line, ""

    def required_id(self, endpoint: str) -> tuple[int, str, str] | None:
        """The line on which an answer must name what was asked for, under which key, and how that is written."""
        _, function = self.call(endpoint)
        for node in ast.walk(function) if function else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require_id":
                for key in node.args[1:2]:
                    return key.lineno, str(literal(key)), self.text(key)
        return None

    def plain_get(self, app: str, endpoint: str) -> bool:
        """Whether some function calls an endpoint by GET and without parameters."""
        return any(is_plain_get(node, app, endpoint) for node in ast.walk(self.tree) if isinstance(node, ast.Call))

    def first(self, text: str) -> tuple[int, Function | None]:
        """The first function that has this text as a literal, with its line."""
        for function in self.functions:
            for node in self.constants[function]:
                if node.value == text:
                    return node.lineno, function
        return 1, None

    def _assignment(self, name: str) -> ast.Assign | ast.AnnAssign | None:
        for node in self.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return node  # type: ignore[return-value]
        return None


def read(path: Path) -> Script:
    """A copy as it is written, without running it; addresses come from the environment where it says so.

    Raises SyntaxError for what is no Python, ValueError for what is no copy of the template.
    """
    source = path.read_text(encoding="utf-8-sig")
    found = {name: value for node in ast.parse(source).body for name, value in assigned(node)}
    services = {app: service for app, service in (evaluated(found.get("MICROSERVICES")) or {}).items() if service}
    for service in services.values():
        if not isinstance(service.get("base_url"), str) or not isinstance(service.get("endpoints"), dict):
            raise ValueError("MICROSERVICES is not written as in the template")
    if not services:
        raise ValueError("it has no MICROSERVICES")
    counts = (literal(found.get(name)) or most for name, most in (("MAX_THREADS", 20), ("SUBTASKS_POOL_SIZE", 40)))
    return Script(path, source, services, *counts)


def assigned(node: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """The names that a statement sets, with what to."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
    yield from ((target.id, value) for target in targets if value and isinstance(target, ast.Name))


def evaluated(node: ast.AST | None) -> Any:
    """The value of what MICROSERVICES is written of: literals, dicts, `or`, variables of the environment; else None."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            return {literal(key): evaluated(value) for key, value in pairs if isinstance(literal(key), str)}
        case ast.BoolOp(op=ast.Or()):
            return next((value for value in map(evaluated, node.values) if value), None)
        case ast.Call(func=ast.Attribute(attr="get" | "getenv"), args=[ast.Constant(value=str(name)), *others]):
            return os.environ.get(name, evaluated(others[0]) if others else "")
        case ast.Subscript(value=ast.Attribute(attr="environ"), slice=ast.Constant(value=str(name))):
            return os.environ.get(name, "")
    return None


def keywords(node: ast.AST, name: str) -> list[ast.keyword]:
    """All keyword arguments of this name in a part of the source."""
    return [each for each in ast.walk(node) if isinstance(each, ast.keyword) and each.arg == name]


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
