"""A node that does nothing for longer than its lease, and then goes on as if it had not been away."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.checks import Work
from tests.cluster.nodes import Cluster
from tests.waiting import until

LEASE = 2.0
TASKS = 12


def test_a_node_that_was_stopped_for_longer_than_its_lease_writes_nothing_and_joins_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    work = Work(cluster, tmp_path / "steps", steps=150, pause=0.02)
    zombie = cluster.start(concurrency=TASKS, lease=LEASE)
    work.create(TASKS)
    until(lambda: cluster.running() == {zombie.id(): TASKS}, what="the first node to run all tasks")
    heir = cluster.start(concurrency=TASKS, lease=LEASE)
    was = zombie.id()

    zombie.stop_outside_of_transactions()
    until(lambda: all(row.epoch == 2 for row in cluster.rows("epoch")), 30.0, "the other node to take over all tasks")
    zombie.go_on()

    until(lambda: zombie.row() is not None and zombie.id() != was, 30.0, "the stopped node to join again")
    until(work.done, 45.0, "the tasks to finish")
    work.check()
    refused = zombie.lines("a write was refused")
    print(f"{len(refused)} writes refused")
    assert refused, "nothing tried to write, so nothing is proven"
    assert {line["node_id"] for line in refused} == {str(was)}
    stopped = [line["reason"] for line in zombie.lines("a run was stopped") if line["epoch"] == 1]
    assert stopped == ["lost"] * TASKS
    assert [line["reason"] for line in heir.lines("a node was declared lost")] == ["its lease ran out"]
    assert cluster.taken_over() == TASKS
