"""Errors of the database inside of `work`, swallowed or not: nothing is half stored, and nothing is acknowledged that
is not stored.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine, exc, make_url, text
from sqlalchemy.orm import Session

from pyasync import BadArgument, ClaimLost, Finished, Registry, State, TransactionDoomed
from pyasync.runtime import commits
from tests.faults.errors import FULL
from tests.faults.proxy import Proxy
from tests.runtime.conftest import Nodes
from tests.runtime.gate import PATIENCE, Gate
from tests.runtime.other import Other
from tests.waiting import until

TIMEOUT = 2.0
"""Of the database's calls. Waits for locks may take half of it."""


@pytest.fixture
def other(node: Nodes, url: str) -> Other:
    """Another program, in a database that has our tables and one for effects."""
    node(Registry()).stop()
    other = Other(url)
    other.create_table()
    return other


def add(connection: Any, content: str) -> None:
    connection.execute(text("insert into effect values (:content)"), {"content": content})


def touch(connection: Any, content: str) -> None:
    connection.execute(text("update effect set content = content where content = :content"), {"content": content})


def effects(other: Other) -> list[str]:
    return [content for content in other.contents() if content not in ("left", "right")]


# --- how `work` may meet an error and go on


def by_connection(connection: Any, strike: Callable[[Any], None]) -> None:
    with suppress(exc.DBAPIError):
        strike(connection)


def by_session(connection: Any, strike: Callable[[Any], None]) -> None:
    with suppress(exc.DBAPIError), Session(connection) as session:
        strike(session)


def in_savepoint(connection: Any, strike: Callable[[Any], None]) -> None:
    with suppress(exc.DBAPIError), connection.begin_nested():
        strike(connection)


def in_savepoint_of_a_session(connection: Any, strike: Callable[[Any], None]) -> None:
    with Session(connection) as session:
        with suppress(exc.DBAPIError), session.begin_nested():
            strike(session)
        session.commit()


def out_of_a_savepoint(connection: Any, strike: Callable[[Any], None]) -> None:
    """Let out what going back to the savepoint says."""
    with connection.begin_nested():
        strike(connection)


def inside_of_a_savepoint(connection: Any, strike: Callable[[Any], None]) -> None:
    """Swallow it within, so that the savepoint is released and not gone back to."""
    with suppress(exc.DBAPIError), connection.begin_nested(), suppress(exc.DBAPIError):
        strike(connection)


OPEN = (by_connection, by_session, inside_of_a_savepoint)
UNDONE = (in_savepoint, in_savepoint_of_a_session)
"""What has failed is undone, and what was done before is not."""


class Swallowing:
    """Runs works that add a row, meet an error, swallow it in some way, and add another row."""

    def __init__(self, nodes: Nodes, other: Other, strike: Callable[[Any], None], timeout: float = 10.0) -> None:
        self._other, self._strike = other, strike
        self.codes: set[str] = set()
        self._how = by_connection
        self._calls = 0
        registry = Registry()
        registry.register_task("task", self._task)
        self._node = nodes(registry, database_timeout=timeout)

    def run(self, how: Callable[..., None]) -> tuple[Any, list[str], Any]:
        """Return what the commit returned or raised, what is stored, and the task's context."""
        self._how, self._calls = how, 0
        task = self._node.wait_task(self._node.create_task("task", "start"), PATIENCE)
        assert task.state is State.FINISHED, task.error
        found = effects(self._other)
        with self._other.begin() as connection:
            for content in found:  # by its key: nobody's lock is in the way
                connection.execute(text("delete from effect where content = :content"), {"content": content})
        return task.result, found, task.context

    def _task(self, run: Any) -> Iterator[Any]:
        try:
            said = run.commit("committed", self._work)
        except Exception as error:
            said = type(error).__name__
        yield Finished(said)

    def _work(self, connection: Any) -> str:
        self._calls += 1
        if self._calls > 1:
            add(connection, "again")
            return "again"
        add(connection, "half")
        self._how(connection, self._noted)
        with suppress(exc.DBAPIError):  # on PostgreSQL, nothing more can be done
            add(connection, "rest")
        return "all is well"

    def _noted(self, connection: Any) -> None:
        try:
            self._strike(connection)
        except exc.DBAPIError as error:
            self.codes.add(_code(error))
            raise
        raise AssertionError("it did not fail")


def _code(error: exc.DBAPIError) -> Any:
    number = error.orig.args[0] if error.orig else None
    return number if isinstance(number, int) else getattr(error.orig, "sqlstate", None)


STORED = ("all is well", ["half", "rest"], "committed")
REPEATED = ("again", ["again"], "committed")
REFUSED = ("TransactionDoomed", [], "start")


