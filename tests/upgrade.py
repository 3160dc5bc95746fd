"""Put the template's engine into a copy of the template: python3 tests/upgrade.py my_script.py.

The copy can be of any version since 1.3.0 and can be anywhere. It gets the template's engine, TEMPLATE_VERSION and
requirements, the constants and endpoints that it lacks, and the current form of every API function that its author did
not edit. Everything else stays as it is. The old version is kept next to it. If its engine was edited, a diff shows
how: against the template of its version if this is a git clone, otherwise against the new one.

Exit code: 0 done, or nothing to do; 2 the script cannot be upgraded, and nothing was written.
"""

from __future__ import annotations

import difflib
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from environment import TESTS, stop
from script_file import Refused, ScriptFile, all_or_nothing, free, read
from upgrading.additions import lacking_constants, lacking_endpoints, lacking_imports, with_pins
from upgrading.names import names_to_look_at
from upgrading.script import VERSION, Edit, Script, dotted
from upgrading.shipped import NAME, block_of, is_shipped, outdated, plain, stay_as_they_are


def main() -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 - said to whoever starts this with an older Python
        stop(f"Python 3.10 or newer is needed; {sys.executable} is Python {sys.version_info[0]}.{sys.version_info[1]}")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # for a pipe with a limited charset
    warnings.simplefilter("ignore")  # the script's own warnings are for its own run
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(__doc__.strip())
        return 0
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        stop("name one script: python3 tests/upgrade.py my_script.py")
    path = Path(sys.argv[1])
    try:
        upgrade(read(path), Script(read(TESTS.parent / NAME).text))
    except Refused as reason:
        stop(f"{path.name or path} {reason}")
    return 0


def upgrade(file: ScriptFile, template: Script) -> None:
    """Upgrade a copy, and say what was done."""
    name, copy, present = file.path.name, Script(file.text), dotted(template.version)
    if copy.version > template.version:
        fix = "get the newest template first"
        raise Refused(f"is from template {dotted(copy.version)}, newer than this one ({present}): {fix}")
    replaced, added = dict(replacements(copy, template)), dict(additions(copy, template))
    mended = copy.edited([*replaced.values(), *added.values()])
    imports = dict(lacking_imports(mended, template))
    new = mended.edited(imports.values())
    to_look_at = list(notes(copy, new, template))
    if new.text == file.text:
        print(f"{name} already has everything in template {present}: nothing to do")
        print_list("To look at", to_look_at)
        return
    changes = engine_diff(copy, template)
    kept, diff = write(file, new.text, dotted(copy.version), changes)
    base = changes.partition("\n")[0].removeprefix("--- ")
    edited = [f"the engine was edited: {diff} shows how it differs from {base}"] if diff else []
    print(f"{name}: upgraded from template {dotted(copy.version)} to {present}; the old version is {kept}")
    print_list("Replaced", replaced)
    print_list("Added", [*imports, *added])
    print_list("To look at", [*edited, *to_look_at])
    print(f"Try it: python3 {shlex.quote((TESTS / 'sandbox.py').as_posix())} {shlex.quote(str(file.path))}")


def print_list(title: str, items: Iterable[str]) -> None:
    if lines := list(items):
        print("\n  ".join([title, *lines]))


def replacements(copy: Script, template: Script) -> Iterator[tuple[str, Edit]]:
    """The template's parts of a copy that have changed, each with the edit that updates it."""
    engine, (first, last) = template.part(template.engine), copy.engine
    if plain(copy.part(copy.engine)) != plain(engine):
        yield f"the engine (previously lines {first:,} to {last:,})", (first, last, engine)
    if copy.version != template.version:
        number = next(number for number, line in enumerate(copy.lines, 1) if VERSION.match(line))
        line = copy.lines[number - 1].replace(dotted(copy.version), dotted(template.version))
        yield f"TEMPLATE_VERSION: it is now {dotted(template.version)}", (number, number, line)
    renewed = outdated(copy, template)
    for name, edit in renewed.items():
        yield f"{name}, which you had not edited", edit
    block, wanted = block_of(copy), block_of(template)
    if block and wanted and "the requirements block" not in renewed:
        text = with_pins(copy.part(block), template.part(wanted))
        if text != copy.part(block):
            yield "versions in the requirements block", (*block, text)


def additions(copy: Script, template: Script) -> Iterator[tuple[str, Edit]]:
    """What is missing above the engine of the copy, each with the edit that adds it."""
    wanted = block_of(template)
    if wanted and not block_of(copy):
        head = sum(bool(re.match(r"#!|#.*coding[:=]", line)) for line in copy.lines[:2])
        yield "the requirements block", (head + 1, head, template.part(wanted))
    yield from lacking_constants(copy, template)
    yield from ((name, edit) for name, edit in lacking_endpoints(copy, template) if edit)


def notes(copy: Script, new: Script, template: Script) -> Iterator[str]:
    """What the author has to look at; line numbers are those of the upgraded copy."""
    yield from names_to_look_at(copy, new)
    yield from stay_as_they_are(copy, new, template)
    for name in (name for name, _ in lacking_endpoints(new, template)):
        yield f"{name} has to be added by hand, because these endpoints are not laid out as in {NAME}"


def engine_diff(copy: Script, template: Script) -> str:
    """What was changed in an edited engine; an empty text if it is as shipped."""
    own, base = copy.part(copy.engine), history(copy.version) or template
    if is_shipped(own, template):
        return ""
    before, after = ([f"{line}\n" for line in plain(text).split("\n")] for text in (base.part(base.engine), own))
    return "".join(difflib.unified_diff(before, after, f"{NAME} {dotted(base.version)}", "the script"))


def history(version: tuple[int, ...]) -> Script | None:
    """An older template, if this folder is in a clone that has it: the parent of the commit that ended its version."""
    git = ["git", "-C", str(TESTS.parent)]
    ended = [*git, "log", "-1", "--format=%H", f'-STEMPLATE_VERSION = "{dotted(version)}"', "--", NAME]
    try:
        commit = subprocess.run(ended, check=True, capture_output=True, text=True).stdout.strip()
        shown = subprocess.run([*git, "show", f"{commit}~:./{NAME}"], check=True, capture_output=True)
        found = Script(shown.stdout.decode("utf-8"))
        return found if found.version == version else None
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError, Refused):
        return None


def write(file: ScriptFile, new: str, version: str, diff: str) -> tuple[str, str]:
    """Write the copy, the old version next to it, and a diff if there is one; returns their names. All or nothing."""
    path = file.path.resolve()
    beside = f"{path.stem}.{version}"
    kept, differs = free(path.with_name(beside + path.suffix)), free(path.with_name(f"{beside}.engine.diff"))
    with all_or_nothing(kept, differs):
        if diff:
            differs.write_text(diff, encoding="utf-8")
        file.replace(new, kept)
    return kept.name, differs.name if diff else ""


if __name__ == "__main__":
    sys.exit(main())
