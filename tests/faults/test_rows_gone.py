"""F45: rows that somebody deletes, truncates or restores from a backup under the runs of a node."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import anyio
import pytest
from sqlalchemy import delete, insert, select

from pyasync import ClaimLost, NewTask, Registry, State
from tests.runtime.conftest import Nodes
from tests.runtime.gate import PATIENCE
from tests.runtime.other import TASK, Other
from tests.waiting import until

LEASE = 1.0
STEPS = 8


# --- gone


class Busy:
    """Tasks that report all the time, in each way there is, and why they were told to stop."""

    KINDS = ("async", "sync", "commit", "waiting")

    def __init__(self) -> None:
        self.began: set[UUID] = set()
        self.told: dict[UUID, str | None] = {}
        self.registry = Registry()
        self.registry.register_task("async", self.asynchronous)
        self.registry.register_task("sync", self.sync)
        self.registry.register_task("commit", self.commit)
        self.registry.register_task("waiting", self.waiting)
        self.registry.register_task("noop", lambda: "done")

    async def asynchronous(self, run: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield 1
                self.began.add(run.id)
                await anyio.sleep(0.01)
        finally:
            self.told[run.id] = run.stop.reason

    def sync(self, run: Any) -> Iterator[Any]:
        try:
            while True:
                yield 1
                self.began.add(run.id)
        finally:
            self.told[run.id] = run.stop.reason

    def commit(self, run: Any) -> Iterator[Any]:
        try:
            while True:
                run.commit(1, lambda connection: None)
                self.began.add(run.id)
        except ClaimLost:
            self.told[run.id] = run.stop.reason
            raise
        yield

    async def waiting(self, run: Any) -> AsyncIterator[Any]:
        self.began.add(run.id)
        await run.stop.wait()
        self.told[run.id] = run.stop.reason
        yield 1


@pytest.mark.parametrize("how", ["delete", "truncate"])
def test_runs_whose_rows_are_gone_are_told_and_bring_none_of_them_back(node: Nodes, other: Other, how: str) -> None:
    busy = Busy()
    started = node(busy.registry, lease=LEASE)
    ids = started.create_tasks([NewTask(type=kind) for kind in Busy.KINDS])
    until(lambda: busy.began == set(ids), PATIENCE, "all to report")

    with other.begin() as connection:
        sqlite = connection.dialect.name == "sqlite"  # which has no other word for it
        connection.exec_driver_sql(f"{'delete from' if how == 'delete' or sqlite else 'truncate table'} pyasync_task")

    until(lambda: len(started._runs) == 0, PATIENCE, "the runs to end")
    assert busy.told == dict.fromkeys(ids, "lost")
    assert other.statuses() == []
    assert started.result(started.create_task("noop"), PATIENCE) == "done"


# --- restored


class Stepping:
    """A task that makes as many steps as it is let; `made` and `told` say what each run did."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.told: list[str | None] = []
        self._allowed = threading.Semaphore(0)
        self.registry = Registry()
        self.registry.register_task("task", self.task)

    def task(self, run: Any) -> Iterator[Any]:
        for number in range(run.context or 0, STEPS):
            while not self._allowed.acquire(timeout=0.02):
                if run.stop.is_set():
                    self.told.append(run.stop.reason)
                    return
            self.made.append(number + 1)
            yield number + 1

    def let(self, other: Other, task_id: UUID, steps: int) -> None:
        """Let it make more steps, and wait until they are stored."""
        was = other.row(task_id).seq
        self._allowed.release(steps)
        until(lambda: other.row(task_id).seq == was + steps, PATIENCE, f"{steps} steps")

    def let_all(self) -> None:
        """Let it make all the steps that are left."""
        self._allowed.release(100)


def back_up(other: Other) -> list[dict[str, Any]]:
    """Copy all tasks' rows."""
    with other.begin() as connection:
        return [dict(row._mapping) for row in connection.execute(select(TASK))]


def restore(other: Other, rows: list[dict[str, Any]]) -> None:
    """Put such copies back, in the place of what is there."""
    with other.begin() as connection:
        connection.execute(delete(TASK))
        connection.execute(insert(TASK), rows)


