"""How long does it take from before the call that creates a task to the first line of its body, on an idle node?

The node is in the creating process or in another one. Where nothing wakes it there, it is the poll that finds the task,
at any moment of its interval.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from uuid import UUID, uuid4

import psycopg

from benchmarks.common import Contender, Place, Question, Sizes, Target, main, p95, prepare
from benchmarks.processes import Process
from pyasync import Client, Node, Registry, Settings

PATIENCE = 30.0
WARM_UP = 3
IDLE = 0.05
"""Seconds between two tasks, at least: after these a node looks no more for what may have come with the last one."""

registry = Registry()
_begun: SimpleQueue[float] = SimpleQueue()


@registry.task("start")
async def _start() -> None:
    _begun.put(time.monotonic())


def same_process(place: Place, size: int) -> dict[str, float]:
    """Create with the node that runs the tasks."""
    prepare(place)
    with Node(place.url, registry) as node:
        return measured(lambda: _once(node, _first_line), size)


def another_process(place: Place, size: int) -> dict[str, float]:
    """Create with a client; the node is in a process of its own."""
    prepare(place)
    spread = Settings().poll_interval if place.kind == "mariadb" else IDLE
    with Client(place.url) as client, Process(_node, place.url) as node:
        return measured(lambda: _once(client, lambda: node.call(_first_line)), size, spread)


def measured(once: Callable[[], float], size: int, spread: float = IDLE) -> dict[str, float]:
    """Return the median and the 95th percentile of so many latencies; `spread` is how far apart they are, at most."""
    latencies = []
    for _ in range(WARM_UP + size):
        time.sleep(IDLE + random.uniform(0.0, spread))
        latencies.append(1000 * once())
    return {"p50, ms": statistics.median(latencies[WARM_UP:]), "p95, ms": p95(latencies[WARM_UP:])}


def _once(client: Client, first_line: Callable[[], float]) -> float:
    began = time.monotonic()
    task = client.create_task("start")
    latency = first_line() - began
    client.wait_task(task, PATIENCE)
    return latency


def _first_line(node: object = None) -> float:
    return _begun.get(timeout=PATIENCE)


def _node(url: str) -> Node:
    return Node(url, registry)


# --- the limit: a loop by hand that is told of each task


def raw(place: Place, size: int) -> dict[str, float]:
    """Insert and notify in one statement; a loop in another process claims what it is told of, with a fence."""
    with psycopg.connect(_dsn(place.url), autocommit=True) as connection:
        connection.execute("create table job (id uuid primary key, queue text, fence uuid, arguments text not null)")
        connection.execute("create index job_claim on job (queue, id) where queue is not null")
        with Process(_raw_worker, place.url) as worker:
            return measured(lambda: _raw_once(connection, lambda: worker.call(_first_line)), size)


def _raw_once(connection: psycopg.Connection[tuple[object, ...]], first_line: Callable[[], float]) -> float:
    began = time.monotonic()
    connection.execute(
        "with job as (insert into job values (%s, 'run', null, '1') returning id) select pg_notify('job', '') from job",
        (uuid4(),),
    )
    return first_line() - began


@contextlib.contextmanager
def _raw_worker(url: str) -> Iterator[None]:
    with psycopg.connect(_dsn(url), autocommit=True) as connection:
        connection.execute("listen job")
        threading.Thread(target=_work, args=(connection,), daemon=True).start()
        yield


def _work(connection: psycopg.Connection[tuple[UUID, str]]) -> None:
    while True:
        if not list(connection.notifies(timeout=1.0, stop_after=1)):
            continue
        claimed = connection.execute(
            "update job set queue = null, fence = %s where id = any(array("
            "select id from job where queue = 'run' order by id limit 10 for update skip locked)) "
            "returning id, arguments",
            (uuid4(),),
        )
        for _ in claimed.fetchall():
            _begun.put(time.monotonic())


def _dsn(url: str) -> str:
    return url.replace("postgresql+psycopg:", "postgresql:")


def contenders(kind: str) -> Sequence[Contender]:
    """Ours; on PostgreSQL the loop by hand, too."""
    found = [
        Contender("pyasync, same process", same_process),
        Contender("pyasync, another process", another_process, share=0.2 if kind == "mariadb" else 1.0),
    ]
    return [*found, Contender("raw, another process", raw)] if kind == "postgresql" else found


SQL_PEERS = tuple(f"{name}*" for name in ("pgqueuer", "oban", "procrastinate", "dbos"))

QUESTION = Question(
    name="latency",
    unit="p50, ms",
    contenders=contenders,
    sizes=Sizes(small=5, usual=100, full=300),
    targets=(
        Target("pyasync, same process", at_most=1.0, of=SQL_PEERS, databases=("postgresql",)),
        Target("pyasync, another process", at_most=1.0, of=SQL_PEERS, databases=("postgresql",)),
        Target("pyasync, another process", at_most=3.0, figure="p95, ms", databases=("postgresql",)),
        Target("pyasync, another process", at_most=10.0, databases=("sqlite",)),
        Target(
            "pyasync, another process",
            at_most=600.0 * Settings().poll_interval,
            databases=("mariadb",),
            note="0.6 x poll_interval",
        ),
    ),
    runs=2,
    less_is_better=True,
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
