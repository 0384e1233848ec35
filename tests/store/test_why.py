"""`why` says in one sentence why a task is not running, or where it runs."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from pyasync import TaskNotFound
from pyasync.client import Client
from pyasync.ids import new_id
from tests.store.rows import FAR_AHEAD, NODE, Rows

ENDED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_task_that_was_not_started_waits_for_its_user(client: Client, rows: Rows) -> None:
    assert client.why(rows.put("init, none")) == "It was created with auto_run=False and waits for run_task()."


def test_task_of_the_future_waits_for_its_time(client: Client, rows: Rows) -> None:
    rows.join(types={"report": 0})

    why = client.why(rows.put("pending, run", queue=None, due_at=FAR_AHEAD, run_at=FAR_AHEAD))

    assert why.startswith("It waits for its time, 2100-01-01 00:00:00+00:00, in ")


def test_retry_names_the_error_that_it_follows(client: Client, rows: Rows) -> None:
    errors = '[{"kind": "error", "message": "no disk\\nsecond line"}]'

    why = client.why(rows.put("pending, run", queue=None, due_at=FAR_AHEAD, attempt=2, errors=errors))

    assert "(attempt 2, after: no disk)" in why


def test_paused_task_waits_for_its_user(client: Client, rows: Rows) -> None:
    expected = "It was paused by a user; run_task() lets it go on from its last checkpoint."

    assert client.why(rows.put("paused, pause")) == expected


def test_failed_task_names_its_error(client: Client, rows: Rows) -> None:
    errors = '[{"kind": "error", "message": "ValueError: no"}]'

    why = client.why(rows.put("failed, run", errors=errors, attempt=3))

    assert why == "It failed in attempt 3: ValueError: no; run_task() runs it again."


def test_cancelled_task_says_so(client: Client, rows: Rows) -> None:
    errors = '[{"kind": "cancelled", "message": "cancelled by a user"}]'

    why = client.why(rows.put("failed, run", errors=errors, done_at=ENDED))

    assert why == "It was cancelled at 2026-01-02 03:04:05+00:00; run_task() runs it again."


def test_finished_task_says_when(client: Client, rows: Rows) -> None:
    assert client.why(rows.put("finished, run", done_at=ENDED)) == "It finished at 2026-01-02 03:04:05+00:00."


def test_nobody_is_alive(client: Client, rows: Rows) -> None:
    assert client.why(rows.put("pending, run")) == "It waits for a node: none is alive."


@pytest.mark.parametrize("told", [{"draining": True, "types": {"report": 0}}, {"types": {"other": 0}}])
def test_no_live_node_has_the_type(client: Client, rows: Rows, told: dict[str, object]) -> None:
    rows.join(**told)
    rows.join(UUID(int=2), "south", types={"other": 0})

    assert "waits for a node that has type 'report': none of the" in client.why(rows.put("pending, run"))


def test_lost_node_does_not_count(client: Client, rows: Rows) -> None:
    rows.join(types={"report": 0})
    rows.lose()

    assert client.why(rows.put("pending, run")) == "It waits for a node: none is alive."


def test_live_nodes_are_older_than_the_context(client: Client, rows: Rows) -> None:
    rows.join(types={"report": 1})

    assert "understands version 2 of type 'report'" in client.why(rows.put("pending, run", version=2))


def test_all_nodes_are_full(client: Client, rows: Rows) -> None:
    rows.join(types={"report": 0}, slots=2)
    rows.put_many(2, "running, run")

    assert "all 1 live nodes that have type 'report' are full" in client.why(rows.put("pending, run"))


def test_task_on_probation_says_so(client: Client, rows: Rows) -> None:
    rows.join(types={"report": 0})

    assert "on probation" in client.why(rows.put("paused, run", queue="probation", losses=2))


def test_claimable_task_is_about_to_be_claimed(client: Client, rows: Rows) -> None:
    rows.join(types={"report": 0})

    assert client.why(rows.put("pending, run")) == "It is due and will be claimed at a node's next look."


def test_running_task_names_its_node(client: Client, rows: Rows) -> None:
    rows.join()

    assert client.why(rows.put("running, run")) == "It runs on node north."


def test_running_task_of_a_node_without_a_row_says_that_it_is_gone(client: Client, rows: Rows) -> None:
    assert client.why(rows.put("running, run", node_id=new_id())) == "It runs on a node that is gone."


@pytest.mark.parametrize("mark", ["pause", "cancel", "delete"])
def test_task_that_is_asked_to_stop_says_what_for(client: Client, rows: Rows, mark: str) -> None:
    rows.join()

    why = client.why(rows.put(f"running, {mark}"))

    assert why == f"It runs on node north, which was asked to {mark} it and does so at its next report."


def test_task_that_is_being_deleted_says_so(client: Client, rows: Rows) -> None:
    rows.join(NODE, types={"other": 0})

    assert client.why(rows.put("deleting, delete")) == "It is being deleted: its clean-up runs on node north."
    assert client.why(rows.put("pending, delete")).startswith("It is being deleted, and waits for a node that has type")


def test_failed_clean_up_says_how_to_try_again(client: Client, rows: Rows) -> None:
    why = client.why(rows.put("failed, delete", errors='[{"kind": "error", "message": "S3 is down"}]'))

    assert why == "Its clean-up failed: S3 is down; delete_task() tries again."


def test_note_of_the_last_node_is_added(client: Client, rows: Rows) -> None:
    rows.join(types={"report": 0})

    assert client.why(rows.put("paused, run", note="node east was lost")).endswith("; node east was lost.")


def test_another_users_task_is_not_found(client: Client, rows: Rows) -> None:
    task_id = rows.put("pending, run")

    with pytest.raises(TaskNotFound):
        client.why(task_id, user="bob")
