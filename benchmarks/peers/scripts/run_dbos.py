"""DBOS Transact, with the settings of its documentation that are fastest.

- a queue without a limit of concurrency (docs/python/tutorials/queue-tutorial.md), which claims all that is there at
  once, and an async workflow, as in its own benchmark;
- to drain, the default of polling_interval_sec, 1 s; for latency 10 ms, since no creation wakes a worker and it polls
  (docs/python/reference/queues.md): an idle worker then makes hundreds of transactions a second;
- tasks are created with its client, and many of them in one transaction (docs/python/reference/client.md:
  `enqueue_in_transaction`), since it has no call for many.

What has finished stays, with its result.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable
from functools import partial

import sqlalchemy
from dbos import DBOS, DBOSClient
from peer import FIRST, WARM_UP, Figures, Stopwatch, bulks, check, main, pause, summary, watch

POLLING = 1.0
EAGER_POLLING = 0.01

first_lines: queue.SimpleQueue[float] = queue.SimpleQueue()


@DBOS.workflow(name="noop")
async def noop(number: int) -> int:
    return number


@DBOS.workflow(name="start")
def start() -> None:
    first_lines.put(time.perf_counter())


def launch(dsn: str) -> DBOS:
    url = dsn.replace("postgresql:", "postgresql+psycopg:")
    dbos = DBOS(config={"name": "benchmark", "system_database_url": url, "log_level": "ERROR"})
    DBOS.launch()
    return dbos


class Creator:
    """Puts tasks on a queue, from outside of the application."""

    def __init__(self, dsn: str, queue_name: str) -> None:
        url = dsn.replace("postgresql:", "postgresql+psycopg:")
        self.client = DBOSClient(system_database_url=url)
        self.engine = sqlalchemy.create_engine(url)
        self.options = {"queue_name": queue_name, "workflow_name": "noop"}

    def one_by_one(self, size: int) -> None:
        for number in range(size):
            self.client.enqueue(self.options, number)

    def in_bulk(self, size: int) -> None:
        for numbers in bulks(size):
            with self.engine.begin() as connection:
                for number in numbers:
                    self.client.enqueue_in_transaction(connection, self.options, number)


def creating(create: Callable[[Creator, int], None], dsn: str, size: int) -> float:
    launch(dsn)
    creator = Creator(dsn, "nobody listens")
    create(creator, WARM_UP)
    began = time.perf_counter()
    create(creator, size)
    figure = size / (time.perf_counter() - began)
    DBOS.destroy()
    return figure


def drain(dsn: str, size: int) -> float:
    dbos = launch(dsn)
    drain_once(dbos, dsn, "warm", WARM_UP)
    figure = drain_once(dbos, dsn, "drain", size)
    DBOS.destroy()
    check(dsn, "select count(*) from dbos.workflow_status where status = 'SUCCESS'", WARM_UP + size)
    return figure


def drain_once(dbos: DBOS, dsn: str, queue_name: str, size: int) -> float:
    Creator(dsn, queue_name).in_bulk(size)
    stopwatch = Stopwatch(size)
    watch(
        dbos._sys_db, "start_queued_workflows", before=lambda polled, *_: polled.name != queue_name or stopwatch.claim()
    )
    watch(dbos._sys_db, "update_workflow_outcome", after=lambda *_: stopwatch.finish())
    DBOS.register_queue(queue_name, polling_interval_sec=POLLING)
    return stopwatch.rate()


def latency(dsn: str, size: int) -> Figures:
    launch(dsn)
    creator = Creator(dsn, "start")
    DBOS.register_queue("start", polling_interval_sec=EAGER_POLLING)
    seconds = []
    for _ in range(FIRST + size):
        time.sleep(pause(EAGER_POLLING))
        began = time.perf_counter()
        creator.client.enqueue({"queue_name": "start", "workflow_name": "start"})
        seconds.append(first_lines.get() - began)
    DBOS.destroy()
    return summary(seconds)


main(
    asyncio.run,
    drain=drain,
    one_by_one=partial(creating, Creator.one_by_one),
    in_bulk=partial(creating, Creator.in_bulk),
    latency=latency,
)
