"""Creating tasks: what is stored, ids and keys that make a creation repeatable, and bad input that writes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from pyasync.client import Client
from pyasync.domain.backoff import Backoff
from pyasync.domain.queues import Fifo, Queue
from pyasync.domain.states import Event, State
from pyasync.domain.task import Claim, NewTask
from pyasync.errors import (
    BadArgument,
    ContextNotSerializable,
    ContextTooLarge,
    DatabaseUnavailable,
    KeyTaken,
    NameTooLong,
    PyasyncError,
    SchemaOutdated,
    SettingInvalid,
    TypeNotRegistered,
)
from pyasync.ids import new_fence, new_id
from pyasync.store import claims, nodes, tasks, writes
from pyasync.store.claims import Offer, Request
from pyasync.store.database import Database
from pyasync.store.writes import Write
from tests.store.conftest import url_of
from tests.store.rows import NODE, Rows, recorded

GIVEN = UUID("01890000-0000-7000-8000-000000000001")
SOON = timedelta(seconds=60)


@pytest.fixture
def strict_client(database: Database) -> Iterator[Client]:
    with Client(url_of(database), migrate="off") as client:
        yield client


def run_to(database: Database, event: Event) -> None:
    """Claim what waits, and end it."""
    fence = new_fence()
    request = Request(Queue.RUN, 10, [Offer("report", 0, "resume", 3, None, True)], Fifo())
    for row in database.once(claims.claim, NODE, fence, request):
        database.once(writes.write, [Write(Claim(row.id, NODE, fence, row.seq), event, result='"done"', errors="[]")])


def seconds_until(moment: datetime | None) -> float:
    assert moment is not None
    return (moment - datetime.now(UTC)).total_seconds()


# --- what is stored


def test_a_created_task_is_pending_and_has_what_was_given(client: Client) -> None:
    task_id = client.create_task(
        "report", {"n": 1}, user="alice", group="night", priority=7, key="k", headers={"trace": "abc"}
    )

    task = client.get_task(task_id)

    assert task.id == task_id
    assert (task.type, task.user, task.group, task.priority, task.key) == ("report", "alice", "night", 7, "k")
    assert task.state is State.PENDING
    assert task.arguments == task.context == {"n": 1}
    assert task.headers == {"trace": "abc"}
    assert (task.progress, task.message, task.result, task.error, task.errors) == (None, None, None, None, [])
    assert (task.attempt, task.epoch, task.seq, task.version) == (1, 0, 0, 0)
    assert (task.node, task.run_at, task.started_at, task.done_at) == (None, None, None, None)
    assert abs(seconds_until(task.created_at)) < 60
    assert task.created_at.tzinfo is UTC


def test_a_task_needs_nothing_but_a_type(client: Client) -> None:
    task = client.get_task(client.create_task("report"))

    assert (task.user, task.group, task.priority, task.key, task.headers) == ("", "", 0, None, {})
    assert task.arguments is None
    assert task.context is None


def test_a_task_that_is_not_to_run_yet_is_init_and_waits_in_no_queue(client: Client, rows: Rows) -> None:
    task_id = client.create_task("report", auto_run=False)

    assert client.get_task(task_id).state is State.INIT
    assert rows.status(task_id) == "init, none"
    assert rows.get(task_id).queue is None


def test_ids_are_made_in_the_order_of_creation(client: Client) -> None:
    ids = [client.create_task("report") for _ in range(3)] + client.create_tasks([NewTask(type="report")] * 3)

    assert ids == sorted(ids)
    assert {each.version for each in ids} == {7}


ARGUMENTS: list[Any] = [
    None,
    0,
    -1.5,
    1e308,
    2**63,
    10**400,
    True,
    "",
    "text",
    [],
    {},
    {"": None},
    [[[]]],
    "emoji 😀, ß, \u202e, \ufffd",
    "quotes ' \" ` \\ \\' \\\\",
    "%s %d %(x)s %% :name ? $1 {} ; --",
    "lines\nand\r\nreturns\tand\x01controls\x7f",
    {"'": "\\", '"': "\n", "😀": {"%s": ["\\u0041"]}},
]


def test_arguments_come_back_as_the_same_value(client: Client) -> None:
    ids = client.create_tasks([NewTask(type="report", arguments=each) for each in ARGUMENTS])
    alone = [client.create_task("report", each) for each in ARGUMENTS]

    assert [client.get_task(each).arguments for each in ids] == ARGUMENTS
    assert [client.get_task(each).arguments for each in alone] == ARGUMENTS


def test_arguments_may_have_a_mebibyte_and_not_a_byte_more(client: Client, rows: Rows) -> None:
    limit = 1024 * 1024
    largest = ["x" * (limit - 2), "\\" * (limit // 2 - 1), "😀" * (limit // 4 - 1) + "ab"]

    ids = [client.create_task("report", each) for each in largest]

    assert [client.get_task(each).arguments for each in ids] == largest
    for each in largest:
        with pytest.raises(ContextTooLarge) as caught:
            client.create_task("report", each + "y")
        assert (caught.value.size, caught.value.limit, caught.value.what) == (limit + 1, limit, "arguments")
    assert len(rows.all()) == 3


@pytest.mark.parametrize(
    ("retry", "stored"),
    [
        (None, None),
        ([60, 600, 3600], "[60.0,600.0,3600.0]"),
        ("60 600", "[60.0,600.0]"),
        (Backoff(first=2, attempts=3), '{"first":2,"factor":2.0,"limit":3600.0,"attempts":3,"jitter":0.1}'),
    ],
)
def test_retry_timeout_and_keep_are_on_the_row(client: Client, rows: Rows, retry: Any, stored: str | None) -> None:
    row = rows.get(client.create_task("report", retry=retry, timeout=1.5, keep=0))

    assert (row.retry, row.timeout, row.keep) == (stored, 1.5, 0.0)


# --- ids


def test_creating_an_existing_id_returns_it_and_changes_nothing(client: Client, rows: Rows) -> None:
    client.create_task("report", 1, id=GIVEN, user="alice")
    before = rows.all()

    again = client.create_task("other", 2, id=GIVEN, user="bob", key="k", priority=3)

    assert again == GIVEN
    assert rows.all() == before


def test_an_id_may_be_given_as_text(client: Client) -> None:
    assert client.create_task("report", id=str(GIVEN)) == GIVEN  # type: ignore[arg-type]


@pytest.mark.parametrize("event", [Event.TASK_FINISHED, Event.TASK_FAILED])
def test_a_creation_with_a_key_can_be_repeated_when_the_task_has_ended(
    client: Client, database: Database, rows: Rows, event: Event
) -> None:
    """The reply was lost, and the task was quick: the repeated call must not fail for a key that nobody holds."""
    client.create_task("report", id=GIVEN, key="k")
    run_to(database, event)
    before = rows.all()

    assert client.create_task("report", id=GIVEN, key="k") == GIVEN
    assert rows.all() == before


def test_a_repeated_creation_returns_its_own_id_though_another_task_has_the_key_by_now(
    client: Client, database: Database, rows: Rows
) -> None:
    client.create_task("report", id=GIVEN, key="k")
    run_to(database, Event.TASK_FINISHED)
    client.create_task("report", key="k")
    before = rows.all()

    assert client.create_task("report", id=GIVEN, key="k") == GIVEN
    assert rows.all() == before


def test_one_bulk_may_repeat_an_id(client: Client, rows: Rows) -> None:
    new = [NewTask(type="report", arguments=n, id=GIVEN) for n in range(3)]

    assert client.create_tasks([*new, NewTask(type="report", id=GIVEN, key="k")]) == [GIVEN] * 4
    assert rows.column("arguments") == ["0"]


def test_a_bulk_that_is_repeated_creates_what_is_missing(client: Client, rows: Rows) -> None:
    new = [NewTask(type="report", id=new_id(), key=key) for key in ("a", None, "b", None, "c")]
    client.create_tasks(new[:3])

    ids = client.create_tasks(new)

    assert ids == [each.id for each in new]
    assert len(rows.all()) == 5


def test_threads_that_create_the_same_id_get_the_same_task(client: Client, rows: Rows) -> None:
    together = threading.Barrier(4)

    def create(n: int) -> UUID:
        together.wait(10)
        return client.create_task("report", n, id=GIVEN)

    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(create, range(4)))

    assert ids == [GIVEN] * 4
    assert len(rows.all()) == 1


# --- keys


def test_a_second_task_with_the_key_of_a_live_one_is_that_one(client: Client, rows: Rows) -> None:
    first = client.create_task("report", 1, user="alice", key="k")

    second = client.create_task("report", 2, user="alice", key="k", id=GIVEN)

    assert second == first
    assert rows.column("arguments") == ["1"]


def test_a_key_is_unique_per_user_and_type_only(client: Client) -> None:
    ids = {
        client.create_task(type, user=user, key=key)
        for type in ("report", "Report")
        for user in ("", "alice")
        for key in ("k", "K", "k ", " k")
    }

    assert len(ids) == 16


LIVE = [
    "init, none",
    "pending, run",
    "running, run",
    "running, pause",
    "running, cancel",
    "paused, run",
    "paused, pause",
]


@pytest.mark.parametrize("status", LIVE)
def test_a_live_task_holds_its_key(client: Client, rows: Rows, status: str) -> None:
    holder = rows.put(status, user_name="alice", key_name="k", held_key="k")

    assert client.create_task("report", user="alice", key="k") == holder


@pytest.mark.parametrize(
    ("verb", "status"),
    [
        *(("cancel_task", status) for status in ("init, none", "pending, run", "paused, run", "paused, pause")),
        *(("delete_task", status) for status in LIVE),
    ],
)
def test_a_key_is_freed_as_soon_as_its_task_is_cancelled_or_deleted(
    client: Client, rows: Rows, verb: str, status: str
) -> None:
    holder = rows.put(status, user_name="alice", key_name="k", held_key="k")
    getattr(client, verb)(holder)

    other = client.create_task("report", user="alice", key="k")

    assert other != holder
    assert client.get_task(other).state is State.PENDING


@pytest.mark.parametrize("event", [Event.TASK_FINISHED, Event.TASK_FAILED])
def test_a_key_is_freed_when_its_task_ends_and_is_still_shown(client: Client, database: Database, event: Event) -> None:
    ended = client.create_task("report", key="k")
    run_to(database, event)

    other = client.create_task("report", key="k")

    assert other != ended
    assert client.get_task(ended).key == "k"


def test_running_a_failed_task_takes_its_key_back(client: Client, rows: Rows) -> None:
    failed = rows.put("failed, run", user_name="alice", key_name="k")

    client.run_task(failed)

    assert client.create_task("report", user="alice", key="k") == failed


def test_running_a_failed_task_whose_key_is_taken_is_refused_and_changes_nothing(client: Client, rows: Rows) -> None:
    failed = rows.put("failed, run", user_name="alice", key_name="k")
    holder = client.create_task("report", user="alice", key="k")
    before = rows.all()

    with pytest.raises(KeyTaken) as caught:
        client.run_task(failed)

    assert (caught.value.task_id, caught.value.key, caught.value.holder_id) == (failed, "k", holder)
    assert rows.all() == before


def test_bulk_run_skips_tasks_whose_key_is_taken(client: Client, rows: Rows) -> None:
    taken = rows.put("failed, run", user_name="alice", key_name="k")
    client.create_task("report", user="alice", key="k")
    free = rows.put("failed, run", user_name="alice", key_name="free")

    changed = client.run_tasks(states=["FAILED"])

    assert changed == 1
    assert (rows.status(taken), rows.status(free)) == ("failed, run", "pending, run")


def test_bulk_run_of_failed_tasks_with_one_key_runs_the_first(client: Client, rows: Rows) -> None:
    failed = [rows.put("failed, run", user_name="alice", key_name="k") for _ in range(3)]

    changed = client.run_tasks(user="alice")

    assert changed == 1
    assert [rows.status(each) for each in failed] == ["pending, run", "failed, run", "failed, run"]


def test_bulk_run_goes_on_after_a_full_batch_with_a_taken_key(
    client: Client, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.mark_all, "__kwdefaults__", {"limit": 3})
    taken = rows.put("failed, run", user_name="alice", key_name="k")
    client.create_task("report", user="alice", key="k")
    free = rows.put_many(7, "failed, run")

    changed = client.run_tasks(states=["FAILED"])

    assert changed == 7
    assert rows.status(taken) == "failed, run"
    assert {rows.status(each) for each in free} == {"pending, run"}


def test_one_bulk_may_repeat_a_key(client: Client, rows: Rows) -> None:
    new = [NewTask(type="report", key=key, user=user) for key in ("a", "b", "a") for user in ("", "alice", "")]

    ids = client.create_tasks(new)

    assert len(rows.all()) == 4
    assert ids[0] == ids[2] == ids[6] == ids[8]
    assert ids[1] == ids[7]
    assert len(set(ids)) == 4


def test_a_bulk_is_created_as_a_whole_or_not_at_all(client: Client, rows: Rows) -> None:
    with pytest.raises(ContextNotSerializable):
        client.create_tasks([NewTask(type="report"), NewTask(type="report", arguments=float("nan"))])

    assert rows.all() == []


def test_an_empty_bulk_creates_nothing(client: Client, rows: Rows) -> None:
    assert client.create_tasks([]) == []
    assert rows.all() == []


def test_a_bulk_of_more_keys_than_a_statement_takes_can_be_repeated(
    client: Client, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL takes 65,535 parameters; the test needs not so many."""
    monkeypatch.setattr(tasks, "BATCH", 3)
    new = [NewTask(type="report", key=str(n), user=str(n // 7)) for n in range(20)]
    held = client.create_tasks(new)

    with recorded(client._database.engine) as statements:
        again = client.create_tasks(new)

    assert again == held
    assert len(set(held)) == 20
    selects = [len(parameters) for sql, parameters in statements if sql.startswith("SELECT")]
    assert max(selects) <= 3 + 2


def test_the_first_of_a_bulk_with_a_key_is_the_one_that_is_stored(client: Client, rows: Rows) -> None:
    new = [NewTask(type="report", arguments=n, key="k", delay=60 if n == 0 else None) for n in range(3)]

    ids = client.create_tasks(new)

    assert len(set(ids)) == 1
    assert client.get_task(ids[0]).arguments == 0


def test_a_repeated_creation_lets_a_later_one_of_the_same_bulk_have_the_key(
    client: Client, database: Database, rows: Rows
) -> None:
    client.create_task("report", id=GIVEN, key="k")
    run_to(database, Event.TASK_FINISHED)

    ids = client.create_tasks([NewTask(type="report", id=GIVEN, key="k"), NewTask(type="report", key="k")])

    assert ids[0] == GIVEN
    assert client.get_task(ids[1]).state is State.PENDING


def test_threads_that_create_the_same_key_get_the_same_task(client: Client, rows: Rows) -> None:
    together = threading.Barrier(4)

    def create(n: int) -> UUID:
        together.wait(10)
        return client.create_task("report", n, key="k")

    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(create, range(4)))

    assert len(ids) == 1
    assert len(rows.all()) == 1


# --- users, groups, types


def test_names_are_compared_byte_for_byte(client: Client) -> None:
    names = ["alice", "Alice", "alice ", " alice", "ALICE", "álice", "a\u0301lice", "", "😀", "%", "_", "a'b\"c\\"]
    ids = {name: client.create_task("report", user=name, group=name) for name in names}

    assert {name: [task.id for task in client.get_tasks(user=name)] for name in names} == {
        name: [each] for name, each in ids.items()
    }
    assert {name: [task.id for task in client.get_tasks(group=name)] for name in names} == {
        name: [each] for name, each in ids.items()
    }
    assert {client.get_task(each).user for each in ids.values()} == set(names)


def test_types_are_compared_byte_for_byte(client: Client) -> None:
    names = ["report", "Report", "report ", "report.build", "r%", "😀"]
    ids = {name: client.create_task(name) for name in names}

    assert {name: [task.id for task in client.get_tasks(types=[name])] for name in names} == {
        name: [each] for name, each in ids.items()
    }


@pytest.mark.parametrize("longest", ["n" * 255, "😀" * 63 + "abc", "é" * 127 + "n"], ids=["ascii", "emoji", "accents"])
def test_names_may_have_255_bytes(client: Client, longest: str) -> None:
    task_id = client.create_task(longest, user=longest, group=longest, key=longest)

    task = client.get_task(task_id, user=longest)

    assert (task.type, task.user, task.group, task.key) == (longest,) * 4
    assert client.create_task(longest, user=longest, key=longest) == task_id


def test_the_same_group_of_two_users_is_told_apart_by_the_user(client: Client) -> None:
    of_alice = client.create_task("report", user="alice", group="night")
    of_bob = client.create_task("report", user="bob", group="night")

    assert [task.id for task in client.get_tasks(user="alice", group="night")] == [of_alice]
    assert client.delete_tasks(user="bob", group="night") == 1
    assert client.get_task(of_alice).state is State.PENDING
    assert client.count_tasks(group="night") == {State.PENDING: 1}
    assert of_bob != of_alice


# --- when


def test_a_delay_keeps_a_task_waiting_by_the_databases_time(client: Client, rows: Rows) -> None:
    task_id = client.create_task("report", delay=60)

    row = rows.get(task_id)

    assert rows.status(task_id) == "pending, run"
    assert row.queue is None
    assert row.due_at == row.run_at
    assert 50 < seconds_until(client.get_task(task_id).run_at) <= 60


@pytest.mark.parametrize("delay", [0, 1e-7, 0.5, 86_400.0, 3_155_760_000])
def test_a_delay_may_be_anything_from_none_to_a_century(client: Client, delay: float) -> None:
    task = client.get_task(client.create_task("report", delay=delay))

    assert task.run_at is not None
    assert abs((task.run_at - task.created_at).total_seconds() - delay) < 0.01


def test_no_delay_is_claimable_at_once(client: Client, rows: Rows) -> None:
    row = rows.get(client.create_task("report", delay=0))

    assert (row.queue, row.due_at) == ("run", None)


@pytest.mark.parametrize("offset", [0, 9, -11])
def test_run_at_is_a_moment_in_any_zone(client: Client, offset: int) -> None:
    moment = datetime(2100, 2, 3, 4, 5, 6, 789_012, tzinfo=timezone(timedelta(hours=offset)))

    task = client.get_task(client.create_task("report", run_at=moment))

    assert task.run_at == moment
    assert task.run_at is not None
    assert task.run_at.utcoffset() == timedelta(0)


def test_run_at_in_the_past_is_claimable_at_once_and_remembered(client: Client, rows: Rows) -> None:
    moment = datetime(2001, 2, 3, tzinfo=UTC)

    row = rows.get(client.create_task("report", run_at=moment))

    assert (row.queue, row.due_at, row.run_at) == ("run", None, moment)
    assert row.ready_at == row.created_at


def test_an_init_task_remembers_its_time_and_waits_for_it_when_run(client: Client, rows: Rows) -> None:
    task_id = client.create_task("report", auto_run=False, delay=60)
    assert rows.get(task_id).due_at is None

    client.run_task(task_id)

    row = rows.get(task_id)
    assert (row.queue, row.due_at) == (None, row.run_at)


def test_one_bulk_may_mix_times_and_users(client: Client, rows: Rows) -> None:
    new = [
        NewTask(type="report", arguments=0),
        NewTask(type="report", arguments=1, delay=60),
        NewTask(type="report", arguments=2, auto_run=False),
        NewTask(type="report", arguments=3, run_at=datetime(2001, 1, 1, tzinfo=UTC), user="bob"),
        NewTask(type="other", arguments=4, auto_run=False, run_at=datetime(2100, 1, 1, tzinfo=UTC)),
    ]

    ids = client.create_tasks(new)

    found = [rows.get(each) for each in ids]
    assert [row.arguments for row in found] == ["0", "1", "2", "3", "4"]
    assert [row.queue for row in found] == ["run", None, None, "run", None]
    assert [row.due_at is None for row in found] == [True, False, True, True, True]


# --- types that are known


def test_a_type_that_no_node_has_registered_is_refused(strict_client: Client, rows: Rows) -> None:
    with pytest.raises(TypeNotRegistered, match="'report'") as caught:
        strict_client.create_task("report")

    assert caught.value.type == "report"
    assert rows.all() == []


def test_a_type_that_some_node_has_once_registered_is_known(strict_client: Client, database: Database) -> None:
    database.run(nodes.register, ["report", "other"])
    database.run(nodes.register, ["report"])

    assert strict_client.get_task(strict_client.create_task("report")).type == "report"


def test_a_type_is_known_as_soon_as_it_is_registered_though_it_was_refused_before(
    strict_client: Client, database: Database
) -> None:
    with pytest.raises(TypeNotRegistered):
        strict_client.create_task("report")

    database.run(nodes.register, ["report"])

    assert strict_client.create_task("report")


def test_known_types_are_remembered_without_asking_again(strict_client: Client, database: Database) -> None:
    database.run(nodes.register, ["report"])
    strict_client.create_task("report")
    with database.transaction() as tx:
        tx.execute(tx.t.type.delete())

    assert strict_client.create_task("report")


def test_one_unknown_type_refuses_the_whole_bulk(strict_client: Client, database: Database, rows: Rows) -> None:
    database.run(nodes.register, ["report"])

    with pytest.raises(TypeNotRegistered, match="'other'"):
        strict_client.create_tasks([NewTask(type="report"), NewTask(type="other")])

    assert rows.all() == []


@pytest.mark.parametrize("misspelt", ["Report", "report ", "REPORT", "rep%"])
def test_a_type_is_known_by_its_very_bytes(strict_client: Client, database: Database, misspelt: str) -> None:
    database.run(nodes.register, ["report"])

    with pytest.raises(TypeNotRegistered):
        strict_client.create_task(misspelt)


# --- bad input: a typed error at the call, and nothing written

CYCLE: list[Any] = []
CYCLE.append(CYCLE)
NAIVE = datetime(2030, 1, 1)

BAD: dict[str, tuple[dict[str, Any], type[PyasyncError], str]] = {
    "NaN": ({"arguments": float("nan")}, ContextNotSerializable, "nan is not a JSON number"),
    "infinity": ({"arguments": [1, {"a": float("inf")}]}, ContextNotSerializable, r"\$\[1\].a"),
    "an object": ({"arguments": object()}, ContextNotSerializable, "object is not a JSON type"),
    "bytes": ({"arguments": b"x"}, ContextNotSerializable, "bytes is not a JSON type"),
    "a set": ({"arguments": {1}}, ContextNotSerializable, "set is not a JSON type"),
    "a date": ({"arguments": {"at": NAIVE}}, ContextNotSerializable, "datetime is not a JSON type"),
    "keys that are no text": ({"arguments": {1: 2}}, ContextNotSerializable, "a key is int"),
    "NUL": ({"arguments": ["a\0b"]}, ContextNotSerializable, "NUL"),
    "a lone surrogate": ({"arguments": "\ud800"}, ContextNotSerializable, "surrogate"),
    "a cycle": ({"arguments": CYCLE}, ContextNotSerializable, "contains itself"),
    "too deep": ({"arguments": eval("[" * 80 + "]" * 80)}, ContextNotSerializable, "nested too deeply"),
    "too large": ({"arguments": "x" * 1_048_577}, ContextTooLarge, "arguments"),
    "headers that are no dict": ({"headers": ["a"]}, BadArgument, "headers is a dict"),
    "headers that are no JSON": ({"headers": {"a": object()}}, ContextNotSerializable, "object"),
    "headers too large": ({"headers": {"a": "x" * 1_048_577}}, ContextTooLarge, "headers"),
    "a naive run_at": ({"run_at": NAIVE}, BadArgument, "run_at has no time zone"),
    "a run_at that is no datetime": ({"run_at": "2030-01-01"}, BadArgument, "run_at is a datetime, not str"),
    "a run_at out of range": ({"run_at": datetime.max.replace(tzinfo=timezone(-SOON))}, BadArgument, "run_at"),
    "a run_at before all calendars": ({"run_at": datetime.min.replace(tzinfo=UTC)}, BadArgument, "run_at"),
    "a negative delay": ({"delay": -1}, BadArgument, "delay must be a number of seconds"),
    "a delay that is no number": ({"delay": float("nan")}, BadArgument, "delay"),
    "an endless delay": ({"delay": float("inf")}, BadArgument, "delay"),
    "a delay as text": ({"delay": "1"}, BadArgument, "delay"),
    "a delay that is True": ({"delay": True}, BadArgument, "delay"),
    "run_at and delay": ({"delay": 1, "run_at": datetime(2030, 1, 1, tzinfo=UTC)}, BadArgument, "not both"),
    "no timeout at all": ({"timeout": 0}, BadArgument, "timeout must be more than 0"),
    "a negative keep": ({"keep": -0.1}, BadArgument, "keep"),
    "a retry that is no list": ({"retry": 5}, BadArgument, "retry"),
    "a negative wait": ({"retry": [1, -1]}, BadArgument, "retry"),
    "a priority that is no number": ({"priority": "high"}, BadArgument, "priority"),
    "a priority beyond bounds": ({"priority": 1_000_001}, BadArgument, "priority"),
    "a fraction as priority": ({"priority": 0.5}, BadArgument, "priority"),
    "a priority that is True": ({"priority": True}, BadArgument, "priority"),
    "auto_run that is no bool": ({"auto_run": "no"}, BadArgument, "auto_run"),
    "a year that MySQL cannot store": ({"run_at": datetime(1000, 1, 1, tzinfo=UTC)}, BadArgument, "1001 to 9998"),
    "an id that is none": ({"id": "no-uuid"}, BadArgument, "a task's id is a UUID"),
    "an id that is a number": ({"id": 5}, BadArgument, "a task's id is a UUID"),
    "no type": ({"type": ""}, BadArgument, "type must not be empty"),
    "a type that is no text": ({"type": 5}, BadArgument, "type must be text"),
    "a type too long": ({"type": "t" * 256}, NameTooLong, "type has 256 bytes"),
    "a user too long": ({"user": "😀" * 64}, NameTooLong, "user has 256 bytes"),
    "a user that is no text": ({"user": None}, BadArgument, "user must be text"),
    "a user with NUL": ({"user": "a\0"}, BadArgument, "user must not contain NUL"),
    "a group too long": ({"group": "g" * 256}, NameTooLong, "group has 256 bytes"),
    "a group with a surrogate": ({"group": "\udfff"}, BadArgument, "group must not contain a lone surrogate"),
    "a key too long": ({"key": "k" * 256}, NameTooLong, "key has 256 bytes"),
    "an empty key": ({"key": ""}, BadArgument, "key must not be empty"),
    "a key that is no text": ({"key": 5}, BadArgument, "key must be text"),
}


@pytest.mark.databases("sqlite")  # it never gets as far as the database
@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_at_the_call_and_nothing_is_written(client: Client, rows: Rows, what: str) -> None:
    given, error, message = BAD[what]

    with pytest.raises(error, match=message):
        client.create_task(**({"type": "report"} | given))
    with pytest.raises(error, match=message):
        client.create_tasks([NewTask(type="report"), NewTask(**({"type": "report"} | given))])

    assert rows.all() == []


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("new", [[{"type": "report"}], "report", [None]])
def test_a_bulk_of_something_else_than_new_tasks_is_refused(client: Client, rows: Rows, new: Any) -> None:
    with pytest.raises(BadArgument, match="NewTask"):
        client.create_tasks(new)

    assert rows.all() == []


@pytest.mark.parametrize("year", [1001, 9998])
def test_the_first_and_the_last_year_are_moments_everywhere(client: Client, year: int) -> None:
    moment = datetime(year, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)

    assert client.get_task(client.create_task("report", run_at=moment)).run_at == moment


def test_an_unknown_setting_is_refused_with_the_nearest_name(database: Database) -> None:
    with pytest.raises(SettingInvalid, match="did you mean 'lease'") as caught:
        Client(url_of(database), leas=5)

    assert (caught.value.name, caught.value.nearest) == ("leas", "lease")


def test_tables_that_are_not_there_are_refused_with_the_command_that_makes_them(url: str) -> None:
    with pytest.raises(SchemaOutdated, match="pyasync migrate") as caught:
        Client(url, migrate="check")

    assert caught.value.found is None


UNREACHABLE = [
    "postgresql://app:geheim@127.0.0.1:1/tasks",
    "mysql://app:geheim@127.0.0.1:1/tasks",
    "sqlite:////no/such/folder/tasks.db",
]


@pytest.mark.parametrize("place", UNREACHABLE)
def test_a_database_that_does_not_answer_is_named_without_its_password(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyasync.store.database.PATIENCE", 0.1)

    with pytest.raises(DatabaseUnavailable) as caught:
        Client(place, migrate="off").create_task("report")

    assert "geheim" not in str(caught.value)
    assert caught.value.url.startswith(place.partition(":")[0])


@pytest.mark.parametrize(
    ("place", "hint"),
    [
        ("sqlite://", "Use a file"),
        ("sqlite:///:memory:", "Use a file"),
        ("sqlite:///file:x?mode=memory&uri=true", "Use a file"),
        ("oracle://x", "use SQLite, PostgreSQL, MariaDB or MySQL"),
        (5, "database is a URL or a SQLAlchemy engine, not int"),
    ],
)
def test_what_is_no_database_of_ours_is_refused(place: Any, hint: str) -> None:
    with pytest.raises(BadArgument, match=hint):
        Client(place)
