"""`connection=`: a verb becomes a part of the caller's transaction, on any driver, and decides by what is committed
now.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import anyio
import pytest
from sqlalchemy import Connection, Engine, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from pyasync import aio
from pyasync.client import Client
from pyasync.domain.states import Event, State
from pyasync.domain.task import NewTask
from pyasync.errors import BadArgument, BlockingCall, InvalidTransition, KeyTaken, TaskNotFound
from pyasync.ids import new_id
from pyasync.settings import Settings
from pyasync.store import hints, nodes, writes
from pyasync.store.database import Database
from pyasync.store.nodes import Beat
from pyasync.store.tables import tables
from pyasync.store.writes import Fate, Write
from tests.store.conftest import url_of
from tests.store.rows import LONG_AGO, Rows, host_engine
from tests.waiting import until

SERVERS = pytest.mark.databases("postgresql", "mariadb", "mysql")
SYNC_DRIVERS = {"sqlite": ["pysqlite"], "postgresql": ["psycopg", "psycopg2"], "mysql": ["pymysql"]}
ASYNC_DRIVERS = {"sqlite": ["aiosqlite"], "postgresql": ["asyncpg", "psycopg"], "mysql": []}

Verb = Callable[..., Any]

# Each verb that writes, on a task that it can be used on: by the client, the task's id, and connection=.
WRITES: dict[str, tuple[str, Verb]] = {
    "create_task": ("pending, run", lambda client, id, **c: client.create_task("report", {"n": 2}, **c)),
    "create_task, key": ("pending, run", lambda client, id, **c: client.create_task("report", key="new", **c)),
    "create_tasks": (
        "pending, run",
        lambda client, id, **c: client.create_tasks(
            [
                NewTask(type="report", key="a"),
                NewTask(type="report", delay=5, headers={"a": 1}),
                NewTask(type="report", auto_run=False),
            ],
            **c,
        ),
    ),
    "change_task_group": ("pending, run", lambda client, id, **c: client.change_task_group(id, "night", **c)),
    "run_task": ("failed, run", lambda client, id, **c: client.run_task(id, **c)),
    "run_task, restart": ("paused, pause", lambda client, id, **c: client.run_task(id, restart=True, now=True, **c)),
    "pause_task": ("running, run", lambda client, id, **c: client.pause_task(id, **c)),
    "cancel_task": ("pending, run", lambda client, id, **c: client.cancel_task(id, **c)),
    "delete_task": ("pending, run", lambda client, id, **c: client.delete_task(id, **c)),
    "delete_task, force": ("running, run", lambda client, id, **c: client.delete_task(id, force=True, **c)),
    "run_tasks": ("failed, run", lambda client, id, **c: client.run_tasks(ids=[id], **c)),
    "pause_tasks": ("pending, run", lambda client, id, **c: client.pause_tasks(user="alice", **c)),
    "cancel_tasks": ("paused, pause", lambda client, id, **c: client.cancel_tasks(everything=True, **c)),
    "delete_tasks": ("init, none", lambda client, id, **c: client.delete_tasks(states=["INIT"], **c)),
}
READS: dict[str, Verb] = {
    "get_task": lambda client, id, **c: client.get_task(id, **c),
    "get_tasks": lambda client, id, **c: client.get_tasks(user="alice", **c),
    "get_tasks, after": lambda client, id, **c: client.get_tasks(after=id, **c),
    "count_tasks": lambda client, id, **c: client.count_tasks(group="", **c),
    "get_nodes": lambda client, id, **c: client.get_nodes(**c),
    "why": lambda client, id, **c: client.why(id, **c),
}


class Undo(Exception):
    """Makes a caller's transaction roll back."""


def backend(database: Database) -> str:
    return "mysql" if database.dialect.name == "mysql" else database.url.get_backend_name()


def hosts(database: Database, **options: Any) -> Iterator[Engine]:
    """An engine for each driver that a host may use on this database."""
    for driver in SYNC_DRIVERS[backend(database)]:
        engine = host_engine(with_driver(database, driver), **options)
        yield engine
        engine.dispose()


def host(database: Database, **options: Any) -> Engine:
    return next(iter(hosts(database, **options)))


def with_driver(database: Database, driver: str) -> str:
    url = database.url.set(drivername=f"{database.url.get_backend_name()}+{driver}")
    return url.render_as_string(hide_password=False)


