"""`run.commit`: user code's own writes and the report in one transaction, the guarded write last."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from pyasync.domain.report import as_report
from pyasync.errors import BadArgument, ClaimLost, DatabaseUnavailable
from pyasync.runtime.endings import Endings
from pyasync.runtime.runs import Execution, Runs
from pyasync.store import writes
from pyasync.store.database import PATIENCE, Database
from pyasync.store.places import Places
from pyasync.store.writes import Fate, Write, Written

log = logging.getLogger("pyasync.task")

FIRST_DELAY, LONGEST_DELAY = 0.02, 1.0
TRIES = 3
"""How often `work` is begun at least before an error that should go away by itself is shown."""


class _Refused(Exception):
    """The guarded write changed no row: roll everything back."""

    def __init__(self, written: Written) -> None:
        super().__init__(written)
        self.written = written


class _Tries:
    """Counts the times that `work` was begun in vain, one after the other, while the database answered."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._begun: list[float] = []
        self.told = False

    def begin(self) -> None:
        self._begun.append(time.monotonic())

    def forget(self) -> None:
        self._begun.clear()

    def in_vain(self) -> bool:
        return len(self._begun) >= TRIES and time.monotonic() - self._begun[0] >= self._patience


class Commits:
    """Commits what runs write themselves.

    `beating` says whether the node's beats are stored, `lost` tells a run that its task is no longer its own.
    """

    def __init__(
        self,
        *,
        database: Database,
        runs: Runs,
        endings: Endings,
        beating: Callable[[], bool],
        stop: Callable[[Execution, str], None],
        lost: Callable[[Execution], None],
        on_room: Callable[[], None],
    ) -> None:
        self._database = database
        self._runs = runs
        self._endings = endings
        self._beating = beating
        self._stop_run = stop
        self._lost = lost
        self._on_room = on_room
        # Fewer at once than there are connections, so that `work` may call verbs that need one of their own.
        self._places = Places(max(1, database.connections - 1))

    def commit(self, execution: Execution, report: Any, work: Callable[[Any], Any]) -> Any:
        """Store `work`'s writes and the report, or neither; blocks until that is known. See `Run.commit`."""
        with execution.writing:
            if execution.let_go or execution.ended or execution.ending:
                raise ClaimLost(execution.claim.task_id)
            write = self._endings.report(execution, as_report(report))
            value, written = self._until_known(execution, write, work)
            self._note(execution, write, written)
            return value

    def _until_known(self, execution: Execution, write: Write, work: Callable[[Any], Any]) -> tuple[Any, Written]:
        delay = FIRST_DELAY
        doubtful: list[Any] = []  # what `work` returned each time that its transaction may have been stored
        # At least until a beat would have shown that the database takes nobody's writes.
        tries = _Tries(max(PATIENCE, self._endings.settings.lease / 2))
        while not execution.let_go:
            try:
                return self._once(write, work, doubtful, tries)
            except _Refused as refused:
                doubtful.pop()
                if refused.written.fate is not Fate.UNSTORED:
                    return _of_an_earlier_time(refused.written, doubtful)
            except Exception as error:
                if known := self._looked_up(write, error, tries):
                    return _of_an_earlier_time(known, doubtful)
            time.sleep(delay)
            delay = min(LONGEST_DELAY, delay * 2)
        raise ClaimLost(execution.claim.task_id)

    def _looked_up(self, write: Write, error: Exception, tries: _Tries) -> Written | None:
        """Find out what became of a write whose transaction failed: what `work` ran into may be the task's new owner.

        Raises what does not go away by itself: at once, or after some tries in vain while the database answers.
        """
        passes = self._database.is_transient(error) or isinstance(error, DatabaseUnavailable)
        try:
            known, answers = self._known(write), True
        except Exception:
            known, answers = None, False
        if known is None and not passes:
            raise error
        if not (answers and self._beating()):
            tries.forget()  # an outage is waited out, however long
        elif known is None and tries.in_vain():
            self._give_up(write, error, tries)
        return known

    def _give_up(self, write: Write, error: Exception, tries: _Tries) -> None:
        """Raise what does not go away; a full disk does, and beats may find room where `work` finds none."""
        if self._database.is_full(error):
            if not tries.told:
                facts = {"task_id": str(write.claim.task_id)}
                log.error("the database has no room for what work writes: it is tried again", extra=facts)
            tries.told = True
            return
        if not self._database.is_broken(error):
            raise error
        bounds = self._endings.settings
        raise BadArgument(
            f"the database ended the session of work {TRIES} times, and answers others: work may not pause for longer "
            f"than lease ({bounds.lease:g} s) between two statements, none of which may take longer than "
            f"database_timeout ({bounds.database_timeout:g} s) or be larger than max_allowed_packet; do what takes "
            "long before run.commit, or raise these settings"
        ) from error

    def _once(
        self, write: Write, work: Callable[[Any], Any], doubtful: list[Any], tries: _Tries
    ) -> tuple[Any, Written]:
        with self._places, self._database.guarded() as tx:
            tries.begin()
            value = work(tx.connection)
            self._database.check(tx)
            doubtful.append(value)
            written = writes.write(tx, [write])[0]
            # What was found by reading was not stored by this transaction: with its effects, they would be there twice.
            if written.fate is not Fate.STORED or written.read:
                raise _Refused(written)
        return value, written

    def _known(self, write: Write) -> Written | None:
        """Read back what became of a write; None if it is not stored and still may be."""
        with self._database.transaction() as tx:
            written = writes.read_back(tx, write)
        return None if written.fate is Fate.UNSTORED else written

    def _note(self, execution: Execution, write: Write, written: Written) -> None:
        if written.fate is Fate.BEHIND:
            execution.behind = True
            raise ClaimLost(execution.claim.task_id)
        if written.fate is not Fate.STORED:
            self._lost(execution)
            raise ClaimLost(execution.claim.task_id)
        execution.claim = execution.claim.after(execution.claim.seq + 1)
        if write.event is not None:
            if self._runs.ended(execution):
                self._on_room()
        elif (wish := execution.wish(written.mark)) is not None:
            self._stop_run(execution, wish)


def _of_an_earlier_time(written: Written, doubtful: list[Any]) -> tuple[Any, Written]:
    """Judge a write that was refused: what is stored already came late, from an earlier time, or from nobody we
    know.
    """
    if doubtful or written.fate is not Fate.STORED:
        return (doubtful or [None])[-1], written
    return None, Written(Fate.LOST, written.mark)
