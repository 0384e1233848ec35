"""Claiming: which tasks a node gets and in which order, that nobody else gets them, and how few rows that reads."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, text

from pyasync.client import Client
from pyasync.domain.queues import Fifo, Queue, QueuePolicy
from pyasync.ids import new_fence, new_id
from pyasync.settings import Settings
from pyasync.store import claims
from pyasync.store.claims import Offer, Request
from pyasync.store.database import Database
from pyasync.store.tables import tables
from tests.store.conftest import url_of
from tests.store.rows import FAR_AHEAD, LONG_AGO, NODE, STATUSES, Rows, changes, faults, host_engine, recorded

MINUTE = timedelta(minutes=1)


def offer(type: str = "report", **facts: Any) -> Offer:
    told: dict[str, Any] = {
        "version": 0,
        "on_node_loss": "resume",
        "max_losses": 3,
        "keep": None,
        "cleans": True,
    } | facts
    return Offer(type, **told)


def request(*types: str | Offer, limit: int = 10, queue: Queue = Queue.RUN, **more: Any) -> Request:
    offers = [each if isinstance(each, Offer) else offer(each) for each in types or ("report",)]
    return Request(queue, limit, offers, more.pop("policy", Fifo()), **more)


def claim(database: Database, wanted: Request, node: UUID = NODE, fence: UUID | None = None) -> list[UUID]:
    return [row.id for row in database.once(claims.claim, node, fence or new_fence(), wanted)]


# --- the order


def test_tasks_stopped_by_the_system_go_first_then_by_priority_then_who_waits_longest(
    database: Database, rows: Rows
) -> None:
    last = rows.put("pending, run", ready_at=LONG_AGO, rank=1)
    by_id = rows.put_many(2, ready_at=LONG_AGO + MINUTE)
    waits_longer = rows.put("pending, run", ready_at=LONG_AGO)
    urgent = rows.put("pending, run", ready_at=LONG_AGO + MINUTE, rank=-5)
    stopped = rows.put("paused, run", ready_at=LONG_AGO + MINUTE)
    stopped_urgent = rows.put("paused, run", ready_at=LONG_AGO + 2 * MINUTE, rank=-1)

    claimed = claim(database, request())

    assert claimed == [stopped_urgent, stopped, urgent, waits_longer, *by_id, last]


def test_the_priority_that_people_give_counts_upwards(client: Client, database: Database) -> None:
    low, high, middle = (client.create_task("report", priority=priority) for priority in (-10, 10, 0))

    assert claim(database, request()) == [high, middle, low]


def test_tasks_of_several_types_are_claimed_in_one_order(database: Database, rows: Rows) -> None:
    third = rows.put("pending, run", type="b", ready_at=LONG_AGO + 2 * MINUTE)
    first = rows.put("pending, run", type="b", ready_at=LONG_AGO)
    second = rows.put("pending, run", type="a", ready_at=LONG_AGO + MINUTE)
    urgent = rows.put("pending, run", type="a", ready_at=LONG_AGO + 9 * MINUTE, rank=-1)
    stopped = rows.put("paused, run", type="c", ready_at=LONG_AGO + 9 * MINUTE)

    assert claim(database, request("a", "b", "c", limit=4)) == [stopped, urgent, first, second]
    assert claim(database, request("a", "b", "c", limit=4)) == [third]


# --- which


def test_only_offered_types_are_claimed(database: Database, rows: Rows) -> None:
    ids = {type: rows.put("pending, run", type=type) for type in ("report", "Report", "report ", "other")}

    assert claim(database, request("report", "unknown")) == [ids["report"]]
    assert [rows.status(ids[type]) for type in ("Report", "report ", "other")] == ["pending, run"] * 3


def test_only_statuses_that_wait_for_a_node_are_claimed(database: Database, rows: Rows) -> None:
    ids = {status: rows.put(status) for status in STATUSES}

    to_run = claim(database, request())
    to_delete = claim(database, request(queue=Queue.DELETE))

    assert to_run == [ids["paused, run"], ids["pending, run"]]
    assert to_delete == [ids["paused, delete"], ids["pending, delete"]]
    assert [rows.status(each) for each in to_run + to_delete] == ["running, run"] * 2 + ["deleting, delete"] * 2
    assert [fault for row in rows.all() for fault in faults(row)] == []


@pytest.mark.parametrize(("version", "claimed"), [(0, 1), (3, 2), (4, 3)])
def test_a_context_of_a_newer_version_is_left_to_newer_nodes(
    database: Database, rows: Rows, version: int, claimed: int
) -> None:
    for written_by in (0, 3, 4):
        rows.put("pending, run", version=written_by)

    assert len(claim(database, request(offer(version=version)))) == claimed


def test_a_node_of_some_groups_claims_those_only(database: Database, rows: Rows) -> None:
    ids = {group: rows.put("pending, run", group_name=group) for group in ("", "night", "Night", "day")}

    assert claim(database, request(groups=frozenset())) == []
    assert claim(database, request(groups=frozenset({"night"}))) == [ids["night"]]
    assert claim(database, request(groups=frozenset({"", "day"}))) == [ids[""], ids["day"]]
    assert claim(database, request(groups=None)) == [ids["Night"]]


def test_no_more_than_the_limit_is_claimed(database: Database, rows: Rows) -> None:
    ids = rows.put_many(5)

    assert claim(database, request(limit=2)) == ids[:2]
    assert claim(database, request(limit=2)) == ids[2:4]
    assert rows.status(ids[4]) == "pending, run"


@pytest.mark.parametrize("nothing", [request(limit=0), request(limit=-1), Request(Queue.RUN, 5, [], Fifo())])
def test_without_room_or_types_nothing_is_asked_for(database: Database, rows: Rows, nothing: Request) -> None:
    rows.put("pending, run")

    with recorded(database.engine) as statements:
        assert claim(database, nothing) == []

    assert [sql for sql, _ in statements if "pyasync_task" in sql] == []


def test_a_type_gets_no_more_than_its_room(database: Database, rows: Rows) -> None:
    ids = {type: rows.put_many(3, type=type) for type in ("a", "b", "c")}

    claimed = claim(database, request("a", "b", "c", room={"a": 1, "b": 0, "c": 99}))

    assert sorted(claimed) == sorted([ids["a"][0], *ids["c"]])


def test_rows_that_were_locked_for_the_order_and_not_taken_are_free_again(database: Database, rows: Rows) -> None:
    rows.put_many(3, type="a")
    others = rows.put_many(3, type="b")

    claim(database, request("a", "b", limit=3))

    assert claim(database, request("b")) == others


# --- what a claim writes


def test_a_claim_writes_its_owner_its_fence_and_what_a_sweeper_must_know(database: Database, rows: Rows) -> None:
    task_id = rows.put("pending, run", epoch=4, seq=7, attempt=2, losses=1, note="it waited", context='{"at":7}')
    before, fence = rows.get(task_id), new_fence()

    claim(database, request(offer(on_node_loss="fail", max_losses=5, keep=60.0)), fence=fence)

    written = changes(before, rows.get(task_id))
    assert abs(written.pop("started_at") - datetime.now(UTC)) < MINUTE
    assert written == {
        "stage": "running",
        "queue": None,
        "node_id": NODE,
        "fence": fence,
        "epoch": 5,
        "on_node_loss": "fail",
        "max_losses": 5,
        "keep": 60.0,
    }


def test_a_tasks_own_keep_goes_before_its_types(database: Database, rows: Rows) -> None:
    task_id = rows.put("pending, run", keep=0.0)

    claim(database, request(offer(keep=60.0, max_losses=None)))

    assert (rows.get(task_id).keep, rows.get(task_id).max_losses) == (0.0, None)


def test_a_claim_returns_the_rows_as_they_were(database: Database, rows: Rows) -> None:
    history: dict[str, Any] = {"context": '{"at":5}', "version": 2, "attempt": 3, "epoch": 4, "seq": 5, "losses": 1}
    task_id = rows.put("paused, run", **history, user_name="ál", group_name="g", headers='{"a":1}', rank=-3)

    (row,) = database.once(claims.claim, NODE, new_fence(), request(offer(version=2)))

    assert {name: getattr(row, name) for name in history} == history
    assert (row.id, row.type, row.user_name, row.group_name) == (task_id, "report", "ál", "g")
    assert (row.stage, row.mark, row.arguments, row.headers, row.rank) == ("paused", "run", '{"n":1}', '{"a":1}', -3)


def test_the_epoch_counts_claims_and_each_has_its_own_fence(database: Database, rows: Rows) -> None:
    task_id = rows.put("pending, run")
    seen = []

    for _ in range(3):
        claim(database, request())
        row = rows.get(task_id)
        seen.append((row.epoch, row.fence))
        database.once(claims.release, NODE, [(task_id, row.fence)], new_fence())
        seen.append((row.epoch, rows.get(task_id).fence))

    assert [epoch for epoch, _ in seen] == [1, 1, 2, 2, 3, 3]
    assert len({fence for _, fence in seen}) == 6


def test_what_a_claim_took_is_found_by_its_fence_and_by_its_node(database: Database, rows: Rows) -> None:
    ids, fence = rows.put_many(3), new_fence()
    claim(database, request(limit=2), fence=fence)

    assert sorted(tuple(row) for row in database.once(claims.owned, NODE)) == [(each, fence) for each in ids[:2]]
    assert database.once(claims.owned, new_id()) == []
    assert database.once(claims.reload, ids[0], fence).seq == 0  # type: ignore[union-attr]
    assert database.once(claims.reload, ids[0], new_fence()) is None


def test_a_node_sees_which_of_its_tasks_are_wanted_stopped(client: Client, database: Database, rows: Rows) -> None:
    wanted = {mark: rows.put(f"running, {mark}") for mark in ("pause", "cancel", "delete")}
    rows.put("running, run")
    rows.put("deleting, delete")
    rows.put("running, pause", node_id=new_id())

    found = database.once(claims.marked, NODE)

    assert {row.mark: row.id for row in found} == wanted
    assert [rows.get(row.id).fence for row in found] == [row.fence for row in found]


# --- nobody else gets it


def test_claimers_at_the_same_time_never_get_the_same_task(database: Database, rows: Rows) -> None:
    ids = rows.put_many(100)
    together = threading.Barrier(4)

    def claim_all() -> list[UUID]:
        node, mine = new_id(), []
        together.wait(20)
        while taken := claim(database, request(limit=3), node):
            assert all(rows.get(each).node_id == node for each in taken[:1])
            mine += taken
        return mine

    with ThreadPoolExecutor(4) as pool:
        claimed = [each for future in [pool.submit(claim_all) for _ in range(4)] for each in future.result()]

    assert len(claimed) == len(set(claimed))
    assert set(claimed) <= set(ids)
    assert claim(database, request(limit=100)) == [each for each in ids if each not in claimed]
    assert rows.column("epoch") == [1] * 100


@pytest.mark.databases("postgresql", "mariadb", "mysql")
def test_a_locked_task_is_left_out_without_waiting(database: Database, rows: Rows) -> None:
    first, second = rows.put_many(2)

    with rows.locked(first):
        assert claim(database, request()) == [second]

    assert claim(database, request()) == [first]


@pytest.mark.databases("postgresql", "mariadb", "mysql")
def test_a_claim_that_is_not_committed_yet_is_left_out_by_others(database: Database, rows: Rows) -> None:
    ids = rows.put_many(4)

    with database.transaction() as tx:
        mine = [row.id for row in claims.claim(tx, NODE, new_fence(), request(limit=2))]
        theirs = claim(database, request(limit=9), new_id())

    assert (mine, theirs) == (ids[:2], ids[2:])


@pytest.mark.databases("sqlite")
def test_a_claim_that_is_not_committed_yet_makes_the_next_one_wait(database: Database, rows: Rows) -> None:
    """The driver's own transactions would let both read the same row first."""
    ids = rows.put_many(4)
    begun, claimed = threading.Event(), threading.Event()

    def claim_slowly() -> list[UUID]:
        with database.transaction() as tx:
            mine = [row.id for row in claims.claim(tx, NODE, new_fence(), request(limit=2))]
            begun.set()
            assert not claimed.wait(0.2)
        return mine

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(claim_slowly)
        begun.wait(10)
        theirs = claim(database, request(limit=9), new_id())
        claimed.set()

    assert (first.result(), theirs) == (ids[:2], ids[2:])


