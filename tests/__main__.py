"""Run the tests: `python3 tests [pytest options]`, for example `python3 tests -x -k token`.

engine/      a file for each section of the template, in its order and by its names
promises/    what holds of the template as a whole: scripts in use, README, upgrade, packages, types, Windows, chaos
simulation/  the simulated platform that the tests and sandbox.py run scripts against
benchmark/   `python3 tests/benchmark` measures the template against other ways to do the same
"""

import os
import subprocess
import sys
from pathlib import Path

from environment import TESTS, environment_python


def main() -> int:
    """Run pytest in the tests' own environment and return its exit code."""
    python = environment_python("requirements.txt")
    arguments = sys.argv[1:]
    if not any(Path(argument.split("::")[0]).exists() for argument in arguments):
        arguments.append(str(TESTS))
    command = [str(python), "-m", "pytest", *arguments]
    if os.name == "nt":  # execv there gives the prompt back before the tests are done
        return subprocess.run(command).returncode
    os.execv(python, command)


if __name__ == "__main__":
    sys.exit(main())
