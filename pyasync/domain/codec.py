"""Turn a context of the user's own type into JSON and back: a dataclass, a msgspec.Struct or a pydantic model."""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from pyasync.domain.contents import JSON

Reader = Callable[[JSON, str], object]
"""Makes a value of JSON; the text says where in the context it is, for the error."""

_SEQUENCES = (list, Sequence)
_MAPPINGS = (dict, Mapping)


class Codec:
    """Convert contexts of `context_type`; None: contexts are plain JSON and pass unchanged.

    Raises TypeError when `context_type` is of no supported kind or has a field that JSON cannot carry, so that a type
    that can never work is refused when it is registered.
    """

    def __init__(self, context_type: type | None) -> None:
        self.context_type = context_type
        self._dump, self._load = _converters(context_type)

    def dump(self, value: object) -> JSON:
        """Return `value`, of the context type or plain JSON that fits it, as plain JSON.

        Raises ValueError or TypeError for what could not be loaded again.
        """
        if self.context_type is None:
            return value
        json = self._dump(value) if isinstance(value, self.context_type) else value
        self.load(json)  # what cannot be read back must fail here, at the yield, and not when it is durable
        return json

    def load(self, json: JSON) -> object:
        """Return the context that `json` stands for.

        Raises ValueError or TypeError, saying where, when it does not fit: a dataclass takes no field that it does not
        have, and misses none that has no default.
        """
        return self._load(json)


def _converters(context_type: type | None) -> tuple[Callable[[Any], JSON], Callable[[JSON], object]]:
    if context_type is None:
        return _unchanged, _unchanged
    if isinstance(context_type, type) and dataclasses.is_dataclass(context_type):
        read = _reader(context_type, {})
        return _plain, lambda json: read(json, "$")
    if hasattr(context_type, "__struct_fields__"):
        return _msgspec_converters(context_type)
    if hasattr(context_type, "model_validate"):
        return _pydantic_converters(context_type)
    raise TypeError(f"context_type must be a dataclass, a msgspec.Struct or a pydantic model, not {context_type!r}")


def _unchanged(value: Any) -> Any:
    return value


def _msgspec_converters(context_type: type) -> tuple[Callable[[Any], JSON], Callable[[JSON], object]]:
    # By name: msgspec is there if one of its types is, and pyasync must import without it.
    msgspec: Any = importlib.import_module("msgspec")

    def load(json: JSON) -> object:
        try:
            return msgspec.convert(json, type=context_type, str_keys=True)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from error

    return lambda value: msgspec.to_builtins(value, str_keys=True), load


def _pydantic_converters(context_type: Any) -> tuple[Callable[[Any], JSON], Callable[[JSON], object]]:
    # Its ValidationError is a ValueError that says where.
    return lambda value: value.model_dump(mode="json"), context_type.model_validate


