"""`pyasync.testing`: tasks run without a database as a node would run them, and drained on a real one."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

import pyasync
from pyasync import (
    BadArgument,
    ClaimLost,
    ContextNotSerializable,
    Failed,
    Finished,
    Node,
    NoRetry,
    NotInitialized,
    Phase,
    Registry,
    Report,
    RetryLater,
    State,
    current_run,
)
from pyasync.testing import adrain, adrive, drain, drive
from tests.waiting import until


def count(run: pyasync.Run[Any]) -> Iterator[Any]:
    for i in range(run.context["i"], 4):
        yield {"i": i + 1}
    yield Finished("done")


async def count_async(run: pyasync.aio.Run[Any]) -> AsyncIterator[Any]:
    for i in range(run.context["i"], 4):
        yield {"i": i + 1}
    yield Finished("done")


class Counter:
    running = staticmethod(count)

    def deleting(self, run: pyasync.Run[Any]) -> Iterator[Any]:
        yield Report(message=f"removing {run.context['i']}")


class AsyncCounter:
    running = staticmethod(count_async)


def contexts(reports: list[Report]) -> list[Any]:
    return [report.context for report in reports if report.phase is Phase.NORMAL]


# --- the four kinds


@pytest.mark.parametrize("implementation", [count, count_async, Counter, AsyncCounter])
def test_every_report_of_a_generator_is_kept(implementation: Any) -> None:
    reports = drive(implementation, {"i": 1})

    assert reports == [Report({"i": 2}), Report({"i": 3}), Report({"i": 4}), Finished("done")]


def test_a_registered_function_is_driven_as_its_type() -> None:
    registry = Registry()
    task = registry.task("count")(count)

    assert drive(task, {"i": 3})[-1] == Finished("done")


def test_a_generator_that_ends_without_a_word_is_finished() -> None:
    def silent(run: pyasync.Run[Any]) -> Iterator[Any]:
        yield 1

    assert drive(silent) == [Report(1), Finished()]


def test_nothing_after_the_final_report_is_run() -> None:
    def twice(run: pyasync.Run[Any]) -> Iterator[Any]:
        yield Finished(1)
        raise AssertionError("resumed")

    assert drive(twice) == [Finished(1)]


@pytest.mark.parametrize(
    ("arguments", "result"),
    [(None, []), ([1, 2], [1, 2]), ((1, 2), [1, 2]), ("word", ["word"]), ({"b": 2, "a": 1}, [1, 2])],
)
def test_a_plain_function_is_called_with_the_arguments(arguments: Any, result: Any) -> None:
    def plain(a: Any = None, b: Any = None) -> Any:
        return [value for value in (a, b) if value is not None]

    assert drive(plain, arguments) == [Finished(result)]


def test_an_async_plain_function_is_awaited() -> None:
    async def plain(a: int) -> int:
        return a + 1

    assert drive(plain, [1]) == [Finished(2)]


def test_a_list_of_handlers_goes_on_at_the_one_that_its_checkpoint_names() -> None:
    handlers = [lambda start: start + 1, lambda number: number * 10, str]

    first = drive(handlers, 1, stop_after=1)
    rest = drive(handlers, 1, context=first[-1].context)

    assert first == [Report({"next": 1, "outputs": [2]}, progress=1 / 3)]
    assert rest[-1] == Finished("20", {"next": 3, "outputs": [2, 20, "20"]})


def test_a_clean_up_is_driven_on_demand() -> None:
    assert drive(Counter, {"i": 7}, deleting=True) == [Report(message="removing 7"), Finished()]


def test_a_type_without_clean_up_says_so() -> None:
    with pytest.raises(BadArgument, match="count has no clean-up"):
        drive(count, {"i": 0}, deleting=True)


# --- what the run is told


def test_the_run_knows_what_it_was_given() -> None:
    def asks(run: pyasync.Run[Any]) -> Iterator[Any]:
        yield [run.user, run.group, run.headers, run.resources, run.attempt, run.epoch, run.resumed, run.arguments]

    reports = drive(asks, 5, user="ada", group="g", headers={"h": 1}, resources="r")

    assert reports[0].context == ["ada", "g", {"h": 1}, "r", 1, 1, False, 5]


def test_code_below_the_task_finds_its_run_and_code_after_it_none() -> None:
    def below() -> str:
        return str(current_run().user)

    assert drive(below, user="ada") == [Finished("ada")]
    with pytest.raises(NotInitialized):
        current_run()


@dataclass
class Count:
    i: int = 0


def test_contexts_of_a_type_s_own_come_back_as_such() -> None:
    def typed(run: pyasync.Run[Count]) -> Iterator[Any]:
        run.context.i += 1
        yield run.context
        run.context.i += 1
        yield run.context

    assert contexts(drive(typed, {"i": 3}, context_type=Count)) == [Count(4), Count(5)]
    assert contexts(drive(typed, context=Count(7), arguments={}, context_type=Count)) == [Count(8), Count(9)]


def test_a_report_shows_its_context_as_it_was_then() -> None:
    def changing(run: pyasync.Run[Any]) -> Iterator[Any]:
        context = {"seen": (1,)}
        yield context
        context["seen"] = (1, 2)
        yield context

    assert contexts(drive(changing)) == [{"seen": [1]}, {"seen": [1, 2]}]


# --- stopping


def test_a_run_is_stopped_at_a_report_and_goes_on_from_it() -> None:
    stopped = drive(count, {"i": 0}, stop_after=2)
    resumed = drive(count, {"i": 0}, context=stopped[-1].context)

    assert contexts(stopped) == [{"i": 1}, {"i": 2}]
    assert resumed == [Report({"i": 3}), Report({"i": 4}), Finished("done")]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_stopped_generator_is_closed_and_not_resumed(kind: str) -> None:
    seen = []

    def sync(run: pyasync.Run[Any]) -> Iterator[Any]:
        try:
            yield 1
            seen.append("resumed")
        finally:
            seen.append(str(run.stop.reason))

    async def not_sync(run: pyasync.aio.Run[Any]) -> AsyncIterator[Any]:
        try:
            yield 1
            seen.append("resumed")
        finally:
            seen.append(str(run.stop.reason))

    assert drive(sync if kind == "sync" else not_sync, stop_after=1) == [Report(1)]
    assert seen == ["pause"]


def test_a_run_that_was_asked_before_it_began_may_have_a_last_word() -> None:
    def polite(run: pyasync.Run[Any]) -> Iterator[Any]:
        while not run.stop.is_set():
            yield 1
        yield Report(2, message="stopping")

    assert drive(polite, stop_after=0) == [Report(2, message="stopping")]


def test_an_async_run_can_await_its_stop() -> None:
    async def waits(run: pyasync.aio.Run[Any]) -> AsyncIterator[Any]:
        await run.stop
        yield 1

    assert drive(waits, stop_after=0) == [Report(1)]


def test_a_plain_function_that_returns_is_finished_whatever_its_stop() -> None:
    assert drive(lambda: 3, stop_after=0) == [Finished(3)]


@pytest.mark.parametrize("number", [-1, True, 1.5])
def test_a_stop_is_after_a_number_of_reports(number: Any) -> None:
    with pytest.raises(BadArgument, match="stop_after"):
        drive(count, {"i": 0}, stop_after=number)


# --- failing


def test_what_a_task_raises_is_raised() -> None:
    def breaks(run: pyasync.Run[Any]) -> Iterator[Any]:
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        drive(breaks)


def test_a_task_that_wants_to_come_back_later_says_when() -> None:
    def later() -> None:
        raise RetryLater(30)

    with pytest.raises(RetryLater) as raised:
        drive(later)

    assert raised.value.delay == 30


def test_failed_and_no_retry_are_ends() -> None:
    def gives_up(run: pyasync.Run[Any]) -> Iterator[Any]:
        yield 1
        raise NoRetry("no such file")

    def fails(run: pyasync.Run[Any]) -> Iterator[Any]:
        yield Failed("no such file")

    assert drive(gives_up) == [Report(1), Failed("no such file")]
    assert drive(fails) == [Failed("no such file")]


@pytest.mark.parametrize(
    ("report", "error"),
    [
        ({1, 2}, ContextNotSerializable),
        (Report(1, progress=1.5), BadArgument),
        (Finished(float("nan")), ContextNotSerializable),
    ],
)
def test_what_a_node_cannot_store_is_refused(report: Any, error: type[Exception]) -> None:
    def yields(run: pyasync.Run[Any]) -> Iterator[Any]:
        yield report

    with pytest.raises(error):
        drive(yields)


def test_arguments_are_json() -> None:
    with pytest.raises(ContextNotSerializable):
        drive(count, {"i": object()})


# --- run.commit


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    engine = create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE note (content TEXT)"))
    yield engine
    engine.dispose()


def write(content: str) -> Any:
    def work(connection: Connection) -> int:
        connection.execute(text("INSERT INTO note VALUES (:content)"), {"content": content})
        return len(content)

    return work


def notes(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT content FROM note")))


def commits(run: pyasync.Run[Any]) -> Iterator[Any]:
    assert run.commit({"i": 1}, write("one")) == 3
    yield {"i": 2}
    run.commit(Finished("done"), write("two"))


async def commits_async(run: pyasync.aio.Run[Any]) -> AsyncIterator[Any]:
    assert await run.commit({"i": 1}, write("one")) == 3
    yield {"i": 2}
    await run.commit(Finished("done"), write("two"))


@pytest.mark.parametrize("implementation", [commits, commits_async])
def test_effects_and_reports_are_committed(implementation: Any, engine: Engine) -> None:
    reports = drive(implementation, connection=engine)

    assert reports == [Report({"i": 1}), Report({"i": 2}), Finished("done")]
    assert notes(engine) == ["one", "two"]


@pytest.mark.parametrize("implementation", [commits, commits_async])
def test_a_stop_during_a_commit_takes_effect_at_the_next_yield(implementation: Any, engine: Engine) -> None:
    assert drive(implementation, stop_after=1, connection=engine) == [Report({"i": 1}), Report({"i": 2})]
    assert notes(engine) == ["one"]


def test_work_that_fails_leaves_neither_effect_nor_report(engine: Engine) -> None:
    kept = []

    def fails(run: pyasync.Run[Any]) -> Iterator[Any]:
        def work(connection: Connection) -> None:
            write("one")(connection)
            raise ZeroDivisionError

        try:
            run.commit(1, work)
        except ZeroDivisionError:
            kept.append("raised")
        yield 2

    assert drive(fails, connection=engine) == [Report(2), Finished()]
    assert notes(engine) == []
    assert kept == ["raised"]


def test_nothing_can_be_committed_after_the_end(engine: Engine) -> None:
    def twice(run: pyasync.Run[Any]) -> Iterator[Any]:
        run.commit(Finished(1), write("one"))
        run.commit(Finished(2), write("two"))
        yield

    with pytest.raises(ClaimLost):
        drive(twice, connection=engine)

    assert notes(engine) == ["one"]


def test_a_connection_s_transaction_is_the_caller_s(engine: Engine) -> None:
    with engine.connect() as connection:
        drive(commits, connection=connection)
        connection.rollback()

    assert notes(engine) == []


def test_a_session_s_transaction_is_the_caller_s(engine: Engine) -> None:
    with Session(engine) as session:
        drive(commits, connection=session)
        session.rollback()

    assert notes(engine) == []


def test_a_commit_without_a_database_says_what_to_pass() -> None:
    with pytest.raises(BadArgument, match=r"connection=engine"):
        drive(commits)


def test_a_commit_takes_no_url_and_no_async_engine(sqlite_url: str) -> None:
    with pytest.raises(BadArgument, match="not str"):
        drive(commits, connection=sqlite_url)
    with pytest.raises(BadArgument, match="not AsyncEngine"):
        drive(commits, connection=create_async_engine(sqlite_url.replace("sqlite", "sqlite+aiosqlite")))


# --- loops


@pytest.mark.anyio
async def test_in_async_code_a_task_is_driven_on_the_caller_s_loop() -> None:
    async def where() -> int:
        return threading.get_ident()

    assert await adrive(where) == [Finished(threading.get_ident())]
    assert await adrive(count, {"i": 3}) == [Report({"i": 4}), Finished("done")]


@pytest.mark.anyio
async def test_the_blocking_one_names_its_twin() -> None:
    with pytest.raises(BadArgument, match="adrive"):
        drive(count_async, {"i": 0})


# --- drain


@contextmanager
def running(url: str) -> Iterator[Node]:
    registry = Registry()
    registry.register_task("add", lambda a, b: a + b)
    registry.register_task("breaks", lambda: 1 / 0)
    registry.register_task("later", lambda: 1 / 0, retry=[3600])
    with Node(url, registry, migrate="auto") as node:
        registry.register_task("parent", lambda: str(node.create_task("add", [1, 1])))
        yield node


@pytest.fixture
def node(sqlite_url: str) -> Iterator[Node]:
    with running(sqlite_url) as node:
        yield node


def test_all_that_is_pending_is_run_and_counted(url: str) -> None:
    with running(url) as node:
        ids = [node.create_task("add", [number, 1]) for number in range(5)]
        broken = node.create_task("breaks")

        assert drain(node) == 6
        assert [node.result(id) for id in ids] == [1, 2, 3, 4, 5]
        assert node.get_task(broken).state is State.FAILED


def test_what_tasks_create_is_run_too(node: Node) -> None:
    task = node.create_task("parent")

    assert drain(node) == 2
    assert node.result(node.result(task)) == 2


def test_what_waits_for_its_time_is_left_waiting(node: Node) -> None:
    due = node.create_task("add", [1, 1], delay=3600)
    retried = node.create_task("later")

    assert drain(node) == 0
    assert [node.get_task(id).state for id in (due, retried)] == [State.PENDING, State.PENDING]
    assert node.get_task(retried).attempt == 2


def test_a_drain_counts_what_earlier_ones_have_not(node: Node) -> None:
    failed = node.create_task("breaks")
    assert drain(node) == 1

    node.run_task(failed)
    node.create_task("add", [1, 1])

    assert drain(node) == 2


def test_what_ended_before_the_drain_began_counts(node: Node) -> None:
    node.result(node.create_task("add", [1, 1]))

    assert drain(node) == 1


def test_a_task_that_is_made_due_is_run(node: Node) -> None:
    task = node.create_task("add", [1, 1], delay=3600)
    node.run_task(task, now=True)

    assert drain(node) == 1


def test_tasks_of_unknown_types_are_left_alone(node: Node, sqlite_url: str) -> None:
    with pyasync.Client(sqlite_url, strict=False) as client:
        client.create_task("unknown")

    assert drain(node) == 0


def test_deletions_are_run(node: Node) -> None:
    task = node.create_task("add", [1, 1])
    assert drain(node) == 1

    node.delete_task(task)

    assert drain(node) == 0
    assert node.get_tasks(include_deleting=True) == []


def test_a_drain_that_takes_too_long_says_why(node: Node) -> None:
    release = threading.Event()
    node.registry.register_task("hangs", lambda: release.wait(30))
    task = node.create_task("hangs")
    until(lambda: node.get_task(task).state is State.RUNNING)

    with pytest.raises(TimeoutError, match=r"still not drained after 0\.3 s; task .* of type 'hangs': It runs on node"):
        drain(node, timeout=0.3)

    release.set()


def test_a_database_is_drained_by_a_node_of_its_own(sqlite_url: str) -> None:
    registry = Registry()
    registry.register_task("add", lambda a, b: a + b)
    with pyasync.Client(sqlite_url, strict=False) as client:
        task = client.create_task("add", [1, 2])

        assert drain(sqlite_url, registry=registry) == 1
        assert client.result(task) == 3


@pytest.mark.anyio
async def test_in_async_code_a_node_is_drained_on_the_caller_s_loop(sqlite_url: str) -> None:
    registry = Registry()

    @registry.task("add")
    async def add(a: int, b: int) -> int:
        return a + b

    async with Node(sqlite_url, registry) as node:
        client = pyasync.AsyncClient(node)
        task = await client.create_task("add", [1, 2])

        assert await adrain(node) == 1
        assert await client.result(task) == 3
