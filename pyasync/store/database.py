"""The one place where a transaction begins: `Database(...).run(function, *args)`."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection, Engine, Executable, Pool, QueuePool, create_engine, event, exc
from sqlalchemy.engine import CursorResult, make_url
from sqlalchemy.engine.url import URL

from pyasync.errors import BadArgument, DatabaseUnavailable, ForkedProcess, TransactionDoomed
from pyasync.store.dialects import Dialect, dialect_for, original
from pyasync.store.places import Places
from pyasync.store.tables import Tables, tables

P = ParamSpec("P")
R = TypeVar("R")

DRIVERS = {"postgresql": "psycopg", "mysql": "pymysql", "mariadb": "pymysql", "sqlite": "pysqlite"}
"""The driver that we use on each database."""

PATIENCE = 10.0
"""Seconds for which transient errors are met by beginning again."""
FIRST_DELAY, LONGEST_DELAY = 0.01, 1.0
CONNECT_TIMEOUT = 5


class Tx:
    """A transaction as store functions see it: a connection, our tables, and what the database can do."""

    __slots__ = ("connection", "dialect", "schema", "t")

    def __init__(self, connection: Connection, dialect: Dialect, schema: str | None) -> None:
        self.connection = connection
        self.dialect = dialect
        self.schema = schema
        self.t: Tables = tables(schema)

    def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Run a statement."""
        return self.connection.execute(statement, parameters)


class Bounds(Protocol):
    """The settings that a database goes by."""

    @property
    def schema(self) -> str | None: ...  # noqa: D102
    @property
    def lease(self) -> float: ...  # noqa: D102
    @property
    def database_timeout(self) -> float: ...  # noqa: D102
    @property
    def pooled(self) -> bool: ...  # noqa: D102


