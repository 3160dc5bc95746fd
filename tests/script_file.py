"""A script as a file: reading it, importing it, literals in its source, and replacing its text."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


class Refused(Exception):
    """Why nothing was done with a file: the rest of a sentence that begins with its name."""


@dataclass(frozen=True)
class ScriptFile:
    """A file in UTF-8; `text` has Unix line ends, and no byte order mark."""

    path: Path
    text: str
    mark: str
    line_end: str

    def replace(self, text: str, kept: Path) -> None:
        """Replace the text; the old file is kept, and its mode and links to it stay."""
        path = self.path.resolve()
        with path.open("r+b"):  # a read-only file must not be replaced either
            shutil.copy2(path, kept)
        with tempfile.TemporaryDirectory(dir=path.parent) as apart:
            whole = Path(apart, path.name)
            whole.write_bytes((self.mark + text.replace("\n", self.line_end)).encode("utf-8"))
            shutil.copymode(path, whole)
            whole.replace(path)  # in one step: if the disk is full, the old one stays


def read(path: Path) -> ScriptFile:
    """A script as a file. Raises Refused."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise Refused(f"is not UTF-8, see line {line}: save it as UTF-8 first") from error
    mark, line_end = "\ufeff" * text.startswith("\ufeff"), "\r\n" if "\r\n" in text else "\n"
    text = text.removeprefix(mark)
    if "\r" in text.replace("\r\n", "") or (line_end == "\r\n" and "\n" in text.replace("\r\n", "")):
        raise Refused("mixes different line endings: save it with Unix or Windows line endings first")
    return ScriptFile(path, text.replace("\r\n", "\n"), mark, line_end)


def imported(path: Path) -> ModuleType:
    """A script as a new module, whatever else was imported from it; it does not run, because of its guard."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)
    return module


def assigned(node: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """The names that a statement sets, with their values."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
    yield from ((target.id, value) for target in targets if value and isinstance(target, ast.Name))


def literal(node: ast.AST | None) -> Any:
    """The value of a literal, None for any other node."""
    return node.value if isinstance(node, ast.Constant) else None


def entries(node: ast.AST | None) -> dict[str, ast.expr]:
    """The entries of a dict literal whose keys are texts."""
    pairs = zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ()
    return {key.value: entry for key, entry in pairs if isinstance(key, ast.Constant) and isinstance(key.value, str)}


@contextmanager
def all_or_nothing(*new: Path) -> Iterator[None]:
    """Write files; if that fails, the `new` ones are removed. Raises Refused."""
    try:
        yield
    except OSError as error:
        for each in new:
            with suppress(OSError):
                each.unlink()
        raise Refused(f"cannot be written in {new[0].parent}: {error.strerror}") from error


def free(path: Path) -> Path:
    """A name that no file has yet: `path`, or `path` with a number."""
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], names) if not os.path.lexists(each))
