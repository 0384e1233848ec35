"""Create the tables of tasks, nodes and types.

MariaDB and MySQL commit each step by itself, so each asks whether an upgrade that was interrupted has done it already.
"""

from __future__ import annotations

from typing import Any

from alembic import op
from sqlalchemy import DDL, BigInteger, Boolean, CheckConstraint, Column, Integer, PrimaryKeyConstraint, inspect, text
from sqlalchemy.schema import SchemaItem

from pyasync.store.types import Contents, Id, Name, Real, Utc, Word

revision = "0001"
down_revision = None

_MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
_MARIADB = {name.replace("mysql", "mariadb"): value for name, value in _MYSQL.items()}


def upgrade() -> None:
    _create_task()
    _create_task_indexes()
    _create_node()
    _create_type()


def _create_task() -> None:
    _create_table(
        "pyasync_task",
        Column("id", Id, nullable=False),
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
        CheckConstraint(
            "stage in ('init', 'pending', 'running', 'deleting', 'paused', 'finished', 'failed')",
            name="pyasync_task_stage",
        ),
        CheckConstraint("mark in ('none', 'run', 'delete', 'pause', 'cancel')", name="pyasync_task_mark"),
        PrimaryKeyConstraint("id", name="pyasync_task_pk"),
        fillfactor=70,
    )


def _create_task_indexes() -> None:
    claim = ["queue", "type", "stage", "rank", "ready_at", "id"]
    _create_index("pyasync_task_claim", "pyasync_task", claim, where="queue IS NOT NULL")
    _create_index("pyasync_task_due", "pyasync_task", ["due_at"], where="due_at IS NOT NULL")
    _create_index("pyasync_task_owned", "pyasync_task", ["node_id", "mark"], where="node_id IS NOT NULL")
    _create_index("pyasync_task_purge", "pyasync_task", ["purge_at"], where="purge_at IS NOT NULL")
    key = ["user_name", "type", "held_key"]
    _create_index("pyasync_task_key", "pyasync_task", key, where="held_key IS NOT NULL", unique=True)
    _create_index("pyasync_task_user", "pyasync_task", ["user_name", "stage", "created_at", "id"])
    _create_index("pyasync_task_newest", "pyasync_task", ["created_at", "id"])


def _create_node() -> None:
    _create_table(
        "pyasync_node",
        Column("id", Id, nullable=False),
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
        PrimaryKeyConstraint("id", name="pyasync_node_pk"),
        fillfactor=50,
    )


def _create_type() -> None:
    _create_table(
        "pyasync_type",
        Column("type", Name, nullable=False),
        Column("first_seen_at", Utc, nullable=False),
        PrimaryKeyConstraint("type", name="pyasync_type_pk"),
    )


def _create_table(name: str, *items: SchemaItem, fillfactor: int | None = None) -> None:
    if _has_table(name):
        return
    table = op.create_table(name, *items, schema=_schema(), **_MYSQL, **_MARIADB)
    if fillfactor and op.get_context().dialect.name == "postgresql":
        fill = DDL(f"ALTER TABLE %(fullname)s SET (fillfactor = {fillfactor})")  # type: ignore[no-untyped-call]
        op.execute(fill.against(table))


def _create_index(name: str, table: str, columns: list[str], where: str | None = None, unique: bool = False) -> None:
    """Index the rows that `where` tells. MariaDB and MySQL have no partial indexes and index them all."""
    if _has_index(name, table):
        return
    partial: dict[str, Any] = {"postgresql_where": text(where), "sqlite_where": text(where)} if where else {}
    op.create_index(name, table, columns, unique=unique, schema=_schema(), **partial)


def _has_table(name: str) -> bool:
    return not _offline() and inspect(op.get_bind()).has_table(name, schema=_schema())


def _has_index(name: str, table: str) -> bool:
    return not _offline() and name in {
        index["name"] for index in inspect(op.get_bind()).get_indexes(table, schema=_schema())
    }


def _offline() -> bool:
    return op.get_context().as_sql


def _schema() -> str | None:
    return op.get_context().version_table_schema
