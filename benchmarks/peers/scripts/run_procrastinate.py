"""procrastinate, with the settings of its documentation that are fastest.

- concurrency=10 in one worker (docs/howto/concurrency.md; 1 by default; of 1, 10, 30 and 100 the fastest or near it),
  and a pool of one connection more, for short jobs (docs/discussions.md, "Mind the size of your PostgreSQL pool");
- LISTEN, as by default, and `wait=False` to drain;
- uvloop, of which its documentation does not speak: it was faster with it.

What has finished stays in the table, with its events (`delete_jobs` is "never" by default); results are not stored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import procrastinate
import uvloop
from peer import WARM_UP, Figures, Stopwatch, bulks, check, latencies, main, rate, watch

CONCURRENCY = 10
POOL = CONCURRENCY + 1

first_lines: asyncio.Queue[float] = asyncio.Queue()


def make_app(dsn: str) -> procrastinate.App:
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=POOL, max_size=POOL))
    app.task(noop, name="noop")
    app.task(start, name="start")
    return app


async def noop(number: int) -> int:
    return number


async def start() -> None:
    first_lines.put_nowait(time.perf_counter())


async def one_by_one(app: procrastinate.App, size: int) -> None:
    for number in range(size):
        await app.configure_task("noop").defer_async(number=number)


async def in_bulk(app: procrastinate.App, size: int) -> None:
    for numbers in bulks(size):
        await app.configure_task("noop").batch_defer_async(*({"number": number} for number in numbers))


async def creating(create: Callable[[procrastinate.App, int], Awaitable[None]], dsn: str, size: int) -> float:
    async with make_app(dsn).open_async() as app:
        await app.schema_manager.apply_schema_async()
        await create(app, WARM_UP)
        return await rate(size, create(app, size))


async def drain(dsn: str, size: int) -> float:
    async with make_app(dsn).open_async() as app:
        await app.schema_manager.apply_schema_async()
        await in_bulk(app, WARM_UP)
        await app.run_worker_async(concurrency=CONCURRENCY, wait=False)
        await in_bulk(app, size)
        stopwatch = Stopwatch(size)
        watch(app.job_manager, "fetch_job", before=stopwatch.claim)
        watch(app.job_manager, "finish_job", after=lambda *_: stopwatch.finish())
        await app.run_worker_async(concurrency=CONCURRENCY, wait=False)
    check(dsn, "select count(*) from procrastinate_jobs where status = 'succeeded'", WARM_UP + size)
    return stopwatch.rate()


async def latency(dsn: str, size: int) -> Figures:
    async with make_app(dsn).open_async() as app:
        await app.schema_manager.apply_schema_async()
        worker = asyncio.create_task(app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False))
        figures = await latencies(lambda: app.configure_task("start").defer_async(), first_lines, size)
        worker.cancel()
        await asyncio.wait([worker])
    return figures


main(
    uvloop.run,
    drain=drain,
    one_by_one=partial(creating, one_by_one),
    in_bulk=partial(creating, in_bulk),
    latency=latency,
)
