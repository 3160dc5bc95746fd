"""A copy of the template: its services, and the lines that rely on something about the platform.

Lines are found by the literals that would have to change, not by names of functions, which differ between versions.
"""

import ast
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from platform_check.assumed import DATA_CALLS, TOKEN_CALLS
from platform_check.changes import Edit
from script_file import assigned, entries, imported, literal

Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS: tuple[type[Function], ...] = (ast.FunctionDef, ast.AsyncFunctionDef)
N = TypeVar("N", bound=ast.AST)


UNTIL_EMPTY = '''def get_all_inclusions(organization_id: str) -> list[dict[str, Any]]:
    """Return every inclusion of a centre once: requests pages until one is empty, and ignores `total`."""
    inclusions: dict[Any, dict[str, Any]] = {{}}
    number = 1
    while page := search_inclusions(organization_id, {size}, number):
        before = len(inclusions)
        inclusions.update({{inclusion["{key}"]: inclusion for inclusion in page}})
        if len(inclusions) < before + len(page):
            raise {error}(f"page {{number}} has an inclusion that is also on another page: run it again")
        number += 1
    return list(inclusions.values())'''


@dataclass(frozen=True)
class Place:
    """Where a script relies on something: the line, its text ("" if nothing fits) and the enclosing function."""

    line: int = 1
    text: str = ""
    function: Function | None = None

    def knows(self, *texts: object) -> bool:
        """Whether the function contains all of these literals."""
        return set(texts) <= literals(self.function)


@dataclass(frozen=True)
class PageSize(Place):
    """Where a script sets the number of inclusions on a page."""

    number: int = 1000
    is_default: bool = False  # of the engine: then `text` is the argument after which another number can be added

    def to(self, number: int) -> str:
        return f"{self.text}, limit={number}" if self.is_default else str(number)


