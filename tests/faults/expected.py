"""What becomes of tasks, in plain Python: the rows as the design says that they are, beside those in the database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from uuid import UUID

from pyasync import InvalidTransition, KeyTaken, NewTask, State, TaskNotFound
from pyasync.domain.failures import CANCELLED, CRASH_LOOP, KEPT, NODE_LOST
from pyasync.domain.queues import Queue, queue_of
from pyasync.domain.states import ENDED, OWNED, Event, Mark, Stage, Status
from pyasync.domain.task import Claim
from pyasync.domain.transitions import INIT, PENDING, changed_by, state_of, step
from pyasync.store.claims import Offer
from pyasync.store.writes import Fate, Write


class When(Enum):
    """When a task may run, as far as tests need to know."""

    AT_ONCE = "at once"
    TOMORROW = "tomorrow"


TOMORROW = 24 * 3600.0
"""Seconds."""


@dataclass
class Expected:
    """One row."""

    id: UUID
    type: str
    user: str
    group: str
    key: str | None
    rank: int
    keep: float | None
    status: Status
    holds_key: bool = False
    node: UUID | None = None
    fence: UUID | None = None
    epoch: int = 0
    seq: int = 0
    attempt: int = 1
    losses: int = 0
    context: str | None = None
    result: str | None = None
    errors: list[str] = field(default_factory=list)
    run_at: When | None = None
    due: When | None = None
    done: bool = False
    purged: bool = False
    on_node_loss: str = "resume"
    max_losses: int | None = None

    @property
    def owned(self) -> bool:
        return self.status.stage in OWNED

    @property
    def ended(self) -> bool:
        return self.status.stage in ENDED

    @property
    def state(self) -> State:
        return state_of(self.status)

    @property
    def queue(self) -> Queue | None:
        return None if self.due else queue_of(self.status, self.losses)

    def columns(self) -> dict[str, Any]:
        """Return what the row's columns say."""
        return {
            "type": self.type,
            "user_name": self.user,
            "group_name": self.group,
            "status": str(self.status),
            "queue": self.queue and self.queue.value,
            "rank": self.rank,
            "node_id": self.node,
            "fence": self.fence,
            "epoch": self.epoch,
            "seq": self.seq,
            "attempt": self.attempt,
            "losses": self.losses,
            "context": self.context,
            "result": self.result,
            "errors": self.errors[-KEPT:],
            "key_name": self.key,
            "held_key": self.key if self.holds_key else None,
            "run_at": self.run_at is not None,
            "due_at": self.due is not None,
            "done_at": self.done,
            "purge_at": self.purged,
        }

    def move_to(self, target: Status) -> None:
        """Take another status, with what follows from it."""
        self.status = target
        if self.ended:
            self.done, self.holds_key, self.purged = True, False, self.keep is not None
        self.due = self.run_at if self.run_at is When.TOMORROW and queue_of(target) else None

    def let_go(self, target: Status, fence: UUID | None) -> None:
        """Be nobody's any more; a task that is to be deleted begins its clean-up afresh."""
        if self.goes_to_cleaning(target):
            self.attempt, self.losses = 1, 0
        self.node, self.fence = None, fence
        self.status = target
        if self.ended:
            self.done, self.holds_key, self.purged = True, False, self.keep is not None

    def goes_to_cleaning(self, target: Status) -> bool:
        """Whether a user wants it deleted, and its run has ended with that."""
        return self.status.stage is Stage.RUNNING and target.mark is Mark.DELETE


