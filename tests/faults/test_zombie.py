"""A node that does nothing for longer than its lease, and then goes on as if it had not been away."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from pyasync import Settings
from pyasync.store.database import Database, Tx
from tests.faults.checks import Work
from tests.faults.nodes import Cluster
from tests.waiting import until

LEASE = 3.0
TASKS = 8


@pytest.mark.timeout(120)
def test_a_node_that_was_stopped_for_longer_than_its_lease_writes_nothing_and_joins_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    work = Work(cluster, tmp_path / "steps", steps=90, pause=0.05)
    zombie = cluster.start(concurrency=TASKS, lease=LEASE, late=1.0)
    ids = work.create(TASKS)
    until(lambda: cluster.running() == {zombie.id(): TASKS}, what="the first node to run all tasks")
    heir = cluster.start(concurrency=TASKS, lease=LEASE)
    was = zombie.id()

    zombie.stop_outside_of_transactions()
    until(lambda: all(row.epoch == 2 for row in cluster.rows("epoch")), 30.0, "the other node to take over all tasks")
    zombie.go_on()

    until(lambda: zombie.row() is not None and zombie.id() != was, 30.0, "the stopped node to join again")
    until(work.done, 60.0, "the tasks to finish")
    work.check()
    refused = [line for line in zombie.lines("a write was refused") if line["node_id"] == str(was)]
    print(f"{len(refused)} writes refused")
    # Not all have tried to: some were told first, by the keeper, that they are lost.
    assert refused, "this counts only if a stopped node's run has tried to write"
    stopped = {line["task"]: line["reason"] for line in zombie.lines("a run was stopped") if line["epoch"] == 1}
    # The others may have met their step in the table, which the heir had inserted, before they got to their own write.
    assert stopped.keys() >= {str(each) for each in ids[::2]}
    assert set(stopped.values()) == {"lost"}
    assert [line["reason"] for line in heir.lines("a node was declared lost")] == ["its lease ran out"]
    assert cluster.taken_over() == TASKS


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
