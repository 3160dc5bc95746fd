"""What a script asks for is done completely, or raises an error: no short lists, partial files or skipped work."""

import asyncio
import csv
import gzip
import io
import json
import math
import re
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import Load, answer, outage
from server import Simulator

FORGETFUL = """
@api_call_with_retry("RC")
def rows():
    response = get_httpx_client().get(f"{MICROSERVICES['RC']['base_url']}/api/echo/1", headers=bearer())
    return response.json().get("data", [])


@api_call_with_retry("RC")
def rows_by_a_subtask():
    def fetch():
        response = get_httpx_client().get(f"{MICROSERVICES['RC']['base_url']}/api/echo/1", headers=bearer())
        return response.json().get("data", [])

    return subtasks_thread_pool.submit(fetch).result()


@api_call_with_retry("RC")
def rows_or_none():
    try:
        return rows()
    except httpx.HTTPError:
        return None


@api_call_with_retry("RC")
def numbers_that_came(numbers):
    found = []
    for number in numbers:
        try:
            url = f"{MICROSERVICES['RC']['base_url']}/api/echo/{number}"
            response = get_httpx_client().get(url, headers=bearer(), timeout=0.5)
            response.raise_for_status()
            found.append(response.json()["n"])
        except Exception:
            continue
    return found


@api_call_with_retry("RC", idempotent=False)
def create_row_in_three_attempts():
    url = f"{MICROSERVICES['RC']['base_url']}/api/requests/create"
    for _ in range(3):
        try:
            return get_httpx_client().post(url, headers=bearer(), json={}).json()["id"]
        except httpx.HTTPError:
            continue


@api_call_with_retry("RC")
def number_or_another_error():
    try:
        return get_httpx_client().get(f"{MICROSERVICES['RC']['base_url']}/api/echo/1", headers=bearer()).json()["n"]
    except httpx.HTTPStatusError as error:
        raise RuntimeError(f"no number: {error.response.text}") from None


@api_call_with_retry("RC")
def lines_that_came():
    lines = []
    try:
        url = f"{MICROSERVICES['RC']['base_url']}/api/echo/1"
        with get_httpx_client().stream("GET", url, headers=bearer(), timeout=0.5) as response:
            for line in response.iter_lines():
                lines.append(line)
    except httpx.HTTPError:
        pass
    return lines


@api_call_with_retry("RC", idempotent=False)
def create_row():
    url = f"{MICROSERVICES['RC']['base_url']}/api/requests/create"
    response = get_httpx_client().post(url, headers=bearer(), json={})
    return response.json().get("id")


@api_call_with_retry("RC")
def export():
    return get_httpx_client().get(f"{MICROSERVICES['RC']['base_url']}/api/echo/1", headers=bearer()).content


@api_call_with_retry("RC")
def export_in_parts():
    url = f"{MICROSERVICES['RC']['base_url']}/api/echo/1"
    with get_httpx_client().stream("GET", url, headers=bearer()) as response:
        return b"".join(response.iter_bytes())


def bearer():
    return {"Authorization": f"Bearer {tokens['RC']['access_token']}"}
"""

ROWS = answer(200, b'{"data": [1, 2, 3]}')


@pytest.fixture
def forgetful(platform: Simulator, logged_in: Load) -> Any:
    """A template with functions that never call raise_for_status()."""
    template = logged_in(platform, ERROR_MAX_RETRY=3)
    exec(FORGETFUL, vars(template))
    return template


# ------------------------------------------------------------------------------------ A refusal is never taken for data


@pytest.mark.parametrize(("status", "attempts"), [*((each, 3) for each in (408, 425, 429, 500, 502, 503)), (501, 1)])
def test_a_function_that_forgets_raise_for_status_is_tried_again_like_any_other(
    platform: Simulator, forgetful: Any, status: int, attempts: int
) -> None:
    platform.control(answer={"echo": answer(status)})
    with pytest.raises(forgetful.httpx.HTTPStatusError, match=str(status)):
        forgetful.rows()
    assert platform.seen()["requests"]["echo"] == attempts