@contextmanager
def opened(engine: Engine, kind: str) -> Iterator[Any]:
    """A transaction of the caller's, as a Connection, a Session or what Flask calls its session."""
    if kind == "connection":
        with engine.begin() as connection:
            yield connection
    elif kind == "session":
        with Session(engine) as session, session.begin():
            yield session
    else:
        registry = scoped_session(sessionmaker(engine))
        try:
            yield registry
            registry.commit()
        finally:
            registry.remove()


@contextmanager
def undone(engine: Engine, kind: str = "connection") -> Iterator[Any]:
    """A transaction of the caller's that is rolled back in the end."""
    with suppress(Undo), opened(engine, kind) as caller:
        yield caller
        raise Undo


@pytest.fixture
def ready(rows: Rows) -> Callable[[str], UUID]:
    """Put a task of a status, with a key that it had or has."""

    def put(status: str) -> UUID:
        return rows.put(status, key_name="k", held_key=None if "failed" in status else "k", context='{"at":5}')

    return put


# --- part of the caller's transaction


@pytest.mark.parametrize("kind", ["connection", "session"])
@pytest.mark.parametrize("verb", WRITES)
def test_a_verb_is_rolled_back_with_the_callers_transaction(
    client: Client, database: Database, rows: Rows, ready: Callable[[str], UUID], verb: str, kind: str
) -> None:
    status, call = WRITES[verb]
    task_id = ready(status)
    before = rows.all()

    for engine in hosts(database):
        with undone(engine, kind) as caller:
            call(client, task_id, connection=caller)
            assert changed_inside(caller, before), "it was not done in the caller's transaction"

        assert rows.all() == before


@pytest.mark.parametrize("kind", ["connection", "session"])
@pytest.mark.parametrize("verb", WRITES)
def test_a_verb_is_committed_with_the_callers_transaction(
    client: Client, database: Database, rows: Rows, ready: Callable[[str], UUID], verb: str, kind: str
) -> None:
    status, call = WRITES[verb]
    for engine in hosts(database):
        task_id = ready(status)
        before = rows.all()

        with opened(engine, kind) as caller:
            call(client, task_id, connection=caller)
            if database.dialect.skips_locked:  # SQLite has one writer, and we would wait for it
                assert rows.all() == before

        assert rows.all() != before
        rows.empty()


def test_what_flask_calls_its_session_is_one(client: Client, database: Database, rows: Rows) -> None:
    for engine in hosts(database):
        with undone(engine, "scoped session") as caller:
            client.create_task("report", connection=caller)
        assert rows.all() == []

        with opened(engine, "scoped session") as caller:
            task_id = client.create_task("report", connection=caller)
        assert rows.status(task_id) == "pending, run"
        rows.empty()


def changed_inside(caller: Any, before: list[Any]) -> bool:
    table = tables(None).task
    return list(caller.execute(select(table).order_by(table.c.id)).all()) != before


@pytest.mark.parametrize("verb", READS)
def test_a_reading_verb_sees_what_the_callers_transaction_has_done(
    client: Client, database: Database, rows: Rows, verb: str
) -> None:
    rows.join()
    for engine in hosts(database):
        with undone(engine) as caller:
            older = client.create_task("report", user="alice", connection=caller)
            task_id = client.create_task("report", user="alice", connection=caller)

            found = READS[verb](client, task_id, connection=caller)

            assert found
            if verb == "get_tasks, after":
                assert [task.id for task in found] == [older]
        with pytest.raises(TaskNotFound):
            client.get_task(task_id)


def test_a_task_and_the_callers_own_rows_are_stored_together(client: Client, database: Database) -> None:
    engine = host(database)
    with engine.begin() as caller:
        caller.execute(text("create table if not exists host_order (id integer primary key, task varchar(36))"))
    try:
        with undone(engine) as caller:
            order_with_task(client, caller, 1)
        with engine.begin() as caller:
            task_id = order_with_task(client, caller, 2)

        with engine.begin() as caller:
            assert [tuple(row) for row in caller.execute(text("select * from host_order"))] == [(2, str(task_id))]
        assert [task.id for task in client.get_tasks()] == [task_id]
    finally:
        with engine.begin() as caller:
            caller.execute(text("drop table host_order"))


def order_with_task(client: Client, caller: Connection, number: int) -> UUID:
    task_id = client.create_task("report", {"order": number}, connection=caller)
    caller.execute(text("insert into host_order values (:number, :task)"), {"number": number, "task": str(task_id)})
    return task_id


