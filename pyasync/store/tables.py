"""The tables. Every row that nodes coordinate by is in one of them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import DDL, BigInteger, Boolean, CheckConstraint, Column, Index, Integer, MetaData, Table, event

from pyasync.domain.states import Mark, Stage
from pyasync.store.types import Contents, Id, Name, Real, Utc, Word

NAMING = {
    "ix": "%(table_name)s_%(column_0_N_name)s",
    "uq": "%(table_name)s_%(column_0_N_name)s",
    "ck": "%(table_name)s_%(constraint_name)s",
    "pk": "%(table_name)s_pk",
}
_MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
_MARIADB: dict[str, Any] = {name.replace("mysql", "mariadb"): value for name, value in _MYSQL.items()}


def _one_of(column: str, words: type[Stage] | type[Mark]) -> CheckConstraint:
    listed = ", ".join(f"'{word.value}'" for word in words)
    return CheckConstraint(f"{column} in ({listed})", name=column)


class Tables:
    """The tables of one system, in one schema."""

    def __init__(self, schema: str | None) -> None:
        self.metadata = MetaData(schema=schema, naming_convention=NAMING)
        self.task = _task(self.metadata)
        self.node = _node(self.metadata)
        self.type = _type(self.metadata)


@lru_cache
def tables(schema: str | None) -> Tables:
    """Return the tables in a schema; the same object for the same schema, so that compiled statements are shared."""
    return Tables(schema)


def _task(metadata: MetaData) -> Table[Any]:
    table = Table(
        "pyasync_task",
        metadata,
        Column("id", Id, primary_key=True),
        Column("type", Name, nullable=False),
        Column("user_name", Name, nullable=False),
        Column("group_name", Name, nullable=False),
        Column("stage", Word, nullable=False),
        Column("mark", Word, nullable=False),
        Column("queue", Word, comment="run, delete or probation while the task can be claimed, else null"),
        Column("rank", Integer, nullable=False, comment="the negated priority: one ascending index serves claims"),
        Column("ready_at", Utc, comment="when the task became claimable"),
        Column("due_at", Utc, comment="when it will be, while it waits for its time"),
        Column("run_at", Utc, comment="the time that was asked for, or that of the retry"),
        Column("node_id", Id, comment="the owner, while running or deleting"),
        Column("fence", Id, comment="drawn by the claiming transaction, guards every write of the run"),
        Column("epoch", Integer, nullable=False, comment="how often claimed"),
        Column("seq", BigInteger, nullable=False, comment="how many fenced writes were stored"),
        Column("attempt", Integer, nullable=False),
        Column("losses", Integer, nullable=False, comment="takeovers in a row without a report in between"),
        Column("arguments", Contents, nullable=False),
        Column("context", Contents, comment="null: the arguments"),
        Column("version", Integer, nullable=False, comment="of the type, as of the context's writer"),
        Column("progress", Real),
        Column("message", Contents),
        Column("result", Contents),
        Column("errors", Contents, comment="a JSON list, the last twenty"),
        Column("note", Contents, comment="why the last node that had it let go of it"),
        Column("retry", Contents),
        Column("timeout", Real, comment="seconds"),
        Column("keep", Real, comment="seconds a finished or failed row is kept"),
        Column("on_node_loss", Word, nullable=False),
        Column("max_losses", Integer),
        Column("key_name", Name),
        Column("held_key", Name, comment="the key while the task holds it; a unique nullable column works everywhere"),
        Column("headers", Contents),
        Column("created_at", Utc, nullable=False),
        Column("started_at", Utc, comment="when it was last claimed"),
        Column("done_at", Utc),
        Column("purge_at", Utc, comment="when an ended row is deleted"),
        _one_of("stage", Stage),
        _one_of("mark", Mark),
        **_MYSQL,
        **_MARIADB,
    )
    _task_indexes(table)
    _leave_room(table, 30)
    return table


def _task_indexes(table: Table) -> None:
    column = table.c
    order = (column.queue, column.type, column.stage, column.rank, column.ready_at, column.id)
    _partial("pyasync_task_claim", *order, where=column.queue)
    _partial("pyasync_task_due", column.due_at, where=column.due_at)
    _partial("pyasync_task_owned", column.node_id, column.mark, where=column.node_id)
    _partial("pyasync_task_purge", column.purge_at, where=column.purge_at)
    _partial("pyasync_task_key", column.user_name, column.type, column.held_key, where=column.held_key, unique=True)
    Index("pyasync_task_user", column.user_name, column.stage, column.created_at, column.id)
    Index("pyasync_task_newest", column.created_at, column.id)


def _partial(name: str, *columns: Column[object], where: Column[object], unique: bool = False) -> Index:
    """Index the rows in which a column is set. MariaDB and MySQL have no partial indexes and index them all."""
    set_ = where.is_not(None)
    return Index(name, *columns, unique=unique, postgresql_where=set_, sqlite_where=set_)


def _leave_room(table: Table[Any], percent: int) -> None:
    """Leave room in each page of PostgreSQL for a row's next versions: those that stay there touch no index."""
    # Only SQLAlchemy 2.1 and later take it as an option of the table.
    fill = DDL(f"alter table %(fullname)s set (fillfactor = {100 - percent})")  # type: ignore[no-untyped-call]
    event.listen(table, "after_create", fill.execute_if(dialect="postgresql"))


def _node(metadata: MetaData) -> Table[Any]:
    table = Table(
        "pyasync_node",
        metadata,
        Column("id", Id, primary_key=True),
        Column("name", Name, nullable=False),
        Column("version", Name, nullable=False),
        Column("counter", BigInteger, nullable=False, comment="raised by every beat"),
        Column("session_key", Name, comment="names the lock that the keeper's session holds"),
        Column("lease", Real, nullable=False, comment="seconds"),
        Column("types", Contents, nullable=False, comment="a JSON object: type and version"),
        Column("slots", Integer, nullable=False),
        Column("running", Integer, nullable=False),
        Column("draining", Boolean(create_constraint=False), nullable=False),
        Column("lost", Boolean(create_constraint=False), nullable=False),
        Column("joined_at", Utc, nullable=False),
        Column("beat_at", Utc, nullable=False, comment="for people: no decision rests on it"),
        **_MYSQL,
        **_MARIADB,
    )
    _leave_room(table, 50)
    return table


def _type(metadata: MetaData) -> Table[Any]:
    return Table(
        "pyasync_type",
        metadata,
        Column("type", Name, primary_key=True),
        Column("first_seen_at", Utc, nullable=False),
        **_MYSQL,
        **_MARIADB,
    )
