"""Nodes that die, and who goes on with their tasks: how soon, from where, and whose fault it was."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import update

from pyasync import NewTask, Node
from pyasync.store.database import Tx
from tests.faults.checks import Work
from tests.faults.nodes import Cluster, NodeProcess
from tests.faults.worker import registry
from tests.waiting import until

SOON = 6.0
"""Seconds within which a dead connection must have had its effect, on a busy machine; the default lease is 15."""
LEASE = 2.5
TASKS = 8


def with_idle_tasks(cluster: Cluster, **settings: object) -> tuple[NodeProcess, NodeProcess]:
    """Start two nodes, of which the first has all the tasks, which never report."""
    first = cluster.start(**settings)
    cluster.client.create_tasks([NewTask(type="idle")] * TASKS)
    until(lambda: cluster.running() == {first.id(): TASKS}, what="the first node to run all tasks")
    return first, cluster.start(**settings)


def seconds_until_claimed_again(cluster: Cluster, since: float) -> float:
    until(lambda: all(row.epoch == 2 for row in cluster.rows("epoch")), 40.0, "the other node to run the tasks")
    return time.monotonic() - since


def test_tasks_of_a_killed_node_go_on_elsewhere_from_their_last_checkpoint_in_seconds(
    cluster: Cluster, tmp_path: Path
) -> None:
    work = Work(cluster, tmp_path / "steps", steps=45, pause=0.1)
    victim = cluster.start()
    work.create(TASKS)
    until(lambda: cluster.running() == {victim.id(): TASKS}, what="the first node to run all tasks")
    heir = cluster.start()
    # The heir must have seen the victim alive: it looks every 0.4 to 1 s.
    seen = max(row.seq for row in cluster.rows("seq")) + 12
    until(lambda: min(row.seq for row in cluster.rows("seq")) >= seen, 30.0, "the tasks to make some steps")

    killed = victim.kill()
    stored = {row.id: row.seq for row in cluster.rows("id", "seq")}
    took = seconds_until_claimed_again(cluster, killed)

    print(f"running elsewhere {took:.2f} s after the kill")
    assert took < SOON
    until(work.done, 45.0, "the tasks to finish")
    work.check()
    assert {task: lives[2][0] for task, lives in work.made().items()} == {task: seq + 1 for task, seq in stored.items()}
    assert [line["reason"] for line in heir.lines("a node was declared lost")] == ["its connection ended"]


def test_a_killed_node_costs_its_tasks_a_loss_and_one_that_is_told_to_stop_none(cluster: Cluster) -> None:
    first, second = with_idle_tasks(cluster, lease=5.0)

    asked = time.monotonic()
    assert first.terminate() == 0
    took = seconds_until_claimed_again(cluster, asked)

    print(f"running elsewhere {took:.2f} s after SIGTERM")
    assert took < 3.0, "nobody waits for the lease of a node that has left"
    assert {row.losses for row in cluster.rows("losses")} == {0}
    assert (cluster.taken_over(), [info.name for info in cluster.client.get_nodes()]) == (0, [second.name])

    third = cluster.start(lease=5.0)
    second.kill()
    until(lambda: cluster.running() == {third.id(): TASKS}, 20.0, "the last node to run all tasks")
    assert {tuple(row) for row in cluster.rows("losses", "epoch")} == {(1, 3)}
    until(lambda: cluster.taken_over() == TASKS, what="the last node to say so")  # which it does after it was done


@pytest.mark.databases("postgresql", "sqlite")
def test_the_others_hear_of_what_is_handed_over_before_they_look(cluster: Cluster) -> None:
    first, _ = with_idle_tasks(cluster, poll_interval=60.0)

    asked = time.monotonic()
    first.terminate()
    took = seconds_until_claimed_again(cluster, asked)

    print(f"running elsewhere {took:.2f} s after SIGTERM")
    assert took < SOON


def test_all_tasks_finish_exactly_after_all_nodes_were_killed_at_once(cluster: Cluster, tmp_path: Path) -> None:
    work = Work(cluster, tmp_path / "steps", steps=20, pause=0.1)
    nodes = cluster.start_some(3, lease=LEASE, concurrency=4)
    work.create(12)
    until(lambda: sum(cluster.running().values()) == 12, what="all tasks to run")
    until(lambda: min(row.seq for row in cluster.rows("seq")) > 0, what="all tasks to make a step")

    killed = [node.kill() for node in nodes]
    running = sum(cluster.running().values())
    cluster.start_some(3, lease=LEASE, concurrency=4)
    took = seconds_until_claimed_again(cluster, killed[-1])

    print(f"{running} tasks running again {took:.2f} s after the kills")
    assert running == 12
    assert took < LEASE + 6.0
    until(work.done, 30.0, "the tasks to finish")
    work.check()


def test_a_task_on_probation_holds_the_next_one_back_only_until_it_has_reported(sqlite_url: str) -> None:
    with Node(sqlite_url, registry(sqlite_url), poll_interval=0.1, types=["reporter"]) as node:
        tasks = [node.create_task("reporter", auto_run=False) for _ in range(2)]
        node._database.run(_lose, 2)
        node.run_tasks(ids=tasks)

        until(lambda: [task.epoch for task in node.get_tasks(ids=tasks)] == [1, 1], what="both to run")


def _lose(tx: Tx, losses: int) -> None:
    tx.execute(update(tx.t.task).values(losses=losses))
