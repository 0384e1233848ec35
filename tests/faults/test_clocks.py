"""Clocks that are an hour off, and change under way: nobody is declared lost for it, and nothing waits for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from pyasync import NewTask
from tests.conftest import cannot_be_had
from tests.faults.clock import HOUR, Clock, Nurseries, tidy
from tests.faults.load import LEASE, Load, loaded
from tests.faults.nodes import Nursery
from tests.servers import MariaDB, PostgreSQL, PrivateServer, Unavailable
from tests.waiting import until

SOON = 8.0
"""Seconds, on a busy machine, within which what does not wait for a clock happens."""
NOW = {"postgresql": "SELECT extract(epoch FROM clock_timestamp())", "mariadb": "SELECT unix_timestamp(sysdate(6))"}
SLOTS = 16
REGISTRY = "tests.faults.clock:registry"


@pytest.fixture
def clocks(tmp_path: Path) -> list[Clock]:
    try:
        return [Clock(tmp_path / name) for name in ("one", "other")]
    except Unavailable as reason:
        cannot_be_had(str(reason))


@pytest.mark.databases("postgresql", "mariadb")
@pytest.mark.timeout(120)
def test_clocks_of_nodes_that_step_by_hours_cost_no_report_and_take_over_nobody(
    url: str, clocks: list[Clock], tmp_path: Path
) -> None:
    one, other = clocks
    with ExitStack() as stack:
        nursery = Nurseries([stack.enter_context(clock.nursery()) for clock in clocks])
        load = stack.enter_context(
            loaded(url, nursery, tmp_path, registry=REGISTRY, concurrency=SLOTS, create_every=0.5)
        )

        for offset in (HOUR, -HOUR, 0):
            one.set(offset)
            other.set(-offset)
            until(lambda wanted={offset, -offset}: times_of_day(load) == wanted, 20.0, "the nodes' clocks to change")
            took = load.flows(60)
            late = lateness(load)
            print(f"{offset:+} s: 60 steps in {took:.2f} s, timers late by {min(late):.2f} to {max(late):.2f} s")
            assert 0.0 <= min(late) <= max(late) < SOON

        load.check()


def ask(load: Load, run_at: datetime | None = None) -> dict[int, tuple[int, float]]:
    """Ask the nodes for the time; return by how much each is off, and how late after `run_at` it was claimed."""
    client, found = load.cluster.client, {}
    question = NewTask(type="time of day", priority=1, run_at=run_at)
    while len(found) < len(load.cluster.nodes):
        for task_id in client.create_tasks([question] * (SLOTS + 4)):  # more than one of them can take
            task = client.wait_task(task_id, 30.0)
            pid, there = task.result
            assert task.started_at is not None
            late = 0.0 if run_at is None else (task.started_at - run_at).total_seconds()
            found[pid] = round((there - time.time()) / 60) * 60, late
    return found


def times_of_day(load: Load) -> set[int]:
    """By how many seconds the clocks of the nodes are off."""
    return {off for off, _ in ask(load).values()}


def lateness(load: Load) -> list[float]:
    """How many seconds after a moment of the database's time each node has begun with what waited for it."""
    first = load.cluster.client.create_task("innocent", {"n": 1, "pause": 0.0}, priority=1)
    moment = load.cluster.client.get_task(first).created_at + timedelta(seconds=2)
    return [late for _, late in ask(load, moment).values()]


@pytest.fixture(params=[PostgreSQL, MariaDB], ids=["postgresql", "mariadb"])
def timed(request: pytest.FixtureRequest) -> Iterator[tuple[PrivateServer, Clock]]:
    """A server, and the clock by which it goes."""
    try:
        server = request.param()
        clock = Clock(server.folder / "clock")
    except Unavailable as reason:
        cannot_be_had(str(reason))
    # Each process of a server must see a step at the same time.
    server.environment = clock.environment | {"FAKETIME_NO_CACHE": "1"}
    with server:
        yield server, clock
    tidy(server.pid)


@pytest.mark.timeout(180)
def test_a_database_whose_clock_steps_by_hours_loses_no_node_and_blinds_none(
    timed: tuple[PrivateServer, Clock], nursery: Nursery, tmp_path: Path
) -> None:
    server, clock = timed
    with loaded(
        server.url(server.create()), nursery, tmp_path, registry=REGISTRY, concurrency=SLOTS, create_every=0.5
    ) as load:
        for offset in (HOUR, -HOUR, 0):
            clock.set(offset)
            until(lambda offset=offset: shows(server, offset), 20.0, "the database's clock to change")
            took = load.flows()
            late = lateness(load)
            print(f"{offset:+} s: 20 steps in {took:.2f} s, timers late by {min(late):.2f} to {max(late):.2f} s")
            assert took < SOON
            assert 0.0 <= min(late) <= max(late) < SOON

        load.check()
        check_takeover(load, clock)


def shows(server: PrivateServer, offset: int) -> bool:
    with server.connect() as connection:
        return abs(float(connection.scalar(text(NOW[server.kind]))) - time.time() - offset) < 60


def check_takeover(load: Load, clock: Clock) -> None:
    """The tasks of a node that is really killed go on, though the clock steps at that moment."""
    load.work.create(SLOTS)
    until(load.cluster.running, 20.0, "a node to run tasks")
    was = load.cluster.running().most_common(1)[0][0]
    victim, heir = sorted(load.cluster.nodes, key=lambda node: node.id() != was)

    killed = victim.kill()
    clock.set(-HOUR)
    until(lambda: load.cluster.running()[was] == 0, LEASE + SOON, "the takeover")

    print(f"taken over {time.monotonic() - killed:.2f} s after the kill")
    assert [line["node_id"] for line in heir.lines("a node was declared lost")] == [str(was)]
    until(load.work.done, 60.0, "the tasks to finish")
    load.work.check()


@pytest.mark.timeout(120)
def test_nodes_on_sqlite_whose_common_clock_steps_by_hours_go_on(
    sqlite_url: str, clocks: list[Clock], tmp_path: Path
) -> None:
    clock = clocks[0]
    with (
        clock.nursery() as nursery,
        loaded(sqlite_url, nursery, tmp_path, registry=REGISTRY, concurrency=SLOTS, create_every=0.5) as load,
    ):
        for offset in (HOUR, -HOUR, 0):
            clock.set(offset)
            until(lambda wanted={offset}: times_of_day(load) == wanted, 20.0, "the nodes' clocks to change")
            took = load.flows(60)
            print(f"{offset:+} s: 60 steps in {took:.2f} s")

        load.check()
        check_takeover(load, clock)
