"""Rows put into any status by SQL, and read back as they are: the tests' own way to the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, NullPool, create_engine, delete, event, insert, select, text, update

from pyasync.domain.task import Claim
from pyasync.ids import new_fence, new_id
from pyasync.store import nodes
from pyasync.store.database import Database
from pyasync.store.nodes import Beat
from pyasync.store.tables import tables

NODE = UUID("00000000-0000-7000-8000-000000000001")
"""Owns what the tests put as running."""

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
FAR_AHEAD = datetime(2100, 1, 1, tzinfo=UTC)

STATUSES = (
    "init, none",
    "pending, run",
    "pending, delete",
    "running, run",
    "running, delete",
    "running, pause",
    "running, cancel",
    "deleting, delete",
    "paused, run",
    "paused, delete",
    "paused, pause",
    "finished, run",
    "failed, run",
    "failed, delete",
)

_QUEUES = {"pending, run": "run", "paused, run": "run", "pending, delete": "delete", "paused, delete": "delete"}


class Rows:
    """The table of tasks, reached past the code under test."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._made = 0

    def put(self, status: str, **columns: Any) -> UUID:
        """Insert a row of a status, such as "running, pause", consistent in all its columns; return its id."""
        values = self._values(status) | columns
        with self.database.transaction() as tx:
            tx.execute(insert(tx.t.task).values(values))
        task_id: UUID = values["id"]
        return task_id

    def put_many(self, number: int, status: str = "pending, run", **columns: Any) -> list[UUID]:
        """Insert that many rows alike."""
        many = [self._values(status) | columns for _ in range(number)]
        with self.database.transaction() as tx:
            for start in range(0, number, 1_000):
                tx.execute(insert(tx.t.task), many[start : start + 1_000])
        return [row["id"] for row in many]

    def fill(self, number: int, status: str = "pending, run", **columns: Any) -> None:
        """Insert very many rows alike, fast."""
        new_id = {"postgresql": "gen_random_uuid()", "sqlite": "randomblob(16)"}
        own = new_id.get(self.database.dialect.name, "random_bytes(16)")
        names = ", ".join(column.name for column in self.table.c if column.name != "id")
        first = self.put(status, **columns)
        mark = f"copy of {first}"
        self.change(first, message=mark)
        double = f"insert into pyasync_task (id, {names}) select {own}, {names} from pyasync_task where message = :mark"
        with self.database.transaction() as tx:
            made = 1
            while made < number:
                made += tx.execute(text(f"{double} limit {number - made}"), {"mark": mark}).rowcount

    def analyze(self) -> None:
        """Let the database's planner know what is in the table."""
        with self.database.autocommit() as tx:
            tx.execute(text("analyze table pyasync_task" if tx.dialect.name == "mysql" else "analyze pyasync_task"))

    def claimed(self, status: str = "running, run", **columns: Any) -> Claim:
        """Insert a row that a node runs; return its claim."""
        claim = Claim(self.put(status, **columns), NODE, new_fence(), columns.get("seq", 0))
        self.change(claim.task_id, fence=claim.fence)
        return claim

    def _values(self, status: str) -> dict[str, Any]:
        stage, mark = status.split(", ")
        self._made += 1
        created_at = LONG_AGO + timedelta(seconds=self._made)
        values: dict[str, Any] = {
            "id": new_id(),
            "type": "report",
            "user_name": "alice",
            "group_name": "",
            "stage": stage,
            "mark": mark,
            "queue": _QUEUES.get(status),
            "rank": 0,
            "ready_at": created_at,
            "due_at": None,
            "run_at": None,
            "node_id": None,
            "fence": None,
            "epoch": 0,
            "seq": 0,
            "attempt": 1,
            "losses": 0,
            "arguments": '{"n":1}',
            "context": None,
            "version": 0,
            "on_node_loss": "resume",
            "created_at": created_at,
            "key_name": None,
            "held_key": None,
            "done_at": None,
        }
        if stage in ("running", "deleting"):
            values |= {"node_id": NODE, "fence": new_fence(), "epoch": 1, "started_at": created_at}
        if stage in ("finished", "failed"):
            values |= {"done_at": created_at}
        return values

    def change(self, task_id: UUID, **columns: Any) -> None:
        """Set columns of a row, and commit."""
        with self.database.transaction() as tx:
            tx.execute(update(tx.t.task).where(tx.t.task.c.id == task_id).values(columns))

    def drop(self, task_id: UUID) -> None:
        """Remove a row."""
        with self.database.transaction() as tx:
            tx.execute(delete(tx.t.task).where(tx.t.task.c.id == task_id))

    def empty(self) -> None:
        """Remove all rows."""
        with self.database.transaction() as tx:
            tx.execute(delete(tx.t.task))

    def get(self, task_id: UUID) -> Any:
        """Return all columns of a row as they are committed; None if there is none."""
        with self.database.transaction() as tx:
            return tx.execute(select(tx.t.task).where(tx.t.task.c.id == task_id)).one_or_none()

    def status(self, task_id: UUID) -> str | None:
        """Return a row's status as `put` takes it; None if there is no row."""
        row = self.get(task_id)
        return None if row is None else f"{row.stage}, {row.mark}"

    def column(self, name: str) -> list[Any]:
        """Return one column of all rows, in the order of their ids."""
        with self.database.transaction() as tx:
            column = tx.t.task.c
            return list(tx.execute(select(column[name]).order_by(column.id)).scalars())

    def all(self) -> list[Any]:
        """Return all columns of all rows, in the order of their ids: what "nothing changed" compares."""
        with self.database.transaction() as tx:
            return list(tx.execute(select(tx.t.task).order_by(tx.t.task.c.id)).all())

    def join(self, node_id: UUID = NODE, name: str = "north", **told: Any) -> None:
        """Add a node that is alive."""
        beat = Beat(
            **({"counter": 1, "session_key": None, "slots": 10, "running": 0, "draining": False, "types": {}} | told)
        )
        self.database.once(nodes.join, node_id, name, "1.0", 15.0, beat)

    def lose(self, node_id: UUID = NODE) -> None:
        """Mark a node as lost."""
        with self.database.transaction() as tx:
            tx.execute(update(tx.t.node).where(tx.t.node.c.id == node_id).values(lost=True))

    def lose_all(self) -> None:
        """Mark all nodes as lost."""
        with self.database.transaction() as tx:
            tx.execute(update(tx.t.node).values(lost=True))

    @contextmanager
    def locked(self, *task_ids: UUID) -> Iterator[Connection]:
        """Hold rows' locks on a second connection, as a caller's open transaction does."""
        engine = host_engine(self.database.url.render_as_string(hide_password=False))
        with engine.connect() as connection, connection.begin():
            for task_id in task_ids:  # one by one: for several, MariaDB reads, and so locks, all of a table so small
                connection.execute(select(self.table.c.id).where(self.table.c.id == task_id).with_for_update())
            yield connection
        engine.dispose()

    @property
    def table(self) -> Any:
        """Return the table of tasks."""
        return tables(None).task


