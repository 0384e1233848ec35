"""How long after SIGKILL of a node's process does its task begin on another node?

One task runs on one of two nodes, whose process is killed; then the other one is the victim, beside a new node.
"""

from __future__ import annotations

import contextlib
import logging
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

from benchmarks.common import Contender, Place, Question, Sizes, Target, main, p95, prepare
from benchmarks.processes import Process
from pyasync import Client, Node, Registry
from pyasync.aio import Run

PATIENCE = 60.0
LIVED = (1.5, 2.5)
"""Seconds for which two nodes live side by side before one is killed: each looks at the other every 0.4 s."""

registry = Registry()
_begun: SimpleQueue[float] = SimpleQueue()


async def _long(run: Run[Any]) -> AsyncIterator[Any]:
    _begun.put(time.monotonic())
    yield {"i": 1}
    await run.stop


registry.register_task("long", _long, max_losses=None)


def kills(place: Place, size: int, **settings: Any) -> dict[str, float]:
    """Return the median and the 95th percentile of so many kills, in seconds."""
    prepare(place)
    seconds = []
    with contextlib.ExitStack() as stack, Client(place.url) as client:
        victim = stack.enter_context(Process(_node, place.url, settings))
        client.create_task("long")
        victim.call(_first_line)
        for _ in range(size):
            heir = stack.enter_context(Process(_node, place.url, settings))
            time.sleep(random.uniform(*LIVED))
            killed = victim.kill()
            seconds.append(heir.call(_first_line) - killed)
            victim = heir
    return {"median, s": statistics.median(seconds), "p95, s": p95(seconds)}


def _node(url: str, settings: dict[str, Any]) -> Node:
    logging.getLogger("pyasync").setLevel(logging.ERROR)  # that nodes are lost is no news here
    return Node(url, registry, **settings)


def _first_line(node: Node) -> float:
    return _begun.get(timeout=PATIENCE)


def contenders(kind: str) -> Sequence[Contender]:
    """Ours as it comes, and when nothing but the lease tells."""
    return [
        Contender("pyasync", kills),
        Contender("pyasync, lease of 3 s alone", partial(kills, lease=3.0, fast_detection=False), share=0.4),
    ]


QUESTION = Question(
    name="takeover",
    unit="median, s",
    contenders=contenders,
    sizes=Sizes(small=1, usual=5, full=30),
    targets=(
        Target("pyasync", at_most=1.5),
        Target("pyasync", at_most=3.0, figure="p95, s"),
        Target("pyasync, lease of 3 s alone", at_most=6.0, figure="p95, s"),
    ),
    runs=1,
    less_is_better=True,
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
