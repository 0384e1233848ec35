"""`run.commit`: the effects of `work` and the checkpoint are both stored, or neither is."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from sqlalchemy import event, exc, text
from sqlalchemy.orm import Session

from pyasync import (
    BadArgument,
    ClaimLost,
    ContextNotSerializable,
    Failed,
    Finished,
    Node,
    Registry,
    Report,
    State,
    TransactionDoomed,
    current_run,
)
from tests.runtime.conftest import Nodes
from tests.runtime.gate import PATIENCE, Gate
from tests.runtime.other import TASK, Other
from tests.waiting import until

Work = Callable[[Any], Any]


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def effects(node: Nodes, other: Other) -> Other:
    """A table for effects, in a database with our tables in it."""
    node(Registry()).stop()
    other.create_table()
    return other


def add(content: str) -> Work:
    """Return a work that inserts a row."""

    def work(connection: Any) -> str:
        connection.execute(text("insert into effect values (:content)"), {"content": content})
        return f"added {content}"

    return work


class Committing:
    """A task that commits one work after the other, and keeps what that returned or raised."""

    def __init__(self, kind: str, *steps: tuple[Any, Work]) -> None:
        self.said: list[Any] = []
        self.steps = steps
        self.registry = Registry()
        self.registry.register_task("task", self.sync if kind == "sync" else self.asynchronous)

    def sync(self, run: Any) -> Iterator[Any]:
        for report, work in self.steps:
            try:
                self.said.append(run.commit(report, work))
            except Exception as error:
                self.said.append(error)
        yield

    async def asynchronous(self, run: Any) -> AsyncIterator[Any]:
        for report, work in self.steps:
            try:
                self.said.append(await run.commit(report, work))
            except Exception as error:
                self.said.append(error)
        yield

    def ended(self, node: Nodes) -> Any:
        """Run the task to its end and return it."""
        started = node(self.registry)
        task = started.wait_task(started.create_task("task", "start"), PATIENCE)
        started.stop()
        return task


# --- both


def test_effects_and_checkpoint_are_stored_together(node: Nodes, effects: Other, kind: str) -> None:
    task = Committing(kind, ({"step": 1}, add("one")), (Report({"step": 2}, progress=0.5), add("two")))

    ended = task.ended(node)

    assert task.said == ["added one", "added two"]
    assert effects.contents() == ["one", "two"]
    assert (ended.context, ended.progress, ended.seq, ended.state) == ({"step": 2}, 1.0, 4, State.FINISHED)


def test_work_sees_its_own_writes_and_nobody_else_does_before_the_end(node: Nodes, effects: Other, kind: str) -> None:
    seen: list[Any] = []

    def work(connection: Any) -> None:
        add("one")(connection)
        seen.append(connection.execute(text("select count(*) from effect")).scalar())
        if not node.url.startswith("sqlite"):  # its readers are none of ours: `other` begins as a writer
            seen.append(effects.contents())

    Committing(kind, (1, work)).ended(node)

    assert seen == ([1] if node.url.startswith("sqlite") else [1, []])
    assert effects.contents() == ["one"]


def test_session_on_the_connection_takes_part(node: Nodes, effects: Other, kind: str) -> None:
    def work(connection: Any) -> int:
        with Session(connection) as session:
            session.execute(text("insert into effect values ('by a session')"))
            session.commit()
            return int(session.scalar(text("select count(*) from effect")) or 0)

    def failing(connection: Any) -> None:
        work(connection)
        raise OSError("after all")

    task = Committing(kind, (2, failing), (1, work))

    ended = task.ended(node)

    assert task.said[1] == 1
    assert isinstance(task.said[0], OSError)
    assert (effects.contents(), ended.context) == (["by a session"], 1)


def test_plain_function_commits_through_its_current_run(node: Nodes, effects: Other, kind: str) -> None:
    def sync() -> Any:
        return current_run().commit({"step": 1}, add("one"))

    async def asynchronous() -> Any:
        return await current_run().commit({"step": 1}, add("one"))

    registry = Registry()
    registry.register_task("task", sync if kind == "sync" else asynchronous)
    started = node(registry)

    task = started.wait_task(started.create_task("task"), PATIENCE)

    assert (task.result, task.context, effects.contents()) == ("added one", {"step": 1}, ["one"])


def test_final_report_ends_the_task_with_its_effects(node: Nodes, effects: Other, kind: str) -> None:
    finishing = Committing(kind, (Finished("done", context="end"), add("one")), ("late", add("late")))
    failing = Committing(kind, (Failed("no luck"), add("two")), ("late", add("late")))

    finished, failed = finishing.ended(node), failing.ended(node)

    assert (finished.state, finished.result, finished.context, finished.seq) == (State.FINISHED, "done", "end", 1)
    assert (failed.state, failed.error, failed.seq) == (State.FAILED, "no luck", 1)
    assert finishing.said[0] == "added one"
    assert isinstance(finishing.said[1], ClaimLost)
    assert effects.contents() == ["one", "two"]


def test_final_report_with_delete_removes_the_row_with_its_effects(node: Nodes, effects: Other, kind: str) -> None:
    task = Committing(kind, (Finished(delete=True), add("one")))
    started = node(task.registry)

    task_id = started.create_task("task")

    until(lambda: effects.row(task_id) is None, PATIENCE, "the row to go")
    until(lambda: len(started._runs) == 0, PATIENCE, "the slot to be free")
    assert (task.said, effects.contents()) == (["added one"], ["one"])


# --- neither


def test_exception_in_work_rolls_everything_back_and_is_the_users(node: Nodes, effects: Other, kind: str) -> None:
    def work(connection: Any) -> None:
        add("one")(connection)
        raise OSError("after all")

    task = Committing(kind, ({"step": 1}, work))

    ended = task.ended(node)

    assert [repr(each) for each in task.said] == ["OSError('after all')"]
    assert (effects.contents(), ended.context, ended.seq) == ([], "start", 2)


def test_report_that_cannot_be_stored_runs_no_work(node: Nodes, effects: Other, kind: str) -> None:
    task = Committing(kind, (object(), add("one")), (Report(1, progress=2), add("two")))

    ended = task.ended(node)

    assert [type(each) for each in task.said] == [ContextNotSerializable, BadArgument]
    assert (effects.contents(), ended.context) == ([], "start")


def test_error_of_the_database_that_is_let_out_is_the_users(node: Nodes, effects: Other, kind: str) -> None:
    def work(connection: Any) -> None:
        add("one")(connection)
        add("one")(connection)

    task = Committing(kind, ({"step": 1}, work), ({"step": 2}, add("two")))

    ended = task.ended(node)

    assert isinstance(task.said[0], exc.IntegrityError)
    assert task.said[1] == "added two"
    assert (effects.contents(), ended.context) == (["two"], {"step": 2})


@pytest.mark.parametrize("swallowed", ["constraint", "syntax", "session"])
def test_error_that_work_swallows_dooms_the_transaction(node: Nodes, effects: Other, kind: str, swallowed: str) -> None:
    def work(connection: Any) -> str:
        add("half")(connection)
        try:
            _fail(connection, swallowed)
        except exc.DBAPIError:
            return "all is well"
        return "it did not fail"

    task = Committing(kind, ({"step": 1}, work), ({"step": 2}, add("two")))

    ended = task.ended(node)

    assert isinstance(task.said[0], TransactionDoomed)
    assert task.said[1] == "added two"
    assert (effects.contents(), ended.context) == (["two"], {"step": 2})


def _fail(connection: Any, how: str) -> None:
    if how == "session":
        session = Session(connection)
        session.execute(text("insert into effect values ('half')"))
    connection.execute(text("insert into effect values ('half')" if how == "constraint" else "select * from nowhere"))


def test_statement_that_fails_inside_a_savepoint_may_be_swallowed(node: Nodes, effects: Other, kind: str) -> None:
    def work(connection: Any) -> str:
        add("one")(connection)
        try:
            with connection.begin_nested():
                add("one")(connection)
        except exc.IntegrityError:
            return "it was there"
        return "it was not"

    task = Committing(kind, ({"step": 1}, work))

    ended = task.ended(node)

    assert task.said == ["it was there"]
    assert (effects.contents(), ended.context) == (["one"], {"step": 1})


def test_savepoint_does_not_forgive_what_failed_before_it(node: Nodes, effects: Other, kind: str) -> None:
    def work(connection: Any) -> None:
        add("one")(connection)
        with suppress(exc.IntegrityError):
            add("one")(connection)
        with suppress(OSError, exc.DBAPIError), connection.begin_nested():
            raise OSError("rolled back")

    task = Committing(kind, ({"step": 1}, work))

    ended = task.ended(node)

    assert isinstance(task.said[0], TransactionDoomed)
    assert (effects.contents(), ended.context) == ([], "start")


@pytest.mark.parametrize("swallowed", [False, True])
def test_work_that_commits_or_rolls_back_by_itself_is_refused(
    node: Nodes, effects: Other, kind: str, swallowed: bool
) -> None:
    def committing(connection: Any) -> None:
        add("half")(connection)
        with suppress(BadArgument if swallowed else ()):
            connection.commit()

    def rolling_back(connection: Any) -> None:
        add("none")(connection)
        connection.rollback()

    task = Committing(kind, (1, committing), (1, rolling_back), ({"step": 2}, add("two")))

    ended = task.ended(node)

    assert [type(each) for each in task.said[:2]] == [
        TransactionDoomed if swallowed else BadArgument,
        TransactionDoomed,
    ]
    assert "must not commit" in str(task.said[0])
    assert (effects.contents(), ended.context) == (["two"], {"step": 2})


# --- errors that go away by themselves


def _lose_connection(connection: Any) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("select pg_terminate_backend(pg_backend_pid())"))
    else:
        connection.execute(text("kill connection_id()"))


@pytest.mark.databases("postgresql", "mariadb")  # SQLite has no connection to lose
@pytest.mark.parametrize("swallowed", [False, True])
def test_work_is_repeated_after_its_connection_was_lost(
    node: Nodes, effects: Other, kind: str, swallowed: bool
) -> None:
    calls: list[int] = []

    def work(connection: Any) -> str:
        calls.append(len(calls))
        add("one")(connection)
        if len(calls) == 1:
            try:
                _lose_connection(connection)
            except exc.DBAPIError:
                if not swallowed:
                    raise
        return f"call {len(calls)}"

    task = Committing(kind, ({"step": 1}, work))

    ended = task.ended(node)

    assert task.said == ["call 2"]
    assert (effects.contents(), ended.context, ended.seq) == (["one"], {"step": 1}, 3)


@pytest.mark.databases("postgresql", "mariadb")  # SQLite has one writer, and so no deadlocks
def test_work_is_repeated_after_a_deadlock_even_if_it_swallows_it(node: Nodes, effects: Other, kind: str) -> None:
    with effects.begin() as connection:
        add("left")(connection)
        add("right")(connection)
    ours, theirs = threading.Event(), threading.Event()
    calls: list[int] = []

    def touch(connection: Any, content: str) -> None:
        connection.execute(text("update effect set content = content where content = :content"), {"content": content})

    def work(connection: Any) -> str:
        calls.append(len(calls))
        if len(calls) == 1:
            add("one")(connection)
            touch(connection, "left")
            ours.set()
            theirs.wait(PATIENCE)
            try:
                touch(connection, "right")
            except exc.DBAPIError:
                return "swallowed"
            return "we won"
        add("two")(connection)
        return "again"

    def contend() -> None:
        ours.wait(PATIENCE)
        try:
            with effects.begin() as connection:
                # More work done makes MariaDB choose the other one; PostgreSQL chooses who waits for longer.
                for number in range(50):
                    add(f"theirs {number}")(connection)
                touch(connection, "right")
                theirs.set()
                touch(connection, "left")
                raise LookupError
        except (LookupError, exc.DBAPIError):
            return

    contender = threading.Thread(target=contend, daemon=True)
    contender.start()
    task = Committing(kind, ({"step": 1}, work))

    ended = task.ended(node)

    contender.join(PATIENCE)
    kept = set(effects.contents()) - {"left", "right"}
    assert (task.said, kept) in ((["again"], {"two"}), (["we won"], {"one"}))
    assert ended.context == {"step": 1}


class _Transient:
    """Makes the commit of one connection fail as if that were lost, before or after it is stored."""

    def __init__(self, started: Node, *, stored: bool) -> None:
        self.fired = 0
        self.victim: Any = None
        self.stored = stored
        event.listen(started._database.engine, "commit", self._lose)

    def _lose(self, connection: Any) -> None:
        if connection is not self.victim:
            return
        self.victim = None
        self.fired += 1
        driver = connection.connection.driver_connection
        driver.commit() if self.stored else driver.rollback()
        if connection.dialect.name == "sqlite":  # there is no connection to lose
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error
        driver.close()


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
def test_commit_whose_reply_was_lost_counts_once_and_returns_what_work_did(
    node: Nodes, effects: Other, kind: str, stored: bool
) -> None:
    calls: list[int] = []

    def work(connection: Any) -> str:
        calls.append(len(calls))
        add(f"call {len(calls)}")(connection)
        faults[0].victim = connection if len(calls) == 1 else None
        return f"value {len(calls)}"

    task = Committing(kind, ({"step": 1}, work), ({"step": 2}, add("two")))
    started = node(task.registry)
    faults = [_Transient(started, stored=stored)]

    ended = started.wait_task(started.create_task("task", "start"), PATIENCE)

    assert faults[0].fired == 1
    assert task.said == ["value 1" if stored else "value 2", "added two"]
    assert effects.contents() == ["call 1" if stored else "call 2", "two"]
    assert (ended.context, ended.seq) == ({"step": 2}, 4)


@pytest.mark.databases("postgresql", "mariadb")  # on SQLite nobody else writes meanwhile
def test_commit_that_comes_through_late_while_work_is_repeated_counts_once(
    node: Nodes, effects: Other, kind: str
) -> None:
    calls: list[int] = []

    def work(connection: Any) -> str:
        calls.append(len(calls))
        add(f"call {len(calls)}")(connection)
        if len(calls) == 1:
            fault[0].victim = connection
        else:
            _store_late()
        return f"value {len(calls)}"

    def _store_late() -> None:
        with effects.begin() as connection:
            add("call 1")(connection)
            connection.execute(TASK.update().values(seq=TASK.c.seq + 1, context='{"step":1}'))

    task = Committing(kind, ({"step": 1}, work))
    started = node(task.registry)
    fault = [_Transient(started, stored=False)]

    ended = started.wait_task(started.create_task("task", "start"), PATIENCE)

    assert len(calls) == 2
    assert task.said == ["value 1"]
    assert effects.contents() == ["call 1"]
    assert (ended.context, ended.state) == ({"step": 1}, State.FINISHED)


# --- claims


def test_commit_after_a_takeover_leaves_nothing(node: Nodes, effects: Other, kind: str) -> None:
    gate = Gate()
    said: list[Any] = []

    def sync(run: Any) -> Iterator[Any]:
        gate.pass_()
        try:
            run.commit({"zombie": True}, add("zombie"))
        except ClaimLost as error:
            said.append((error.task_id == run.id, run.stop.reason))
            raise
        yield

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        await gate.apass()
        try:
            await run.commit({"zombie": True}, add("zombie"))
        except ClaimLost as error:
            said.append((error.task_id == run.id, run.stop.reason))
            raise
        yield

    registry = Registry()
    registry.register_task("task", sync if kind == "sync" else asynchronous, retry=[0])
    started = node(registry, lease=60.0)  # no beat: it is the write that finds out
    task_id = started.create_task("task", "start")
    gate.wait_for()

    effects.take_over(task_id)
    before = effects.row(task_id)
    gate.open()

    until(lambda: said, PATIENCE, "the commit to be refused")
    until(lambda: len(started._runs) == 0, PATIENCE, "the run to end")
    assert said == [(True, "lost")]
    assert effects.contents() == []
    assert effects.row(task_id) == before


@pytest.mark.databases("postgresql", "mariadb")  # on SQLite nobody else writes meanwhile
def test_takeover_while_work_is_at_work_leaves_nothing(node: Nodes, effects: Other, kind: str) -> None:
    def work(connection: Any) -> None:
        add("zombie")(connection)
        effects.take_over(ids[0])

    task = Committing(kind, ({"zombie": True}, work))
    started = node(task.registry, lease=60.0)
    ids = [started.create_task("task", "start", auto_run=False)]
    started.run_task(ids[0])

    until(lambda: task.said, PATIENCE, "the commit to be refused")

    assert isinstance(task.said[0], ClaimLost)
    assert (effects.contents(), effects.row(ids[0]).context) == ([], None)


def test_row_that_is_gone_leaves_nothing(node: Nodes, effects: Other, kind: str) -> None:
    gate = Gate()

    def work(connection: Any) -> None:
        add("zombie")(connection)

    def sync(run: Any) -> Iterator[Any]:
        gate.pass_()
        run.commit(1, work)
        yield

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        await gate.apass()
        await run.commit(1, work)
        yield

    registry = Registry()
    registry.register_task("task", sync if kind == "sync" else asynchronous)
    started = node(registry, lease=60.0)
    task_id = started.create_task("task")
    gate.wait_for()

    effects.remove(task_id)
    gate.open()

    until(lambda: len(started._runs) == 0, PATIENCE, "the run to end")
    assert effects.contents() == []
    assert effects.row(task_id) is None


def test_pause_that_lands_during_work_stops_the_run_after_its_commit(node: Nodes, effects: Other, kind: str) -> None:
    gate = Gate()
    reasons: list[Any] = []

    def sync(run: Any) -> Iterator[Any]:
        gate.pass_()
        run.commit({"step": 1}, add("one"))
        reasons.append(run.stop.reason)
        yield

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        await gate.apass()
        await run.commit({"step": 1}, add("one"))
        reasons.append(run.stop.reason)
        yield

    registry = Registry()
    registry.register_task("task", sync if kind == "sync" else asynchronous)
    started = node(registry, poll_interval=60.0)
    started._keeper._on_hint = lambda hint: None
    task_id = started.create_task("task")
    gate.wait_for()

    effects.change(task_id, mark="pause")
    gate.open()

    until(lambda: effects.status(task_id) == "paused, pause", PATIENCE)
    assert reasons == ["pause"]
    assert (effects.contents(), effects.row(task_id).context) == (["one"], '{"step":1}')


# --- among other writes


def test_report_waits_for_a_commit_that_is_left_in_the_background(node: Nodes, effects: Other) -> None:
    gate = Gate()
    registry = Registry()
    said: list[Any] = []

    def slow(connection: Any) -> Any:
        gate.pass_()
        return add("one")(connection)

    def wait_for_both() -> None:
        """Let the commit go on when the report, too, is about to be written."""
        run = next(iter(started._runs))
        until(lambda: run.writing.locked(), PATIENCE)
        until(lambda: _waiting_writers() > 0, PATIENCE, "the report to wait")
        gate.open()

    @registry.task("task")
    def task(run: Any) -> Iterator[Any]:
        background = threading.Thread(target=lambda: said.append(run.commit({"by": "commit"}, slow)))
        background.start()
        gate.wait_for()
        yield {"by": "report"}
        background.join(PATIENCE)
        yield Finished(run.stop.reason)

    started = node(registry)
    task_id = started.create_task("task")
    gate.wait_for()
    wait_for_both()

    ended = started.wait_task(task_id, PATIENCE)

    assert (ended.state, ended.context, ended.seq) == (State.FINISHED, {"by": "report"}, 3)
    assert (said, effects.contents()) == (["added one"], ["one"])


def _waiting_writers() -> int:
    """Count the worker threads that wait to begin a write."""
    frames = [frame for frame in sys._current_frames().values() if frame.f_code.co_name == "run"]
    return sum("acquire" in str(frame.f_locals.get("func")) for frame in frames)


def test_commit_left_in_the_background_ends_before_the_task_does(node: Nodes, effects: Other) -> None:
    gate = Gate()
    registry = Registry()
    said: list[Any] = []

    def slow(connection: Any) -> Any:
        gate.pass_()
        return add("one")(connection)

    @registry.task("task")
    def task() -> str:
        run = current_run()
        threading.Thread(target=lambda: said.append(run.commit({"by": "commit"}, slow))).start()
        gate.wait_for()
        return "returned"

    started = node(registry)
    task_id = started.create_task("task")
    gate.wait_for()
    until(lambda: _waiting_writers() > 0, PATIENCE, "the end to wait")
    gate.open()

    ended = started.wait_task(task_id, PATIENCE)

    assert (ended.state, ended.result, ended.context, ended.seq) == (State.FINISHED, "returned", {"by": "commit"}, 2)
    assert (said, effects.contents()) == (["added one"], ["one"])


@pytest.mark.databases("postgresql", "mariadb")  # on SQLite one work at a time holds up all other writes
def test_long_works_of_many_tasks_leave_others_room_to_report(node: Nodes, effects: Other, kind: str) -> None:
    gate = Gate()
    registry = Registry()
    committed: list[int] = []

    def work(connection: Any) -> None:
        gate.pass_()

    def sync() -> None:
        current_run().commit(1, work)
        committed.append(1)

    async def asynchronous() -> None:
        await current_run().commit(1, work)
        committed.append(1)

    registry.register_task("slow", sync if kind == "sync" else asynchronous)

    @registry.task("quick")
    async def quick(run: Any) -> AsyncIterator[Any]:
        for number in range(5):
            yield number

    started = node(registry, concurrency=20)
    ids = [started.create_task("slow") for _ in range(8)]
    gate.wait_for()

    quick_task = started.wait_task(started.create_task("quick"), PATIENCE)
    gate.open()

    assert quick_task.context == 4
    assert {started.wait_task(task_id, PATIENCE).state for task_id in ids} == {State.FINISHED}
    assert len(committed) == 8


def test_cancellation_waits_for_the_commit_under_way(node: Nodes, effects: Other) -> None:
    gate = Gate()
    registry = Registry()

    def slow(connection: Any) -> None:
        gate.pass_()
        add("one")(connection)

    @registry.task("task")
    async def task(run: Any) -> AsyncIterator[Any]:
        with anyio.move_on_after(0.01):
            await run.commit({"step": 1}, slow)
        yield Finished(await run.commit({"step": 2}, add("two")))

    started = node(registry)
    task_id = started.create_task("task")
    gate.wait_for()
    gate.open()

    ended = started.wait_task(task_id, PATIENCE)

    assert (ended.result, ended.context, ended.seq) == ("added two", {"step": 2}, 3)
    assert effects.contents() == ["one", "two"]


def test_tasks_that_commit_without_a_pause_take_turns(node: Nodes, effects: Other, kind: str) -> None:
    made: dict[Any, int] = {}
    enough = threading.Event()

    def sync() -> None:
        run = current_run()
        while not enough.is_set():
            run.commit(1, lambda connection: None)
            made[run.id] = made.get(run.id, 0) + 1

    async def asynchronous() -> None:
        run = current_run()
        while not enough.is_set():
            await run.commit(1, lambda connection: None)
            made[run.id] = made.get(run.id, 0) + 1

    registry = Registry()
    registry.register_task("task", sync if kind == "sync" else asynchronous)
    started = node(registry)

    ids = [started.create_task("task") for _ in range(5)]
    until(lambda: all(made.get(task_id, 0) >= 10 for task_id in ids), PATIENCE, "all to have had their turn")
    enough.set()

    assert {started.wait_task(task_id, PATIENCE).state for task_id in ids} == {State.FINISHED}
