"""A node that does nothing for longer than its lease, and then goes on as if it had not been away."""

from __future__ import annotations

import random
import time
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from pyasync import NewTask, Node, Settings
from pyasync.ids import new_id
from pyasync.store import nodes
from pyasync.store.database import Database, Tx
from tests.faults.checks import Work
from tests.faults.effort import Effort
from tests.faults.nodes import Cluster, NodeProcess
from tests.faults.residue import nothing_left, residue, until_nothing_is_left
from tests.faults.worker import registry
from tests.waiting import until

LEASE = 2.0
LATE = 1.0
"""Seconds by which a keeper goes on later than the runs: else it may tell these first that they are lost."""
TASKS = 8


@pytest.mark.timeout(120)
def test_nodes_that_were_stopped_for_longer_than_their_lease_write_nothing_and_join_again(
    cluster: Cluster, tmp_path: Path, effort: Effort
) -> None:
    chance = effort.random("zombies")
    work = Work(cluster, tmp_path / "steps", steps=55, pause=0.05)
    both = cluster.start_some(2, concurrency=TASKS, lease=LEASE, late=LATE)
    held, refused = 0, []

    for _ in effort.rounds(2, 5):
        work.create(TASKS)
        zombie, was, had = stopped_at_a_random_moment(cluster, both, chance)
        until(lambda was=was: not cluster.running()[was], 30.0, "the other node to take over all tasks")
        zombie.go_on()
        until(lambda zombie=zombie, was=was: zombie.joined_again(was), 30.0, "it to join again")
        until(work.done, 60.0, "the tasks to finish")
        held += had
        refused.append(sum(line["node_id"] == str(was) for line in zombie.lines("a write was refused")))

    work.check()
    print(f"refused writes of each: {refused}; {work.counted}")
    # Of a single one all may be told first, by the watcher or by the row of a table that the heir has inserted.
    assert sum(refused) > 0, "this counts only if stopped nodes' runs have tried to write"
    assert work.counted["takeover"] >= held
    assert {line["reason"] for line in cluster.lines("a run was stopped")} == {"lost"}


def stopped_at_a_random_moment(
    cluster: Cluster, both: list[NodeProcess], chance: random.Random
) -> tuple[NodeProcess, UUID, int]:
    """Stop one of the nodes that run tasks; return it, its id, and how many tasks it has."""
    until(lambda: sum(cluster.running().values()) == TASKS, what="all tasks to run")
    at = time.monotonic() + chance.uniform(0.1, 1.0)
    until(lambda: time.monotonic() >= at)
    zombie = chance.choice([node for node in both if cluster.running()[node.id()]])
    was = zombie.id()
    zombie.stop_outside_of_transactions()
    had = cluster.running()[was]
    assert had, "this counts only if it was running something"
    return zombie, was, had


def test_a_node_that_is_declared_lost_again_and_again_leaves_nothing_behind(url: str) -> None:
    settings = {"poll_interval": 0.1, "stop_grace": 1.0, "migrate": "auto"}
    with Node(url, registry(url), **settings):
        pass  # imports, and tables

    with nothing_left(url), Node(url, registry(url), **settings) as node:
        node.create_tasks([NewTask(type="reporter")] * 3 + [NewTask(type="waiting")] * 3)
        until(lambda: min(reports(node).values()) == 1, what="all tasks to run")
        for _ in range(2):
            lose(node)
        before = until(lambda: found if (found := residue(url)).threads["pyasync-run"] == 3 else None)
        for _ in range(4):
            lose(node)
        until_nothing_is_left(url, before)


def lose(node: Node) -> None:
    """Declare a node lost, and wait until it has joined again and runs its tasks again."""
    was, had = node.health().node_id, reports(node)

    def declare(tx: Tx) -> bool:
        return any(nodes.declare_lost(tx, peer) for peer in nodes.peers(tx, new_id()) if peer.id == was)

    until(lambda: node._database.run(declare), what="a beat that does not come in between")
    node._keeper.beat_soon()
    until(lambda: node.health().node_id != was, what="it to join again")
    until(lambda: node.health().ok and node.health().running == 6, 20.0, "its tasks to run again")
    # A task that is lost again and again before it reports is on probation, and then runs alone.
    until(lambda: all(seq > had[task] for task, seq in reports(node).items()), 20.0, "each of them to report again")


def reports(node: Node) -> dict[UUID, int]:
    return {task.id: task.seq for task in node.get_tasks()}


@pytest.mark.databases("postgresql", "mariadb")
def test_a_row_that_a_stopped_node_has_only_locked_is_free_after_its_lease(cluster: Cluster) -> None:
    task_id = cluster.client.create_task("steps")

    def lock(tx: Tx) -> bool:
        column = tx.t.task.c.id
        return tx.execute(select(column).where(column == task_id).with_for_update(skip_locked=True)).first() is not None

    stopped = Database(cluster.url, Settings(lease=1.0))
    with pytest.raises(DBAPIError), stopped.transaction() as tx:
        assert lock(tx)
        assert not cluster.client._database.once(lock)
        until(lambda: cluster.client._database.once(lock), 10.0, "the database to end the idle session")
        lock(tx)
    stopped.close()
