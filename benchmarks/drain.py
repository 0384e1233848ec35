"""How many small tasks does one node run a second, from the first to the last committed one?"""

from __future__ import annotations

import time

from benchmarks.common import main
from pyasync import NewTask, Node, Registry, State
from tests.waiting import until

registry = Registry()


@registry.task("noop")
async def noop(number: int) -> int:
    return number


def measure(url: str, size: int) -> float:
    """Return tasks a second."""
    with Node(url, registry, migrate="auto", concurrency=100, groups=["none"]) as creating:
        creating.create_tasks([NewTask(type="noop", arguments=number) for number in range(size)])
    node = Node(url, registry, concurrency=100)
    began = time.perf_counter()
    with node:
        until(lambda: node.count_tasks().get(State.FINISHED, 0) == size, timeout=600, what="the last task")
        took = time.perf_counter() - began
        node.delete_tasks(everything=True)
        until(lambda: not node.get_tasks(include_deleting=True), timeout=600, what="an empty table")
    return size / took


if __name__ == "__main__":
    main("drain: small async tasks on one node", "tasks/s", measure, size=5_000)