class Script:
    """The copy's settings, and its source as a syntax tree."""

    def __init__(
        self, path: Path, source: str, services: dict[str, dict[str, Any]], max_threads: int = 20, subtasks: int = 40
    ) -> None:
        self.path, self.services, self.max_threads, self.subtasks = path, services, max_threads, subtasks
        self.apps = sorted(services, key=lambda app: app != "IAM")
        self.source = source
        self.lines = source.split("\n")
        self.tree = ast.parse(source)
        self.settings = {name: node for node in self.tree.body for name, _ in assigned(node)}
        self.values = {name: value for node in self.tree.body for name, value in assigned(node)}
        self.functions = walked(self.tree, FUNCTIONS)
        self.constants = {function: constants(function) for function in self.functions}

    def data_endpoints(self, app: str) -> list[str]:
        """The keys of a service's data endpoints, the known ones first."""
        keys = [key for key in self.services[app]["endpoints"] if key not in TOKEN_CALLS]
        return sorted(keys, key=lambda key: [*DATA_CALLS, key].index(key))

    def text(self, node: ast.AST | None) -> str:
        """The source of a node; ast.get_source_segment would read the whole source for each."""
        if node is None or not hasattr(node, "end_lineno"):
            return ""
        part = [line.encode("utf-8") for line in self.lines[node.lineno - 1 : node.end_lineno]]  # type: ignore[attr-defined]
        part[-1] = part[-1][: node.end_col_offset]  # type: ignore[attr-defined]
        part[0] = part[0][node.col_offset :]  # type: ignore[attr-defined]
        return b"\n".join(part).decode("utf-8")

    def shown(self, line: int) -> str:
        """A line in the form that editors and terminals link to."""
        return f"{self.path.name}:{line}"

    def place(self, node: ast.stmt | ast.expr | ast.keyword, function: Function | None = None) -> Place:
        """Where a part of the source is."""
        return Place(node.lineno, self.text(node), function)

    def constant(self, name: str) -> Place:
        return self.place(self.settings[name]) if name in self.settings else Place()

    def named(self, name: str) -> Function | None:
        return next((function for function in self.functions if function.name == name), None)

    # MICROSERVICES

    def entry(self, app: str, key: str) -> Place:
        """The app_id, base_url or endpoint path of a service: a text, or the address if no variable sets it."""
        service = entries(self.values.get("MICROSERVICES")).get(app)
        for node in ast.walk(service) if service else ():
            if value := entries(node).get(key):
                texts = [each for each in constants(value) if isinstance(each.value, str)]
                fitting = [each for each in texts if each is value or "://" in str(each.value)]
                return self.place(fitting[-1]) if fitting else Place(value.lineno)
        return Place(service.lineno if service else self.constant("MICROSERVICES").line)

    # Calls of endpoints

    def mention(self, text: str) -> Place:
        """Where the first function has this text as a literal, or else where MICROSERVICES is."""
        for function in self.functions:
            for node in self.constants[function]:
                if node.value == text:
                    return self.place(node, function)
        return Place(self.constant("MICROSERVICES").line)

    def method(self, endpoint: str) -> str:
        """The HTTP method with which a function calls an endpoint, or "" if that is not visible."""
        calling = (function for function in self.functions if decorated(function) and endpoint in literals(function))
        for node in (node for function in calling for node in walked(function, ast.Call) if endpoint in literals(node)):
            of_client = node.func.attr.upper() if isinstance(node.func, ast.Attribute) else ""
            for method in [*map(literal, node.args), of_client]:
                if method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
                    return str(method)
        return ""

    def answer_of(self, endpoint: str) -> Place:
        """Where a function gets the response of an endpoint: by call_endpoint or similar, or else by .json()."""
        place = self.mention(endpoint)
        short = [node for node in walked(place.function, ast.Call) if endpoint in map(literal, node.args)]
        for node in [*short, *calls(place.function, "json")]:
            return self.place(node, place.function)
        return Place(place.line, "", place.function)

    def parameter(self, endpoint: str, name: str) -> Place:
        """Where the call of an endpoint names a parameter."""
        place = self.mention(endpoint)
        keys = [key for node in walked(place.function, ast.Dict) for key in node.keys if key and literal(key) == name]
        return self.place(keys[0], place.function) if keys else Place(place.line)

    def required_id(self, endpoint: str) -> Place | None:
        """The key with the id that a response must contain, if it must."""
        function = self.mention(endpoint).function
        for node in walked(function, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "require_id" and len(node.args) > 1:
                return self.place(node.args[1], function)
        return None

    def plain_get(self, app: str, endpoint: str) -> bool:
        """Whether a function calls an endpoint with GET and without parameters."""
        return any(is_plain_get(node, app, endpoint) for node in walked(self.tree, ast.Call))

    # Tokens

    def token_answers(self) -> Place:
        sessions = [node for node in walked(self.tree, ast.ClassDef) if node.name.strip("_") == "Sessions"]
        in_sessions = [node for parent in sessions for node in walked(parent, FUNCTIONS)]
        posting = [each for each in self.functions if calls(each, "post") and not decorated(each)]
        for function in [*in_sessions, *posting]:
            for node in calls(function, "json"):
                return self.place(node, function)
        return Place(text="response.json()")

    def dead_token(self) -> Place:
        """The comparison that recognises an expired token by its status, preferably one in an exception handler."""
        reader = self.token_answers().function
        handled = {node for handler in walked(self.tree, ast.ExceptHandler) for node in ast.walk(handler)}
        found = [
            (node not in handled, node.lineno, self.place(node, function))
            for function in self.functions
            if function is not reader
            for node in walked(function, ast.Compare)
            if 401 in literals(node)
        ]
        return min(found, key=lambda row: row[:2])[2] if found else Place(text="== 401")

    def error_raising(self) -> Place:
        """Where an error response is raised as an exception."""
        reader = self.token_answers().function
        for function in self.functions:
            if function is not reader and "Authorization" in literals(function):
                for node in calls(function, "raise_for_status"):
                    return self.place(node, function)
        return Place()

    # Pages

    def key_of_rows(self) -> Place:
        """The argument by which get_all_inclusions distinguishes inclusions."""
        keys = keywords(self.named("get_all_inclusions"), "key")
        return self.place(keys[0]) if keys else Place()

    def page(self) -> Place:
        for node in walked(self.tree, ast.Dict):
            if value := entries(node).get("page"):
                return Place(value.lineno, f'"page": {self.text(value)}')
        return Place(self.mention("page").line)

    def page_size(self) -> PageSize:
        """Where the number of inclusions on a page is set: in get_all_inclusions, or in a function that it calls."""
        own = self.named("get_all_inclusions")
        for function in self.pagers():
            for node in ast.walk(function):
                name = node.id if isinstance(node, ast.Name) else ""
                setting = self.values.get(name) if name.isupper() else None
                place = setting or node
                number = literal(place)
                if not isinstance(place, ast.Constant) or type(number) is not int or number < 10:
                    continue
                keys = [] if setting or function is own else keywords(own, "key")
                where = keys[0] if keys else place
                return PageSize(where.lineno, self.text(where), number=number, is_default=bool(keys))
        return PageSize(self.mention("search_inclusions").line)

    def until_empty(self, size: int = 0) -> str | Edit:
        """The code of a get_all_inclusions that ignores `total`, and what it replaces."""
        words = "rewrite get_all_inclusions: request page after page until one is empty, and ignore total"
        own = self.named("get_all_inclusions")
        if own is None or self.named("search_inclusions") is None:
            return words
        [key, *_] = [*(literal(each.value) for each in keywords(own, "key")), "patientId"]
        error = "WrongValue" if re.search(r"(?m)^class WrongValue\b", self.source) else "ValueError"
        code = UNTIL_EMPTY.format(size=size or self.page_size().number, key=key, error=error)
        return Edit(code, self.text(own), words=f"{words}:")

    def total(self) -> tuple[int, bool]:
        """The line of the function that requests all pages, and whether it, or one that it calls, relies on `total`."""
        pagers = self.pagers()
        return pagers[0].lineno if pagers else 1, any("total" in literals(function) for function in pagers)

    def pagers(self) -> list[Function]:
        """get_all_inclusions and the functions that it calls; without it, the functions that use `total`."""
        own = self.named("get_all_inclusions")
        if own is None:
            return [function for function in self.functions if "total" in literals(function)]
        called = {node.id for node in walked(own, ast.Name)}
        return [own, *(function for function in self.functions if function.name in called)]


def load(path: Path) -> tuple[Script, ModuleType]:
    """A copy with the settings that it has when it runs, and its module: it is imported, but not run."""
    file = path.resolve()
    sys.path.insert(0, str(file.parent))  # which may contain modules of its own
    module = imported(file)
    source, services = path.read_text(encoding="utf-8-sig"), sound(module.MICROSERVICES)
    return Script(path, source, services, module.MAX_THREADS, module.SUBTASKS_POOL_SIZE), module


def read(path: Path) -> Script:
    """A copy as it is written, without running it; addresses come from the environment if it says so.

    Raises SyntaxError if it is not Python, ValueError if it is not a copy of the template.
    """
    source = path.read_text(encoding="utf-8-sig")
    found = Script(path, source, {}).values
    written = evaluated(found.get("MICROSERVICES")) or {}
    services = sound({app: service for app, service in written.items() if service})
    counts = (literal(found.get(name)) or most for name, most in (("MAX_THREADS", 20), ("SUBTASKS_POOL_SIZE", 40)))
    return Script(path, source, services, *counts)


def sound(services: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The services of a script. Raises ValueError if it is not a copy of the template."""
    if not services:
        raise ValueError("it has no MICROSERVICES")
    for service in services.values():
        if not isinstance(service.get("base_url"), str) or not isinstance(service.get("endpoints"), dict):
            raise ValueError("MICROSERVICES is not written as in the template")
    return services


def evaluated(node: ast.AST | None) -> Any:
    """The value of an expression in MICROSERVICES: literals, dicts, `or`, environment variables; else None."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Dict():
            return {key: evaluated(value) for key, value in entries(node).items()}
        case ast.BoolOp(op=ast.Or()):
            return next((value for value in map(evaluated, node.values) if value), None)
        case ast.Call(func=ast.Attribute(attr="get" | "getenv"), args=[ast.Constant(value=str(name)), *others]):
            return os.environ.get(name, evaluated(others[0]) if others else "")
        case ast.Subscript(value=ast.Attribute(attr="environ"), slice=ast.Constant(value=str(name))):
            return os.environ.get(name, "")
    return None


def walked(node: ast.AST | None, kind: type[N] | tuple[type[N], ...]) -> list[N]:
    return [each for each in ast.walk(node) if isinstance(each, kind)] if node else []


def keywords(node: ast.AST | None, name: str) -> list[ast.keyword]:
    return [each for each in walked(node, ast.keyword) if each.arg == name]


def constants(node: ast.AST) -> list[ast.Constant]:
    """All literals in a part of the source, as nodes, from top to bottom."""
    return sorted(walked(node, ast.Constant), key=lambda each: (each.lineno, each.col_offset))


def literals(node: ast.AST | None) -> set[Any]:
    return {each.value for each in constants(node)} if node else set()


def calls(node: ast.AST | None, method: str) -> list[ast.Call]:
    found = walked(node, ast.Call)
    return [each for each in found if isinstance(each.func, ast.Attribute) and each.func.attr == method]


def decorated(function: Function) -> bool:
    """Whether a function calls a data endpoint of the platform."""
    return any("api_call_with_retry" in ast.dump(decorator) for decorator in function.decorator_list)


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
