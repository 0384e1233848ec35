"""Fenced writes: what counts and what is refused, in groups, under locks and marks, and with any contents."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event as events
from sqlalchemy import text

from pyasync.client import Client
from pyasync.domain.contents import encode
from pyasync.domain.failures import failure
from pyasync.domain.states import Event, Mark
from pyasync.domain.task import Claim
from pyasync.errors import InvalidTransition
from pyasync.ids import new_fence, new_id
from pyasync.settings import Settings
from pyasync.store import claims, writes
from pyasync.store.database import Database
from pyasync.store.tables import tables
from pyasync.store.writes import Fate, Write, Written
from tests.store.conftest import url_of
from tests.store.rows import LONG_AGO, NODE, Rows, changes, faults, host_engine, recorded

SERVERS = pytest.mark.databases("postgresql", "mariadb", "mysql")
MIB = 1024 * 1024

# The design's table: what the ends of a run make of what is wanted of the task when they are stored.
GRID = """
                 | sys_pause       | task_finished   | task_failed     | sys_retry
running, run     | paused, run     | finished, run   | failed, run     | pending, run
running, delete  | pending, delete | pending, delete | pending, delete | pending, delete
running, pause   | paused, pause   | finished, run   | failed, run     | paused, pause
running, cancel  | failed, run     | finished, run   | failed, run     | failed, run
deleting, delete | paused, delete  | removed         | failed, delete  | pending, delete
"""


def grid() -> list[tuple[str, str, str]]:
    head, *lines = ([cell.strip() for cell in line.split("|")] for line in GRID.strip("\n").splitlines())
    return [(line[0], event, cell) for line in lines for event, cell in zip(head[1:], line[1:], strict=True)]


def store(database: Database, *some: Write) -> list[Written]:
    return database.once(writes.write, some)


def fates(database: Database, *some: Write) -> list[Fate]:
    return [written.fate for written in store(database, *some)]


def claimed_then_marked(rows: Rows, status: str, **columns: Any) -> Claim:
    """A task that a user has marked after it was claimed."""
    if status == "deleting, delete":
        return rows.claimed(status, **columns)
    claim = rows.claimed("running, run", **columns)
    rows.change(claim.task_id, mark=status.split(", ")[1])
    return claim


# --- reports


def test_a_report_of_the_claim_that_stands_is_stored(database: Database, rows: Rows) -> None:
    claim = rows.claimed(seq=4, losses=1, note="released before", context='{"at":4}')
    before = rows.get(claim.task_id)

    written = store(database, Write(claim, context='{"at":5}', version=2, progress=0.5, message="half", result="[1]"))

    assert written == [Written(Fate.STORED, Mark.RUN)]
    assert changes(before, rows.get(claim.task_id)) == {
        "seq": 5,
        "context": '{"at":5}',
        "version": 2,
        "progress": 0.5,
        "message": "half",
        "result": "[1]",
        "losses": 0,
        "note": None,
    }


def test_reports_follow_one_another(database: Database, rows: Rows) -> None:
    claim = rows.claimed()

    for seq in range(5):
        assert fates(database, Write(claim.after(seq), context=str(seq))) == [Fate.STORED]

    assert (rows.get(claim.task_id).seq, rows.get(claim.task_id).context) == (5, "4")


def test_what_a_report_leaves_out_stays_as_it_was(database: Database, rows: Rows) -> None:
    told: dict[str, Any] = {"context": '{"at":1}', "version": 3, "progress": 0.25, "message": "m", "result": '"r"'}
    claim = rows.claimed(**told)

    store(database, Write(claim))

    assert {name: getattr(rows.get(claim.task_id), name) for name in told} == told


def test_null_is_a_context_and_not_the_absence_of_one(client: Client, database: Database, rows: Rows) -> None:
    claim = rows.claimed(context='{"at":1}', result='"r"')

    store(database, Write(claim, context="null", result="null", progress=0.0, message=""))

    row, task = rows.get(claim.task_id), client.get_task(claim.task_id)
    assert (row.context, row.result, row.progress, row.message) == ("null", "null", 0.0, "")
    assert (task.context, task.result) == (None, None)


@pytest.mark.parametrize("mark", ["run", "pause", "cancel", "delete"])
def test_a_report_brings_back_what_is_wanted_of_the_task(database: Database, rows: Rows, mark: str) -> None:
    claim = claimed_then_marked(rows, f"running, {mark}")

    assert store(database, Write(claim, context="1")) == [Written(Fate.STORED, Mark(mark))]
    assert rows.status(claim.task_id) == f"running, {mark}"


def test_a_clean_up_reports_as_a_run_does(database: Database, rows: Rows) -> None:
    claim = rows.claimed("deleting, delete")

    assert store(database, Write(claim, context="1")) == [Written(Fate.STORED, Mark.DELETE)]
    assert rows.get(claim.task_id).context == "1"


# --- refusals


def refusals(rows: Rows) -> dict[str, tuple[Claim, Fate]]:
    """Claims that do not stand, and what reading back says of each."""
    taken, ahead, behind = rows.claimed(seq=3), rows.claimed(seq=3), rows.claimed(seq=3)
    found = {
        "another's fence": (replace(taken, fence=new_fence()), Fate.LOST),
        "a seq that is stored already": (ahead.after(2), Fate.STORED),
        "a seq long stored": (ahead.after(1), Fate.LOST),
        "a seq that the database does not have": (behind.after(4), Fate.BEHIND),
        "a seq far ahead": (behind.after(9), Fate.BEHIND),
        "no such task": (Claim(new_id(), NODE, new_fence(), 0), Fate.LOST),
    }
    for status in ("pending, run", "paused, run", "paused, pause", "finished, run", "failed, run", "pending, delete"):
        found[status] = (rows.claimed(status, seq=3), Fate.LOST)
    return found


EVENTS = [None, Event.SYS_PAUSE, Event.TASK_FINISHED, Event.TASK_FAILED, Event.SYS_RETRY]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.value if event else "report")
@pytest.mark.parametrize("removes", [False, True], ids=["", "removes"])
def test_a_claim_that_does_not_stand_writes_nothing(
    database: Database, rows: Rows, event: Event | None, removes: bool
) -> None:
    removes = removes and event in (Event.TASK_FINISHED, Event.TASK_FAILED)
    refused = refusals(rows)
    before = rows.all()

    for what, (claim, fate) in refused.items():
        write = Write(claim, event, context='"late"', errors="[]", removes=removes)
        if removes and what == "no such task":
            fate = Fate.STORED  # its row is gone, and that is what it wanted
        assert fates(database, write) == [fate], what

    assert rows.all() == before


def test_a_zombies_report_after_a_takeover_is_refused(database: Database, rows: Rows) -> None:
    claim = rows.claimed()
    database.once(claims.take_over, NODE, "north", new_fence())
    rows.change(claim.task_id, stage="running", node_id=new_id(), queue=None)

    assert fates(database, Write(claim, context='"late"'), Write(claim)) == [Fate.LOST, Fate.LOST]
    assert rows.get(claim.task_id).context is None


def test_a_report_that_is_sent_twice_is_stored_once(database: Database, rows: Rows) -> None:
    claim = rows.claimed()
    report = Write(claim, context="1")

    assert [fates(database, report), fates(database, report)] == [[Fate.STORED], [Fate.STORED]]
    assert rows.get(claim.task_id).seq == 1


def test_nothing_counts_after_the_end_of_a_run(database: Database, rows: Rows) -> None:
    claim = rows.claimed()
    store(database, Write(claim, Event.TASK_FINISHED, result="1"))
    before = rows.all()

    late = [Write(claim.after(1), context="2"), Write(claim.after(1), Event.TASK_FAILED, errors="[]")]

    assert [fates(database, each) for each in late] == [[Fate.LOST], [Fate.LOST]]
    assert rows.all() == before


# --- what is read back


@pytest.mark.parametrize(
    ("found", "fate"),
    [
        ({"seq": 4}, Fate.STORED),
        ({"seq": 4, "stage": "paused"}, Fate.STORED),
        ({"seq": 4, "stage": "finished", "mark": "run"}, Fate.STORED),
        ({"seq": 3}, Fate.UNSTORED),
        ({"seq": 3, "mark": "pause"}, Fate.UNSTORED),
        ({"seq": 2}, Fate.BEHIND),
        ({"seq": 0, "stage": "deleting", "mark": "delete"}, Fate.BEHIND),
        ({"seq": 5}, Fate.LOST),
        ({"seq": 3, "stage": "paused"}, Fate.LOST),
        ({"seq": 2, "stage": "pending"}, Fate.LOST),
        ({"seq": 3, "fence": UUID(int=9)}, Fate.LOST),
        ({"seq": 4, "fence": UUID(int=9)}, Fate.LOST),
        ({"seq": 4, "fence": None, "stage": "pending"}, Fate.LOST),
    ],
)
def test_a_lost_reply_is_judged_by_the_row(found: dict[str, Any], fate: Fate) -> None:
    claim = Claim(UUID(int=1), NODE, UUID(int=2), 3)
    row = SimpleNamespace(**{"fence": claim.fence, "seq": 3, "stage": "running", "mark": "run"} | found)

    assert writes.judge(Write(claim), row).fate is fate
    assert writes.judge(Write(claim, Event.SYS_RETRY), row).fate is fate


def test_a_row_that_is_gone_is_the_end_that_a_removal_wanted_and_a_loss_for_all_else() -> None:
    claim = Claim(UUID(int=1), NODE, UUID(int=2), 3)

    assert writes.judge(Write(claim, Event.TASK_FINISHED, removes=True), None).fate is Fate.STORED
    assert writes.judge(Write(claim, Event.TASK_FINISHED), None).fate is Fate.LOST
    assert writes.judge(Write(claim), None).fate is Fate.LOST


def test_reading_back_tells_how_far_the_database_went_back(database: Database, rows: Rows) -> None:
    claim = rows.claimed("running, pause", seq=2)

    behind = database.once(writes.read_back, Write(claim.after(7)))

    assert (behind.fate, behind.mark, behind.seq) == (Fate.BEHIND, Mark.PAUSE, 2)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.value if event else "report")
def test_an_end_whose_reply_was_lost_is_found_stored(database: Database, rows: Rows, event: Event | None) -> None:
    write = Write(rows.claimed(), event, context="1", errors="[]", delay=60.0 if event is Event.SYS_RETRY else None)
    unsent = database.once(writes.read_back, write).fate

    store(database, write)

    assert (unsent, database.once(writes.read_back, write).fate) == (Fate.UNSTORED, Fate.STORED)


# --- the end of a run, by what is wanted of the task by then


@pytest.mark.parametrize(("status", "event", "after"), grid())
def test_an_end_goes_by_the_mark_that_the_row_has_when_it_is_stored(
    database: Database, rows: Rows, status: str, event: str, after: str
) -> None:
    claim = claimed_then_marked(rows, status, seq=3, losses=1, key_name="k", held_key="k", keep=60.0)
    removes = after == "removed"

    written = fates(database, Write(claim.after(3), Event(event), context='{"at":9}', removes=removes, cancelled="[]"))

    assert written == [Fate.STORED]
    assert rows.status(claim.task_id) == (None if removes else after)
    if removes:
        return
    row = rows.get(claim.task_id)
    assert faults(row) == []
    assert (row.seq, row.fence, row.node_id, row.context) == (4, claim.fence, None, '{"at":9}')
    ended = after.startswith(("finished", "failed"))
    assert (row.held_key is None) == (ended or "delete" in after)
    assert (row.done_at is not None) == ended
    assert row.purge_at == (row.done_at + timedelta(seconds=60) if ended else None)


@pytest.mark.parametrize("event", [Event.TASK_FINISHED, Event.TASK_FAILED])
@pytest.mark.parametrize(
    ("status", "after"),
    [
        ("running, run", None),
        ("running, pause", None),
        ("running, cancel", None),
        ("running, delete", "pending, delete"),
        ("deleting, delete", None),
    ],
)
def test_a_removal_removes_the_row_unless_its_clean_up_is_to_run(
    database: Database, rows: Rows, status: str, after: str | None, event: Event
) -> None:
    claim = claimed_then_marked(rows, status)

    assert fates(database, Write(claim, event, result="1", errors="[]", removes=True)) == [Fate.STORED]

    assert rows.status(claim.task_id) == after
    assert [fault for row in rows.all() for fault in faults(row)] == []


@SERVERS
@pytest.mark.parametrize("event", [Event.TASK_FINISHED, Event.TASK_FAILED])
@pytest.mark.parametrize("status", ["deleting, delete", "running, run", "running, delete"])
def test_a_removal_of_a_row_that_gets_free_half_way_leaves_nothing_half_done(
    database: Database, rows: Rows, status: str, event: Event
) -> None:
    """Locked while the statement that removes looks at it, free for the next one: go by the table, or try again."""
    claim = claimed_then_marked(rows, status)
    write = Write(claim, event, errors="[]", removes=True)

    with ExitStack() as lock:
        lock.enter_context(rows.locked(claim.task_id))
        with after_statement(database, "delete", lock.close):
            first = fates(database, write)

    if first == [Fate.UNSTORED]:
        first = fates(database, write)
    assert first == [Fate.STORED]
    assert rows.status(claim.task_id) == ("pending, delete" if status == "running, delete" else None)


@contextmanager
def after_statement(database: Database, word: str, deed: Any) -> Iterator[None]:
    """Do something right after the first statement that has a word in it."""
    done = False

    def look(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        nonlocal done
        if not done and word in statement:
            done = True
            deed()

    events.listen(database.engine, "after_cursor_execute", look)
    try:
        yield
    finally:
        events.remove(database.engine, "after_cursor_execute", look)
    assert done, f"no statement with {word!r}"


def test_finishing_a_clean_up_without_removing_its_row_is_refused(database: Database, rows: Rows) -> None:
    """There is no such cell in the table: it must not leave a row that is deleting and belongs to nobody."""
    claim = rows.claimed("deleting, delete")
    before = rows.all()

    assert fates(database, Write(claim, Event.TASK_FINISHED)) == [Fate.UNSTORED]
    assert rows.all() == before


# --- retries


def test_a_retry_with_a_delay_waits_for_its_time(database: Database, rows: Rows) -> None:
    claim = rows.claimed(attempt=1, run_at=LONG_AGO)

    store(database, Write(claim, Event.SYS_RETRY, delay=60.0, attempt=2, errors='[{"message":"boom"}]'))

    row = rows.get(claim.task_id)
    assert rows.status(claim.task_id) == "pending, run"
    assert (row.queue, row.attempt, row.errors) == (None, 2, '[{"message":"boom"}]')
    assert row.due_at == row.run_at
    assert 50 < (row.due_at - datetime.now(UTC)).total_seconds() <= 60


@pytest.mark.parametrize(
    ("status", "after", "queue"),
    [
        ("running, pause", "paused, pause", None),
        ("running, cancel", "failed, run", None),
        ("running, delete", "pending, delete", "delete"),
    ],
)
def test_a_retry_that_somebody_wants_otherwise_does_not_wait(
    database: Database, rows: Rows, status: str, after: str, queue: str | None
) -> None:
    claim = claimed_then_marked(rows, status)

    store(database, Write(claim, Event.SYS_RETRY, delay=60.0, attempt=2, errors="[]", cancelled="[]"))

    row = rows.get(claim.task_id)
    assert (rows.status(claim.task_id), row.queue, row.due_at) == (after, queue, None)
    assert faults(row) == []


def test_a_clean_up_is_tried_again_after_its_delay(database: Database, rows: Rows) -> None:
    claim = rows.claimed("deleting, delete", attempt=1)

    store(database, Write(claim, Event.SYS_RETRY, delay=60.0, attempt=2))

    row = rows.get(claim.task_id)
    assert (rows.status(claim.task_id), row.queue, row.attempt) == ("pending, delete", None, 2)
    assert row.due_at > datetime.now(UTC)
    rows.change(claim.task_id, due_at=LONG_AGO)
    database.once(claims.promote)
    assert rows.get(claim.task_id).queue == "delete"


def test_a_task_that_goes_to_its_clean_up_begins_to_count_anew(database: Database, rows: Rows) -> None:
    for event in (Event.SYS_PAUSE, Event.TASK_FINISHED, Event.TASK_FAILED, Event.SYS_RETRY):
        claim = claimed_then_marked(rows, "running, delete", attempt=3, losses=2, run_at=LONG_AGO)

        store(database, Write(claim, event, attempt=4, errors="[]"))

        row = rows.get(claim.task_id)
        assert (row.attempt, row.losses, row.queue, row.run_at) == (1, 0, "delete", None)


@pytest.mark.parametrize(("event", "queue"), [(Event.SYS_PAUSE, "probation"), (Event.SYS_RETRY, "probation")])
def test_a_suspect_stays_on_probation_until_it_reports(
    database: Database, rows: Rows, event: Event, queue: str
) -> None:
    silent, reporting = rows.claimed(losses=2), rows.claimed(losses=2)
    store(database, Write(reporting, context="1"))

    store(database, Write(silent, event), Write(reporting.after(1), event))

    assert rows.get(silent.task_id).queue == queue
    assert rows.get(reporting.task_id).queue == "run"


# --- errors


@pytest.mark.parametrize(
    ("status", "event", "sent", "kept"),
    [
        ("running, run", Event.TASK_FAILED, {"errors": '["new"]'}, '["new"]'),
        ("running, run", Event.SYS_PAUSE, {"cancelled": '["cancelled"]'}, '["old"]'),
        ("running, run", Event.TASK_FINISHED, {}, '["old"]'),
        ("running, cancel", Event.SYS_PAUSE, {"cancelled": '["cancelled"]'}, '["cancelled"]'),
        ("running, cancel", Event.SYS_RETRY, {"errors": '["new"]', "cancelled": '["both"]'}, '["both"]'),
        ("running, cancel", Event.SYS_RETRY, {"errors": '["new"]'}, '["new"]'),
        ("running, cancel", Event.TASK_FAILED, {"errors": '["new"]', "cancelled": '["x"]'}, '["new"]'),
        ("running, cancel", Event.TASK_FINISHED, {"cancelled": '["x"]'}, '["old"]'),
        ("running, pause", Event.SYS_RETRY, {"errors": '["new"]', "cancelled": '["x"]'}, '["new"]'),
        ("running, delete", Event.TASK_FAILED, {"errors": '["new"]'}, '["new"]'),
    ],
)
def test_an_end_stores_the_error_that_it_turns_out_to_be(
    database: Database, rows: Rows, status: str, event: Event, sent: dict[str, str], kept: str
) -> None:
    claim = claimed_then_marked(rows, status, errors='["old"]')

    store(database, Write(claim, event, **sent))  # type: ignore[arg-type]

    assert rows.get(claim.task_id).errors == kept


def test_the_reason_for_letting_go_is_noted_until_the_next_report(database: Database, rows: Rows) -> None:
    claim = rows.claimed()

    store(database, Write(claim, Event.SYS_RETRY, note="it cannot read it", delay=5.0))

    assert rows.get(claim.task_id).note == "it cannot read it"


# --- groups


def test_a_group_stores_all_but_what_does_not_stand(database: Database, rows: Rows) -> None:
    good, ending, removal, fenced, behind = (rows.claimed() for _ in range(5))
    group = [
        Write(replace(fenced, fence=new_fence()), context="1"),
        Write(good, context="2"),
        Write(removal, Event.TASK_FINISHED, removes=True),
        Write(behind.after(5), Event.TASK_FAILED, errors="[]"),
        Write(ending, Event.TASK_FINISHED, result="3"),
    ]

    written = fates(database, *group)

    assert written == [Fate.LOST, Fate.STORED, Fate.STORED, Fate.BEHIND, Fate.STORED]
    assert [rows.get(each.task_id).seq for each in (good, ending, fenced, behind)] == [1, 1, 0, 0]
    assert rows.get(good.task_id).context == "2"
    assert rows.get(ending.task_id).result == "3"
    assert rows.get(removal.task_id) is None


def test_each_row_of_a_group_gets_its_own(database: Database, rows: Rows) -> None:
    some = [rows.claimed(seq=n) for n in range(20)]
    random.Random(5).shuffle(some)

    written = fates(database, *(Write(each, context=f'"{each.seq}"', progress=each.seq / 20) for each in some))

    assert written == [Fate.STORED] * 20
    for each in some:
        row = rows.get(each.task_id)
        assert (row.seq, row.context, row.progress) == (each.seq + 1, f'"{each.seq}"', each.seq / 20)


def test_each_end_of_a_group_goes_by_its_own_mark(database: Database, rows: Rows) -> None:
    cells = [(status, event, after) for status, event, after in grid() if after != "removed"]
    some = [claimed_then_marked(rows, status) for status, _, _ in cells]

    store(
        database, *(Write(each, Event(event), cancelled="[]") for each, (_, event, _) in zip(some, cells, strict=True))
    )

    assert [rows.status(each.task_id) for each in some] == [after for _, _, after in cells]
    assert [fault for row in rows.all() for fault in faults(row)] == []


@SERVERS
def test_a_thousand_reports_are_a_few_statements(database: Database, rows: Rows) -> None:
    fence = new_fence()
    ids = rows.put_many(1_000, "running, run", fence=fence)

    with recorded(database.engine) as statements:
        written = fates(database, *(Write(Claim(each, NODE, fence, 0), context="1") for each in ids))

    assert set(written) == {Fate.STORED}
    assert len([sql for sql, _ in statements if "pyasync_task" in sql]) <= 2
    assert set(rows.column("context")) == {"1"}


@SERVERS
def test_a_locked_row_does_not_hold_up_the_others(database: Database, rows: Rows) -> None:
    locked, *others = (rows.claimed() for _ in range(4))
    ending, removal = rows.claimed(), rows.claimed()
    group = [
        *(Write(each, context="1") for each in (others[0], locked, *others[1:])),
        Write(ending, Event.TASK_FINISHED, result="1"),
        Write(removal, Event.TASK_FINISHED, removes=True),
    ]

    with rows.locked(locked.task_id, ending.task_id, removal.task_id):
        under_locks = fates(database, *group)
    afterwards = fates(database, *group)

    stored, unstored = Fate.STORED, Fate.UNSTORED
    assert under_locks == [stored, unstored, stored, stored, unstored, unstored]
    assert afterwards == [stored] * 6
    assert [rows.get(each.task_id).seq for each in (locked, *others, ending)] == [1] * 5
    assert rows.get(removal.task_id) is None


@SERVERS
@pytest.mark.parametrize("number", [2, 3, 5, 30, 300])
def test_whichever_row_is_locked_all_others_are_stored(database: Database, rows: Rows, number: int) -> None:
    """Of a table of a few rows, MariaDB would read all of them, and wait for the one that is locked."""
    fence = new_fence()
    for place in (0, number // 2, number - 1):
        some = [Claim(each, NODE, fence, 0) for each in rows.put_many(number, "running, run", fence=fence)]
        others = [each for n, each in enumerate(some) if n != place]

        with rows.locked(some[place].task_id):
            alone = [fates(database, Write(each, context="1")) for each in others[:2]]
            group = fates(database, *(Write(each, context="1") for each in reversed(others[2:])))

        assert alone == [[Fate.STORED]] * len(others[:2])
        assert group == [Fate.STORED] * len(others[2:])
        rows.empty()


@SERVERS
def test_a_write_sees_the_mark_of_a_transaction_that_has_just_let_go_of_the_row(
    client: Client, database: Database, rows: Rows
) -> None:
    claim = rows.claimed()
    engine = host_engine(url_of(database))

    with engine.begin() as caller:
        client.pause_task(claim.task_id, connection=caller)
        held = fates(database, Write(claim, Event.TASK_FAILED, errors="[]"))
    done = fates(database, Write(claim, Event.SYS_PAUSE))

    assert (held, done) == ([Fate.UNSTORED], [Fate.STORED])
    assert rows.status(claim.task_id) == "paused, pause"


def test_no_mark_of_a_user_is_lost_among_reports(client: Client, database: Database, rows: Rows) -> None:
    claim = rows.claimed()
    reports, over = 0, threading.Event()

    def flip() -> None:
        for _ in range(25):
            client.pause_task(claim.task_id)
            client.run_task(claim.task_id)
        client.pause_task(claim.task_id)
        over.set()

    with ThreadPoolExecutor(1) as pool:
        flipping = pool.submit(flip)
        while not over.is_set():
            reports += fates(database, Write(claim.after(reports), context=str(reports))) == [Fate.STORED]
            flipping.done() and flipping.result()
    ended = fates(database, Write(claim.after(reports), Event.SYS_PAUSE))

    assert ended == [Fate.STORED]
    assert rows.status(claim.task_id) == "paused, pause"
    assert rows.get(claim.task_id).seq == reports + 1


def test_a_users_verb_after_the_end_finds_the_task_ended(client: Client, database: Database, rows: Rows) -> None:
    claim = rows.claimed()
    store(database, Write(claim, Event.TASK_FINISHED, result="1"))

    with pytest.raises(InvalidTransition) as caught:
        client.pause_task(claim.task_id)

    assert caught.value.status == ("finished", "run")


@pytest.mark.databases("postgresql")
def test_a_hosts_row_that_refers_to_a_task_does_not_hold_up_its_reports(database: Database, rows: Rows) -> None:
    claim = rows.claimed()
    engine = host_engine(url_of(database))
    with engine.begin() as caller:
        caller.execute(text("create table host_order (task uuid references pyasync_task)"))

    with engine.connect() as caller:
        caller.execute(text("insert into host_order values (:task)"), {"task": claim.task_id})
        written = fates(database, Write(claim, context="1"))
        caller.rollback()
        caller.execute(text("drop table host_order"))
        caller.commit()

    assert written == [Fate.STORED]


@pytest.mark.databases("postgresql")
def test_a_callers_open_creation_with_a_taken_key_does_not_hold_up_the_holders_reports(
    client: Client, database: Database, rows: Rows
) -> None:
    claim = rows.claimed(key_name="k", held_key="k")

    with host_engine(url_of(database)).connect() as caller:
        found = client.create_task("report", user="alice", key="k", connection=caller)
        written = fates(database, Write(claim, context="1"))

    assert (found, written) == (claim.task_id, [Fate.STORED])


# --- letting go of a run that may still be writing


def force(database: Database, write: Write) -> Fate:
    return database.once(writes.force, write).fate


@pytest.mark.parametrize("written_meanwhile", [0, 1, 5])
def test_a_run_is_let_go_of_after_whatever_it_wrote_meanwhile(
    database: Database, rows: Rows, written_meanwhile: int
) -> None:
    claim, release = rows.claimed(), new_fence()
    for seq in range(written_meanwhile):
        store(database, Write(claim.after(seq), context=str(seq)))

    fate = force(database, Write(claim, Event.SYS_PAUSE, new_fence=release))

    row = rows.get(claim.task_id)
    assert fate is Fate.STORED
    assert (rows.status(claim.task_id), row.fence, row.seq) == ("paused, run", release, written_meanwhile + 1)
    late = Write(claim.after(written_meanwhile), context='"late"')
    assert fates(database, late) == [Fate.LOST]
    assert fates(database, Write(claim.after(written_meanwhile + 1), context='"late"')) == [Fate.LOST]


@pytest.mark.parametrize("written_meanwhile", [0, 1, 2])
@SERVERS
def test_letting_go_of_a_locked_row_is_to_be_tried_again(
    database: Database, rows: Rows, written_meanwhile: int
) -> None:
    """One report more in the row is what the run wrote, and no sign that it has been let go of."""
    claim, release = rows.claimed(), new_fence()
    for seq in range(written_meanwhile):
        store(database, Write(claim.after(seq), context=str(seq)))
    write = Write(claim, Event.SYS_PAUSE, new_fence=release)

    with rows.locked(claim.task_id):
        under_lock = force(database, write)
    afterwards = force(database, write)

    assert (under_lock, afterwards) == (Fate.UNSTORED, Fate.STORED)
    assert rows.get(claim.task_id).fence == release


@pytest.mark.parametrize("written_meanwhile", [0, 1, 2])
def test_letting_go_twice_is_letting_go_once(database: Database, rows: Rows, written_meanwhile: int) -> None:
    claim = rows.claimed()
    write = Write(claim, Event.SYS_PAUSE, new_fence=new_fence())
    for seq in range(written_meanwhile):
        store(database, Write(claim.after(seq), context=str(seq)))
    first = force(database, write)
    before = rows.all()

    assert [first, force(database, write), database.once(writes.read_back, write).fate] == [Fate.STORED] * 3
    assert rows.all() == before


def test_letting_go_goes_by_the_mark_too(database: Database, rows: Rows) -> None:
    for status, after in {"running, delete": "pending, delete", "running, pause": "paused, pause"}.items():
        claim = claimed_then_marked(rows, status)

        force(database, Write(claim, Event.SYS_PAUSE, new_fence=new_fence()))

        assert rows.status(claim.task_id) == after


def test_what_has_ended_or_is_anothers_cannot_be_let_go_of(database: Database, rows: Rows) -> None:
    ended, taken, gone = rows.claimed(), rows.claimed(), rows.claimed()
    store(database, Write(ended, Event.TASK_FINISHED, result="1"))
    rows.change(taken.task_id, fence=new_fence())
    rows.drop(gone.task_id)
    before = rows.all()

    assert [force(database, Write(each, Event.SYS_PAUSE, new_fence=new_fence())) for each in (ended, taken, gone)] == [
        Fate.LOST
    ] * 3
    assert rows.all() == before


# --- contents

CONTENTS = [
    "",
    " ",
    "quotes ' \" ` '' \"\" and \\' \\\" \\\\ \\",
    "%s %d %(id)s %% % {} {0} :name ? ?? $1 @x # -- ; /* */",
    "lines\nand\r\nreturns\r\tand\x01\x1b[0m\x7f\x85\u2028\u2029",
    "emoji 😀👩‍👩‍👧 and ß é ñ 中文 \u202e\ufeff\ufffd\U0010ffff",
    "\\u0041 \\n \\x00 \\\\u0000 \\ud800",
    '{"json": ["in", {"json": null}]}',
    "v.context was.stage task.seq {now} {after:v.delay} null NULL",
    "]]> </script> <b> &amp; ${jndi}",
]


def write_of(claim: Claim, each: str, event: Event | None) -> Write:
    """A write that has a text in all its places."""
    errors = writes.dump_errors([failure("error", each, attempt=1, node=each, traceback=each)])
    message = each.replace("\0", "")
    write = Write(claim, event, context=encode([each], limit=9 * MIB), result=encode({each: each}, limit=9 * MIB))
    return replace(write, message=message, note=message, errors=errors if event else None)


@pytest.mark.parametrize("event", [None, Event.SYS_RETRY, Event.TASK_FAILED])
def test_contents_come_back_unchanged(client: Client, database: Database, rows: Rows, event: Event | None) -> None:
    some = [rows.claimed() for _ in CONTENTS]

    written = fates(database, *(write_of(claim, each, event) for claim, each in zip(some, CONTENTS, strict=True)))

    assert written == [Fate.STORED] * len(CONTENTS)
    for claim, each in zip(some, CONTENTS, strict=True):
        task = client.get_task(claim.task_id)
        assert (task.context, task.result, task.message) == ([each], {each: each}, each)
        if event is not None:
            assert rows.get(claim.task_id).note == each
            assert [(entry["message"], entry["node"]) for entry in task.errors] == [(each, each)]


VALUES: list[Any] = [None, True, 0, -0.0, 1e308, 5e-324, 2**63, -(2**70), 10**400, [], {}, [[]], {"": [None]}, ""]


def test_values_come_back_as_the_same_json(client: Client, database: Database, rows: Rows) -> None:
    some = [rows.claimed() for _ in VALUES]

    store(database, *(Write(claim, context=encode(each, limit=MIB)) for claim, each in zip(some, VALUES, strict=True)))

    assert [json.dumps(client.get_task(claim.task_id).context) for claim in some] == [
        json.dumps(each) for each in VALUES
    ]


@pytest.mark.parametrize(
    ("character", "event"),
    [("\\", None), ("\\", Event.TASK_FINISHED), ('"', None), ("'", None), ("%", None), ("😀", Event.TASK_FINISHED)],
)
def test_a_mebibyte_of_anything_is_a_context_and_a_result(
    client: Client, database: Database, rows: Rows, character: str, event: Event | None
) -> None:
    """MariaDB takes a packet of 16 MiB by default, and each backslash arrives there as four."""
    claim, width = rows.claimed(), len(encode(character, limit=99).encode()) - 2
    value = character * ((MIB - 2) // width)

    written = fates(database, Write(claim, event, context=encode(value, limit=MIB), result=encode(value, limit=MIB)))

    task = client.get_task(claim.task_id)
    assert written == [Fate.STORED]
    assert task.context == value
    assert task.result == value


@pytest.mark.databases("mariadb", "mysql")
def test_contents_are_the_same_in_a_database_of_another_character_set(url: str, admin_url: str) -> None:
    name = url.rpartition("/")[2].partition("?")[0]
    with host_engine(admin_url).begin() as admin:
        admin.execute(text(f"alter database {name} character set latin1 collate latin1_swedish_ci"))
    database = Database(url, Settings())
    tables(None).metadata.create_all(database.engine)
    rows = Rows(database)
    claim, other = rows.claimed(), rows.claimed()

    with Client(url, migrate="off", strict=False) as client:
        created = client.create_task("é 😀", "é 😀", user="é 😀", headers={"é": "😀"})
        store(database, write_of(claim, "é 😀", None), write_of(other, "é 😀", Event.TASK_FAILED))

        task, failed = client.get_task(claim.task_id), client.get_task(other.task_id)
        assert (task.context, task.result, task.message) == (["é 😀"], {"é 😀": "é 😀"}, "é 😀")
        assert (failed.context, failed.error, rows.get(other.task_id).note) == (["é 😀"], "é 😀", "é 😀")
        assert client.get_task(created).arguments == client.get_task(created).user == "é 😀"
    database.close()
