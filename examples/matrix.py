"""The product of two matrices: a parent task with one `dot` task for each cell of the result.

The parent gives its slot back while it waits, restarts children that failed, and survives whatever happens to its node:
what it does between two checkpoints may be done twice, and so each of these steps can be repeated. The ids of its
children are derived from its own: whoever creates them again, gets the ones that are there.

python examples/matrix.py      Kill it with any signal, and start it again: it goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid5

from dot import Dot

import pyasync
from pyasync import Finished, NewTask, Registry, Report, RetryLater, State, aio

registry = Registry()
registry.register_task("dot", Dot)

LOOK = 0.2
"""Seconds between two looks at the children."""


@registry.task("matrix")
async def matrix(run: aio.Run[dict[str, Any]]) -> AsyncIterator[Report]:
    """Multiply `a` and `b`; `pause` and `failure_rate` are handed on to the children."""
    cells = {child_id(run, row, column): (row, column) for row, column in cells_of(run.arguments)}
    step = run.context.get("step", "create")
    if step == "create":
        await aio.create_tasks([child(run, id, *cells[id]) for id in cells])
        step = "move"
        yield Report({"step": step}, message=f"created {len(cells)} children")
    if step == "move":
        for id in cells:
            await aio.change_task_group(id, family(run))
        yield Report({"step": "wait"}, message="moved them into a group of their own")

    if failed := await aio.run_tasks(group=family(run), states=[State.FAILED]):
        yield Report(message=f"restarted {failed}")
    finished = await aio.get_tasks(group=family(run), states=[State.FINISHED], limit=len(cells))
    if len(finished) < len(cells):
        yield Report(progress=len(finished) / len(cells), message=f"waits for {len(cells) - len(finished)} children")
        raise RetryLater(LOOK)

    results = {cells[task.id]: task.result for task in finished}
    yield Finished({"sum": sum(results.values()), "matrix": as_rows(results)})


@matrix.deleting
async def clean_up(run: aio.Run[dict[str, Any]]) -> AsyncIterator[Report]:
    await aio.delete_tasks(group=family(run))
    yield Finished()


def cells_of(arguments: dict[str, Any]) -> list[tuple[int, int]]:
    return [(row, column) for row in range(len(arguments["a"])) for column in range(len(arguments["b"][0]))]


def child_id(run: aio.Run[Any], row: int, column: int) -> UUID:
    return uuid5(run.id, f"{row},{column}")


def family(run: aio.Run[Any]) -> str:
    return f"matrix/{run.id}"


def child(run: aio.Run[Any], id: UUID, row: int, column: int) -> NewTask:
    given = run.arguments
    vectors = {"a": given["a"][row], "b": [line[column] for line in given["b"]]}
    nature = {name: given[name] for name in ("pause", "failure_rate") if name in given}
    return NewTask(type="dot", id=id, user=run.user, group=run.group, arguments=vectors | nature)


def as_rows(results: dict[tuple[int, int], Any]) -> list[list[Any]]:
    last_row, last_column = max(results)
    return [[results[row, column] for column in range(last_column + 1)] for row in range(last_row + 1)]


def main(database: str) -> None:
    a, b = [[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[9, 8, 7], [6, 5, 4], [3, 2, 1]]
    pyasync.init(database, registry=registry)
    try:
        # The key makes one of many starts: while the task of an earlier start is alive, this is that task.
        id = pyasync.create_task("matrix", {"a": a, "b": b, "pause": 0.2, "failure_rate": 0.1}, key="example")
        for task in pyasync.watch_task(id):
            print(f"{task.state}  {task.progress or 0:4.0%}  {task.message or ''}", flush=True)
        print("result:", pyasync.result(id))
    finally:
        pyasync.stop()


if __name__ == "__main__":
    main(*sys.argv[1:] or ["sqlite:///matrix.db"])
