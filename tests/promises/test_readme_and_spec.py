"""README and specification: every Python block runs unchanged, every table agrees with the file."""

import ast
import inspect
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import TEMPLATE, Load, untrusted
from pytest_examples import CodeExample, EvalExample, find_examples
from readme_and_spec import (
    CHANGELOG_FILE,
    README,
    README_FILE,
    RECIPES,
    SPECIFICATION,
    SPECIFICATION_FILE,
    TOP,
    blocks,
    code,
    section,
    table,
)
from sandbox import sandbox_parser
from server import Simulator

SOURCE = TEMPLATE.read_text(encoding="utf-8")
BOTH = README + SPECIFICATION
EXAMPLES = [each for each in find_examples(README_FILE, SPECIFICATION_FILE) if each.prefix == "python"]
BANNERS = re.findall(r"(?m)^# =+ (.+)$", SOURCE)
CALLS = {
    (app, endpoint): method for app, method, endpoint in re.findall(r'call_endpoint\("(\w+)", "(\w+)", "(\w+)"', SOURCE)
}
ELSEWHERE = {"nohup", "inf"}  # names in the specification that are not in the file


def heading_of(example: CodeExample) -> str:
    above = example.path.read_text(encoding="utf-8").split("\n")[: example.start_line]
    return next(line for line in reversed(above) if re.match("##+ ", line))


CHAPTERS = {
    f"{path.stem}: {heading}": list(examples)
    for (path, heading), examples in groupby(EXAMPLES, lambda each: (each.path, heading_of(each)))
}


@pytest.fixture
def run_examples(eval_example: EvalExample, platform: Simulator, load: Load) -> Any:
    """Run Python blocks one after the other with the names of the template, logged in; compare with their #> lines."""
    template = load(platform)
    template.login()
    eval_example.set_config(line_length=120)

    def run(examples: list[CodeExample]) -> None:
        names = vars(template)
        for example in examples:
            # Without dunder names, with which the runner would execute the template instead of the example.
            names = {name: value for name, value in names.items() if not name.startswith("__")}
            names = {**names, **eval_example.run_print_check(example, module_globals=names)}

    return run


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_python_blocks_under_each_heading_print_what_they_say(chapter: str, run_examples: Any) -> None:
    run_examples(CHAPTERS[chapter])


@pytest.mark.parametrize(
    "source",
    [
        "print(get_nested_value([7], [0]))\n#> 8\n",
        "no_such_name\n",
        "def a():\n    return no_such_name\n\n\na()\n",
        "print(1)\n",
    ],
)
def test_a_python_block_that_is_wrong_is_found(source: str, run_examples: Any) -> None:
    with pytest.raises((NameError, pytest.fail.Exception)):
        run_examples([CodeExample.create(source, prefix="python")])


def test_no_python_block_is_overlooked() -> None:
    assert sum(map(len, CHAPTERS.values())) == len(re.findall(r"(?m)^ *```py", BOTH)) > 5
    assert max(len(line) for block in blocks("python", BOTH) for line in block.split("\n")) <= 120


