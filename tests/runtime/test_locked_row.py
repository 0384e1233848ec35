"""A caller may hold a task's row locked for as long as it likes: that holds up this task only."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from pyasync import Node, Registry, State, current_run
from tests.runtime.conftest import Nodes
from tests.runtime.gate import PATIENCE
from tests.runtime.other import Other
from tests.waiting import until

# SQLite has one writer at a time: whoever holds a transaction open holds up everybody, as its documentation says.
pytestmark = pytest.mark.databases("postgresql", "mariadb")


class Counting:
    """A type whose tasks checkpoint until the test ends, and how often each of them did."""

    def __init__(self) -> None:
        self.made: Counter[Any] = Counter()
        self.done = threading.Event()
        self.registry = Registry()
        self.registry.register_task("count", self.count)
        self.registry.register_task("sync", self.sync)

    async def count(self, run: Any) -> AsyncIterator[Any]:
        number = run.context or 0
        while not self.done.is_set():
            number += 1
            yield number
            self.made[run.id] = number
            await anyio.sleep(0.005)

    def sync(self, run: Any) -> Iterator[Any]:
        number = run.context or 0
        while not self.done.is_set():
            number += 1
            yield number
            self.made[run.id] = number

    def until_all_made(self, ids: list[Any], more: int) -> None:
        """Wait until each of these tasks has made that many more checkpoints."""
        before = Counter(self.made)
        until(
            lambda: all(self.made[task_id] >= before[task_id] + more for task_id in ids),
            PATIENCE,
            f"{len(ids)} tasks to make {more} checkpoints each",
        )


@pytest.fixture
def counting() -> Iterator[Counting]:
    counting = Counting()
    yield counting
    counting.done.set()


@contextmanager
def _locked(started: Node, other: Other, task_id: Any) -> Iterator[Any]:
    """Hold a row's lock by a pause that is not committed; it is rolled back unless the test commits."""
    with other.engine.connect() as connection:
        started.pause_task(task_id, connection=connection)
        yield connection
        connection.rollback()


def test_ninety_nine_tasks_go_on_while_the_row_of_the_hundredth_is_locked(
    node: Nodes, other: Other, counting: Counting
) -> None:
    started = node(counting.registry, concurrency=100)
    ids = [started.create_task("count" if number % 10 else "sync") for number in range(100)]
    counting.until_all_made(ids, 1)
    victim, others = ids[50], ids[:50] + ids[51:]

    with _locked(started, other, victim) as connection:
        counting.until_all_made(others, 20)
        stuck = counting.made[victim]
        counting.until_all_made(others, 20)
        still = counting.made[victim]
        connection.commit()

    until(lambda: started.get_task(victim).state is State.PAUSED, PATIENCE, "the pause to be heeded")
    assert still == stuck
    assert started.get_task(victim).context == stuck + 1  # the report that waited


def test_task_goes_on_when_the_lock_is_given_up(node: Nodes, other: Other, counting: Counting) -> None:
    started = node(counting.registry)
    ids = [started.create_task("count") for _ in range(3)]
    counting.until_all_made(ids, 1)

    with _locked(started, other, ids[0]):
        counting.until_all_made(ids[1:], 20)

    counting.until_all_made(ids, 20)
    assert started.get_task(ids[0]).epoch == 1


def test_end_of_a_task_whose_row_is_locked_waits_and_nobody_else_does(
    node: Nodes, other: Other, counting: Counting
) -> None:
    ending = threading.Event()
    counting.registry.register_task("ends", lambda: ending.wait(PATIENCE) and "the end")
    started = node(counting.registry)
    ids = [started.create_task("count") for _ in range(3)]
    task_id = started.create_task("ends")
    until(lambda: started.get_task(task_id).epoch == 1, PATIENCE)

    with _locked(started, other, task_id):
        ending.set()
        counting.until_all_made(ids, 20)
        between = other.status(task_id)

    assert between == "running, run"
    assert started.result(task_id, PATIENCE) == "the end"


def test_locked_row_in_a_queue_is_passed_over(node: Nodes, other: Other, counting: Counting) -> None:
    counting.registry.register_task("next", lambda: "had its turn")
    started = node(counting.registry, types=[])
    ids = [started.create_task("next") for _ in range(5)]

    with _locked(started, other, ids[0]):
        claiming = node(counting.registry)
        results = [claiming.result(task_id, PATIENCE) for task_id in ids[1:]]
        between = other.status(ids[0])

    assert results == ["had its turn"] * 4
    assert between == "pending, run"
    assert started.result(ids[0], PATIENCE) == "had its turn"


def test_commit_of_a_task_whose_row_is_locked_waits_and_nobody_else_does(
    node: Nodes, other: Other, counting: Counting
) -> None:
    committing, calls = threading.Event(), []

    def commit() -> str:
        committing.wait(PATIENCE)
        current_run().commit({"step": 1}, lambda connection: calls.append(1))
        return "committed"

    counting.registry.register_task("commit", commit)
    started = node(counting.registry)
    ids = [started.create_task("count") for _ in range(3)]
    task_id = started.create_task("commit")
    until(lambda: started.get_task(task_id).epoch == 1, PATIENCE)

    with _locked(started, other, task_id):
        committing.set()
        until(lambda: calls, PATIENCE)
        counting.until_all_made(ids, 20)
        between = other.row(task_id).context

    assert between is None
    assert started.result(task_id, PATIENCE) == "committed"
    assert started.get_task(task_id).context == {"step": 1}


def test_run_that_is_let_go_of_while_its_row_is_locked_is_released_when_that_is_over(
    node: Nodes, other: Other, counting: Counting
) -> None:
    async def deaf() -> None:
        await anyio.sleep_forever()

    counting.registry.register_task("deaf", deaf)
    started = node(counting.registry, stop_grace=0.1)
    ids = [started.create_task("count") for _ in range(3)]
    task_id = started.create_task("deaf", timeout=0.2)
    until(lambda: started.get_task(task_id).epoch == 1, PATIENCE)

    with _locked(started, other, task_id):
        counting.until_all_made(ids, 40)
        between = other.status(task_id)

    assert between == "running, run"
    task = started.wait_task(task_id, PATIENCE)
    assert [each["kind"] for each in task.errors] == ["timeout"]


def test_node_that_stops_hands_over_all_but_the_task_whose_row_is_locked(
    node: Nodes, other: Other, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyasync.runtime.node.LAST_WRITES", 0.5)
    started = node(counting.registry, stop_grace=0.1)
    ids = [started.create_task("count") for _ in range(5)]
    counting.until_all_made(ids, 1)

    with _locked(started, other, ids[0]):
        started.stop()
        between = [other.status(task_id) for task_id in ids]

    assert between == ["running, run", *["paused, run"] * 4]
    second = node(counting.registry)
    counting.made.clear()
    counting.until_all_made(ids, 2)
    assert [second.get_task(task_id).epoch for task_id in ids] == [2] * 5


def test_rows_are_removed_while_the_row_of_another_task_is_locked(
    node: Nodes, other: Other, counting: Counting
) -> None:
    counting.registry.register_task("plain", lambda: "done")
    started = node(counting.registry)
    victim, *ids = [started.create_task("count"), *(started.create_task("plain") for _ in range(3))]
    counting.until_all_made([victim], 1)
    for task_id in ids:
        started.wait_task(task_id, PATIENCE)

    with _locked(started, other, victim):
        for task_id in ids:
            started.delete_task(task_id)
        until(lambda: [other.row(task_id) for task_id in ids] == [None] * 3, PATIENCE, "the rows to go")
