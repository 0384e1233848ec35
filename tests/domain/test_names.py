from __future__ import annotations

from enum import StrEnum

import pytest

from pyasync.domain.names import check_name
from pyasync.errors import BadArgument, NameTooLong


@pytest.mark.parametrize("name", ["alice", " padded ", "Straße", "😀", "a'b\"c", "a\nb", "n" * 255, "😀" * 63])
def test_name_comes_back_unchanged(name: str) -> None:
    assert check_name("user", name, empty=False) == name


def test_empty_name_is_allowed_only_where_said() -> None:
    assert check_name("user", "", empty=True) == ""
    with pytest.raises(BadArgument, match="type must not be empty"):
        check_name("type", "", empty=False)


@pytest.mark.parametrize(("name", "size"), [("n" * 256, 256), ("é" * 128, 256), ("😀" * 64, 256)])
def test_name_is_measured_in_bytes_of_utf8(name: str, size: int) -> None:
    with pytest.raises(NameTooLong) as caught:
        check_name("group", name, empty=True)

    assert (caught.value.field, caught.value.size, caught.value.limit) == ("group", size, 255)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "a\udfff", None, 5, b"bytes", ["a"]])
def test_what_a_database_cannot_store_as_text_is_no_name(name: object) -> None:
    with pytest.raises(BadArgument, match="key must"):
        check_name("key", name, empty=True)


def test_enum_member_comes_back_as_the_exact_text_that_drivers_store() -> None:
    class Group(StrEnum):
        NIGHT = "night"

    assert type(check_name("group", Group.NIGHT, empty=True)) is str
    assert check_name("group", Group.NIGHT, empty=True) == "night"
