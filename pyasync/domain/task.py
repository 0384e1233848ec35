"""The facts of a task's row, and the right to write it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from pyasync.domain.states import State, Status


@dataclass(frozen=True, slots=True)
class Claim:
    """The right of one node to write one running task, and the number of reports that it knows to be stored."""

    task_id: UUID
    node_id: UUID
    fence: UUID
    seq: int

    def after(self, seq: int) -> Claim:
        """Return the claim as it stands when `seq` reports are stored."""
        return replace(self, seq=seq)


@dataclass(frozen=True, slots=True)
class Task:
    """A task as people see it. Only the latest report is kept; times are aware datetimes in UTC of the database's
    clock.
    """

    id: UUID
    type: str
    user: str
    group: str
    state: State
    arguments: Any
    context: Any
    progress: float | None
    message: str | None
    result: Any
    error: str | None
    errors: list[dict[str, Any]]
    attempt: int
    epoch: int
    seq: int
    node: UUID | None
    priority: int
    key: str | None
    run_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    done_at: datetime | None
    version: int
    headers: dict[str, Any]
    status: Status = field(repr=False)

    @property
    def ended(self) -> bool:
        """Whether the task is finished or failed."""
        return self.state in (State.FINISHED, State.FAILED)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewTask:
    """One task to create; the fields are the arguments of `create_task`."""

    type: str
    arguments: Any = None
    id: UUID | None = None
    user: str = ""
    group: str = ""
    auto_run: bool = True
    run_at: datetime | None = None
    delay: float | None = None
    priority: int = 0
    retry: Any = None
    timeout: float | None = None
    key: str | None = None
    keep: float | None = None
    headers: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node as people see it."""

    id: UUID
    name: str
    version: str
    types: tuple[str, ...]
    running: int
    slots: int
    beat_at: datetime
    draining: bool
    lost: bool
