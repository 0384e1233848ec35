"""The fenced writes of running tasks, many in one statement.

`HELD` is the one guard of them all: a write counts only for the fence that the claim drew, for the very report that it
follows, and while the task is running or deleting. The next status is computed from the row's own mark inside the
statement, so that a pause or delete that arrives in between is never overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import select

from pyasync.domain.queues import PROBATION_LOSSES, queue_of
from pyasync.domain.states import ENDED, OWNED, Event, Mark, Stage, Status
from pyasync.domain.task import Claim
from pyasync.domain.transitions import TABLE
from pyasync.store.database import Tx
from pyasync.store.dialects import Batch
from pyasync.store.tables import tables


def _quoted(words: Iterable[str]) -> str:
    return ", ".join(f"'{word}'" for word in sorted(words))


HELD = f"task.fence = v.fence and task.seq = v.seq and task.stage in ({_quoted(stage.value for stage in OWNED)})"
ENDINGS = (Event.SYS_PAUSE, Event.TASK_FINISHED, Event.TASK_FAILED, Event.SYS_RETRY)


@dataclass(slots=True)
class Write:
    """One fenced write: a report (`event` None), or the end of a run. What is None stays as it is in the row.

    `errors` is what is stored if the attempt failed, `cancelled` if the task's mark turns out to be cancel. `delay`
    (seconds) is when a retry may be claimed. `new_fence` is for a run that may still be writing.
    """

    claim: Claim
    event: Event | None = None
    context: str | None = None
    version: int | None = None
    progress: float | None = None
    message: str | None = None
    result: str | None = None
    errors: str | None = None
    cancelled: str | None = None
    attempt: int | None = None
    delay: float | None = None
    note: str | None = None
    removes: bool = False
    new_fence: UUID | None = None

    @property
    def size(self) -> int:
        """About how many characters it sends."""
        texts = (self.context, self.message, self.result, self.errors, self.cancelled)
        return 300 + sum(len(text) for text in texts if text)


class Fate(Enum):
    """What became of a write."""

    STORED = "stored"
    UNSTORED = "unstored"
    """The claim stands, but the row was locked, or the write never arrived: send it again."""
    BEHIND = "behind"
    """The claim stands, but the database has fewer reports than were acknowledged: it went back in time."""
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a write; `mark` is what is wanted of a task that goes on after a report."""

    fate: Fate
    mark: Mark = Mark.NONE
    seq: int = 0
    read: bool = False
    """Found by reading: another statement stored it, if it is stored."""


_STORED = {mark.value: Written(Fate.STORED, mark) for mark in Mark}


def write(tx: Tx, writes: Sequence[Write]) -> list[Written]:
    """Store a group of writes, at most one for each task, without ever waiting for a row's lock."""
    done: dict[UUID, Written] = {}
    reports = [each for each in writes if each.event is None]
    removals = [each for each in writes if each.removes]
    if reports:
        _store(tx, _reports(tx.schema), reports, done)
    if removals:
        _store(tx, _removals(tx.schema), removals, done)
    for event in ENDINGS:
        if some := [each for each in writes if each.event is event and each.claim.task_id not in done]:
            _store(tx, _endings(tx.schema, event), some, done)
    return _judged(tx, writes, done)


def force(tx: Tx, ending: Write) -> Written:
    """Store the end of a run that may still be writing: under the row's lock, after whatever it stored last."""
    column, claim = tx.t.task.c, ending.claim
    query = select(column.seq).where(column.id == claim.task_id, column.fence == claim.fence)
    seq = tx.execute(query.with_for_update(skip_locked=True)).scalar_one_or_none()
    if seq is not None:
        return write(tx, [replace(ending, claim=claim.after(seq))])[0]
    return read_back(tx, ending)


def read_back(tx: Tx, doubtful: Write) -> Written:
    """Find out by reading what became of one write whose reply was lost."""
    return _read_back(tx, [doubtful])[doubtful.claim.task_id]


def _store(tx: Tx, batch: Batch, writes: Sequence[Write], done: dict[UUID, Written]) -> None:
    rows = [_row(batch, each) for each in writes]
    done.update({task_id: _STORED[row["mark"]] for task_id, row in tx.dialect.write(tx.connection, batch, rows)})


