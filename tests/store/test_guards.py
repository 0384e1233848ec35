"""What keeps a claim from standing twice when all that usually keeps it so has failed."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from uuid import UUID

import pytest

from pyasync.domain.queues import Fifo, Queue
from pyasync.domain.task import Claim
from pyasync.ids import new_fence
from pyasync.store import claims, writes
from pyasync.store.claims import Offer, Request
from pyasync.store.database import Database
from pyasync.store.writes import Fate, Write
from tests.store.rows import NODE, Rows

HEIR = UUID("00000000-0000-7000-8000-000000000002")
REQUEST = Request(Queue.RUN, 1, [Offer("report", 0, "resume", 3, None, True)], Fifo())


@pytest.fixture(scope="module")
def first_fences() -> list[UUID]:
    """The first fences that each of two processes draws."""
    command = [sys.executable, "-c", "from pyasync.ids import new_fence; print(new_fence())"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    return [UUID(process.communicate(timeout=60)[0].strip()) for process in processes]


def test_a_claim_that_a_failover_forgot_does_not_stand_beside_the_next_one(
    database: Database, rows: Rows, first_fences: list[UUID]
) -> None:
    forgotten, next_one = first_fences
    task_id = rows.put("pending, run")
    database.once(claims.claim, NODE, forgotten, REQUEST)
    rows.drop(task_id)
    rows.put("pending, run", id=task_id)  # the replica had not heard of the claim

    database.once(claims.claim, HEIR, next_one, REQUEST)
    late = database.once(writes.write, [Write(Claim(task_id, NODE, forgotten, 0), context='"late"')])

    assert [each.fate for each in late] == [Fate.LOST]
    assert (rows.get(task_id).node_id, rows.get(task_id).context) == (HEIR, None)


@pytest.mark.parametrize("status", ["running, run", "paused, pause", "finished, run", "failed, run", "init, none"])
def test_a_task_that_is_in_a_queue_by_mistake_is_not_claimed(database: Database, rows: Rows, status: str) -> None:
    rows.put(status, queue="run")
    before = rows.all()

    with suppress(RuntimeError):  # where it is chosen first, and taken then
        assert database.once(claims.claim, HEIR, new_fence(), REQUEST) == []

    assert rows.all() == before
