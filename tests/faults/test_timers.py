"""Many tasks that are due at once: none is early, lost or run twice, and no node takes more than it has slots for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from pyasync import NewTask, Node, Registry, State, current_run
from pyasync.store.database import Tx
from tests.faults.effort import Effort
from tests.runtime.other import TASK, Other
from tests.waiting import until

SLOTS = 50
DUE_IN = 2.0
LATE = 2.0
"""Seconds by which the first may start late, and room for a busy machine."""


class Started:
    """Which tasks were started, and when the first one was."""

    def __init__(self) -> None:
        self.ids: list[UUID] = []
        self.first = 0.0
        self.registry = Registry()
        self.registry.register_task("start", self._start)

    async def _start(self) -> None:
        self.first = self.first or time.time()
        self.ids.append(current_run().id)


@pytest.fixture
def started() -> Started:
    return Started()


@pytest.fixture
def nodes(url: str, started: Started) -> Iterator[list[Node]]:
    settings = {"migrate": "auto", "poll_interval": 0.5, "concurrency": SLOTS}
    with Node(url, started.registry, **settings) as one, Node(url, started.registry, **settings) as other:
        yield [one, other]


@pytest.mark.timeout(180)
def test_thousands_that_are_due_at_once_all_run_once_and_in_time(
    nodes: list[Node], started: Started, other: Other, effort: Effort
) -> None:
    number = effort.number(2_000, 10_000)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    ids = nodes[0].create_tasks([NewTask(type="start", run_at=tomorrow)] * number)

    # However long it took to create them, or takes to change them.
    due = datetime.now(UTC) + timedelta(seconds=DUE_IN)
    with other.begin() as connection:
        connection.execute(update(TASK).values(run_at=due, due_at=due))
    from_then_on = max(due.timestamp(), time.time())
    until(lambda: nodes[0].count_tasks() == {State.FINISHED: number}, 60.0 + number / 100, "all to finish")

    assert sorted(started.ids) == sorted(ids)
    print(f"the first of {number} started {started.first - from_then_on:.2f} s late")
    assert due.timestamp() <= started.first < from_then_on + LATE


def test_what_was_due_long_ago_runs_at_once_and_what_is_due_in_years_waits(nodes: list[Node]) -> None:
    now = datetime.now(UTC)
    past = nodes[0].create_task("start", run_at=now - timedelta(days=10_000))
    late = nodes[0].create_task("start", run_at=now + timedelta(days=100_000))

    assert nodes[0].wait_task(past, 20.0).state is State.FINISHED
    assert nodes[0].get_task(late).state is State.PENDING
    assert nodes[0]._database.run(_claimed, late) == 0


def _claimed(tx: Tx, task_id: UUID) -> int:
    return tx.execute(select(func.sum(tx.t.task.c.epoch)).where(tx.t.task.c.id == task_id)).scalar_one()  # type: ignore[no-any-return]
