"""A process that is stopped in the middle of a transaction, and whom it keeps from going on."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import select

from pyasync.cli import main
from pyasync.store.database import Tx
from tests.faults.checks import Work
from tests.faults.nodes import Cluster, NodeProcess
from tests.waiting import until

LEASE = 2.0
TASKS = 8
ROOM = 4.0
"""Seconds for the beat after which a takeover is tried again, and for a busy machine."""


def stopped_inside_a_transaction(cluster: Cluster, work: Work) -> tuple[NodeProcess, NodeProcess, float]:
    """Start two nodes, of which the first runs all tasks; stop that one before a commit of what they report."""
    stopped = cluster.start(concurrency=TASKS, lease=LEASE, late=1.0)
    work.create(TASKS)
    until(lambda: cluster.running() == {stopped.id(): TASKS}, what="the first node to run all tasks")
    heir = cluster.start(concurrency=TASKS, lease=LEASE)
    at = stopped.stop_inside_a_transaction()
    assert stopped.lines("stopped before the commit")
    return stopped, heir, at


@pytest.mark.databases("postgresql", "mariadb")
@pytest.mark.timeout(120)
def test_rows_that_a_stopped_node_has_written_and_not_committed_go_on_elsewhere_after_its_lease_and_the_idle_limit(
    cluster: Cluster, tmp_path: Path
) -> None:
    work = Work(cluster, tmp_path / "steps", steps=100, pause=0.05)
    zombie, heir, at = stopped_inside_a_transaction(cluster, work)
    was = zombie.id()
    locked = TASKS - free_rows(cluster)

    until(lambda: not cluster.running()[was], 30.0, "the other node to take over all tasks")
    took = time.monotonic() - at
    zombie.go_on()

    print(
        f"{locked} rows locked; all taken over {took:.1f} s after the stop, of a lease and an idle limit of {LEASE:g} s"
    )
    assert locked, "this counts only if rows were written and not committed"
    assert took < 2 * LEASE + ROOM
    until(lambda: zombie.joined_again(was), 30.0, "the stopped node to join again")
    until(work.done, 60.0, "the tasks to finish")
    work.check()
    assert zombie.lines("a write was refused")
    assert len(heir.lines("a node was declared lost")) == 1
    assert work.counted["takeover"] == cluster.taken_over() == TASKS


def free_rows(cluster: Cluster) -> int:
    """How many tasks' rows nobody has locked."""

    def lock(tx: Tx) -> int:
        return len(tx.execute(select(tx.t.task.c.id).with_for_update(skip_locked=True)).all())

    return cluster.client._database.once(lock)


@pytest.mark.databases("sqlite")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("end", ["goes on", "is killed"])
def test_on_sqlite_a_process_stopped_inside_a_transaction_locks_out_all_writers_until_it_goes_on_or_is_killed(
    cluster: Cluster, tmp_path: Path, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Work(cluster, tmp_path / "steps", steps=60, pause=0.05)
    stopped, heir, at = stopped_inside_a_transaction(cluster, work)
    seen = cluster.rows("id", "seq", "epoch")
    created: list[UUID] = []
    creator = threading.Thread(target=lambda: created.extend(work.create(1)), daemon=True)
    creator.start()

    until(lambda: time.monotonic() > at + 1.5 * LEASE, 20.0, "more than a lease to pass")

    assert not cluster.can_write()
    assert cluster.rows("id", "seq", "epoch") == seen, "everybody can read, and nothing goes on"
    assert heir.alive
    assert not created
    assert main(["doctor", "--database", cluster.url]) == 1
    assert f"process {stopped.pid} is inside a transaction" in capsys.readouterr().out
    if end == "goes on":
        stopped.go_on()
    else:
        stopped.kill()
    until(cluster.can_write, what="the database to be free")
    until(lambda: created, 30.0, "who wanted to write meanwhile to have done so")
    creator.join()
    until(work.done, 60.0, "the tasks to finish")
    work.check()
    assert {row.id for row in cluster.rows("id")} >= set(created)