class Database:
    """A system's database, reached by a pool of our own, so that our session settings never reach the host's
    transactions.
    """

    def __init__(self, database: Any, bounds: Bounds, *, connections: int = 4, survives_fork: bool = False) -> None:
        self.connections = connections
        self.engine = _own_engine(database, connections)
        self.url = self.engine.url
        self.dialect = dialect_for(self.engine.dialect.name)
        if bounds.schema and not self.dialect.has_schemas:
            raise BadArgument(f"{self.dialect.name} has no schemas: leave the setting 'schema' out")
        self.schema = bounds.schema
        self._bounds = bounds
        self._places = Places(connections)
        self._pid = os.getpid()
        self._survives_fork = survives_fork
        self._closed = False
        self._failures: dict[Connection, list[BaseException | None]] = {}  # None: here begins a savepoint
        event.listen(self.engine, "connect", self._prepare)
        event.listen(self.engine, "handle_error", self._note_failure)
        event.listen(self.engine, "savepoint", self._note_savepoint)
        event.listen(self.engine, "release_savepoint", self._note_release)
        event.listen(self.engine, "rollback_savepoint", self._forgive)
        event.listen(self.engine, "commit", self._refuse_commit)
        event.listen(self.engine, "rollback", self._note_rollback)

    def run(self, fn: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `fn(tx, ...)` in a transaction of its own and commit; transient errors begin it again for a few seconds.

        Raises DatabaseUnavailable if it could not be reached in that time.
        """
        return self.patiently(lambda: self.once(fn, *args, **kwargs))

    def once(self, fn: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `fn(tx, ...)` in a transaction of its own and commit; whatever goes wrong is the caller's."""
        with self.transaction() as tx:
            return fn(tx, *args, **kwargs)

    def single(self, fn: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `fn(tx, ...)`, each of whose statements stands alone: it saves the round trips of a transaction."""
        return self.patiently(lambda: self.attempt_single(fn, *args, **kwargs))

    def attempt_single(self, fn: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `fn(tx, ...)` as `single` does, but once; whatever goes wrong is the caller's."""
        with self.autocommit() as tx:
            return fn(tx, *args, **kwargs)

    def patiently(self, attempt: Callable[[], R]) -> R:
        """Call `attempt`; transient errors call it again for a few seconds.

        Raises DatabaseUnavailable if the database could not be reached in that time.
        """
        until, delay = time.monotonic() + PATIENCE, FIRST_DELAY
        while True:
            try:
                return attempt()
            except Exception as error:
                refused = _at_connecting(error)
                if not refused and not self.is_transient(error):
                    raise
                if time.monotonic() + delay > until or (refused and not self.is_transient(error)):
                    raise self._unavailable(error) from error
            time.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(LONGEST_DELAY, delay * 2)

    @contextmanager
    def transaction(self) -> Iterator[Tx]:
        """Begin a transaction of our own; commit it at the end, or roll back."""
        with self._connection() as connection, connection.begin():
            self.dialect.begin(connection, write=True)
            if self._bounds.pooled:
                self.dialect.localize(connection, deadline=self._bounds.database_timeout, idle=self._bounds.lease)
            yield Tx(connection, self.dialect, self.schema)

    @contextmanager
    def autocommit(self) -> Iterator[Tx]:
        """Open a connection on which each statement commits by itself."""
        with self._connection() as connection, self.dialect.autocommit(connection):
            yield Tx(connection, self.dialect, self.schema)

    @contextmanager
    def guarded(self) -> Iterator[Tx]:
        """Begin a transaction for a user's statements: one that failed, even if its error was swallowed, dooms it.

        Raises TransactionDoomed instead of committing: PostgreSQL would commit nothing without saying so, and MariaDB
        would commit half after a deadlock or a lock timeout.
        """
        with self.transaction() as tx:
            failures: list[BaseException | None] = []
            self._failures[tx.connection] = failures
            try:
                yield tx
                self.check(tx)
            except (exc.DBAPIError, exc.PendingRollbackError) as error:
                # What follows from the end of a transaction, or of its session, hides the error that can be repeated.
                for failure in self._undone(tx.connection, failures):
                    if failure is not original(error):
                        raise self._doomed(failure) from failure
                raise
            finally:
                del self._failures[tx.connection]

    def check(self, tx: Tx) -> None:
        """Raise TransactionDoomed if a statement of a guarded transaction failed, and no savepoint has undone that."""
        for failure in self._failures.get(tx.connection, ()):
            if failure is not None:
                raise self._doomed(failure)

    def bind(self, connection: Any) -> Tx:
        """Return a caller's Connection or Session as a transaction that the caller commits."""
        # A Session, or a scoped one: importing the ORM to ask would cost a lot. An async one only names what it has
        # not.
        if not isinstance(connection, Connection) and not hasattr(connection, "run_sync"):
            own = getattr(connection, "connection", None)
            connection = own() if callable(own) else connection
        if not isinstance(connection, Connection):
            raise BadArgument(
                f"connection= takes a SQLAlchemy Connection or Session, not {type(connection).__name__}; "
                "pass an AsyncConnection or AsyncSession to the verbs of pyasync.aio"
            )
        if dialect_for(connection.dialect.name).name != self.dialect.name:
            raise BadArgument(f"connection= is on {connection.dialect.name}, but this system is on {self.dialect.name}")
        return Tx(connection, self.dialect, self.schema)

    def is_transient(self, error: BaseException) -> bool:
        """Tell whether an error goes away by itself: a lost connection, a deadlock, a restart of the database."""
        if isinstance(error, TransactionDoomed):
            cause = error.__cause__
            return cause is not None and _of_driver(cause) and self.dialect.is_transient(cause)
        if isinstance(error, exc.DBAPIError):
            return error.connection_invalidated or self.dialect.is_transient(original(error))
        return isinstance(error, exc.TimeoutError) or (_of_driver(error) and self.dialect.is_transient(error))

    def is_broken(self, error: BaseException) -> bool:
        """Tell whether the database has ended the session of an error."""
        ended = isinstance(error, exc.DBAPIError) and error.connection_invalidated
        return ended and not self._refuses_writes(original(error))  # those sessions we end ourselves

    def is_full(self, error: BaseException) -> bool:
        """Tell whether the database had no room for what was written."""
        cause = error.__cause__ if isinstance(error, TransactionDoomed) else error
        return cause is not None and self.dialect.is_full(original(cause))

    def close(self) -> None:
        """Close the pool's connections, and take our listener off the dialect, which an engine of the host's shares."""
        self._closed = True
        self.engine.dispose()
        if event.contains(self.engine, "handle_error", self._note_failure):
            event.remove(self.engine, "handle_error", self._note_failure)

    def _prepare(self, dbapi: Any, record: object) -> None:
        bounds = self._bounds
        self.dialect.prepare(dbapi, deadline=bounds.database_timeout, idle=bounds.lease, pooled=bounds.pooled)

    def _note_failure(self, context: Any) -> None:
        failures = self._failures.get(context.connection)
        if failures is not None:
            failures.append(context.original_exception)
        if context.engine is self.engine and self._refuses_writes(context.original_exception):
            context.is_disconnect = True  # the next connection may lead to a server that takes writes

    def _refuses_writes(self, error: BaseException) -> bool:
        return self.dialect.is_read_only(error) or self.dialect.is_full(error)

    def _note_savepoint(self, connection: Connection, *_: object) -> None:
        if connection in self._failures:
            self._failures[connection].append(None)

    def _note_release(self, connection: Connection, *_: object) -> None:
        failures = self._failures.get(connection, [])
        if None in failures:
            del failures[_last_savepoint(failures)]

    def _forgive(self, connection: Connection, *_: object) -> None:
        """Forget what failed since the savepoint that user code goes back to; if that fails, it is noted, too."""
        failures = self._failures.get(connection, [])
        if None in failures:
            last = _last_savepoint(failures)
            failures[last:] = self._undone(connection, failures[last:])

    def _undone(self, connection: Connection, failures: list[BaseException | None]) -> list[BaseException]:
        """Return the failures that have undone the whole transaction: all of them, if its session has ended."""
        noted = [failure for failure in failures if failure is not None]
        return [failure for failure in noted if connection.invalidated or self.dialect.undoes_all(failure)]

    def _refuse_commit(self, connection: Connection) -> None:
        if connection not in self._failures:
            return
        # A commit that fails before it reaches the driver leaves the transaction open, even in the pool.
        connection.dialect.do_rollback(connection.connection)
        refusal = BadArgument("work must not commit: its writes and the report are committed together, when it returns")
        self._failures[connection].append(refusal)
        raise refusal

    def _note_rollback(self, connection: Connection) -> None:
        if connection in self._failures:
            self._failures[connection].append(BadArgument("work rolled back, and its report must not be stored alone"))

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        if self._pid != os.getpid():
            self._forked()
        with self._places, self.engine.connect() as connection:
            try:
                yield connection
            finally:
                if self._closed:  # whoever hung when we were closed: nobody closes the pool a second time
                    connection.invalidate()

    def _forked(self) -> None:
        """Refuse to share the parent's sockets; what only creates and queries opens connections of its own."""
        if not self._survives_fork:
            raise ForkedProcess
        self.engine.dispose(close=False)
        self._places, self._pid = Places(self.connections), os.getpid()

    def _unavailable(self, error: BaseException) -> DatabaseUnavailable:
        return DatabaseUnavailable(self.url.render_as_string(hide_password=True), str(original(error)).strip())

    def _doomed(self, failure: BaseException) -> TransactionDoomed:
        doomed = TransactionDoomed(str(failure).strip())
        doomed.__cause__ = failure
        return doomed


def _last_savepoint(failures: list[BaseException | None]) -> int:
    return max(index for index, failure in enumerate(failures) if failure is None)


def _at_connecting(error: BaseException) -> bool:
    """Tell whether a connection could not be made at all: those errors belong to no statement."""
    return isinstance(error, exc.OperationalError | exc.InterfaceError) and error.statement is None


def _of_driver(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in ("psycopg", "pymysql", "sqlite3")


def _own_engine(database: Any, connections: int) -> Engine:
    """Return an engine on a pool of our own, from a URL, an Engine or an AsyncEngine."""
    sync = getattr(database, "sync_engine", database)
    if isinstance(sync, Engine):
        return _engine_beside(sync, connections)
    if isinstance(database, str | URL):
        return _engine_from(make_url(database), connections)
    raise BadArgument(f"database is a URL or a SQLAlchemy engine, not {type(database).__name__}")


def _engine_beside(engine: Engine, connections: int) -> Engine:
    _refuse_memory(engine.url)
    name = dialect_for(engine.dialect.name).name
    if engine.dialect.is_async or engine.dialect.driver != DRIVERS[name]:
        return _engine_from(engine.url, connections)
    return Engine(_pool_beside(engine.pool, connections), engine.dialect, engine.url, hide_parameters=True)


def _pool_beside(pool: Any, connections: int) -> Pool:
    """Return a pool as the host's, but of our size: from a pool of one, `work` would have all that its verbs wait for.

    A host with another kind of pool has its reasons.
    """
    if not isinstance(pool, QueuePool):
        return pool.recreate()  # type: ignore[no-any-return]
    return QueuePool(
        pool._creator,
        pool_size=connections,
        max_overflow=1,
        recycle=pool._recycle,
        pre_ping=pool._pre_ping,
        reset_on_return=pool._reset_on_return,
        dialect=pool._dialect,
        _dispatch=pool.dispatch,
    )


def _engine_from(url: URL, connections: int) -> Engine:
    backend = url.get_backend_name()
    name = dialect_for(backend).name
    _refuse_memory(url)
    if name == "postgresql" and url.query and url.get_driver_name() in ("asyncpg", "pg8000"):
        raise BadArgument(
            f"the options of this {url.get_driver_name()} URL mean something else to psycopg: "
            "pass pyasync a postgresql+psycopg:// URL of its own"
        )
    ours = url.set(drivername=f"{backend}+{DRIVERS[name]}")
    arguments: dict[str, Any] = {} if name == "sqlite" else {"connect_timeout": CONNECT_TIMEOUT}
    if name == "sqlite":
        arguments["check_same_thread"] = False
    if name == "mysql":  # its own limit ends before the server has said a word; `prepare` sets those of statements
        arguments |= {"read_timeout": CONNECT_TIMEOUT, "write_timeout": CONNECT_TIMEOUT}
    if name == "mysql" and "charset" not in url.query:
        ours = ours.update_query_dict({"charset": "utf8mb4"})
    return create_engine(
        ours, pool_size=connections, max_overflow=1, pool_pre_ping=False, connect_args=arguments, hide_parameters=True
    )


def _refuse_memory(url: URL) -> None:
    if url.get_backend_name() != "sqlite":
        return
    if url.database in (None, "", ":memory:") or "mode" in url.query or str(url.database).startswith("file::memory:"):
        raise BadArgument(
            "a SQLite database in memory belongs to one connection: tasks need one that outlives it. "
            "Use a file, such as sqlite:///tasks.db"
        )
