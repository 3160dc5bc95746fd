"""Run the tests: `python3 tests [--recipes] [pytest options]`, for example `python3 tests -x -k token`.

With --httpx2 as the first option, they run on httpx2, the successor of httpx: `python3 tests --httpx2 -k token` (see
next_httpx.py). Paths are then relative to the top of the repository.

engine/          tests of the sections of the template, under their names
promises/        tests of the template as a whole: existing scripts, README, upgrade, packages, types, Windows, chaos
recipes/         scripts to copy, and their tests: `python3 tests --recipes` installs pandas and more for them
simulation/      the simulated platform that the tests and sandbox.py run scripts against
upgrading/       what `python3 tests/upgrade.py` knows about old templates and about what authors write
platform_check/  what `python3 tests/check_platform.py` finds out about a real platform
recording/       browser recordings for the tests of check_platform.py, and the program that makes them
benchmark/       `python3 tests/benchmark` compares the template with other ways to do the same work
"""

import os
import subprocess
import sys

from environment import TESTS, environment_python
from next_httpx import moved_repository


def main() -> int:
    """Run pytest in the environment of the tests and return its exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--recipes"]
    if arguments[:1] == ["--httpx2"]:
        os.chdir(moved_repository())
        return replaced_by([sys.executable, "tests", *arguments[1:]])
    if "--recipes" in sys.argv:
        python, tests = environment_python("recipes/requirements.txt", "-recipes"), TESTS / "recipes"
    else:
        python, tests = environment_python("requirements.txt"), TESTS
    if not any(map(is_path, ["", *arguments], arguments)):
        arguments.append(str(tests))
    return replaced_by([str(python), "-m", "pytest", *arguments])


def is_path(previous: str, argument: str) -> bool:
    """Tell whether an argument is a path to tests: it exists, and is not the expression after -k."""
    return previous != "-k" and os.path.exists(argument.split("::")[0])  # raises no error for a name that is too long


def replaced_by(command: list[str]) -> int:
    """Replace this process by a command; returns its exit code."""
    if os.name == "nt":  # there, execv returns to the prompt before the tests are done
        return subprocess.run(command).returncode
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
