"""The runs on this node, shared by its threads: who they are, what they hold, and which slots are free."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from pyasync.context import AsyncStop, Stop
from pyasync.domain.queues import PROBATION_LOSSES
from pyasync.domain.states import OWNED, Mark, Stage
from pyasync.domain.task import Claim
from pyasync.registry import Body, TaskType


@dataclass(eq=False, slots=True)
class Execution:
    """One run on this node: the claim, the row as it was claimed, and where the run stands.

    Between claim and end at most one write is under way, so that `claim.seq` is always known.
    """

    claim: Claim
    row: Any
    """As it was before the claim."""
    task_type: TaskType
    stage: Stage
    stop: Stop | AsyncStop
    deadline: float | None = None
    """On this node's monotonic clock."""
    run: Any = None
    """What user code sees; made on the loop."""
    stop_by: float | None = None
    """When, after it was told to stop, it is let go of."""
    let_go: bool = False
    """The task is no longer ours, or no longer wanted: whatever the run still writes is refused here."""
    ended: bool = False
    """What became of its task is stored, or not ours to store."""
    ending: bool = False
    """Its end is on its way to the database."""
    cancelled: bool = False
    """It was cancelled: it did not stop in time."""
    bodies: int = 1
    """How many coroutines and threads still work on it: a slot is free when both this is 0 and it has ended."""
    behind: bool = False
    """The database went back in time: once user code has ended, the run begins again from the row."""
    misses: int = 0
    """In how many beats in a row the database did not know of it."""
    cancel: Any = None
    """Cancels its coroutine; set on the loop."""
    writing: threading.Lock = field(default_factory=threading.Lock)
    """Held by `run.commit`, so that one write is under way at a time."""
    body: Body = field(init=False)
    """What it runs."""

    def __post_init__(self) -> None:
        body = self.task_type.running if self.stage is Stage.RUNNING else self.task_type.deleting
        assert body is not None, "a type without clean-up is removed, not run"
        self.body = body

    def wish(self, mark: Mark) -> str | None:
        """Return what a user wants of the task since it was claimed, which is why it is to stop; None: nothing."""
        wanted = mark in (Mark.PAUSE, Mark.CANCEL, Mark.DELETE) and mark.value != self.row.mark
        return mark.value if wanted else None

    @property
    def on_probation(self) -> bool:
        """Whether the task may be what kills its nodes: it was lost again and again, and has not reported since."""
        return bool(self.row.losses >= PROBATION_LOSSES) and self.claim.seq == self.row.seq


class Runs:
    """The runs on this node, by task."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._by_fence: dict[tuple[int, int], Execution] = {}
        self._held: dict[Stage, Counter[str]] = {stage: Counter() for stage in OWNED}
        self.changed = threading.Condition(self._lock)

    def add(self, execution: Execution) -> None:
        """Add a run; its slot is taken."""
        with self._lock:
            self._by_fence[self._key(execution)] = execution
            self._count(execution, 1)

    def ended(self, execution: Execution) -> bool:
        """Note that what became of a run's task is known; True if its slot is free now."""
        with self._lock:
            execution.ended = True
            self.changed.notify_all()  # even if its slot stays taken, by a thread that was left behind
            return self._settle(execution)

    def entered(self, execution: Execution) -> None:
        """Note that one more thread works on a run."""
        with self._lock:
            execution.bodies += 1

    def left(self, execution: Execution) -> bool:
        """Note that user code of a run has ended; True if its slot is free now."""
        with self._lock:
            execution.bodies -= 1
            return self._settle(execution)

    def _settle(self, execution: Execution) -> bool:
        if not execution.ended or execution.bodies > 0:
            return False
        free = self._by_fence.pop(self._key(execution), None) is not None
        if free:
            self._count(execution, -1)
        return free

    def _count(self, execution: Execution, change: int) -> None:
        self._held[execution.stage][execution.task_type.name] += change

    @staticmethod
    def _key(execution: Execution) -> tuple[int, int]:
        return (execution.claim.task_id.int, execution.claim.fence.int)  # UUIDs themselves take long to hash

    def find(self, task_id: UUID, fence: UUID) -> Execution | None:
        """Return a run by its task and fence."""
        return self._by_fence.get((task_id.int, fence.int))

    def __iter__(self) -> Iterator[Execution]:
        """Iterate over the runs there are now."""
        with self._lock:
            return iter(list(self._by_fence.values()))

    def __len__(self) -> int:
        """Count the runs that hold a slot."""
        return len(self._by_fence)

    def held(self, stage: Stage) -> dict[str, int]:
        """Count the slots taken in a stage, by type."""
        with self._lock:
            return {name: number for name, number in self._held[stage].items() if number}

    @property
    def probing(self) -> bool:
        """Whether a run on probation holds a slot."""
        with self._lock:
            return any(execution.on_probation for execution in self._by_fence.values())

    def wait_until_ended(self, timeout: float) -> bool:
        """Block until what became of every run's task is known; False if that takes longer."""
        with self._lock:
            return self.changed.wait_for(lambda: all(each.ended for each in self._by_fence.values()), timeout)
