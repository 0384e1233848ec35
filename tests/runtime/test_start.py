"""A start that is cancelled leaves nothing behind: no threads, no connections, no files, and no row of a node."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest

import pyasync
from pyasync import Node, NotInitialized, Registry, default
from pyasync.runtime import node as nodes
from tests.faults.residue import residue, until_nothing_is_left
from tests.runtime.conftest import SHORT
from tests.runtime.gate import PATIENCE
from tests.waiting import auntil, until


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Held:
    """Holds a start at a point, in the thread or on the loop that gets there."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is held before it begins."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.reached.set()
            assert self.go_on.wait(PATIENCE)
            return function(*args, **kwargs)

        return call


def _hold(held: Held, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name = {
        "before its tables are made": (nodes.schema, "prepare"),
        "before it joins": (nodes.Keeper, "join"),
        "after it has joined": (nodes.Keeper, "start"),
    }[point]
    monkeypatch.setattr(owner, name, held.before(getattr(owner, name)))


POINTS = ("before its tables are made", "before it joins", "after it has joined")


def _none_left(url: str) -> bool:
    """Whether no node has a row."""
    with pyasync.Client(url, migrate="auto") as client:
        return client.get_nodes() == []


async def _enter(url: str) -> None:
    async with Node(url, Registry(), **SHORT):
        await anyio.sleep_forever()


async def _init(url: str) -> None:
    await pyasync.aio.init(url, **SHORT)
    try:
        await anyio.sleep_forever()
    finally:
        await pyasync.aio.stop()


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("start", [_enter, _init])
def test_start_that_is_cancelled_leaves_nothing(
    url: str, backend: str, start: Callable[[str], Any], point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _before(url, backend)
    held = Held()
    _hold(held, point, monkeypatch)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(start, url)
            await auntil(held.reached.is_set, PATIENCE)
            group.cancel_scope.cancel()
            held.go_on.set()

    anyio.run(main, backend=backend)

    until_nothing_is_left(url, before)
    assert _none_left(url)
    with pytest.raises(NotInitialized):
        default.current()


def _before(url: str, backend: str) -> Any:
    """Look at what there is once all that stays for good has come: tables, and the loops' worker threads."""
    assert _none_left(url)
    anyio.run(anyio.to_thread.run_sync, int, backend=backend)
    return residue(url)


@pytest.mark.parametrize("point", POINTS)
def test_start_that_asyncio_itself_cancels_leaves_nothing(
    url: str, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timeout of asyncio's own is no scope that can be shielded from."""
    before = _before(url, "asyncio")
    held = Held()
    _hold(held, point, monkeypatch)

    async def main() -> None:
        starting = asyncio.get_running_loop().create_task(_enter(url))
        await auntil(held.reached.is_set, PATIENCE)
        starting.cancel()
        asyncio.get_running_loop().call_later(0.05, held.go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(main())

    until_nothing_is_left(url, before)
    assert _none_left(url)


@pytest.mark.parametrize("turns", range(4))
def test_start_that_is_cancelled_at_its_first_steps_leaves_nothing(url: str, turns: int) -> None:
    async def main() -> None:
        starting = asyncio.get_running_loop().create_task(_enter(url))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    before = _before(url, "asyncio")
    asyncio.run(main())

    until_nothing_is_left(url, before)
    assert _none_left(url)


def test_start_that_is_cancelled_while_the_lifespan_is_entered_leaves_it(url: str, backend: str) -> None:
    said: list[str] = []
    entering = threading.Event()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        said.append("entered")
        entering.set()
        try:
            await anyio.sleep(0.2)
            yield
        finally:
            said.append("left")

    async def enter() -> None:
        async with Node(url, Registry(lifespan=lifespan), **SHORT):
            await anyio.sleep_forever()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(enter)
            await auntil(entering.is_set, PATIENCE)
            group.cancel_scope.cancel()

    before = _before(url, backend)
    anyio.run(main, backend=backend)

    until_nothing_is_left(url, before)
    assert (said, _none_left(url)) == (["entered", "left"], True)


def test_stop_that_comes_while_a_node_starts_ends_it_when_it_has_started(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _before(url, "asyncio")
    held = Held()
    _hold(held, "before it joins", monkeypatch)
    node = Node(url, Registry(), **SHORT)
    starting = threading.Thread(target=node.start)
    starting.start()
    assert held.reached.wait(PATIENCE)

    stopping = threading.Thread(target=node.stop)
    stopping.start()
    until(lambda: node.health().reason == "it is stopping", PATIENCE)
    held.go_on.set()
    for each in (starting, stopping):
        each.join(PATIENCE)

    assert node.health().reason == "it is stopped"
    until_nothing_is_left(url, before)
    assert _none_left(url)
