"""`run.commit`: user code's own writes and the report in one transaction, the guarded write last."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from pyasync.domain.report import as_report
from pyasync.errors import ClaimLost, DatabaseUnavailable
from pyasync.runtime.endings import Endings
from pyasync.runtime.runs import Execution, Runs
from pyasync.store import writes
from pyasync.store.database import Database
from pyasync.store.writes import Fate, Write, Written

FIRST_DELAY, LONGEST_DELAY = 0.02, 1.0

AT_ONCE = 2
"""Commits at the same time: fewer than the pool's connections, so that `work` may call verbs that need one of their own."""


class _Refused(Exception):
    """The guarded write changed no row: roll everything back."""

    def __init__(self, written: Written) -> None:
        super().__init__(written)
        self.written = written


class Commits:
    """Commits what runs write themselves. `lost` tells a run that its task is no longer its own."""

    def __init__(
        self,
        *,
        database: Database,
        runs: Runs,
        endings: Endings,
        lost: Callable[[Execution], None],
        on_room: Callable[[], None],
    ) -> None:
        self._database = database
        self._runs = runs
        self._endings = endings
        self._lost = lost
        self._on_room = on_room
        self._places = threading.BoundedSemaphore(AT_ONCE)

    def commit(self, execution: Execution, report: Any, work: Callable[[Any], Any]) -> Any:
        """Store `work`'s writes and the report, or neither; blocks until that is known. See `Run.commit`."""
        with execution.writing:
            if execution.let_go or execution.ended:
                raise ClaimLost(execution.claim.task_id)
            write = self._endings.report(execution, as_report(report))
            value, written = self._until_known(execution, write, work)
            self._note(execution, write, written)
            return value

    def _until_known(self, execution: Execution, write: Write, work: Callable[[Any], Any]) -> tuple[Any, Written]:
        delay, value, in_doubt = FIRST_DELAY, None, False
        while True:
            try:
                if in_doubt and (known := self._known(write)):
                    return value, known
                in_doubt = True
                value, written = self._once(write, work)
                return value, written
            except _Refused as refused:
                if refused.written.fate is not Fate.UNSTORED:
                    return value, refused.written
            except Exception as error:
                if not (self._database.is_transient(error) or isinstance(error, DatabaseUnavailable)):
                    raise
            if execution.let_go:
                raise ClaimLost(execution.claim.task_id)
            time.sleep(delay)
            delay = min(LONGEST_DELAY, delay * 2)

    def _once(self, write: Write, work: Callable[[Any], Any]) -> tuple[Any, Written]:
        with self._places, self._database.guarded() as tx:
            value = work(tx.connection)
            written = writes.write(tx, [write])[0]
            if written.fate is not Fate.STORED:
                raise _Refused(written)
        return value, written

    def _known(self, write: Write) -> Written | None:
        """Read back before `work` is called again: the COMMIT whose reply was lost may have been stored."""
        with self._database.transaction() as tx:
            written = writes.read_back(tx, write)
        return None if written.fate is Fate.UNSTORED else written

    def _note(self, execution: Execution, write: Write, written: Written) -> None:
        if written.fate is not Fate.STORED:
            self._lost(execution)
            raise ClaimLost(execution.claim.task_id)
        execution.claim = execution.claim.after(execution.claim.seq + 1)
        if write.event is not None and self._runs.ended(execution):
            self._on_room()
