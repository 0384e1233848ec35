"""The words for what a task is doing (`Stage`), what is wanted of it (`Mark`), what can happen to it (`Event`)
and what people see of all that (`State`)."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Stage(StrEnum):
    """What a task is doing."""

    INIT = "init"
    """Created with `auto_run=False`: nobody has asked for it to run yet."""
    PENDING = "pending"
    """Waits for a node, or for its time."""
    RUNNING = "running"
    """Owned by a node that runs it."""
    DELETING = "deleting"
    """Owned by a node that runs its clean-up."""
    PAUSED = "paused"
    """Stopped at a checkpoint: by a user, or by the system, which lets it go on as soon as a node is free."""
    FINISHED = "finished"
    """Ended well."""
    FAILED = "failed"
    """Ended badly, or cancelled."""


class Mark(StrEnum):
    """What is wanted of a task."""

    NONE = "none"
    """Nothing yet."""
    RUN = "run"
    """That it runs."""
    DELETE = "delete"
    """That it goes away, clean-up first."""
    PAUSE = "pause"
    """That it stops at its next report and stays."""
    CANCEL = "cancel"
    """That it stops at its next report and ends as failed."""


class Event(StrEnum):
    """What can happen to a task."""

    USER_RUN = "user_run"
    USER_DELETE = "user_delete"
    USER_PAUSE = "user_pause"
    USER_CANCEL = "user_cancel"
    SYS_EXECUTE = "sys_execute"
    """A node claims it."""
    SYS_PAUSE = "sys_pause"
    """Its node lets go of it, or another node does so on behalf of a lost one (a takeover)."""
    SYS_RETRY = "sys_retry"
    """The attempt failed, and attempts are left."""
    TASK_FINISHED = "task_finished"
    TASK_FAILED = "task_failed"


class State(StrEnum):
    """What people see."""

    INIT = "INIT"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    CANCELING = "CANCELING"
    """A pause, cancel or delete was asked for, and the task has not stopped yet."""
    PAUSED = "PAUSED"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    DELETING = "DELETING"
    """On its way out; shown only to those who ask with `include_deleting=True`."""


class Status(NamedTuple):
    """Where a task stands: what it is doing and what is wanted of it."""

    stage: Stage
    mark: Mark

    def __str__(self) -> str:
        return f"({self.stage.value}, {self.mark.value})"


ENDED = frozenset({Stage.FINISHED, Stage.FAILED})
"""Stages that a task leaves only when a user asks."""

OWNED = frozenset({Stage.RUNNING, Stage.DELETING})
"""Stages in which a node holds the task."""