@pytest.mark.databases("postgresql")
def test_a_hosts_row_that_refers_to_a_task_does_not_keep_it_from_being_claimed(database: Database, rows: Rows) -> None:
    task_id = rows.put("pending, run")
    engine = host_engine(database.url.render_as_string(hide_password=False))
    with engine.begin() as caller:
        caller.execute(text("create table host_order (task uuid references pyasync_task)"))

    with engine.connect() as caller:
        caller.execute(text("insert into host_order values (:task)"), {"task": task_id})
        claimed = claim(database, request())
        caller.rollback()
        caller.execute(text("drop table host_order"))
        caller.commit()

    assert claimed == [task_id]


# --- probation


def test_a_suspect_is_claimed_from_its_own_queue_only(database: Database, rows: Rows) -> None:
    suspect = rows.put("paused, run", queue="probation", losses=2)
    deletion = rows.put("paused, delete", queue="probation", losses=2)

    assert claim(database, request()) == []
    assert claim(database, request(queue=Queue.DELETE)) == []
    assert sorted(claim(database, request(queue=Queue.PROBATION))) == sorted([suspect, deletion])
    assert (rows.status(suspect), rows.status(deletion)) == ("running, run", "deleting, delete")


def test_one_suspect_at_a_time_is_what_a_node_asks_for(database: Database, rows: Rows) -> None:
    first, second = rows.put_many(2, "paused, run", queue="probation", losses=2)

    assert claim(database, request(limit=1, queue=Queue.PROBATION)) == [first]
    assert claim(database, request(limit=1, queue=Queue.PROBATION)) == [second]