def host_engine(url: str, **options: Any) -> Engine:
    """Return an engine as a host application has one, with none of our session settings."""
    return create_engine(url, poolclass=NullPool, **options)


@contextmanager
def recorded(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    """Collect the statements, with their parameters, that an engine sends."""
    seen: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


def raised(error: type[Exception], call: Callable[[], object]) -> Exception:
    """Return what a call raises."""
    try:
        call()
    except error as caught:
        return caught
    raise AssertionError(f"{error.__name__} was not raised")


def changes(before: Any, after: Any) -> dict[str, Any]:
    """Return the columns of a row that differ, with their new values."""
    old, new = before._mapping, after._mapping
    return {name: new[name] for name in new if new[name] != old[name]}


def faults(row: Any) -> list[str]:
    """Return what in a row contradicts something else in it: nothing, after whatever was done to it."""
    status, owned = f"{row.stage}, {row.mark}", row.stage in ("running", "deleting")
    waits = row.due_at is not None
    queues = {None} if waits or status not in _QUEUES else {_QUEUES[status], "probation"}
    rules = {
        f"queue {row.queue}": row.queue in queues,
        "probation": (row.queue == "probation") == (row.losses >= 2 and row.queue is not None),
        "ready_at": row.queue is None or row.ready_at is not None,
        "due_at": not waits or row.stage == "pending",
        "node_id": (row.node_id is not None) == owned,
        "fence": not owned or row.fence is not None,
        "done_at": row.done_at is not None or row.stage not in ("finished", "failed"),
        "not done": row.done_at is None or row.stage in ("finished", "failed") or row.mark == "delete",
        "held_key": row.held_key is None or (row.stage not in ("finished", "failed") and row.mark != "delete"),
        "purge_at": row.purge_at is None or row.stage in ("finished", "failed"),
    }
    return [f"({status}): {name}" for name, holds in rules.items() if not holds]
