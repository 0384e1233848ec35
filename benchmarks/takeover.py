"""How long after SIGKILL of a node's process does its task begin on another node?

One task runs on one of two nodes, whose process is killed; then the other one is the victim, beside a new node.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Self

from benchmarks.common import Contender, Place, Question, Sizes, Target, main, prepare
from pyasync import Client, Node, Registry
from pyasync.aio import Run

PATIENCE = 60.0
LIVED = (1.5, 2.5)
"""Seconds for which two nodes live side by side before one is killed: each looks at the other every 0.4 s."""

SPAWN = multiprocessing.get_context("spawn")
"""How processes are started: afresh, as on any machine, with nothing inherited."""


class Process:
    """Something that is entered in a process of its own, such as a node; functions can be called with it there.

    with Process(make_node, place.url) as node:
        seconds = node.call(cpu)        # a module's function, called with what `make_node` returned

    The process starts at once: several may do so side by side before the first is waited for.
    """

    def __init__(self, make: Callable[..., AbstractContextManager[Any]], *arguments: Any) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function there, and return what it returned."""
        self.ask(function, *arguments)
        return self.answer()

    def ask(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin a call; `answer` waits for its end."""
        self._pipe.send((function, arguments))

    def answer(self) -> Any:
        """Return what the call returned that was asked for."""
        if not self._pipe.poll(PATIENCE):
            raise TimeoutError(f"process {self._process.pid} does not answer")
        return self._pipe.recv()  # EOFError: it has ended, and has said why

    def kill(self) -> float:
        """End it by SIGKILL; return when that was, by the monotonic clock, which all processes share."""
        at = time.monotonic()
        self._process.kill()
        self._process.join()
        return at

    def __enter__(self) -> Self:
        """Wait until it was entered there."""
        self.answer()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it there, and wait for the end of its process."""
        self._pipe.close()
        self._process.join(PATIENCE)
        self._process.kill()


def _serve(pipe: Connection, make: Callable[..., AbstractContextManager[Any]], arguments: Sequence[Any]) -> None:
    with make(*arguments) as entered:
        pipe.send(None)
        while True:
            try:
                function, rest = pipe.recv()
            except EOFError:
                return
            pipe.send(function(entered, *rest))


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


def p95(figures: Sequence[float]) -> float:
    """Return the 95th percentile."""
    return statistics.quantiles(figures, n=20, method="inclusive")[-1] if len(figures) > 1 else figures[0]


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