def test_a_suspect_to_be_deleted_is_not_claimed_by_a_type_without_clean_up(database: Database, rows: Rows) -> None:
    rows.put("paused, delete", queue="probation", losses=2)
    suspect = rows.put("paused, run", queue="probation", losses=2)

    assert claim(database, request(offer(cleans=False), queue=Queue.PROBATION)) == [suspect]


# --- policies


class LastInFirstOut:
    def order(self, task: Any) -> tuple[Any, ...]:
        return (task.ready_at.desc(), task.id.desc())


class ByUser:
    def order(self, task: Any) -> tuple[Any, ...]:
        return (task.user_name.asc(), func.length(task.group_name).desc(), task.id)


class LatestDone:
    """Orders by something that may be null."""

    def order(self, task: Any) -> tuple[Any, ...]:
        return (task.done_at.is_(None), task.done_at.desc(), task.id)


@pytest.mark.parametrize("types", [["a"], ["a", "b"]])
@pytest.mark.parametrize(
    ("policy", "expected"),
    [(LastInFirstOut(), [3, 2, 1, 0]), (ByUser(), [2, 0, 1, 3]), (LatestDone(), [1, 0, 2, 3]), (Fifo(), [0, 1, 2, 3])],
    ids=["last in, first out", "by user", "by what may be null", "first in, first out"],
)
def test_a_policy_of_the_hosts_orders_tasks_of_the_same_priority(
    database: Database, rows: Rows, policy: QueuePolicy, expected: list[int], types: list[str]
) -> None:
    ids = [
        rows.put("pending, run", type=types[0], user_name="bob", group_name="gg", done_at=LONG_AGO),
        rows.put("pending, run", type=types[-1], user_name="bob", done_at=LONG_AGO + MINUTE),
        rows.put("pending, run", type=types[-1], user_name="alice"),
        rows.put("pending, run", type=types[0], user_name="carol"),
    ]
    urgent = rows.put("pending, run", type=types[-1], user_name="zoe", rank=-1, ready_at=LONG_AGO - MINUTE)

    claimed = claim(database, request(*types, policy=policy))

    assert claimed == [urgent, *(ids[n] for n in expected)]