def _judged(tx: Tx, writes: Sequence[Write], done: dict[UUID, Written]) -> list[Written]:
    doubtful = [each for each in writes if each.claim.task_id not in done]
    known = done | _read_back(tx, doubtful) if doubtful else done
    return [known[each.claim.task_id] for each in writes]


def _read_back(tx: Tx, writes: Sequence[Write]) -> dict[UUID, Written]:
    """Find out by reading what became of writes that changed no row, or whose reply was lost."""
    column = tx.t.task.c
    query = select(column.id, column.fence, column.seq, column.stage, column.mark)
    rows = {row.id: row for row in tx.execute(query.where(column.id.in_([each.claim.task_id for each in writes])))}
    judged = {each.claim.task_id: judge(each, rows.get(each.claim.task_id)) for each in writes}
    return {task_id: replace(written, read=True) for task_id, written in judged.items()}


def judge(doubtful: Write, row: Any) -> Written:
    """Say what became of a write from the row as it is now: the protocol's read-back."""
    claim = doubtful.claim
    if row is None:
        return Written(Fate.STORED if doubtful.removes else Fate.LOST)
    # A run that is let go of may have written meanwhile: that its end is stored shows by the new fence alone.
    if row.fence == (doubtful.new_fence or claim.fence) and (doubtful.new_fence or row.seq == claim.seq + 1):
        return Written(Fate.STORED, Mark(row.mark))
    if row.fence != claim.fence or row.stage not in OWNED:
        return Written(Fate.LOST, Mark(row.mark))
    if row.seq == claim.seq or doubtful.new_fence:
        return Written(Fate.UNSTORED, Mark(row.mark))
    return Written(Fate.BEHIND if row.seq < claim.seq else Fate.LOST, Mark(row.mark), row.seq)


def dump_errors(errors: Sequence[dict[str, Any]]) -> str:
    """Return what is stored of a row's errors."""
    return json.dumps(errors)


# --- the statements

_FENCED = {"id": "id", "fence": "id", "seq": "int"}
_REPORTED = {"context": "text", "version": "int", "progress": "real", "message": "text", "result": "text"}
_ENDED = {"note": "text", "new_fence": "id", "removes": "text"}
_STOPPED = {"cancelled": "text"}
_FAILED = {"errors": "text"}
_RETRIED = {**_STOPPED, **_FAILED, "attempt": "int", "delay": "real"}
_BROUGHT: dict[Event, dict[str, str]] = {
    Event.SYS_PAUSE: _STOPPED,
    Event.TASK_FINISHED: {},
    Event.TASK_FAILED: _FAILED,
    Event.SYS_RETRY: _RETRIED,
}
"""What an end brings beside what any write may: each has a statement of its own, that compares no more than it must."""

_KEPT = {name: f"coalesce(v.{name}, task.{name})" for name in _REPORTED}


def _row(batch: Batch, write: Write) -> dict[str, Any]:
    """Return what a write brings; what it leaves out is null."""
    claim = write.claim
    row: dict[str, Any] = {"id": claim.task_id, "fence": claim.fence, "seq": claim.seq}
    for name in batch.columns:
        if name not in _FENCED and (value := getattr(write, name)) is not None and value is not False:
            row[name] = value
    return row


@lru_cache
def _reports(schema: str | None) -> Batch:
    assign = _KEPT | {"seq": "task.seq + 1", "losses": "0", "note": "null"}
    return Batch(tables(schema).task, _FENCED | _REPORTED, HELD, assign)


@lru_cache
def _removals(schema: str | None) -> Batch:
    """Remove rows at the end of their run, unless they were marked for deletion, which runs their clean-up."""
    guard = f"{HELD} and (task.stage = '{Stage.DELETING.value}' or task.mark <> '{Mark.DELETE.value}')"
    return Batch(tables(schema).task, _FENCED, guard, None)


