"""What `doctor` looks at: the server, and rows that should not be as they are. Nothing in here writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import and_, exc, func, or_, select

from pyasync.domain.queues import PROBATION_LOSSES, Queue
from pyasync.domain.states import ENDED
from pyasync.domain.transitions import FAILED_DELETE
from pyasync.errors import DatabaseUnavailable
from pyasync.store.database import Database, Tx
from pyasync.store.dialects import now, original


def reach(database: Database) -> None:
    """Ask the database once. Raises DatabaseUnavailable with its own words, at once."""
    try:
        database.attempt_single(clock)
    except exc.SQLAlchemyError as error:
        raise DatabaseUnavailable(address(database), _words(error)) from error


def address(database: Database) -> str:
    """Return a database's URL without its password."""
    return database.url.render_as_string(hide_password=True)


def missing_file(database: Database) -> str | None:
    """Return the name of the file that a database is in, if it is not there yet: to connect would make it."""
    name = str(database.url.database)
    return name if database.dialect.embedded and not Path(name).exists() else None


def _words(error: BaseException) -> str:
    lines = str(original(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def complaint(error: BaseException) -> str | None:
    """Return the database's own words, if an error is one of the database's."""
    return _words(error) if isinstance(error, exc.SQLAlchemyError) else None


def clock(tx: Tx) -> datetime:
    """Return the database's time."""
    moment: datetime = tx.execute(select(now().label("now"))).scalar_one()
    return moment


# --- the server


@dataclass(frozen=True)
class Server:
    """A database server: its kind, its version as it writes it and as numbers, and settings that matter to us."""

    kind: str
    version: str
    number: tuple[int, ...]
    settings: Mapping[str, str]


def server(tx: Tx) -> Server:
    """Return what the server says of itself."""
    return _SERVERS[tx.dialect.name](tx)


def _sqlite(tx: Tx) -> Server:
    version = _scalar(tx, "select sqlite_version()")
    settings = {name: _scalar(tx, f"pragma {name}") for name in ("journal_mode", "synchronous")}
    return Server("SQLite", version, _number(version), settings)


def _postgresql(tx: Tx) -> Server:
    version = _scalar(tx, "show server_version")
    wanted = ("fsync", "full_page_writes", "synchronous_commit", "transaction_isolation")
    settings = {name: _scalar(tx, f"show {name}") for name in wanted}
    settings["read_only"] = "on" if _scalar(tx, "select pg_is_in_recovery()") == "True" else "off"
    return Server("PostgreSQL", version, _number(version), settings)


def _mysql(tx: Tx) -> Server:
    version = _scalar(tx, "select version()")
    wanted = "('tx_isolation', 'transaction_isolation', 'innodb_flush_log_at_trx_commit', 'read_only', 'wsrep_on')"
    rows = tx.connection.exec_driver_sql(f"show variables where variable_name in {wanted}").all()
    settings = {str(name).lower().removeprefix("transaction_").removeprefix("tx_"): str(value) for name, value in rows}
    kind = "MariaDB" if "mariadb" in version.lower() else "MySQL"
    return Server(kind, version, _number(version), settings)


_SERVERS: Mapping[str, Callable[[Tx], Server]] = {"sqlite": _sqlite, "postgresql": _postgresql, "mysql": _mysql}


def _scalar(tx: Tx, sql: str) -> str:
    return str(tx.connection.exec_driver_sql(sql).scalar())


def _number(version: str) -> tuple[int, ...]:
    """Return the numbers a version begins with: `10.11.6-MariaDB-log` is (10, 11, 6)."""
    digits = version.partition(" ")[0].partition("-")[0].split(".")
    return tuple(int(each) for each in digits if each.isdigit())


# --- SQLite's one writer

LOCKOUT = 2.0
"""Seconds for which no transaction of ours lasts: who waits longer waits for somebody who does not go on."""
_WRITE_LOCK = 120
"""The byte of the -shm file that a SQLite process locks while it writes: see "WAL-mode File Format"."""


@dataclass(frozen=True)
class Lockout:
    """Nobody else could write for LOCKOUT seconds; `pid` is the process that can, where the system tells."""

    pid: int | None


def lockout(tx: Tx) -> Lockout | None:
    """Return who keeps everybody else from writing, if somebody does. A server ends such sessions itself."""
    if not tx.dialect.embedded:
        return None
    was = _scalar(tx, "pragma busy_timeout")
    tx.connection.exec_driver_sql(f"pragma busy_timeout = {LOCKOUT * 1000:.0f}")
    try:
        tx.connection.exec_driver_sql("begin immediate")
        tx.connection.exec_driver_sql("rollback")
    except exc.OperationalError as error:
        if not tx.dialect.is_transient(original(error)):  # it is read only, say
            return None
        return Lockout(_writer(Path(str(tx.connection.engine.url.database) + "-shm")))
    finally:
        tx.connection.exec_driver_sql(f"pragma busy_timeout = {was}")
    return None


def _writer(shared: Path) -> int | None:
    # Linux's list, since to open the file and close it again would drop the locks that we hold on it ourselves.
    with suppress(OSError):
        inode = str(shared.stat().st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            match line.split():
                case [_, "POSIX", _, "WRITE", pid, place, first, last] if place.split(":")[-1] == inode:
                    if int(first) <= _WRITE_LOCK and (last == "EOF" or int(last) >= _WRITE_LOCK):
                        return int(pid)
    return None


# --- nodes


@dataclass(frozen=True)
class Silence:
    """How long ago a node's last beat was, and how long it is believed alive without one; seconds."""

    since: float
    lease: float

    @property
    def too_long(self) -> bool:
        """Whether the node should have been declared lost."""
        return self.since > self.lease


def silences(tx: Tx) -> dict[UUID, Silence]:
    """Return how silent each node is, by the database's clock."""
    node = tx.t.node.c
    rows = tx.execute(select(node.id, node.beat_at, node.lease, now().label("now"))).all()
    return {row.id: Silence((row.now - row.beat_at).total_seconds(), row.lease) for row in rows}


# --- tasks


@dataclass(frozen=True)
class Backlog:
    """Tasks of one type that could run now: how many, and the seconds that the oldest has waited."""

    type: str
    tasks: int
    oldest: float
    runnable: bool
    """Whether a live node has the type."""


def backlogs(tx: Tx) -> list[Backlog]:
    """Return what waits for a node, by type."""
    task = tx.t.task.c
    oldest = func.min(task.ready_at).label("oldest")
    query = select(task.type, func.count().label("tasks"), oldest, now().label("now"))
    rows = tx.execute(query.where(task.queue.is_not(None)).group_by(task.type).order_by(task.type)).all()
    live = _live_types(tx)
    return [Backlog(row.type, row.tasks, _span(row.oldest, row.now), row.type in live) for row in rows]


def _span(start: datetime | None, end: datetime) -> float:
    return 0.0 if start is None else (end - start).total_seconds()


def _live_types(tx: Tx) -> set[str]:
    node = tx.t.node.c
    rows = tx.execute(select(node.id, node.types).where(node.lost.is_(False), node.draining.is_(False))).all()
    silent = {node_id for node_id, silence in silences(tx).items() if silence.too_long}
    return {name for row in rows if row.id not in silent for name in json.loads(row.types)}


@dataclass(frozen=True)
class Oddities:
    """How many tasks are as they should not stay."""

    orphans: int
    """Owned by a node that has no row, or is declared lost: a sweep takes them over, if any node sweeps."""
    overdue: int
    """Their time has come, and no node has put them into their queue."""
    uncleaned: int
    """Their clean-up has failed."""
    suspects: int
    """On probation: nodes were lost while they ran them."""


def oddities(tx: Tx, patience: float) -> Oddities:
    """Count what is odd; what is overdue by less than `patience` seconds is not."""
    task, node = tx.t.task.c, tx.t.node.c
    alive = select(node.id).where(node.lost.is_(False))
    uncleaned = and_(task.stage == FAILED_DELETE.stage.value, task.mark == FAILED_DELETE.mark.value)
    ended = task.stage.in_([stage.value for stage in ENDED])
    return Oddities(
        orphans=_count(tx, task.node_id.is_not(None), task.node_id.not_in(alive)),
        overdue=_overdue(tx, patience),
        uncleaned=_count(tx, uncleaned),
        suspects=_count(tx, or_(task.queue == Queue.PROBATION.value, task.losses >= PROBATION_LOSSES), ~ended),
    )


def _count(tx: Tx, *conditions: Any) -> int:
    number: int = tx.execute(select(func.count()).select_from(tx.t.task).where(*conditions)).scalar_one()
    return number


def _overdue(tx: Tx, patience: float) -> int:
    due = tx.t.task.c.due_at
    row = tx.execute(select(func.min(due).label("first"), now().label("now"))).one()
    if row.first is None or _span(row.first, row.now) <= patience:
        return 0
    return _count(tx, due <= now())
