"""Nodes that are told to stop, that are killed while they do so, and that end themselves."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path
from uuid import UUID

import pytest

from pyasync import NewTask, State
from tests.faults.checks import Work, check_visible
from tests.faults.effort import Effort
from tests.faults.nodes import Cluster, NodeProcess
from tests.waiting import until

GRACE = 2.0
LEASE = 10.0
"""So long that nobody who had to wait for it would be in time."""
ROOM = 1.5
"""Seconds that a busy machine may take longer."""
TASKS = 10


def tasks_of(cluster: Cluster, node_id: UUID) -> set[UUID]:
    """The tasks that a node owns, by their rows."""
    return {row.id for row in cluster.rows("id", "node_id") if row.node_id == node_id}


def elsewhere(cluster: Cluster, tasks: set[UUID], node_id: UUID) -> bool:
    """Whether all of some tasks run on other nodes by now, or have ended."""
    rows = [row for row in cluster.rows("id", "node_id", "stage") if row.id in tasks]
    return all(row.node_id not in (None, node_id) or row.stage == "finished" for row in rows)


@pytest.mark.timeout(120)
def test_a_node_that_is_told_to_stop_under_load_hands_all_its_tasks_over_at_once(
    cluster: Cluster, tmp_path: Path, effort: Effort
) -> None:
    settings = {"concurrency": 3 * TASKS, "lease": LEASE, "stop_grace": GRACE}
    work = Work(cluster, tmp_path / "steps", steps=40, pause=0.1)
    leaver = cluster.start(**settings)
    rounds = 0

    for _ in effort.rounds(1, 3):
        work.create(TASKS)
        until(lambda leaver=leaver: cluster.running()[leaver.id()] >= TASKS, what="it to run the tasks")
        stayer = cluster.start(**settings)
        was, handed = leaver.id(), tasks_of(cluster, leaver.id())
        asked = leaver.ask_to_stop()
        until(lambda handed=handed, was=was: elsewhere(cluster, handed, was), what="its tasks to run elsewhere")
        moved = time.monotonic() - asked
        assert leaver.wait() == 0
        left = time.monotonic() - asked
        assert cluster.running()[was] == 0
        print(f"{len(handed)} tasks ran elsewhere after {moved:.2f} s; it was gone after {left:.2f} s")
        assert (moved < 2.0 + ROOM, left < GRACE + 1.0 + ROOM) == (True, True)
        leaver, rounds = stayer, rounds + 1

    until(work.done, 30.0, "the tasks to finish")
    work.check()
    assert (cluster.taken_over(), work.counted["takeover"]) == (0, 0)
    assert work.counted["end"] >= rounds * TASKS, "each of them was let go of by the run itself"


def test_tasks_that_ignore_the_stop_are_let_go_of_after_the_grace(cluster: Cluster) -> None:
    first = cluster.start(lease=LEASE, stop_grace=GRACE)
    tasks = cluster.client.create_tasks([NewTask(type="stubborn")] * 3)
    until(lambda: all(row.seq == 1 for row in cluster.rows("seq")), what="all to have reported")
    cluster.start(lease=LEASE)
    was = first.id()

    asked = first.ask_to_stop()
    code = first.wait()
    took = time.monotonic() - asked

    print(f"gone after {took:.2f} s, with a grace of {GRACE:g} s")
    assert code == 0
    assert GRACE <= took < GRACE + 1.0 + ROOM
    assert cluster.running()[was] == 0
    for task in tasks:
        assert cluster.client.wait_task(task, 10.0).state is State.FINISHED
    assert {tuple(row) for row in cluster.rows("epoch", "losses", "attempt")} == {(2, 0, 1)}
    assert cluster.taken_over() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "sigint"])
def test_a_second_signal_ends_a_node_at_once_and_its_tasks_go_on_elsewhere(
    cluster: Cluster, second: signal.Signals
) -> None:
    first = cluster.start(stop_grace=600.0, lease=3.0)
    tasks = cluster.client.create_tasks([NewTask(type="stubborn")] * 3)
    until(lambda: all(row.seq == 1 for row in cluster.rows("seq")), what="all to have reported")
    heir = cluster.start(lease=3.0)
    first.ask_to_stop()
    until(lambda: first.lines("the node stops"), what="the first signal to be heard")

    asked = first.ask_to_stop(second)
    code = first.wait(10.0)

    print(f"gone {time.monotonic() - asked:.2f} s after the second signal")
    assert code == 130
    for task in tasks:
        assert cluster.client.wait_task(task, 30.0).state is State.FINISHED
    assert {tuple(row) for row in cluster.rows("epoch", "attempt", "errors")} == {(2, 1, None)}
    assert len(heir.lines("a node was declared lost")) == 1


@pytest.mark.timeout(120)
def test_nodes_that_are_killed_while_they_stop_lose_nothing(cluster: Cluster, tmp_path: Path, effort: Effort) -> None:
    chance = effort.random("draining")
    settings = {"concurrency": 2 * TASKS, "lease": 3.0, "stop_grace": 60.0}
    work = Work(cluster, tmp_path / "steps", steps=30, pause=0.1)
    victim, rounds = cluster.start(**settings), 0

    for _ in effort.rounds(2, 8):
        work.create(TASKS)
        cluster.client.create_task("stubborn")  # without which it would be gone before it is killed
        until(lambda victim=victim: busy(cluster, victim), 30.0, "it to run the tasks")
        heir = cluster.start(**settings)
        victim.ask_to_stop()
        until(lambda victim=victim: victim.lines("the node stops"), what="the signal to be heard")
        at = time.monotonic() + chance.choice([0.0, chance.uniform(0.0, 0.3)])
        until(lambda at=at: time.monotonic() >= at)
        victim.kill()
        assert victim.code == -signal.SIGKILL, "this counts only if it had not left"
        victim, rounds = heir, rounds + 1

    cluster.client.cancel_tasks(types=["stubborn"])  # if the last node runs one for the first time
    until(work.done, 60.0, "the tasks to finish")
    work.check()
    print(f"{rounds} kills; {work.counted}")
    assert work.counted["takeover"] >= rounds


def busy(cluster: Cluster, node: NodeProcess) -> bool:
    """Whether a node runs the stubborn task for the first time, and others."""
    own = tasks_of(cluster, node.id())
    # One that was taken over has reported, too, and ends at once.
    stubborn = {row.id for row in cluster.rows("id", "type", "seq", "epoch") if tuple(row)[1:] == ("stubborn", 1, 1)}
    return len(own) >= TASKS // 2 and bool(own & stubborn)


@pytest.mark.timeout(120)
def test_nodes_that_are_all_told_to_stop_at_once_go_on_after_a_restart_as_if_nothing_had_been(
    cluster: Cluster, tmp_path: Path
) -> None:
    settings = {"concurrency": 4, "lease": LEASE}
    work = Work(cluster, tmp_path / "steps", steps=20, pause=0.1)
    nodes = cluster.start_some(3, **settings)
    work.create(12)
    until(lambda: all(row.seq > 1 for row in cluster.rows("seq")), 20.0, "all tasks to make a step")

    for node in nodes:
        node.ask_to_stop()
    assert [node.wait() for node in nodes] == [0, 0, 0]
    assert not cluster.running()
    assert cluster.client.get_nodes() == []
    asked = time.monotonic()
    cluster.start_some(3, **settings)
    until(lambda: sum(cluster.running().values()) == 12 or work.done(), what="all tasks to run again")

    print(f"running again {time.monotonic() - asked:.2f} s after the restart")
    until(work.done, 30.0, "the tasks to finish")
    assert work.check() == 0, "no step was made in vain"
    assert work.counted["takeover"] == 0


@pytest.mark.timeout(180)
def test_a_task_that_kills_its_nodes_is_found_and_fifty_neighbours_are_not_blamed(cluster: Cluster) -> None:
    settings = {"lease": 3.0}
    innocents = [NewTask(type="innocent", arguments={"n": 1, "pause": 0.4})] * 50
    poison = NewTask(type="poison", arguments={"pause": 0.1})
    ids = cluster.client.create_tasks([*innocents[:15], poison, *innocents[15:]])
    culprit = ids.pop(15)
    began = time.monotonic()
    cluster.start_some(2, **settings)

    until(lambda: _all_ended(cluster, settings), 120.0, "all tasks to end")

    deaths = Counter(node.code for node in cluster.nodes)[3]
    losses = sorted(row.losses for row in cluster.rows("losses"))
    print(f"{time.monotonic() - began:.1f} s; {deaths} nodes died; losses {losses}")
    assert 1 <= deaths <= 3
    found = cluster.client.get_task(culprit)
    assert (found.state, found.errors[-1]["kind"]) == (State.FAILED, "crash loop")
    for task in cluster.client.get_tasks(ids=ids):
        assert (task.state, task.result, task.errors) == (State.FINISHED, 1, []), task
    check_visible(cluster)


def _all_ended(cluster: Cluster, settings: dict[str, float]) -> bool:
    """Whether no task is left to run; starts a node for each that has died."""
    for _ in range(2 - len(cluster.alive())):
        cluster.start(wait=False, **settings)
    return all(state in (State.FINISHED, State.FAILED) for state in cluster.client.count_tasks())
