"""What the demo's nodes run: dot products, one element a step, and a matrix product made of them.

Each step is written down when it begins, in a file outside of the database, so that work that was done twice shows.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import anyio

from pyasync import aio
from pyasync.context import AsyncRun
from pyasync.domain.report import Finished, Report
from pyasync.domain.states import State
from pyasync.domain.task import NewTask, Task
from pyasync.errors import RetryLater
from pyasync.registry import Registry

DOT, MATRIX = "demo.dot", "demo.matrix"
LEDGER = "PYASYNC_DEMO_LEDGER"
"""The environment variable that names the file of steps."""
ON_PURPOSE = "on purpose, once"
"""The error of the cell that fails, so that its parent has something to restart."""
LOOK = 0.5
"""Seconds between two looks of a parent at its children."""

Row = Sequence[int]

registry = Registry()


@registry.task(DOT)
async def dot(run: AsyncRun[dict[str, Any]]) -> AsyncIterator[Report]:
    """Multiply two vectors: `{"i": 0, "sum": 0, "a": [...], "b": [...]}`."""
    context = run.context
    for i in range(context["i"], len(context["a"])):
        _fail_once(run, i)
        write_down(run.id, i)
        await anyio.sleep(run.headers.get("pause", 0.0))
        context = {**context, "i": i + 1, "sum": context["sum"] + context["a"][i] * context["b"][i]}
        yield Report(context, progress=(i + 1) / len(context["a"]), message=f"element {i + 1} of {len(context['a'])}")
    yield Finished(context["sum"])


def _fail_once(run: AsyncRun[Any], i: int) -> None:
    if run.headers.get("fails_at") == i and run.epoch == 1:
        raise ArithmeticError(ON_PURPOSE)


@registry.task(MATRIX)
async def matrix(run: AsyncRun[dict[str, Any]]) -> AsyncIterator[Report]:
    """Multiply two matrices, a child for each cell; whatever is done again after a takeover changes nothing."""
    cells = cells_of(run.id, run.arguments["a"], run.arguments["b"])
    if not run.resumed:
        await aio.create_tasks([_child(run, id, *cell) for id, cell in cells.items()])
        yield Report({"children": len(cells)}, progress=0.0, message=f"created {len(cells)} cells")
    children = await aio.get_tasks(ids=list(cells), limit=len(cells))
    for child in children:
        await _tend(run, child)
    done = {cells[child.id]: child.result for child in children if child.state is State.FINISHED}
    if len(done) == len(cells):
        yield Finished(_rows(done))
        return
    yield Report(progress=len(done) / len(cells), message=f"{len(done)} of {len(cells)} cells are done")
    raise RetryLater(LOOK)  # its slot is for the children meanwhile


def cells_of(parent: UUID, a: Sequence[Row], b: Sequence[Row]) -> dict[UUID, tuple[int, int]]:
    """Return the cells' places by their tasks' ids, which follow from the parent's: no cell is created twice."""
    places = [(row, column) for row in range(len(a)) for column in range(len(b[0]))]
    return {uuid5(parent, f"{row},{column}"): (row, column) for row, column in places}


def _child(run: AsyncRun[Any], id: UUID, row: int, column: int) -> NewTask:
    b = [line[column] for line in run.arguments["b"]]
    headers = {"pause": run.headers.get("pause", 0.0)}
    if [row, column] == run.headers.get("fails_in"):
        headers["fails_at"] = len(b) // 3
    arguments = {"i": 0, "sum": 0, "a": run.arguments["a"][row], "b": b}
    return NewTask(type=DOT, id=id, user=run.user, group=run.group, arguments=arguments, headers=headers)


async def _tend(run: AsyncRun[Any], child: Task) -> None:
    """Move a child into the group that is meant for it, and restart it from its checkpoint if it failed."""
    group = run.headers["cells"]
    if child.group != group:
        await aio.change_task_group(child.id, group)
    if child.state is State.FAILED:
        await aio.run_task(child.id)


def _rows(done: dict[tuple[int, int], int]) -> list[list[int]]:
    last_row, last_column = max(done)
    return [[done[row, column] for column in range(last_column + 1)] for row in range(last_row + 1)]


# --- the ledger


def write_down(task_id: UUID, step: int) -> None:
    """Write down that a step begins. A short line that is appended is written whole, whoever else appends."""
    path = os.environ.get(LEDGER)
    if path is None:
        return
    fileno = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fileno, f"{task_id} {step}\n".encode())
    finally:
        os.close(fileno)


def read_ledger(path: Path) -> Counter[tuple[UUID, int]]:
    """Return how often each step of each task has begun."""
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter((UUID(task_id), int(step)) for task_id, step in (line.split() for line in lines))
