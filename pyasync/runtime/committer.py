"""Stores what runs report and claims for the slots that become free: one thread, one transaction a round.

Both share a transaction since that halves the commits of short tasks (see benchmarks), and a group of reports costs one
statement however many runs checkpoint at once.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from pyasync.domain.states import Event, Mark
from pyasync.ids import new_fence
from pyasync.runtime.claimer import Claimer, Round
from pyasync.runtime.endings import Endings, Raised, Stopped
from pyasync.runtime.runs import Execution, Runs
from pyasync.runtime.service import Service
from pyasync.store import claims, writes
from pyasync.store.database import Database, Tx
from pyasync.store.writes import Fate, Write, Written

log = logging.getLogger("pyasync.runtime")

GROUP_ROWS = 1_000
GROUP_SIZE = 2_000_000
"""Characters of a group; what is larger goes alone. Escaped, it fits into MariaDB's default packet."""

LOCKED_DELAY = 0.02
"""Seconds after which a report whose row was locked is sent again."""

Reply = Callable[[Any], None]


@dataclass(eq=False)
class Item:
    """A write on its way; `reply` is called on the loop with a Written, or with the error that made it impossible."""

    execution: Execution
    write: Write
    reply: Reply | None = None
    forced: bool = False
    tries: int = 0


@dataclass
class Stored:
    """What one round stored."""

    written: list[tuple[Item, Written]] = field(default_factory=list)
    claimed: Round | None = None