class Tasks:
    """All rows, and what verbs and nodes make of them."""

    def __init__(self) -> None:
        self.rows: dict[UUID, Expected] = {}

    def visible(self, task_id: UUID, user: str | None) -> Expected:
        """Return a task, unless it is another user's."""
        row = self.rows.get(task_id)
        if row is None or user not in (None, row.user):
            raise TaskNotFound(task_id)
        return row

    def holder(self, user: str, type: str, key: str | None) -> Expected | None:
        """Return the task that holds a key."""
        held = (
            row for row in self.rows.values() if row.holds_key and (row.user, row.type, row.key) == (user, type, key)
        )
        return next(held, None)

    # --- users

    def create(self, new: NewTask) -> UUID:
        """Create a task, unless its id exists or its key is held; return its id, or that of the one that is there."""
        assert new.id is not None
        if new.id in self.rows:
            return new.id
        if new.key is not None and (holder := self.holder(new.user, new.type, new.key)):
            return holder.id
        waits = When.TOMORROW if new.delay else None
        status = PENDING if new.auto_run else INIT
        row = Expected(new.id, new.type, new.user, new.group, new.key, -new.priority, new.keep, status)
        row.holds_key, row.run_at, row.due = new.key is not None, waits, waits if new.auto_run else None
        self.rows[new.id] = row
        return new.id

    def wish(
        self, task_id: UUID, event: Event, *, user: str | None = None, now: bool = False, restart: bool = False
    ) -> None:
        """Do what a user wants of a task, or raise why not."""
        row = self.visible(task_id, user)
        target = step(row.status, event, task_id)
        if restart and target is not None and target.stage in OWNED:
            raise InvalidTransition(task_id, row.status.stage, row.status.mark, "user_run(restart=True)")
        if target is None:
            del self.rows[task_id]
            return
        if event is Event.USER_RUN and row.ended:
            self._revive(row)
        if target != row.status:
            self._change(row, event, target)
        if event is Event.USER_RUN and not row.owned:
            _run_again(row, now, restart)

    def _revive(self, row: Expected) -> None:
        if row.key is not None and self.holder(row.user, row.type, row.key):
            raise KeyTaken(row.id, row.key, None)
        row.holds_key = row.key is not None
        row.attempt, row.losses, row.done, row.purged, row.result = 1, 0, False, False, None

    @staticmethod
    def _change(row: Expected, event: Event, target: Status) -> None:
        if event is Event.USER_DELETE:
            row.run_at, row.holds_key = None, False
            if target.stage not in OWNED:
                row.attempt, row.losses, row.purged = 1, 0, False
        if event is Event.USER_CANCEL and target.stage in ENDED:
            row.errors.append(CANCELLED)
        if target.stage in OWNED:
            row.status = target
        else:
            row.move_to(target)

    def wish_all(self, rows: Iterable[Expected], event: Event) -> int:
        """Do what a user wants of all tasks whose status allows it; return how many were changed."""
        changed = 0
        for row in sorted(rows, key=lambda row: row.id):
            if row.status in changed_by(event):
                try:
                    self.wish(row.id, event)
                except KeyTaken:
                    continue
                changed += 1
        return changed

    def remove(self, task_id: UUID, user: str | None, alive: set[UUID]) -> None:
        """Remove a row that no live node runs."""
        row = self.visible(task_id, user)
        if row.owned and row.node in alive:
            raise InvalidTransition(task_id, row.status.stage, row.status.mark, "user_delete(force=True)")
        del self.rows[task_id]

    # --- nodes

    def promote(self) -> None:
        """Put tasks whose time has come into their queue."""
        for row in self.rows.values():
            if row.due is When.AT_ONCE:
                row.due = None

    def claim(self, task_id: UUID, node: UUID, fence: UUID, offer: Offer) -> Claim:
        """Give a task to a node."""
        row = self.rows[task_id]
        cleaning = row.status.mark is Mark.DELETE
        row.status = Status(Stage.DELETING if cleaning else Stage.RUNNING, row.status.mark)
        row.node, row.fence, row.epoch = node, fence, row.epoch + 1
        row.on_node_loss, row.max_losses = offer.on_node_loss, offer.max_losses
        return Claim(task_id, node, fence, row.seq)

    def write(self, write: Write) -> Fate:
        """Store a write if its claim stands, and is right about the last one; say what becomes of it."""
        claim, row = write.claim, self.rows.get(write.claim.task_id)
        if row is None:
            return Fate.STORED if write.removes else Fate.LOST
        if row.fence != claim.fence:
            return Fate.LOST
        if not row.owned or row.seq > claim.seq:
            return Fate.STORED if row.seq == claim.seq + 1 else Fate.LOST
        if row.seq < claim.seq:
            return Fate.BEHIND
        self._store(row, write)
        return Fate.STORED

    def _store(self, row: Expected, write: Write) -> None:
        row.seq += 1
        row.context, row.result = write.context or row.context, write.result or row.result
        if write.event is None:
            row.losses = 0
            return
        target = step(row.status, write.event)
        cleaned = row.status.stage is Stage.RUNNING and row.status.mark is Mark.DELETE
        if target is None or (write.removes and not cleaned):
            del self.rows[row.id]
            return
        self._end(row, write, target)

    @staticmethod
    def _end(row: Expected, write: Write, target: Status) -> None:
        if row.status.mark is Mark.CANCEL and write.event in (Event.SYS_PAUSE, Event.SYS_RETRY):
            row.errors.append(CANCELLED)
        elif write.errors is not None:
            row.errors.append("error")
        row.attempt = write.attempt or row.attempt
        if write.delay is not None and target.stage is Stage.PENDING and not row.goes_to_cleaning(target):
            row.run_at = row.due = When.TOMORROW if write.delay else When.AT_ONCE
        row.done = False
        row.let_go(target, write.new_fence or row.fence)

    def release(self, row: Expected, fence: UUID) -> None:
        """Let go of a task that its node knows nothing of."""
        target = step(row.status, Event.SYS_PAUSE)
        assert target is not None
        if row.status.mark is Mark.CANCEL:
            row.errors.append(CANCELLED)
        row.let_go(target, fence)

    def take_over(self, row: Expected, fence: UUID) -> None:
        """Take a task from a lost node; one that must not go on fails."""
        event, kind = _verdict(row)
        target = step(row.status, event)
        assert target is not None
        if kind is not None or (row.status.mark is Mark.CANCEL and target.stage is Stage.FAILED):
            row.errors.append(kind or CANCELLED)
        row.losses += 1
        row.let_go(target, fence)

    def purge(self) -> int:
        """Delete ended tasks that were kept long enough, as a user does; return how many."""
        rows = [row for row in self.rows.values() if row.purged]
        for row in rows:
            self.wish(row.id, Event.USER_DELETE)
        return len(rows)


def _run_again(row: Expected, now: bool, restart: bool) -> None:
    if now:
        row.run_at = row.due = None
    if restart:
        row.context = row.result = None


def _verdict(row: Expected) -> tuple[Event, str | None]:
    if row.on_node_loss == "fail" and row.status.stage is Stage.RUNNING:
        return Event.TASK_FAILED, NODE_LOST
    if row.max_losses is not None and row.losses + 1 >= row.max_losses:
        return Event.TASK_FAILED, CRASH_LOOP
    return Event.SYS_PAUSE, None