class FewestRunning:
    """Who has the fewest tasks running goes first: a policy that reads other rows."""

    def order(self, task: Any) -> tuple[Any, ...]:
        other = tables(None).task.alias()
        running = func.count().select().where(other.c.user_name == task.user_name, other.c.stage == "running")
        return (running.scalar_subquery(), task.ready_at, task.id)


def test_a_policy_may_read_other_rows(database: Database, rows: Rows) -> None:
    busy = rows.put("pending, run", user_name="bob")
    rows.put("running, run", user_name="bob")
    idle = rows.put("pending, run", user_name="alice")

    assert claim(database, request(policy=FewestRunning())) == [idle, busy]


# --- timers


def test_a_task_whose_time_has_not_come_is_not_claimed(client: Client, database: Database, rows: Rows) -> None:
    client.create_task("report", delay=60)

    assert database.once(claims.promote) == 0
    assert claim(database, request()) == []


def test_a_task_whose_time_has_come_queues_up_by_that_time(database: Database, rows: Rows) -> None:
    waited = rows.put("pending, run", ready_at=LONG_AGO + MINUTE)
    due = [
        rows.put("pending, run", queue=None, ready_at=FAR_AHEAD, due_at=LONG_AGO + minutes * MINUTE, run_at=LONG_AGO)
        for minutes in (2, 0)
    ]

    assert database.once(claims.promote) == 2

    assert [fault for row in rows.all() for fault in faults(row)] == []
    assert rows.get(due[0]).run_at == LONG_AGO
    assert claim(database, request()) == [due[1], waited, due[0]]


