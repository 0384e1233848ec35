"""How much faster do more node processes work, with tasks of 1 ms of CPU each, of one user or many, in groups or not?

The database shares the cores with them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.synchronize import Event

from benchmarks.common import Contender, Place, Question, Sizes, Target, batches, connect, main, prepare
from benchmarks.drain import check_finished, wait_for_the_last_finish
from benchmarks.processes import SPAWN, Process
from pyasync import Client, NewTask, Node, Registry

CPU = 0.001
CONCURRENCY = 100
PATIENCE = 120.0
USERS = 100
GROUPS = 10

registry = Registry()


class Left:
    """Counts, for all processes together and without the database, how many tasks have not begun."""

    def __init__(self, size: int) -> None:
        self.first, self.last = SPAWN.Event(), SPAWN.Event()
        self._size, self._left = size, SPAWN.Value("q", size)

    def begin(self) -> None:
        """Note that one begins."""
        with self._left.get_lock():
            self._left.value -= 1
            left = self._left.value
        if left == self._size - 1:
            self.first.set()
        if left == 0:
            self.last.set()


_left: Left
"""Of this process, which is given it before a task can begin."""


@registry.task("spin")
async def _spin() -> float:
    _left.begin()
    enough = time.thread_time() + CPU
    while (now := time.thread_time()) < enough:
        pass
    return now


def rate(place: Place, size: int, nodes: int, users: int = 1, groups: int = 1) -> float:
    """Return the tasks a second of so many node processes, from the first that begins to the last that is finished."""
    _create(place, size, users, groups)
    left = Left(size)
    with ExitStack() as stack, connect(place.url) as connection:
        processes = [Process(_node, place.url, left, groups) for _ in range(nodes)]
        for process in processes:
            stack.enter_context(process)
        for process in processes:
            process.ask(_start)
        _await(left.first)
        began = time.monotonic()
        _await(left.last)
        wait_for_the_last_finish(connection)
        took = time.monotonic() - began
        for process in processes:
            process.answer()
        check_finished(place, "spin", size)
    return size / took


def _create(place: Place, size: int, users: int, groups: int) -> None:
    prepare(place)
    with Client(place.url, strict=False) as client:
        for numbers in batches(size):
            client.create_tasks(
                [NewTask(type="spin", user=f"user {n % users}", group=f"group {n % groups}") for n in numbers]
            )


@contextmanager
def _node(url: str, left: Left, groups: int) -> Iterator[Node]:
    """Give a node that has not started yet: imports and the like are done when it does."""
    global _left
    _left = left
    only = None if groups == 1 else [f"group {n}" for n in range(groups)]
    node = Node(url, registry, concurrency=CONCURRENCY, groups=only)
    yield node
    node.stop()


def _start(node: Node) -> None:
    node.start()


def _await(event: Event) -> None:
    if not event.wait(PATIENCE):
        raise TimeoutError("the tasks do not begin")


def contenders(kind: str) -> Sequence[Contender]:
    """Ours, with more and more processes."""
    return [
        Contender("1 node", partial(rate, nodes=1)),
        Contender("2 nodes", partial(rate, nodes=2)),
        Contender("4 nodes", partial(rate, nodes=4)),
        Contender(f"2 nodes, {USERS} users", partial(rate, nodes=2, users=USERS)),
        Contender(f"2 nodes, {GROUPS} groups", partial(rate, nodes=2, groups=GROUPS)),
    ]


QUESTION = Question(
    name="scale",
    unit="tasks/s",
    contenders=contenders,
    sizes=Sizes(small=50, usual=2_000, full=20_000),
    targets=(Target("2 nodes", at_least=1.6, of="1 node"),),
    runs=2,
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
