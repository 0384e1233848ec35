"""Holds user code at a point until a test lets it go on."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from tests.waiting import auntil, until

PATIENCE = 40.0


class Gate:
    """User code passes it once the test has opened it; `reached` counts those who came."""

    def __init__(self) -> None:
        self.reached = 0
        self._opened = threading.Event()

    def pass_(self) -> None:
        """Wait in a thread."""
        self.reached += 1
        assert self._opened.wait(PATIENCE), "nobody has opened the gate"

    async def apass(self) -> None:
        """Wait on a loop."""
        self.reached += 1
        await auntil(self._opened.is_set, PATIENCE, "the gate to be opened")

    def open(self) -> None:
        """Let everybody pass."""
        self._opened.set()

    def wait_for(self, number: int = 1) -> None:
        """Block until that many have come."""
        until(lambda: self.reached >= number, PATIENCE, f"user code to reach the gate; {self.reached} of {number} did")


def as_async(function: Callable[[Any], Iterator[Any]]) -> Callable[[Any], AsyncIterator[Any]]:
    """Return an async generator function that does as a sync one, which must not wait."""

    async def call(run: Any) -> AsyncIterator[Any]:
        generator = function(run)
        try:
            for value in generator:
                yield value
        finally:
            generator.close()

    return call


def counting(kind: str, gate: Gate, at: int = 2, to: int = 4) -> Any:
    """Return a generator function that counts from its context, and waits at the gate before the report `at`."""

    def sync(run: Any) -> Iterator[Any]:
        for number in range(run.context or 0, to):
            if number + 1 == at:
                gate.pass_()
            yield number + 1

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        for number in range(run.context or 0, to):
            if number + 1 == at:
                await gate.apass()
            yield number + 1

    return sync if kind == "sync" else asynchronous
