"""What does a node cost that has nothing to do: transactions and CPU, at default settings?

The size is for how many seconds it is watched. PostgreSQL and MariaDB count the transactions themselves, in SQLite's
place the driver tells of each statement.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

from sqlalchemy import Pool, event, make_url, text

from benchmarks.common import Contender, Place, Question, Sizes, Target, connect, main, prepare
from benchmarks.processes import Process
from pyasync import Node, Registry

SETTLED = 4.0
"""Seconds after the start from which a node does nothing any more but what it always does."""
FLUSHED = 11.0
"""The same where sessions that do nothing keep their last transactions to themselves for 10 s: in PostgreSQL."""

registry = Registry()
_transactions = 0


@registry.task("noop")
async def _noop() -> None: ...


def idle(place: Place, size: int, nodes: int = 1) -> dict[str, float]:
    """Return what each of so many nodes costs a second."""
    prepare(place)
    with ExitStack() as stack:
        started = [Process(_node, place.url) for _ in range(nodes)]
        for node in started:
            stack.enter_context(node)
        count = stack.enter_context(_counting(place, started))
        time.sleep(min(size, FLUSHED if place.kind == "postgresql" else SETTLED))
        began, transactions, cpu = time.monotonic(), count(), _cpu(started)
        time.sleep(size)
        took, transactions, cpu = time.monotonic() - began, count() - transactions, _cpu(started) - cpu
    return {"transactions/s": transactions / took / nodes, "% of a core": 100 * cpu / took / nodes}


def _cpu(nodes: Sequence[Process]) -> float:
    return sum(node.call(_process_time) for node in nodes)


def _process_time(node: Node) -> float:
    return time.process_time()


def _counting(place: Place, nodes: Sequence[Process]) -> AbstractContextManager[Callable[[], float]]:
    """Give a function that counts the transactions since whenever."""
    if place.kind == "sqlite":
        return nullcontext(lambda: sum(node.call(_counted) for node in nodes))
    return _asking(place)


_ASKED = {
    "postgresql": "select xact_commit + xact_rollback from pg_stat_database where datname = :name",
    "mariadb": "select sum(variable_value) from information_schema.global_status "
    "where variable_name in ('HANDLER_COMMIT', 'HANDLER_ROLLBACK') and :name is not null",
}


@contextmanager
def _asking(place: Place) -> Iterator[Callable[[], float]]:
    # From another database, so that the questions are not counted.
    elsewhere = make_url(place.admin_url).set(database="postgres" if place.kind == "postgresql" else None)
    with connect(elsewhere.render_as_string(hide_password=False)) as connection:
        query = text(_ASKED[place.kind])
        yield lambda: float(connection.execute(query, {"name": place.parts.database}).scalar())


def _counted(node: Node) -> int:
    return _transactions


def _node(url: str) -> Node:
    if url.startswith("sqlite"):
        event.listen(Pool, "connect", _trace)
    return Node(url, registry)


def _trace(connection: sqlite3.Connection, record: object) -> None:
    connection.set_trace_callback(partial(_note, connection))


def _note(connection: sqlite3.Connection, statement: str) -> None:
    """Count the ends of transactions, and the statements that are one by themselves."""
    global _transactions
    verb = statement.split(maxsplit=1)[0].lower()
    alone = not connection.in_transaction and verb not in ("begin", "pragma")
    _transactions += alone or verb in ("commit", "rollback")


def contenders(kind: str) -> Sequence[Contender]:
    """Nodes by themselves, and with others to watch."""
    return [Contender("alone", idle), Contender("one of two", partial(idle, nodes=2))]


QUESTION = Question(
    name="idle",
    unit="transactions/s",
    contenders=contenders,
    sizes=Sizes(small=2, usual=15, full=60),
    targets=(
        Target("alone", at_most=1.2),
        Target("one of two", at_most=2.5),
        Target("alone", at_most=0.3, figure="% of a core"),
        Target("one of two", at_most=0.3, figure="% of a core"),
    ),
    runs=1,
    less_is_better=True,
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