@pytest.mark.parametrize(
    ("status", "losses", "queue"),
    [("pending, run", 0, "run"), ("pending, run", 2, "probation"), ("pending, delete", 1, "delete")],
)
def test_a_task_whose_time_has_come_gets_into_the_queue_it_belongs_to(
    database: Database, rows: Rows, status: str, losses: int, queue: str
) -> None:
    task_id = rows.put(status, queue=None, due_at=LONG_AGO, losses=losses)

    database.once(claims.promote)

    assert (rows.get(task_id).queue, rows.get(task_id).due_at) == (queue, None)


def test_timers_are_promoted_in_batches_the_earliest_first(
    database: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "DUE_BATCH", 2)
    ids = [rows.put("pending, run", queue=None, due_at=LONG_AGO + minutes * MINUTE) for minutes in (4, 0, 3, 1, 2)]

    promoted = [database.once(claims.promote), set(claim(database, request()))]

    assert promoted == [2, {ids[1], ids[3]}]
    assert [database.once(claims.promote) for _ in range(3)] == [2, 1, 0]


def test_the_next_time_is_told_in_seconds(database: Database, rows: Rows, client: Client) -> None:
    assert database.single(claims.next_due) is None

    client.create_task("report", delay=60)
    client.create_task("report", delay=30)
    due_in = database.single(claims.next_due)

    assert due_in is not None
    assert 20 < due_in <= 30

    rows.put("pending, run", queue=None, due_at=LONG_AGO)
    assert database.single(claims.next_due) == 0.0


def test_a_look_that_locks_nothing_tells_whether_something_waits(
    client: Client, database: Database, rows: Rows
) -> None:
    assert database.single(claims.waiting, ["report"]) == (False, None)

    rows.put("pending, run", type="other")
    rows.put("running, run")
    assert database.single(claims.waiting, ["report"]) == (False, None)
    assert database.single(claims.waiting, []) == (False, None)

    task_id = client.create_task("report", delay=60)
    found, due_in = database.single(claims.waiting, ["report"])
    assert (found, due_in is not None and 50 < due_in <= 60) == (False, True)

    rows.change(task_id, due_at=LONG_AGO)
    assert database.single(claims.waiting, ["report"])[0] is True
    rows.drop(task_id)
    rows.put("pending, delete")
    assert database.single(claims.waiting, ["report"])[0] is True


# --- removal of deleted tasks whose type has no clean-up


def test_deleted_tasks_of_types_without_clean_up_are_removed(database: Database, rows: Rows) -> None:
    gone = [rows.put(status) for status in ("pending, delete", "paused, delete")]
    gone.append(rows.put("paused, delete", queue="probation", losses=2))
    left = [rows.put(status) for status in STATUSES if status not in ("pending, delete", "paused, delete")]
    left.append(rows.put("pending, delete", type="other"))
    left.append(rows.put("paused, run", queue="probation", losses=2))
    left.append(rows.put("pending, delete", queue=None, due_at=FAR_AHEAD))

    removed = database.once(claims.remove_deleted, ["report", "unknown"])

    assert removed == 3
    assert [rows.get(each) for each in gone] == [None] * 3
    assert all(rows.get(each) is not None for each in left)


