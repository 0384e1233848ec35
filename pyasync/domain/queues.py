"""In which queue a task waits to be claimed, and in which order tasks leave it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Protocol

from pyasync.domain.states import Mark, Stage, Status

PROBATION_LOSSES = 2
"""From so many takeovers in a row without a report, a task may be what kills the nodes."""


class Queue(StrEnum):
    """Where a claimable task waits."""

    RUN = "run"
    DELETE = "delete"
    PROBATION = "probation"
    """For tasks that may be what kills their nodes: a node runs at most one of them at a time."""


def queue_of(status: Status | None, losses: int = 0) -> Queue | None:
    """Return the queue in which a task of this status waits, or None if it cannot be claimed."""
    if status is None or status.stage not in (Stage.PENDING, Stage.PAUSED) or status.mark is Mark.PAUSE:
        return None
    if losses >= PROBATION_LOSSES:
        return Queue.PROBATION
    return Queue.DELETE if status.mark is Mark.DELETE else Queue.RUN


class QueuePolicy(Protocol):
    """The order among tasks of the same priority, in the very statement that claims them.

    Tasks that the system paused go first, then those of higher priority; `order` decides among the rest.
    """

    def order(self, task: Any) -> tuple[Any, ...]:
        """Return columns, or SQLAlchemy expressions of them, to order candidates by; `task` has the table's columns.

        It is always the same for one policy: the statement is made once.
        """
        ...


class Fifo:
    """First come, first served: by the time at which a task became claimable. An index serves this order."""

    def order(self, task: Any) -> tuple[Any, ...]:
        """Order by readiness, then id."""
        return (task.ready_at, task.id)
