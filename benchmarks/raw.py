"""The limits: the work of the other contenders by hand-written driver code in a batch loop, without any library.

Every claim draws a fence, every report and finish is guarded by it and its row count looked at, every result is stored,
and every batch is a durable commit. All of that is done on the very table that pyasync's migrations make, with all its
indexes. `bare`, on PostgreSQL, does it on a table of ten columns with a primary key and one small index for claims: the
limit of a design that cannot list a user's tasks, wait for a time, or take over from a lost node.
"""

from __future__ import annotations

import json
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any
from uuid import UUID, uuid4

from benchmarks.common import Place, prepare
from pyasync.ids import new_id

NOOP = "noop"
CONTEXT = {"text": "x" * 1_000}
Task = tuple[Any, str]
"""An id and the arguments."""


def drain(place: Place, size: int, *, batch: int, fused: bool = False, bare: bool = False) -> float:
    """Return tasks a second: claim a batch, finish it; `fused`: finish one and claim the next in one transaction."""
    with closing(opened(place, bare)) as driver:
        driver.prepare(place, size)
        began = time.perf_counter()
        loop = _fused(driver, batch) if fused else _separate(driver, batch)
        done = sum(loop)
        took = time.perf_counter() - began
    if done != size:
        raise AssertionError(f"{done} of {size} tasks are finished")
    return size / took


def reports(place: Place, size: int, *, rounds: int, batch: int = 1_000, bare: bool = False) -> float:
    """Return durable reports a second: so many rounds of one report of 1 KB for each task, in groups."""
    with closing(opened(place, bare)) as driver:
        driver.prepare(place, size)
        groups = list(_claimed(driver, batch))
        began = time.perf_counter()
        for seq in range(rounds):
            for ids, fence in groups:
                driver.begin()
                _must_be(driver.report([(id, json.dumps(CONTEXT)) for id in ids], fence, seq), len(ids))
                driver.commit()
        return size * rounds / (time.perf_counter() - began)


def create(place: Place, size: int, *, batch: int = 1, notify: bool = False) -> float:
    """Return tasks a second created by `insert ... returning`; `notify`: each commit wakes up who listens."""
    with closing(opened(place)) as driver:
        driver.prepare(place, 0)
        ids = [new_id() for _ in range(size)]
        began = time.perf_counter()
        for start in range(0, size, batch):
            driver.create(ids[start : start + batch], notify=notify)
        return size / (time.perf_counter() - began)


def _separate(driver: Driver, batch: int) -> Iterator[int]:
    for ids, fence, results in _batches(driver, batch):
        driver.begin()
        _must_be(driver.finish(list(zip(ids, results, strict=True)), fence), len(ids))
        driver.commit()
        yield len(ids)


def _batches(driver: Driver, batch: int) -> Iterator[tuple[list[Any], UUID, list[str]]]:
    while True:
        fence = uuid4()
        driver.begin()
        tasks = driver.claim(batch, fence)
        driver.commit()
        if not tasks:
            return
        yield [id for id, _ in tasks], fence, _run(tasks)


def _fused(driver: Driver, batch: int) -> Iterator[int]:
    fence = uuid4()
    driver.begin()
    tasks = driver.claim(batch, fence)
    driver.commit()
    while tasks:
        done = list(zip((id for id, _ in tasks), _run(tasks), strict=True))
        driver.begin()
        _must_be(driver.finish(done, fence), len(done))
        fence = uuid4()
        tasks = driver.claim(batch, fence)
        driver.commit()
        yield len(done)


def _run(tasks: Sequence[Task]) -> list[str]:
    return [json.dumps(json.loads(arguments)) for _, arguments in tasks]


def _claimed(driver: Driver, batch: int) -> Iterator[tuple[list[Any], UUID]]:
    for ids, fence, _ in _batches(driver, batch):
        yield ids, fence


def _must_be(count: int, expected: int) -> None:
    if count != expected:
        raise AssertionError(f"{count} of {expected} rows were written")


class Driver(ABC):
    """One connection of a driver, and the hot statements in its database's fastest form that was found."""

    connection: Any

    @abstractmethod
    def begin(self) -> None:
        """Begin a transaction."""

    def commit(self) -> None:
        """Commit it."""
        self.connection.commit()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def prepare(self, place: Place, size: int) -> None:
        """Make the table, and tasks in it."""
        prepare(place, NOOP, size)

    @abstractmethod
    def claim(self, batch: int, fence: UUID) -> list[Task]:
        """Claim tasks."""

    @abstractmethod
    def finish(self, done: Sequence[Task], fence: UUID) -> int:
        """Store results and return how many rows were written."""

    @abstractmethod
    def report(self, contexts: Sequence[Task], fence: UUID, seq: int) -> int:
        """Store contexts and return how many rows were written."""

    @abstractmethod
    def create(self, ids: Sequence[UUID], *, notify: bool) -> None:
        """Create tasks in a transaction of its own."""


