"""The loop's signs of life: a blocked loop claims nothing, and what blocks it is logged."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable

log = logging.getLogger("pyasync.runtime")

FRESH = 0.1
"""Seconds for which an answer counts: a busy loop is not asked before every claim."""
PATIENCE = 0.2


class Pulse:
    """Asks the loop for an answer; `soon` calls something on it."""

    def __init__(self, stall_after: float) -> None:
        self._stall_after = stall_after
        self._soon: Callable[..., None] | None = None
        self._thread_id = 0
        self._answer = threading.Event()
        self._answered_at = 0.0
        self._asked_at: float | None = None
        self._logged = False

    def attach(self, soon: Callable[..., None]) -> None:
        """Use the loop that runs in this thread."""
        self._soon = soon
        self._thread_id = threading.get_ident()

    def alive(self) -> bool:
        """Whether the loop answers; waits a moment for it."""
        self.check()
        if time.monotonic() - self._answered_at < FRESH:
            return True
        self._ask()
        return self._answer.wait(PATIENCE)

    @property
    def stalled(self) -> bool:
        """Whether the loop has left a question unanswered for `stall_after` seconds."""
        return self._asked_at is not None and time.monotonic() - self._asked_at > self._stall_after

    def check(self) -> None:
        """Log, once a stall, the stack of what blocks the loop."""
        if self.stalled and not self._logged:
            self._logged = True
            frame = sys._current_frames().get(self._thread_id)
            stack = "" if frame is None else "".join(traceback.format_stack(frame))
            log.error("the event loop is blocked; this node claims no tasks meanwhile. It is here:\n%s", stack)

    def _ask(self) -> None:
        if self._asked_at is None and self._soon is not None:
            self._answer.clear()
            self._asked_at = time.monotonic()
            self._soon(self._reply)

    def _reply(self) -> None:
        self._asked_at, self._answered_at, self._logged = None, time.monotonic(), False
        self._answer.set()
