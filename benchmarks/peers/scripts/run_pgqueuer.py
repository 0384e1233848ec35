"""pgqueuer, with the settings of its documentation that are fastest.

- asyncpg (docs/development/benchmark.md: about twice as fast as psycopg) on one connection for the worker, not a pool
  (docs/guides/performance-tuning.md; a pool of 4 made no difference), and uvloop, on which its tools/benchmark.py runs;
- batch_size=500 (performance-tuning.md: more for short jobs; 10 by default; of 100, 500, 1,000 and 2,000 the
  fastest), no limit of concurrency, and the mode "drain";
- the autovacuum settings that it recommends (performance-tuning.md: `pgq autovac`), and its default durability, with
  all tables logged;
- in bulk, lists of 1,000 for one call of `enqueue`.

It moves what has finished to a log table; it stores no results.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import asyncpg
import uvloop
from peer import WARM_UP, Figures, Stopwatch, bulks, check, latencies, main, rate, watch
from pgqueuer.core.qm import QueueManager
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode

BATCH = 500


async def install(dsn: str) -> Queries:
    queries = Queries(AsyncpgDriver(await asyncpg.connect(dsn)))
    await queries.install()
    await queries.optimize_autovacuum()
    return queries


async def one_by_one(queries: Queries, size: int) -> None:
    for number in range(size):
        await queries.enqueue("noop", str(number).encode())


async def in_bulk(queries: Queries, size: int) -> None:
    for numbers in bulks(size):
        await queries.enqueue(["noop"] * len(numbers), [str(number).encode() for number in numbers], [0] * len(numbers))


async def creating(create: Callable[[Queries, int], Awaitable[None]], dsn: str, size: int) -> float:
    queries = await install(dsn)
    await create(queries, WARM_UP)
    return await rate(size, create(queries, size))


async def drain(dsn: str, size: int) -> float:
    queries = await install(dsn)
    await drain_once(dsn, queries, WARM_UP)
    figure = await drain_once(dsn, queries, size)
    check(dsn, "select count(*) from pgqueuer_log where status = 'successful'", WARM_UP + size)
    return figure


async def drain_once(dsn: str, creating: Queries, size: int) -> float:
    await in_bulk(creating, size)
    queries = Queries(AsyncpgDriver(await asyncpg.connect(dsn)))
    manager = QueueManager(queries)
    manager.entrypoint("noop")(noop)
    stopwatch = Stopwatch(size)
    watch(queries, "dequeue", before=stopwatch.claim)
    watch(queries, "log_jobs", after=lambda _, jobs: stopwatch.finish(len(jobs)))
    await manager.run(batch_size=BATCH, mode=QueueExecutionMode.drain)
    return stopwatch.rate()


async def noop(job: Job) -> int:
    return int(job.payload)


async def latency(dsn: str, size: int) -> Figures:
    creating = await install(dsn)
    manager = QueueManager(Queries(AsyncpgDriver(await asyncpg.connect(dsn))))
    first_lines: asyncio.Queue[float] = asyncio.Queue()

    @manager.entrypoint("start")
    async def start(job: Job) -> None:
        first_lines.put_nowait(time.perf_counter())

    worker = asyncio.create_task(manager.run(batch_size=BATCH))
    figures = await latencies(lambda: creating.enqueue("start", b""), first_lines, size)
    manager.shutdown.set()
    await worker
    return figures


main(
    uvloop.run,
    drain=drain,
    one_by_one=partial(creating, one_by_one),
    in_bulk=partial(creating, in_bulk),
    latency=latency,
)
