"""Everything that differs between databases, asked as a capability and never as a name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Table, exc
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from pyasync.errors import BadArgument
from pyasync.store.types import Utc

_NOW = {
    "postgresql": "statement_timestamp()",
    "mysql": "utc_timestamp(6)",
    "mariadb": "utc_timestamp(6)",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now')",  # six digits, as in what we bind: compared as text
}
_AFTER = {
    "postgresql": "statement_timestamp() + make_interval(secs => {})",
    "mysql": "timestampadd(microsecond, 1000000 * ({}), utc_timestamp(6))",
    "mariadb": "timestampadd(microsecond, 1000000 * ({}), utc_timestamp(6))",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now', ({}) || ' seconds')",
}

FEW = 10
"""Rows of a batch for which a statement of its own is worth while."""

_MIGRATION = 3600.0  # seconds: what a change of a large table, or the wait for another process's, may take
_MIGRATION_IDLE = 60  # seconds after which a process that hangs in the middle of one loses its session
_MIGRATION_BLOCKS = 15  # seconds: while a change waits for a table, everybody else waits behind it
_MIGRATION_KEY = int.from_bytes(b"pyasync")


class now(FunctionElement[Any]):
    """The database's time at the start of the statement."""

    type = Utc()
    inherit_cache = True


class after(FunctionElement[Any]):
    """The database's time so many seconds from now; null for null seconds."""

    type = Utc()
    inherit_cache = True

    def __init__(self, seconds: ColumnElement[Any]) -> None:
        super().__init__(seconds)


