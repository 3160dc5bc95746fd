"""A copy of the repository on httpx2, the successor of httpx: `python3 tests --httpx2` runs its tests.

The copy is in tests/.venv/httpx2 and is made again every time, except for its environment, which has no httpx.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from environment import TESTS, stop

HOME = TESTS / ".venv" / "httpx2"
FILES = ("eb_script_template.py", "README_TEMPLATE.md", "Script_template_spec.md", "requirements.txt", ".gitignore")
REQUIRED, REQUIRED_NEXT = "httpx>=0.28,<0.29", "httpx2>=2.16,<3"


def moved(text: str) -> str:
    """A file's text, on httpx2: with the changed import, in every script and test, and the changed requirement."""
    text = re.sub(r"(?m)^( *)import httpx$", r"\1import httpx2 as httpx", text)
    return text.replace(REQUIRED, REQUIRED_NEXT)


def copy_moved(source: str, target: str) -> None:
    """Copy a file, moved to httpx2; compressed files name no package."""
    content = Path(source).read_bytes()
    if not source.endswith(".gz"):
        content = moved(content.decode("utf-8")).encode("utf-8")
    Path(target).write_bytes(content)


def moved_repository() -> Path:
    """Make the copy; returns its folder."""
    if sys.version_info < (3, 11):
        stop(f"httpx2 needs Python 3.11 or newer; {sys.executable} is {sys.version_info[0]}.{sys.version_info[1]}")
    for old in HOME.glob("tests/[!.]*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    unwanted = shutil.ignore_patterns(".*", "__pycache__")
    shutil.copytree(TESTS, HOME / "tests", ignore=unwanted, copy_function=copy_moved, dirs_exist_ok=True)
    for name in FILES:
        copy_moved(str(TESTS.parent / name), str(HOME / name))
    return HOME
