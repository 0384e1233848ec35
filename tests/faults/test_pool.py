"""F43: connections run out: the lease does not depend on the pool, and what waits for a connection gets one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import create_engine

from pyasync import Finished, NewTask, Node, Registry, State, current_run
from tests.runtime.conftest import Nodes
from tests.runtime.gate import PATIENCE, Gate
from tests.waiting import until

LEASE = 1.0


def _registry() -> Registry:
    registry = Registry()
    registry.register_task("child", lambda: "done")
    return registry


def _beats(started: Node, number: int) -> None:
    """Wait for that many beats."""
    counter = started._keeper._counter
    until(lambda: started._keeper._counter >= counter + number, PATIENCE, f"{number} beats")


def test_node_beside_an_engine_whose_pool_is_drained_keeps_its_lease_and_runs_tasks(node: Nodes, url: str) -> None:
    """Its pool is its own, even where the host's has one connection."""
    registry = _registry()

    @registry.task("parent")
    def parent(run: Any) -> Iterator[Any]:
        yield Finished(run.commit("committed", lambda connection: str(started.get_task(run.id).state)))

    with ExitStack() as stack:
        engine = create_engine(url, pool_size=1, max_overflow=0)
        stack.callback(engine.dispose)
        stack.enter_context(engine.connect())
        stack.callback(node.stop)
        started = node(registry, url=engine, lease=LEASE)

        task = started.wait_task(started.create_task("parent"), PATIENCE)
        _beats(started, 6)

        assert (task.state, task.context, task.result) == (State.FINISHED, "committed", "RUNNING")
        assert started.health().ok


def _own(started: Node, connection: Any) -> Any:
    return started.create_task("child")


def _joined(started: Node, connection: Any) -> Any:
    return started.create_task("child", connection=connection)


@pytest.mark.parametrize("verb", [_own, _joined])
def test_verbs_inside_of_many_works_at_once_find_a_connection(
    node: Nodes, url: str, verb: Callable[[Node, Any], Any]
) -> None:
    if verb is _own and url.startswith("sqlite"):
        pytest.skip("SQLite has one writer: who writes beside an open transaction waits for its end")
    registry = _registry()

    @registry.task("parent")
    def parent(number: int) -> Any:
        return str(current_run().commit(number, lambda connection: verb(started, connection)))

    started = node(registry, concurrency=30, connections=4)
    ids = started.create_tasks([NewTask(type="parent", arguments=number) for number in range(20)])

    ended = [started.wait_task(each, PATIENCE) for each in ids]

    assert {task.state for task in ended} == {State.FINISHED}
    assert {started.wait_task(task.result, PATIENCE).result for task in ended} == {"done"}


@pytest.mark.databases("postgresql", "mariadb")  # on SQLite an open work keeps everybody from writing, as it says
def test_works_and_threads_that_take_all_connections_delay_no_beat(node: Nodes) -> None:
    gate = Gate()
    registry = _registry()
    enough = threading.Event()

    @registry.task("long")
    def long() -> None:
        current_run().commit(1, lambda connection: gate.pass_())

    def hammer(_: int) -> int:
        made = 0
        while not enough.is_set():
            started.get_tasks(limit=5)
            started.create_task("child")
            made += 1
        return made

    started = node(registry, concurrency=20, connections=4, lease=LEASE)
    rival = node(Registry(), lease=LEASE)
    was = started.health().node_id
    ids = started.create_tasks([NewTask(type="long")] * 5)
    gate.wait_for()
    with ExitStack() as stack:
        stack.callback(gate.open)
        threads = stack.enter_context(ThreadPoolExecutor(30))
        stack.callback(enough.set)
        hammering = [threads.submit(hammer, number) for number in range(30)]

        _beats(started, 9)

        assert started.health().node_id == was
        assert {info.id for info in rival.get_nodes()} == {was, rival.health().node_id}
    assert min(future.result() for future in hammering) > 0, "everybody has had a turn"
    assert {(task.state, task.epoch) for task in (started.wait_task(each, PATIENCE) for each in ids)} == {
        (State.FINISHED, 1)
    }
