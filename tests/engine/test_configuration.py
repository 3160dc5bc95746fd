"""Constants, variables, addresses: errors name the value and the fix, and nothing is sent."""

import functools
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import Load, Run, Start, needs_posix, ran, run_script
from server import Simulator
from sockets import Answering

ADDRESS = "http://127.0.0.1:9"  # nothing is sent there
UNENCRYPTED = "would send password and tokens unencrypted: use https://"
PLACEHOLDER = "is a placeholder"
LEFT_TO_DNS = pytest.mark.skipif(httpx.__name__ == "httpx2", reason="httpx2 accepts any host that starts with xn--")
NO_ADDRESS = "is not an address like https://host/path"
Refusal = Callable[..., str]


@pytest.fixture
def configured(load: Load, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Import the template with correct variables, except those given: `configured(EB_THREADS="0")`."""

    def import_template(constants: dict[str, object] | None = None, **variables: str) -> Any:
        urls = {f"EB_{service}_URL": ADDRESS for service in ("IAM", "RC", "GDD")}
        for name, value in {**urls, "EB_USER_NAME": "someone", "EB_PASSWORD": "Xq7-something", **variables}.items():
            monkeypatch.setenv(name, value)
        return load(**{"ERROR_MAX_RETRY": 1, **(constants or {})})

    return import_template


@pytest.fixture
def refusal(configured: Callable[..., Any], capfd: pytest.CaptureFixture[str]) -> Refusal:
    """The line on the terminal, and in the log, of a run that its configuration prevents, without the script's name.

    `refusal({"MAX_THREADS": 0}, EB_THREADS="0")`; what is `lacking` is taken out of MICROSERVICES.
    """

    def line_of_run(constants: dict[str, object] | None = None, lacking: Sequence[str] = (), **variables: str) -> str:
        template = configured(constants, **variables)
        if lacking:
            functools.reduce(dict.__getitem__, lacking[:-1], template.MICROSERVICES).pop(lacking[-1])
        code, log = ran(template, lambda: print("the script ran"))
        out, err = capfd.readouterr()
        assert (code, out) == (2, "")
        line = re.fullmatch(r"[\w.]+: ([^\n]+)\n", err)
        assert line, err
        assert line[1] in log
        assert "Traceback" not in log
        return line[1]

    return line_of_run


def test_without_configuration_one_line_says_what_to_set_and_how_to_try_it(copy: Path) -> None:
    done = run_script(copy, None)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"my_script: [^\n]+\n", done.stderr)
    assert set(re.findall(r"EB_\w+", done.stderr)) == {"EB_IAM_URL", "EB_RC_URL", "EB_GDD_URL"}
    assert "python3 tests/sandbox.py my_script.py" in done.stderr
    assert len(done.stderr) <= 160, "more than two lines of a terminal"


WHOLE = ("MAX_THREADS", "SUBTASKS_POOL_SIZE", "ERROR_MAX_RETRY")
NUMBERS = (*WHOLE, "API_TIMEOUT")
WAITS = ("WAIT_BEFORE_RETRY", "MAX_WAIT_BEFORE_RETRY")
USELESS = (-1, "x", None, float("nan"), float("inf"))  # for either; no number is 0, but a wait may be
WRONG = [
    *product((*NUMBERS, *WAITS), USELESS, [""]),
    *product(NUMBERS, (0, "20", [5]), [""]),
    *product(WHOLE, [2.5], ["give a whole number, 1 or more"]),
    *product(["LOG_LEVEL"], ["DEBUG", None, float("nan")], ["give logging.INFO or logging.DEBUG"]),
]


@pytest.mark.parametrize(("name", "value", "fix"), WRONG)
def test_a_useless_constant_is_named_with_the_fix(refusal: Refusal, name: str, value: object, fix: str) -> None:
    line = refusal({name: value})
    assert line.startswith(f"{name} = {value!r}: ")
    assert line.endswith(fix)


@pytest.mark.parametrize("value", ["0", "21", "-3", "2.5", "many", "\uff11", "1e1", "1\n2", "9" * 400])
def test_a_wrong_number_of_threads_is_named_with_its_range(refusal: Refusal, value: str) -> None:
    line = refusal(EB_THREADS=value)
    assert line.startswith(f"EB_THREADS = {value!r}: ")
    assert "from 1 to 20" in line


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_unreadable_certificates_are_named_by_variable(refusal: Refusal, tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    line = refusal(SSL_CERT_FILE=str(file))
    assert re.fullmatch(rf"SSL_CERT_FILE = {re.escape(repr(str(file)))}: .*; name a PEM file of CA .*", line)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts that were looked up, in a network whose name server knows no host."""
    asked: list[str] = []

    def look_up(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def test_a_host_that_does_not_resolve_is_named_at_login(configured: Callable[..., Any], nowhere: list[str]) -> None:
    template = configured({"ERROR_MAX_RETRY": 2, "WAIT_BEFORE_RETRY": 0}, EB_IAM_URL="https://iam.hospital.test")
    with pytest.raises(template.LoginError, match=r"IAM login: .*iam\.hospital\.test"):
        template.login()
    assert nowhere == ["iam.hospital.test"] * 2


@needs_posix(reason="the environment of Windows is text")
def test_a_password_that_is_not_text_is_refused_without_a_character_of_it(refusal: Refusal) -> None:
    assert (
        refusal(EB_PASSWORD="geh\udce9im") == "EB_USER_NAME or EB_PASSWORD is not UTF-8 text: set it in a UTF-8 locale"
    )


LACKING = {
    ("IAM",): "MICROSERVICES .*IAM.*put",
    ("RC", "base_url"): "base_url of RC is None",
    ("RC", "endpoints"): "endpoints of RC is None",
    ("RC", "app_id"): "app_id of RC is None",
    ("IAM", "endpoints", "login"): "IAM has no endpoint 'login' in MICROSERVICES",
    ("GDD", "endpoints", "config_token"): "GDD has no endpoint 'config_token' in MICROSERVICES",
}


@pytest.mark.parametrize(("lacking", "words"), LACKING.items())
def test_what_microservices_lacks_is_said_by_name(refusal: Refusal, lacking: tuple[str, ...], words: str) -> None:
    assert re.search(words, refusal(lacking=lacking))


# ------------------------------------------------------------------------------------------------ where nothing is sent


@pytest.fixture
def listener() -> Iterator[Answering]:
    """A port of this machine, and what arrives there; a connection without data counts, too."""
    with Answering(b"") as server:
        yield server


@pytest.fixture
def overheard(listener: Answering, load: Load, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make all connections end at the listener, and import the template: `overheard(EB_RC_URL="http://...")`."""
    port = listener.port
    monkeypatch.setenv("EB_PASSWORD", "for nobody")
    for service in ("IAM", "RC", "GDD"):
        monkeypatch.setenv(f"EB_{service}_URL", f"http://127.0.0.1:{port}")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    def import_template(**addresses: str) -> Any:
        for variable, address in addresses.items():
            monkeypatch.setenv(variable, address.replace("PORT", str(port)))
        return load(ERROR_MAX_RETRY=1)

    return import_template


@pytest.mark.parametrize("variable", ["EB_IAM_URL", "EB_RC_URL", "EB_GDD_URL"])
@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("http://rc.hospital.test", UNENCRYPTED),
        ("HTTP://rc.hospital.test:443", UNENCRYPTED),
        ("http://localhost.hospital.test", UNENCRYPTED),
        ("http://127.0.0.1.hospital.test", UNENCRYPTED),
        ("http://0.0.0.0:PORT", UNENCRYPTED),
        ("http://2130706433:PORT", UNENCRYPTED),
        ("http://[::ffff:127.0.0.1]:PORT", UNENCRYPTED),
        ("https://rc.endobest.example", PLACEHOLDER),
        ("https://RC.ENDOBEST.EXAMPLE:443/v1", PLACEHOLDER),
        ("http://rc.endobest.example", PLACEHOLDER),
        ("ftp://127.0.0.1:PORT", NO_ADDRESS),
        ("rc.hospital.test", NO_ADDRESS),
        ("//127.0.0.1:PORT", NO_ADDRESS),
        ("https://", NO_ADDRESS),
        ("https://rc.hospital.test:port", NO_ADDRESS),
        ("https://[::1", NO_ADDRESS),
        ("https://rc.hospital.test\n", NO_ADDRESS),
        ("https://rc.hospital.test ", NO_ADDRESS),
        ("https://rc.hospital.test?a=b", NO_ADDRESS),
        ("https://rc.hospital.test#x", NO_ADDRESS),
        ("https://...", PLACEHOLDER),
        pytest.param("https://xn--", NO_ADDRESS, marks=LEFT_TO_DNS),
    ],
)
def test_an_unsafe_or_invalid_address_is_named_and_refused_before_a_byte_is_sent(
    listener: Answering, overheard: Callable[..., Any], variable: str, address: str, problem: str
) -> None:
    module = overheard(**{variable: address})
    with pytest.raises(module.ConfigurationError) as caught:
        module.login()
    shown = repr(address.replace("PORT", str(listener.port)))
    assert str(caught.value).startswith(f"set {variable}: {shown} {problem}")
    assert "sandbox.py" not in str(caught.value), "the other addresses are set, perhaps by the sandbox"
    assert listener.received == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:PORT", "http://localhost:PORT/", "https://iam.hospital.test"])
def test_the_listener_hears_an_allowed_login(listener: Answering, overheard: Callable[..., Any], address: str) -> None:
    module = overheard(EB_IAM_URL=address)
    with pytest.raises(module.LoginError):
        module.login()
    assert listener.received[0].startswith((b"POST /api/auth/ziwig-pro/login", b"CONNECT iam.hospital.test:443"))


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ALL_PROXY", "socks5://127.0.0.1:9"), ("HTTPS_PROXY", "ftp://proxy"), ("HTTPS_PROXY", "http://proxy:port")],
)
def test_a_proxy_that_cannot_be_used_is_said_with_its_variables(refusal: Refusal, variable: str, value: str) -> None:
    assert "HTTPS_PROXY, ALL_PROXY or NO_PROXY cannot be used: " in refusal(**{variable: value})


def test_what_is_sent_to_this_machine_takes_no_proxy(
    listener: Answering, overheard: Callable[..., Any], platform: Simulator
) -> None:
    module = overheard(**{name: value for name, value in platform.environment().items() if name.startswith("EB_")})
    module.login()
    assert len(module.get_all_organizations()) == 5
    assert listener.received == []


def test_a_service_that_the_simulated_platform_lacks_is_not_reached_from_there(run: Run, simulator: Start) -> None:
    own = '"LAB": {"app_id": "", "base_url": "https://lab.hospital.test", "endpoints": {"config_token": "/token"}},'
    edits = {'    "GDD": {\n': f'    {own}\n    "GDD": {{\n'}
    finished = run('print("never here")', edits=edits, ERROR_MAX_RETRY=1, on=simulator())
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith("my_script: LAB config_token: ProxyError: ")