@pytest.mark.parametrize("value", [None, {"😀": "\\ ' \" %s :x ?"}, "x" * 100_000, [1.5, -(2**63)]])
def test_contents_are_the_same_through_every_driver(client: Client, database: Database, value: Any) -> None:
    moment = datetime(2100, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
    for engine in hosts(database):
        with engine.begin() as caller:
            task_id = client.create_task(
                "report 😀",
                value,
                user="ál\\'%s",
                key="k" + engine.driver,
                headers={"v": value},
                run_at=moment,
                connection=caller,
            )
            inside = client.get_task(task_id, user="ál\\'%s", connection=caller)

        outside = client.get_task(task_id)

        assert inside == outside
        assert (outside.arguments, outside.headers, outside.run_at) == (value, {"v": value}, moment)


# --- the caller's transaction goes on after an error of ours


ERRORS: dict[str, tuple[type[Exception], Verb]] = {
    "TaskNotFound": (TaskNotFound, lambda client, taken, **c: client.pause_task(new_id(), **c)),
    "InvalidTransition": (InvalidTransition, lambda client, taken, **c: client.pause_task(taken, **c)),
    "KeyTaken": (KeyTaken, lambda client, taken, **c: client.run_task(taken, **c)),
    "BadArgument": (BadArgument, lambda client, taken, **c: client.create_task("report", delay=-1, **c)),
}


@pytest.mark.parametrize("error", ERRORS)
def test_the_callers_transaction_outlives_our_errors(
    client: Client, database: Database, rows: Rows, error: str
) -> None:
    expected, call = ERRORS[error]
    for engine in hosts(database):
        rows.empty()
        taken = rows.put("failed, run", key_name="k")
        rows.put("pending, run", key_name="k", held_key="k")
        with engine.begin() as caller:
            first = client.create_task("report", connection=caller)
            with pytest.raises(expected):
                call(client, taken, connection=caller)
            second = client.create_task("report", connection=caller)

        assert {first, second} <= set(rows.column("id"))
        assert rows.status(taken) == "failed, run"


def test_bulk_run_in_a_callers_transaction_skips_what_has_its_key_taken(
    client: Client, database: Database, rows: Rows
) -> None:
    for engine in hosts(database):
        rows.empty()
        taken = rows.put("failed, run", key_name="k")
        rows.put("pending, run", key_name="k", held_key="k")
        free = rows.put("failed, run", key_name="free")

        with engine.begin() as caller:
            assert client.run_tasks(states=["FAILED"], connection=caller) == 1

        assert (rows.status(taken), rows.status(free)) == ("failed, run", "pending, run")


# --- decisions by what is committed now, whatever the caller's snapshot shows


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A caller's REPEATABLE READ transaction that has read already."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        connection.execute(select(tables(None).task)).all()
        yield connection


STALE: dict[str, Verb] = {
    "run_task": lambda client, id, **c: client.run_task(id, **c),
    "pause_task": lambda client, id, **c: client.pause_task(id, **c),
    "cancel_task": lambda client, id, **c: client.cancel_task(id, **c),
}


@pytest.mark.databases("mariadb", "mysql")
@pytest.mark.parametrize("verb", STALE)
def test_a_verb_in_a_repeatable_read_decides_by_the_row_as_it_is_now(
    client: Client, database: Database, rows: Rows, verb: str
) -> None:
    task_id = rows.put("paused, pause")
    with snapshot(host(database)) as caller:
        rows.change(task_id, stage="finished", mark="run", done_at=LONG_AGO)

        with pytest.raises(InvalidTransition) as caught:
            STALE[verb](client, task_id, connection=caller)
        caller.commit()

    assert caught.value.status == ("finished", "run")
    assert rows.status(task_id) == "finished, run"


@pytest.mark.databases("mariadb", "mysql")
def test_a_verb_in_a_repeatable_read_acts_on_a_task_that_came_after_it_had_begun(
    client: Client, database: Database, rows: Rows
) -> None:
    with snapshot(host(database)) as caller:
        task_id = rows.put("pending, run", key_name="k", held_key="k")

        again = client.create_task("report", id=task_id, connection=caller)
        same_key = client.create_task("report", user="alice", key="k", connection=caller)
        client.pause_task(task_id, connection=caller)
        caller.commit()

    assert (again, same_key) == (task_id, task_id)
    assert rows.status(task_id) == "paused, pause"


@pytest.mark.databases("mariadb", "mysql")
def test_a_bulk_verb_in_a_repeatable_read_leaves_alone_what_has_ended_since(
    client: Client, database: Database, rows: Rows
) -> None:
    ended, waiting = rows.put("pending, run"), rows.put("pending, run")
    with snapshot(host(database)) as caller:
        rows.change(ended, stage="finished", mark="run", queue=None, done_at=LONG_AGO)

        changed = client.pause_tasks(user="alice", connection=caller)
        caller.commit()

    assert changed == 1
    assert (rows.status(ended), rows.status(waiting)) == ("finished, run", "paused, pause")


@pytest.mark.databases("postgresql")
@pytest.mark.parametrize("verb", [*STALE, "create_task", "delete_task, force", "pause_tasks"])
def test_a_verb_in_a_repeatable_read_that_is_behind_raises_the_databases_error(
    client: Client, database: Database, rows: Rows, verb: str
) -> None:
    """PostgreSQL's REPEATABLE READ cannot see what is committed now; it says so, and the caller begins again."""
    new, task_id = new_id(), rows.put("paused, pause", key_name="k", held_key="k")
    calls = STALE | {
        "create_task": lambda client, id, **c: client.create_task("report", user="alice", id=new, **c),
        "delete_task, force": lambda client, id, **c: client.delete_task(id, force=True, **c),
        "pause_tasks": lambda client, id, **c: client.cancel_tasks(user="alice", **c),
    }
    for engine in hosts(database):
        with snapshot(engine) as caller:
            rows.put("pending, run", id=new)
            rows.change(task_id, group_name="night")
            before = rows.all()

            with pytest.raises(DBAPIError) as caught:
                calls[verb](client, task_id, connection=caller)

        assert database.is_transient(caught.value)
        assert rows.all() == before
        rows.drop(new)


# --- transient errors are the caller's, who alone can begin again


@SERVERS
@pytest.mark.parametrize("verb", ["run_task", "pause_task", "cancel_task", "delete_task", "change_task_group"])
def test_a_lock_timeout_is_raised_and_not_retried(client: Client, database: Database, rows: Rows, verb: str) -> None:
    task_id = rows.put("failed, run" if verb == "run_task" else "pending, run")
    impatient = {"postgresql": "set lock_timeout = 50", "mysql": "set innodb_lock_wait_timeout = 1"}
    before = rows.all()

    with rows.locked(task_id):
        for engine in hosts(database):
            with engine.connect() as caller:
                caller.execute(text(impatient[backend(database)]))
                with pytest.raises(DBAPIError) as caught:
                    WRITES[verb][1](client, task_id, connection=caller)

            assert database.is_transient(caught.value)
    assert rows.all() == before


# --- locks


@SERVERS
@pytest.mark.parametrize("selection", ["ids", "user"])
def test_several_tasks_are_locked_in_the_order_of_their_ids(
    client: Client, database: Database, rows: Rows, selection: str
) -> None:
    """Whoever locks in another order deadlocks with those who keep to this one: here, each index has its own."""
    rows.put_many(2_000, user_name="bob")
    ids = [rows.put("pending, run", type=f"type {9 - n}", created_at=LONG_AGO.replace(year=2020 - n)) for n in range(5)]
    wanted: dict[str, Any] = {"ids": ids[::-1]} if selection == "ids" else {"user": "alice"}
    engine = host(database)
    rows.analyze()  # or MariaDB thinks the table so small that it reads all of it

    with ThreadPoolExecutor(1) as pool:
        with rows.locked(ids[2]):
            pausing = pool.submit(client.pause_tasks, **wanted)
            until(lambda: len(free(engine, ids)) < 4, what="the first locks")
            left = until(lambda: stable(lambda: free(engine, ids)), what="the locks to stay as they are")
        assert pausing.result(10) == 5

    assert left == {ids[3], ids[4]}


def free(engine: Engine, ids: list[UUID]) -> set[UUID]:
    """Which of the rows nobody has locked."""
    column = tables(None).task.c
    with engine.connect() as connection:
        query = select(column.id).where(column.id.in_(ids)).with_for_update(skip_locked=True)
        return set(connection.execute(query).scalars())


def stable(look: Callable[[], set[UUID]]) -> set[UUID]:
    """What is seen several times in a row; nothing, if it changes."""
    seen = [look() for _ in range(5)]
    return seen[0] if all(each == seen[0] for each in seen) else set()


@SERVERS
def test_two_callers_who_name_the_same_tasks_in_opposite_orders_do_not_deadlock(
    client: Client, database: Database, rows: Rows
) -> None:
    ids = rows.put_many(20)
    together = threading.Barrier(2)

    def flip(order: list[UUID]) -> int:
        changed = 0
        for _ in range(10):
            together.wait(20)
            with engine.begin() as caller:
                changed += client.pause_tasks(ids=order, connection=caller)
                changed += client.run_tasks(ids=order, connection=caller)
        return changed

    engine = host(database)
    with ThreadPoolExecutor(2) as pool:
        flips = [pool.submit(flip, ids), pool.submit(flip, ids[::-1])]

    assert [each.result() for each in flips] == [400, 400]


@SERVERS
def test_two_callers_who_create_the_same_ids_in_opposite_orders_do_not_deadlock(
    client: Client, database: Database, rows: Rows
) -> None:
    rounds = [[new_id() for _ in range(20)] for _ in range(10)]
    together = threading.Barrier(2)

    def create(step: int) -> list[list[UUID]]:
        created = []
        for ids in rounds:
            together.wait(20)
            with engine.begin() as caller:
                new = [NewTask(type="report", id=each) for each in ids[::step]]
                created.append(client.create_tasks(new, connection=caller))
        return created

    engine = host(database)
    with ThreadPoolExecutor(2) as pool:
        forward, backward = pool.submit(create, 1), pool.submit(create, -1)

    assert forward.result() == rounds
    assert backward.result() == [ids[::-1] for ids in rounds]
    assert rows.column("id") == [each for ids in rounds for each in ids]


@SERVERS
def test_a_forced_deletion_that_is_not_committed_yet_stops_no_nodes_beat(
    client: Client, database: Database, rows: Rows
) -> None:
    live = new_id()
    rows.join(live, "live")
    task_id = rows.put("running, run")
    impatient = Database(url_of(database), Settings(database_timeout=2.0))
    beat = Beat(counter=2, session_key=None, slots=1, running=0, draining=False, types={})

    for engine in hosts(database):
        with undone(engine) as caller:
            client.delete_task(task_id, force=True, connection=caller)
            assert impatient.once(nodes.beat, live, beat)
    impatient.close()


BULK: dict[str, tuple[str, Verb]] = {
    "run_tasks": ("failed, run", lambda client, ids, **c: client.run_tasks(ids=ids, **c)),
    "run_tasks, user": ("paused, pause", lambda client, ids, **c: client.run_tasks(user="alice", **c)),
    "pause_tasks": ("pending, run", lambda client, ids, **c: client.pause_tasks(ids=ids, **c)),
    "pause_tasks, user": ("running, run", lambda client, ids, **c: client.pause_tasks(user="alice", **c)),
    "cancel_tasks": ("pending, run", lambda client, ids, **c: client.cancel_tasks(ids=ids, **c)),
    "delete_tasks": ("pending, run", lambda client, ids, **c: client.delete_tasks(ids=ids, **c)),
    "delete_tasks, init": ("init, none", lambda client, ids, **c: client.delete_tasks(ids=ids, **c)),
    "create_tasks, keys": (
        "running, run",
        lambda client, ids, **c: len(client.create_tasks([NewTask(type="report", key=str(id)) for id in ids], **c)),
    ),
    "create_tasks, ids": (
        "running, run",
        lambda client, ids, **c: len(client.create_tasks([NewTask(type="report", id=id, key="k") for id in ids], **c)),
    ),
}


@SERVERS
@pytest.mark.parametrize("number", [3, 40])
@pytest.mark.parametrize("verb", BULK)
def test_a_verb_of_an_open_transaction_locks_no_tasks_but_those_it_changes(
    client: Client, database: Database, rows: Rows, verb: str, number: int
) -> None:
    """MariaDB's REPEATABLE READ, which hosts have by default, keeps the locks of all that a statement has read."""
    status, call = BULK[verb]
    for engine in hosts(database):
        rows.empty()
        ids, others = [], []
        for _ in range(number):
            ids.append(rows.put(status))
            others.append(rows.claimed(user_name="bob"))

        with undone(engine) as caller:
            assert call(client, ids, connection=caller) == number
            reported = database.once(writes.write, [Write(claim, context="1") for claim in others])
            created = client.create_task("report", user="carol")

        assert {written.fate for written in reported} == {Fate.STORED}
        assert rows.status(created) == "pending, run"


EXISTING = UUID("01890000-0000-7000-8000-000000000001")
CREATIONS: dict[str, Verb] = {
    "a task": lambda client, **c: client.create_task("report", **c),
    "one of a timer": lambda client, **c: client.create_task("report", delay=5, **c),
    "one with a key": lambda client, **c: client.create_task("report", user="alice", key="m", **c),
    "one with a taken key": lambda client, **c: client.create_task("report", user="alice", key="k", **c),
    "an existing one": lambda client, **c: client.create_task("report", id=EXISTING, key="new", **c),
    "some": lambda client, **c: client.create_tasks([NewTask(type="report")] * 3, **c),
    "some with keys": lambda client, **c: client.create_tasks([NewTask(type="report", key=k) for k in "abcde"], **c),
}


def test_a_bulk_with_ids_that_exist_and_keys_that_are_taken_is_answered_row_by_row(
    client: Client, database: Database, rows: Rows
) -> None:
    ended = rows.put("finished, run", key_name="k")
    holder = rows.put("pending, run", key_name="k", held_key="k")
    alice: dict[str, Any] = {"type": "report", "user": "alice"}
    for engine in hosts(database):
        with undone(engine) as caller:
            new = [
                NewTask(**alice, id=ended, key="k"),
                NewTask(**alice, key="k"),
                NewTask(**alice, key="free"),
                NewTask(**alice, key="free"),
                NewTask(**alice),
            ]
            ids = client.create_tasks(new, connection=caller)

            found = {task.id: task.key for task in client.get_tasks(ids=ids, connection=caller)}
        assert ids[:2] == [ended, holder]
        assert ids[2] == ids[3]
        assert found == {ended: "k", holder: "k", ids[2]: "free", ids[4]: None}


@pytest.mark.databases("mariadb", "mysql")
def test_a_key_whose_holder_has_ended_since_the_callers_snapshot_is_free(
    client: Client, database: Database, rows: Rows
) -> None:
    holder = rows.claimed(key_name="k", held_key="k")
    with snapshot(host(database)) as caller:
        database.once(writes.write, [Write(holder, Event.TASK_FINISHED, result="1")])

        created = client.create_task("report", user="alice", key="k", connection=caller)
        caller.commit()

    assert created != holder.task_id
    assert rows.status(created) == "pending, run"


@SERVERS
@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "READ COMMITTED"])
@pytest.mark.parametrize("what", CREATIONS)
def test_a_creation_of_an_open_transaction_keeps_nobody_from_creating(
    client: Client, database: Database, rows: Rows, what: str, isolation: str
) -> None:
    rows.put("finished, run", id=EXISTING)
    rows.claimed(key_name="k", held_key="k")
    rows.put("pending, run", key_name="z", held_key="z")
    for engine in hosts(database, isolation_level=isolation):
        with undone(engine) as caller, impatient_client(database) as other:
            CREATIONS[what](client, connection=caller)

            assert other.create_task("report")
            assert other.create_task("report", user="alice", delay=5)
            assert other.create_task("report", user="alice", key=f"n {engine.driver}")
            assert len(other.create_tasks([NewTask(type="report", user="bob", key=key) for key in "kmz"])) == 3