def opened(place: Place, bare: bool = False) -> Driver:
    """Connect to a place."""
    if bare:
        return BarePostgreSQL(place)
    drivers: dict[str, Callable[[Place], Driver]] = {"postgresql": PostgreSQL, "mariadb": MariaDB, "sqlite": SQLite}
    return drivers[place.kind](place)


_NODE = uuid4()
_OPEN = "queue = 'run' and type = 'noop' order by stage, rank, ready_at, id"
_CLAIM = "stage = 'running', queue = null, node_id = {node}, fence = {fence}, epoch = epoch + 1, started_at = {now}"
_FINISH = "stage = 'finished', node_id = null, note = null, done_at = {now}"
_REPORT = "losses = 0, note = null"
_INSERT = (
    "pyasync_task (id, type, user_name, group_name, stage, mark, queue, rank, ready_at, epoch, seq, attempt, losses, "
    "arguments, version, on_node_loss, created_at)"
)
_VALUES = "{id}, 'noop', '', '', 'pending', 'run', 'run', 0, {now}, 0, 0, 1, 0, {arguments}, 0, 'resume', {now}"


class PostgreSQL(Driver):
    """psycopg 3, prepared statements, arrays and JSON documents."""

    _now = "statement_timestamp()"
    _table = "pyasync_task"
    _open = _OPEN
    _claim = _CLAIM.format(node="%s", fence="%s", now=_now)
    _finish = _FINISH.format(now=_now)
    _report = _REPORT

    def __init__(self, place: Place) -> None:
        import psycopg

        parts = place.parts
        self.connection = psycopg.connect(
            host=parts.host, port=parts.port, user=parts.username, password=parts.password, dbname=parts.database
        )
        self.connection.prepare_threshold = 0

    def begin(self) -> None:
        pass  # psycopg sends it with the first statement

    def claim(self, batch: int, fence: UUID) -> list[Task]:
        first = f"select id from {self._table} where {self._open} limit {batch} for no key update skip locked"
        sql = f"update {self._table} set {self._claim} where id = any(array({first})) returning id, arguments"
        return self.connection.execute(sql, (_NODE, fence)).fetchall()

    def finish(self, done: Sequence[Task], fence: UUID) -> int:
        ids, results = [id for id, _ in done], [result for _, result in done]
        rows = "unnest(%s::uuid[], %s::uuid[], %s::bigint[], %s::text[]) as v(id, fence, seq, result)"
        parameters = (ids, [fence] * len(ids), [0] * len(ids), results)
        return self._update(f"{self._finish}, result = v.result", rows, parameters)

    def report(self, contexts: Sequence[Task], fence: UUID, seq: int) -> int:
        rows = "json_to_recordset(%s::json) as v(id uuid, fence uuid, seq bigint, context text)"
        listed = [{"id": str(id), "fence": str(fence), "seq": seq, "context": context} for id, context in contexts]
        return self._update(f"{self._report}, context = v.context", rows, (json.dumps(listed),))

    def _update(self, change: str, rows: str, parameters: tuple[Any, ...]) -> int:
        # With the fence as a constant, the planner believes that it selects one row, and reads the table to find it.
        guard = "t.id = v.id and t.fence = v.fence and t.seq = v.seq and t.stage = 'running'"
        sql = f"update {self._table} t set {change}, seq = t.seq + 1 from {rows} where {guard}"
        return self.connection.execute(sql, parameters).rowcount

    def create(self, ids: Sequence[UUID], *, notify: bool) -> None:
        values = _VALUES.format(id="v.id", arguments="v.arguments", now=self._now)
        source = "unnest(%s::uuid[], %s::text[]) as v(id, arguments)"
        parameters: tuple[Any, ...] = (ids, ["0"] * len(ids))
        if len(ids) == 1:
            values, source = _VALUES.format(id="%s", arguments="%s", now=self._now), ""
            parameters = (ids[0], "0")
        sql = f"insert into {_INSERT} select {values} {source and 'from ' + source} returning id"
        if notify:
            sql = f"with made as ({sql}), told as (select pg_notify('pyasync', 'run')) select id from made, told"
        self.connection.autocommit = True
        _must_be(len(self.connection.execute(sql, parameters).fetchall()), len(ids))


class BarePostgreSQL(PostgreSQL):
    """The same on a table that has nothing but what a claim, a report and a finish need."""

    _table = "bare"
    _open = "ready order by rank, id"
    _claim = "stage = 'running', ready = false, node_id = %s, fence = %s"
    _finish = "stage = 'finished', node_id = null"
    _report = "node_id = t.node_id"

    def prepare(self, place: Place, size: int) -> None:
        self.connection.execute(
            "create table bare (id uuid primary key, rank int not null, ready boolean not null, stage text not null, "
            "node_id uuid, fence uuid, seq bigint not null, arguments text not null, context text, result text) "
            "with (fillfactor = 70)"
        )
        self.connection.execute("create index on bare (rank, id) where ready")
        rows = "select i, 0, true, 'pending', 0, '0' from unnest(%s::uuid[]) i"
        ids = [new_id() for _ in range(size)]
        self.connection.execute(f"insert into bare (id, rank, ready, stage, seq, arguments) {rows}", (ids,))
        self.connection.commit()


