"""A primary that dies, and its standby that goes on: what a failover may cost, and what it may not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import NullPool, Row, create_engine, text

from pyasync import State
from tests.conftest import cannot_be_had
from tests.faults.checks import APPLIED
from tests.faults.effort import Effort
from tests.faults.load import Load, loaded
from tests.faults.nodes import Cluster, Nursery
from tests.faults.replica import SETTINGS, Standby, children, die, follow, promote, url_of_both
from tests.faults.worker import expected
from tests.servers import PostgreSQL, Unavailable
from tests.waiting import until

SOON = 10.0
"""Seconds after a promotion within which tasks must go on, on a busy machine."""
LEFT_BEHIND = 60
"""Steps that are made while the standby hears of none."""


@contextmanager
def pair(*, synchronous: bool) -> Iterator[tuple[ExitStack, PostgreSQL, PostgreSQL]]:
    """A primary and a standby that follows it, and what ends them and others."""
    with ExitStack() as stack:
        try:
            primary = stack.enter_context(PostgreSQL(settings=SETTINGS))
            standby = stack.enter_context(Standby(primary))
        except Unavailable as reason:
            cannot_be_had(str(reason))
        follow(primary, synchronous=synchronous)
        yield stack, primary, standby


@pytest.mark.timeout(240)
def test_nothing_acknowledged_is_lost_when_a_synchronous_standby_takes_over(
    nursery: Nursery, tmp_path: Path, effort: Effort
) -> None:
    with pair(synchronous=True) as (stack, primary, standby):
        url = url_of_both((primary, standby), primary.create())
        with loaded(url, nursery, tmp_path) as load:
            for number in effort.rounds(1, 5):
                if number:
                    primary, standby = standby, stack.enter_context(Standby(standby, port=primary.admin.port))
                    follow(primary, synchronous=True)
                    load.flows()
                running = sum(load.cluster.running().values())

                die(primary)
                promote(standby)
                took = load.flows()

                print(f"{running} tasks ran when the primary died; {took:.2f} s after the promotion they go on")
                assert running, "this counts only if tasks ran"
                assert took < SOON

            keys = [row.session_key for row in load.cluster.execute("SELECT session_key FROM pyasync_node")]
            assert len(keys) == 2
            assert all(keys), "the nodes see each other's sessions again"
            load.check()


@pytest.mark.timeout(180)
def test_runs_begin_again_from_their_rows_when_a_standby_that_lags_takes_over(nursery: Nursery, tmp_path: Path) -> None:
    with pair(synchronous=False) as (_, primary, standby):
        name = primary.create()
        with loaded(url_of_both((primary, standby), name), nursery, tmp_path, steps=60) as load:
            receiver = next(pid for pid, does in children(standby).items() if "walreceiver" in does)
            os.kill(receiver, signal.SIGSTOP)
            load.flows(LEFT_BEHIND)
            stored = rows(primary, name)

            lose(primary, standby, receiver)
            left = rows(standby, name)
            promote(standby)
            took = load.flows()

            gone = stored.keys() - left.keys()
            behind = {each for each in left.keys() & stored.keys() if runs_ahead(stored[each], left[each])}
            print(f"{len(gone)} tasks were lost, {len(behind)} runs were ahead; {took:.2f} s later they go on")
            assert behind, "this counts only if something was lost that had been acknowledged"
            check_survivors(load, behind)


def lose(primary: PostgreSQL, standby: PostgreSQL, receiver: int) -> None:
    """End the primary while the standby has not seen what the socket of its receiver still holds, and never will."""
    os.kill(standby.pid, signal.SIGSTOP)
    os.kill(receiver, signal.SIGKILL)
    die(primary)
    os.kill(standby.pid, signal.SIGCONT)


def rows(server: PostgreSQL, database: str) -> dict[UUID, Row]:
    """The tasks' rows on one of the servers."""
    until(lambda: server._answers(server.admin), 30.0, "the server to answer")
    with create_engine(server.admin_url(database), poolclass=NullPool).connect() as connection:
        found = connection.execute(text("SELECT id, type, stage, seq, fence FROM pyasync_task")).all()
        return {row.id: row for row in found}


def runs_ahead(stored: Row, left: Row) -> bool:
    """Whether a run has reports stored that are no longer: more than the one whose answer it may not have had."""
    return stored.stage == left.stage == "running" and stored.fence == left.fence and stored.seq > left.seq + 1


def check_survivors(load: Load, behind: set[UUID]) -> None:
    """What the standby had goes on without a stale or a double write, and who was ahead of it has noticed."""
    load.creator.stop()
    until(load.work.done, 90.0, "the tasks to finish")
    applied, steps = load.work._applied(), list(range(1, load.work.steps + 1))
    for row in load.cluster.rows("id", "type", "stage", "mark", "seq", "attempt", "errors", "result"):
        load.work._check_row(row)
        assert applied[row.id] == (steps if row.type == "ledger" else []), row
    assert load.work._history is not None
    load.work._history.check()
    noticed = {UUID(line["task_id"]) for line in load.cluster.lines("the database went back in time")}
    assert behind <= noticed
    assert load.cluster.taken_over() == 0


@pytest.mark.parametrize("type", ["steps", "ledger"])
def test_a_run_begins_again_from_its_row_where_the_database_went_back_in_time(
    cluster: Cluster, tmp_path: Path, type: str
) -> None:
    cluster.execute(APPLIED)
    node = cluster.start()
    task_id = cluster.client.create_task(type, {"n": 15, "pause": 0.1, "file": str(tmp_path / "steps")})
    until(lambda: cluster.client.get_task(task_id).seq >= 8, 30.0, "the run to make some steps")

    go_back(cluster.url, step=4)
    task = cluster.client.wait_task(task_id, 30.0)

    assert [line["task_id"] for line in node.lines("the database went back in time")] == [str(task_id)]
    assert (task.state, task.result, task.attempt, task.epoch, task.errors) == (State.FINISHED, expected(15), 1, 1, [])
    assert task.seq == 16, "each step, and the end, is stored once"
    applied = cluster.execute("SELECT step FROM applied ORDER BY step")
    assert [row.step for row in applied] == (list(range(1, 16)) if type == "ledger" else [])


def go_back(url: str, step: int) -> None:
    """Do to the one task what a failover does that loses all after a step."""
    context = json.dumps({"i": step, "value": expected(step)})
    with create_engine(url, poolclass=NullPool).begin() as connection:
        connection.execute(
            text("UPDATE pyasync_task SET seq = :seq, context = :context"), {"seq": step, "context": context}
        )
        connection.execute(text("DELETE FROM applied WHERE step > :step"), {"step": step})
