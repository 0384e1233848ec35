"""`why(id)`: one sentence that says why a task is not running, or where it runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import update

from pyasync.client import Client
from pyasync.ids import new_id
from pyasync.store.database import Database
from tests.store.rows import FAR_AHEAD, LONG_AGO, NODE, Rows

REPORTS = {"report": 1}
BOOM = '[{"kind":"error","message":"ValueError: boom\\nsecond line","attempt":2}]'


def test_a_task_that_was_not_to_run_yet(client: Client, rows: Rows) -> None:
    assert client.why(rows.put("init, none")) == "It was created with auto_run=False and waits for run_task()."


def test_a_task_whose_time_has_not_come(client: Client, rows: Rows) -> None:
    task_id = rows.put("pending, run", queue=None, due_at=FAR_AHEAD, run_at=FAR_AHEAD)

    said = client.why(task_id)

    assert said.startswith("It waits for its time, 2100-01-01 00:00:00+00:00, in ")
    assert said.endswith(" s.")


def test_a_task_that_waits_for_its_next_attempt(client: Client, rows: Rows) -> None:
    task_id = rows.put("pending, run", queue=None, due_at=FAR_AHEAD, run_at=FAR_AHEAD, attempt=3, errors=BOOM)

    assert client.why(task_id).endswith("(attempt 3, after: ValueError: boom).")


def test_the_seconds_that_are_left_are_the_databases(client: Client) -> None:
    said = client.why(client.create_task("report", delay=60))

    assert 50 < int(said.rpartition(" in ")[2].split()[0]) <= 60


def test_a_paused_task(client: Client, rows: Rows) -> None:
    assert client.why(rows.put("paused, pause")).startswith("It was paused by a user; run_task() lets it go on")


def test_a_failed_task(client: Client, rows: Rows) -> None:
    task_id = rows.put("failed, run", attempt=2, errors=BOOM)

    assert client.why(task_id) == "It failed in attempt 2: ValueError: boom; run_task() runs it again."


def test_a_cancelled_task(client: Client, rows: Rows) -> None:
    task_id = rows.put("pending, run")
    client.cancel_task(task_id)

    assert client.why(task_id).startswith("It was cancelled at 20")


def test_a_task_whose_clean_up_failed(client: Client, rows: Rows) -> None:
    task_id = rows.put("failed, delete", errors=BOOM)

    assert client.why(task_id) == "Its clean-up failed: ValueError: boom; delete_task() tries again."


def test_a_finished_task(client: Client, rows: Rows) -> None:
    task_id = rows.put("finished, run", done_at=LONG_AGO)

    assert client.why(task_id) == "It finished at 2020-01-01 00:00:00+00:00."


@pytest.mark.parametrize("status", ["pending, run", "paused, run"])
def test_no_node_is_alive(client: Client, rows: Rows, status: str) -> None:
    rows.join(new_id(), "lost", types=REPORTS)
    rows.lose_all()
    rows.join(new_id(), "draining", types=REPORTS, draining=True)

    assert client.why(rows.put(status)) == "It waits for a node: none is alive."


def test_a_node_that_is_silent_for_longer_than_its_lease_does_not_count(
    client: Client, database: Database, rows: Rows
) -> None:
    rows.join(types=REPORTS)
    with database.transaction() as tx:
        tx.execute(update(tx.t.node).values(beat_at=datetime.now(UTC) - timedelta(seconds=60)))

    assert client.why(rows.put("pending, run")) == "It waits for a node: none is alive."


def test_no_live_node_has_the_type(client: Client, rows: Rows) -> None:
    rows.join(types={"other": 1, "Report": 1})
    rows.join(new_id(), "south", types={})

    assert client.why(rows.put("pending, run")) == (
        "It waits for a node that has type 'report': none of the 2 live nodes has it."
    )


def test_the_context_is_of_a_newer_version_than_the_live_nodes_understand(client: Client, rows: Rows) -> None:
    rows.join(types={"report": 2})
    rows.join(new_id(), "south", types={"other": 9})

    assert client.why(rows.put("pending, run", version=3)) == (
        "It waits for a node that understands version 3 of type 'report': the live ones are older."
    )
    assert "understands" not in client.why(rows.put("pending, run", version=2))


def test_all_nodes_that_have_the_type_are_full(client: Client, rows: Rows) -> None:
    south = new_id()
    rows.join(types=REPORTS, slots=2)
    rows.join(new_id(), "east", types={"other": 1}, slots=2)
    rows.put_many(2, "running, run")
    task_id = rows.put("pending, run")

    one = client.why(task_id)
    rows.join(south, "south", types=REPORTS, slots=1)
    rows.put("running, run", node_id=south)
    two = client.why(task_id)

    assert one == "It waits for a free slot: the only live node that has type 'report' is full."
    assert two == "It waits for a free slot: all 2 live nodes that have type 'report' are full."


def test_a_node_has_a_free_slot(client: Client, rows: Rows) -> None:
    rows.join(types=REPORTS, slots=2)
    rows.put("running, run")

    assert client.why(rows.put("pending, run")) == "It is due and will be claimed at a node's next look."


def test_a_suspect_waits_on_probation(client: Client, rows: Rows) -> None:
    rows.join(types=REPORTS)
    task_id = rows.put("paused, run", queue="probation", losses=2, note="node north was lost")

    said = client.why(task_id)

    assert said.startswith("It waits on probation, since nodes were lost while they ran it")
    assert said.endswith("; node north was lost.")


def test_why_the_last_node_let_go_of_it(client: Client, rows: Rows) -> None:
    task_id = rows.put("pending, run", queue=None, due_at=FAR_AHEAD, note="node north let go of it: no such field")

    assert client.why(task_id).endswith("; node north let go of it: no such field.")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("running, run", "It runs on node north."),
        ("running, pause", "It runs on node north, which was asked to pause it and does so at its next report."),
        ("running, cancel", "It runs on node north, which was asked to cancel it and does so at its next report."),
        ("running, delete", "It runs on node north, which was asked to delete it and does so at its next report."),
        ("deleting, delete", "It is being deleted: its clean-up runs on node north."),
    ],
)
def test_where_it_runs(client: Client, rows: Rows, status: str, said: str) -> None:
    rows.join(NODE, "north", types=REPORTS)

    assert client.why(rows.put(status)) == said


def test_it_runs_on_a_node_that_is_gone(client: Client, rows: Rows) -> None:
    assert client.why(rows.put("running, run")) == "It runs on a node that is gone."


@pytest.mark.parametrize("status", ["pending, delete", "paused, delete"])
def test_it_is_being_deleted_and_waits_for_its_clean_up(client: Client, rows: Rows, status: str) -> None:
    task_id = rows.put(status)

    alone = client.why(task_id)
    rows.join(types={"other": 1})
    without_type = client.why(task_id)

    assert alone == "It is being deleted, and waits for a node: none is alive."
    assert without_type == (
        "It is being deleted, and waits for a node that has type 'report': the only live node does not have it."
    )


def test_it_is_being_deleted_and_its_clean_up_is_tried_again_later(client: Client, rows: Rows) -> None:
    task_id = rows.put("pending, delete", queue=None, due_at=FAR_AHEAD)

    assert client.why(task_id).startswith("It is being deleted, and waits for its time, 2100-01-01")


EVERY: dict[str, dict[str, Any]] = {
    "running, run": {"node_id": UUID(int=9)},
    "failed, run": {},
    "failed, delete": {"errors": "[]"},
    "finished, run": {},
    "pending, run": {"user_name": "😀", "type": "a'b\"c\n"},
}


@pytest.mark.parametrize("status", EVERY)
def test_it_is_always_one_sentence(client: Client, rows: Rows, status: str) -> None:
    rows.join(types=REPORTS)

    said = client.why(rows.put(status, **EVERY[status]))

    assert said.endswith(".")
    assert "\n" not in said
