from __future__ import annotations

import json
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyasync.domain.contents import decode, encode
from pyasync.errors import ContextNotSerializable, ContextTooLarge

MIB = 1024 * 1024

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
)
keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=30)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=10,
)


class Color(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


class Point(NamedTuple):
    x: int
    y: int


def refusal(value: object, **options: Any) -> ContextNotSerializable:
    with pytest.raises(ContextNotSerializable) as caught:
        encode(value, limit=MIB, **options)
    return caught.value


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@given(values)
@example({"": [[], {}], "a\\u0000": -0.0, "é😀\x7f\x01": 10**4299})
def test_what_is_encoded_is_decoded_as_the_same_value(value: object) -> None:
    again = decode(encode(value, limit=MIB))

    assert again == value
    assert repr(again) == repr(value)  # so that 1, 1.0 and True are told apart


@given(anything)
def test_a_value_is_either_refused_or_stored_as_strict_json(value: object) -> None:
    fault: tuple[str, str] | None = None

    try:
        text = encode(value, limit=MIB)
    except ContextNotSerializable as error:
        fault = error.path, error.reason

    if fault is None:
        assert decode(text) == json.loads(json.dumps(value))
    else:
        assert fault[0].startswith("$")
        assert fault[1] != ""


@given(values)
def test_limit_is_exactly_the_bytes_of_the_text(value: object) -> None:
    text = encode(value, limit=MIB)
    size = len(text.encode())

    assert encode(value, limit=size) == text
    with pytest.raises(ContextTooLarge) as caught:
        encode(value, limit=size - 1)
    assert caught.value.size == size


def test_text_is_compact_and_not_escaped() -> None:
    assert encode({"a": [1, "é😀"], "b": None}, limit=100) == '{"a":[1,"é😀"],"b":null}'


def test_tuple_becomes_a_list() -> None:
    assert decode(encode({"at": (1, (2,))}, limit=100)) == {"at": [1, [2]]}


def test_subclasses_are_stored_as_what_they_extend() -> None:
    value = {"color": Color.RED, "number": Number.ONE, "point": Point(1, 2)}

    assert encode(value, limit=100) == '{"color":"red","number":1,"point":[1,2]}'
    assert encode(OrderedDict(a=defaultdict(int, b=1)), limit=100) == '{"a":{"b":1}}'
    assert encode({Color.RED: Color.RED}, limit=100) == '{"red":"red"}'
    assert encode(Color.RED, limit=100) == '"red"'


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        (float("nan"), "$", "nan is not a JSON number"),
        ({"a": [0, 1, 2, float("inf")]}, "$.a[3]", "inf is not a JSON number"),
        ({"a": {"b c": -float("inf")}}, '$.a["b c"]', "-inf is not a JSON number"),
        ({"a": "x\ud800"}, "$.a", "lone surrogate"),
        (["\udfff"], "$[0]", "lone surrogate"),
        ({"\ud800": 1}, "$", "lone surrogate"),
        ({"a": "x\0"}, "$.a", "NUL"),
        ([["\0"]], "$[0][0]", "NUL"),
        ({"k": {"\0": 1}}, "$.k", "NUL"),
        ({1: 2}, "$", "a key is int"),
        ({"a": {None: 2}}, "$.a", "a key is NoneType"),
        ({"a": [{True: 2}]}, "$.a[0]", "a key is bool"),
        ({1.5: 2}, "$", "a key is float"),
        ({("a",): 2}, "$", "a key is tuple"),
        ({10**5000: 2}, "$", "a key is int"),
        ({"a": {1}}, "$.a", "set is not a JSON type"),
        ({"a": b"x"}, "$.a", "bytes is not a JSON type"),
        ([Decimal("1.5")], "$[0]", "Decimal is not a JSON type"),
        (object(), "$", "object is not a JSON type"),
        ({"a": 10**4300}, "$.a", "more than 4300 digits"),
        ({"a": -(10**4300)}, "$.a", "more than 4300 digits"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else "",
)
def test_refusal_says_what_and_where(value: object, path: str, reason: str) -> None:
    error = refusal(value)

    assert error.path == path
    assert reason in error.reason
    assert reason in str(error)


def test_int_of_4300_digits_is_the_longest() -> None:
    longest = 10**4300 - 1

    assert decode(encode(longest, limit=5_000)) == longest
    assert decode(encode(-longest, limit=5_000)) == -longest


@pytest.fixture
def _ints_of_any_length() -> Iterator[None]:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    yield
    sys.set_int_max_str_digits(before)


@pytest.mark.usefixtures("_ints_of_any_length")
def test_long_int_is_refused_even_where_this_interpreter_would_write_it() -> None:
    assert refusal({"a": [10**4300]}).path == "$.a[0]"
    assert encode({"a": "1" * 5_000}, limit=6_000) == '{"a":"' + "1" * 5_000 + '"}'


def test_backslash_before_u0000_is_no_nul() -> None:
    assert decode(encode({"a": "\\u0000"}, limit=100)) == {"a": "\\u0000"}


def test_nul_beside_a_harmless_backslash_is_found() -> None:
    assert refusal(["\\u0000", "\0"]).path == "$[1]"


def test_depth_is_limited() -> None:
    assert decode(encode(nested(64), limit=1_000)) == nested(64)

    assert "nested too deeply" in refusal(nested(65)).reason


def test_depth_limit_can_be_chosen() -> None:
    assert encode({"a": [1]}, limit=100, max_depth=2) == '{"a":[1]}'

    error = refusal({"a": [{}]}, max_depth=2)
    assert (error.path, error.reason) == ("$.a[0]", "the value is nested too deeply")


@pytest.mark.parametrize("max_depth", [64, 200])
def test_value_that_contains_itself_is_told_as_such(max_depth: int) -> None:
    value: dict[str, Any] = {"a": []}
    value["a"].append(value)

    error = refusal(value, max_depth=max_depth)

    assert (error.path, error.reason) == ("$.a[0]", "the value contains itself")


def test_value_that_is_shared_but_no_cycle_is_stored_twice() -> None:
    shared = [1]

    assert encode([shared, shared], limit=100) == "[[1],[1]]"


def test_too_large_names_what_and_how_large() -> None:
    with pytest.raises(ContextTooLarge, match="The result needs at least 1002 bytes as JSON, 1001 are allowed"):
        encode("x" * 1000, limit=1001, what="result")


def test_size_is_measured_in_bytes_of_utf8() -> None:
    assert encode("é" * 10, limit=22)
    with pytest.raises(ContextTooLarge) as caught:
        encode("é" * 10, limit=21)

    assert caught.value.size == 22


def test_value_too_large_for_memory_is_refused_before_its_text_is_made() -> None:
    bomb: list[Any] = ["x" * MIB] * 1024
    for _ in range(50):
        bomb = [bomb] * 1024

    with pytest.raises(ContextTooLarge):
        encode(bomb, limit=MIB)
    with pytest.raises(ContextTooLarge):
        encode({"a": bomb}, limit=MIB)


def test_branching_bomb_with_nothing_in_it_is_refused_in_time() -> None:
    bomb: list[Any] = []
    for _ in range(60):
        bomb = [bomb, bomb]

    with pytest.raises(ContextTooLarge):
        encode(bomb, limit=MIB)
    with pytest.raises(ContextTooLarge):
        encode([bomb, object()], limit=MIB)


@pytest.mark.parametrize(
    "text",
    ["", "{", "NaN", "[Infinity]", "[-Infinity]", "1e999", '"\\ud800"', '["\\u0000"]', '{"\\u0000":1}', "'a'", "[1,]"],
)
def test_text_that_is_not_strict_json_is_not_decoded(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(text)


@pytest.mark.parametrize("text", ['"\ud800"', '{"a":"\udfff"}', "[" * 100_000 + "]" * 100_000, "1" * 5_000])
def test_text_that_no_database_returns_is_not_decoded(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(text)


def test_decode_says_where() -> None:
    with pytest.raises(ValueError, match=r"NUL .* at \$\.a\[1\]"):
        decode('{"a":[1,"\\u0000"]}')


def test_escaped_pair_of_surrogates_is_one_character() -> None:
    assert decode('"\\ud83d\\ude00"') == "😀"
