from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, StrEnum
from typing import Annotated, Any, Literal, Optional

import msgspec
import pydantic
import pytest

from pyasync.domain.codec import Codec
from pyasync.domain.contents import decode, encode


class Speed(Enum):
    SLOW = 1
    FAST = 2


class Color(StrEnum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: int = 0


@dataclass(frozen=True)
class Everything:
    text: str
    whole: int
    real: float
    flag: bool
    nothing: None
    point: Point
    points: list[Point]
    named: dict[str, Point]
    pair: tuple[int, str]
    row: tuple[int, ...]
    maybe: Point | None
    old_maybe: Optional[int]  # noqa: UP045  # people write it
    either: int | str
    speed: Speed
    color: Color
    mode: Literal["on", "off", 1]
    noted: Annotated[int, "a note"]
    free: Any
    bare: list  # type: ignore[type-arg]  # people write it
    computed: int = field(init=False, default=0)


@dataclass
class Tree:
    name: str
    children: list[Tree] = field(default_factory=list)
    parent: Tree | None = None


class Struct(msgspec.Struct):
    at: datetime
    points: dict[int, Point] = {}


class Model(pydantic.BaseModel):
    at: datetime
    points: list[Point] = []


EVERYTHING = Everything(
    text="é",
    whole=1,
    real=1.5,
    flag=True,
    nothing=None,
    point=Point(1, 2),
    points=[Point(3), Point(4)],
    named={"a": Point(5)},
    pair=(1, "b"),
    row=(1, 2, 3),
    maybe=None,
    old_maybe=6,
    either="seven",
    speed=Speed.FAST,
    color=Color.RED,
    mode="off",
    noted=8,
    free={"any": [1, None]},
    bare=[1, "a"],
)
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        EVERYTHING,
        Tree("a", [Tree("b", [Tree("c")])], parent=Tree("d")),
        Struct(NOON, {1: Point(1)}),
        Model(at=NOON, points=[Point(1)]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_context_comes_back_from_json_as_it_was(value: object) -> None:
    codec = Codec(type(value))

    text = encode(codec.dump(value), limit=10_000)

    assert codec.load(decode(text)) == value


@pytest.mark.parametrize("value", [None, 5, {"a": [1]}, "text"])
def test_without_a_context_type_json_passes_unchanged(value: object) -> None:
    assert Codec(None).dump(value) is value
    assert Codec(None).load(value) is value


@pytest.mark.parametrize("context_type", [Point, Struct, Model])
def test_plain_json_that_fits_may_be_dumped_too(context_type: type) -> None:
    plain = {"x": 1} if context_type is Point else {"at": "2030-01-01T12:00:00Z"}

    assert Codec(context_type).dump(plain) == plain
    assert isinstance(Codec(context_type).load(plain), context_type)


@pytest.mark.parametrize("context_type", [Point, Struct, Model])
@pytest.mark.parametrize("plain", [{"x": "one", "at": "noon"}, {}, 5, None, [1]], ids=repr)
def test_plain_json_that_does_not_fit_is_neither_dumped_nor_loaded(context_type: type, plain: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        Codec(context_type).dump(plain)
    with pytest.raises((ValueError, TypeError)):
        Codec(context_type).load(plain)


def test_field_with_a_default_may_be_missing() -> None:
    assert Codec(Point).load({"x": 1}) == Point(1, 0)


@pytest.mark.parametrize(
    ("context_type", "plain", "reason"),
    [
        (Point, {}, r"Point needs 'x' at \$"),
        (Point, {"x": 1, "z": 2, "a": 3}, r"Point has no 'a', 'z' at \$"),
        (Point, {"x": "1"}, r"int is expected, str found at \$\.x"),
        (Point, {"x": True}, r"int is expected, bool found at \$\.x"),
        (Point, {"x": 1.0}, r"int is expected, float found at \$\.x"),
        (Point, [1], r"an object is expected, list found at \$"),
        (Tree, {"name": "a", "children": [{"name": "b"}, {}]}, r"Tree needs 'name' at \$\.children\[1\]"),
        (Tree, {"name": "a", "children": {}}, r"a list is expected, dict found at \$\.children"),
        (Tree, {"name": "a", "parent": 5}, r"an object is expected, int found at \$\.parent; null is expected"),
    ],
)
def test_refusal_says_what_and_where(context_type: type, plain: object, reason: str) -> None:
    with pytest.raises((ValueError, TypeError), match=reason):
        Codec(context_type).load(plain)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("text", 1),
        ("real", "1.5"),
        ("real", True),
        ("flag", 1),
        ("nothing", 0),
        ("named", [1]),
        ("pair", [1]),
        ("pair", ["b", 1]),
        ("row", [1, "a"]),
        ("either", None),
        ("speed", 3),
        ("speed", True),
        ("speed", [1]),
        ("color", "blue"),
        ("mode", "1"),
        ("mode", True),
        ("bare", "text"),
    ],
)
def test_field_of_another_type_is_refused(name: str, plain: object) -> None:
    codec = Codec(Everything)
    json_of_it = codec.dump(EVERYTHING)

    with pytest.raises((ValueError, TypeError), match=rf"at \$\.{name}"):
        codec.load(json_of_it | {name: plain})


def test_whole_number_fits_a_float_field_and_becomes_one() -> None:
    codec = Codec(Everything)

    loaded = codec.load(codec.dump(EVERYTHING) | {"real": 2})

    assert isinstance(loaded, Everything)
    assert isinstance(loaded.real, float)


def test_instance_that_could_not_be_loaded_again_is_not_dumped() -> None:
    with pytest.raises(TypeError, match=r"int is expected, str found at \$\.x"):
        Codec(Point).dump(Point("one"))  # type: ignore[arg-type]


def test_instance_of_another_type_is_not_dumped() -> None:
    with pytest.raises(TypeError, match="an object is expected, Tree found"):
        Codec(Point).dump(Tree("a"))


@dataclass
class WithDatetime:
    at: datetime


@dataclass
class WithDeepSet:
    points: dict[str, list[set[int]]]


@dataclass
class WithIntKeys:
    points: dict[int, str]


@pytest.mark.parametrize(
    ("context_type", "reason"),
    [
        (WithDatetime, r"WithDatetime\.at: JSON cannot carry .*datetime"),
        (WithDeepSet, r"WithDeepSet\.points: JSON cannot carry set\[int\]"),
        (WithIntKeys, r"WithIntKeys\.points: the keys of a JSON object are text"),
        (dict, "context_type must be a dataclass"),
        (int, "context_type must be a dataclass"),
    ],
)
def test_type_that_can_never_work_is_refused_at_once(context_type: type, reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        Codec(context_type)


def test_type_whose_hints_cannot_be_resolved_is_refused_with_the_cure() -> None:
    @dataclass
    class Inner:
        x: int

    @dataclass
    class Outer:
        inner: Inner

    with pytest.raises(TypeError, match="'Inner' is not defined; define the types of its fields at the top"):
        Codec(Outer)


def test_instance_instead_of_a_type_is_refused() -> None:
    with pytest.raises(TypeError, match="context_type must be"):
        Codec(Point(1))  # type: ignore[arg-type]
