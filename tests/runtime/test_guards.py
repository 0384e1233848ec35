"""What a node does when it and the database disagree: lost replies, a lost lease, runs that no row belongs to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy import update

from pyasync import Finished, Node, Registry, State
from pyasync.ids import new_fence
from pyasync.runtime.keeper import boot_clock
from pyasync.store import claims
from tests.runtime.blips import Blips
from tests.runtime.conftest import Nodes
from tests.runtime.gate import PATIENCE, Gate
from tests.runtime.other import NODE, TASK, Other
from tests.waiting import until


def registered(body: Any, **options: Any) -> Registry:
    registry = Registry()
    registry.register_task("task", body, **options)
    return registry


def looks(started: Node) -> list[bool]:
    """Collect, from now on, what the node answers itself when it asks whether it may claim."""
    answers: list[bool] = []
    may_claim = started._claimer._may_claim

    def ask() -> bool:
        answers.append(may_claim())
        return answers[-1]

    started._claimer._may_claim = ask
    return answers


def waiting_for_its_stop(told: list[Any]) -> Any:
    def body(run: Any) -> Iterator[Any]:
        if run.epoch == 1:
            told.append("runs")
            run.stop.wait(PATIENCE)
            told.append(run.stop.reason)
        yield Finished(run.epoch)

    return body


# --- replies that are lost


def test_report_whose_reply_was_lost_counts_once_and_its_run_goes_on(node: Nodes) -> None:
    def body(run: Any) -> Iterator[Any]:
        for number in range(3):
            lost.left = 1
            yield number
        lost.left = 1
        yield Finished("the result")

    started = node(registered(body))
    lost = Blips(started, stored=True)

    task = started.wait_task(started.create_task("task"), PATIENCE)

    assert (task.result, task.context, task.seq, task.epoch, task.attempt) == ("the result", 2, 4, 1, 1)
    assert lost.fired == 4


def test_claim_whose_reply_was_lost_is_let_go_of_at_once(node: Nodes, other: Other) -> None:
    started = node(registered(lambda: "done"), lease=60.0)  # no beat that would find it
    lost = Blips(started, stored=True)
    task_id = started.create_task("task", auto_run=False)

    lost.left = 1
    started.run_task(task_id)

    assert started.result(task_id, 10.0) == "done"
    assert (lost.fired, other.row(task_id).epoch, other.row(task_id).losses) == (1, 2, 0)


# --- a run that the database does not know of


@pytest.mark.parametrize("how", ["take_over", "remove"])
def test_run_that_no_row_belongs_to_is_told_with_the_beats(node: Nodes, other: Other, how: str) -> None:
    told: list[Any] = []
    started = node(registered(waiting_for_its_stop(told)), lease=1.0)
    task_id = started.create_task("task")
    until(lambda: told, PATIENCE, "the run to begin")

    getattr(other, how)(task_id)

    until(lambda: told == ["runs", "lost"], PATIENCE / 2, "the run to be told")


# --- the lease


def test_node_that_was_declared_lost_tells_its_runs_and_joins_again(node: Nodes, other: Other) -> None:
    told: list[Any] = []
    started = node(registered(waiting_for_its_stop(told)), lease=60.0)  # reconciliation would take as long
    task_id = started.create_task("task")
    until(lambda: told, PATIENCE, "the run to begin")
    was = started.health().node_id

    with other.begin() as connection:
        connection.execute(update(NODE).values(lost=True))
    started._keeper.beat_soon()

    until(lambda: started.health().node_id != was, 10.0, "the node to join again")
    until(lambda: told == ["runs", "lost"], 10.0, "the run to be told")
    assert started.result(task_id, PATIENCE) == 2
    assert other.row(task_id).losses == 1


@pytest.mark.parametrize("order", [(1, 2), (2, 1)], ids=["old-first", "new-first"])
def test_report_of_an_old_run_is_refused_beside_one_of_the_new_run_on_the_same_node(
    node: Nodes, order: tuple[int, int]
) -> None:
    gates = {1: Gate(), 2: Gate()}
    acknowledged: list[int] = []

    async def body(run: Any) -> AsyncIterator[Any]:
        await gates[run.epoch].apass()
        yield run.epoch
        acknowledged.append(run.epoch)

    started = node(registered(body), lease=60.0)  # no beat that would tell the old run
    task_id = started.create_task("task")
    gates[1].wait_for()
    started._database.run(claims.take_over, started.health().node_id, "this one", new_fence())
    gates[2].wait_for()

    with started._committer._round_lock:  # both reports wait for the same round
        for waiting, epoch in enumerate(order, 1):
            gates[epoch].open()
            until(lambda waiting=waiting: len(started._committer._items) == waiting)
    task = started.wait_task(task_id, PATIENCE)
    until(lambda: len(started._runs) == 0, PATIENCE, "both runs to end")

    assert acknowledged == [2]
    assert (task.context, task.seq, task.epoch) == (2, 2, 2)


def test_node_that_cannot_renew_its_lease_claims_nothing(node: Nodes, other: Other) -> None:
    started = node(registered(lambda: "done"), lease=1.0)
    started._keeper.stop()
    until(lambda: not started.health().ok, PATIENCE, "the node to distrust its lease")
    answers = looks(started)

    task_id = started.create_task("task")

    until(lambda: len(answers) >= 5, PATIENCE, "some looks into the queues")
    assert set(answers) == {False}
    assert other.status(task_id) == "pending, run"


@pytest.mark.databases("sqlite")  # it is the node's own reckoning
def test_node_trusts_its_lease_from_before_the_beat_was_sent(node: Nodes) -> None:
    started = node(Registry(), lease=60.0)
    keeper, arrived, left = started._keeper, [], []
    store = keeper._round

    def slow(tx: Any, key: str | None) -> Any:
        arrived.append(boot_clock())
        until(lambda: boot_clock() > arrived[0] + 0.2)
        left.append(boot_clock())
        return store(tx, key)

    keeper._round = slow  # type: ignore[method-assign]
    before = keeper._trusted_until
    keeper.beat_soon()
    until(lambda: left and keeper._trusted_until > before, PATIENCE, "a beat")

    assert keeper._trusted_until <= arrived[0] + 60.0 - 12.0


# --- suspects


def test_node_runs_one_suspect_at_a_time(node: Nodes, other: Other) -> None:
    gate = Gate()
    started = node(registered(gate.pass_), types=["task"])
    ids = [started.create_task("task", auto_run=False) for _ in range(3)]
    with other.begin() as connection:
        connection.execute(update(TASK).values(losses=2))

    started.run_tasks(ids=ids)
    gate.wait_for()
    answers = looks(started)
    until(lambda: len(answers) >= 5, PATIENCE, "some looks into the queues")
    at_once = gate.reached
    gate.open()

    assert at_once == 1
    assert {started.wait_task(task_id, PATIENCE).state for task_id in ids} == {State.FINISHED}
