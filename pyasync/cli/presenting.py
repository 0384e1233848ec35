"""Tasks and nodes as JSON and as words."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import datetime
from typing import Any
from uuid import UUID

from pyasync.cli.terminal import COLOURS, Cell, age, is_terminal, safe, safe_json
from pyasync.domain.states import State
from pyasync.domain.task import NodeInfo, Task

SHORT = 18
"""Characters of an id that tell it from all others: its time, to a quarter of a microsecond."""


def dumps(value: Any) -> str:
    """Return JSON, laid out for people where one looks."""
    return laid_out(value) if is_terminal() else compact(value)


def laid_out(value: Any) -> str:
    """Return JSON on as many lines as it takes."""
    return safe_json(json.dumps(value, ensure_ascii=False, default=_plain, indent=2))


def compact(value: Any) -> str:
    """Return JSON on one line."""
    return safe_json(json.dumps(value, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)


def task_facts(task: Task) -> dict[str, Any]:
    """Return a task as an object for JSON."""
    facts = {field.name: getattr(task, field.name) for field in fields(Task) if field.name != "status"}
    return {**facts, "stage": task.status.stage, "mark": task.status.mark}


def node_facts(node: NodeInfo) -> dict[str, Any]:
    """Return a node as an object for JSON."""
    return {field.name: getattr(node, field.name) for field in fields(NodeInfo)}


def short(id: UUID) -> str:
    """Return the beginning of an id that is enough to name it."""
    return str(id)[:SHORT]


def state_cell(state: State) -> Cell:
    """Return a state in its colour."""
    return Cell(state.value, COLOURS.get(state))


def named(node: UUID | None, nodes: dict[UUID, str]) -> str:
    """Return a node's name; of one that is gone, its id."""
    if node is None:
        return ""
    return safe(nodes.get(node) or f"{short(node)} (gone)")


def since(moment: datetime | None, now: datetime) -> str:
    """Return how long ago something was."""
    return "" if moment is None else age((now - moment).total_seconds())


def when(moment: datetime | None, now: datetime) -> str:
    """Return a moment, and how far away it is."""
    if moment is None:
        return ""
    distance = (moment - now).total_seconds()
    away = f"in {age(distance)}" if distance > 0 else f"{age(-distance)} ago"
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC, {away}"