@contextmanager
def impatient_client(database: Database) -> Iterator[Client]:
    """A client that gives up when it has to wait for a lock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyasync.store.database.PATIENCE", 0.1)
        with Client(url_of(database), migrate="off", strict=False, database_timeout=1.0) as client:
            yield client


@SERVERS
@pytest.mark.parametrize("number", [3, 40])
@pytest.mark.parametrize("verb", BULK)
def test_a_verb_does_not_wait_for_tasks_that_it_is_not_about(
    client: Client, database: Database, rows: Rows, verb: str, number: int
) -> None:
    status, call = BULK[verb]
    others = rows.put_many(number, "running, run", user_name="bob")
    ids = rows.put_many(number, status)
    others += rows.put_many(number, "pending, run", user_name="bob")

    with rows.locked(*others), impatient_client(database) as impatient:
        assert call(impatient, ids) == number


# --- SQLite, whose driver begins a transaction when it sees fit


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("verb", [verb for verb in WRITES if not verb.startswith("create")])
def test_a_verb_in_a_legacy_mode_transaction_decides_under_the_write_lock(
    client: Client, database: Database, rows: Rows, ready: Callable[[str], UUID], verb: str
) -> None:
    """Python's driver begins no transaction for a SELECT: what it has read may be gone before the write."""
    status, call = WRITES[verb]
    task_id = ready(status)
    statements: list[str] = []
    engine = host(database)

    with engine.begin() as caller:
        driver: Any = caller.connection.driver_connection
        driver.set_trace_callback(statements.append)
        call(client, task_id, connection=caller)
        driver.set_trace_callback(None)

    kinds = [statement.split()[0].upper() for statement in statements]
    assert kinds[:2] == ["BEGIN", "UPDATE"]
    assert kinds.index("SELECT") > 1