@pytest.mark.parametrize("statement", ["insert into effect values ('left')", "select * from nowhere"])
def test_statement_that_fails_for_good_dooms_its_transaction_unless_it_is_undone(
    node: Nodes, other: Other, statement: str
) -> None:
    """F16: a unique violation, and a bad statement."""
    with other.begin() as connection:
        add(connection, "left")
    swallowing = Swallowing(node, other, lambda connection: connection.execute(text(statement)))

    said = {how.__name__: swallowing.run(how) for how in (*OPEN, *UNDONE)}

    assert said == {how.__name__: REFUSED for how in OPEN} | {how.__name__: STORED for how in UNDONE}
    assert len(swallowing.codes) == 1, "it failed in one way each time"


@contextmanager
def _held(other: Other) -> Iterator[None]:
    """Hold a row's lock."""
    with other.begin() as connection:
        add(connection, "right")
    with other.engine.connect() as connection:
        touch(connection, "right")
        yield
        connection.rollback()


@pytest.mark.databases("postgresql", "mariadb")  # SQLite locks no rows
def test_lock_that_was_waited_for_in_vain_has_work_repeated_unless_it_is_undone(node: Nodes, other: Other) -> None:
    """F15: 1205 undoes one statement and would let COMMIT store the rest; 55P03."""
    swallowing = Swallowing(node, other, lambda connection: touch(connection, "right"), TIMEOUT)

    with _held(other):
        said = {how.__name__: swallowing.run(how) for how in (*OPEN, *UNDONE)}

    assert said == {how.__name__: REPEATED for how in OPEN} | {how.__name__: STORED for how in UNDONE}
    assert swallowing.codes <= {1205, "55P03"}
    assert swallowing.codes


class Contender:
    """Waits for a row that `work` has locked, holding the one that `work` wants next; never the victim itself."""

    def __init__(self, admin_url: str) -> None:
        self._engine = create_engine(admin_url, poolclass=NullPool)
        self._waits: threading.Thread | None = None

    def strike(self, connection: Any) -> None:
        """Run into a deadlock."""
        holds = threading.Event()
        touch(connection, "left")
        self._waits = threading.Thread(target=self._contend, args=(holds,), daemon=True)
        self._waits.start()
        assert holds.wait(PATIENCE)
        touch(connection, "right")

    def _contend(self, holds: threading.Event) -> None:
        with suppress(LookupError), self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql(
                    "set local deadlock_timeout = '1h'"
                )  # who looks for a deadlock is its victim
            for number in range(50):  # MariaDB's victim is who has done less
                add(connection, f"theirs {number}")
            touch(connection, "right")
            holds.set()
            touch(connection, "left")
            raise LookupError

    def end(self) -> None:
        """Wait until it has let go of all."""
        assert self._waits is not None
        self._waits.join(PATIENCE)


@pytest.mark.databases("postgresql", "mariadb")  # SQLite has one writer, and so no deadlocks
def test_deadlock_has_work_repeated_unless_it_can_be_undone(node: Nodes, other: Other, admin_url: str) -> None:
    """F13, F14: 1213 undoes the whole transaction, savepoints too, and would let COMMIT store what comes later."""
    with other.begin() as connection:
        add(connection, "left")
        add(connection, "right")
    contender = Contender(admin_url)
    swallowing = Swallowing(node, other, contender.strike)
    said = {}

    for how in (*OPEN, *UNDONE, out_of_a_savepoint):
        said[how.__name__] = swallowing.run(how)
        contender.end()

    undone = STORED if other.engine.dialect.name == "postgresql" else REPEATED
    assert said.pop("out_of_a_savepoint") == REPEATED
    assert said == {how.__name__: REPEATED for how in OPEN} | {how.__name__: undone for how in UNDONE}
    assert swallowing.codes <= {1213, "40P01"}
    assert swallowing.codes


# --- errors that should go away by themselves, and do not


