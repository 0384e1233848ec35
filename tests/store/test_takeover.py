"""Taking over: what becomes of a lost node's tasks, who counts as lost, and rows that were kept long enough."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from pyasync.client import Client
from pyasync.domain.queues import Fifo, Queue
from pyasync.domain.states import Event, State
from pyasync.domain.task import Claim
from pyasync.errors import TaskFailed
from pyasync.ids import new_fence, new_id
from pyasync.store import claims, nodes, writes
from pyasync.store.claims import Offer, Request
from pyasync.store.database import Database
from pyasync.store.nodes import Beat, Peer
from pyasync.store.writes import Fate, Write
from tests.store.rows import LONG_AGO, NODE, Rows, changes, faults

SERVERS = pytest.mark.databases("postgresql", "mariadb", "mysql")
OTHER = UUID("00000000-0000-7000-8000-000000000002")

# A takeover is sys_pause; of a task whose type fails with its node, task_failed.
GRID = """
                 | resume          | fail
running, run     | paused, run     | failed, run
running, delete  | pending, delete | pending, delete
running, pause   | paused, pause   | failed, run
running, cancel  | failed, run     | failed, run
deleting, delete | paused, delete  | paused, delete
"""


def grid() -> list[tuple[str, str, str]]:
    head, *lines = ([cell.strip() for cell in line.split("|")] for line in GRID.strip("\n").splitlines())
    return [(line[0], policy, cell) for line in lines for policy, cell in zip(head[1:], line[1:], strict=True)]


def take_over(database: Database, node_id: UUID = NODE, fence: UUID | None = None) -> list[UUID]:
    return database.once(claims.take_over, node_id, "north", fence or new_fence())


def claim_again(database: Database, rows: Rows, task_id: UUID) -> None:
    """Have a node claim the task from whichever queue it is in."""
    offer = Offer("report", 0, "resume", rows.get(task_id).max_losses, None, True)
    queue = Queue(rows.get(task_id).queue)
    assert [row.id for row in database.once(claims.claim, NODE, new_fence(), Request(queue, 1, [offer], Fifo()))] == [
        task_id
    ]


def claim_of(rows: Rows, task_id: UUID) -> Claim:
    row = rows.get(task_id)
    return Claim(task_id, row.node_id, row.fence, row.seq)


# --- what becomes of the tasks


@pytest.mark.parametrize(("status", "policy", "after"), grid())
def test_a_takeover_does_what_the_node_would_have_done(
    database: Database, rows: Rows, status: str, policy: str, after: str
) -> None:
    told: dict[str, Any] = {"keep": 60.0, "context": '{"at":3}', "seq": 3, "key_name": "k"}
    told["held_key"] = None if "delete" in status else "k"
    claim = rows.claimed(status, on_node_loss=policy, **told)
    before, fence = rows.get(claim.task_id), new_fence()

    assert take_over(database, fence=fence) == [claim.task_id]

    row = rows.get(claim.task_id)
    ended = after.startswith("failed")
    assert rows.status(claim.task_id) == after
    assert faults(row) == []
    assert (row.fence, row.node_id, row.note) == (fence, None, "node north was lost")
    assert (row.seq, row.epoch, row.context) == (before.seq, before.epoch, before.context)
    assert (row.held_key is None) == (ended or "delete" in after)
    assert row.purge_at == (row.done_at + timedelta(seconds=60) if ended else None)


def test_what_was_taken_over_waits_behind_what_waited_already_among_those_the_system_stopped(
    database: Database, rows: Rows
) -> None:
    waiting = rows.put("paused, run", ready_at=LONG_AGO)
    taken = rows.claimed().task_id

    take_over(database)

    offer = Offer("report", 0, "resume", 3, None, True)
    found = database.once(claims.claim, OTHER, new_fence(), Request(Queue.RUN, 9, [offer], Fifo()))
    assert [row.id for row in found] == [waiting, taken]


def test_only_the_lost_nodes_tasks_are_taken_over(database: Database, rows: Rows) -> None:
    rows.put("running, run", node_id=OTHER)
    for status in ("pending, run", "paused, pause", "finished, run", "failed, delete"):
        rows.put(status)
    before = rows.all()

    assert take_over(database) == []
    assert rows.all() == before


def test_tasks_of_any_type_are_taken_over_in_batches(database: Database, rows: Rows) -> None:
    ids = [rows.put("running, run", type=f"type {n}") for n in range(5)]
    fence = new_fence()

    batches = [database.once(claims.take_over, NODE, "north", fence, 2) for _ in range(4)]

    assert batches == [ids[:2], ids[2:4], ids[4:], []]


@SERVERS
def test_a_locked_task_is_taken_over_later(database: Database, rows: Rows) -> None:
    locked, free = rows.put("running, run"), rows.put("running, run")

    with rows.locked(locked):
        assert take_over(database) == [free]

    assert take_over(database) == [locked]


def test_sweepers_at_the_same_time_count_a_loss_once(database: Database, rows: Rows) -> None:
    ids = rows.put_many(30, "running, run")
    together = threading.Barrier(3)

    def sweep() -> list[UUID]:
        taken = []
        together.wait(20)
        while some := database.once(claims.take_over, NODE, "north", new_fence(), 7):
            taken += some
        return taken

    with ThreadPoolExecutor(3) as pool:
        taken = [each for future in [pool.submit(sweep) for _ in range(3)] for each in future.result()]
    taken += take_over(database)

    assert sorted(taken) == ids
    assert rows.column("losses") == [1] * 30


def test_a_run_whose_task_was_taken_over_can_write_nothing(database: Database, rows: Rows) -> None:
    claim = rows.claimed()
    take_over(database)
    before = rows.all()

    late = [Write(claim, context="1"), Write(claim, Event.TASK_FINISHED, removes=True), Write(claim, Event.SYS_PAUSE)]

    assert [database.once(writes.write, [each])[0].fate for each in late] == [Fate.LOST] * 3
    assert rows.all() == before


# --- crash loops


def test_a_task_that_loses_its_nodes_goes_on_probation_and_then_fails(
    client: Client, database: Database, rows: Rows
) -> None:
    task_id = rows.put("running, run", max_losses=3, attempt=2)
    seen = []

    for _ in range(3):
        take_over(database)
        row = rows.get(task_id)
        seen.append((rows.status(task_id), row.losses, row.queue))
        assert faults(row) == []
        if row.queue:
            claim_again(database, rows, task_id)

    assert seen == [("paused, run", 1, "run"), ("paused, run", 2, "probation"), ("failed, run", 3, None)]
    with pytest.raises(TaskFailed) as caught:
        client.result(task_id)
    assert caught.value.kind == "crash loop"
    assert "3 nodes were lost while they ran this task, the last one north" in caught.value.error
    (entry,) = caught.value.errors
    assert (entry["node"], entry["attempt"]) == ("north", 2)
    assert abs(datetime.fromisoformat(entry["time"]) - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_report_in_between_begins_the_count_anew(database: Database, rows: Rows) -> None:
    task_id = rows.put("running, run", max_losses=3)

    for _ in range(5):
        take_over(database)
        assert rows.get(task_id).losses == 1
        claim_again(database, rows, task_id)
        database.once(writes.write, [Write(claim_of(rows, task_id), context="1")])

    assert rows.status(task_id) == "running, run"


def test_a_clean_stop_is_no_loss(database: Database, rows: Rows) -> None:
    task_id = rows.put("running, run", losses=1)

    for _ in range(4):
        database.once(writes.write, [Write(claim_of(rows, task_id), Event.SYS_PAUSE)])
        assert rows.get(task_id).losses == 1
        claim_again(database, rows, task_id)


@pytest.mark.parametrize(
    ("max_losses", "losses", "after"),
    [(1, 0, "failed, run"), (2, 0, "paused, run"), (2, 1, "failed, run"), (None, 99, "paused, run")],
)
def test_the_number_of_losses_is_the_types(
    database: Database, rows: Rows, max_losses: int | None, losses: int, after: str
) -> None:
    task_id = rows.put("running, run", max_losses=max_losses, losses=losses)

    take_over(database)

    assert rows.status(task_id) == after


def test_a_task_that_failed_in_a_crash_loop_can_be_run_again(client: Client, database: Database, rows: Rows) -> None:
    task_id = rows.put("running, run", max_losses=1)
    take_over(database)

    client.run_task(task_id)

    assert (rows.get(task_id).losses, rows.get(task_id).queue) == (0, "run")
    assert client.get_task(task_id).errors[0]["kind"] == "crash loop"


def test_a_clean_up_that_loses_its_nodes_fails_too_and_can_be_deleted_again(
    client: Client, database: Database, rows: Rows
) -> None:
    task_id = rows.put("deleting, delete", max_losses=3, losses=2)

    take_over(database)

    task = client.get_task(task_id)
    assert (rows.status(task_id), task.state, task.errors[0]["kind"]) == ("failed, delete", State.FAILED, "crash loop")
    client.delete_task(task_id)
    assert (rows.status(task_id), rows.get(task_id).losses, rows.get(task_id).queue) == ("pending, delete", 0, "delete")


def test_a_task_that_was_to_be_deleted_gets_its_clean_up_however_often_it_lost_its_node(
    database: Database, rows: Rows
) -> None:
    task_id = rows.put("running, delete", max_losses=3, losses=2, attempt=4)

    take_over(database)

    row = rows.get(task_id)
    assert (rows.status(task_id), row.queue, row.losses, row.attempt) == ("pending, delete", "delete", 0, 1)


def test_a_type_that_fails_with_its_node_says_why(client: Client, database: Database, rows: Rows) -> None:
    task_id = rows.put("running, run", on_node_loss="fail", errors='[{"kind":"error","message":"boom"}]')

    take_over(database)

    task = client.get_task(task_id)
    assert [entry["kind"] for entry in task.errors] == ["error", "node lost"]
    assert task.error is not None
    assert "node north was lost while it ran this task" in task.error


def test_a_cancelled_task_ends_as_cancelled_though_its_node_was_lost(
    client: Client, database: Database, rows: Rows
) -> None:
    ids = [rows.put("running, cancel", attempt=n, errors=f'[{{"message":"{n}"}}]') for n in (1, 2)]

    take_over(database)

    for n, task_id in enumerate(ids, 1):
        errors = client.get_task(task_id).errors
        assert [entry["message"] for entry in errors] == [str(n), "cancelled by a user"]
        assert (errors[1]["kind"], errors[1]["attempt"]) == ("cancelled", n)


# --- who counts as lost


def test_a_node_is_declared_lost_only_if_nothing_of_it_has_changed(database: Database, rows: Rows) -> None:
    rows.join(counter=5, session_key="s")
    peer = Peer(NODE, "north", 5, "s", 15.0)
    stale = [replace(peer, counter=4), replace(peer, session_key=None), replace(peer, session_key="t")]
    stale.append(replace(peer, id=OTHER))

    assert [database.once(nodes.declare_lost, each) for each in stale] == [False] * 4
    assert database.once(nodes.lost) == []
    assert database.once(nodes.declare_lost, peer) is True
    assert database.once(nodes.declare_lost, peer) is False
    assert database.once(nodes.lost) == [(NODE, "north")]


def test_a_node_without_a_session_lock_can_be_declared_lost(database: Database, rows: Rows) -> None:
    rows.join(counter=5, session_key=None)

    assert database.once(nodes.declare_lost, Peer(NODE, "north", 5, "s", 15.0)) is False
    assert database.once(nodes.declare_lost, Peer(NODE, "north", 5, None, 15.0)) is True


def test_a_node_that_was_declared_lost_cannot_beat(database: Database, rows: Rows) -> None:
    rows.join(counter=5)
    beat = Beat(counter=6, session_key=None, slots=10, running=0, draining=False, types={})

    assert database.once(nodes.beat, NODE, beat) is True
    assert database.once(nodes.declare_lost, Peer(NODE, "north", 5, None, 15.0)) is False
    rows.lose()

    assert database.once(nodes.beat, NODE, beat) is False
    assert database.once(nodes.beat, OTHER, beat) is False


def test_observers_at_the_same_time_declare_a_node_lost_once(database: Database, rows: Rows) -> None:
    rows.join(counter=5)
    together = threading.Barrier(3)

    def declare() -> bool:
        together.wait(20)
        return database.once(nodes.declare_lost, Peer(NODE, "north", 5, None, 15.0))

    with ThreadPoolExecutor(3) as pool:
        declared = [each.result() for each in [pool.submit(declare) for _ in range(3)]]

    assert sorted(declared) == [False, False, True]


def test_a_node_sees_the_others_that_count_as_alive(database: Database, rows: Rows) -> None:
    rows.join(NODE, "north", counter=1)
    rows.join(OTHER, "south", counter=7, session_key="s")
    rows.join(new_id(), "west")
    rows.lose(OTHER)

    assert [peer.name for peer in database.once(nodes.peers, NODE)] == ["west"]
    assert {peer.name for peer in database.once(nodes.peers, new_id())} == {"north", "west"}


def test_joining_twice_is_joining_once(database: Database, rows: Rows) -> None:
    rows.join(counter=1)
    rows.join(name="again", counter=2)

    assert [(info.name, info.lost) for info in database.once(nodes.infos)] == [("north", False)]


def test_an_owner_without_a_row_is_lost(database: Database, rows: Rows) -> None:
    rows.join()
    rows.put("running, run")
    rows.put_many(2, "running, run", node_id=OTHER)

    assert database.once(nodes.orphaned) == [OTHER]

    take_over(database, OTHER)
    assert database.once(nodes.orphaned) == []


def test_a_node_that_left_with_tasks_leaves_orphans(database: Database, rows: Rows) -> None:
    rows.join()
    rows.put("running, run")

    database.once(nodes.leave, NODE)

    assert database.once(nodes.orphaned) == [NODE]


def test_a_lost_nodes_row_is_removed_only_when_no_task_names_it(database: Database, rows: Rows) -> None:
    rows.join()
    rows.put("running, run")

    alive = database.once(nodes.remove_lost, NODE)
    rows.lose()
    named = database.once(nodes.remove_lost, NODE)
    take_over(database)
    free = database.once(nodes.remove_lost, NODE)

    assert (alive, named, free) == (False, False, True)
    assert database.once(nodes.infos) == []


def test_a_node_that_is_alive_is_never_removed(database: Database, rows: Rows) -> None:
    rows.join()

    assert database.once(nodes.remove_lost, NODE) is False
    assert len(database.once(nodes.infos)) == 1


# --- letting go of what nobody runs


def test_a_node_lets_go_of_what_it_has_forgotten(database: Database, rows: Rows) -> None:
    claim, fence = rows.claimed(losses=1), new_fence()
    before = rows.get(claim.task_id)

    assert database.once(claims.release, NODE, [(claim.task_id, claim.fence)], fence) == [claim.task_id]

    written = changes(before, rows.get(claim.task_id))
    assert written.pop("ready_at") > LONG_AGO
    assert written == {"stage": "paused", "queue": "run", "node_id": None, "fence": fence}


@pytest.mark.parametrize(
    ("status", "after"),
    [
        ("running, pause", "paused, pause"),
        ("running, cancel", "failed, run"),
        ("running, delete", "pending, delete"),
        ("deleting, delete", "paused, delete"),
    ],
)
def test_letting_go_goes_by_what_is_wanted_of_the_task(database: Database, rows: Rows, status: str, after: str) -> None:
    claim = rows.claimed(status, on_node_loss="fail", max_losses=1)

    database.once(claims.release, NODE, [(claim.task_id, claim.fence)], new_fence())

    assert rows.status(claim.task_id) == after
    assert faults(rows.get(claim.task_id)) == []


def test_a_node_lets_go_of_nothing_but_that_very_claim(database: Database, rows: Rows) -> None:
    claim = rows.claimed()
    others = rows.claimed(node_id=OTHER)
    before = rows.all()

    assert database.once(claims.release, NODE, [(claim.task_id, new_fence())], new_fence()) == []
    assert database.once(claims.release, NODE, [(others.task_id, others.fence)], new_fence()) == []
    assert database.once(claims.release, NODE, [(claim.task_id, others.fence)], new_fence()) == []
    assert rows.all() == before


def test_claims_whose_reply_was_lost_are_let_go_of_by_their_fence(database: Database, rows: Rows) -> None:
    lost, kept = new_fence(), new_fence()
    strays = rows.put_many(3, "running, run", fence=lost)
    rows.put_many(2, "running, run", fence=kept)
    rows.put("running, run", fence=lost, node_id=OTHER)
    rows.put("paused, run", fence=lost)

    assert database.once(claims.release_fences, NODE, [lost, new_fence()], new_fence()) == strays
    assert {rows.status(each) for each in strays} == {"paused, run"}
    assert rows.column("stage").count("running") == 3


# --- rows that were kept long enough


@pytest.mark.parametrize("status", ["finished, run", "failed, run", "failed, delete"])
def test_an_ended_task_is_deleted_when_it_was_kept_long_enough(database: Database, rows: Rows, status: str) -> None:
    over = rows.put(status, purge_at=LONG_AGO, losses=2, attempt=3)
    not_yet = rows.put(status, purge_at=datetime.now(UTC) + timedelta(hours=1))
    for_ever = rows.put(status)

    assert database.once(claims.purge) == 1

    assert [rows.status(each) for each in (over, not_yet, for_ever)] == ["pending, delete", status, status]
    assert faults(rows.get(over)) == []
    assert (rows.get(over).queue, rows.get(over).losses, rows.get(over).attempt) == ("delete", 0, 1)


def test_purging_goes_in_batches_the_longest_kept_first(database: Database, rows: Rows) -> None:
    ids = [rows.put("finished, run", purge_at=LONG_AGO + timedelta(days=day)) for day in (3, 1, 2)]

    assert [database.once(claims.purge, 1) for _ in range(2)] == [1, 1]
    assert [rows.status(each) for each in ids] == ["finished, run", "pending, delete", "pending, delete"]
    assert [database.once(claims.purge) for _ in range(2)] == [1, 0]


@SERVERS
def test_purging_leaves_out_what_is_locked(database: Database, rows: Rows) -> None:
    locked, free = (rows.put("finished, run", purge_at=LONG_AGO) for _ in range(2))

    with rows.locked(locked):
        assert database.once(claims.purge) == 1

    assert (rows.status(locked), rows.status(free)) == ("finished, run", "pending, delete")


def test_a_task_that_was_run_again_is_not_purged(client: Client, database: Database, rows: Rows) -> None:
    task_id = rows.put("failed, run", purge_at=LONG_AGO)
    client.run_task(task_id)

    assert database.once(claims.purge) == 0


def test_keep_counts_from_the_end_of_the_task(client: Client, database: Database, rows: Rows) -> None:
    kept: dict[str, Any] = {
        "kept": client.create_task("report", keep=3600),
        "not kept": client.create_task("report", keep=0),
    }
    for task_id in kept.values():
        claim_again(database, rows, task_id)
        database.once(writes.write, [Write(claim_of(rows, task_id), Event.TASK_FINISHED, result="1")])

    assert database.once(claims.purge) == 1
    assert rows.status(kept["not kept"]) == "pending, delete"
    row = rows.get(kept["kept"])
    assert row.purge_at - row.done_at == timedelta(hours=1)