@pytest.mark.databases("sqlite")
def test_a_verb_in_a_legacy_mode_transaction_keeps_others_from_writing(
    client: Client, database: Database, rows: Rows
) -> None:
    task_id = rows.put("pending, run")
    other = host(database, connect_args={"timeout": 0})
    with host(database).begin() as caller:
        client.pause_task(task_id, connection=caller)

        with pytest.raises(DBAPIError, match="database is locked") as caught, other.begin() as second:
            client.cancel_task(task_id, connection=second)

    assert database.is_transient(caught.value)
    assert rows.status(task_id) == "paused, pause"


@pytest.mark.databases("sqlite")
def test_a_verb_in_a_transaction_that_has_read_before_another_wrote_raises_the_databases_error(
    client: Client, database: Database, rows: Rows
) -> None:
    task_id = rows.put("pending, run")
    with host(database).connect() as caller:
        caller.exec_driver_sql("begin")
        caller.execute(select(tables(None).task)).all()
        rows.change(task_id, group_name="night")

        with pytest.raises(DBAPIError) as caught:
            client.pause_task(task_id, connection=caller)

    assert database.is_transient(caught.value)
    assert rows.status(task_id) == "pending, run"


# --- what is no connection of ours


def test_what_is_no_connection_is_refused(client: Client, database: Database) -> None:
    other_kind = "sqlite://" if database.dialect.name != "sqlite" else "postgresql+psycopg://"
    engine = host(database)

    with pytest.raises(BadArgument, match="takes a SQLAlchemy Connection or Session, not Engine"):
        client.create_task("report", connection=engine)
    with pytest.raises(BadArgument, match="not str"):
        client.get_tasks(connection=url_of(database))
    if database.dialect.name != "sqlite":
        with host_engine(other_kind).connect() as caller, pytest.raises(BadArgument, match="is on sqlite, but"):
            client.create_task("report", connection=caller)


