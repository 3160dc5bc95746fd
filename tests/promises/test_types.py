"""The template passes strict type checks, for Windows, too, and gives an author's editor precise types."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TEMPLATE, WATCHDOG

AUTHOR = """
@api_call_with_retry("RC")
def count(name: str, *, times: int = 1) -> int:
    return times * len(name)


with main_thread_pool as executor, tqdm(total=1, bar_format=custom_bar_format) as bar:
    executor.submit(count, "a").add_done_callback(lambda future: print(future.result().bit_length()))
    bar.update()
"""
# An author's expressions, and the types that an editor should show: only JSON values from the platform are Any.
RESULTS = {
    "get_all_organizations": "() -> list[dict[str, Any]]",
    "get_statistics": "(organization_id: str) -> dict[str, Any]",
    "search_inclusions": "(organization_id: str, limit: int, page: int) -> list[dict[str, Any]]",
    "get_all_inclusions": "(organization_id: str) -> list[dict[str, Any]]",
    "get_record_by_patient": "(patient_id: str) -> dict[str, Any]",
    "get_surveys": "(patient_id: str) -> list[dict[str, Any]]",
    "get_request_by_tube": "(tube_id: str) -> dict[str, Any]",
    "get_httpx_client()": "Client",
    "get_thread_position()": "int",
    "tokens": "dict[str, dict[str, Any]]",
    "run(main)": "int",
    "count": "(name: str, *, times: int = 1) -> int",
    "run_parallel(count, ['a'])": "Iterator[tuple[str, int]]",
    "run_parallel(get_statistics, ['a'], desc='Centres')": "Iterator[tuple[str, dict[str, Any]]]",
    "subtasks_thread_pool.submit(search_inclusions, 'a', 1000, 1)": "Future[list[dict[str, Any]]]",
    "main_thread_pool.submit(count, 'a', times=2).result()": "int",
    "list(main_thread_pool.map(count, ['a']))": "list[int]",
    "[future.result() for future in as_completed([executor.submit(count, 'a')])]": "list[int]",
}
MISTAKES = (
    "count(7)",
    "run_parallel(count, [7])",
    "main_thread_pool.submit(get_statistics, 7)",
    "main_thread_pool.submit(search_inclusions, 'a')",
    "subtasks_thread_pool.submit(count, 'a').result().upper()",
)
COMMANDS = {
    "mypy": ["mypy", "--strict", "--python-version", "3.10", "--platform"],
    "pyright": ["pyright", "--pythonpath", sys.executable, "--pythonplatform"],
}


@pytest.mark.parametrize(("checker", "system"), [("mypy", "linux"), ("mypy", "win32"), ("pyright", "Linux")])
def test_an_editor_knows_each_result_and_finds_the_mistakes_alone(checker: str, system: str, tmp_path: Path) -> None:
    engine = TEMPLATE.read_text(encoding="utf-8").split("\nif __name__ ==")[0]
    lines = [*(f"reveal_type({expression})" for expression in RESULTS), *MISTAKES]
    source = engine + AUTHOR + "\n".join(lines) + "\n"
    (tmp_path / "my_script.py").write_text(source, encoding="utf-8")
    output = check(*COMMANDS[checker], system, folder=tmp_path)
    found = re.findall(r"my_script\.py:(\d+):.* error: ", output)
    last = source.count("\n")
    assert found == [str(last - len(MISTAKES) + number + 1) for number in range(len(MISTAKES))], output
    revealed = re.findall(r'(?:Revealed type|Type of ".*") is "(.*)"', output)
    assert dict(zip(RESULTS, map(plain, revealed), strict=True)) == RESULTS


def check(*command: str, folder: Path) -> str:
    """What a type checker prints about a script; at its first start, pyright downloads itself from the npm registry."""
    run = [sys.executable, "-m", *command, "my_script.py"]
    done = subprocess.run(run, cwd=folder, capture_output=True, encoding="utf-8", timeout=WATCHDOG, check=False)
    if command[0] == "pyright" and "informations" not in done.stdout:
        pytest.skip(f"pyright cannot be had here: {done.stderr[-200:]}")
    return done.stdout + done.stderr


def plain(revealed: str) -> str:
    """A type as an author would write it, whichever checker prints it."""
    return re.sub(r"\b([a-z0-9_]+\.)+|\bdef (?=\()", "", revealed).replace(" =)", " = 1)")
