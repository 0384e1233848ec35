"""How many small async tasks does one node process run a second, from its first claim to the last finish committed?

The tasks are there before the clock starts, and return a small value, which is stored.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, text

from benchmarks import raw
from benchmarks.common import Contender, Place, Question, Sizes, Target, connect, main, prepare
from pyasync import Node, Registry

NOOP = "noop"
WARM_UP = 20
PATIENCE = 1800.0


def drain(place: Place, size: int, **settings: Any) -> float:
    """Return pyasync's tasks a second; the tables may be there already, with other tasks in them.

    The node starts without a type and is given it when the clock starts: that is when it begins to claim.
    """
    prepare(place, "warm", WARM_UP)
    _took(place, "warm", WARM_UP, settings)  # what is compiled or cached once in a process is no part of the figure
    prepare(place, NOOP, size)
    took = _took(place, NOOP, size, settings)
    check_finished(place, NOOP, size)
    return size / took


def _took(place: Place, type: str, size: int, settings: dict[str, Any]) -> float:
    registry, left = Registry(), _Left(size)
    with Node(place.url, registry, migrate="off", **settings), connect(place.url) as connection:
        began = time.perf_counter()
        registry.register_task(type, left.noop)
        left.wait()
        wait_for_the_last_finish(connection)
        return time.perf_counter() - began


def wait_for_the_last_finish(connection: Connection) -> None:
    """Wait until no task has an owner: when all have begun, what has not finished has one."""
    query = text("select 1 from pyasync_task where node_id is not null limit 1")
    until = time.monotonic() + PATIENCE
    while connection.execute(query).first() is not None:
        if time.monotonic() > until:
            raise TimeoutError("some tasks do not finish")
        time.sleep(0.001)  # a database tells nobody


def check_finished(place: Place, type: str, size: int) -> None:
    """Make sure that so many tasks of a type are finished, with their results stored."""
    query = "select count(*) from pyasync_task where type = :type and stage = 'finished' and result is not null"
    name = type.encode() if place.kind == "mariadb" else type
    with connect(place.url) as connection:
        found = connection.execute(text(query), {"type": name}).scalar()
    if found != size:
        raise AssertionError(f"{found} of {size} tasks are finished")


class _Left:
    """Counts in the process, which costs the database nothing, how many tasks have not begun."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._none = threading.Event()

    async def noop(self, number: int) -> int:
        self._left -= 1
        if not self._left:
            self._none.set()
        return number

    def wait(self) -> None:
        if not self._none.wait(PATIENCE):
            raise TimeoutError(f"{self._left} tasks have not begun")


def contenders(kind: str) -> Sequence[Contender]:
    """List ours and the raw limits; at concurrency 10 a quarter of the tasks says as much."""
    ours = [
        Contender("pyasync 10", partial(drain, concurrency=10), share=0.25),
        Contender("pyasync 1,000", partial(drain, concurrency=1_000)),
    ]
    return [*ours, *(Contender(name, partial(raw.drain, **how)) for name, how in LIMITS[kind].items())]


LIMITS: dict[str, dict[str, Any]] = {
    "postgresql": {
        "raw 100": {"batch": 100},
        "raw 500": {"batch": 500},
        "raw 2,000": {"batch": 2_000},
        "fused raw 500": {"batch": 500, "fused": True},
        "bare 2,000": {"batch": 2_000, "bare": True},
    },
    "mariadb": {
        "raw 100": {"batch": 100},
        "fused raw 100": {"batch": 100, "fused": True},
        "fused raw 1,000": {"batch": 1_000, "fused": True},
    },
    "sqlite": {
        "raw 100": {"batch": 100},
        "fused raw 100": {"batch": 100, "fused": True},
        "fused raw 1,000": {"batch": 1_000, "fused": True},
    },
}

QUESTION = Question(
    name="drain",
    unit="tasks/s",
    contenders=contenders,
    sizes=Sizes(small=50, usual=10_000, full=50_000),
    targets=(
        Target("pyasync 1,000", at_least=0.45, of="raw *", databases=("postgresql",)),
        Target("pyasync 1,000", at_least=2.0, of="pgqueuer*", databases=("postgresql",)),
        Target("pyasync 10", at_least=2.0, of="oban*", databases=("postgresql",)),
        Target("pyasync 10", at_least=6_000, databases=("postgresql",), note="on the machine of speed.md"),
        Target("pyasync 1,000", of="bare *"),
        Target("pyasync 10", of="raw *"),
        Target("pyasync 1,000", at_least=0.30, of="fused raw 100", databases=("sqlite",)),
        Target("pyasync 1,000", at_least=0.45, of="fused raw 100", databases=("mariadb",)),
    ),
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
