"""Where threads and the loop meet: calls that threads leave for the loop, made there in order by one task."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import anyio

log = logging.getLogger("pyasync.runtime")


class Inbox:
    """Takes calls from any thread without waiting; made on the loop on which `run` runs, asyncio's or trio's.

    One task makes them, since a task group takes new tasks only from a task; many calls that come at once cost one hop.
    """

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._filled = anyio.Event()
        self._wake_loop = soon_on_this_loop()
        self._woken = False
        self._closed = False

    def put(self, fn: Callable[..., Any], *args: Any) -> None:
        """Have `fn(*args)` called on the loop soon; after its end, never."""
        self._calls.append((fn, args))
        if not self._woken:
            self._woken = True
            self._ring()

    def close(self) -> None:
        """Make `run` return after the calls that are waiting."""
        self._closed = True
        self._ring()

    async def run(self) -> None:
        """Make calls until closed."""
        while not self._closed:
            await self._filled.wait()
            self._filled = anyio.Event()
            self._woken = False  # before the calls are taken: one that comes later rings again
            while self._calls:
                fn, args = self._calls.popleft()
                self._call(fn, args)

    def _call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            fn(*args)
        except Exception:
            log.exception("a call on the loop failed")

    def _ring(self) -> None:
        try:
            self._wake_loop(self._set)
        except RuntimeError:  # the loop is closed, or trio's run is over: nobody is left to tell
            log.debug("the loop is gone")

    def _set(self) -> None:
        self._filled.set()


def soon_on_this_loop() -> Callable[..., Any]:
    """Return what calls a function on the loop of this thread, from any thread, without waiting for it."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return trio.lowlevel.current_trio_token().run_sync_soon  # type: ignore[no-any-return]
    return asyncio.get_running_loop().call_soon_threadsafe
