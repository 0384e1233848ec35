"""Strict JSON: what goes into a row comes back as the same value on every database, or is refused before any SQL."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from pyasync.errors import ContextNotSerializable, ContextTooLarge

# What JSON can carry. A recursive union would be exact, and would refuse `dict[str, int]` for an argument
# (dict is invariant) and `task.context["done"]` for a result; typeshed's json chose Any for the same reason.
JSON: TypeAlias = Any

MAX_DEPTH = 64
MAX_DIGITS = 4300  # of an int: CPython's default limit, beyond which another node could not read it

_NUMBERS = frozenset({int, float, bool, type(None)})
_FIRST_LONG_INT = 10**MAX_DIGITS


def encode(value: object, *, limit: int, max_depth: int = MAX_DEPTH, what: str = "context") -> str:
    """Return `value` as compact JSON of at most `limit` bytes of UTF-8; tuples become lists.

    Raises ContextNotSerializable, with the path of what is not strict JSON (NaN, lone surrogates, NUL, keys that are
    not text, other types, cycles, more than `max_depth` levels), and ContextTooLarge, in which `what` names the value.
    """
    try:
        room = _spend(value, limit, max_depth)
        if room < 0:
            raise ContextTooLarge(limit - room, limit, what)
        text = _ENCODER.encode(value)
        size = len(text) if text.isascii() else len(text.encode())
    except (ValueError, TypeError) as error:
        raise _first_fault(value, max_depth) or ContextNotSerializable(str(error)) from None
    if _doubtful(text):
        _refuse(_first_fault(value, max_depth))
    if size > limit:
        raise ContextTooLarge(size, limit, what)
    return text


def decode(text: str) -> JSON:
    """Return the value of a strict JSON text.

    Raises ValueError for anything that `encode` would not have written: NaN, infinite numbers, lone surrogates, NUL.
    """
    try:
        value = _DECODER.decode(text)
        suspect = "\\u" in text or not _is_utf8(text)
        fault = _first_fault(value, sys.maxsize) if suspect else None
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    if fault is not None:
        raise ValueError(f"{fault.reason} at {fault.path}")
    return value


def _spend(value: object, room: int, depth: int) -> int:
    """Return what is left of `room` bytes after `value`, or less than 0 as soon as nothing is.

    Sizes are lower bounds, counted before the text is made, so that a value that would fill the memory (a gigabyte, a
    list that holds itself a hundred times over) is refused in time. Raises TypeError for what needs a closer look.
    """
    if isinstance(value, str):
        return room - 2 - len(value)
    if isinstance(value, (int, float)) or value is None:
        return room - 1
    if depth == 0:
        raise TypeError
    if isinstance(value, dict):
        # join refuses keys that are not text, at C speed; json would turn 1, True and None into text silently.
        return _spend_all(value.values(), len(value), room - 3 * len(value) - len("".join(value)), depth - 1)
    if isinstance(value, (list, tuple)):
        return _spend_all(value, len(value), room, depth - 1)
    raise TypeError


def _spend_all(values: Iterable[object], count: int, room: int, depth: int) -> int:
    room -= count + 1  # commas and brackets
    if room < count:
        return room - count
    for value in values:
        kind = type(value)
        if kind in _NUMBERS:  # the loop that a large context spends its time in, hence no call for a scalar
            room -= 1
        elif kind is str:
            room -= 2 + len(value)  # type: ignore[arg-type]  # mypy does not narrow by `kind is`
        else:
            room = _spend(value, room, depth)
            if room < 0:
                break
    return room


def _doubtful(text: str) -> bool:
    if "\\u0000" in text:  # NUL, or a harmless backslash before u0000
        return True
    return len(text) > MAX_DIGITS and not 0 < sys.get_int_max_str_digits() <= MAX_DIGITS


def _first_fault(value: object, max_depth: int) -> ContextNotSerializable | None:
    return next(_faults(value, "$", max_depth, ()), None)


def _refuse(fault: ContextNotSerializable | None) -> None:
    if fault is not None:
        raise fault


def _faults(value: object, path: str, depth: int, above: tuple[int, ...]) -> Iterator[ContextNotSerializable]:
    if isinstance(value, (dict, list, tuple)):
        yield from _container_faults(value, path, depth, above)
        return
    reason = _scalar_fault(value)
    if reason:
        yield ContextNotSerializable(reason, path)


def _container_faults(
    value: dict[object, object] | list[object] | tuple[object, ...], path: str, depth: int, above: tuple[int, ...]
) -> Iterator[ContextNotSerializable]:
    if id(value) in above:
        yield ContextNotSerializable("the value contains itself", path)
    elif depth == 0:
        yield ContextNotSerializable("the value is nested too deeply", path)
    elif isinstance(value, dict):
        yield from (ContextNotSerializable(reason, path) for reason in map(_key_fault, value) if reason)
        for key, item in value.items():
            yield from _faults(item, path + _step(key), depth - 1, (*above, id(value)))
    else:
        for index, item in enumerate(value):
            yield from _faults(item, f"{path}[{index}]", depth - 1, (*above, id(value)))


def _step(key: object) -> str:
    if isinstance(key, str) and key.isidentifier() and len(key) < 60:
        return f".{key}"
    return f"[{json.dumps(str(key)[:60])}]"


def _key_fault(key: object) -> str | None:
    if not isinstance(key, str):
        return f"a key is {type(key).__name__}, not text"
    fault = _text_fault(key)
    return f"in the key {key[:60]!r}: {fault}" if fault else None


def _scalar_fault(value: object) -> str | None:
    if isinstance(value, str):
        return _text_fault(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{float(value)} is not a JSON number"
    if isinstance(value, int) and not -_FIRST_LONG_INT < value < _FIRST_LONG_INT:
        return f"an int of more than {MAX_DIGITS} digits cannot be read back"
    if value is None or isinstance(value, (int, float)):
        return None
    return f"{type(value).__name__} is not a JSON type"


def _text_fault(text: str) -> str | None:
    if "\0" in text:
        return "text with NUL cannot be stored by PostgreSQL"
    return None if _is_utf8(text) else "text with a lone surrogate cannot be written as UTF-8"


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large for a number")
    return number


def _not_json(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_not_json)
