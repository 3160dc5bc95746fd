"""The fixtures of all tests: the simulated platform, a fresh template in this process, a copy such as a user makes."""

import logging
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from helpers import OWN_CALLS, OWN_HEAD, TEMPLATE, TODO_BLOCK, Load, Run, Script, Start, release, run_script, study_of
from script_file import imported
from server import Simulator
from study import Study


@pytest.fixture
def simulator() -> Iterator[Start]:
    """Start a small simulated platform: `simulator("--latency", "0.1")`."""
    small = (sys.executable, "--centres", "5", "--patients", "60")
    with ExitStack() as running:
        yield lambda *options: running.enter_context(Simulator(*small, *options))


@pytest.fixture(scope="session")
def shared_simulator() -> Iterator[Simulator]:
    """One small platform for many tests, which use it through `platform`."""
    with Simulator(sys.executable, "--centres", "5", "--patients", "60") as platform:
        yield platform


@pytest.fixture
def platform(shared_simulator: Simulator) -> Simulator:
    """A small platform without faults, latency or counts, whatever earlier tests did to it."""
    shared_simulator.control(as_new=True, restart=True, reset_counts=True)
    return shared_simulator


@pytest.fixture(autouse=True, scope="session")
def signals_are_heard() -> None:
    """Children inherit ignored signals: tests in the background of a shell, or under nohup, would not get them."""
    for number in {signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)}:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture
def certified(simulator: Start, tmp_path: Path) -> Start:
    """Start a platform with a certificate for a host, `certified("127.0.0.1", days=9)`, issued by ca.pem."""
    import trustme  # needs the package cryptography, which some Windows systems lack

    authority = trustme.CA(organization_name="Hospital")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    def start(host: str = "127.0.0.1", days: int = 90) -> Simulator:
        end = datetime.now(timezone.utc) + timedelta(days=days, hours=1)
        authority.issue_cert(host, not_after=end).private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
        return simulator("--certfile", str(tmp_path / "own.pem"))

    return start


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Load]:
    """Import the template again: `load(platform)` sets a platform's addresses; constants are keywords."""
    modules: list[Any] = []
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("EB_")]:
        monkeypatch.delenv(name)

    def import_template(platform: Simulator | None = None, **constants: object) -> Any:
        for name, value in (platform.environment() if platform else {}).items():
            monkeypatch.setenv(name, value)
        modules.append(imported(TEMPLATE))
        for name, value in constants.items():
            assert hasattr(modules[-1], name), f"the template has no {name}"
            monkeypatch.setattr(modules[-1], name, value)
            modules[-1]._NEEDED.pop(name, None)  # which no script may replace
        return modules[-1]

    yield import_template
    for module in modules:
        release(module)


@pytest.fixture
def template(platform: Simulator, load: Load) -> Any:
    """The template, logged in by `login()` alone, as in a notebook."""
    module = load(platform)
    module.login()
    return module


@pytest.fixture
def logged_in(load: Load, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Log in with 60 threads in this process, with `OWN_CALLS`: `logged_in(platform)`; constants are keywords."""

    def import_and_log_in(platform: Simulator, **constants: object) -> Any:
        monkeypatch.setenv("EB_THREADS", "60")
        quick = {"MAX_THREADS": 60, "WAIT_BEFORE_RETRY": 0.01, "_NEW_TOKEN_SECONDS": 1}
        template = load(platform, **{**quick, **constants})
        exec(OWN_CALLS, vars(template))
        template.login()
        return template

    return import_and_log_in


@pytest.fixture
def module(platform: Simulator, logged_in: Load) -> Any:
    """The template, logged in with 60 threads, with `OWN_CALLS`."""
    return logged_in(platform)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Make a copy of the template as a user would: `script("print(1)", edits={"old": "new"}, name="my_script.py")`.

    Constants go by keyword: `script("print(1)", MAX_THREADS=60)`. The copy has `OWN_HEAD`.
    """

    def make(todo: str, *, edits: dict[str, str] | None = None, name: str = "my_script.py", **constants: float) -> Path:
        text = TEMPLATE.read_text(encoding="utf-8")
        text = re.sub(r"(?m)^import httpx.*\n", lambda line: line[0] + OWN_HEAD, text, count=1)
        block = "my own\n" + textwrap.indent(textwrap.dedent(todo).strip("\n"), "    ")
        text, found = TODO_BLOCK.subn(lambda _: block, text)
        assert found == 1, "the template has no TODO block"
        for old, new in (edits or {}).items():
            assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the template"
            text = text.replace(old, new)
        for constant, value in constants.items():
            text, found = re.subn(rf"(?m)^{constant} = .*", f"{constant} = {value!r}", text)
            assert found == 1, f"the template has no {constant}"
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


@pytest.fixture
def run(script: Script, platform: Simulator) -> Run:
    """Run such a copy: `run("print(1)", edits={"old": "new"}, MAX_THREADS=60, EB_THREADS="60")`.

    Constants, which are numbers, and variables, which are texts, go by keyword; `on` is another platform, or none;
    `streams` and `redirect` are as for `run_script`.
    """

    def run_copy(
        todo: str,
        edits: dict[str, str] | None = None,
        on: Simulator | None = platform,
        streams: dict[str, int] | None = None,
        **settings: float | str,
    ) -> Any:
        variables = {name: value for name, value in settings.items() if isinstance(value, str)}
        constants = {name: value for name, value in settings.items() if not isinstance(value, str)}
        return run_script(script(todo, edits=edits, **constants), on, streams, **variables)

    return run_copy


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The template, copied as a user would."""
    return Path(shutil.copy(TEMPLATE, tmp_path / "my_script.py"))


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Restore the levels that `run` sets for the root logger, and the README's notebook for the template's."""
    levels = {logger: logger.level for logger in (logging.getLogger(), logging.getLogger(TEMPLATE.stem))}
    yield
    for logger, level in levels.items():
        logger.setLevel(level)


@pytest.fixture
def study(platform: Simulator) -> Study:
    return study_of(platform)
