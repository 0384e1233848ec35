"""Wait until something is so, with a deadline: the only sleeps of the tests are in here."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")

FIRST_PAUSE = 0.002
LONGEST_PAUSE = 0.05


def until(condition: Callable[[], T], timeout: float = 10.0, what: str = "") -> T:
    """Call `condition` until it returns something truthy, and return that; fail after `timeout` seconds.

    `what` ends the sentence "waited 10 s for ...". What `condition` raises is not caught.
    """
    waiting = _Waiting(condition, timeout, what)
    while not (value := condition()):
        time.sleep(waiting.pause(value))
    return value


async def auntil(condition: Callable[[], T | Awaitable[T]], timeout: float = 10.0, what: str = "") -> T:
    """Do as `until` does, on asyncio or trio; `condition` may be a coroutine function."""
    waiting = _Waiting(condition, timeout, what)
    while not (value := await _outcome(condition)):  # noqa: ASYNC110 - a database sets no event
        await anyio.sleep(waiting.pause(value))
    return value


async def _outcome(condition: Callable[[], T | Awaitable[T]]) -> T:
    value = condition()
    return await value if isinstance(value, Awaitable) else value


class _Waiting:
    """How long to pause next, and what to say when there is no time left."""

    def __init__(self, condition: Callable[[], object], timeout: float, what: str) -> None:
        self._what = what or getattr(condition, "__qualname__", repr(condition))
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._pause = FIRST_PAUSE

    def pause(self, last: object) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"waited {self._timeout:g} s for {self._what}; last seen: {last!r}")
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return min(pause, left)
