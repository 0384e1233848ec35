"""Has the database itself write down what becomes of every task's row, and says whether all of it was allowed.

history = History(url)      # the triggers are there from now on
...
counted = history.check()   # counted[task]["takeover"], counted[task]["report"], ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Column, Integer, MetaData, NullPool, Row, Table, create_engine, select

from pyasync.domain.states import OWNED, Mark, Stage, Status
from pyasync.domain.transitions import TABLE
from pyasync.store.dialects import dialect_for
from pyasync.store.tables import tables

KEPT = ("stage", "mark", "seq", "epoch", "fence", "node_id")

_FUNCTION = """
create function noted() returns trigger language plpgsql as $$ begin {insert}; return null; end $$
"""
_TRIGGERS = {
    "sqlite": ["create trigger noted after update on pyasync_task begin {insert}; end"],
    "mysql": ["create trigger noted after update on pyasync_task for each row {insert}"],
    "postgresql": [
        _FUNCTION,
        "create trigger noted after update on pyasync_task for each row execute function noted()",
    ],
}


class History:
    """A table with a row for each update of a task's row: what the row was before, and what it has become."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._table = _history()
        self._table.create(self._engine)
        insert = (
            f"insert into history (task, {', '.join(f'{when}_{name}' for when in ('old', 'new') for name in KEPT)}) "
            f"values (new.id, {', '.join(f'{when}.{name}' for when in ('old', 'new') for name in KEPT)})"
        )
        with self._engine.connect() as connection:
            for sql in _TRIGGERS[dialect_for(self._engine.dialect.name).name]:
                connection.exec_driver_sql(sql.format(insert=insert))

    def rows(self) -> list[Row[Any]]:
        """All updates, by task, in the order in which they came."""
        column = self._table.c
        with self._engine.connect() as connection:
            return list(connection.execute(select(self._table).order_by(column.task, column.id)))

    def check(self) -> dict[UUID, Counter[str]]:
        """Fail if a row was ever written by somebody who had no right to; count what happened to each, by kind."""
        owners: dict[UUID, UUID] = {}
        by_task = groupby(self.rows(), lambda row: row.task)
        return {task: Counter(self._check_task(list(updates), owners)) for task, updates in by_task}

    def _check_task(self, updates: list[Row[Any]], owners: dict[UUID, UUID]) -> Iterator[str]:
        fences: list[UUID | None] = [None]
        for before, row in zip([None, *updates], updates, strict=False):
            assert before is None or _new(before) == _old(row), f"a write that nobody saw, before {row}"
            assert _allowed(row), f"no event leads there: {row}"
            kind = _kind(row)
            if row.new_fence != row.old_fence:
                assert row.new_fence not in fences, f"a fence came back: {row}"
                fences.append(row.new_fence)
            if kind == "claim":
                assert owners.setdefault(row.new_fence, row.new_node_id) == row.new_node_id, row
            yield kind


def _history() -> Table[Any]:
    task = tables(None).task.c
    number = BigInteger().with_variant(Integer, "sqlite")  # which counts up only what it calls an integer
    kept = [Column(f"{when}_{name}", task[name].type) for when in ("old", "new") for name in KEPT]
    return Table("history", MetaData(), Column("id", number, primary_key=True), Column("task", task.id.type), *kept)


def _old(row: Row[Any]) -> tuple[Any, ...]:
    return tuple(row._mapping[f"old_{name}"] for name in KEPT)


def _new(row: Row[Any]) -> tuple[Any, ...]:
    return tuple(row._mapping[f"new_{name}"] for name in KEPT)


def _allowed(row: Row[Any]) -> bool:
    """Whether one event of the table, or none, leads from the one status to the other."""
    old = Status(Stage(row.old_stage), Mark(row.old_mark))
    new = Status(Stage(row.new_stage), Mark(row.new_mark))
    return old == new or new in TABLE[old].values()


def _kind(row: Row[Any]) -> str:
    """What an update was. Fails if it is none of what the protocol knows."""
    owned = (Stage(row.old_stage) in OWNED, Stage(row.new_stage) in OWNED)
    raised = (row.new_epoch - row.old_epoch, row.new_seq - row.old_seq)
    same = (row.new_fence == row.old_fence, row.new_node_id == row.old_node_id)
    match owned, raised, same:
        case (False, True), (1, 0), (False, False):
            return "claim"
        case (True, True), (0, 1), (True, True):
            return "report"
        case (True, False), (0, 1), (True, False):
            return "end"
        case (True, False), (0, 1), (False, False):
            return "forced end"
        case (True, False), (0, 0), (False, False):
            return "takeover"
        case _, (0, 0), (True, True):
            return "verb"
    raise AssertionError(f"nobody had the right to write this: {row}")
