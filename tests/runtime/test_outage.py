"""A database that goes away for a while: no task is failed by it, none is lost, and all go on."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from sqlalchemy import text

from pyasync import DatabaseUnavailable, Finished, Registry, State, current_run
from tests.faults.proxy import Proxy
from tests.runtime.conftest import Nodes
from tests.runtime.gate import PATIENCE
from tests.runtime.other import Other
from tests.waiting import until

# SQLite is a file: it does not go away.
pytestmark = [pytest.mark.databases("postgresql", "mariadb"), pytest.mark.timeout(120)]

LEASE = 1.5
OUTAGE = 2 * LEASE
"""Longer than any lease: by the time that it ends, every node has stopped trusting itself."""


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    with Proxy(url) as proxy:
        yield proxy


class Counting:
    """Tasks that count until they are let off, and what they have counted to."""

    def __init__(self) -> None:
        self.seen: dict[Any, list[int]] = {}
        self.let_off = threading.Event()
        self.registry = Registry()
        self.registry.register_task("async", self.asynchronous, retry=[])
        self.registry.register_task("sync", self.sync, retry=[])
        self.registry.register_task("commit", self.commit, retry=[])

    async def asynchronous(self, run: Any) -> AsyncIterator[Any]:
        number = run.context or 0
        while not self.let_off.is_set():
            number += 1
            yield number
            self.seen.setdefault(run.id, []).append(number)
            await anyio.sleep(0.01)
        yield Finished(number)

    def sync(self, run: Any) -> Iterator[Any]:
        number = run.context or 0
        while not self.let_off.is_set():
            number += 1
            yield number
            self.seen.setdefault(run.id, []).append(number)
        yield Finished(number)

    def commit(self) -> int:
        run = current_run()
        number = run.context or 0
        while not self.let_off.is_set():
            number += 1
            run.commit(number, lambda connection, number=number: _write_down(connection, run.id, number))
            self.seen.setdefault(run.id, []).append(number)
        return number

    def made(self) -> int:
        """Return how many checkpoints were made, of all tasks together."""
        return sum(len(each) for each in list(self.seen.values()))


def _write_down(connection: Any, task_id: Any, number: int) -> None:
    connection.execute(text("insert into effect values (:content)"), {"content": f"{task_id.hex}-{number:08}"})


@pytest.mark.parametrize("how", ["cut", "hang"])
def test_outage_longer_than_the_lease_fails_no_task(proxy: Proxy, node: Nodes, other: Other, how: str) -> None:
    counting = Counting()
    short = {"url": proxy.url, "lease": LEASE, "database_timeout": 1.0, "concurrency": 20}
    nodes = [node(counting.registry, name=name, **short) for name in ("north", "south")]
    other.create_table()
    ids = [nodes[0].create_task(name) for name in ("async", "sync", "commit") * 4]
    until(lambda: len(counting.seen) == 12, PATIENCE, "all to run")
    began = time.monotonic()

    getattr(proxy, how)()
    until(lambda: not any(each.health().ok for each in nodes), PATIENCE, "the nodes to notice")
    reasons = {each.health().reason for each in nodes}
    until(lambda: time.monotonic() - began > OUTAGE, PATIENCE, "two leases to pass")
    made = counting.made()
    proxy.mend()
    until(lambda: counting.made() >= made + 12, PATIENCE, "tasks to go on")
    until(lambda: all(each.health().ok for each in nodes), PATIENCE, "the nodes to recover")
    counting.let_off.set()
    tasks = [nodes[0].wait_task(task_id, PATIENCE) for task_id in ids]

    assert reasons == {"it could not renew its lease: the database does not answer"}
    assert [(task.state, task.attempt, task.errors) for task in tasks] == [(State.FINISHED, 1, [])] * 12
    assert all(_counts_up(seen) for seen in counting.seen.values())
    written_down = [each for each in other.contents() if each[:32] == ids[2].hex]
    assert written_down == [f"{ids[2].hex}-{number:08}" for number in range(1, len(written_down) + 1)]
    assert len(written_down) == int(other.row(ids[2]).context) > 0


def _counts_up(seen: list[int]) -> bool:
    """Whether each number follows the one before, or is where a later run went on."""
    return all(later == earlier + 1 for earlier, later in itertools.pairwise(seen))


def test_node_stops_in_time_while_its_database_is_away(proxy: Proxy, node: Nodes, other: Other) -> None:
    counting = Counting()
    started = node(counting.registry, url=proxy.url, lease=LEASE, database_timeout=1.0)
    ids = [started.create_task(name) for name in ("async", "sync")]
    until(lambda: len(counting.seen) == 2, PATIENCE, "all to run")

    proxy.cut()
    began = time.monotonic()
    started.stop(0.1)
    took = time.monotonic() - began
    counting.let_off.set()

    assert took < 25
    assert started.health().reason == "it is stopped"
    assert [other.status(task_id) for task_id in ids] == ["running, run"] * 2
    second = node(counting.registry)
    assert [second.wait_task(task_id, PATIENCE).attempt for task_id in ids] == [1, 1]


def test_verb_waits_out_a_short_outage(proxy: Proxy, node: Nodes) -> None:
    registry = Registry()
    registry.register_task("task", lambda: "done")
    started = node(registry, url=proxy.url)
    proxy.cut()

    mending = threading.Timer(1.0, proxy.mend)
    mending.start()
    task_id = started.create_task("task")

    assert started.result(task_id, PATIENCE) == "done"
    mending.join()


def test_start_without_a_database_says_so_and_leaves_nothing_behind(proxy: Proxy, node: Nodes) -> None:
    proxy.cut()
    before = {each.name for each in threading.enumerate()}
    fresh = node.make(Registry(), url=proxy.url, migrate="off")

    with pytest.raises(DatabaseUnavailable):
        fresh.start()

    until(lambda: "pyasync-loop" in before or "pyasync-loop" not in {each.name for each in threading.enumerate()})
    assert fresh.health().reason == "it is stopped"
