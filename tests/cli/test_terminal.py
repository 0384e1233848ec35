from __future__ import annotations

import json

import pytest

from pyasync.cli.terminal import Column, age, bar, columns_of, cut, safe, safe_json, safe_lines, table


def test_what_steers_a_terminal_is_escaped() -> None:
    assert safe("a\x1b[31mb\r\n\x9bc\u202ed\x00") == r"a\x1b[31mb\r\n\x9bc\u202ed\x00"


def test_what_people_write_stays() -> None:
    assert safe("naïve, 完了 🚀") == "naïve, 完了 🚀"


def test_lines_stay_lines() -> None:
    assert safe_lines("one\n\ttwo\x07") == ["one", r"    two\x07"]


def test_json_for_a_terminal_is_still_the_same_json() -> None:
    document = json.dumps({"a": "\x1b\x9b\u202e\x7f é"}, ensure_ascii=False)

    shown = safe_json(document)

    assert shown == r'{"a": "\u001b\u009b\u202e\u007f é"}'
    assert json.loads(shown) == json.loads(document)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0s"), (0.9, "0s"), (119, "119s"), (120, "2m"), (7_199, "119m"), (7_200, "2h"), (172_800, "2d")],
)
def test_ages_have_one_unit(seconds: float, shown: str) -> None:
    assert age(seconds) == shown


def test_a_bar_of_nothing_is_nothing() -> None:
    assert bar(None) == ""


def test_a_bar_ends_with_what_is_surely_done() -> None:
    assert bar(0.999).endswith("99%")


def test_wide_and_combining_characters_are_counted_as_a_terminal_does() -> None:
    assert columns_of("完了") == 4
    assert columns_of("e\u0301") == 1


def test_what_is_cut_shows_it() -> None:
    assert cut("abcdef", 4) == "abc…"
    assert columns_of(cut("完了完了", 4)) <= 4


def test_columns_of_a_table_are_as_wide_as_their_widest_cell() -> None:
    lines = table((Column("NAME"), Column("N", right=True)), [("完了", "1"), ("abc", "12")])

    assert lines == ["NAME   N", "完了   1", "abc   12"]


def test_where_nobody_looks_nothing_is_cut() -> None:
    assert table((Column("A", elastic=True),), [("x" * 500,)])[1] == "x" * 500
