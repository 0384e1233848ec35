"""Decides when to claim, how much, and of what; the committer's transaction does it."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pyasync.context import AsyncStop, Stop
from pyasync.domain.queues import Fifo, Queue, QueuePolicy
from pyasync.domain.states import Mark, Stage
from pyasync.domain.task import Claim
from pyasync.ids import new_fence
from pyasync.registry import Registry, TaskType
from pyasync.runtime.runs import Execution, Runs
from pyasync.settings import Settings
from pyasync.store import claims, nodes
from pyasync.store.claims import Offer, Request
from pyasync.store.database import Database, Tx

FOLLOW_UP = 0.03
"""Seconds after a wake-up at which to look once more: senders leave out hints that come close to another."""

HELD_DELAY = 0.1
"""Seconds after which a node that may not claim, for its lease or its loop, asks itself again."""


@dataclass
class Round:
    """What one round of claiming did."""

    fence: UUID
    rows: list[Any]
    backlog: bool = False
    """Whether more may be waiting than there were slots for."""
    full: bool = False
    due_in: float | None = None


class Claimer:
    """Keeps track of free slots and of when a look into the queues is due."""

    def __init__(self, *, runs: Runs, registry: Registry, settings: Settings, may_claim: Callable[[], bool]) -> None:
        self._runs = runs
        self._registry = registry
        self._settings = settings
        self._may_claim = may_claim
        self._policies: dict[Queue, QueuePolicy] = {
            Queue.RUN: settings.queue or Fifo(),  # type: ignore[dict-item]
            Queue.DELETE: settings.delete_queue or Fifo(),  # type: ignore[dict-item]
            Queue.PROBATION: Fifo(),
        }
        self._lock = threading.Lock()
        self._wanted = True
        self._backlog = False
        self._next_full = 0.0
        self._next_quick = float("inf")
        self._held_until = 0.0
        self._known = -1  # asks the database even for none: a start finds out whether it is there
        self.draining = False

    def wake(self, *, full: bool = False) -> None:
        """Look into the queues at the next round; `full`: into those of clean-ups and timers too."""
        with self._lock:
            self._wanted = True
            self._next_quick = time.monotonic() + FOLLOW_UP
            if full:
                self._next_full = 0.0

    def look_in(self, seconds: float) -> None:
        """Look into all the queues when a task's time comes that is known here."""
        with self._lock:
            self._next_full = min(self._next_full, time.monotonic() + seconds)

    def due_in(self) -> float:
        """Return in how many seconds a look is due."""
        if self.draining:
            return 3600.0
        at = 0.0 if self._wanted else min(self._next_full, self._next_quick)
        return max(0.0, max(at, self._held_until) - time.monotonic())

    def due(self, *, freeing: bool) -> bool:
        """Whether to claim in this round; `freeing`: it stores ends of runs."""
        wanted = self.due_in() <= 0.0 or (freeing and self._backlog)
        if not wanted or self.draining or time.monotonic() < self._held_until:
            return False
        if self._may_claim():
            return True
        self._held_until = time.monotonic() + HELD_DELAY
        return False

    def has_room(self) -> None:
        """Note that a slot became free."""
        with self._lock:
            self._wanted |= self._backlog

    def register(self, database: Database) -> None:
        """Make the types known to the system that were registered since the last time."""
        names = [each.name for each in self._registry]
        if len(names) > self._known:
            database.run(nodes.register, names)
            self._known = len(names)

    def nothing_waits(self, database: Database) -> bool:
        """Look before taking locks, when no run's end is to be stored with the claim: most polls find nothing."""
        if self._wanted and database.dialect.skips_locked:
            return False  # a wake-up: there probably is something, and a look costs a round trip
        self._begin()  # first: a wake-up from now on asks for another look
        found, due_in = database.single(claims.waiting, [each.name for each in self.types()])
        if not found:
            self.settle(Round(new_fence(), [], full=True, due_in=due_in))
        return not found

    def claim(self, tx: Tx, node_id: UUID, freed: Sequence[Execution]) -> Round:
        """Claim for the slots that are free, counting those of runs whose end this very transaction stores."""
        round_ = Round(new_fence(), [], full=self._begin())
        if round_.full:
            claims.promote(tx)
            self._remove_deleted(tx)
        for queue in self._queues(round_.full):
            request = self._request(queue, freed, round_.rows)
            rows = claims.claim(tx, node_id, round_.fence, request)
            round_.rows += rows
            round_.backlog |= queue is Queue.RUN and _more_may_wait(request, rows)
        if round_.full:
            round_.due_in = claims.next_due(tx)
        return round_

    def _begin(self) -> bool:
        """Note that a look begins; return whether it is to go into all the queues."""
        now = time.monotonic()
        with self._lock:
            self._wanted = False
            if now >= self._next_quick:
                self._next_quick = float("inf")
            return now >= self._next_full

    def settle(self, done: Round | None) -> None:
        """Plan the next look after a round that was stored; None: it was not, look again."""
        with self._lock:
            if done is None:
                self._wanted = True
                return
            self._backlog = done.backlog
            if done.full:
                interval = self._settings.poll_interval * random.uniform(1.0, 1.1)
                self._next_full = time.monotonic() + min(interval, interval if done.due_in is None else done.due_in)

    def executions(self, done: Round, node_id: UUID) -> list[Execution]:
        """Return the runs of what was claimed."""
        return [self._execution(row, node_id, done.fence) for row in done.rows]

    def _execution(self, row: Any, node_id: UUID, fence: UUID) -> Execution:
        task_type = self._registry[row.type]
        stage = stage_of(row)
        body = task_type.deleting if stage is Stage.DELETING else task_type.running
        stop = AsyncStop() if body is not None and body.is_async else Stop()
        execution = Execution(Claim(row.id, node_id, fence, row.seq), row, task_type, stage, stop)
        timeout = task_type.timeout if row.timeout is None else row.timeout
        if timeout is not None:
            execution.deadline = time.monotonic() + timeout
        return execution

    def _queues(self, full: bool) -> list[Queue]:
        if not full:
            return [Queue.RUN]
        return [Queue.RUN, Queue.DELETE] if self._runs.probing else [Queue.PROBATION, Queue.RUN, Queue.DELETE]

    def _request(self, queue: Queue, freed: Sequence[Execution], claimed: Sequence[Any]) -> Request:
        stage = Stage.DELETING if queue is Queue.DELETE else Stage.RUNNING
        slots = self._settings.delete_concurrency if queue is Queue.DELETE else self._settings.concurrency
        held = Counter(self._runs.held(stage))
        held.subtract(execution.task_type.name for execution in freed if execution.stage is stage)
        held.update(row.type for row in claimed if stage_of(row) is stage)
        types = [each for each in self.types() if queue is not Queue.DELETE or each.deleting is not None]
        room = {each.name: each.concurrency - held.get(each.name, 0) for each in types if each.concurrency is not None}
        free = slots - sum(held.values())
        return Request(
            queue=queue,
            limit=min(free, 1) if queue is Queue.PROBATION else free,
            offers=[offer_of(each) for each in types if room.get(each.name, 1) > 0],
            policy=self._policies[queue],
            groups=self._settings.groups,
            room=room,
        )

    def types(self) -> list[TaskType]:
        """Return the types that this node claims."""
        only = self._settings.types
        return [each for each in self._registry if only is None or each.name in only]

    def _remove_deleted(self, tx: Tx) -> None:
        names = [each.name for each in self.types() if each.deleting is None]
        while claims.remove_deleted(tx, names) >= claims.REMOVAL_BATCH:
            pass


def stage_of(row: Any) -> Stage:
    """Return the stage of a row once it is claimed."""
    return Stage.DELETING if row.mark == Mark.DELETE.value else Stage.RUNNING


def _more_may_wait(request: Request, rows: list[Any]) -> bool:
    if len(rows) >= request.limit:
        return True
    taken = Counter(row.type for row in rows)
    return any(taken[name] >= room for name, room in (request.room or {}).items())


def offer_of(task_type: TaskType) -> Offer:
    """Return what the store must know of a type to claim its tasks."""
    return Offer(
        type=task_type.name,
        version=task_type.version,
        on_node_loss=task_type.on_node_loss,
        max_losses=task_type.max_losses,
        keep=task_type.keep,
        cleans=task_type.deleting is not None,
    )
