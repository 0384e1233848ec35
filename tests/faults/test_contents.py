"""F29: what may be stored is the same on every database, and comes back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pyasync import BadArgument, ContextNotSerializable, ContextTooLarge, Finished, NameTooLong, Registry, State
from tests.runtime.conftest import Nodes
from tests.runtime.gate import PATIENCE

DEPTH = 50
LIMIT = 10_000


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


STORED: dict[str, Any] = {
    "null": None,
    "empty": ["", [], {}, {"": ""}],
    "emoji": {"😀": "👩‍👩‍👧 \U0010ffff"},
    "quotes": "\\ ' \" %s :x ? {} \n\r\t\x01\x7f\u2028",
    "padding and case": ["a ", "a", "A", " a", "ä", "a\u0308"],
    "numbers": [2**63 - 1, -(2**63), 2**64, 10**400, 0.1, 1e308, 5e-324, -0.5, True],
    "as deep as may be": nested(DEPTH),
    "as long as may be": "x" * (LIMIT - 2),
}
REFUSED: dict[str, tuple[Any, type[Exception]]] = {
    "NUL": ("a\0b", ContextNotSerializable),
    "NUL in a name": ({"\0": 1}, ContextNotSerializable),
    "lone surrogate": ("\ud800", ContextNotSerializable),
    "not a number": (float("nan"), ContextNotSerializable),
    "infinite": ([float("-inf")], ContextNotSerializable),
    "bytes": (b"x", ContextNotSerializable),
    "a name that is no text": ({1: 2}, ContextNotSerializable),
    "too deep": (nested(DEPTH + 1), ContextNotSerializable),
    "too deep for any parser": (nested(100_000), ContextNotSerializable),
    "too long": ("x" * (LIMIT - 1), ContextTooLarge),
    "too long in bytes": ("😀" * (LIMIT // 4), ContextTooLarge),
}


def _echo(run: Any) -> Iterator[Any]:
    """Report the value of that name, and end with it."""
    values = STORED | {name: value for name, (value, _) in REFUSED.items()}
    yield {"value": "before"}
    yield {"value": values[run.arguments]} if run.arguments in REFUSED else values[run.arguments]
    yield Finished(values[run.arguments])


def test_values_are_stored_or_refused_alike(node: Nodes) -> None:
    registry = Registry()
    registry.register_task("echo", _echo)
    registry.register_task("keep", lambda *args, **kwargs: None)
    started = node(registry, max_depth=DEPTH, max_context_bytes=LIMIT)

    created = {name: started.create_task("keep", value, auto_run=False) for name, value in STORED.items()}
    echoed = {name: started.create_task("echo", name) for name in [*STORED, *REFUSED]}
    verdicts = {}
    for name, (value, _) in REFUSED.items():
        with pytest.raises((ContextNotSerializable, ContextTooLarge)) as refusal:
            started.create_task("keep", value)
        verdicts[name] = refusal.type
    ended = {name: started.wait_task(task_id, PATIENCE) for name, task_id in echoed.items()}

    assert {name: started.get_task(task_id).arguments for name, task_id in created.items()} == STORED
    assert {name: ended[name].result for name in STORED} == STORED
    assert {name: ended[name].context for name in STORED if name != "null"} == {
        name: value for name, value in STORED.items() if name != "null"
    }
    assert verdicts == {name: kind for name, (_, kind) in REFUSED.items()}
    for name, (_, kind) in REFUSED.items():
        assert (ended[name].state, ended[name].context) == (State.FAILED, {"value": "before"}), name
        assert str(ended[name].error).startswith(kind.__name__), (name, ended[name].error)


NAMES = ("a", "A", "a ", " a", "ä", "a\u0308", "😀", "%s", "x" * 255, "ü" * 127)
BAD_NAMES: dict[str, type[Exception]] = {
    "x" * 256: NameTooLong,
    "ü" * 128: NameTooLong,
    "a\0b": BadArgument,
    "\ud800": BadArgument,
}


def test_names_are_told_apart_or_refused_alike(node: Nodes) -> None:
    registry = Registry()
    registry.register_task("keep", lambda: None)
    started = node(registry)

    ids = {name: started.create_task("keep", user=name, group=name, key=name, auto_run=False) for name in NAMES}
    verdicts = {}
    for name in BAD_NAMES:
        with pytest.raises((NameTooLong, BadArgument)) as refusal:
            started.create_task("keep", user=name)
        verdicts[name] = refusal.type

    assert {name: [task.id for task in started.get_tasks(user=name, group=name)] for name in NAMES} == {
        name: [task_id] for name, task_id in ids.items()
    }
    assert {name: started.get_task(task_id).user for name, task_id in ids.items()} == {name: name for name in NAMES}
    assert verdicts == BAD_NAMES