class Committer(Service):
    """Collects writes of all runs, and stores them in groups.

    `launch` starts runs on the loop, `stop` asks a run to stop, `soon` calls something on the loop.
    """

    name = "committer"

    def __init__(
        self,
        *,
        database: Database,
        runs: Runs,
        claimer: Claimer,
        endings: Endings,
        node_id: Callable[[], UUID],
        launch: Callable[[list[Execution]], None],
        stop: Callable[[Execution, str], None],
        soon: Callable[..., None],
    ) -> None:
        super().__init__()
        self._database = database
        self._runs = runs
        self._claimer = claimer
        self._endings = endings
        self._node_id = node_id
        self._launch = launch
        self._stop_run = stop
        self._soon = soon
        self._items: deque[Item] = deque()
        self._later: list[tuple[float, Item]] = []
        self._doubtful: list[UUID] = []
        self._round_lock = threading.Lock()

    def submit(self, execution: Execution, write: Write, reply: Reply | None = None) -> None:
        """Store a run's write with the next group."""
        self._items.append(Item(execution, write, reply))
        self.wake()

    def force(self, execution: Execution, write: Write) -> None:
        """Let go of a run that may still be writing."""
        self._items.append(Item(execution, write, forced=True))
        self.wake()

    def finish_round(self, timeout: float) -> bool:
        """Block until the round under way, if any, is settled; False if that takes longer."""
        settled = self._round_lock.acquire(timeout=timeout)
        if settled:
            self._round_lock.release()
        return settled

    def tick(self) -> float:
        """Store one group and claim; return when the next look into the queues is due."""
        with self._round_lock:
            return self._tick()

    def _tick(self) -> float:
        self._claimer.register(self._database)
        group = self._take()
        claiming = self._claimer.due(freeing=any(item.write.event is not None for item in group))
        if not group and not self._doubtful and not (claiming and self._claimer_finds_something()):
            return self._delay()
        try:
            stored = self._database.once(self._round, group, claiming)
        except Exception as error:
            self._failed(group, error)
            raise
        self._settle(stored)
        return self._delay()

    def _claimer_finds_something(self) -> bool:
        return not self._claimer.nothing_waits(self._database)

    def idle(self) -> bool:
        """Whether nothing is waiting to be stored."""
        return not self._items and not self._later

    def _delay(self) -> float:
        if self._items:
            return 0.0
        waits = [at - time.monotonic() for at, _ in self._later]
        return max(0.001, min([self._claimer.due_in(), *waits]))

    def _take(self) -> list[Item]:
        now = time.monotonic()
        if self._later:
            self._items.extendleft(item for at, item in self._later if at <= now)
            self._later = [(at, item) for at, item in self._later if at > now]
        group: list[Item] = []
        tasks: set[UUID] = set()
        size = 0
        while self._items and len(group) < GROUP_ROWS:
            write = self._items[0].write
            size += write.size
            # An old run and a new one of the same task take turns: the store tells the writes of a group by their task.
            if write.claim.task_id in tasks or (group and size > GROUP_SIZE):
                break
            tasks.add(write.claim.task_id)
            group.append(self._items.popleft())
        return group

    def _round(self, tx: Tx, group: Sequence[Item], claiming: bool) -> Stored:
        stored = Stored()
        plain = [item for item in group if not item.forced]
        stored.written += zip(plain, writes.write(tx, [item.write for item in plain]), strict=True) if plain else ()
        stored.written += [(item, writes.force(tx, item.write)) for item in group if item.forced]
        if self._doubtful:
            claims.release_fences(tx, self._node_id(), self._doubtful, new_fence())
        if claiming:
            stored.claimed = self._claim(tx, stored)
        return stored

    def _claim(self, tx: Tx, stored: Stored) -> Round:
        freed = [
            item.execution
            for item, written in stored.written
            if item.write.event is not None and written.fate is Fate.STORED and item.execution.bodies == 0
        ]
        done = self._claimer.claim(tx, self._node_id(), freed)
        self._doubtful.append(done.fence)  # until the commit is known
        return done

    def _settle(self, stored: Stored) -> None:
        self._doubtful.clear()
        if stored.claimed is not None:
            self._claimer.settle(stored.claimed)  # before the answers, which may ask for another look
        replies = [self._answer(item, written) for item, written in stored.written]
        started = [] if stored.claimed is None else self._claimer.executions(stored.claimed, self._node_id())
        for execution in started:
            self._runs.add(execution)
        calls = [reply for reply in replies if reply is not None]
        if calls or started:
            self._soon(self._deliver, calls, started)

    def _deliver(self, replies: Sequence[tuple[Reply, Any]], started: list[Execution]) -> None:
        for reply, written in replies:
            reply(written)
        if started:
            self._launch(started)

    def _answer(self, item: Item, written: Written) -> tuple[Reply, Any] | None:
        """Note what became of a write; return the reply to give, if any."""
        if written.fate is Fate.UNSTORED:
            self._send_again(item)
            return None
        if written.fate is Fate.STORED:
            self._stored(item, written)
        elif written.fate is Fate.LOST:
            self._lost(item)
        elif item.write.event is not None:
            self._end_again(item, written)
            return None
        return None if item.reply is None else (item.reply, written)

    def _end_again(self, item: Item, written: Written) -> None:
        """End a run in a database that went back in time: a task does not finish without what that lost, it is let go
        of, to begin again from its row.
        """
        write = item.write
        if write.event is Event.TASK_FINISHED:
            log.error("the database went back in time: the task is let go of", extra=facts(item.execution))
            write = self._endings.ending(item.execution, Stopped())
        self._items.append(replace(item, write=replace(write, claim=item.execution.claim.after(written.seq))))

    def _stored(self, item: Item, written: Written) -> None:
        execution = item.execution
        if item.write.event is not None:
            if self._runs.ended(execution):
                self._claimer.has_room()
            if item.write.delay is not None:
                self._claimer.look_in(item.write.delay)
            elif written.mark is Mark.DELETE:
                self._claimer.wake(full=True)
            return
        execution.claim = item.write.claim.after(item.write.claim.seq + 1)
        if (wish := execution.wish(written.mark)) is not None:
            self._stop_run(execution, wish)

    def _lost(self, item: Item) -> None:
        execution = item.execution
        if not execution.let_go:
            log.warning("a write was refused: the task is no longer this node's", extra=facts(execution))
        execution.let_go = True
        self._stop_run(execution, "lost")
        self._runs.ended(execution)

    def _send_again(self, item: Item) -> None:
        item.tries += 1
        delay = min(0.2, LOCKED_DELAY * item.tries) * random.uniform(0.5, 1.0)
        self._later.append((time.monotonic() + delay, item))

    def _failed(self, group: Sequence[Item], error: BaseException) -> None:
        """Put a group back that was not stored, or may not have been; a permanent error is looked for one by one."""
        self._claimer.settle(None)
        if self._database.is_transient(error) or not group:
            self._items.extendleft(reversed(group))
            return
        for item in group:
            self._store_alone(item)

    def _store_alone(self, item: Item) -> None:
        try:
            self._settle(self._database.once(self._round, [item], False))
        except Exception as error:
            if self._database.is_transient(error):
                self._items.append(item)
                return
            self._give_up(item, error)

    def _give_up(self, item: Item, error: Exception) -> None:
        log.error("a write cannot be stored", extra=facts(item.execution), exc_info=error)
        if item.write.event is None:
            if item.reply is not None:
                self._soon(item.reply, error)
        elif item.write.result is not None or item.write.context is not None or item.write.message is not None:
            ending = self._endings.ending(item.execution, Raised(error))
            self._items.append(replace(item, write=replace(ending, claim=item.write.claim)))
        else:
            self._runs.ended(item.execution)  # reconciliation lets go of it


def facts(execution: Execution) -> dict[str, Any]:
    """Return what a log line says of a run; never its context."""
    return {
        "task_id": str(execution.claim.task_id),
        "type": execution.task_type.name,
        "epoch": execution.row.epoch + 1,
        "node_id": str(execution.claim.node_id),
    }
