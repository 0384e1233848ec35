"""Check the names people give: user, group, type and key."""

from __future__ import annotations

from pyasync.errors import BadArgument, NameTooLong

MAX_NAME_BYTES = 255  # what an index of all three databases holds, in four-byte UTF-8


def check_name(field: str, value: object, *, empty: bool) -> str:
    """Return `value` if every database stores it unchanged; `empty` allows "".

    Raises NameTooLong above 255 bytes of UTF-8, and BadArgument for anything else that cannot be a name.
    """
    if not isinstance(value, str):
        raise BadArgument(f"{field} must be text, not {type(value).__name__}")
    if not value and not empty:
        raise BadArgument(f"{field} must not be empty")
    if "\0" in value:
        raise BadArgument(f"{field} must not contain NUL, which PostgreSQL cannot store: {value[:60]!r}")
    size = _size(field, value)
    if size > MAX_NAME_BYTES:
        raise NameTooLong(field, size, MAX_NAME_BYTES)
    return str.__str__(value)  # of an enum member, too: drivers store by exact type


def _size(field: str, value: str) -> int:
    if value.isascii():
        return len(value)
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        raise BadArgument(f"{field} must not contain a lone surrogate, as UTF-8 does not: {value[:60]!r}") from None