@pytest.mark.parametrize("function", ["rows", "rows_by_a_subtask"])
def test_a_function_that_forgets_raise_for_status_gets_the_rows_once_the_platform_answers(
    platform: Simulator, forgetful: Any, function: str
) -> None:
    platform.control(answer={"echo": ROWS})
    forgetful.ERROR_MAX_RETRY = 1000
    with outage(platform):
        assert getattr(forgetful, function)() == [1, 2, 3]


def test_a_function_that_forgets_raise_for_status_has_its_token_renewed(platform: Simulator, forgetful: Any) -> None:
    platform.control(expire="RC")
    assert forgetful.create_row() == 1
    assert platform.seen()["refreshes"] == {"accepted": 1, "refused": 0}


def test_a_creation_that_forgets_raise_for_status_is_made_once(platform: Simulator, forgetful: Any) -> None:
    platform.control(answer={"create": answer(500)})
    with pytest.raises(forgetful.httpx.HTTPStatusError, match="500"):
        forgetful.create_row()
    assert platform.seen()["requests"]["create"] == 1


def test_statistics_that_are_no_counts_are_refused(platform: Simulator, template: Any) -> None:
    platform.control(answer={"statistics": answer(200, b'{"error": "overloaded"}')})
    with pytest.raises(template.TemplateError):
        template.get_statistics("a centre")


# ------------------------------------------------------------------------- A failure that a function hides is no result


