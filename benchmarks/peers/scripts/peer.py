"""What the scripts share. They run in their library's environment: nothing here may import pyasync."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import psycopg

BULK = 1_000
WARM_UP = 20
FIRST = 3
IDLE = 0.05
PATIENCE = 600.0

Figures = float | dict[str, float]


def main(run: Callable[..., Figures], **questions: Callable[[str, int], Any]) -> None:
    """Answer the question on the command line (DSN and size follow it) in one line of JSON; `run` runs a coroutine."""
    threading.Thread(target=_end_with_our_parent, daemon=True).start()
    question, dsn, size = sys.argv[1:]
    answer = questions[question.replace(" ", "_")](dsn, int(size))
    print(json.dumps(run(answer) if inspect.iscoroutine(answer) else answer), flush=True)


def _end_with_our_parent() -> None:
    """Read a pipe of which our parent has the other end: it is closed when the parent has ended, however that was."""
    os.read(0, 1)
    os._exit(1)


class Stopwatch:
    """Runs from the first claim to the commit of the last finish."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._left = size
        self._lock = threading.Lock()
        self._began: float | None = None
        self._took = 0.0
        self.stopped = threading.Event()

    def claim(self, *_: object) -> None:
        if self._began is None:
            self._began = time.perf_counter()

    def finish(self, count: int = 1) -> None:
        with self._lock:
            self._left -= count
            if self._left == 0:
                self._took = time.perf_counter() - (self._began or 0.0)
                self.stopped.set()

    def rate(self) -> float:
        """Wait for the last finish and return the tasks a second."""
        if not self.stopped.wait(PATIENCE):
            raise TimeoutError(f"{self._left} tasks have not finished")
        return self.size / self._took


def watch(
    owner: Any, method: str, *, before: Callable[..., object] | None = None, after: Callable[..., object] | None = None
) -> None:
    """Be told before an object's method is called, with its arguments, and after it, with what it returned, too."""
    call = getattr(owner, method)

    async def watched_async(*args: Any, **named: Any) -> Any:
        if before:
            before(*args)
        result = await call(*args, **named)
        if after:
            after(result, *args)
        return result

    def watched(*args: Any, **named: Any) -> Any:
        if before:
            before(*args)
        result = call(*args, **named)
        if after:
            after(result, *args)
        return result

    setattr(owner, method, watched_async if inspect.iscoroutinefunction(call) else watched)


def bulks(size: int) -> Iterator[range]:
    """The tasks of each call that creates many."""
    return (range(start, min(size, start + BULK)) for start in range(0, size, BULK))


async def rate(size: int, work: Awaitable[object]) -> float:
    """Tasks a second of something that handles so many."""
    began = time.perf_counter()
    await work
    return size / (time.perf_counter() - began)


async def latencies(create: Callable[[], Awaitable[object]], first_lines: asyncio.Queue[float], size: int) -> Figures:
    """Create tasks that put the time of their first line into a queue, one at a time, with an idle worker."""
    seconds = []
    for _ in range(FIRST + size):
        await asyncio.sleep(pause())
        began = time.perf_counter()
        await create()
        seconds.append(await first_lines.get() - began)
    return summary(seconds)


def pause(spread: float = IDLE) -> float:
    """How long to leave a worker idle between two tasks; `spread` is its polling interval, if it polls."""
    return IDLE + random.uniform(0.0, spread)


def summary(seconds: list[float]) -> Figures:
    """The median and the 95th percentile, less the first few, which warmed up."""
    found = [1000 * each for each in seconds[FIRST:]]
    p95 = statistics.quantiles(found, n=20, method="inclusive")[-1] if len(found) > 1 else found[0]
    return {"p50, ms": statistics.median(found), "p95, ms": p95}


def check(dsn: str, query: str, expected: int) -> None:
    """Make sure that the database says so, too."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()
    if row is None or row[0] != expected:
        raise AssertionError(f"{query}: {row} instead of {expected}")
