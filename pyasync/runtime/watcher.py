"""Sees what is wanted of the runs on this node: marks that users set, deadlines, and stops that were not heeded."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

from pyasync.context import TIMEOUT
from pyasync.runtime.runs import Execution, Runs
from pyasync.runtime.service import Service
from pyasync.settings import Settings
from pyasync.store import claims
from pyasync.store.database import Database

LEAST_INTERVAL = 0.03
"""Seconds between two looks at the marks, however many hints come."""


class Watcher(Service):
    """Asks runs to stop, and lets go of those that did not within `stop_grace`; idle while nothing runs.

    `stop` asks a run to stop, `let_go` ends one that does not, `look` is called each round for the node's own checks.
    """

    name = "watcher"

    def __init__(
        self,
        *,
        database: Database,
        runs: Runs,
        settings: Settings,
        node_id: Callable[[], UUID],
        stop: Callable[[Execution, str], None],
        let_go: Callable[[Execution], None],
        look: Callable[[], None],
    ) -> None:
        super().__init__()
        self._database = database
        self._runs = runs
        self._interval = settings.poll_interval
        self._node_id = node_id
        self._stop_run = stop
        self._let_go = let_go
        self._look = look
        self._next_poll = 0.0
        self._last_poll = 0.0

    def notice(self) -> None:
        """Read the marks soon; a database that cannot tell what has changed gives such hints at any change."""
        self._next_poll = min(self._next_poll, self._last_poll + LEAST_INTERVAL)
        self.wake()

    def tick(self) -> float:
        """Enforce deadlines and graces, then read the marks; return when the next of these is due."""
        self._look()
        if len(self._runs) == 0:
            return self._interval  # not for ever: runs that are launched one on the heels of the other may not wake us
        for execution in self._runs:
            self._enforce(execution, time.monotonic())
        if time.monotonic() >= self._next_poll:
            self._read_marks()
        return max(0.0, self._next_due() - time.monotonic())

    def _enforce(self, execution: Execution, now: float) -> None:
        if execution.deadline is not None and now >= execution.deadline:
            self._stop_run(execution, TIMEOUT)
        if execution.stop_by is not None and now >= execution.stop_by and not execution.cancelled:
            self._let_go(execution)

    def _read_marks(self) -> None:
        self._last_poll = time.monotonic()
        self._next_poll = self._last_poll + self._interval
        for row in self._database.attempt_single(claims.marked, self._node_id()):
            execution = self._runs.find(row.id, row.fence)
            if execution is not None and not execution.stop.is_set():
                self._stop_run(execution, row.mark)

    def _next_due(self) -> float:
        times = [self._next_poll]
        for execution in self._runs:
            waits_for = execution.stop_by if execution.stop.is_set() else execution.deadline
            if waits_for is not None and not execution.cancelled:
                times.append(waits_for)
        return min(times)