def test_run_whose_row_is_restored_from_earlier_in_its_life_begins_again_from_it(node: Nodes, other: Other) -> None:
    """The fence is the same, seq is not."""
    stepping = Stepping()
    started = node(stepping.registry, lease=LEASE)
    task_id = started.create_task("task", 0)
    until(lambda: other.status(task_id) == "running, run", PATIENCE)
    stepping.let(other, task_id, 2)
    saved = back_up(other)
    stepping.let(other, task_id, 3)

    restore(other, saved)
    stepping.let_all()

    task = started.wait_task(task_id, PATIENCE)
    assert stepping.made == [1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 7, 8]
    assert (task.state, task.context, task.seq, task.epoch) == (State.FINISHED, STEPS, STEPS + 1, 1)


def test_run_whose_row_is_restored_from_an_earlier_run_is_told_and_another_goes_on_from_it(
    node: Nodes, other: Other
) -> None:
    """The fence is one that was drawn before: whoever has drawn it is gone, and it is not drawn again."""
    stepping = Stepping()
    started = node(stepping.registry, lease=LEASE)
    task_id = started.create_task("task", 0)
    until(lambda: other.status(task_id) == "running, run", PATIENCE)
    stepping.let(other, task_id, 2)
    saved = back_up(other)
    started.pause_task(task_id)
    until(lambda: other.status(task_id) == "paused, pause", PATIENCE)
    started.run_task(task_id)
    until(lambda: other.status(task_id) == "running, run", PATIENCE)
    stepping.let(other, task_id, 3)
    second = other.row(task_id).fence

    restore(other, saved)
    until(lambda: len(stepping.told) == 2, PATIENCE, "the second run to be told")
    until(lambda: other.row(task_id).fence not in (saved[0]["fence"], second), PATIENCE, "a third run")
    stepping.let_all()

    task = started.wait_task(task_id, PATIENCE)
    assert stepping.told == ["pause", "lost"]
    assert stepping.made == [1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8]
    assert (task.state, task.context) == (State.FINISHED, STEPS)


def test_run_whose_row_is_restored_from_before_its_claim_writes_nothing_into_it(node: Nodes, other: Other) -> None:
    stepping = Stepping()
    started = node(stepping.registry, lease=LEASE)
    task_id = started.create_task("task", 0, auto_run=False)
    saved = back_up(other)
    started.run_task(task_id)
    until(lambda: other.status(task_id) == "running, run", PATIENCE)
    stepping.let(other, task_id, 2)

    restore(other, saved)
    stepping._allowed.release()

    until(lambda: len(started._runs) == 0, PATIENCE, "the run to end")
    assert (stepping.made, back_up(other)) == ([1, 2, 3], saved)
    stepping.let_all()
    started.run_task(task_id)
    assert started.wait_task(task_id, PATIENCE).context == STEPS
    assert stepping.made == [1, 2, 3, *range(1, STEPS + 1)]


def test_task_that_is_restored_after_its_end_is_run_from_the_copy_by_the_node_it_names(
    node: Nodes, other: Other
) -> None:
    """Its row names a node that lives and knows nothing of it."""
    stepping = Stepping()
    started = node(stepping.registry, lease=LEASE)
    task_id = started.create_task("task", 0)
    until(lambda: other.status(task_id) == "running, run", PATIENCE)
    stepping.let(other, task_id, 2)
    saved = back_up(other)
    stepping.let_all()
    assert started.wait_task(task_id, PATIENCE).state is State.FINISHED
    started.delete_task(task_id)
    until(lambda: other.row(task_id) is None, PATIENCE, "the row to go")

    restore(other, saved)

    task = started.wait_task(task_id, PATIENCE)
    assert (task.state, task.context, task.epoch) == (State.FINISHED, STEPS, 2)
    assert other.row(task_id).fence != saved[0]["fence"]
    assert stepping.made == [*range(1, STEPS + 1), *range(3, STEPS + 1)]
