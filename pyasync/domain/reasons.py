"""Why is a task not running? One sentence for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from pyasync.domain.failures import CANCELLED
from pyasync.domain.queues import Queue
from pyasync.domain.states import Mark, Stage
from pyasync.domain.task import Task


@dataclass(frozen=True)
class NodeFacts:
    """A node that counts as alive; `silent`: its last beat is older than its lease."""

    id: UUID
    name: str
    types: Mapping[str, int]
    running: int
    slots: int
    draining: bool
    silent: bool


@dataclass(frozen=True)
class Facts:
    """What is known of a task that waits; `now` is the database's time."""

    task: Task
    due_at: datetime | None
    queue: str | None
    note: str | None
    now: datetime
    nodes: Sequence[NodeFacts]


def explain(facts: Facts) -> str:
    """Say in one sentence why a task is not running, or where it runs."""
    task = facts.task
    match task.status.stage:
        case Stage.INIT:
            return "It was created with auto_run=False and waits for run_task()."
        case Stage.FINISHED:
            return f"It finished at {_moment(task.done_at)}."
        case Stage.FAILED:
            return _failed(task)
        case Stage.RUNNING | Stage.DELETING:
            return _held(facts)
        case Stage.PAUSED if task.status.mark is Mark.PAUSE:
            return "It was paused by a user; run_task() lets it go on from its last checkpoint."
        case _:
            return _waiting(facts)


def _failed(task: Task) -> str:
    kind = task.errors[-1].get("kind") if task.errors else None
    if kind == CANCELLED:
        return f"It was cancelled at {_moment(task.done_at)}; run_task() runs it again."
    what = "Its clean-up failed" if task.status.mark is Mark.DELETE else f"It failed in attempt {task.attempt}"
    again = "delete_task() tries again" if task.status.mark is Mark.DELETE else "run_task() runs it again"
    return f"{what}: {_first_line(task.error)}; {again}."


def _held(facts: Facts) -> str:
    task = facts.task
    where = next((f"node {node.name}" for node in facts.nodes if node.id == task.node), "a node that is gone")
    if task.status.stage is Stage.DELETING:
        return f"It is being deleted: its clean-up runs on {where}."
    wishes = {Mark.PAUSE: "pause", Mark.CANCEL: "cancel", Mark.DELETE: "delete"}
    if task.status.mark in wishes:
        return f"It runs on {where}, which was asked to {wishes[task.status.mark]} it and does so at its next report."
    return f"It runs on {where}."


def _waiting(facts: Facts) -> str:
    task = facts.task
    deleting = "It is being deleted, and " if task.status.mark is Mark.DELETE else "It "
    if facts.due_at is not None and facts.due_at > facts.now:
        left = (facts.due_at - facts.now).total_seconds()
        retry = (
            f" (attempt {task.attempt}, after: {_first_line(task.error)})" if task.error and task.attempt > 1 else ""
        )
        return f"{deleting}waits for its time, {_moment(facts.due_at)}, in {left:.0f} s{retry}{_noted(facts)}."
    return f"{deleting}{_claimable(facts)}{_noted(facts)}."


def _claimable(facts: Facts) -> str:
    task = facts.task
    live = [node for node in facts.nodes if not node.silent and not node.draining]
    able = [node for node in live if task.type in node.types]
    fresh = [node for node in able if node.types[task.type] >= task.version]
    if not live:
        return "waits for a node: none is alive"
    if not able:
        none = f"none of the {len(live)} live nodes has it" if len(live) > 1 else "the only live node does not have it"
        return f"waits for a node that has type {task.type!r}: {none}"
    if not fresh:
        return (
            f"waits for a node that understands version {task.version} of type {task.type!r}: the live ones are older"
        )
    if all(node.running >= node.slots for node in fresh):
        full = f"all {len(fresh)} live nodes that have" if len(fresh) > 1 else "the only live node that has"
        return f"waits for a free slot: {full} type {task.type!r} {'are' if len(fresh) > 1 else 'is'} full"
    if facts.queue == Queue.PROBATION:
        return "waits on probation, since nodes were lost while they ran it: a node runs one such task at a time"
    return "is due and will be claimed at a node's next look"


def _noted(facts: Facts) -> str:
    return f"; {facts.note}" if facts.note else ""


def _moment(moment: datetime | None) -> str:
    return "an unknown time" if moment is None else moment.isoformat(sep=" ", timespec="seconds")


def _first_line(text: str | None) -> str:
    return (text or "for an unknown reason").partition("\n")[0]