@pytest.mark.databases("postgresql", "sqlite")
def test_an_async_connection_is_refused_with_the_way_to_use_it(client: Client, database: Database) -> None:
    async def run() -> None:
        async with async_host(database, ASYNC_DRIVERS[backend(database)][0]).connect() as caller:
            with pytest.raises(BadArgument, match=r"pyasync\.aio"):
                client.create_task("report", connection=caller)

    anyio.run(run)


def test_the_hosts_sessions_keep_their_own_settings(database: Database) -> None:
    engine = host_engine(url_of(database), isolation_level="REPEATABLE READ" if database.dialect.skips_locked else None)
    with engine.connect() as before:
        isolation = before.get_isolation_level()

    with Client(engine, migrate="off", strict=False) as client, engine.connect() as caller:
        client.create_task("report")
        client.create_task("report", connection=caller)
        caller.commit()
        kept = caller.get_isolation_level()

    assert kept == isolation


# --- wake-ups


@pytest.mark.databases("postgresql")
def test_a_wake_up_is_sent_with_the_callers_commit_and_never_before(
    client: Client, database: Database, rows: Rows
) -> None:
    import psycopg

    task_id = rows.put("running, run")
    listener = psycopg.connect(url_of(database).replace("+psycopg", ""), autocommit=True)
    listener.execute(f"listen {hints.channel(None)}")

    for engine in hosts(database):
        with undone(engine) as caller:
            client.pause_task(task_id, connection=caller)
        with engine.begin() as caller:
            client.create_task("report", connection=caller)

        heard = [note.payload for note in listener.notifies(timeout=10, stop_after=1)]
        assert heard == [hints.RUN]
    listener.close()


