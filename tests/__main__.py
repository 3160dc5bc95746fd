"""Run the tests: `python3 tests [pytest options]`, for example `python3 tests -x -k token`."""

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
