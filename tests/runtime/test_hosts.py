"""Where a node can live: in sync code, on asyncio's or trio's loop, beside others, and what a fork may do with it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import anyio
import pytest

import pyasync
from pyasync import (
    AlreadyInitialized,
    AsyncClient,
    BlockingCall,
    NewTask,
    Node,
    NodeStopped,
    NotInitialized,
    Registry,
    State,
    TypeNotRegistered,
)
from tests.runtime.conftest import SHORT, Nodes
from tests.runtime.gate import Gate
from tests.runtime.other import Other
from tests.waiting import auntil, until

SQLITE = pytest.mark.databases("sqlite")  # about loops and threads, not about the database


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _no_default_left() -> Iterator[None]:
    yield
    pyasync.stop(0.0)


async def _count(run: Any) -> AsyncIterator[Any]:
    for number in range(run.context, 3):
        yield number + 1


def _counting() -> Registry:
    registry = Registry()
    registry.register_task("count", _count)
    registry.register_task("where", lambda: threading.current_thread().name)
    return registry


def test_node_runs_on_its_hosts_loop(url: str, backend: str) -> None:
    loops: list[int] = []
    registry = _counting()

    @registry.task("loop")
    async def loop() -> None:
        loops.append(threading.get_ident())

    async def host() -> Any:
        async with Node(url, registry, **SHORT) as node:
            client = AsyncClient(node)
            await client.result(await client.create_task("loop"), 20)
            return await client.wait_task(await client.create_task("count", 0), 20)

    task = anyio.run(host, backend=backend)

    assert (task.state, task.context) == (State.FINISHED, 3)
    assert loops == [threading.get_ident()]


@SQLITE
def test_default_node_is_started_and_stopped_from_different_tasks_of_a_loop(url: str, backend: str) -> None:
    async def host() -> Any:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: pyasync.aio.init(url, registry=_counting(), **SHORT))
        task = await pyasync.aio.create_task("count", 1)
        ended = await pyasync.aio.wait_task(task, 20)
        async with anyio.create_task_group() as group:
            group.start_soon(pyasync.aio.stop)
        return ended.context

    assert anyio.run(host, backend=backend) == 3
    with pytest.raises(NotInitialized):
        pyasync.get_tasks()


BLOCKING = {
    "create_task": ("count",),
    "create_tasks": ([NewTask(type="count")],),
    "change_task_group": (uuid4(), "group"),
    "run_task": (uuid4(),),
    "pause_task": (uuid4(),),
    "cancel_task": (uuid4(),),
    "delete_task": (uuid4(),),
    "get_task": (uuid4(),),
    "get_tasks": (),
    "count_tasks": (),
    "get_nodes": (),
    "why": (uuid4(),),
    "wait_task": (uuid4(),),
    "result": (uuid4(),),
    "stop": (),
}


@SQLITE
def test_blocking_verb_on_a_loop_names_the_twin_to_await(url: str, backend: str) -> None:
    async def host() -> dict[str, str]:
        twins = {}
        async with Node(url, _counting(), **SHORT) as node:
            for verb, arguments in BLOCKING.items():
                with pytest.raises(BlockingCall) as caught:
                    getattr(node, verb)(*arguments)
                twins[verb] = caught.value.twin
            with pytest.raises(BlockingCall):
                next(iter(node.watch_task(uuid4())))
        return twins

    twins = anyio.run(host, backend=backend)

    assert twins == {verb: f"pyasync.aio.{verb}" for verb in BLOCKING}
    assert all(hasattr(pyasync.aio, verb) for verb in BLOCKING)


@SQLITE
def test_node_is_not_started_in_blocking_ways_on_a_loop(url: str, backend: str) -> None:
    async def host() -> None:
        with pytest.raises(BlockingCall, match=r"pyasync\.aio\.init"):
            pyasync.init(url, registry=_counting(), **SHORT)
        with pytest.raises(BlockingCall, match=r"pyasync\.aio\.init"):
            Node(url, _counting(), **SHORT).start()

    anyio.run(host, backend=backend)


@SQLITE
def test_default_node_that_is_started_twice_at_once_is_started_once(url: str, backend: str) -> None:
    outcomes: list[str] = []

    async def start() -> None:
        try:
            await pyasync.aio.init(url, registry=_counting(), **SHORT)
            outcomes.append("started")
        except AlreadyInitialized:
            outcomes.append("was there")

    async def host() -> Any:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(start)
        alive = await pyasync.aio.get_nodes()
        result = await pyasync.aio.result(await pyasync.aio.create_task("where"), 20)
        await pyasync.aio.stop()
        return len(alive), result

    assert anyio.run(host, backend=backend) == (1, "pyasync-run")
    assert sorted(outcomes) == ["started", "was there", "was there"]


def test_several_nodes_live_on_one_loop(url: str, backend: str) -> None:
    async def host() -> Any:
        async with Node(url, _counting(), **SHORT, name="north") as north:
            async with Node(url, _counting(), **SHORT, name="south") as south:
                client = AsyncClient(south)
                ids = [await client.create_task("count", 0) for _ in range(20)]
                ended = [await client.wait_task(task_id, 30) for task_id in ids]
            after = await AsyncClient(north).result(await AsyncClient(north).create_task("where"), 20)
        return {task.context for task in ended}, after

    assert anyio.run(host, backend=backend) == ({3}, "pyasync-run")


@SQLITE
def test_module_level_verbs_need_init_and_take_it_once(url: str) -> None:
    with pytest.raises(NotInitialized, match="init"):
        pyasync.create_task("count")
    node = pyasync.init(url, registry=_counting(), **SHORT)

    with pytest.raises(AlreadyInitialized):
        pyasync.init(url)

    assert pyasync.result(pyasync.create_task("where"), 20) == "pyasync-run"
    pyasync.stop()
    with pytest.raises(NodeStopped):
        node.get_tasks()


def test_several_nodes_live_in_one_process(node: Nodes) -> None:
    nodes = [node(_counting(), name=name) for name in ("north", "south")]

    tasks = [nodes[0].create_task("count", 0) for _ in range(20)]

    assert {nodes[1].wait_task(task, 30).context for task in tasks} == {3}
    assert [each.name for each in nodes[0].get_nodes()] == ["north", "south"]


@SQLITE
def test_type_that_is_registered_after_the_start_runs(node: Nodes) -> None:
    registry = _counting()
    started = node(registry)
    with pytest.raises(TypeNotRegistered):
        started.create_task("late")

    registry.register_task("late", lambda: "better than never")

    assert started.result(started.create_task("late"), 20) == "better than never"


@pytest.mark.parametrize("how", ["returns", "raises"])
def test_node_whose_loop_ends_without_a_stop_hands_its_tasks_over(
    url: str, backend: str, other: Other, how: str
) -> None:
    gate = Gate()
    registry = Registry()

    @registry.task("generator")
    async def generator(run: Any) -> AsyncIterator[Any]:
        yield {"begun": True}
        gate.reached += 1
        await anyio.sleep_forever()

    @registry.task("function")
    async def function() -> None:
        gate.reached += 1
        await anyio.sleep_forever()

    @registry.task("thread")
    def thread(run: Any) -> Iterator[Any]:
        yield {"begun": True}
        gate.reached += 1
        run.stop.wait(60)
        yield {"ended": True}

    ids: list[Any] = []

    async def host() -> None:
        node = Node(url, registry, **SHORT)
        await node.astart()
        ids.extend([await AsyncClient(node).create_task(name) for name in ("generator", "function", "thread")])
        await auntil(lambda: gate.reached == 3, 20, "the tasks to run")
        if how == "raises":
            raise LookupError("the host fails")

    with suppress(LookupError):
        anyio.run(host, backend=backend)

    until(lambda: [other.status(task_id) for task_id in ids] == ["paused, run"] * 3, 20, "the tasks to be let go of")
    rows = [other.row(task_id) for task_id in ids]
    assert [(row.attempt, row.losses, row.errors) for row in rows] == [(1, 0, None)] * 3
    until(lambda: "pyasync-stop" not in {each.name for each in threading.enumerate()}, 20, "the node to have stopped")


@SQLITE
def test_node_whose_loop_fails_stops_and_hands_its_tasks_over(node: Nodes, other: Other) -> None:
    gate, failing = Gate(), threading.Event()

    async def fail() -> None:
        await auntil(failing.is_set, 40)
        raise LookupError("what the lifespan keeps in the background has failed")

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            yield
            group.cancel_scope.cancel()

    registry = Registry(lifespan)

    @registry.task("task")
    async def task(run: Any) -> AsyncIterator[Any]:
        yield {"begun": True}
        gate.reached += 1
        await anyio.sleep_forever()

    started = node(registry)
    task_id = started.create_task("task")
    gate.wait_for()

    failing.set()

    until(lambda: started.health().reason == "it is stopped", 20, "the node to stop")
    assert other.status(task_id) == "paused, run"
    assert (other.row(task_id).attempt, other.row(task_id).errors) == (1, None)


@SQLITE
def test_node_whose_loop_ends_notes_it_though_no_thread_can_be_had_to_stop_it(
    url: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    refused: list[str] = []

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "pyasync-stop":
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    node = Node(url, Registry(), **SHORT)
    monkeypatch.setattr(threading.Thread, "start", refuse)

    anyio.run(node.astart, backend=backend)

    assert refused == ["pyasync-stop"]
    assert node._host_ended.is_set()
    node.stop(0.0)
    assert node.health().reason == "it is stopped"


def test_blocked_loop_loses_no_task_and_claims_nothing_meanwhile(node: Nodes, other: Other) -> None:
    registry = _counting()
    release, blocked = threading.Event(), threading.Event()

    @registry.task("block")
    async def block(run: Any) -> AsyncIterator[Any]:
        blocked.set()
        release.wait(30)  # on the loop: what nobody should do
        yield {"unblocked": True}

    started = node(registry, lease=1.0)
    rival = node(_counting(), types=["none"], lease=1.0)
    stuck = started.create_task("block", 0)
    assert blocked.wait(20)
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 0.5, what="the loop's last sign of life to grow old")
    waiting = started.create_task("count", 0)

    until(lambda: time.monotonic() - began > 3.0, 20, "three leases to pass")

    assert other.row(stuck).epoch == 1
    assert other.status(stuck) == "running, run"
    assert other.status(waiting) == "pending, run"
    assert len(rival.get_nodes()) == 2
    release.set()
    assert started.wait_task(stuck, 20).epoch == 1
    assert started.wait_task(waiting, 20).state is State.FINISHED


_FORK = """
import os, sys
import pyasync
from pyasync import Client, ForkedProcess, Node, Registry

