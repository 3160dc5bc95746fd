"""Secrets are never shown: passwords of proxies and in addresses, long tokens, cookies; and the owner of the log."""

import json
import os
import random
import re
import string
from pathlib import Path

import pytest
from helpers import Ran, Run, answer, needs_posix
from server import Simulator

posix = needs_posix(reason="Windows has no file modes, named pipes or /dev")

ADDRESSES = {f"EB_{service}_URL": f"https://{service.lower()}.hospital.test" for service in ("IAM", "RC", "GDD")}


@pytest.fixture
def without_platform(run: Run) -> Run:
    """Run a script that must not come as far as its platform; a proxy's variable holds in both spellings."""

    def run_alone(**variables: str) -> Ran:
        both = {**variables, **{name.lower(): value for name, value in variables.items() if name.endswith("_PROXY")}}
        given = {**ADDRESSES, "EB_PASSWORD": "Xq7-something", **both}
        return run("print('never here')", on=None, ERROR_MAX_RETRY=1, **given)

    return run_alone


# ---------------------------------------------------------------------------------------------- proxies and addresses


@pytest.mark.parametrize(
    ("variable", "password"),
    [
        *(("HTTPS_PROXY", each) for each in ("Gehe#im42", "Gehe/im42", "Gehe?im42", "Gehe@im42#zwei")),
        ("ALL_PROXY", "Gehe@im42/zwei"),
    ],
)
def test_a_proxy_whose_password_is_not_percent_encoded_is_named_with_the_fix_and_nothing_of_it_is_quoted(
    without_platform: Run, variable: str, password: str
) -> None:
    done = without_platform(**{variable: f"http://benutzer:{password}@proxy.hospital.test:3128"})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"my_script: [^\n]*\b{variable}\b[^\n]*percent-encod[^\n]*\n", done.stderr), done.stderr
    pieces = ["benutzer", *re.split(r"\W", password)]
    assert [piece for piece in pieces if piece in done.said] == []


def test_an_at_sign_in_the_password_of_a_proxy_is_its_own_or_is_refused_but_never_quoted(without_platform: Run) -> None:
    done = without_platform(HTTPS_PROXY="http://benutzer:Gehe@im42@127.0.0.1:9")
    assert done.returncode in (1, 2)
    assert "HTTPS_PROXY" in done.stderr
    assert [piece for piece in ("benutzer", "Gehe", "im42") if piece in done.said] == []


@pytest.mark.parametrize(
    ("service", "login"), [("IAM", "benutzer:Geheim42@"), ("IAM", "benutzer@"), ("GDD", ":Geheim42@")]
)
def test_a_login_inside_an_address_is_refused_and_not_shown(without_platform: Run, service: str, login: str) -> None:
    done = without_platform(**{f"EB_{service}_URL": f"https://{login}{service.lower()}.hospital.test"})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"my_script: [^\n]*\bEB_{service}_URL\b[^\n]*\n", done.stderr), done.stderr
    assert [piece for piece in ("benutzer", "Geheim42") if piece in done.said] == []


# ------------------------------------------------------------------------------------------------ tokens and cookies


def long_token(length: int) -> str:
    """A token in which no part repeats."""
    return "".join(random.Random(length).choices(string.ascii_letters + string.digits, k=length))


def parts_shown(secret: str, text: str) -> list[str]:
    """Parts of a secret of at least 15 characters that occur in a text."""
    return [part for start in range(0, len(secret) - 12, 4) if (part := secret[start : start + 12]) in text]


LINES = """
token = tokens["RC"]["access_token"]
logging.error("token %s", token)
for length in range(9_900, 10_100, 25):
    logging.error("x" * length + token)
logging.error(" ".join([token] * 17))
logging.error("%r", tokens)
try:
    raise ValueError(token)
except ValueError:
    logging.exception("in a traceback")
raise LookupError(tokens)
"""


@pytest.mark.parametrize("length", [1204, 20_000])
def test_a_long_token_is_masked_as_a_whole_before_a_line_is_cut(platform: Simulator, run: Run, length: int) -> None:
    token = long_token(length)
    body = json.dumps({"access_token": token, "refresh_token": token[::-1]}).encode()
    platform.control(answer={"config_token": answer(200, body)})
    done = run(LINES)
    assert done.said.count("***") > 20
    for secret in (token, token[::-1]):
        assert parts_shown(secret, done.said) == []


SECRET = "s3cr3t-4711"
HEADERS = [
    f"Cookie: theme=dark; session={SECRET}",
    f"Cookie: a=b; c=d; e={SECRET}; f=g{SECRET}",
    f"Set-Cookie: theme=dark; Path=/; id={SECRET}; HttpOnly",
    f"Set-Cookie: theme=dark, session={SECRET}; Path=/",
    f"{{'cookie': 'theme=dark; session={SECRET}'}}",
    f"[(b'Cookie', b'theme=dark; session={SECRET}')]",
    f'{{"set-cookie": "theme=dark; session={SECRET}"}}',
    f"Authorization: Bearer {SECRET}",
    f"Authorization: Basic {SECRET}==",
    f"Authorization: Token {SECRET}",
    f"Authorization: Token token={SECRET}",
    f"Authorization: ApiKey {SECRET}",
    f'Authorization: Digest username="u", realm="r", nonce="n{SECRET}", response="{SECRET}"',
    f"Authorization: {SECRET}",
    f"{{'Authorization': 'Negotiate {SECRET}'}}",
    f"[(b'authorization', b'Digest username=\"u\", response=\"{SECRET}\"')]",
    f"Proxy-Authorization: Basic {SECRET}",
]