@lru_cache
def _endings(schema: str | None, event: Event) -> Batch:
    """Write the other ends. A removal that another's lock kept out is one of them only if its row goes to clean-up."""
    cleaned = f"task.stage = '{Stage.RUNNING.value}' and task.mark = '{Mark.DELETE.value}'"
    guard = f"{HELD} and (v.removes is null or {cleaned}) and {_when(event, lambda status: True)}"
    columns = _FENCED | _REPORTED | _ENDED | _BROUGHT[event]
    return Batch(tables(schema).task, columns, guard, _ending_assignments(event))


def _ending_assignments(event: Event) -> dict[str, str]:
    brings = _BROUGHT[event]
    claimable = _when(event, lambda status: queue_of(status) is not None)
    pending = _when(event, lambda status: status.stage is Stage.PENDING)
    ended = _when(event, lambda status: status.stage in ENDED)
    unkeyed = _when(event, lambda status: status.stage in ENDED or status.mark is Mark.DELETE)
    deleted = f"(was.stage = '{Stage.RUNNING.value}' and was.mark = '{Mark.DELETE.value}')"
    waits = f"(v.delay is not null and {pending} and not {deleted})" if "delay" in brings else "1 = 0"
    later = "{after:v.delay}" if "delay" in brings else "task.due_at"
    return _KEPT | {
        "seq": "task.seq + 1",
        "fence": "coalesce(v.new_fence, task.fence)",
        "node_id": "null",
        "errors": _errors(brings),
        "attempt": f"case when {deleted} then 1 else {_brought('attempt', brings)} end",
        "losses": f"case when {deleted} then 0 else task.losses end",
        "note": "v.note",
        "queue": f"case when {waits} then null when {claimable} then {_queue_case(event, deleted)} else null end",
        "due_at": f"case when {waits} then {later} else null end",
        "run_at": f"case when {deleted} then null when {waits} then {later} else task.run_at end",
        "ready_at": f"case when {claimable} then {{now}} else task.ready_at end",
        "done_at": f"case when {ended} then {{now}} else null end",
        "purge_at": f"case when {ended} then {{after:task.keep}} else null end",
        "held_key": f"case when {unkeyed} then null else task.held_key end",
        "stage": _next(event, lambda status: status.stage.value, "was.stage"),
        "mark": _next(event, lambda status: status.mark.value, "was.mark"),
    }


def _errors(brings: dict[str, str]) -> str:
    if "cancelled" not in brings:
        return _brought("errors", brings)
    cancelled = f"case when was.mark = '{Mark.CANCEL.value}' then v.cancelled end"
    return f"coalesce({cancelled}, {_brought('errors', brings)})"


def _brought(column: str, brings: dict[str, str]) -> str:
    return f"coalesce(v.{column}, task.{column})" if column in brings else f"task.{column}"


def _cells(event: Event) -> list[tuple[Status, Status]]:
    """List what the table says of an end of a run, but for removals."""
    return [
        (status, target)
        for status, row in TABLE.items()
        if status.stage in OWNED and (target := row.get(event)) is not None
    ]


def _is(status: Status) -> str:
    return f"(was.stage = '{status.stage.value}' and was.mark = '{status.mark.value}')"


def _when(event: Event, holds: Callable[[Status], bool]) -> str:
    """Render: the status after the event is one for which this holds."""
    cells = [_is(status) for status, target in _cells(event) if holds(target)]
    return f"({' or '.join(cells)})" if cells else "1 = 0"


def _next(event: Event, column: Callable[[Status], str], current: str) -> str:
    values: dict[str, list[str]] = {}
    for status, target in _cells(event):
        values.setdefault(column(target), []).append(_is(status))
    arms = " ".join(f"when {' or '.join(cells)} then '{value}'" for value, cells in values.items())
    return f"case {arms} else {current} end"


def _queue_case(event: Event, deleted: str) -> str:
    """Render the queue of a task that can be claimed; one that goes to clean-up has killed no node with that."""
    in_delete = _when(event, lambda status: status.mark is Mark.DELETE)
    suspect = f"task.losses >= {PROBATION_LOSSES} and not {deleted}"
    return f"case when {suspect} then 'probation' when {in_delete} then 'delete' else 'run' end"
