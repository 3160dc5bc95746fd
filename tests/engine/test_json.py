"""get_nested_value, compared with an independent JSONPath implementation (RFC 9535)."""

import copy
import functools
import itertools
import json
from collections import Counter, defaultdict
from typing import Any

import jsonpath_rfc9535
from helpers import TEMPLATE
from hypothesis import given, settings, strategies as st
from script_file import imported

get_nested_value = imported(TEMPLATE).get_nested_value

GAP = "the default"
STEPS = ("*", "name", "é'\"\\\n\U0001f600", 0, 1, -1, -3)
# Every path of up to three steps for each document, because random paths seldom lead anywhere.
PATHS = [list(path) for length in range(4) for path in itertools.product(STEPS, repeat=length)]
STARRED = [path for path in PATHS if "*" in path]
PLAIN = [path for path in PATHS if "*" not in path]

repeatable = settings(derandomize=True, deadline=None, max_examples=60)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
keys = st.sampled_from(["name", STEPS[2], "*", "0"])
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


def nodes(data: Any, path: list[Any]) -> list[Any]:
    """What the other implementation selects."""
    return list(compiled(tuple(path)).find(data).values())


@functools.cache
def compiled(path: tuple[str | int, ...]) -> jsonpath_rfc9535.JSONPathQuery:
    steps = ("[*]" if step == "*" else f"[{json.dumps(step)}]" for step in path)
    return jsonpath_rfc9535.compile("$" + "".join(steps))


def filled(data: Any, path: list[Any]) -> list[Any]:
    """What is selected below an element, with one default wherever the rest of the path does not exist."""
    if not path:
        return [data]
    found = nodes(data, path[:1])
    if not found and not (path[0] == "*" and isinstance(data, (list, dict))):
        return [GAP]
    return [value for child in found for value in filled(child, path[1:])]


def same(one: object, other: object) -> bool:
    """Whether values and types are equal: 1, 1.0 and True are different JSON."""
    return json.dumps(one) == json.dumps(other)


@repeatable
@given(documents)
def test_with_wildcards_the_nodes_of_the_jsonpath_query_come_in_document_order(data: Any) -> None:
    for path in STARRED:
        assert same(get_nested_value(data, path), nodes(data, path))


@repeatable
@given(documents)
def test_without_a_wildcard_the_value_comes_or_the_default(data: Any) -> None:
    for path in PLAIN:
        found = nodes(data, path)
        assert same(get_nested_value(data, path), found[0] if found else None)
        assert same(get_nested_value(data, tuple(path), default=GAP), found[0] if found else GAP)


@repeatable
@given(documents)
def test_a_default_fills_what_is_missing_after_the_first_wildcard_and_nothing_before(data: Any) -> None:
    for path in STARRED:
        first = path.index("*")
        elements = nodes(data, path[: first + 1])
        expected = [value for element in elements for value in filled(element, path[first + 1 :])]
        assert same(get_nested_value(data, path, GAP), expected)


@repeatable
@given(st.lists(documents, max_size=4))
def test_columns_from_the_same_rows_stay_aligned(rows: list[Any]) -> None:
    for path in PLAIN:
        assert same(get_nested_value(rows, ["*", *path], GAP), [get_nested_value(row, path, GAP) for row in rows])


@repeatable
@given(documents)
def test_the_data_stay_as_they_were_and_the_list_is_a_new_one(data: Any) -> None:
    before = copy.deepcopy(data)
    for path in STARRED:
        get_nested_value(data, path, GAP).append("the script's own")
    assert same(data, before)


anything = st.recursive(
    scalars | st.binary(max_size=3) | st.floats() | st.builds(object) | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.none() | st.integers(-1, 1) | st.text(max_size=1) | st.tuples(st.just("a")), inner, max_size=3
        )
        | st.frozensets(scalars, max_size=3)
    ),
    max_leaves=10,
)


@repeatable
@given(anything)
def test_data_of_any_shape_never_raise(data: Any) -> None:
    odd: list[list[Any]] = [["\ud800", "*"], [10**30], ["*", -(10**30)]]
    for path in PATHS + odd:
        value = get_nested_value(data, path, GAP)
        assert isinstance(value, list) or "*" not in path


class Position:
    """Like numpy's integers: not an int, but an index."""

    def __index__(self) -> int:
        return -1


def test_a_dict_that_creates_missing_keys_is_not_changed() -> None:
    visits: defaultdict[str, list[str]] = defaultdict(list, {"P1": ["V1"]})
    assert get_nested_value(visits, ["P2"], "none") == "none"
    assert get_nested_value([visits, Counter("a")], ["*", "P3"], 0) == [0, 0]
    assert list(visits) == ["P1"]


def test_an_index_need_not_be_an_int_and_a_path_need_not_be_a_list() -> None:
    assert get_nested_value({"visits": ["first", "last"]}, ["visits", Position()]) == "last"  # type: ignore[list-item]
    assert get_nested_value([{"n": 1}, {"n": 2}], iter(["*", "n"])) == [1, 2]  # type: ignore[arg-type]


def test_none_as_the_default_fills_gaps_too() -> None:
    assert get_nested_value([{"name": "a"}, {}, 5], ["*", "name"], None) == ["a", None, None]
