"""Many processes at once: a herd that goes for a dead node's tasks, and all that share one SQLite file."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pyasync import NewTask
from tests.faults.checks import Work
from tests.faults.nodes import Cluster
from tests.waiting import until

SLOTS = 200
HERD = 500


@pytest.mark.timeout(120)
def test_the_tasks_of_a_dead_node_are_spread_over_the_others_by_their_free_slots(cluster: Cluster) -> None:
    victim = cluster.start(concurrency=HERD)
    cluster.client.create_tasks([NewTask(type="idle")] * HERD)
    until(lambda: cluster.running() == {victim.id(): HERD}, 30.0, "the first node to run all tasks")
    others = cluster.start_some(3, concurrency=SLOTS)

    killed = victim.kill()
    until(lambda: sum(cluster.running()[node.id()] for node in others) == HERD, 40.0, "the others to run all tasks")

    spread = [cluster.running()[node.id()] for node in others]
    print(f"running as {spread} {time.monotonic() - killed:.1f} s after the kill")
    assert max(spread) <= SLOTS
    assert {row.epoch for row in cluster.rows("epoch")} == {2}
    until(lambda: cluster.taken_over() == HERD, what="a node to say so")  # which it does after it was done
    assert not list(cluster.lines("rounds go on failing"))


@pytest.mark.databases("sqlite")
@pytest.mark.timeout(120)
def test_processes_that_share_a_sqlite_file_never_see_it_busy_nor_do_anything_twice(
    cluster: Cluster, tmp_path: Path
) -> None:
    work = Work(cluster, tmp_path / "steps", steps=3, pause=0.02)
    work.prepare()
    nodes = cluster.start_some(4, concurrency=5)
    order = {"number": 100, "types": ["steps", "ledger"], "arguments": work.arguments}

    creators = [cluster.start(wait=False, job="tests.faults.worker:run_creator", **order) for _ in range(2)]
    codes = [creator.wait(60.0) for creator in creators]
    until(work.done, 60.0, "the tasks to finish")

    assert codes == [0, 0]
    assert len(work.created()) == len(cluster.rows("id")) == 200
    assert work.check() == 0
    assert work.counted["takeover"] == 0
    for node in nodes:
        assert node.terminate() == 0
    assert [line for line in cluster.lines("") if "locked" in str(line)] == []
    assert cluster.execute("pragma integrity_check") == [("ok",)]
