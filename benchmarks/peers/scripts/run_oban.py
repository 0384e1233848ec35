"""Oban for Python, with the settings of its documentation that are fastest.

- queues={"default": 500} (docs/defining_queues.md: a queue's concurrency), for the finishes since the last fetch share
  a transaction; of 20, 100, 300, 500 and 1,000 the fastest; a debounce_interval of 1 ms instead of 5 was no better;
- uvloop, which its command line (`oban start`, recommended in docs/production.md) runs on;
- its connection pool as it is by default (docs/production.md: "comfortable for most deployments").

What has finished stays in the table for a day; a job's result is not stored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import uvloop
from oban import Oban, job
from oban.schema import install
from peer import WARM_UP, Figures, Stopwatch, bulks, check, latencies, main, rate, watch
from psycopg_pool import AsyncConnectionPool

LIMIT = 500

first_lines: asyncio.Queue[float] = asyncio.Queue()


@job()
async def noop(number: int) -> int:
    return number


@job()
async def start() -> None:
    first_lines.put_nowait(time.perf_counter())


async def one_by_one(oban: Oban, size: int) -> None:
    for number in range(size):
        await oban.enqueue(noop.new(number))


async def in_bulk(oban: Oban, size: int) -> None:
    for numbers in bulks(size):
        await oban.enqueue_many(noop.new(number) for number in numbers)


async def creating(create: Callable[[Oban, int], Awaitable[None]], dsn: str, size: int) -> float:
    async with await Oban.create_pool(dsn) as pool:
        await install(pool)
        async with Oban(pool=pool) as oban:
            await create(oban, WARM_UP)
            return await rate(size, create(oban, size))


async def drain(dsn: str, size: int) -> float:
    async with await Oban.create_pool(dsn) as pool:
        await install(pool)
        await drain_once(pool, WARM_UP)
        figure = await drain_once(pool, size)
    check(dsn, "select count(*) from oban_jobs where state = 'completed'", WARM_UP + size)
    return figure


async def drain_once(pool: AsyncConnectionPool, size: int) -> float:
    await in_bulk(Oban(pool=pool), size)
    oban = Oban(pool=pool, queues={"default": LIMIT})
    stopwatch = Stopwatch(size)
    watch(oban._query, "fetch_jobs", before=stopwatch.claim)
    watch(oban._query, "ack_jobs", after=lambda acked, _: stopwatch.finish(len(acked)))
    async with oban:
        return await asyncio.to_thread(stopwatch.rate)


async def latency(dsn: str, size: int) -> Figures:
    async with await Oban.create_pool(dsn) as pool:
        await install(pool)
        async with Oban(pool=pool, queues={"default": LIMIT}) as oban:
            return await latencies(lambda: oban.enqueue(start.new()), first_lines, size)


main(
    uvloop.run,
    drain=drain,
    one_by_one=partial(creating, one_by_one),
    in_bulk=partial(creating, in_bulk),
    latency=latency,
)