def test_removal_goes_in_batches_and_does_nothing_without_types(database: Database, rows: Rows) -> None:
    rows.put_many(5, "pending, delete")

    assert database.once(claims.remove_deleted, []) == 0
    assert [database.once(claims.remove_deleted, ["report"], 2) for _ in range(4)] == [2, 2, 1, 0]


@pytest.mark.databases("postgresql", "mariadb", "mysql")
def test_removal_leaves_out_what_is_locked(database: Database, rows: Rows) -> None:
    first, second = rows.put_many(2, "pending, delete")

    with rows.locked(first):
        assert database.once(claims.remove_deleted, ["report"]) == 1

    assert (rows.get(first) is None, rows.get(second) is None) == (False, True)


# --- none of all this waits for a row that somebody has locked


NODES_WORK: dict[str, tuple[str, dict[str, Any], Callable[[Any], int]]] = {
    "claim": ("pending, run", {}, lambda tx: len(claims.claim(tx, NODE, new_fence(), request(limit=99)))),
    "promote": ("pending, run", {"queue": None, "due_at": LONG_AGO}, claims.promote),
    "remove_deleted": ("pending, delete", {}, lambda tx: claims.remove_deleted(tx, ["report"])),
    "take_over": ("running, run", {}, lambda tx: len(claims.take_over(tx, NODE, "north", new_fence()))),
    "take_over, cancelled": ("running, cancel", {}, lambda tx: len(claims.take_over(tx, NODE, "north", new_fence()))),
    "purge": ("finished, run", {"purge_at": LONG_AGO}, claims.purge),
}


@pytest.mark.databases("postgresql", "mariadb", "mysql")
@pytest.mark.parametrize("number", [2, 3, 40])
@pytest.mark.parametrize("work", NODES_WORK)
def test_a_nodes_work_leaves_out_what_is_locked_and_never_waits(
    database: Database, rows: Rows, work: str, number: int
) -> None:
    """Of a table of few rows MariaDB reads all, and a statement that only looks at a locked row waits for it."""
    status, columns, do = NODES_WORK[work]
    locked = [rows.put(status, **columns), rows.put("running, run", node_id=new_id())]
    rows.put_many(number, status, **columns)
    locked += [rows.put(status, **columns), rows.put("pending, delete", type="other")]
    impatient = Database(url_of(database), Settings(database_timeout=1.0))

    with rows.locked(*locked):
        done = impatient.once(do)

    assert done == number
    assert impatient.once(do) == 2
    impatient.close()


# --- how much of a backlog is read

BACKLOG = 20_000
FEW = 120
"""Rows that a claim of ten may touch: each one found, locked and written, by an index and in the table."""


@pytest.fixture(params=["of many kinds, not analyzed", "of many kinds", "of one kind"])
def backlog(url: str, request: pytest.FixtureRequest) -> Iterator[Rows]:
    """A fresh database with rows in front that no claim of ours should ever look at."""
    database = Database(url, Settings())
    tables(None).metadata.create_all(database.engine)
    rows = Rows(database)
    rows.fill(BACKLOG, type="other", ready_at=LONG_AGO)
    if "many" in request.param:
        rows.fill(BACKLOG, queue=None, due_at=FAR_AHEAD, run_at=FAR_AHEAD)
        rows.fill(BACKLOG, "finished, run")
        rows.fill(1_000, ready_at=LONG_AGO + MINUTE)
    if "not" not in request.param:
        rows.analyze()
    yield rows
    database.close()


