"""What the sandbox promises: a folder of its own, a platform that fits the script, and nothing that leaves it."""

from __future__ import annotations

import re
from pathlib import Path

from helpers import git
from readme_and_spec import TOP, blocks

# What must not be committed

NEVER_COMMITTED = [
    *("patients.jsonl", "statistics.json", "endobest.env", "patients.xlsx", "patients.parquet", "inclusions.png"),
    *("my_script.log", "my_script.log.1", "centres.csv", "my_script.sandbox/made.txt", "my_script.platform.txt"),
]


def test_git_leaves_out_what_scripts_and_recipes_write(tmp_path: Path) -> None:
    recipes = re.findall(r"""open\(\s*"([^"]+)", "[wax]""", "".join(blocks("python")))
    assert "patients.jsonl" in recipes
    (tmp_path / ".gitignore").write_bytes((TOP / ".gitignore").read_bytes())
    (tmp_path / "my_script.sandbox").mkdir()
    for name in {*NEVER_COMMITTED, *recipes, "my_script.py", "requirements.txt"}:
        (tmp_path / name).touch()
    git(tmp_path, "init", "--quiet")
    seen = git(tmp_path, "ls-files", "--others", "--exclude-standard").split()
    assert seen == [".gitignore", "my_script.py", "requirements.txt"]
