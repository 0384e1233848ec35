"""Failpoints at the statements that a node or a client sends: each can be listed, failed, or made a process's last.

    with tapped(node) as tap, node:                # before it starts: its connections are tapped, too
        tap.begin(listing)                         # what is sent from now on

A point is a statement, or a commit, told by the function that sends it and by how often it was sent before, and the
moment before or after it. After a commit is between two transactions.

    cluster.start(registry=dying(point))           # a node process that is killed there
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pyasync
from pyasync import Client, Registry
from pyasync.store.database import Database
from tests.faults import life

OURS = str(Path(pyasync.__file__).parent)
PLUMBING = ("database", "dialects", "link", "line", "locks", "places")
"""Modules that send what others want sent."""
VERBS = ("insert", "update", "delete")
PREFIX = "told_"


@dataclass(frozen=True)
class Point:
    """A moment in what a node sends."""

    label: str
    number: int
    """The first is 1."""
    after: bool = False

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} {self.label} {self.number}"


@dataclass(frozen=True)
class Sent:
    """A statement or a commit on its way: `go` lets it pass, `driver` is the driver's connection."""

    label: str
    number: int
    driver: Any
    go: Callable[[], Any]

    def point(self, *, after: bool) -> Point:
        """Return the moment before or after it."""
        return Point(self.label, self.number, after)


Act = Callable[[Sent], Any]


def go(sent: Sent) -> Any:
    """Let it pass."""
    return sent.go()


class Tap:
    """Hands all that the engines of one database send to an act, which lets it go or does something else."""

    def __init__(self, dialect: Any) -> None:
        self._act: Act = go
        self._sent: Counter[str] = Counter()
        self._lock = threading.Lock()
        for name in ("do_execute", "do_execute_no_params", "do_executemany"):
            setattr(dialect, name, self._executing(getattr(dialect, name)))
        dialect.do_commit = self._committing(dialect.do_commit)
        if dialect.name == "sqlite":
            dialect.connect = self._connecting(dialect.connect)

    def begin(self, act: Act) -> None:
        """Hand what is sent from now on to `act`, counted from 1 again."""
        with self._lock:
            self._sent.clear()
            self._act = act

    def end(self) -> None:
        """Let everything pass again."""
        self._act = go

    def _executing(self, execute: Callable[..., Any]) -> Callable[..., Any]:
        def call(cursor: Any, statement: str, *rest: Any) -> Any:
            return self._pass(statement, cursor.connection, lambda: execute(cursor, statement, *rest))

        return call

    def _committing(self, commit: Callable[..., Any]) -> Callable[..., Any]:
        def call(connection: Any) -> Any:
            return self._pass("commit", connection.driver_connection, lambda: commit(connection))

        return call

    def _connecting(self, connect: Callable[..., Any]) -> Callable[..., Any]:
        """SQLite's batches go to the driver directly."""
        tap = self

        class Connection(sqlite3.Connection):
            def execute(self, statement: str, *rest: Any) -> Any:
                go = super().execute
                if statement.startswith("pragma"):
                    return go(statement, *rest)
                return tap._pass(statement, self, lambda: go(statement, *rest))

        return lambda *args, **options: connect(*args, **options, factory=Connection)

    def _pass(self, statement: str, driver: Any, go: Callable[[], Any]) -> Any:
        label = f"{_sender(sys._getframe(2))} {_verb(statement)}"
        with self._lock:
            self._sent[label] += 1
            number, act = self._sent[label], self._act
        return act(Sent(label, number, driver, go))


def _sender(frame: FrameType | None) -> str:
    """Return the function that has something sent."""
    while frame is not None:
        module = Path(frame.f_code.co_filename).stem
        name = frame.f_code.co_name
        if frame.f_code.co_filename.startswith(OURS) and module not in PLUMBING and not name.startswith("<"):
            return f"{module}.{name}"
        frame = frame.f_back
    return "?"


def _verb(statement: str) -> str:
    words = statement.lower().split()
    if words[0] == "with":  # PostgreSQL's batches: the verb comes after the common table expressions
        return next((word for word in words if word in VERBS), "select")
    return words[0]


@contextmanager
def tapped(client: Client) -> Iterator[Tap]:
    """Tap what a client, or a node that has not started, will send."""
    tap = Tap(client._database.engine.dialect)  # one for the pool, the keeper's line, and the probe
    try:
        yield tap
    finally:
        tap.end()


class Listing:
    """Lets everything pass, and lists it."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int]] = []

    def __call__(self, sent: Sent) -> Any:
        """Let it pass."""
        self.sent.append((sent.label, sent.number))
        return sent.go()

    def points(self, most: int = 1_000) -> list[Point]:
        """Return the moments before and after all that was sent, up to so many times of each."""
        return [Point(*each, after) for each in self.sent if each[1] <= most for after in (False, True)]


# --- a process's last


def dying(point: Point) -> str:
    """Return the `registry` of a node process that is to be killed at a point."""
    return _named(point)


def asking(point: Point, verb: str, **arguments: Any) -> str:
    """Return the `registry` of a process that is no node, but calls a client's verb, and is to be killed at a point."""
    return _named(point, verb, arguments)


def _named(*told: Any) -> str:
    return f"{__name__}:{PREFIX}{json.dumps(told, default=vars).encode().hex()}"


def __getattr__(name: str) -> Callable[[str], Registry]:
    """Make the function that such a registry names: its name is all that a process is told."""
    if not name.startswith(PREFIX):
        raise AttributeError(name)
    point, *told = json.loads(bytes.fromhex(name.removeprefix(PREFIX)))
    tap_all(Killing(Point(**point)))
    return (lambda url: ask(url, *told)) if told else life.registry


def ask(url: str, verb: str, arguments: dict[str, Any]) -> NoReturn:
    """Call a client's verb, then end this process."""
    with Client(url, migrate="check", strict=False) as client:
        getattr(client, verb)(**arguments)
    sys.exit()


def tap_all(act: Act) -> None:
    """Hand what every database that this process opens from now on sends to `act`."""
    made = Database.__init__

    def make(self: Database, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        Tap(self.engine.dialect).begin(act)

    Database.__init__ = make  # type: ignore[method-assign]


@dataclass(frozen=True)
class Killing:
    """Kills this process at a point."""

    last: Point

    def __call__(self, sent: Sent) -> Any:
        """Let it pass, unless this is the end."""
        self._end_at(sent.point(after=False))
        result = sent.go()
        self._end_at(sent.point(after=True))
        return result

    def _end_at(self, point: Point) -> None:
        if point == self.last:
            os.write(2, f"killed {point}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
