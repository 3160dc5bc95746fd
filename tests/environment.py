"""The private virtual environment of the tests and of the sandbox: tests/.venv/<Python version>.

It is created at first use, and again when the requirements change. It needs only Python 3.10 with pip: not ensurepip,
which is a separate package in Debian, and not the --python option of pip, which came with pip 22.3.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NoReturn

TESTS = Path(__file__).resolve().parent
TEMPLATE = TESTS.parent / "eb_script_template.py"
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
HOME = TESTS / ".venv" / VERSION


def environment_python(requirements: str, variant: str = "") -> Path:
    """Return the interpreter of the environment in which tests/`requirements` is installed; create it if necessary.

    A `variant` is a separate environment, tests/.venv/<version><variant>, for packages that would disturb the others.
    """
    if sys.version_info < (3, 10):  # noqa: UP036 - for people who start this with an older Python
        stop(f"Python 3.10 or newer is needed; {sys.executable} is Python {VERSION}")
    home, wanted = HOME.with_name(HOME.name + variant), TESTS / requirements
    if not _is_ready(home, wanted):
        print(
            f"Preparing tests/.venv/{home.name} (first run only): pip installs tests/{requirements} ...",
            file=sys.stderr,
            flush=True,
        )
        try:
            _make(home, wanted)
        except (OSError, subprocess.SubprocessError) as error:
            stop(f"tests/.venv/{home.name} could not be created ({error}); stop the programs that use it, or delete it")
    return _interpreter(home)


def missing_package(script: Path) -> str:
    """Return the first package that a copy of the template imports and this Python lacks; "" if it has them.

    Our own environment counts as complete, because callers start it to get a package, and would do so forever.
    """
    if Path(sys.prefix).resolve() == HOME.resolve():
        return ""
    moved = re.search(rb"(?m)^import httpx2\b", script.read_bytes())
    needed = ("httpx2" if moved else "httpx", "tqdm")
    return next((package for package in needed if not importlib.util.find_spec(package)), "")


def stop(message: str) -> NoReturn:
    """End the process with a one-line message, and the exit code of a wrong configuration."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(2)


def _is_ready(home: Path, wanted: Path) -> bool:
    """Tell whether the environment has exactly these requirements and its interpreter still runs."""
    marker = _marker(home, wanted)
    if not marker.is_file() or marker.read_text(encoding="utf-8") != _whole_text(wanted):
        return False
    try:
        return subprocess.run([str(_interpreter(home)), "-c", ""], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:  # the Python that it was made from is gone
        return False


def _make(home: Path, wanted: Path) -> None:
    """Build the environment in a temporary folder, then move it, so that no process ever sees an incomplete one."""
    home.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{home.name}-", dir=home.parent) as folder:
        new = Path(folder, "new")
        venv.create(new, symlinks=os.name != "nt", with_pip=False)
        _install(new, [wanted, *_installed_before(home)])
        if _is_ready(home, wanted):  # a process that started at the same time was faster
            return
        if home.exists():
            home.rename(Path(folder, "old"))
        new.rename(home)


def _install(environment: Path, wanted: list[Path]) -> None:
    """Let the running interpreter's pip fill the environment, which has no pip."""
    if importlib.util.find_spec("pip") is None:
        stop(f"pip is missing: run `{sys.executable} -m ensurepip` (Debian, Ubuntu: `sudo apt install python3-pip`)")
    query = [str(_interpreter(environment)), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    target = subprocess.run(query, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--upgrade"]
    files = [argument for file in wanted for argument in ("-r", str(file))]
    # Overrides personal pip settings that conflict with --target.
    settings = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    if subprocess.run([*pip, "--target", target, *files], env=settings).returncode != 0:
        named = wanted[0].relative_to(TESTS.parent)
        stop(f"pip could not install {named}; check the network (HTTPS_PROXY, PIP_INDEX_URL) and try again")
    for file in chain.from_iterable(map(_with_included, wanted)):
        if TESTS in file.parents:
            _marker(environment, file).write_text(_whole_text(file), encoding="utf-8")


def _installed_before(home: Path) -> list[Path]:
    """Return the requirements that the current environment was made for; a new one gets them, too."""
    files = sorted([*TESTS.glob("requirements.txt"), *TESTS.glob("*/requirements.txt")])
    return [file for file in files if _marker(home, file).is_file()]


def _interpreter(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _marker(environment: Path, requirements: Path) -> Path:
    return environment / f"installed-{requirements.parent.name}"


def _whole_text(requirements: Path) -> str:
    return "\n".join(file.read_text(encoding="utf-8") for file in _with_included(requirements))


def _with_included(requirements: Path) -> Iterator[Path]:
    """Yield a requirements file and those it includes."""
    yield requirements
    for line in requirements.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            yield from _with_included((requirements.parent / line[3:].strip()).resolve())
