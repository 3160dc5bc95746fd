"""A copy runs with only uv installed, and with the newest and the oldest packages that it allows."""

import os
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import uv
from helpers import WATCHDOG, Script, base_python, environment_for, needs_posix
from packaging.requirements import Requirement
from packaging.version import Version
from readme_and_spec import README, TOP, code
from server import Simulator

COMMAND = "uv run my_script.py"
ALLOWED = [Requirement(line) for line in (TOP / "requirements.txt").read_text(encoding="utf-8").split()]
OLDEST = {each.name: Version(re.findall(r">=([\d.]+)", str(each.specifier))[0]) for each in ALLOWED}
TODO = """
import tqdm as bars
print("packages", httpx.__version__, bars.__version__)
ids = [organization["id"] for organization in get_all_organizations()]
with tqdm(total=10, desc="By hand", bar_format=custom_bar_format, position=get_thread_position()) as bar:
    for _, counts in run_parallel(get_statistics, ids * 2, desc="In parallel"):
        bar.update()
        tqdm.write(str(counts["total"]))
"""


@needs_posix(reason="needs a terminal that a test can read")
@pytest.mark.parametrize("resolution", ["highest", "lowest-direct"])
def test_a_copy_runs_by_uv_alone(resolution: str, platform: Simulator, script: Script, tmp_path: Path) -> None:
    import pexpect

    assert COMMAND in code(README)
    platform.control(faults={"503": 0.2, "reset": 0.1})
    path = script(TODO, WAIT_BEFORE_RETRY=0.01)
    tools = f"{Path(uv.find_uv_bin()).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {
        "UV_PYTHON": str(base_python()),
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_CACHE_DIR": str(tmp_path / "cache"),
        **{name: os.environ.get(name, "") for name in ("HTTPS_PROXY", "https_proxy")},  # uv has to reach the index
    }
    environment = environment_for(platform, **settings, UV_RESOLUTION=resolution, PATH=tools)
    environment.pop("PYTHONPATH", None)
    output, code_ = pexpect.run(COMMAND, cwd=path.parent, env=environment, timeout=WATCHDOG, withexitstatus=True)
    if code_:
        skip_without_index(environment, tmp_path)
    assert code_ == 0, output.decode()
    used = re.findall(r"packages (\S+) (\S+)\r", output.decode())[0]
    for requirement, found in zip(ALLOWED, map(Version, used), strict=True):
        assert found in requirement.specifier
        newest = max(OLDEST[requirement.name], Version(version(requirement.name)))
        assert found == OLDEST[requirement.name] if resolution == "lowest-direct" else found >= newest
    for bar in ("By hand", "In parallel"):
        assert re.search(rf"{bar} +100% \|[█ ]+\| 10/10 ", output.decode()), output.decode()


def skip_without_index(environment: dict[str, str], folder: Path) -> None:
    """Skip the test if uv cannot even look up one package."""
    probe = [uv.find_uv_bin(), "pip", "compile", "-", "--quiet", "--cache-dir", str(folder / "probe")]
    if subprocess.run(probe, input=b"tqdm", env=environment, capture_output=True, timeout=WATCHDOG).returncode:
        pytest.skip("uv reaches no package index")
