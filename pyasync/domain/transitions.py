"""The table of states: the only place that says what may become of a task.

SQL guards, the diagram in the docs and the tests are generated from `TABLE`. It is go-async's table, closed (every
status that can be reached can be left by a user) and extended by `cancel` and `sys_retry`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from uuid import UUID

from pyasync.domain.states import Event, Mark, Stage, State, Status
from pyasync.errors import InvalidTransition

REMOVED: Final = None
"""The row goes away."""

_S, _M, _E = Stage, Mark, Event

INIT = Status(_S.INIT, _M.NONE)
PENDING = Status(_S.PENDING, _M.RUN)
PENDING_DELETE = Status(_S.PENDING, _M.DELETE)
RUNNING = Status(_S.RUNNING, _M.RUN)
RUNNING_DELETE = Status(_S.RUNNING, _M.DELETE)
RUNNING_PAUSE = Status(_S.RUNNING, _M.PAUSE)
RUNNING_CANCEL = Status(_S.RUNNING, _M.CANCEL)
DELETING = Status(_S.DELETING, _M.DELETE)
PAUSED = Status(_S.PAUSED, _M.RUN)
PAUSED_DELETE = Status(_S.PAUSED, _M.DELETE)
PAUSED_BY_USER = Status(_S.PAUSED, _M.PAUSE)
FINISHED = Status(_S.FINISHED, _M.RUN)
FAILED = Status(_S.FAILED, _M.RUN)
FAILED_DELETE = Status(_S.FAILED, _M.DELETE)

# fmt: off
TABLE: Final[dict[Status, dict[Event, Status | None]]] = {
    INIT: {
        _E.USER_RUN: PENDING, _E.USER_DELETE: REMOVED, _E.USER_PAUSE: PAUSED_BY_USER, _E.USER_CANCEL: FAILED},
    PENDING: {
        _E.USER_RUN: PENDING, _E.USER_DELETE: PENDING_DELETE, _E.USER_PAUSE: PAUSED_BY_USER, _E.USER_CANCEL: FAILED,
        _E.SYS_EXECUTE: RUNNING},
    PENDING_DELETE: {
        _E.USER_DELETE: PENDING_DELETE, _E.SYS_EXECUTE: DELETING},
    RUNNING: {
        _E.USER_RUN: RUNNING, _E.USER_DELETE: RUNNING_DELETE, _E.USER_PAUSE: RUNNING_PAUSE,
        _E.USER_CANCEL: RUNNING_CANCEL, _E.SYS_PAUSE: PAUSED, _E.TASK_FINISHED: FINISHED, _E.TASK_FAILED: FAILED,
        _E.SYS_RETRY: PENDING},
    RUNNING_DELETE: {
        _E.USER_DELETE: RUNNING_DELETE, _E.SYS_PAUSE: PENDING_DELETE, _E.TASK_FINISHED: PENDING_DELETE,
        _E.TASK_FAILED: PENDING_DELETE, _E.SYS_RETRY: PENDING_DELETE},
    RUNNING_PAUSE: {
        _E.USER_RUN: RUNNING, _E.USER_DELETE: RUNNING_DELETE, _E.USER_PAUSE: RUNNING_PAUSE,
        _E.USER_CANCEL: RUNNING_CANCEL, _E.SYS_PAUSE: PAUSED_BY_USER, _E.TASK_FINISHED: FINISHED,
        _E.TASK_FAILED: FAILED, _E.SYS_RETRY: PAUSED_BY_USER},
    RUNNING_CANCEL: {
        _E.USER_DELETE: RUNNING_DELETE, _E.USER_CANCEL: RUNNING_CANCEL, _E.SYS_PAUSE: FAILED,
        _E.TASK_FINISHED: FINISHED, _E.TASK_FAILED: FAILED, _E.SYS_RETRY: FAILED},
    DELETING: {
        _E.USER_DELETE: DELETING, _E.SYS_PAUSE: PAUSED_DELETE, _E.TASK_FINISHED: REMOVED, _E.TASK_FAILED: FAILED_DELETE,
        _E.SYS_RETRY: PENDING_DELETE},
    PAUSED: {
        _E.USER_RUN: PAUSED, _E.USER_DELETE: PENDING_DELETE, _E.USER_PAUSE: PAUSED_BY_USER, _E.USER_CANCEL: FAILED,
        _E.SYS_EXECUTE: RUNNING},
    PAUSED_DELETE: {
        _E.USER_DELETE: PAUSED_DELETE, _E.SYS_EXECUTE: DELETING},
    PAUSED_BY_USER: {
        _E.USER_RUN: PENDING, _E.USER_DELETE: PENDING_DELETE, _E.USER_PAUSE: PAUSED_BY_USER, _E.USER_CANCEL: FAILED},
    FINISHED: {
        _E.USER_DELETE: PENDING_DELETE},
    FAILED: {
        _E.USER_RUN: PENDING, _E.USER_DELETE: PENDING_DELETE},
    FAILED_DELETE: {
        _E.USER_DELETE: PENDING_DELETE},
}

_STATES: Final[dict[Status, State]] = {
    INIT: State.INIT,
    PENDING: State.PENDING,
    PENDING_DELETE: State.DELETING,
    RUNNING: State.RUNNING,
    RUNNING_DELETE: State.CANCELING,
    RUNNING_PAUSE: State.CANCELING,
    RUNNING_CANCEL: State.CANCELING,
    DELETING: State.DELETING,
    PAUSED: State.RUNNING,
    PAUSED_DELETE: State.DELETING,
    PAUSED_BY_USER: State.PAUSED,
    FINISHED: State.FINISHED,
    FAILED: State.FAILED,
    FAILED_DELETE: State.FAILED,
}
# fmt: on


def step(status: Status, event: Event, task_id: UUID | None = None) -> Status | None:
    """Return the status after `event`, or None if the row is removed. A no-op returns `status` itself.

    Raises InvalidTransition where the table has no cell.
    """
    try:
        return TABLE[status][event]
    except KeyError:
        raise InvalidTransition(task_id, status[0].value, status[1].value, event.value) from None


def sources(event: Event) -> list[Status]:
    """List the statuses in which `event` is allowed."""
    return [status for status, row in TABLE.items() if event in row]


def changed_by(event: Event) -> list[Status]:
    """List the statuses in which `event` is allowed and changes something."""
    return [status for status, row in TABLE.items() if event in row and row[event] != status]


def state_of(status: Status) -> State:
    """Return what people see of a status."""
    return _STATES[status]


def statuses_of(state: State) -> list[Status]:
    """List the statuses that people see as `state`."""
    return [status for status, shown in _STATES.items() if shown is state]


def mermaid() -> str:
    """Draw the table as a Mermaid state diagram."""
    return "\n".join(["stateDiagram-v2", "    [*] --> init_none: create", "    [*] --> pending_run: create", *_edges()])


def _edges() -> Iterator[str]:
    for status, row in TABLE.items():
        targets: dict[Status | None, list[str]] = {}
        for event, target in row.items():
            if target != status:
                targets.setdefault(target, []).append(event.value)
        for target, events in targets.items():
            yield f"    {_node(status)} --> {_node(target)}: {', '.join(events)}"


def _node(status: Status | None) -> str:
    return "[*]" if status is None else f"{status.stage.value}_{status.mark.value}"