class Trying:
    """A task that commits one work, and what that returned or raised."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.calls = 0
        self.said: list[Any] = []
        self._work = work
        self.registry = Registry()
        self.registry.register_task("task", self._task)

    def _task(self, run: Any) -> Iterator[Any]:
        try:
            self.said.append(run.commit("committed", self._counted))
        except Exception as error:
            self.said.append(error)
            raise
        yield

    def _counted(self, connection: Any) -> Any:
        self.calls += 1
        add(connection, f"call {self.calls}")
        return self._work(connection)


ENDS_ITS_SESSION = {
    "postgresql": "select pg_terminate_backend(pg_backend_pid())",
    "mysql": "kill connection connection_id()",
}


@pytest.mark.databases("postgresql", "mariadb")  # a file ends no session
def test_session_that_ends_has_work_repeated_however_that_is_hidden(node: Nodes, other: Other) -> None:
    end = text(ENDS_ITS_SESSION[other.engine.dialect.name])
    swallowing = Swallowing(node, other, lambda connection: connection.execute(end))

    said = {how.__name__: swallowing.run(how) for how in (*OPEN, *UNDONE)}

    assert said == {how.__name__: REPEATED for how in (*OPEN, *UNDONE)}


def test_disk_that_is_full_is_waited_out_though_beats_find_room(
    node: Nodes, other: Other, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(commits, "PATIENCE", 0.0)
    full = FULL[make_url(url).get_backend_name()]

    def grow(connection: Any) -> str:
        if trying.calls <= 2 * commits.TRIES:
            full.make(connection.connection.driver_connection)
        return "done"

    trying = Trying(grow)
    started = node(trying.registry, lease=1.0)

    task = started.wait_task(started.create_task("task", "start"), PATIENCE)

    assert (task.state, task.context, task.attempt) == (State.FINISHED, "committed", 1)
    assert (trying.said, trying.calls) == (["done"], 2 * commits.TRIES + 1)
    assert effects(other) == [f"call {trying.calls}"]
    (told,) = [record for record in caplog.records if "no room" in record.message]
    assert (told.levelname, told.task_id) == ("ERROR", str(task.id))


@pytest.mark.databases("postgresql", "mariadb")  # a file ends no session
def test_work_that_idles_for_longer_than_a_lease_is_given_up_with_the_reason(
    node: Nodes, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F22: 25P03, and MariaDB's end of the session."""
    monkeypatch.setattr(commits, "PATIENCE", 1.0)
    never = threading.Event()

    def idle(connection: Any) -> None:
        never.wait(2.5)
        add(connection, "late")

    trying = Trying(idle)
    started = node(trying.registry, lease=1.5)

    task = started.wait_task(started.create_task("task", "start"), PATIENCE)

    assert (task.state, task.context, trying.calls) == (State.FAILED, "start", commits.TRIES)
    assert isinstance(trying.said[0], BadArgument)
    assert "lease (1.5 s)" in task.error
    assert effects(other) == []


@pytest.mark.databases("postgresql", "mariadb")
def test_lock_that_nobody_lets_go_of_is_given_up_with_the_databases_error(
    node: Nodes, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F22: 55P03, 1205."""
    monkeypatch.setattr(commits, "PATIENCE", 1.0)
    trying = Trying(lambda connection: touch(connection, "right"))
    started = node(trying.registry, database_timeout=TIMEOUT)

    with _held(other):
        task = started.wait_task(started.create_task("task", "start"), PATIENCE)

    assert (task.state, task.context, trying.calls) == (State.FAILED, "start", commits.TRIES)
    assert isinstance(trying.said[0], exc.DBAPIError)
    assert effects(other) == []


@pytest.mark.databases("postgresql", "mariadb")
def test_outages_in_the_middle_of_work_are_waited_out_however_many(
    node: Nodes, other: Other, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "PATIENCE", 0.0)
    outages = 2 * commits.TRIES

    with Proxy(url) as proxy:

        def fall(connection: Any) -> str:
            if trying.calls <= outages:
                proxy.cut()
                threading.Timer(0.5, proxy.mend).start()
            connection.execute(text("select 1"))
            return "done"

        trying = Trying(fall)
        started = node(trying.registry, url=proxy.url)

        task = started.wait_task(started.create_task("task", "start"), PATIENCE)

        node.stop()
    assert (task.state, task.context, task.attempt) == (State.FINISHED, "committed", 1)
    assert (trying.said, trying.calls, effects(other)) == (["done"], outages + 1, [f"call {outages + 1}"])


# --- claims that were lost before


@pytest.mark.parametrize("swallowed", [False, True])
def test_work_that_runs_into_what_its_heir_has_stored_is_told_that_its_claim_is_lost(
    node: Nodes, other: Other, swallowed: bool
) -> None:
    """F2: what a stopped node sees first is the error of its own statement."""
    gate = Gate()
    said: list[Any] = []
    registry = Registry()

    def work(connection: Any) -> None:
        with suppress(exc.IntegrityError if swallowed else ()):
            add(connection, "step 1")

    @registry.task("task")
    def task(run: Any) -> Iterator[Any]:
        gate.pass_()
        try:
            run.commit("zombie", work)
        except Exception as error:
            said.append((type(error), run.stop.reason))
            raise
        yield

    started = node(registry, lease=60.0)  # no beat: it is the commit that finds out
    task_id = started.create_task("task", "start")
    gate.wait_for()
    other.take_over(task_id)
    with other.begin() as connection:
        add(connection, "step 1")
    before = other.row(task_id)

    gate.open()

    until(lambda: said and len(started._runs) == 0, PATIENCE, "the run to end")
    assert said == [(ClaimLost, "lost")]
    assert (other.row(task_id), effects(other)) == (before, ["step 1"])


@pytest.mark.parametrize("swallowed", [False, True])
def test_error_of_work_whose_claim_stands_is_its_own(node: Nodes, other: Other, swallowed: bool) -> None:
    with other.begin() as connection:
        add(connection, "left")

    def work(connection: Any) -> None:
        with suppress(exc.IntegrityError if swallowed else ()):
            add(connection, "left")

    trying = Trying(work)
    started = node(trying.registry)

    task = started.wait_task(started.create_task("task", "start"), PATIENCE)

    assert (task.state, trying.calls, effects(other)) == (State.FAILED, 1, [])
    assert isinstance(trying.said[0], TransactionDoomed if swallowed else exc.IntegrityError)
