"""F28: a write that is too large for the database fails its attempt, and holds up nobody else."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from sqlalchemy import create_engine, text

from pyasync import BadArgument, Finished, NewTask, Registry, State
from tests.faults.effort import Effort
from tests.runtime.conftest import Nodes
from tests.runtime.other import Other
from tests.waiting import until

MEBIBYTE = 1024 * 1024
PACKET = 16 * MEBIBYTE
"""What a MariaDB takes at once, by default."""


class Counting:
    """Tasks that count until they are let off, and what they have counted to."""

    def __init__(self, registry: Registry) -> None:
        self.counted: dict[Any, int] = {}
        self.let_off = threading.Event()
        registry.register_task("count", self.count)

    async def count(self, run: Any) -> AsyncIterator[Any]:
        number = 0
        while not self.let_off.is_set():
            number += 1
            yield number
            self.counted[run.id] = number
            await anyio.sleep(0.01)


def yielding(run: Any) -> Iterator[Any]:
    yield {"size": run.arguments}
    yield "x" * run.arguments


def finishing(run: Any) -> Iterator[Any]:
    yield {"size": run.arguments}
    yield Finished("x" * run.arguments)


def committing(run: Any) -> Iterator[Any]:
    yield {"size": run.arguments}
    run.commit("x" * run.arguments, lambda connection: connection.execute(text("insert into effect values ('half')")))
    yield


BODIES = {"yield": yielding, "finish": finishing, "commit": committing}


def _fails(nodes: Nodes, other: Other, body: str, size: int, **settings: Any) -> Any:
    """Run a task whose second report is that large, and return it when it has failed twice; others go on meanwhile."""
    registry = Registry()
    counting = Counting(registry)
    registry.register_task("large", BODIES[body], retry=[0])
    # To escape so much text can take longer than a short lease.
    started = nodes(registry, max_context_bytes=2 * PACKET, lease=15.0, **settings)
    ids = started.create_tasks([NewTask(type="count")] * 3)
    until(lambda: len(counting.counted) == 3, what="the others to count")

    task = started.wait_task(started.create_task("large", size), 40.0)

    before = dict(counting.counted)
    until(lambda: all(counting.counted[each] > before[each] + 5 for each in ids), what="the others to go on")
    counting.let_off.set()
    assert {started.wait_task(each, 20.0).state for each in ids} == {State.FINISHED}
    assert {started.get_task(each).attempt for each in ids} == {1}
    assert (task.state, task.context, task.attempt) == (State.FAILED, {"size": size}, 2)
    assert [error["attempt"] for error in task.errors] == [1, 2], "what failed before is kept"
    assert other.contents() == []
    return task


@pytest.mark.databases("mariadb")  # the others take a gigabyte
def test_report_above_the_servers_packet_fails_its_attempt(node: Nodes, other: Other, effort: Effort) -> None:
    other.create_table()

    for body in effort.sample(list(BODIES), 1):
        task = _fails(node, other, body, PACKET + MEBIBYTE)

        assert f"max_allowed_packet is {PACKET}" in task.error
        assert "max_context_bytes" in task.error
        node.stop()


@pytest.mark.databases("mariadb")
def test_arguments_above_the_servers_packet_are_refused_at_the_call(node: Nodes, other: Other) -> None:
    registry = Registry()
    registry.register_task("large", finishing)
    started = node(registry, max_context_bytes=2 * PACKET)

    with pytest.raises(BadArgument, match="max_allowed_packet"):
        started.create_task("large", "x" * PACKET)

    assert other.statuses() == []


@pytest.fixture
def small_packets(admin_url: str) -> Iterator[None]:
    """A server that takes 1 MiB at once, on new connections."""
    engine = create_engine(admin_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"set global max_allowed_packet = {MEBIBYTE}")
        yield
        connection.exec_driver_sql(f"set global max_allowed_packet = {PACKET}")
    engine.dispose()


@pytest.mark.databases("mariadb")
@pytest.mark.usefixtures("small_packets")
def test_reports_that_are_too_large_together_are_stored_one_by_one(node: Nodes) -> None:
    together = threading.Barrier(20)
    registry = Registry()

    @registry.task("task")
    def task(run: Any) -> Iterator[Any]:
        together.wait(20.0)
        yield "x" * 100_000

    started = node(registry, concurrency=20)
    ids = started.create_tasks([NewTask(type="task")] * 20)

    ended = [started.wait_task(each, 20.0) for each in ids]

    assert {(task.state, task.attempt, len(task.context)) for task in ended} == {(State.FINISHED, 1, 100_000)}
