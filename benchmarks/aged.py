"""Does a node stay as fast in a table that is full, or while somebody holds a snapshot open, as in an empty table?

The size is how many rows are there before; a twentieth as many tasks are run among them, a fifth beside a snapshot.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import text

from benchmarks import latency
from benchmarks.common import Contender, Place, Question, Sizes, Target, connect, main, p95, prepare
from benchmarks.drain import NOOP, drain
from pyasync import Client, Node, Registry, State
from pyasync.store.tables import tables

CONCURRENCY = 100
LATENCIES = 30
LOOKS = 200
USERS = 100
CHUNK = 100_000
DAY = 86_400.0
PATIENCE = 600.0
FILL = "fill"

FINISHED = {
    "stage": "'finished'",
    "queue": "null",
    "result": "'1'",
    "epoch": "1",
    "seq": "1",
    "started_at": "model.created_at",
    "done_at": "model.created_at",
}
"""What sets a finished row apart from one that waits, in SQL."""


def among(place: Place, size: int, **filling: Any) -> dict[str, float]:
    """Measure tasks among other rows that are no business of the node."""
    if filling:
        fill(place, size, **filling)
    return {"tasks/s": drain(place, max(1, size // 20), concurrency=CONCURRENCY), **_looks(place, size)}


def backlog(place: Place, size: int) -> dict[str, float]:
    """Measure the first tasks of as many as there are rows."""
    fill(place, size, type=NOOP)
    return {"tasks/s": _first(place, max(1, size // 20)), **_looks(place, size)}


def beside(place: Place, size: int, snapshot: bool) -> float:
    """Measure more tasks, while a transaction that sees the table as it was is open, or is not."""
    prepare(place)
    number = max(1, size // 5)
    if not snapshot:
        return drain(place, number, concurrency=CONCURRENCY)
    with _snapshot(place):
        return drain(place, number, concurrency=CONCURRENCY)


def _first(place: Place, wanted: int) -> float:
    registry, begun, enough = Registry(), 0, threading.Event()

    async def noop(number: int) -> int:
        nonlocal begun
        begun += 1
        if begun == wanted:
            enough.set()
        return number

    with Node(place.url, registry, concurrency=CONCURRENCY):
        began = time.perf_counter()
        registry.register_task(NOOP, noop)
        if not enough.wait(PATIENCE):
            raise TimeoutError(f"{begun} of {wanted} tasks have begun")
        took = time.perf_counter() - began
    with Client(place.url) as client:
        finished = client.count_tasks(types=[NOOP])[State.FINISHED]
    if finished < wanted:
        raise AssertionError(f"{finished} of {wanted} tasks are finished")
    return wanted / took


def _looks(place: Place, size: int) -> dict[str, float]:
    """Measure newcomers, and users who look at their tasks."""
    waited = latency.same_process(place, min(LATENCIES, max(1, size // 50)))["p50, ms"]
    with Client(place.url) as client:
        return {"latency p50, ms": waited, "get_tasks p95, ms": p95([_look(client) for _ in range(LOOKS)])}


def _look(client: Client) -> float:
    user, state = f"user {random.randrange(USERS)}", random.choice([State.FINISHED, State.PENDING])
    began = time.perf_counter()
    client.get_tasks(user=user, states=[state])
    return 1000 * (time.perf_counter() - began)


@contextmanager
def _snapshot(place: Place) -> Iterator[None]:
    begin = {
        "postgresql": "begin isolation level repeatable read",
        "mariadb": "start transaction with consistent snapshot",
        "sqlite": "begin",
    }
    with connect(place.url) as connection:
        connection.exec_driver_sql(begin[place.kind])
        connection.exec_driver_sql("select count(*) from pyasync_node").scalar()
        yield
        connection.exec_driver_sql("rollback")


# --- rows in bulk: each is a copy of one that was created, with an id and a user of its own


def fill(place: Place, size: int, type: str = FILL, change: Mapping[str, str] | None = None, **fields: Any) -> None:
    """Insert so many rows like that of a new task; `change` is what else they have, `fields` are NewTask's."""
    prepare(place, type, 1, **fields)
    with Client(place.url) as client:
        model = client.get_tasks(types=[type], limit=1)[0].id
    with connect(place.url) as connection:
        statement = text(_copying(place.kind, change or {}))
        for start in range(0, size - 1, CHUNK):
            connection.execute(statement, {"model": _bound(model, place.kind), "start": start, "end": size - 1})
        for each in _TIDYING[place.kind]:
            connection.exec_driver_sql(each)


_ID = {
    "postgresql": "cast(lpad(to_hex(number.n), 32, '0') as uuid)",
    "mariadb": "unhex(lpad(hex(number.n), 32, '0'))",
    "sqlite": "cast(printf('%016d', number.n) as blob)",
}
_USER = {
    "postgresql": f"'user ' || number.n % {USERS}",
    "mariadb": f"concat('user ', number.n % {USERS})",
    "sqlite": f"'user ' || number.n % {USERS}",
}
_TIDYING = {
    "postgresql": ["vacuum analyze pyasync_task"],  # as autovacuum does within a minute
    "mariadb": ["analyze table pyasync_task"],
    "sqlite": [],  # which nobody does by itself
}


def _copying(kind: str, change: Mapping[str, str]) -> str:
    names = [column.name for column in tables(None).task.columns]
    own = {"id": _ID[kind], "user_name": _USER[kind], **change}
    digits = " union all ".join(f"select {n} as n" for n in range(10))
    return (
        f"insert into pyasync_task ({', '.join(names)}) "
        f"with digit as ({digits}), number as ("
        "select :start + a.n + 10 * b.n + 100 * c.n + 1000 * d.n + 10000 * e.n as n "
        "from digit a, digit b, digit c, digit d, digit e) "
        f"select {', '.join(own.get(name, f'model.{name}') for name in names)} "
        "from pyasync_task model, number where model.id = :model and number.n < :end order by number.n"
    )


def _bound(model: UUID, kind: str) -> Any:
    return model if kind == "postgresql" else model.bytes


def contenders(kind: str) -> Sequence[Contender]:
    """Ours, among what may be there."""
    return [
        Contender("empty table", among),
        Contender("finished rows", partial(among, change=FINISHED)),
        Contender("pending rows", backlog),
        Contender("pending rows of an unknown type", partial(among, type="unknown")),
        Contender("rows due tomorrow that go first", partial(among, type=NOOP, delay=DAY, priority=10)),
        Contender("no snapshot", partial(beside, snapshot=False)),
        Contender("a snapshot held open", partial(beside, snapshot=True)),
    ]


CROWDED = (
    "finished rows",
    "pending rows",
    "pending rows of an unknown type",
    "rows due tomorrow that go first",
)

QUESTION = Question(
    name="aged",
    unit="tasks/s",
    contenders=contenders,
    sizes=Sizes(small=200, usual=50_000, full=1_000_000),
    targets=(
        *(Target(name, at_least=0.8, of="empty table") for name in CROWDED),
        *(Target(name, at_most=1.2, of="empty table", figure="latency p50, ms") for name in CROWDED),
        Target("finished rows", at_most=5.0, figure="get_tasks p95, ms"),
        Target("a snapshot held open", at_least=0.7, of="no snapshot"),
    ),
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