def _plain(value: object) -> JSON:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value) if each.init}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _reader(hint: Any, known: dict[type, Reader]) -> Reader:
    """Return what reads a value of type `hint`; `known` are the dataclasses met so far, as they may hold themselves."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if hint is Any or hint is object:
        return lambda json, where: json
    if origin is Union or origin is types.UnionType:
        return _union_reader([_reader(each, known) for each in arguments])
    if origin is Literal:
        return _choice_reader(arguments)
    if origin in _SEQUENCES or origin is tuple:
        return _sequence_reader(origin, arguments, known)
    if origin in _MAPPINGS:
        return _mapping_reader(arguments, known)
    return _class_reader(hint, known)


def _class_reader(hint: Any, known: dict[type, Reader]) -> Reader:
    if hint in known:
        return lambda json, where: known[hint](json, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass_reader(hint, known)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _choice_reader(tuple(hint))
    if hint is float:
        return _read_float
    if hint in (str, int, bool, None, types.NoneType):
        return _scalar_reader(types.NoneType if hint is None else hint)
    raise TypeError(f"JSON cannot carry {hint!r}; use dataclasses, enums, list, dict, str, int, float, bool and None")


def _dataclass_reader(cls: type, known: dict[type, Reader]) -> Reader:
    readers: dict[str, Reader] = {}
    required: set[str] = set()

    def read(json: JSON, where: str) -> object:
        _expect(isinstance(json, dict), "an object", json, where)
        _refuse_names(cls, json.keys() - readers.keys(), "has no", where)
        _refuse_names(cls, required - json.keys(), "needs", where)
        return cls(**{name: readers[name](item, f"{where}.{name}") for name, item in json.items()})

    known[cls] = read
    hints = _hints(cls)
    for each in dataclasses.fields(cls):
        if each.init:
            readers[each.name] = _field_reader(cls, each.name, hints[each.name], known)
            if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
                required.add(each.name)
    return read


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)  # and without the extras of Annotated
    except NameError as error:
        raise TypeError(f"{cls.__name__}: {error}; define the types of its fields at the top of a module") from None


def _field_reader(cls: type, name: str, hint: Any, known: dict[type, Reader]) -> Reader:
    try:
        return _reader(hint, known)
    except TypeError as error:
        raise TypeError(f"{cls.__name__}.{name}: {error}") from None


def _refuse_names(cls: type, names: set[str], verb: str, where: str) -> None:
    if names:
        raise ValueError(f"{cls.__name__} {verb} {', '.join(map(repr, sorted(names)))} at {where}")


def _sequence_reader(origin: Any, arguments: tuple[Any, ...], known: dict[type, Reader]) -> Reader:
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return _tuple_reader([_reader(each, known) for each in arguments])
    item_reader = _reader(arguments[0] if arguments else Any, known)
    make = tuple if origin is tuple else list

    def read(json: JSON, where: str) -> object:
        _expect(isinstance(json, (list, tuple)), "a list", json, where)
        return make(item_reader(item, f"{where}[{index}]") for index, item in enumerate(json))

    return read


def _tuple_reader(readers: list[Reader]) -> Reader:
    def read(json: JSON, where: str) -> object:
        fits = isinstance(json, (list, tuple)) and len(json) == len(readers)
        _expect(fits, f"a list of {len(readers)}", json, where)
        return tuple(
            each(item, f"{where}[{index}]") for index, (each, item) in enumerate(zip(readers, json, strict=True))
        )

    return read


def _mapping_reader(arguments: tuple[Any, ...], known: dict[type, Reader]) -> Reader:
    key_hint, item_hint = arguments or (str, Any)
    if key_hint not in (str, Any):
        raise TypeError(f"the keys of a JSON object are text, not {key_hint!r}")
    item_reader = _reader(item_hint, known)

    def read(json: JSON, where: str) -> object:
        _expect(isinstance(json, dict), "an object", json, where)
        return {key: item_reader(item, f"{where}.{key}") for key, item in json.items()}

    return read


def _union_reader(readers: list[Reader]) -> Reader:
    """Try one member after the other, as written; if none fits, the last one's reason is the one given."""

    def read(json: JSON, where: str) -> object:
        reasons = []
        for each in readers:
            try:
                return each(json, where)
            except (ValueError, TypeError) as error:
                reasons.append(str(error))
        raise ValueError("; ".join(reasons))

    return read


def _choice_reader(values: tuple[object, ...]) -> Reader:
    # Keyed by type as well, since 1 == True == 1.0.
    choices = {(type(plain), plain): each for each in values for plain in [_plain(each)]}
    expected = "one of " + ", ".join(repr(plain) for _, plain in choices)

    def read(json: JSON, where: str) -> object:
        key = None if isinstance(json, (list, tuple, dict)) else (type(json), json)
        if key not in choices:
            raise ValueError(f"{expected} is expected, {json!r:.60} found at {where}")
        return choices[key]

    return read


def _read_float(json: JSON, where: str) -> float:
    _expect(isinstance(json, (int, float)) and not isinstance(json, bool), "a number", json, where)
    return float(json)


def _scalar_reader(cls: type) -> Reader:
    def read(json: JSON, where: str) -> object:
        # bool is an int, and True no number of anything.
        fits = isinstance(json, cls) and (cls is not int or not isinstance(json, bool))
        _expect(fits, "null" if cls is types.NoneType else cls.__name__, json, where)
        return json

    return read


def _expect(fits: bool, expected: str, json: JSON, where: str) -> None:
    if not fits:
        raise TypeError(f"{expected} is expected, {type(json).__name__} found at {where}")