# --- async


def async_host(database: Database, driver: str) -> AsyncEngine:
    return create_async_engine(with_driver(database, driver), poolclass=NullPool)


async def check_async(client: Client, database: Database, check: Callable[..., Any]) -> None:
    """Call a check with an async client and a way to open a transaction, for each driver and kind."""
    for driver in ASYNC_DRIVERS[backend(database)]:
        engine = async_host(database, driver)
        await check(aio.AsyncClient(client), lambda engine=engine: engine.begin())
        await check(aio.AsyncClient(client), lambda engine=engine: AsyncSession(engine).begin())
        await engine.dispose()


@asynccontextmanager
async def aundone(begin: Callable[[], Any]) -> AsyncIterator[Any]:
    """A transaction of the async caller's that is rolled back in the end."""
    with suppress(Undo):
        async with begin() as opened:
            yield session_of(opened)
            raise Undo


def session_of(opened: Any) -> Any:
    """An AsyncSession's `begin()` gives its transaction."""
    return getattr(opened, "session", opened)


@pytest.mark.databases("postgresql", "sqlite")
@pytest.mark.parametrize("verb", WRITES)
def test_an_async_verb_is_part_of_the_callers_transaction(
    client: Client, database: Database, rows: Rows, ready: Callable[[str], UUID], verb: str
) -> None:
    status, call = WRITES[verb]

    async def check(aclient: aio.AsyncClient, begin: Callable[[], Any]) -> None:
        rows.empty()
        task_id = ready(status)
        before = rows.all()

        async with aundone(begin) as caller:
            await call(aclient, task_id, connection=caller)
        assert rows.all() == before

        async with begin() as opened:
            await call(aclient, task_id, connection=session_of(opened))
        assert rows.all() != before

    anyio.run(check_async, client, database, check)


