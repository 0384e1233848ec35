"""How long does it take from before the call that creates a task to the first line of its body, on an idle node?"""

from __future__ import annotations

import statistics
import threading
import time

from benchmarks.common import main
from pyasync import Node, Registry
from tests.waiting import until

registry = Registry()
started = threading.Event()


@registry.task("start")
async def start() -> None:
    started.set()


def measure(url: str, size: int) -> float:
    """Return the median in milliseconds."""
    with Node(url, registry, migrate="auto") as node:
        latencies = [_once(node) for _ in range(size)]
        node.delete_tasks(everything=True)
        until(lambda: not node.get_tasks(include_deleting=True), timeout=60, what="an empty table")
    return statistics.median(latencies) * 1000


def _once(node: Node) -> float:
    started.clear()
    began = time.perf_counter()
    task = node.create_task("start")
    started.wait(10)
    took = time.perf_counter() - began
    node.wait_task(task, 10)
    return took


if __name__ == "__main__":
    main("latency: from create_task to the first line, within a process", "ms (median)", measure, size=100)
