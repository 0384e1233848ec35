"""How soon the tasks of a killed node begin elsewhere, and that a node which lives loses none."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import pytest
from sqlalchemy import create_engine

from pyasync.store.locks import CLASS
from tests.faults.beacon import Beginning, beginnings
from tests.faults.checks import Work
from tests.faults.effort import Effort
from tests.faults.nodes import Cluster, NodeProcess
from tests.waiting import until

REGISTRY = "tests.faults.beacon:registry"
LEASE = 3.0
TASKS = 4
SEEN = (1.5, 2.5)
"""Seconds for which a node lives beside another before that is killed: it looks at the other's lock every 0.4 s."""


@dataclass
class Kills:
    """One task, on one of two nodes, which is killed; then the other is the one, and so on."""

    cluster: Cluster
    file: Path
    random: random.Random
    settings: dict[str, object]
    seconds: list[float] = field(default_factory=list)
    """From each kill to the first line of the task's body on the other node."""

    def run(self, number: int) -> None:
        """Kill so many nodes."""
        self.cluster.client.create_task("beacon", str(self.file))
        victim = self._start()
        self._begun(1)
        for kill in range(number):
            heir = self._start()
            _pass(self.random.uniform(*SEEN))
            killed = victim.kill()
            begun = self._begun(kill + 2)
            assert begun.pid == heir.pid
            self.seconds.append(begun.at - killed)
            victim = heir
        print(f"{number} kills: " + ", ".join(f"{each:.2f}" for each in sorted(self.seconds)), "s")

    def reasons(self) -> set[str]:
        """Return for what reasons nodes were declared lost."""
        return {line["reason"] for line in self.cluster.lines("a node was declared lost")}

    def _start(self) -> NodeProcess:
        return self.cluster.start(registry=REGISTRY, **self.settings)

    def _begun(self, epoch: int) -> Beginning:
        until(lambda: len(beginnings(self.file)) >= epoch, 40.0, f"the task to begin for the {epoch}th time")
        begun = beginnings(self.file)
        assert [each.epoch for each in begun] == list(range(1, epoch + 1))
        return begun[-1]


def _pass(seconds: float) -> None:
    """Let time pass that a node is to have lived for."""
    at = time.monotonic() + seconds
    until(lambda: time.monotonic() >= at, seconds + 1.0)


@pytest.mark.timeout(180)
def test_a_killed_nodes_task_begins_elsewhere_in_about_a_second(
    cluster: Cluster, tmp_path: Path, effort: Effort
) -> None:
    kills = Kills(cluster, tmp_path / "begun", effort.random("kills"), {})

    kills.run(effort.number(5, 30))

    assert median(kills.seconds) <= 1.5
    assert quantiles(kills.seconds, n=20, method="inclusive")[-1] <= 3.0
    assert kills.reasons() == {"its connection ended"}


@pytest.mark.timeout(180)
def test_a_killed_nodes_task_begins_elsewhere_after_its_lease_if_nothing_else_tells(
    cluster: Cluster, tmp_path: Path, effort: Effort
) -> None:
    settings: dict[str, object] = {"lease": LEASE, "fast_detection": False}
    kills = Kills(cluster, tmp_path / "begun", effort.random("kills"), settings)

    kills.run(effort.number(2, 10))

    assert quantiles(kills.seconds, n=20, method="inclusive")[-1] <= LEASE + 3.0
    assert max(kills.seconds) <= LEASE + 6.0
    assert kills.reasons() == {"its lease ran out"}


@pytest.mark.databases("postgresql")
def test_a_living_node_that_cannot_connect_again_loses_its_tasks_and_nothing_else(
    cluster: Cluster, admin_url: str, tmp_path: Path
) -> None:
    """A lock that is free does not mean a node that is dead: what was taken from it stays taken, and it joins again."""
    work = Work(cluster, tmp_path / "steps", steps=60, pause=0.1)
    alive = cluster.start(concurrency=TASKS)
    work.create(TASKS)
    until(lambda: cluster.running() == {alive.id(): TASKS}, what="the first node to run all tasks")
    heir = cluster.start(concurrency=TASKS)
    was = alive.id()
    _pass(SEEN[1])

    with no_more_connections(admin_url):
        end_session_of_keeper(admin_url, cluster, alive)
        until(lambda: heir.lines("a node was declared lost"), 20.0, "the other node to miss its lock")

    until(lambda: alive.row() is not None and alive.id() != was, 30.0, "the node to join again")
    until(work.done, 60.0, "the tasks to finish")
    work.check()
    assert [line["reason"] for line in heir.lines("a node was declared lost")] == ["its connection ended"]
    assert cluster.taken_over() >= TASKS, "and what the node has claimed before it was told"


@contextmanager
def no_more_connections(admin_url: str) -> Iterator[None]:
    """Refuse new connections of the applications' user, as a server does that is full; those that are open stay."""
    execute(admin_url, "ALTER ROLE app CONNECTION LIMIT 0")
    try:
        yield
    finally:
        execute(admin_url, "ALTER ROLE app CONNECTION LIMIT -1")


def end_session_of_keeper(admin_url: str, cluster: Cluster, node: NodeProcess) -> None:
    """End the one session of a node that has its lock."""
    key = cluster.execute(f"SELECT session_key FROM pyasync_node WHERE name = '{node.name}'")[0][0]
    locks = f"locktype = 'advisory' AND classid = {CLASS} AND objid::bigint = {int(key) % 2**32}"
    ended = execute(admin_url, f"SELECT pg_terminate_backend(pid) FROM pg_locks WHERE {locks} AND granted")
    assert ended == [(True,)]


def execute(url: str, sql: str) -> list[tuple[object, ...]]:
    """Run a statement as the administrator."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        result = connection.exec_driver_sql(sql)
        rows = [tuple(row) for row in result] if result.returns_rows else []
    engine.dispose()
    return rows
