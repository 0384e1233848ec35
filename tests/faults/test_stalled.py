"""Nodes whose event loop, or whose whole interpreter, is taken by user code for longer than their lease."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from pyasync import NewTask, Node, State
from pyasync.runtime import keeper
from tests.faults.checks import Work
from tests.faults.nodes import Cluster
from tests.faults.worker import registry
from tests.waiting import until

LEASE = 2.0
STALL = 3 * LEASE
TASKS = 6
ATTEMPTS = 5
BLOCKED = "the event loop is blocked"


@pytest.mark.timeout(120)
def test_a_node_whose_loop_is_blocked_for_three_leases_keeps_its_tasks_and_takes_no_others(cluster: Cluster) -> None:
    stalled = cluster.start(concurrency=TASKS, lease=LEASE, stall_after=0.5, poll_interval=0.2)
    blocker = cluster.client.create_task("blocker", {"seconds": STALL})
    until(lambda: stalled.lines(BLOCKED), 20.0, "the node to say that its loop is blocked")
    other = cluster.start(concurrency=TASKS - 2, lease=LEASE, poll_interval=0.2)
    before, began = beats(cluster, stalled.name), time.monotonic()

    idle = cluster.client.create_tasks([NewTask(type="idle")] * TASKS)
    until(lambda: cluster.running()[other.id()] == TASKS - 2, what="the other node to fill its slots")
    last = beats(cluster, stalled.name)
    while (blocking := cluster.client.get_task(blocker)).state is State.RUNNING:
        last = beats(cluster, stalled.name)
        pause(0.1)

    assert blocking.state is State.FINISHED
    assert last - before >= (time.monotonic() - began) / LEASE, "it beat all the time"
    assert (blocking.epoch, cluster.taken_over()) == (1, 0)
    assert not list(cluster.lines("a node was declared lost"))
    (told,) = stalled.lines(BLOCKED)
    assert "time.sleep" in told["message"]
    until(lambda: cluster.running()[stalled.id()] == 2, what="it to take tasks again")
    taken = [task.started_at for task in map(cluster.client.get_task, idle) if task.node == stalled.id()]
    assert min(taken) >= blocking.started_at + timedelta(seconds=STALL), "two waited, and it had free slots"


def pause(seconds: float) -> None:
    """Let others go on for a while."""
    at = time.monotonic() + seconds
    until(lambda: time.monotonic() > at)


def beats(cluster: Cluster, name: str) -> int:
    """How often a node has beaten."""
    return int(cluster.execute(f"select counter from pyasync_node where name = '{name}'")[0][0])


@pytest.mark.timeout(180)
def test_a_node_whose_interpreter_stands_still_for_three_leases_is_taken_over_and_writes_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    work = Work(cluster, tmp_path / "steps", steps=150, pause=0.05)
    zombie = cluster.start(concurrency=TASKS + 1, lease=LEASE, late=1.0)
    was = zombie.id()
    work.create(TASKS)
    until(lambda: cluster.running() == {was: TASKS}, what="the node to run all tasks")
    heir = cluster.start(concurrency=TASKS + 1, lease=LEASE, types=["steps", "ledger"])
    hoarders = [hoard(cluster)]
    while not cluster.taken_over():
        # It was inside a transaction: on SQLite nobody else could write, and so nobody could take over.
        assert len(hoarders) < ATTEMPTS
        hoarders.append(hoard(cluster))
    until(lambda: zombie.joined_again(was), 60.0, "the node to join again")
    until(work.done, 60.0, "the tasks to finish")

    work.check()
    stalls = [line["seconds"] for line in zombie.lines("the interpreter was not given back")]
    refused = sum(line["node_id"] == str(was) for line in zombie.lines("a write was refused"))
    print(f"nothing else ran for {stalls} s; {refused} writes refused; {work.counted}")
    assert min(stalls) > 1.5 * LEASE
    assert refused > 0, "this counts only if it has tried to write"
    assert len(heir.lines("a node was declared lost")) == 1
    assert work.counted["takeover"] == TASKS + 1
    assert cluster.client.get_task(hoarders[-1]).epoch == 2


def hoard(cluster: Cluster) -> UUID:
    """Have the first node hold up all its threads, and wait until it has lost its tasks or has got through."""
    task = cluster.client.create_task("hoarder", {"seconds": STALL})
    until(lambda: cluster.taken_over() or cluster.client.get_task(task).ended, 60.0, "an end of the stall")
    return task


def test_a_node_says_that_its_loop_is_blocked(sqlite_url: str) -> None:
    with Node(sqlite_url, registry(sqlite_url), stall_after=0.2, poll_interval=0.1) as node:
        assert node.health().ok
        task = node.create_task("blocker", {"seconds": 2.0})

        until(lambda: not node.health().ok, what="it to notice")

        assert node.health().reason == "its event loop is blocked"
        assert node.wait_task(task, 10.0).state is State.FINISHED
        until(lambda: node.health().ok, what="it to be well again")


def test_a_node_whose_machine_has_slept_for_a_lease_takes_no_task_before_it_has_beaten(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    awake = keeper.boot_clock
    with Node(sqlite_url, registry(sqlite_url), lease=60.0, poll_interval=0.1) as node:
        # No test can put the machine to sleep: it is this clock that tells the node, and no other does.
        monkeypatch.setattr(keeper, "boot_clock", lambda: awake() + 60.0)
        node._committer.finish_round(10.0)
        assert not node.health().ok
        task = node.create_task("idle")
        pause(0.5)
        assert node.get_task(task).epoch == 0

        node._keeper.beat_soon()

        until(lambda: node.get_task(task).epoch == 1, what="it to take the task")
        assert node.health().ok
