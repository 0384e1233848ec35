"""What a node costs the database while little happens."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pyasync import NewTask, Registry
from tests.runtime.conftest import Nodes
from tests.runtime.other import Statements
from tests.waiting import until

IDLE = {"poll_interval": 1.0, "lease": 15.0}
OBSERVED = 6.0  # seconds: a beat comes every five


def _observed(statements: Statements) -> None:
    began = time.monotonic()
    statements.sent.clear()
    until(lambda: time.monotonic() - began > OBSERVED, timeout=2 * OBSERVED, what="some seconds to pass")


def test_idle_node_writes_only_its_beat_and_reads_about_once_a_second(node: Nodes) -> None:
    registry = Registry()
    registry.register_task("noop", lambda: None)
    started = node(registry, **IDLE)
    statements = Statements(started._database.engine)
    until(lambda: any("due_at" in each for each in statements.sent), what="the first poll")

    _observed(statements)

    assert len(statements.writes()) <= 2, statements.writes()
    assert len(statements.sent) <= 2.0 * OBSERVED, statements.sent


@pytest.mark.timeout(120)
def test_beat_of_a_node_with_a_thousand_runs_is_one_write(node: Nodes) -> None:
    registry = Registry()

    @registry.task("wait")
    async def wait(run: Any) -> AsyncIterator[Any]:
        while not run.stop.is_set():
            await run.stop.wait(60)
            yield {}

    started = node(registry, concurrency=1_000, **(IDLE | {"lease": 3.0}))
    beats = Statements()
    started.create_tasks([NewTask(type="wait") for _ in range(1_000)])
    until(lambda: started.health().running == 1_000, timeout=60, what="a thousand runs")
    beats.watch(started._database.engine)

    _observed(beats)

    # Beats go over a connection of the keeper's own; whatever else a node writes goes over the pool.
    assert beats.writes() == []
    assert started.health().ok
    started.delete_tasks(everything=True)
    until(lambda: started.health().running == 0, timeout=60, what="all runs to end")