LOOKS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "claim": ("pyasync_task_claim", lambda tx: claims.claim(tx, NODE, new_fence(), request())),
    "claim from an empty queue": (
        "pyasync_task_claim",
        lambda tx: claims.claim(tx, NODE, new_fence(), request(queue=Queue.DELETE)),
    ),
    "claim of an unknown type": ("pyasync_task_claim", lambda tx: claims.claim(tx, NODE, new_fence(), request("no"))),
    "promote": ("pyasync_task_due", claims.promote),
    "next_due": ("pyasync_task_due", claims.next_due),
    "waiting": ("pyasync_task_claim", lambda tx: claims.waiting(tx, ["report"])),
    "waiting in vain": ("pyasync_task_claim", lambda tx: claims.waiting(tx, ["no"])),
    "remove_deleted": ("pyasync_task_claim", lambda tx: claims.remove_deleted(tx, ["report"])),
    "purge": ("pyasync_task_purge", claims.purge),
    "take_over": ("pyasync_task_owned", lambda tx: claims.take_over(tx, NODE, "north", new_fence())),
    "owned": ("pyasync_task_owned", lambda tx: claims.owned(tx, NODE)),
    "marked": ("pyasync_task_owned", lambda tx: claims.marked(tx, NODE)),
}


@pytest.mark.timeout(180)
def test_no_look_reads_a_backlog_that_it_does_not_want(backlog: Rows) -> None:
    """A million rows of a type that a node does not know, or that are due tomorrow, are not read at each poll."""
    read = {name: rows_read(backlog.database, look) for name, (_, look) in LOOKS.items()}
    indexes = {name: indexes_used(backlog.database, look) for name, (_, look) in LOOKS.items()}

    assert {name: number for name, number in read.items() if number > FEW} == {}
    assert {name: used for name, used in indexes.items() if not any(LOOKS[name][0] in each for each in used)} == {}


def rows_read(database: Database, look: Callable[[Any], object]) -> int:
    """How many rows and index entries the database says it touches for it."""
    return _READ[database.dialect.name](database, look)


def read_by_postgresql(database: Database, look: Callable[[Any], object]) -> int:
    return sum(_touched(plan) for plan in plans(database, look, "explain (analyze, format json) "))


def _touched(plan: Any) -> int:
    if isinstance(plan, str):
        plan = json.loads(plan)
    if isinstance(plan, list):
        return sum(_touched(each) for each in plan)
    node = plan.get("Plan", plan)
    own = node["Actual Rows"] * node["Actual Loops"] if "Scan" in node["Node Type"] else 0
    dropped = sum(node.get(f"Rows Removed by {what}", 0) for what in ("Filter", "Index Recheck"))
    return int(own + dropped) + sum(_touched(each) for each in node.get("Plans", []))


def read_by_mysql(database: Database, look: Callable[[Any], object]) -> int:
    with database.transaction() as tx:
        before = handler_reads(tx)
        look(tx)
        read = handler_reads(tx) - before
        tx.connection.rollback()
    return read


def handler_reads(tx: Any) -> int:
    return sum(int(row[1]) for row in tx.execute(text("show session status like 'Handler_read%'")))


STEPS_PER_ROW = 40
"""Instructions of SQLite's machine for a row, with plenty to spare: a claimed row is read, and written."""


def read_by_sqlite(database: Database, look: Callable[[Any], object]) -> int:
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    with database.transaction() as tx:
        driver: Any = tx.connection.connection.driver_connection
        driver.set_progress_handler(count, 10)
        look(tx)
        driver.set_progress_handler(None, 0)
        tx.connection.rollback()
    return steps * 10 // STEPS_PER_ROW


_READ = {"postgresql": read_by_postgresql, "mysql": read_by_mysql, "sqlite": read_by_sqlite}


def indexes_used(database: Database, look: Callable[[Any], object]) -> list[str]:
    """What the database says of each statement's plan."""
    explain = {"sqlite": "explain query plan ", "mysql": "explain format=json "}
    return [str(plan) for plan in plans(database, look, explain.get(database.dialect.name, "explain "))]


def plans(database: Database, look: Callable[[Any], object], explain: str) -> list[Any]:
    """Explain each statement that a look sends; what they write is rolled back."""
    with database.transaction() as tx:
        with recorded(database.engine) as statements:
            look(tx)
        tx.connection.rollback()
    explained = []
    with database.transaction() as tx:
        for sql, parameters in statements:
            if "pyasync_task" in sql:
                found = tx.connection.exec_driver_sql(explain + sql, parameters).all()
                explained.append([row[-1] if explain.endswith("plan ") else row[0] for row in found])
        tx.connection.rollback()
    return explained
