"""Many async runs on one loop, which one coroutine may run one after the other: none leaves a trace in the next."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from pyasync import NewTask, Node, NotInitialized, Registry, State, current_run
from pyasync.runtime import executor
from tests.runtime.conftest import Nodes
from tests.waiting import until

MANY = 200
PATIENCE = 30.0

pytestmark = pytest.mark.databases("sqlite")

variable: ContextVar[str] = ContextVar("variable", default="unset")


def ended(node: Node, number: int) -> bool:
    return node.count_tasks() == {State.FINISHED: number}


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a wait"])
def test_what_a_run_sets_in_its_context_is_unset_in_the_next(node: Nodes, waits: bool) -> None:
    registry = Registry()
    seen: list[str] = []

    @registry.task("task")
    async def task() -> None:
        seen.append(variable.get())
        variable.set("set by another run")
        if waits:
            await anyio.lowlevel.checkpoint()

    started = node(registry, concurrency=MANY)

    started.create_tasks([NewTask(type="task")] * MANY)

    until(lambda: ended(started, MANY), PATIENCE)
    assert seen == ["unset"] * MANY


def test_each_run_is_the_current_one_of_its_own_code_only(node: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "SLICE", PATIENCE)
    registry = Registry()
    own: list[bool] = []
    threads: set[int] = set()
    late: list[Any] = []

    async def afterwards() -> None:
        await anyio.sleep(0.2)
        late.append(current_run().id)

    @registry.task("task")
    async def task(number: int) -> None:
        run = current_run()
        await anyio.sleep(0.01 * (number % 3))
        own.append(current_run() is run and run.arguments == number)
        threads.add(threading.get_ident())

    @registry.task("child")
    async def child() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(afterwards)

    started = node(registry, concurrency=MANY)
    parent = started.create_task("child")
    started.create_tasks([NewTask(type="task", arguments=number) for number in range(MANY)])

    until(lambda: ended(started, MANY + 1), PATIENCE)
    assert own == [True] * MANY
    assert len(threads) == 1
    assert late == [parent]
    with pytest.raises(NotInitialized):
        current_run()


def test_a_run_that_waits_holds_up_no_other(node: Nodes) -> None:
    registry = Registry()
    together = 0
    most = 0
    all_there = threading.Event()

    @registry.task("task")
    async def task() -> None:
        nonlocal together, most
        together += 1
        most = max(most, together)
        if together == MANY:
            all_there.set()
        while not all_there.is_set():  # noqa: ASYNC110 - as many wait at once as there are slots
            await anyio.sleep(0.01)
        together -= 1

    started = node(registry, concurrency=MANY)

    started.create_tasks([NewTask(type="task")] * MANY)

    until(lambda: ended(started, MANY), PATIENCE)
    assert most == MANY


def test_a_run_that_is_cancelled_takes_no_other_along(node: Nodes) -> None:
    registry = Registry()

    @registry.task("stubborn", retry=[])
    async def stubborn() -> None:
        await anyio.sleep_forever()

    @registry.task("task")
    async def task() -> str:
        await anyio.lowlevel.checkpoint()
        return "done"

    started = node(registry, concurrency=10, stop_grace=0.2)
    forever = started.create_task("stubborn")
    until(lambda: started.get_task(forever).state is State.RUNNING)

    started.pause_task(forever)
    others = started.create_tasks([NewTask(type="task")] * MANY)

    assert [started.wait_task(each, PATIENCE).result for each in others] == ["done"] * MANY
    until(lambda: started.get_task(forever).state is State.PAUSED, PATIENCE)