def forked(child):
    pid = os.fork()
    if pid == 0:
        try:
            child()
        except ForkedProcess:
            os._exit(7)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

url = sys.argv[1]
registry = Registry()
registry.register_task("noop", lambda: "done")
with Client(url, migrate="auto", strict=False) as client:
    client.count_tasks()
    created = forked(lambda: client.create_task("noop"))
    with Node(url, registry, poll_interval=0.1) as node:
        result = node.result(client.get_tasks()[0].id, 20)
        used = forked(node.get_tasks)
        stopped = forked(node.stop)
        again = node.result(node.create_task("noop"), 20)
        print(created, result, used, stopped, again, node.health().ok)

def live():
    pyasync.init(url, registry=registry, poll_interval=0.1)
    assert pyasync.result(pyasync.create_task("noop"), 20) == "done"
    pyasync.stop()

if url.startswith("sqlite"):  # whose library is not to be carried over a fork while another thread writes
    sys.exit()
pyasync.init(url, registry=registry, poll_interval=0.1)
print(forked(live), pyasync.result(pyasync.create_task("noop"), 20), len(pyasync.get_nodes()))
pyasync.stop()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_child_may_use_a_client_and_a_node_of_its_own_but_not_its_parents(url: str) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORK, url]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    expected = ["0 done 7 0 done True", *([] if url.startswith("sqlite") else ["0 done 1"])]
    assert done.stdout.splitlines() == expected, done.stderr
