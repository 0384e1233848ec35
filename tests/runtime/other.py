"""What another program on the same database sees and does, past the node under test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, NullPool, create_engine, delete, event, insert, select, update

from pyasync.ids import new_fence
from pyasync.store.tables import tables

TASK = tables(None).task
NODE = tables(None).node

WRITES = ("insert", "update", "delete")


class Other:
    """Connections of its own, each used once: what they read is committed."""

    def __init__(self, url: str) -> None:
        arguments = {"timeout": 20} if url.startswith("sqlite") else {}
        self.engine = create_engine(url, poolclass=NullPool, connect_args=arguments)
        if url.startswith("sqlite"):
            event.listen(self.engine, "connect", _begin_by_ourselves)
            event.listen(self.engine, "begin", _begin_immediate)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Begin a transaction as a host application does, and commit it at the end."""
        with self.engine.begin() as connection:
            yield connection

    def row(self, task_id: UUID) -> Any:
        """Return all columns of a task's row; None if there is none."""
        with self.engine.begin() as connection:
            return connection.execute(select(TASK).where(TASK.c.id == task_id)).one_or_none()

    def status(self, task_id: UUID) -> str | None:
        """Return a row's status, such as "paused, run"; None if there is no row."""
        row = self.row(task_id)
        return None if row is None else f"{row.stage}, {row.mark}"

    def statuses(self) -> list[str]:
        """Return the statuses of all rows, in the order of their ids."""
        with self.engine.begin() as connection:
            rows = connection.execute(select(TASK.c.stage, TASK.c.mark).order_by(TASK.c.id))
            return [f"{row.stage}, {row.mark}" for row in rows]

    def change(self, task_id: UUID, **columns: Any) -> None:
        """Set columns of a task's row."""
        with self.engine.begin() as connection:
            connection.execute(update(TASK).where(TASK.c.id == task_id).values(columns))

    def take_over(self, task_id: UUID) -> None:
        """Make a task another node's: a new fence, and an owner that is there."""
        owner = self.add_node()
        self.change(task_id, fence=new_fence(), node_id=owner, epoch=TASK.c.epoch + 1)

    def add_node(self) -> UUID:
        """Add the row of a node that nobody watches for long."""
        node_id = new_fence()
        with self.engine.begin() as connection:
            mine = connection.execute(select(NODE).limit(1)).one()._asdict()
            connection.execute(insert(NODE).values(mine | {"id": node_id, "session_key": None, "lease": 3600.0}))
        return node_id

    def remove(self, task_id: UUID) -> None:
        """Remove a task's row."""
        with self.engine.begin() as connection:
            connection.execute(delete(TASK).where(TASK.c.id == task_id))

    def create_table(self, name: str = "effect") -> None:
        """Make a table for the effects of tasks, whose content must be unique."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql(f"create table {name} (content varchar(50) primary key)")

    def contents(self, name: str = "effect") -> list[str]:
        """Return what is in that table."""
        with self.engine.begin() as connection:
            return list(connection.exec_driver_sql(f"select content from {name} order by content").scalars())


def _begin_by_ourselves(dbapi: Any, record: object) -> None:
    dbapi.isolation_level = None


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("begin immediate")


class Statements:
    """Counts what an engine sends, from creation on."""

    def __init__(self, *engines: Engine) -> None:
        self.sent: list[str] = []
        self.begun = 0
        for engine in engines:
            self.watch(engine)

    def watch(self, engine: Engine) -> None:
        """Count another engine's statements too."""
        event.listen(engine, "before_cursor_execute", self._note)
        event.listen(engine, "begin", self._begin)

    def writes(self) -> list[str]:
        """Return the statements that change rows."""
        return [each for each in list(self.sent) if _verb(each) in WRITES]

    def _note(self, connection: Any, cursor: Any, statement: str, *_: object) -> None:
        self.sent.append(statement)

    def _begin(self, connection: Connection) -> None:
        self.begun += 1


def _verb(statement: str) -> str:
    words = statement.lower().split()
    if words[0] == "with":  # PostgreSQL's batches: the verb comes after the common table expressions
        return next((word for word in words if word in WRITES), "select")
    return words[0]
