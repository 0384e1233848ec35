"""Connections that are cut before and after each message of a task's life, and of the life of the node that runs it."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import pytest
from sqlalchemy import delete
from sqlalchemy.exc import SQLAlchemyError

from pyasync import Client, DatabaseUnavailable, Node
from tests.faults.effort import Effort
from tests.faults.life import KINDS, Life, prepare, registry
from tests.faults.proxy import Proxy, When
from tests.faults.residue import nothing_left, sessions
from tests.runtime.other import NODE, TASK, Other
from tests.servers import running_server
from tests.waiting import until

# SQLite is a file: it has no connections that could be cut.
pytestmark = [pytest.mark.databases("postgresql", "mariadb"), pytest.mark.timeout(120)]

T = TypeVar("T")

SETTINGS: dict[str, Any] = {"poll_interval": 0.05, "lease": 5.0, "stop_grace": 2.0, "migrate": "check"}
LANES = 4
"""Databases on which lives are lived at the same time: a life waits more than it works."""
RECORDED = 2
"""Lives of each kind that are lived without a fault, to learn what is sent in all of them."""
OFTEN = 2
"""How often polls, beats, and what opens connections and transactions are cut: the first times stand for all."""
POLLS = ("select", "begin", "rollback", "commit", "prepare", "set", "update pyasync_node")
TRIES = 4
"""How often a point is tried that did not come: which thread is first differs from one life to the next."""
LATENESS = 0.15
"""Seconds that a message is under way whose client has lost its connection meanwhile: time to connect and ask again."""
SOON = 8
"""Messages within which a second connection is cut: those of a reconnection, of a read-back, and of what goes on."""
CONNECTIONS = 5
"""A node's four at most, and the client's."""


@dataclass(frozen=True)
class Point:
    """Where a connection is cut, and after how many messages of whomever the next one is."""

    label: str
    occurrence: int
    when: When
    again: int | None = None

    def __str__(self) -> str:
        again = "" if self.again is None else f", and again at message {self.again} after that"
        return f"cut {self.when.value} no. {self.occurrence} of {self.label}{again}"


class Lane:
    """A database and a proxy before it, for one life after the other."""

    def __init__(self, url: str, proxy: Proxy, folder: Path) -> None:
        self._url = url
        self._proxy = proxy
        self._folder = folder
        prepare(url)

    def record(self, kind: str) -> Counter[str]:
        """Live without a fault; return how often each message was sent."""
        self._begin_again()
        self._live(kind)
        return Counter(self._proxy.sent)

    def cut(self, point: Point, kind: str) -> bool:
        """Live with a fault; return whether it came about."""
        self._begin_again()
        how = {"when": point.when, "delay": LATENESS}
        traps = [
            self._proxy.trap(lambda link, message: message.label == point.label, occurrence=point.occurrence, **how)
        ]
        if point.again is not None:
            traps.append(self._proxy.trap(lambda link, message: traps[0].fired > 0, occurrence=point.again, **how))
        self._live(kind)
        return all(trap.fired for trap in traps)

    def _begin_again(self) -> None:
        """Let the database forget nodes and types, too, so that all lives begin alike."""
        self._proxy.begin_again()
        with Other(self._url).begin() as connection:
            for table in (TASK, NODE, TASK.metadata.tables["pyasync_type"]):
                connection.execute(delete(table))

    def _live(self, kind: str) -> None:
        client = again(lambda: Client(self._proxy.url))
        node = again(lambda: Node(self._proxy.url, registry(self._url), **SETTINGS).start())
        with client, closing(node):
            life = Life(client, self._url, self._folder, kind, patience=30.0)
            life.create()
            life.rest()
            life.finish()
            life.check()
            assert life.row().losses == 0
            life.delete()
            life.check_gone()
            self._wait_for_sessions(CONNECTIONS)
            node.stop()
            self._wait_for_sessions(1)

    def _wait_for_sessions(self, most: int) -> None:
        until(lambda: sessions(self._url) <= most, what=f"at most {most} sessions to be left")


def again(call: Callable[[], T]) -> T:
    """Call something until the database answers it."""
    while True:
        try:
            return call()
        except (DatabaseUnavailable, SQLAlchemyError):
            continue


@dataclass
class Sweep:
    """Lanes, and what was learnt on them."""

    lanes: SimpleQueue[Lane]
    workers: ThreadPoolExecutor

    def points(self) -> list[Point]:
        """List where a life can be cut: what all recorded lives have sent, as often as all have sent it."""
        kinds = list(KINDS) * RECORDED
        records = self._on_lanes(lambda lane, kind: lane.record(kind), kinds)
        common = Counter({label: min(record[label] for record in records) for label in records[0]})
        print(f"{sum(records[0].values())} messages, {sum(common.values())} in all lives, {len(common)} different ones")
        return [
            Point(label, occurrence, when)
            for label, number in common.items()
            for occurrence in range(1, 1 + (min(number, OFTEN) if is_poll(label) else number))
            for when in When
            if when is not When.LATE or stores(label)
        ]

    def cut(self, points: Iterable[Point]) -> None:
        """Try all points, and fail with all that has gone wrong."""
        kinds = {point: list(KINDS)[number % len(KINDS)] for number, point in enumerate(points)}
        outcomes = dict(
            zip(kinds, self._on_lanes(lambda lane, point: tried(lane, point, kinds[point]), kinds), strict=True)
        )
        wrong = [outcome for outcome in outcomes.values() if isinstance(outcome, Exception)]
        if wrong:
            raise ExceptionGroup(f"{len(wrong)} of {len(kinds)} lives went wrong", wrong)
        print(f"{len(kinds)} points")
        assert [str(point) for point, fired in outcomes.items() if not fired] == [], "these did not come about"

    def _on_lanes(self, call: Callable[[Lane, Any], T], values: Iterable[Any]) -> list[T]:
        def on_lane(value: Any) -> T:
            lane = self.lanes.get()
            try:
                return call(lane, value)
            finally:
                self.lanes.put(lane)

        return list(self.workers.map(on_lane, values))


def is_poll(label: str) -> bool:
    """Whether a message is sent again and again; a commit that stores something is not."""
    return label.startswith(POLLS) and not label.startswith("commit:")


def stores(label: str) -> bool:
    """Whether it counts when a message arrives that the client has given up, since nothing has to follow it."""
    return label.startswith(("commit:", "insert", "update", "delete"))


def tried(lane: Lane, point: Point, kind: str) -> bool | Exception:
    try:
        return any(lane.cut(each, kind) for each in tries(point))
    except Exception as error:
        error.add_note(f"{point}, in the life of the {kind} task")
        return error


def tries(point: Point) -> Iterator[Point]:
    """Repeat a point, with its second cut sooner each time: near the end of a life there are few messages to come."""
    for number in range(TRIES):
        yield point if point.again is None else replace(point, again=max(1, point.again >> number))


@contextmanager
def a_sweep(admin_url: str, folder: Path) -> Iterator[Sweep]:
    server = running_server(admin_url)
    lanes: SimpleQueue[Lane] = SimpleQueue()
    with ExitStack() as stack:
        for _ in range(LANES):
            name = server.create()
            stack.callback(server.drop, name)
            proxy = stack.enter_context(Proxy(server.url(name)))
            lanes.put(Lane(server.url(name), proxy, folder))
        yield Sweep(lanes, stack.enter_context(ThreadPoolExecutor(LANES)))


@pytest.fixture
def sweep(admin_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Sweep]:
    caplog.set_level(logging.CRITICAL, "pyasync")  # pytest keeps what is logged, and so the sockets of tracebacks
    with nothing_left(admin_url), a_sweep(admin_url, tmp_path) as sweep:
        yield sweep


def twice(points: Sequence[Point], chance: random.Random, number: int) -> list[Point]:
    """Choose points, at each of which a second connection is cut soon after the first."""
    some = [point for point in points if point.label != "leave"]  # which may be the last message
    return [replace(point, again=chance.randint(1, SOON)) for point in chance.choices(some, k=number)]


def test_life_of_a_task_is_the_same_wherever_connections_are_cut(sweep: Sweep, effort: Effort) -> None:
    points = sweep.points()

    sweep.cut(effort.sample(points, 25) + twice(points, effort.random("twice"), effort.number(5, 60)))
