"""Names that both the author's part of a script and its engine have, or that neither has."""

from __future__ import annotations

import ast
import builtins
import symtable
from collections import defaultdict
from collections.abc import Iterator

from upgrading.script import Script


class Names:
    """The names that a text binds at its top level, and those that it looks up there, including in functions."""

    def __init__(self, text: str) -> None:
        self.bound: set[str] = set()
        self.used: set[str] = set()
        for table in tables(symtable.symtable(text, "the script", "exec")):
            top = table.get_type() == "module"
            for symbol in table.get_symbols():
                if (top or symbol.is_declared_global()) and (symbol.is_assigned() or symbol.is_imported()):
                    self.bound.add(symbol.get_name())
                if (top or symbol.is_global()) and symbol.is_referenced():
                    self.used.add(symbol.get_name())


def tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    """The symbol tables of a script and of all functions and classes in it."""
    yield table
    for child in table.get_children():
        yield from tables(child)


def undefined(text: str) -> set[str]:
    """The names that a text looks up and that neither it nor Python defines."""
    names = Names(text)
    missing = names.used - names.bound - set(dir(builtins))
    return {name for name in missing if not name.startswith("__")}


def places(text: str, *, bound: bool) -> dict[str, list[int]]:
    """The lines on which each name is bound, or else looked up."""
    found: dict[str, list[int]] = defaultdict(list)
    for node in ast.walk(ast.parse(text)):
        name = name_bound_by(node) if bound else None
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) is not bound:
            name = node.id
        if name:
            found[name].append(getattr(node, "lineno", 0))
    return found


def name_bound_by(node: ast.AST) -> str | None:
    """The name that an import, a definition or an `except` binds."""
    if isinstance(node, ast.alias):
        return (node.asname or node.name).split(".")[0]
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler)
    return node.name if isinstance(node, named) else None


def names_to_look_at(before: Script, after: Script) -> Iterator[str]:
    """What the author has to know about the names in an upgraded copy, as sentences with line numbers."""
    text, old = after.authors_part(), Names(before.part(before.engine)).bound
    own, engine = Names(text), Names(after.part(after.engine)).bound
    bound, used = places(text, bound=True), places(text, bound=False)
    for name in sorted(undefined(after.text) & own.used):
        reason = ": the old engine had it, the new one does not" if name in old else ""
        yield f"{spoken(used[name])}: {name} is not defined{reason}"
    for name in sorted((own.used & engine) - own.bound):
        if name.startswith("_"):
            yield f"{spoken(used[name])}: {name} belongs to the engine, which may change it: do not use it"
    for name in sorted(own.bound & engine):
        below = max(bound[name], default=0) > after.engine[1]
        effect = "replaces the engine's" if below else "is replaced by the engine's"
        yield f"{spoken(bound[name])}: your {name} {effect}: give it another name"


def spoken(lines: list[int]) -> str:
    """Format as "line 7" or "lines 7, 9"."""
    numbers = [f"{line}" for line in sorted(set(lines))]
    return f"line{'s' * (len(numbers) > 1)} {', '.join(numbers)}"
