"""What do long tasks cost while they run: so many at once on one node, each of which yields once a minute?

Memory is what the node's process has grown by since it had none of them, CPU is its own, the database's not counted.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from benchmarks.common import Contender, Place, Question, Sizes, Target, main, prepare
from benchmarks.processes import Process
from pyasync import Client, Node, Registry
from pyasync.aio import Run
from tests.waiting import until

PERIOD = 60.0
PATIENCE = 300.0

registry = Registry()
_begun = _reports = _lease_writes = 0


@registry.task("long")
async def _long(run: Run[Any]) -> AsyncIterator[Any]:
    global _begun, _reports
    _begun += 1
    pause = random.uniform(0.0, PERIOD)
    while not await run.stop.wait(pause):
        yield {"i": _reports}
        _reports += 1
        pause = PERIOD


def long_tasks(place: Place, size: int) -> dict[str, float]:
    """Watch them for some beats."""
    prepare(place)
    with Process(_node, place.url, size) as node, Client(place.url) as client:
        empty = node.call(_memory)
        prepare(place, "long", size)
        until(lambda: node.call(_running) == size, PATIENCE, "all tasks to run")
        beats = max(1, min(size // 500, 10))
        _await_beats(client, 1)
        before = node.call(_look)
        _await_beats(client, beats)
        after = node.call(_look)
        seconds = after.time - before.time
        figures = {
            "KiB/run": (node.call(_memory) - empty) / 1024 / size,
            "% of a core": 100 * (after.cpu - before.cpu) / seconds,
            "lease writes/beat": (after.lease_writes - before.lease_writes) / beats,
            "reports/s": (after.reports - before.reports) / seconds,
        }
        node.kill()  # handing all over is not the question
    return figures


def _await_beats(client: Client, number: int) -> None:
    for _ in range(number):
        last = client.get_nodes()[0].beat_at
        until(lambda last=last: client.get_nodes()[0].beat_at != last, PATIENCE, "the next beat")  # type: ignore[misc]


def _node(url: str, concurrency: int) -> Node:
    event.listen(Engine, "before_cursor_execute", _note)
    return Node(url, registry, concurrency=concurrency)


def _note(connection: object, cursor: object, statement: str, *_: object) -> None:
    global _lease_writes
    _lease_writes += statement.lower().startswith("update pyasync_node")


def _running(node: Node) -> int:
    return _begun


@dataclass(frozen=True)
class _Look:
    """What the node's process has used up to a moment."""

    time: float
    cpu: float
    lease_writes: int
    reports: int


def _look(node: Node) -> _Look:
    return _Look(time.monotonic(), time.process_time(), _lease_writes, _reports)


def _memory(node: Node) -> int:
    """Return the bytes of memory that the process has now; where that cannot be known, the most that it ever had."""
    gc.collect()
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        return int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def contenders(kind: str) -> Sequence[Contender]:
    """Ours alone."""
    return [Contender("pyasync", long_tasks)]


QUESTION = Question(
    name="memory",
    unit="KiB/run",
    contenders=contenders,
    sizes=Sizes(small=200, usual=2_000, full=10_000),
    targets=(
        Target("pyasync", at_most=15.0),
        Target("pyasync", at_most=10.0, figure="% of a core"),
        Target("pyasync", at_most=1.0, figure="lease writes/beat"),
    ),
    runs=1,
    less_is_better=True,
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