@compiles(now)
def _now(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return _NOW[compiler.dialect.name]


@compiles(after)
def _after(element: after, compiler: SQLCompiler, **options: Any) -> str:
    return _AFTER[compiler.dialect.name].format(compiler.process(element.clauses.clauses[0], **options))


@dataclass(frozen=True)
class Batch:
    """A guarded write of many rows at once, which skips rows that somebody else has locked.

    `columns` are what each row brings, by kind (id, text, int or real); `assign` is column by expression, or None to
    delete. Expressions name the rows' values as `v.name`, the row that is written as `task.name`, and the stage and
    mark that it had as `was.stage` and `was.mark`; `{now}` and `{after:x}` are the database's time.
    """

    table: Table
    columns: Mapping[str, str]
    guard: str
    assign: Mapping[str, str] | None
    wanted: tuple[str, ...] = ("stage", "mark")
    rendered: dict[str, Any] = field(default_factory=dict, compare=False)


Row = dict[str, Any]


class Dialect:
    """What one kind of database can do. The methods never begin or commit."""

    name: str
    kinds: Mapping[str, str]
    skips_locked = True
    """Has `FOR UPDATE SKIP LOCKED`; else one transaction writes at a time, and there is nothing to lock."""
    has_schemas = True
    notifies = False
    """Can wake up sessions of other processes."""
    embedded = False
    """Is a file that nobody else administers."""
    has_arrays = False
    """Takes a list, or many rows, as one parameter."""
    returns_joined = False
    """An UPDATE can return columns of what it was joined with."""

    def begin(self, connection: Connection, *, write: bool) -> None:
        """Begin a transaction; one that writes takes the write lock at once where there is only one."""

    def autocommit(self, connection: Connection) -> AbstractContextManager[None]:
        """Let each statement commit by itself, where that saves round trips; else at the end."""
        return connection.begin()  # type: ignore[return-value]

    def prepare(self, dbapi: Any, *, deadline: float, idle: float, pooled: bool) -> None:
        """Set up a new connection of our own: isolation, and limits that no hung peer can stretch."""

    def localize(self, connection: Connection, *, deadline: float, idle: float) -> None:
        """Set the same limits for one transaction only, behind a pooler that shares sessions."""

    def lock_migration(self, connection: Connection, schema: str | None) -> None:
        """Let one process at a time change the tables, with more patience; the lock is held until the session ends."""

    def is_transient(self, error: BaseException) -> bool:
        """Tell by its code whether an error of the driver goes away by itself."""
        raise NotImplementedError

    def undoes_all(self, error: BaseException) -> bool:
        """Tell whether an error has undone its whole transaction, and left the session to begin another one."""
        return False

    def is_read_only(self, error: BaseException) -> bool:
        """Tell whether the database takes no writes: it has become a standby, say."""
        return False

    def is_full(self, error: BaseException) -> bool:
        """Tell whether the database has no room for what was written."""
        raise NotImplementedError

    def write(self, connection: Connection, batch: Batch, rows: Sequence[Row]) -> list[tuple[UUID, Row]]:
        """Run a batch; return the ids of the rows that were written, with the columns `batch.wanted`."""
        raise NotImplementedError

    def _rendered(self, connection: Connection, batch: Batch) -> Any:
        table = connection.dialect.identifier_preparer.format_table(batch.table)
        return batch.rendered.setdefault(self.name, self._render(batch, table))

    def _render(self, batch: Batch, table: str) -> Any:
        raise NotImplementedError

    def sql(self, batch: Batch, expression: str, was: str = "task") -> str:
        """Render an expression of a batch."""
        while "{after:" in expression:
            head, _, rest = expression.partition("{after:")
            seconds, _, tail = rest.partition("}")
            expression = head + _AFTER[self.name].format(seconds) + tail
        expression = expression.replace("{now}", _NOW[self.name])
        return expression.replace("was.stage", f"{was}.stage").replace("was.mark", f"{was}.mark")


class PostgreSQL(Dialect):
    """PostgreSQL 13 and later, through psycopg 3 (a caller's connection: any driver)."""

    name = "postgresql"
    kinds = {"id": "uuid", "text": "text", "int": "bigint", "real": "double precision"}
    notifies = True
    has_arrays = True
    returns_joined = True

    @contextmanager
    def autocommit(self, connection: Connection) -> Iterator[None]:
        dbapi: Any = connection.connection.driver_connection
        dbapi.autocommit = True
        try:
            yield
        finally:
            if not dbapi.closed:
                dbapi.autocommit = False

    _transient = ("08", "53", "40001", "40P01", "55P03", "57P", "25006", "25P03", "57P05")

    def prepare(self, dbapi: Any, *, deadline: float, idle: float, pooled: bool) -> None:
        from psycopg import IsolationLevel

        dbapi.isolation_level = IsolationLevel.READ_COMMITTED
        dbapi.wait = partial(_bounded_wait, dbapi, deadline)
        if pooled:
            dbapi.prepare_threshold = None
            return
        was, dbapi.autocommit = dbapi.autocommit, True
        dbapi.execute(f"set idle_in_transaction_session_timeout = {int(idle * 1000)}")
        dbapi.execute(f"set lock_timeout = {int(deadline * 500)}")
        dbapi.execute(f"set statement_timeout = {int(deadline * 1000)}")
        dbapi.execute("set default_transaction_isolation = 'read committed'")
        dbapi.autocommit = was

    def localize(self, connection: Connection, *, deadline: float, idle: float) -> None:
        connection.exec_driver_sql(f"set local idle_in_transaction_session_timeout = {int(idle * 1000)}")
        connection.exec_driver_sql(f"set local lock_timeout = {int(deadline * 500)}")
        connection.exec_driver_sql(f"set local statement_timeout = {int(deadline * 1000)}")

    def lock_migration(self, connection: Connection, schema: str | None) -> None:
        dbapi: Any = connection.connection.dbapi_connection
        dbapi.wait = partial(_bounded_wait, dbapi, _MIGRATION)
        self.localize(connection, deadline=_MIGRATION, idle=_MIGRATION_IDLE)
        # Of the transaction, not of the session: a pooler may give the session to others.
        connection.exec_driver_sql(f"select pg_advisory_xact_lock({_MIGRATION_KEY})")
        connection.exec_driver_sql(f"set local lock_timeout = {_MIGRATION_BLOCKS * 1000}")

    def is_transient(self, error: BaseException) -> bool:
        code = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        if code is None:  # the connection was lost: drivers then have no code to give
            return type(error).__name__ in ("OperationalError", "InterfaceError", "ConnectionTimeout", "AdminShutdown")
        return str(code).startswith(self._transient)

    def is_read_only(self, error: BaseException) -> bool:
        return getattr(error, "sqlstate", None) == "25006"

    def is_full(self, error: BaseException) -> bool:
        return getattr(error, "sqlstate", None) == "53100"

    def write(self, connection: Connection, batch: Batch, rows: Sequence[Row]) -> list[tuple[UUID, Row]]:
        few, many = batch.rendered.get(self.name) or self._rendered(connection, batch)
        found = connection.exec_driver_sql(few if len(rows) <= FEW else many, (document(rows),))
        return [(row[0], dict(zip(batch.wanted, row[1:], strict=True))) for row in found]

    def _render(self, batch: Batch, table: str) -> tuple[str, str]:
        """Render for few rows and for many: the planner takes any document for one of a hundred, and may prefer to
        read the whole table for so many.
        """
        return self._limited(batch, table, f"limit {FEW}"), self._limited(batch, table, "")

    def _limited(self, batch: Batch, table: str, limit: str) -> str:
        columns = ", ".join(f"{name} {self.kinds[kind]}" for name, kind in batch.columns.items())
        guard = self.sql(batch, batch.guard)
        lock = "update" if batch.assign is None else "no key update"  # hosts' rows may refer to a task meanwhile
        # Row by row, by the id alone: misled by the other conditions, the planner may pair all with all.
        head = (
            f"with v as materialized (select v.* from (select * from json_to_recordset(%s::json) as v({columns}) "
            f"{limit}) v cross join lateral "
            f"(select from {table} task where task.id = v.id and {guard} for {lock} of task skip locked) free)"
        )
        where = "where task.id = v.id"  # what was locked stays as the guard has found it
        returning = ", ".join(f"task.{name}" for name in ("id", *batch.wanted))
        if batch.assign is None:
            return f"{head} delete from {table} task using v {where} returning {returning}"
        changes = ", ".join(f"{name} = {self.sql(batch, value)}" for name, value in batch.assign.items())
        return f"{head} update {table} task set {changes} from v {where} returning {returning}"


class MySQL(Dialect):
    """MariaDB 10.6 and MySQL 8 and later, through PyMySQL."""

    name = "mysql"
    kinds = {"id": "varchar(32)", "text": "longtext character set utf8mb4", "int": "bigint", "real": "double"}
    has_schemas = True
    _transient = frozenset(
        {
            1020,
            1021,
            1040,
            1053,
            1077,
            1079,
            1080,
            1114,
            1205,
            1213,
            1290,
            1836,
            1927,
            2002,
            2003,
            2006,
            2013,
            2055,
            4031,
        }
    )

    def prepare(self, dbapi: Any, *, deadline: float, idle: float, pooled: bool) -> None:
        dbapi._read_timeout = dbapi._write_timeout = (
            deadline  # PyMySQL takes them at connect only, which was the host's
        )
        cursor = dbapi.cursor()
        cursor.execute("set session transaction isolation level read committed")
        cursor.execute(f"set session innodb_lock_wait_timeout = {max(1, int(deadline / 2))}, time_zone = '+00:00'")
        cursor.execute("set session sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO'")
        cursor.execute("select @@max_allowed_packet")
        dbapi.query = partial(_sized_query, dbapi, cursor.fetchone()[0])
        cursor.execute("show variables like 'idle_transaction_timeout'")
        if cursor.fetchone():  # MariaDB; its limit for writing ones leaves out those that have only locked so far
            cursor.execute(f"set session idle_transaction_timeout = {max(1, int(idle))}")
        cursor.close()
        dbapi.commit()

    def lock_migration(self, connection: Connection, schema: str | None) -> None:
        dbapi: Any = connection.connection.dbapi_connection
        dbapi._read_timeout = dbapi._write_timeout = _MIGRATION
        idle, blocks = f"wait_timeout = {_MIGRATION_IDLE}", f"lock_wait_timeout = {_MIGRATION_BLOCKS}"
        connection.exec_driver_sql(f"set session {idle}, {blocks}")
        # The server's databases share the names of locks, which have at most 64 characters.
        lock = f"select get_lock(concat('pyasync.migrate.', md5(ifnull(%s, database()))), {int(_MIGRATION / 2)})"
        if not connection.exec_driver_sql(lock, (schema,)).scalar():
            raise exc.TimeoutError("another process is still changing the tables")

    def is_transient(self, error: BaseException) -> bool:
        code = error.args[0] if error.args else None
        if code in (0, "(0, '')") and type(error).__name__ == "InterfaceError":  # PyMySQL: used after it was closed
            return True
        return code in self._transient

    def undoes_all(self, error: BaseException) -> bool:
        return bool(error.args) and error.args[0] == 1213

    def is_read_only(self, error: BaseException) -> bool:
        return bool(error.args) and error.args[0] in (1290, 1836)

    def is_full(self, error: BaseException) -> bool:
        return bool(error.args) and error.args[0] in (1021, 1114)

    def write(self, connection: Connection, batch: Batch, rows: Sequence[Row]) -> list[tuple[UUID, Row]]:
        lock, change = batch.rendered.get(self.name) or self._rendered(connection, batch)
        found = connection.exec_driver_sql(lock, (document(rows),)).all()
        locked = {UUID(bytes=bytes(row[0])): dict(zip(batch.wanted, row[1:], strict=True)) for row in found}
        if locked:
            kept = [{**row, "was_stage": was["stage"], "was_mark": was["mark"]} for row, was in _matched(rows, locked)]
            connection.exec_driver_sql(change, (document(kept),))
        return list(locked.items())

    def _render(self, batch: Batch, table: str) -> tuple[str, str]:
        """Lock first, then change what was locked: there is no UPDATE ... RETURNING, and its assignments see each
        other.
        """
        # Of a table of few rows it would read all, and so wait for rows that are none of ours, if somebody locks them.
        by_id = f"straight_join {table} task force index (primary) on task.id = unhex(v.id)"
        lock = (
            f"select task.id, {', '.join(f'task.{name}' for name in batch.wanted)} from {self._rows(batch.columns)} "
            f"{by_id} where {self._v(self.sql(batch, batch.guard))} for update skip locked"
        )
        columns = {**batch.columns, "was_stage": "text", "was_mark": "text"}
        joined = f"{self._rows(columns)} {by_id}"
        if batch.assign is None:
            return lock, f"delete task from {joined}"
        changes = ", ".join(f"task.{name} = {self._expression(batch, value)}" for name, value in batch.assign.items())
        return lock, f"update {joined} set {changes}"

    def _rows(self, columns: Mapping[str, str]) -> str:
        listed = ", ".join(f"{name} {self.kinds[kind]} path '$.{name}'" for name, kind in columns.items())
        return f"json_table(%s, '$[*]' columns({listed})) v"

    def _expression(self, batch: Batch, value: str) -> str:
        replaced = value.replace("was.stage", "v.was_stage").replace("was.mark", "v.was_mark")
        return self._v(self.sql(batch, replaced))

    def _v(self, expression: str) -> str:
        """Turn the rows' ids from hexadecimal into bytes."""
        for name in ("v.fence", "v.new_fence"):
            expression = expression.replace(name, f"unhex({name})")
        return expression


class SQLite(Dialect):
    """SQLite 3.35 and later in WAL mode: the processes of one host, one writer at a time."""

    name = "sqlite"
    kinds = {}
    skips_locked = False
    has_schemas = False
    embedded = True
    _busy, _locked, _full, _cannot_open, _protocol = 5, 6, 13, 14, 15

    def autocommit(self, connection: Connection) -> AbstractContextManager[None]:
        return nullcontext()  # the driver's isolation level is None, see `prepare`

    def begin(self, connection: Connection, *, write: bool) -> None:
        # The driver's own way does not lock a transaction that begins with a SELECT: two claimers would pick the same
        # row.
        connection.exec_driver_sql("begin immediate" if write else "begin")

    def prepare(self, dbapi: Any, *, deadline: float, idle: float, pooled: bool) -> None:
        dbapi.isolation_level = None
        dbapi.execute(f"pragma busy_timeout = {int(deadline * 1000)}")
        dbapi.execute("pragma journal_mode = wal")
        dbapi.execute("pragma synchronous = full")

    def is_transient(self, error: BaseException) -> bool:
        code = getattr(error, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in (
            self._busy,
            self._locked,
            self._full,
            self._cannot_open,
            self._protocol,
        )

    def is_full(self, error: BaseException) -> bool:
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == self._full

    def write(self, connection: Connection, batch: Batch, rows: Sequence[Row]) -> list[tuple[UUID, Row]]:
        sql = batch.rendered.get(self.name) or self._rendered(connection, batch)
        execute = connection.connection.driver_connection.execute  # type: ignore[union-attr]
        blank = dict.fromkeys(batch.columns)
        found = [execute(sql, blank | _in_bytes(row)).fetchall() for row in rows]
        return [(UUID(bytes=row[0]), dict(zip(batch.wanted, row[1:], strict=True))) for some in found for row in some]

    def _render(self, batch: Batch, table: str) -> str:
        where = f"where task.id = :id and {self.sql(batch, batch.guard)}"
        returning = ", ".join(("id", *batch.wanted))
        if batch.assign is None:
            return f"delete from {table} as task {where} returning {returning}".replace("v.", ":")
        changes = ", ".join(f"{name} = {self.sql(batch, value)}" for name, value in batch.assign.items())
        sql = f"update {table} as task set {changes} {where} returning {returning}"
        return sql.replace("v.", ":")


DIALECTS: Mapping[str, Callable[[], Dialect]] = {
    "postgresql": PostgreSQL,
    "mysql": MySQL,
    "mariadb": MySQL,
    "sqlite": SQLite,
}


def dialect_for(name: str) -> Dialect:
    """Return what we know of a kind of database. Raises BadArgument if it is none of ours."""
    try:
        return DIALECTS[name]()
    except KeyError:
        raise BadArgument(f"pyasync has no support for {name}: use SQLite, PostgreSQL, MariaDB or MySQL") from None


def original(error: BaseException) -> BaseException:
    """Return the driver's error under SQLAlchemy's."""
    inner = getattr(error, "orig", None)
    return inner if isinstance(inner, BaseException) else error


def _bounded_wait(
    dbapi: Any, deadline: float, gen: Generator[Any, Any, Any], interval: float = 0.1, **more: Any
) -> Any:
    """Wait for the server as psycopg does, but not for ever: keepalives do not notice a hung server behind a live
    link.
    """
    from psycopg import waiting

    bounded = _bounded(dbapi, gen, time.monotonic() + deadline + 1.0)
    return waiting.wait(bounded, dbapi.pgconn.socket, interval=interval)


def _bounded(dbapi: Any, gen: Generator[Any, Any, Any], until: float) -> Generator[Any, Any, Any]:
    from psycopg import OperationalError

    try:
        state = next(gen)
        while True:
            ready = yield state
            if not ready and time.monotonic() > until:
                dbapi.pgconn.finish()
                raise OperationalError("the server did not answer in time: the connection was given up")
            state = gen.send(ready)
    except StopIteration as end:
        return end.value


def _sized_query(dbapi: Any, limit: int, sql: str | bytes, unbuffered: bool = False) -> Any:
    """Query as PyMySQL does, but refuse what the server would answer by breaking the connection."""
    # Some of its versions put bytes into the text as surrogates.
    packet = sql.encode(dbapi.encoding, "surrogateescape") if isinstance(sql, str) else sql
    if len(packet) + 1 >= limit:
        raise BadArgument(
            f"a statement of {len(packet)} bytes is too large for this database (the server's max_allowed_packet is "
            f"{limit}): keep the data elsewhere and a reference to it here, create fewer tasks at once, lower the "
            "setting max_context_bytes, or raise max_allowed_packet"
        )
    return type(dbapi).query(dbapi, packet, unbuffered)


def document(rows: Sequence[Row]) -> str:
    """Return rows as one JSON document, from which a statement reads them."""
    return _encode(rows)


def _text(value: UUID | datetime) -> str:
    return value.hex if isinstance(value, UUID) else value.isoformat()


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_text).encode


def _in_bytes(row: Row) -> Row:
    return {name: value.bytes if isinstance(value, UUID) else value for name, value in row.items()}


def _matched(rows: Sequence[Row], locked: Mapping[UUID, Row]) -> list[tuple[Row, Row]]:
    return [(row, locked[row["id"]]) for row in rows if row["id"] in locked]