def test_the_table_of_constants_is_that_of_the_file() -> None:
    edit_1 = SOURCE[: SOURCE.index(BANNERS[1])]
    constants = {
        node.targets[0].id: ast.unparse(node.value)
        for node in ast.parse(edit_1).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    constants["custom_bar_format"] = "–"  # noqa: RUF001
    rows = table("constant | default | meaning")
    assert {code(name)[0]: (code(default) or [default])[0].replace('"', "'") for name, default, _ in rows} == constants


def test_the_tables_of_endpoints_are_those_of_the_file(load: Load) -> None:
    services = load().MICROSERVICES
    paths = {(app, endpoint): path for app in services for endpoint, path in services[app]["endpoints"].items()}
    shown = {
        (app, endpoint): (call, path)
        for apps, endpoints, call, paths, _ in table("service | endpoint | call | path | function")
        for app in apps.split(", ")
        for endpoint, path in zip(code(endpoints), code(paths), strict=True)
    }
    calls = dict.fromkeys(paths, "POST") | CALLS
    assert shown == {each: (calls[each], path) for each, path in paths.items()}
    assumed = {
        (app, code(endpoint)[0]): call.split()[0].strip(",")
        for apps, endpoint, call, _, _ in table("service | endpoint | call | answer | function", SPECIFICATION)
        for app in apps.split(", ")
    }
    assert assumed == calls


def test_the_environment_variables_are_those_of_the_file() -> None:
    rows = table("environment variable | meaning | without it")
    variables = {name for names, _, _ in rows for name in code(names)}
    assert variables - {"HTTPS_PROXY", "NO_PROXY"} == set(re.findall(r'"(EB_\w+|SSL_CERT_FILE)"', SOURCE))
    assert set(re.findall(r"EB_[A-Z_]+", README)) - {"EB_LAB_URL"} <= variables


def test_the_exit_codes_are_those_of_the_file(load: Load) -> None:
    (sentence,) = re.findall(r"Exit codes: .*", README)
    assert sorted(code(sentence)) == sorted(re.findall(r"\b\d+\b", load().run.__doc__))


def test_the_packages_are_named_alike_wherever_they_are_named() -> None:
    required = (TOP / "requirements.txt").read_text(encoding="utf-8").split()
    head = SOURCE[: SOURCE.index('"""')]
    assert re.findall(r'"([a-z0-9]+[>=][^"]+)"', head) == required
    installed = [re.findall(r'"(\S+)"', line) for line in (SOURCE + README).split("\n") if 'pip install "' in line]
    assert installed == [required, required]
    python = re.findall(r'requires-python = ">=(.+)"', head)
    assert re.findall(r"Python ([\d.]+) or newer", README) == python == ["3.10"]


def signatures() -> list[tuple[str, str]]:
    """Every function of the template that the texts show with arguments: (name, arguments)."""
    found = [match for span in code(BOTH) for match in re.findall(r"^(?:eb\.)?(\w+)\(([^\"]*)\)$", span)]
    return sorted({(name, arguments) for name, arguments in found if name not in ("min", "print", "fetch", "tqdm")})


@pytest.mark.parametrize(("name", "arguments"), signatures())
def test_each_function_that_is_named_exists_with_these_arguments(name: str, arguments: str, load: Load) -> None:
    parameters = inspect.signature(getattr(load(), name)).parameters
    shown = re.findall(r"\w+", re.sub(r"=[^,]*", "", arguments))
    assert len(shown) == len(parameters)
    assert name == "run" or shown == list(parameters)


def test_the_specification_names_nothing_that_the_file_does_not_have() -> None:
    names = {span for span in code(SPECIFICATION) if re.fullmatch(r"[A-Za-z_][\w.]*(\(\))?", span)} - ELSEWHERE
    words = set(re.findall(r"\w+", SOURCE))
    assert {name for name in names if not words.issuperset(re.findall(r"\w+", name))} == set()


def test_the_specification_describes_the_sections_of_the_file_in_their_order() -> None:
    rows = table("section | what is in it", SPECIFICATION)
    sections = [banner.partition(":")[0] for banner in BANNERS]
    assert [name for name, _ in rows] == sections
    chapters = [heading for heading in re.findall(r"(?m)^## (.+)", SPECIFICATION) if heading in sections]
    assert chapters == sections[2 : sections.index("ENGINE ENDS")]


def test_each_option_of_the_sandbox_that_is_named_exists() -> None:
    step = section("## Quick Start", README).partition("**Try it in the sandbox.**")[2].partition("\n5. ")[0]
    options = set(re.findall(r"(?<=[` ])--[a-z-]+", step))
    assert len(options) > 4
    assert options - set(re.findall(r"--[a-z-]+", sandbox_parser().format_help())) == set()


REQUEST = httpx.Request("GET", "https://rc.endobest.example")
OUTCOMES: dict[str, list[Exception]] = {
    "no connection": [
        kind("", request=REQUEST) for kind in (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
    ],
    "certificate not accepted, port without TLS, unknown URL scheme, a proxy's 407": [
        untrusted(),
        httpx.UnsupportedProtocol(""),
        httpx.ProxyError("407 Proxy Authentication Required"),
    ],
    "any other `": [kind("") for kind in (httpx.ReadTimeout, httpx.WriteError, httpx.RemoteProtocolError)],
    "body": [httpx.DecodingError(""), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "unexpected end of data")],
}


def outcomes(label: str) -> list[Exception]:
    """Examples for a row of the table of retries."""
    kinds = [errors for name, errors in OUTCOMES.items() if label.startswith(name)]
    if kinds:
        return kinds[0]
    numbers = label.replace("5xx except 501", "500, 502, 503, 504").replace("other 4xx", "400, 403, 404, 409, 422")
    statuses = [int(number) for number in re.findall(r"\d+", numbers.replace("3xx", "302"))]
    assert statuses, f"{label!r} has no example"
    headers = {"Retry-After": "1"} if "Retry-After" in label else {}
    answers = [httpx.Response(status, headers=headers) for status in statuses]
    return [httpx.HTTPStatusError("", request=REQUEST, response=each) for each in answers]


@pytest.mark.parametrize("row", table("outcome | idempotent (the default) | `idempotent=False`", SPECIFICATION))
def test_the_table_of_retries_is_what_the_template_decides(row: list[str], load: Load) -> None:
    template = load()
    for error in outcomes(row[0]):
        for cell, idempotent in zip(row[1:], (True, False), strict=True):
            expected = {"retried": True, "raised": False, "renewed, made again": False}[cell]
            assert template._is_retryable(error, idempotent) is expected, repr(error)


def test_the_changelog_begins_with_the_version_of_the_file(load: Load) -> None:
    changelog = CHANGELOG_FILE.read_text(encoding="utf-8")
    versions = re.findall(r"(?m)^## (\d+\.\d+\.\d+), \d{4}-\d\d-\d\d$", changelog)
    assert versions[0] == load().TEMPLATE_VERSION
    assert versions == sorted(versions, key=lambda version: [int(part) for part in version.split(".")], reverse=True)


def test_each_link_leads_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in re.findall(r"(?m)^#+ (.+)", BOTH)
    }
    for target in re.findall(r"\]\(([^)]+)\)", BOTH):
        file, _, anchor = target.partition("#")
        assert target.startswith("https://") or ((TOP / file).is_file() and (not anchor or anchor in headings)), target


@pytest.mark.parametrize("file", [README_FILE, SPECIFICATION_FILE], ids=lambda file: file.stem)
def test_a_text_is_short_enough_to_be_read(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").split()) <= 2500


def test_the_readme_names_each_recipe() -> None:
    files = {f"tests/recipes/{path.name}" for path in RECIPES.iterdir() if path.is_file()}
    named = set(re.findall(r"\]\((tests/recipes/[^)]+)\)", README))
    assert named == {file for file in files if not re.search(r"requirements\.txt|test_", file)}