def test_every_cookie_and_each_kind_of_authorization_is_masked(run: Run) -> None:
    headers = [header.replace(SECRET, f"{SECRET}-{number}!") for number, header in enumerate(HEADERS)]
    done = run(
        """
for header in json.loads(os.environ["HEADERS"]):
    logging.error(header)
    try:
        raise ValueError(header)
    except ValueError:
        logging.exception("sent: %s", header)
""",
        HEADERS=json.dumps(headers),
    )
    assert done.log.count("Traceback") == len(HEADERS)
    shown = {int(number) for number in re.findall(rf"{SECRET}-(\d+)!", done.said)}
    assert [HEADERS[number] for number in sorted(shown)] == []


@pytest.mark.parametrize(("password", "shown"), [("4", "1234567"), ("234", "1234567"), ("2345", "1***67")])
def test_a_secret_of_less_than_four_characters_is_not_masked_for_its_mask_would_show_it(
    platform: Simulator, run: Run, password: str, shown: str
) -> None:
    platform.control(password=password)
    done = run('logging.error("test of 1234567")', EB_PASSWORD=password)
    assert done.returncode == 0, done.stderr
    assert f"test of {shown}\n" in done.stderr
    assert f"test of {shown}\n" in done.log


# ------------------------------------------------------------------------------------------------ a log of another kind

NOT_PRIVATE = r"(?m)^[^\n]*my_script\.log\b[^\n]*\b(private|as it is)\b"


@posix
def test_a_log_that_is_a_link_to_a_device_is_written_and_leaves_it_alone(run: Run, tmp_path: Path) -> None:
    master, device = os.openpty()
    before = os.fstat(device).st_mode
    (tmp_path / "my_script.log").symlink_to(os.ttyname(device))
    done = run("logging.info('into the device')")
    after = os.fstat(device).st_mode
    os.set_blocking(master, False)
    arrived = os.read(master, 65_536)
    os.close(device)
    os.close(master)
    assert done.returncode == 0, done.stderr
    assert after == before
    assert b"into the device" in arrived
    assert re.search(NOT_PRIVATE, done.stderr), done.stderr


@posix
def test_a_log_that_is_a_pipe_is_written_as_it_is(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "my_script.log"
    os.mkfifo(log, 0o644)
    log.chmod(0o644)
    reader = os.open(log, os.O_RDWR)  # a pipe that the reader may write to is open from the start, and has no end
    done = run("logging.info('into the pipe')")
    os.set_blocking(reader, False)
    arrived = os.read(reader, 65_536)
    os.close(reader)
    assert done.returncode == 0, done.stderr
    assert b"into the pipe" in arrived
    assert log.stat().st_mode & 0o777 == 0o644
    assert re.search(NOT_PRIVATE, done.stderr), done.stderr


@posix
def test_a_pipe_without_a_reader_as_log_holds_nothing_up_and_is_said(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "my_script.log")
    done = run("print(len(get_all_organizations()))")
    assert (done.returncode, done.stdout) in [(0, "5\n"), (2, "")], done.stderr
    assert re.search(r"(?m)^[^\n]*my_script\.log\b", done.stderr), done.stderr


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_a_log_of_somebody_elses_is_written_and_stays_as_open_as_it_was(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "my_script.log"
    log.write_text("from before\n", encoding="utf-8")
    os.chown(log, 12345, -1)
    log.chmod(0o666)
    done = run("logging.info('into the file')")
    assert done.returncode == 0, done.stderr
    assert log.stat().st_mode & 0o777 == 0o666
    assert re.match(r"(?s)from before\n.*into the file", done.log)
    assert re.search(NOT_PRIVATE, done.stderr), done.stderr


REFUSE_CHMOD = """
def refuse(*arguments, **options):  # as on a network share
    raise PermissionError(1, "Operation not permitted")

os.chmod = os.fchmod = refuse
"""


@posix
def test_where_chmod_is_refused_it_is_said_that_others_may_read_the_log(run: Run, tmp_path: Path) -> None:
    before = "\ndef main() -> None:"
    todo, edits = "logging.info('into the file')", {before: f"\n{REFUSE_CHMOD}\n{before}"}
    (tmp_path / "my_script.log").touch(mode=0o644)
    done = run(todo, edits)
    assert done.returncode == 0, done.stderr
    assert "into the file" in done.log
    assert re.search(NOT_PRIVATE, done.stderr), done.stderr