@pytest.mark.databases("postgresql", "sqlite")
@pytest.mark.parametrize("verb", READS)
def test_an_async_reading_verb_sees_what_the_callers_transaction_has_done(
    client: Client, database: Database, rows: Rows, verb: str
) -> None:
    rows.join()

    async def check(aclient: aio.AsyncClient, begin: Callable[[], Any]) -> None:
        async with aundone(begin) as caller:
            await aclient.create_task("report", user="alice", connection=caller)
            task_id = await aclient.create_task("report", user="alice", connection=caller)

            assert await READS[verb](aclient, task_id, connection=caller)
        with pytest.raises(TaskNotFound):
            await aclient.get_task(task_id)

    anyio.run(check_async, client, database, check)


@pytest.mark.databases("postgresql", "sqlite")
@pytest.mark.parametrize("error", ERRORS)
def test_the_async_callers_transaction_outlives_our_errors(
    client: Client, database: Database, rows: Rows, error: str
) -> None:
    expected, call = ERRORS[error]

    async def check(aclient: aio.AsyncClient, begin: Callable[[], Any]) -> None:
        rows.empty()
        taken = rows.put("failed, run", key_name="k")
        rows.put("pending, run", key_name="k", held_key="k")

        async with begin() as opened:
            with pytest.raises(expected):
                await call(aclient, taken, connection=session_of(opened))
            created = await aclient.create_task("report", connection=session_of(opened))

        assert rows.status(created) == "pending, run"
        assert rows.status(taken) == "failed, run"

    anyio.run(check_async, client, database, check)


@pytest.mark.databases("postgresql", "sqlite")
def test_contents_are_the_same_through_every_async_driver(client: Client, database: Database) -> None:
    value = {"😀": ["\\ ' \" %s :x ? $1", None, 1.5, 2**70]}

    async def check(aclient: aio.AsyncClient, begin: Callable[[], Any]) -> None:
        async with begin() as opened:
            caller = session_of(opened)
            task_id = await aclient.create_task("report 😀", value, headers=value, delay=0.5, connection=caller)
            inside = await aclient.get_task(task_id, connection=caller)

        assert inside == await aclient.get_task(task_id)
        assert inside.arguments == inside.headers == value

    anyio.run(check_async, client, database, check)


@pytest.mark.databases("postgresql", "sqlite")
def test_a_blocking_verb_works_inside_run_sync(client: Client, database: Database, rows: Rows) -> None:
    async def run() -> UUID:
        engine = async_host(database, ASYNC_DRIVERS[backend(database)][0])
        async with engine.begin() as caller:
            return await caller.run_sync(lambda connection: client.create_task("report", connection=connection))

    assert rows.status(anyio.run(run)) == "pending, run"


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("verb", [*WRITES, *READS])
def test_a_blocking_verb_on_an_event_loop_names_the_one_to_await(
    client: Client, rows: Rows, verb: str, loop: str
) -> None:
    call = WRITES[verb][1] if verb in WRITES else READS[verb]

    async def run() -> BlockingCall:
        with pytest.raises(BlockingCall) as caught:
            call(client, new_id())
        return caught.value

    error = anyio.run(run, backend=loop)

    assert error.twin == f"pyasync.aio.{error.verb}"
    assert error.verb in (verb.partition(",")[0], "create_tasks")
    assert rows.all() == []


def test_an_update_of_the_hosts_own_is_seen_by_a_verb_of_the_same_transaction(
    client: Client, database: Database, rows: Rows
) -> None:
    task_id = rows.put("pending, run")
    table = tables(None).task
    for engine in hosts(database):
        with engine.begin() as caller:
            caller.execute(update(table).where(table.c.id == task_id).values(group_name=engine.driver))
            assert client.get_task(task_id, connection=caller).group == engine.driver
    assert client.get_task(task_id).state is State.PENDING
