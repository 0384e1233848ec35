"""How many reports of a context of 1 KB does one node make durable a second, for 1,000 tasks that run at once?

Each task yields ten times. The clock runs from the first task's first line to the moment at which the last task goes on
after its last yield; a task goes on as soon as its report is stored. Claims and finishes are no part of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from benchmarks import raw
from benchmarks.common import Contender, Place, Question, Sizes, Target, connect, main, prepare
from benchmarks.drain import PATIENCE, wait_for_the_last_finish
from pyasync import Node, Registry, State

YIELDS = 10


def reports(place: Place, size: int, **settings: Any) -> float:
    """Return durable reports a second."""
    prepare(place, "report", size)
    body = _Reporting(size)
    registry = Registry()
    registry.register_task("report", body.run)
    with Node(place.url, registry, migrate="off", **settings) as node:
        body.wait()
        with connect(place.url) as connection:
            wait_for_the_last_finish(connection)
        finished = node.count_tasks().get(State.FINISHED, 0)
    if finished != size:
        raise AssertionError(f"{finished} of {size} tasks are finished")
    return size * YIELDS / body.took


class _Reporting:
    """The body of the tasks, and when the first of them began and the last one was done."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._began = 0.0
        self._done = threading.Event()
        self.took = 0.0

    async def run(self, run: Any) -> AsyncIterator[dict[str, str]]:
        self._began = self._began or time.perf_counter()
        for _ in range(YIELDS):
            yield raw.CONTEXT
        self._left -= 1
        if not self._left:
            self.took = time.perf_counter() - self._began
            self._done.set()

    def wait(self) -> None:
        if not self._done.wait(PATIENCE):
            raise TimeoutError(f"{self._left} tasks are not done")


def contenders(kind: str) -> Sequence[Contender]:
    """List ours and the raw limits."""
    found = [
        Contender("pyasync", partial(reports, concurrency=1_000)),
        Contender("raw 100", partial(raw.reports, rounds=YIELDS, batch=100)),
        Contender("raw 1,000", partial(raw.reports, rounds=YIELDS)),
    ]
    bare = [Contender("bare 1,000", partial(raw.reports, rounds=YIELDS, bare=True))]
    return [*found, *(bare if kind == "postgresql" else [])]


QUESTION = Question(
    name="reports",
    unit="reports/s",
    contenders=contenders,
    sizes=Sizes(small=20, usual=1_000, full=1_000),
    targets=(
        Target("pyasync", at_least=0.4, of="raw 1,000", databases=("postgresql",)),
        Target("pyasync", of="raw 1,000", databases=("mariadb", "sqlite")),
        Target("pyasync", of="bare 1,000"),
    ),
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