class MariaDB(Driver):
    """PyMySQL and JSON documents."""

    _now = "utc_timestamp(6)"

    def __init__(self, place: Place) -> None:
        import pymysql

        parts = place.parts
        self.connection = pymysql.connect(
            host=parts.host,
            port=parts.port or 3306,
            user=parts.username,
            password=parts.password or "",
            database=parts.database,
            charset="utf8mb4",
            ssl_disabled=True,
        )
        self._cursor = self.connection.cursor()
        self._cursor.execute("set session transaction isolation level read committed")
        self.connection.commit()

    def begin(self) -> None:
        pass  # not in autocommit mode: with the first statement

    def claim(self, batch: int, fence: UUID) -> list[Task]:
        head = "select id, arguments from pyasync_task force index (pyasync_task_claim)"
        self._cursor.execute(f"{head} where {_OPEN} limit {batch} for update skip locked")
        tasks = list(self._cursor.fetchall())
        if tasks:
            change = _CLAIM.format(node="%s", fence="%s", now=self._now)
            ids = [id for id, _ in tasks]
            self._cursor.execute(f"update pyasync_task set {change} where id in %s", (_NODE.bytes, fence.bytes, ids))
        return tasks

    def finish(self, done: Sequence[Task], fence: UUID) -> int:
        change = f"{_FINISH.format(now=self._now)}, t.seq = t.seq + 1, t.result = v.value"
        return self._update(done, change, fence, 0)

    def report(self, contexts: Sequence[Task], fence: UUID, seq: int) -> int:
        return self._update(contexts, f"{_REPORT}, t.context = v.value, t.seq = t.seq + 1", fence, seq)

    def _update(self, rows: Sequence[Task], change: str, fence: UUID, seq: int) -> int:
        columns = "columns (id varchar(32) path '$[0]', value longtext character set utf8mb4 path '$[1]')"
        joined = f"json_table(%s, '$[*]' {columns}) v straight_join pyasync_task t force index (primary)"
        document = json.dumps([(id.hex(), value) for id, value in rows])
        return self._cursor.execute(
            f"update {joined} on t.id = unhex(v.id) set {change} "
            "where t.fence = %s and t.seq = %s and t.stage = 'running'",
            (document, fence.bytes, seq),
        )

    def create(self, ids: Sequence[UUID], *, notify: bool) -> None:
        values = ", ".join([f"({_VALUES.format(id='%s', arguments='%s', now=self._now)})"] * len(ids))
        parameters = [value for id in ids for value in (id.bytes, "0")]
        self._cursor.execute(f"insert into {_INSERT} values {values} returning id", parameters)
        _must_be(len(self._cursor.fetchall()), len(ids))
        self.connection.commit()


class SQLite(Driver):
    """sqlite3, WAL, synchronous=FULL: as durable as the others."""

    _now = "strftime('%Y-%m-%d %H:%M:%f000', 'now')"

    def __init__(self, place: Place) -> None:
        self.connection = sqlite3.connect(str(place.parts.database), isolation_level=None)
        self.connection.execute("pragma journal_mode = wal")
        self.connection.execute("pragma synchronous = full")

    def begin(self) -> None:
        self.connection.execute("begin immediate")

    def claim(self, batch: int, fence: UUID) -> list[Task]:
        change = _CLAIM.format(node="?", fence="?", now=self._now)
        first = f"select id from pyasync_task where {_OPEN} limit {batch}"
        sql = f"update pyasync_task set {change} where id in ({first}) returning id, arguments"
        return self.connection.execute(sql, (_NODE.bytes, fence.bytes)).fetchall()

    def finish(self, done: Sequence[Task], fence: UUID) -> int:
        return self._update(f"{_FINISH.format(now=self._now)}, result = ?", done, fence, 0)

    def report(self, contexts: Sequence[Task], fence: UUID, seq: int) -> int:
        return self._update(f"{_REPORT}, context = ?", contexts, fence, seq)

    def _update(self, change: str, rows: Sequence[Task], fence: UUID, seq: int) -> int:
        guard = "id = ? and fence = ? and seq = ? and stage = 'running'"
        return self.connection.executemany(
            f"update pyasync_task set {change}, seq = seq + 1 where {guard}",
            [(value, id, fence.bytes, seq) for id, value in rows],
        ).rowcount

    def create(self, ids: Sequence[UUID], *, notify: bool) -> None:
        values = _VALUES.format(id="?", arguments="?", now=self._now)
        if len(ids) == 1:
            found = self.connection.execute(
                f"insert into {_INSERT} values ({values}) returning id", (ids[0].bytes, "0")
            )
            _must_be(len(found.fetchall()), 1)
            return
        self.begin()
        rows = [(id.bytes, "0") for id in ids]
        _must_be(self.connection.executemany(f"insert into {_INSERT} values ({values})", rows).rowcount, len(ids))
        self.commit()
