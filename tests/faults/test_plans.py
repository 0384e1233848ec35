"""Lists over a backlog read few rows, by an index. So do claims and sweeps, as tests/store/test_claims.py shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from pyasync import State
from pyasync.settings import Settings
from pyasync.store import tasks
from pyasync.store.database import Database
from pyasync.store.tables import tables
from pyasync.store.tasks import Filter
from tests.store.rows import LONG_AGO, Rows
from tests.store.test_claims import indexes_used, rows_read

BACKLOG = 50_000
MINE = 20
DAY = timedelta(days=1)
PAGE = 10
FEW = 120
"""Rows and index entries that a page of ten may cost."""


@pytest.fixture
def rows(url: str) -> Iterator[Rows]:
    """A database in which another user has a backlog, and ours a few tasks among it."""
    database = Database(url, Settings())
    tables(None).metadata.create_all(database.engine)
    rows = Rows(database)
    rows.fill(BACKLOG // 2, user_name="other")
    for number in range(MINE):
        rows.put("pending, run" if number % 2 else "finished, run", user_name="mine", created_at=LONG_AGO + DAY)
    rows.fill(BACKLOG // 2, "finished, run", user_name="other", created_at=LONG_AGO + 2 * DAY)
    if database.dialect.name != "sqlite":  # which knows averages only: analyzed, it would look for `mine` by age
        rows.analyze()
    yield rows
    database.close()


def _page(**wanted: Any) -> Callable[[Any], object]:
    return lambda tx: tasks.find(tx, Filter(**wanted), offset=0, limit=PAGE, after=None)


LISTS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "newest of all": ("pyasync_task_newest", _page()),
    "newest of a user": ("pyasync_task_user", _page(user="mine")),
    "of a user, in a state": ("pyasync_task_user", _page(user="mine", states=(State.PENDING,))),
    "of a user that has none": ("pyasync_task_user", _page(user="nobody")),
    "count of a user": ("pyasync_task_user", lambda tx: tasks.count(tx, Filter(user="mine"))),
}


@pytest.mark.timeout(180)
def test_no_list_reads_a_backlog_that_it_does_not_want(rows: Rows) -> None:
    """F42."""
    read = {name: rows_read(rows.database, look) for name, (_, look) in LISTS.items()}
    indexes = {name: indexes_used(rows.database, look) for name, (_, look) in LISTS.items()}

    assert {name: number for name, number in read.items() if number > FEW} == {}
    assert {name: used for name, used in indexes.items() if not any(LISTS[name][0] in each for each in used)} == {}