@pytest.mark.parametrize("fault", ["reset", "500", "503", "429"])
def test_a_function_that_leaves_out_what_failed_is_tried_again(platform: Simulator, forgetful: Any, fault: str) -> None:
    forgetful.ERROR_MAX_RETRY = 1000
    with outage(platform, fault):
        assert forgetful.numbers_that_came([1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize(
    "spoiled",
    [answer(200, b"no gzip", content_encoding="gzip", times=2), answer(200, b'{"n": 1}', trickle=1, times=2)],
    ids=["damaged", "too slow"],
)
def test_a_function_that_leaves_out_a_body_that_broke_off_is_tried_again(
    platform: Simulator, forgetful: Any, spoiled: dict[str, Any]
) -> None:
    platform.control(answer={"echo": spoiled})
    assert forgetful.numbers_that_came([1, 2, 3]) == [1, 2, 3]
    assert platform.seen()["requests"]["echo"] == 6


def test_a_function_that_leaves_out_what_was_refused_has_its_token_renewed(platform: Simulator, forgetful: Any) -> None:
    platform.control(expire="RC")
    assert forgetful.numbers_that_came([1, 2, 3]) == [1, 2, 3]
    assert platform.seen()["refreshes"] == {"accepted": 1, "refused": 0}


def test_a_function_whose_download_broke_off_is_tried_again(platform: Simulator, forgetful: Any) -> None:
    platform.control(answer={"echo": answer(200, b"a\nb\n" * 9, trickle=1, times=2)})
    assert forgetful.lines_that_came() == ['{"n":1}']
    assert platform.seen()["requests"]["echo"] == 3


@pytest.mark.parametrize("refused", [answer(503, "accès".encode("latin-1"), "text/html", times=1), {"expire": "RC"}])
def test_a_function_that_makes_another_error_of_a_failure_is_tried_again(
    platform: Simulator, forgetful: Any, refused: dict[str, Any]
) -> None:
    platform.control(**(refused if "expire" in refused else {"answer": {"echo": refused}}))
    assert forgetful.number_or_another_error() == 1


def test_a_creation_that_repeated_its_call_itself_is_made_once(platform: Simulator, forgetful: Any) -> None:
    platform.control(answer={"create": answer(429, times=2)})
    assert forgetful.create_row_in_three_attempts() == 1
    assert platform.seen()["requests"]["create"] == 3


def test_a_function_that_leaves_out_what_always_fails_fails_with_it(platform: Simulator, forgetful: Any) -> None:
    platform.control(answer={"echo": answer(503)})
    with pytest.raises(forgetful.httpx.HTTPStatusError, match="503"):
        forgetful.numbers_that_came([1])
    assert platform.seen()["requests"]["echo"] == 3


def test_a_function_may_leave_out_what_does_not_exist(platform: Simulator, forgetful: Any) -> None:
    platform.control(answer={"echo": answer(404)})
    assert forgetful.numbers_that_came([1, 2]) == []
    assert platform.seen()["requests"]["echo"] == 2


def test_a_function_may_do_without_another_one_that_has_given_up(platform: Simulator, forgetful: Any) -> None:
    platform.control(answer={"echo": answer(503)})
    assert forgetful.rows_or_none() is None
    assert platform.seen()["requests"]["echo"] == 3


def test_a_refresh_that_fails_is_no_failure_of_the_function_around_the_call(
    platform: Simulator, forgetful: Any
) -> None:
    platform.control(revoke_refresh=True)
    assert forgetful.rows_or_none() == []
    assert platform.seen()["refreshes"] == {"accepted": 0, "refused": 1}
    assert platform.seen()["requests"]["echo"] == 2


def test_a_redirect_is_a_failure_unless_it_is_followed(platform: Simulator, forgetful: Any) -> None:
    path = "/rc/api/inclusions/getAllOrganizations"
    platform.control(answer={"echo": answer(302, b"", location=path), "organizations": ROWS})
    with pytest.raises(forgetful.httpx.HTTPStatusError, match="302"):
        forgetful.export()
    forgetful.get_httpx_client().follow_redirects = True
    assert forgetful.export() == b'{"data": [1, 2, 3]}'


# ---------------------------------------------------------------------------------------------- Texts as they are meant


@pytest.mark.parametrize(
    ("body", "text"), [("né".encode(), "né"), ("name\nné".encode("utf-8-sig"), "name\nné"), (b"", "")]
)
def test_a_text_is_read_as_utf_8_without_its_mark(platform: Simulator, template: Any, body: bytes, text: str) -> None:
    platform.control(answer={"organizations": answer(200, body, "text/csv")})
    assert template.get_httpx_client().get(template.url_of("RC", "organizations")).text == text


def test_a_text_that_is_not_utf_8_and_names_no_charset_is_an_error(platform: Simulator, template: Any) -> None:
    platform.control(answer={"organizations": answer(200, "José".encode("cp1252"), "text/csv")})
    response = template.get_httpx_client().get(template.url_of("RC", "organizations"))
    with pytest.raises(UnicodeDecodeError):
        print(response.text)


def test_a_text_in_the_charset_that_it_names_is_read(platform: Simulator, template: Any) -> None:
    platform.control(answer={"organizations": answer(200, "José".encode("cp1252"), "text/csv; charset=cp1252")})
    assert template.get_httpx_client().get(template.url_of("RC", "organizations")).text == "José"


# ----------------------------------------------------------------------------------------- Functions that would not run


async def fetch_async(number: int = 1) -> int:
    await asyncio.sleep(0)
    raise AssertionError("never here")


async def rows_async(number: int = 1) -> AsyncIterator[int]:
    yield number
    raise AssertionError("never here")


def rows_one_by_one(number: int = 1) -> Iterator[int]:
    yield number
    raise AssertionError("never here")


def a_generator(number: int = 1) -> Iterator[int]:
    return (each for each in [number])


class Fetcher:
    def fetch(self, number: int = 1) -> Iterator[int]:
        yield number
        raise AssertionError("never here")


NEVER_RUN = {
    "an async function": fetch_async,
    "an async generator function": rows_async,
    "a generator function": rows_one_by_one,
    "a method with yield": Fetcher().fetch,
    "what returns a generator": a_generator,
    "what returns a coroutine": lambda number=1: fetch_async(number),
}
SAYS_WHAT = r"(?i)generator|async|yield|coroutine"
never_run = pytest.mark.parametrize("function", NEVER_RUN.values(), ids=NEVER_RUN.keys())


WAYS_TO_RUN: dict[str, Callable[[Any, Any], Any]] = {
    "an API function": lambda template, function: template.api_call_with_retry("RC")(function)(),
    "a task of run_parallel": lambda template, function: list(template.run_parallel(function, [1, 2, 3])),
    "a task": lambda template, function: template.main_thread_pool.submit(function, 1).result(),
    "a subtask": lambda template, function: template.subtasks_thread_pool.submit(function, 1).result(),
}


@never_run
@pytest.mark.parametrize("run", WAYS_TO_RUN.values(), ids=WAYS_TO_RUN)
def test_what_would_not_run_is_refused(template: Any, run: Callable[..., Any], function: Callable[..., Any]) -> None:
    with pytest.raises(template.WrongType, match=SAYS_WHAT):
        run(template, function)


@never_run
def test_a_main_that_would_not_run_is_refused(
    platform: Simulator, load: Load, capsys: pytest.CaptureFixture[str], function: Callable[..., Any]
) -> None:
    assert load(platform).run(function) in (1, 2)
    said = capsys.readouterr().err
    assert re.search(SAYS_WHAT, said), said
    assert "done" not in said


@pytest.fixture
def choosy(template: Any) -> Any:
    """A template with an API function that finds no row for the second of three centres."""
    text = """
@api_call_with_retry("RC")
def first_inclusion(name):
    get_all_organizations()
    return next(row for row in "ac" if row == name)
"""
    exec(text, vars(template))
    return template


def test_an_api_function_that_finds_nothing_does_not_end_the_loop_that_calls_it(choosy: Any) -> None:
    with pytest.raises(choosy.WrongValue, match="first_inclusion raises StopIteration: give next"):
        list(map(choosy.first_inclusion, "abc"))


@pytest.mark.parametrize("pool", ["main_thread_pool", "subtasks_thread_pool"])
def test_a_task_that_finds_nothing_does_not_end_the_loop_that_collects_results(template: Any, pool: str) -> None:
    def first(name: str) -> str:
        return next(row for row in "ac" if row == name)

    futures = [getattr(template, pool).submit(first, name) for name in "abc"]
    with pytest.raises(template.WrongValue, match="first raises StopIteration: give next"):
        list(map(Future.result, futures))


def test_an_item_for_which_nothing_is_found_is_named(choosy: Any, caplog: pytest.LogCaptureFixture) -> None:
    results = dict(choosy.run_parallel(choosy.first_inclusion, ["a", "b", "c"], return_exceptions=True))
    assert (results["a"], type(results["b"]), results["c"]) == ("a", choosy.WrongValue, "c")
    assert "failed on item 2: first_inclusion raises StopIteration" in caplog.text


# --------------------------------------------------------------------------------- Arguments that can be read only once


def open_file(folder: Path) -> Any:
    path = folder / "upload.csv"
    path.write_text("a;b\n", encoding="utf-8")
    return path.open("rb")


def temporary_file(folder: Path) -> Any:
    return tempfile.NamedTemporaryFile(dir=folder)


READ_ONCE: dict[str, Callable[[Path], Any]] = {
    "an open file": open_file,
    "a temporary file": temporary_file,
    "bytes in memory": lambda folder: io.BytesIO(b"a;b\n"),
    "text in memory": lambda folder: io.StringIO("a;b\n"),
    "a generator": lambda folder: (row for row in "ab"),
    "a map": lambda folder: map(str, range(2)),
    "a reader of rows": lambda folder: csv.reader(["a;b"]),
}
read_once = pytest.mark.parametrize("make", READ_ONCE.values(), ids=READ_ONCE.keys())


@read_once
def test_what_can_be_read_but_once_is_refused(template: Any, tmp_path: Path, make: Callable[[Path], Any]) -> None:
    @template.api_call_with_retry("RC")
    def upload(data: Any = None) -> None:
        raise AssertionError("never here")

    data = make(tmp_path)
    try:
        with pytest.raises(template.WrongType, match=r"^upload: .*pass a list, bytes or a path"):
            upload(data)
        with pytest.raises(template.WrongType, match=r"^upload: .*pass a list, bytes or a path"):
            upload(data=data)
    finally:
        getattr(data, "close", lambda: None)()


def test_what_can_be_read_again_is_passed_as_it_is(template: Any, tmp_path: Path) -> None:
    @template.api_call_with_retry("RC")
    def given(*values: Any, **options: Any) -> list[Any]:
        return [*values, options]

    values = [[1, 2], b"a;b\n", "text", tmp_path, range(3), {"a": 1}, ("a", ["b"]), None]
    assert given(*values, files={"file": ("a.csv", b"a;b\n")}) == [*values, {"files": {"file": ("a.csv", b"a;b\n")}}]


# ------------------------------------------------------------------------------------------ Questions as they are meant


@pytest.mark.parametrize(
    ("params", "query"),
    [
        ({"since": None, "limit": 5}, "limit=5"),
        ([("since", None), ("limit", 5)], "limit=5"),
        ({"status": ["included", None]}, "status=included"),
        ({"status": {"included"}, "ids": (1, 2)}, "status=included&ids=1&ids=2"),
        ([("s", 1), ("s", 2)], "s=1&s=2"),
        (httpx.QueryParams([("s", "1"), ("s", "2")]), "s=1&s=2"),
        ("b=%E9&a=1&b=2", "b=%E9&a=1&b=2"),
        ({"since": None}, None),
        ({"since": "", "limit": 0}, "since=&limit=0"),
        ({"ids": range(1, 3), "kinds": frozenset({"a"})}, "ids=1&ids=2&kinds=a"),
        ({"since": date(2026, 1, 2)}, "since=2026-01-02"),
        ("q=what?", "q=what?"),
        ("?q=what", "q=what"),
        ({"since": "2026-01-01T00:00+01:00"}, "since=2026-01-01T00%3A00%2B01%3A00"),
    ],
    ids=str,
)
def test_a_parameter_is_sent_as_it_is_meant(template: Any, params: Any, query: str | None) -> None:
    template.MICROSERVICES["RC"]["endpoints"]["echo"] = "/api/echo/1"
    assert template.call_endpoint("RC", "GET", "echo", dict, params=params).get("query") == query


def test_a_filter_on_the_client_is_refused_because_every_other_call_would_be_filtered_too(template: Any) -> None:
    template.get_httpx_client().params = {"status": "active"}
    with pytest.raises(template.ConfigurationError, match=r"client\.params .*: pass params= to the call"):
        template.get_statistics("C-001")


@pytest.mark.parametrize("empty", [[], (), set(), iter(()), [None, None], {}, {"id": "C-001"}, math.nan, [1, math.nan]])
def test_a_filter_without_values_is_refused_because_everything_would_come(template: Any, empty: Any) -> None:
    with pytest.raises(template.WrongValue, match="the parameter organization needs a value or a list of values"):
        template.call_endpoint("RC", "GET", "statistics", dict, params={"organization": empty})


@pytest.mark.parametrize("suffix", ["/T1#2", "/T1?x", "/T1?x=1", "#", "?", "/..", "/T1/../T2"])
def test_a_suffix_that_would_ask_for_something_else_is_refused(template: Any, platform: Simulator, suffix: str) -> None:
    before = platform.seen()["services"]
    with pytest.raises(template.WrongValue, match="suffix"):
        template.call_endpoint("GDD", "GET", "request_by_tube", dict, suffix=suffix)
    assert platform.seen()["services"] == before


# As read from a text file, with a line end or a byte order mark. A search for it would find nothing.
UNSEEN = ["4711\n", " 4711", "\ufeff4711", "47\u200b11", "4711\xa0", "47\x0011"]
MISSING = ["nan", "NaN", " nan ", "None", "null", float("nan"), 4711.0, b"4711"]


@pytest.mark.parametrize("value", [*UNSEEN, *MISSING])
def test_a_text_with_invisible_characters_or_for_a_missing_value_is_not_an_id(load: Load, value: Any) -> None:
    template = load()
    with pytest.raises(template.WrongValue, match="is not an id") as refused:
        template.identifier(value)
    assert "47" not in str(refused.value)


class Int64:
    """A whole number of another library, such as numpy."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return f"Int64({self.value})"


def test_a_whole_number_of_another_library_is_an_id(load: Load) -> None:
    template = load()
    assert json.dumps({"subject": template.identifier(Int64(4711))}) == '{"subject": 4711}'
    assert template.path_segment(Int64(4711)) == "4711"


@pytest.mark.parametrize("value", ["nano", "Nantes", "nullipare", "0", 0, -1])
def test_what_only_looks_like_a_missing_id_is_an_id(load: Load, value: Any) -> None:
    assert load().identifier(value) == value


# ------------------------------------------------------------------------------------------------ A worklist that grows


def test_what_is_appended_to_a_worklist_meanwhile_is_done_too(module: Any) -> None:
    todo, done = [0], list[int]()
    for number, result in module.run_parallel(module.echo, todo):
        assert number == result
        done.append(number)
        if number < 200:
            todo += [2 * number + 1, 2 * number + 2]
    assert sorted(done) == list(range(401))


def test_what_a_task_appends_to_its_worklist_is_done_too(platform: Simulator, logged_in: Load) -> None:
    template, todo = logged_in(platform), [0]

    def work(number: int) -> int:
        if number < 50:
            todo.append(number + 1)
        return int(template.echo(number))

    assert sorted(result for _, result in template.run_parallel(work, todo)) == list(range(51))


def test_a_list_that_shrinks_in_the_loop_is_an_error_and_no_short_result(platform: Simulator, template: Any) -> None:
    todo = list(range(200))

    def remove_what_is_done() -> None:
        for item, _ in template.run_parallel(abs, todo):
            todo.remove(item)

    with pytest.raises(template.WrongValue, match="has shrunk"):
        remove_what_is_done()


# --------------------------------------------------------------------------------------------------- Compressed answers

PARTS = b"patient;visit\n" * 3000, b"4711;Inclusion\n" * 3000
WHOLE = b"".join(PARTS)
PACKED = {"gzip": gzip.compress(WHOLE), "deflate": zlib.compress(WHOLE)}
functions = pytest.mark.parametrize("function", ["export", "export_in_parts"])


@functions
def test_an_answer_of_two_gzip_members_comes_whole_or_not(platform: Simulator, forgetful: Any, function: str) -> None:
    members = b"".join(map(gzip.compress, PARTS))
    platform.control(answer={"echo": answer(200, members, "text/csv", content_encoding="gzip")})
    try:
        assert getattr(forgetful, function)() == WHOLE
    except forgetful.httpx.HTTPError:
        assert platform.seen()["requests"]["echo"] == 3, "it is tried again"


@functions
@pytest.mark.parametrize("kept", [0.2, 0.99])
@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "deflate"])
def test_a_compressed_answer_that_was_cut_is_tried_again_and_never_taken_for_the_whole(
    platform: Simulator, forgetful: Any, encoding: str, kept: float, function: str
) -> None:
    packed = PACKED.get(encoding, PACKED["gzip"])
    cut = answer(200, packed[: int(len(packed) * kept)], "text/csv", content_encoding=encoding)
    platform.control(answer={"echo": cut})
    with pytest.raises(forgetful.httpx.HTTPError):
        getattr(forgetful, function)()
    assert platform.seen()["requests"]["echo"] == 3
    platform.control(answer={"echo": {**cut, "times": 1}})
    assert json.loads(getattr(forgetful, function)()) == {"n": 1}, "the second attempt has the platform's own answer"


@functions
@pytest.mark.parametrize("encoding", ["x-gzip", "br", "zstd", "compress"])
def test_an_answer_in_an_encoding_that_was_not_asked_for_is_never_taken_as_it_is(
    platform: Simulator, forgetful: Any, encoding: str, function: str
) -> None:
    packed = gzip.compress(WHOLE)
    platform.control(answer={"echo": answer(200, packed, "text/csv", content_encoding=encoding)})
    try:
        assert getattr(forgetful, function)() == WHOLE  # "x-gzip" is another name for gzip (RFC 9110, section 8.4.1.3)
    except forgetful.httpx.HTTPError:
        assert platform.seen()["requests"]["echo"] >= 1


@functions
def test_a_compressed_answer_that_is_whole_is_taken(platform: Simulator, forgetful: Any, function: str) -> None:
    platform.control(answer={"echo": answer(200, PACKED["gzip"], "text/csv", content_encoding="gzip")})
    assert getattr(forgetful, function)() == WHOLE
    assert platform.seen()["requests"]["echo"] == 1


def test_an_answer_without_a_body_may_say_that_it_is_compressed(platform: Simulator, forgetful: Any) -> None:
    platform.control(answer={"echo": answer(204, b"", content_encoding="gzip")})
    assert forgetful.export() == b""
    assert platform.seen()["requests"]["echo"] == 1
