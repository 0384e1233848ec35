"""How runs are stopped: by users, by time, by their node; and what becomes of those that do not listen."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from sqlalchemy import event, select

from pyasync import (
    Finished,
    Node,
    NodeStopped,
    Registry,
    RetryLater,
    State,
    TaskCancelled,
    TaskFailed,
    current_run,
)
from pyasync.runtime.node import LAST_WRITES
from tests.runtime.conftest import Nodes
from tests.runtime.gate import PATIENCE, Gate, as_async, counting
from tests.runtime.other import NODE, Other
from tests.waiting import auntil, until

# Marks and fences are the database's; what user code sees of a stop is not.
ONE = pytest.mark.databases("sqlite")


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _registry(body: Any, **options: Any) -> Registry:
    registry = Registry()
    registry.register_task("task", body, **options)
    return registry


def _told_to_stop(node: Node) -> bool:
    """Whether a node is stopping, and has told its runs."""
    return node.health().reason == "it is stopping" and all(each.stop.is_set() for each in node._runs)


def _until_state(started: Node, task_id: Any, state: State) -> Any:
    return until(
        lambda: (task := started.get_task(task_id)).state is state and task, PATIENCE, f"the task to be {state.value}"
    )


# --- users


def test_paused_task_goes_on_from_its_last_checkpoint(node: Nodes, other: Other, kind: str) -> None:
    gate = Gate()
    started = node(_registry(counting(kind, gate)))
    task_id = started.create_task("task")
    gate.wait_for()

    started.pause_task(task_id)
    shown = started.get_task(task_id).state
    gate.open()
    paused = _until_state(started, task_id, State.PAUSED)
    row = other.row(task_id)
    started.run_task(task_id)
    task = started.wait_task(task_id, PATIENCE)

    assert shown is State.CANCELING
    assert (paused.context, paused.epoch, paused.node) == (2, 1, None)
    assert (row.stage, row.mark, row.queue) == ("paused", "pause", None)
    assert (task.state, task.context, task.epoch, task.attempt, task.errors) == (State.FINISHED, 4, 2, 1, [])


def test_pause_that_is_taken_back_loses_nothing(node: Nodes, kind: str) -> None:
    gate = Gate()
    started = node(_registry(counting(kind, gate)))
    task_id = started.create_task("task")
    gate.wait_for()

    started.pause_task(task_id)
    until(lambda: _run_of(started).stop.is_set(), PATIENCE, "the run to see the stop")
    started.run_task(task_id)
    gate.open()

    task = started.wait_task(task_id, PATIENCE)
    assert (task.state, task.context, task.epoch, task.attempt) == (State.FINISHED, 4, 2, 1)


def _run_of(started: Node) -> Any:
    return next(iter(started._runs))


def test_pause_that_nobody_saw_stops_nothing(node: Nodes, other: Other, kind: str) -> None:
    gate = Gate()
    started = node(_registry(counting(kind, gate)))
    task_id = started.create_task("task")
    gate.wait_for()

    with other.begin() as connection:
        started.pause_task(task_id, connection=connection)
        started.run_task(task_id, connection=connection)
    gate.open()

    task = started.wait_task(task_id, PATIENCE)
    assert (task.state, task.context, task.epoch) == (State.FINISHED, 4, 1)


def test_cancelled_task_fails_as_cancelled_and_can_run_again(node: Nodes, kind: str) -> None:
    gate = Gate()
    started = node(_registry(counting(kind, gate)))
    task_id = started.create_task("task")
    gate.wait_for()

    started.cancel_task(task_id)
    gate.open()

    with pytest.raises(TaskCancelled):
        started.result(task_id, PATIENCE)
    task = started.get_task(task_id)
    assert (task.state, task.context, [each["kind"] for each in task.errors]) == (State.FAILED, 2, ["cancelled"])
    started.run_task(task_id)
    assert started.wait_task(task_id, PATIENCE).context == 4


@pytest.mark.parametrize("error", [RetryLater(3600), OSError("broken")])
def test_cancelled_task_that_would_be_tried_again_fails_as_cancelled(node: Nodes, kind: str, error: Exception) -> None:
    gate = Gate()

    def sync(run: Any) -> Iterator[Any]:
        gate.pass_()
        raise error
        yield

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        await gate.apass()
        raise error
        yield

    started = node(_registry(sync if kind == "sync" else asynchronous, retry=[3600]))
    task_id = started.create_task("task")
    gate.wait_for()

    started.cancel_task(task_id)
    gate.open()

    with pytest.raises(TaskCancelled):
        started.result(task_id, PATIENCE)


def test_task_that_fails_for_good_after_it_was_cancelled_says_why(node: Nodes, kind: str) -> None:
    gate = Gate()

    def sync(run: Any) -> Iterator[Any]:
        gate.pass_()
        raise OSError("broken")
        yield

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        await gate.apass()
        raise OSError("broken")
        yield

    started = node(_registry(sync if kind == "sync" else asynchronous))
    task_id = started.create_task("task")
    gate.wait_for()

    started.cancel_task(task_id)
    gate.open()

    with pytest.raises(TaskFailed, match="broken"):
        started.result(task_id, PATIENCE)


def test_task_that_is_deleted_while_it_runs_stops_and_is_cleaned_up(node: Nodes, other: Other, kind: str) -> None:
    gate = Gate()
    seen: list[Any] = []

    def clean_up(run: Any) -> Iterator[Any]:
        seen.append((run.context, run.attempt))
        yield Finished()

    started = node(_registry(counting(kind, gate), deleting=clean_up if kind == "sync" else as_async(clean_up)))
    task_id = started.create_task("task")
    gate.wait_for()

    started.delete_task(task_id)
    gate.open()

    until(lambda: other.row(task_id) is None, PATIENCE, "the row to go")
    assert seen == [(2, 1)]


def test_finish_that_comes_before_the_pause_is_heeded_stands(node: Nodes, kind: str) -> None:
    gate = Gate()

    def sync(run: Any) -> Iterator[Any]:
        gate.pass_()
        yield Finished("done")

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        await gate.apass()
        yield Finished("done")

    started = node(_registry(sync if kind == "sync" else asynchronous))
    task_id = started.create_task("task")
    gate.wait_for()

    started.pause_task(task_id)
    gate.open()

    assert started.result(task_id, PATIENCE) == "done"


def test_plain_function_that_returns_is_finished_whatever_its_stop(node: Nodes, kind: str) -> None:
    gate = Gate()

    def sync() -> Any:
        gate.pass_()
        return current_run().stop.reason

    async def asynchronous() -> Any:
        await gate.apass()
        return current_run().stop.reason

    started = node(_registry(sync if kind == "sync" else asynchronous))
    task_id = started.create_task("task")
    gate.wait_for()

    started.pause_task(task_id)
    until(lambda: _run_of(started).stop.is_set(), PATIENCE)
    gate.open()

    assert started.result(task_id, PATIENCE) == "pause"


def test_generator_that_ends_by_itself_when_asked_to_pause_is_paused(node: Nodes, kind: str) -> None:
    gate = Gate()

    def sync(run: Any) -> Iterator[Any]:
        yield 1
        gate.pass_()

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        yield 1
        await gate.apass()

    started = node(_registry(sync if kind == "sync" else asynchronous))
    task_id = started.create_task("task")
    gate.wait_for()

    started.pause_task(task_id)
    until(lambda: _run_of(started).stop.is_set(), PATIENCE)
    gate.open()

    assert _until_state(started, task_id, State.PAUSED).context == 1


# --- what user code sees


@ONE
@pytest.mark.parametrize("reason", ["pause", "cancel", "delete", "shutdown", "timeout", "lost"])
def test_run_is_told_why_it_is_to_stop(node: Nodes, other: Other, kind: str, reason: str) -> None:
    gate = Gate()
    reasons: list[Any] = []

    def sync(run: Any) -> Iterator[Any]:
        gate.reached += 1
        run.stop.wait(PATIENCE)
        reasons.append((run.stop.is_set(), run.stop.reason))
        yield

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        gate.reached += 1
        await run.stop
        reasons.append((run.stop.is_set(), run.stop.reason))
        yield

    body = sync if kind == "sync" else asynchronous
    started = node(_registry(body, timeout=0.1 if reason == "timeout" else None), stop_grace=20.0)
    task_id = started.create_task("task")
    gate.wait_for()

    match reason:
        case "pause":
            started.pause_task(task_id)
        case "cancel":
            started.cancel_task(task_id)
        case "delete":
            started.delete_task(task_id)
        case "shutdown":
            started.stop()
        case "lost":
            other.take_over(task_id)

    until(lambda: reasons, PATIENCE, "the run to be told")
    assert reasons == [(True, reason)]


@ONE
def test_wait_for_a_stop_ends_with_its_time(node: Nodes, kind: str) -> None:
    def sync(run: Any) -> Iterator[Any]:
        yield Finished([run.stop.wait(0.01), run.stop.is_set()])

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        yield Finished([await run.stop.wait(0.01), run.stop.is_set()])

    started = node(_registry(sync if kind == "sync" else asynchronous))

    assert started.result(started.create_task("task"), PATIENCE) == [False, False]


def test_run_that_looks_at_its_stop_has_a_last_word(node: Nodes, kind: str) -> None:
    gate = Gate()

    def sync(run: Any) -> Iterator[Any]:
        yield "at work"
        gate.reached += 1
        run.stop.wait(PATIENCE)
        yield f"stopped to {run.stop.reason}"

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        yield "at work"
        gate.reached += 1
        await run.stop.wait(PATIENCE)
        yield f"stopped to {run.stop.reason}"

    started = node(_registry(sync if kind == "sync" else asynchronous), stop_grace=20.0)
    task_id = started.create_task("task")
    gate.wait_for()

    started.pause_task(task_id)

    assert _until_state(started, task_id, State.PAUSED).context == "stopped to pause"


def test_stop_closes_the_generator_at_its_yield(node: Nodes, kind: str) -> None:
    gate, closed = Gate(), threading.Event()

    def sync(run: Any) -> Iterator[Any]:
        try:
            gate.pass_()
            yield 1
            raise AssertionError("it went on")
        finally:
            closed.set()

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        try:
            await gate.apass()
            yield 1
            raise AssertionError("it went on")
        finally:
            await anyio.lowlevel.checkpoint()
            closed.set()

    started = node(_registry(sync if kind == "sync" else asynchronous))
    task_id = started.create_task("task")
    gate.wait_for()

    started.pause_task(task_id)
    gate.open()

    task = _until_state(started, task_id, State.PAUSED)
    assert (task.context, task.errors) == (1, [])
    assert closed.is_set()


@ONE
def test_verbs_of_a_task_that_is_being_stopped_keep_working(node: Nodes, kind: str) -> None:
    from pyasync import AsyncClient

    gate = Gate()
    children: list[Any] = []

    def sync(run: Any) -> Iterator[Any]:
        gate.reached += 1
        run.stop.wait(PATIENCE)
        children.append(started.create_task("child", auto_run=False))
        started.get_task(children[0])
        yield str(children[0])

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        gate.reached += 1
        await run.stop
        children.append(await AsyncClient(started).create_task("child", auto_run=False))
        await AsyncClient(started).get_task(children[0])
        yield str(children[0])

    registry = _registry(sync if kind == "sync" else asynchronous)
    registry.register_task("child", print)
    started = node(registry, stop_grace=20.0)
    task_id = started.create_task("task")
    gate.wait_for()

    started.stop()

    other = Other(node.url)
    assert other.status(task_id) == "paused, run"
    assert other.row(task_id).context == f'"{children[0]}"'
    assert other.status(children[0]) == "init, none"
    with pytest.raises(NodeStopped):
        started.create_task("child")


# --- time


def test_timeout_uses_an_attempt_and_the_task_is_tried_again_from_its_checkpoint(node: Nodes, kind: str) -> None:
    def sync(run: Any) -> Iterator[Any]:
        for number in range(run.context, 3):
            if number == 1 and run.attempt == 1:
                run.stop.wait(PATIENCE)
            yield number + 1

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        for number in range(run.context, 3):
            if number == 1 and run.attempt == 1:
                await run.stop.wait(PATIENCE)
            yield number + 1

    body = sync if kind == "sync" else asynchronous
    started = node(_registry(body, timeout=1.0, retry=[0]), stop_grace=20.0)

    task = started.wait_task(started.create_task("task", 0), PATIENCE)

    assert (task.state, task.context, task.attempt, task.epoch) == (State.FINISHED, 3, 2, 2)
    assert [(each["kind"], each["attempt"]) for each in task.errors] == [("timeout", 1)]


def test_timeout_of_the_last_attempt_fails_the_task(node: Nodes, kind: str) -> None:
    def sync(run: Any) -> Iterator[Any]:
        run.stop.wait(PATIENCE)
        yield

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        await run.stop.wait(PATIENCE)
        yield

    started = node(_registry(sync if kind == "sync" else asynchronous), stop_grace=20.0)

    with pytest.raises(TaskFailed) as failed:
        started.result(started.create_task("task", timeout=0.2), PATIENCE)

    assert failed.value.kind == "timeout"


# --- runs that do not listen


def test_async_run_that_ignores_its_stop_is_cancelled_and_let_go_of(node: Nodes, other: Other) -> None:
    cancelled = threading.Event()
    gate = Gate()

    async def deaf(run: Any) -> AsyncIterator[Any]:
        yield 1
        gate.reached += 1
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    started = node(_registry(deaf), stop_grace=0.3, concurrency=1)
    task_id = started.create_task("task")
    gate.wait_for()
    fence = other.row(task_id).fence

    started.pause_task(task_id)

    task = _until_state(started, task_id, State.PAUSED)
    assert (task.context, task.attempt, task.errors) == (1, 1, [])
    assert other.row(task_id).fence != fence
    until(cancelled.is_set, PATIENCE, "the coroutine to be cancelled")
    until(lambda: len(started._runs) == 0, PATIENCE, "its slot to be free")
    started.run_task(task_id)
    gate.wait_for(2)


def test_sync_run_that_ignores_its_stop_is_left_behind_and_keeps_its_slot(node: Nodes, other: Other) -> None:
    gate, next_gate = Gate(), Gate()

    def deaf(run: Any) -> Iterator[Any]:
        yield run.epoch
        if run.epoch == 1:
            gate.pass_()
        yield f"the word of run {run.epoch}"

    registry = _registry(deaf)
    registry.register_task("next", next_gate.pass_)
    next_gate.open()
    started = node(registry, stop_grace=0.3, concurrency=1)
    task_id = started.create_task("task")
    gate.wait_for()
    fence = other.row(task_id).fence

    started.pause_task(task_id)
    paused = _until_state(started, task_id, State.PAUSED)
    new_fence = other.row(task_id).fence
    next_id = started.create_task("next")
    started.run_task(task_id)
    until(lambda: started._claimer.due_in() > 0, PATIENCE, "a look into the queues")
    waiting = [other.status(each) for each in (task_id, next_id)]
    gate.open()

    assert (paused.context, new_fence != fence) == (1, True)
    assert waiting == ["pending, run", "pending, run"]
    assert started.wait_task(task_id, PATIENCE).context == "the word of run 2"
    assert started.wait_task(next_id, PATIENCE).state is State.FINISHED


def test_another_node_goes_on_with_a_task_whose_thread_was_left_behind(node: Nodes, other: Other) -> None:
    gate = Gate()

    def deaf(run: Any) -> Iterator[Any]:
        yield {"epoch": run.epoch}
        if run.epoch == 1:
            gate.pass_()
            yield {"zombie": True}
        yield Finished(run.epoch)

    first = node(_registry(deaf), stop_grace=0.3)
    task_id = first.create_task("task")
    gate.wait_for()
    second = node(_registry(deaf))

    began = time.monotonic()
    first.stop()
    took = time.monotonic() - began
    task = second.wait_task(task_id, PATIENCE)
    gate.open()
    until(
        lambda: not [each for each in threading.enumerate() if each.name == "pyasync-run"],
        PATIENCE,
        "the thread to end",
    )

    assert took < LAST_WRITES  # once the grace is over, nobody waits for the thread
    assert (task.result, task.context, task.attempt, task.errors) == (2, {"epoch": 2}, 1, [])
    assert other.row(task_id).context == '{"epoch":2}'


def test_timeout_that_is_ignored_uses_an_attempt_and_frees_the_task(node: Nodes, kind: str) -> None:
    gate = Gate()

    def sync(run: Any) -> Iterator[Any]:
        if run.attempt == 1:
            gate.pass_()
        yield Finished(run.attempt)

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        if run.attempt == 1:
            await gate.apass()
        yield Finished(run.attempt)

    body = sync if kind == "sync" else asynchronous
    started = node(_registry(body, timeout=0.2, retry=[0]), stop_grace=0.2)

    task = started.wait_task(started.create_task("task"), PATIENCE)
    gate.open()

    assert (task.result, [each["kind"] for each in task.errors]) == (2, ["timeout"])


@ONE
def test_coroutine_that_swallows_its_cancellation_holds_up_nobody_else(node: Nodes) -> None:
    gate = Gate()

    async def stubborn(run: Any) -> AsyncIterator[Any]:
        gate.reached += 1
        while not gate._opened.is_set():
            try:
                await anyio.sleep(0.01)
            except BaseException:
                continue
        yield "a word from the grave"

    registry = _registry(stubborn)
    registry.register_task("other", lambda: "fine")
    started = node(registry, stop_grace=0.1)
    task_id = started.create_task("task")
    gate.wait_for()

    started.pause_task(task_id)
    _until_state(started, task_id, State.PAUSED)
    result = started.result(started.create_task("other"), PATIENCE)
    gate.open()
    until(lambda: len(started._runs) == 0, PATIENCE, "the coroutine to end")

    assert result == "fine"
    assert started.get_task(task_id).context is None


# --- the node


def test_tasks_of_a_node_that_stops_go_on_elsewhere_from_their_checkpoints(
    node: Nodes, other: Other, kind: str
) -> None:
    gate = Gate()
    registry = _registry(counting(kind, gate))
    first = node(registry)
    ids = [first.create_task("task") for _ in range(5)]
    gate.wait_for(5)

    Thread(first.stop)
    until(lambda: _told_to_stop(first), PATIENCE)
    gate.open()
    until(lambda: first.health().reason == "it is stopped", PATIENCE)
    handed_over = other.statuses()
    losses = [other.row(task_id).losses for task_id in ids]
    nodes_left = _nodes(other)
    second = node(registry)
    tasks = [second.wait_task(task_id, PATIENCE) for task_id in ids]

    assert handed_over == ["paused, run"] * 5
    assert (losses, nodes_left) == ([0] * 5, [])
    assert [(task.context, task.epoch, task.attempt) for task in tasks] == [(4, 2, 1)] * 5


def _nodes(other: Other) -> list[Any]:
    with other.begin() as connection:
        return list(connection.execute(select(NODE.c.id)).scalars())


def Thread(function: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def test_clean_up_that_is_interrupted_goes_on_elsewhere(node: Nodes, other: Other, kind: str) -> None:
    gate = Gate()
    seen: list[Any] = []

    def sync(run: Any) -> Iterator[Any]:
        seen.append((run.context, run.attempt))
        if len(seen) == 1:
            gate.pass_()
            yield "half clean"
        yield Finished()

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        seen.append((run.context, run.attempt))
        if len(seen) == 1:
            await gate.apass()
            yield "half clean"
        yield Finished()

    registry = _registry(lambda: None, deleting=sync if kind == "sync" else asynchronous)
    first = node(registry)
    task_id = first.create_task("task", auto_run=False)
    first.pause_task(task_id)
    first.delete_task(task_id)
    gate.wait_for()

    stopping = Thread(first.stop)
    until(lambda: _told_to_stop(first), PATIENCE)
    gate.open()
    stopping.join(PATIENCE)
    between = other.status(task_id)
    node(registry)

    until(lambda: other.row(task_id) is None, PATIENCE, "the row to go")
    assert between == "paused, delete"
    assert seen == [(None, 1), ("half clean", 1)]


def test_claim_that_is_under_way_when_the_node_stops_is_handed_over(node: Nodes, other: Other, kind: str) -> None:
    registry = _registry(counting(kind, Gate(), at=1))
    started = node(registry)
    held, stopping = threading.Event(), threading.Event()

    def hold(connection: Any) -> None:
        if threading.current_thread().name == "pyasync-committer" and not held.is_set() and _is_claimed(connection):
            held.set()
            stopping.wait(PATIENCE)

    event.listen(started._database.engine, "commit", hold)
    task_id = started.create_task("task")
    assert held.wait(PATIENCE)

    thread = Thread(started.stop)
    until(lambda: started._claimer.draining, PATIENCE)
    stopping.set()
    thread.join(PATIENCE)

    assert not thread.is_alive()
    assert other.status(task_id) == "paused, run"
    assert other.row(task_id).losses == 0


def _is_claimed(connection: Any) -> bool:
    statement = "select count(*) from pyasync_task where stage = 'running'"
    return bool(connection.connection.driver_connection.cursor() and connection.exec_driver_sql(statement).scalar())


@pytest.mark.parametrize("_", range(3))
def test_nothing_is_left_running_after_a_stop_in_the_middle_of_everything(node: Nodes, other: Other, _: int) -> None:
    registry = Registry()
    started_runs: list[Any] = []

    @registry.task("sync")
    def sync(run: Any) -> Iterator[Any]:
        started_runs.append(run)
        for number in range(run.context or 0, 3):
            yield number + 1

    @registry.task("async")
    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        started_runs.append(run)
        for number in range(run.context or 0, 3):
            yield number + 1

    @registry.task("function")
    def function() -> None:
        started_runs.append(None)

    started = node(registry)
    for _round in range(10):
        for name in ("sync", "async", "function"):
            started.create_task(name)
    until(lambda: len(started_runs) > 10, PATIENCE)

    started.stop()

    assert set(other.statuses()) <= {"pending, run", "paused, run", "finished, run"}
    with other.begin() as connection:
        rows = connection.exec_driver_sql("select node_id, losses from pyasync_task").all()
    assert {tuple(row) for row in rows} == {(None, 0)}


@ONE
def test_stopping_twice_does_nothing(node: Nodes) -> None:
    started = node(Registry())

    started.stop()
    started.stop()

    assert started.health().reason == "it is stopped"


@ONE
def test_node_that_was_never_started_can_be_stopped_and_not_started_after(node: Nodes) -> None:
    fresh = node.make(Registry())

    fresh.stop()

    with pytest.raises(NodeStopped):
        fresh.start()


@ONE
def test_second_stop_shortens_the_first(node: Nodes) -> None:
    gate = Gate()

    async def deaf() -> None:
        gate.reached += 1
        await anyio.sleep_forever()

    started = node(_registry(deaf), stop_grace=3600.0)
    started.create_task("task")
    gate.wait_for()
    first = Thread(started.stop)
    until(lambda: _told_to_stop(started), PATIENCE)

    started.stop(0.0)

    first.join(PATIENCE)
    assert not first.is_alive()


@ONE
def test_task_may_stop_its_own_node(node: Nodes, other: Other) -> None:
    def suicidal(run: Any) -> Iterator[Any]:
        yield "before"
        started.stop(0.1)
        yield "after"

    started = node(_registry(suicidal))

    task_id = started.create_task("task")

    until(lambda: started.health().reason == "it is stopped", PATIENCE)
    assert other.status(task_id) == "paused, run"
    assert other.row(task_id).context == '"before"'


@ONE
def test_services_and_loop_are_gone_after_a_stop(node: Nodes) -> None:
    before = set(threading.enumerate())
    started = node(_registry(lambda: 1))
    started.result(started.create_task("task"), PATIENCE)

    started.stop()

    until(lambda: {each.name for each in set(threading.enumerate()) - before} <= {"AnyIO worker thread"}, PATIENCE)


@pytest.mark.databases("postgresql", "mariadb")  # a file is looked at without a connection
def test_observers_connection_is_closed_however_late_its_thread_ends(node: Nodes) -> None:
    node(Registry())
    sweeper = node(Registry())._sweeper
    probing, go_on = threading.Event(), threading.Event()
    judge = sweeper._judge

    def held() -> None:
        judge()
        probing.set()
        go_on.wait(PATIENCE)

    until(lambda: sweeper._probe._link is not None, PATIENCE, "it to observe")
    sweeper._judge = held  # type: ignore[method-assign]
    assert probing.wait(PATIENCE)
    assert not sweeper.stop(0.0)
    assert sweeper._probe._link is not None

    go_on.set()

    assert sweeper.stop(PATIENCE)
    assert sweeper._probe._link is None


@ONE
def test_async_run_waits_for_its_stop_among_other_things(node: Nodes) -> None:
    gate = Gate()
    ticks: list[int] = []

    async def ticking(run: Any) -> AsyncIterator[Any]:
        gate.reached += 1
        while not await run.stop.wait(0.01):
            ticks.append(len(ticks))
        yield {"ticks": len(ticks)}

    started = node(_registry(ticking))
    task_id = started.create_task("task")
    gate.wait_for()
    until(lambda: len(ticks) > 3, PATIENCE)

    started.pause_task(task_id)

    assert _until_state(started, task_id, State.PAUSED).context == {"ticks": len(ticks)}


@ONE
def test_pause_that_sends_no_hint_is_seen_by_the_poll(node: Nodes, other: Other) -> None:
    async def waiting(run: Any) -> AsyncIterator[Any]:
        await auntil(run.stop.is_set, PATIENCE)
        yield "stopped"

    started = node(_registry(waiting), stop_grace=20.0)
    started._keeper._on_hint = lambda hint: None
    ids = [started.create_task("task") for _ in range(3)]
    until(lambda: len(started._runs) == 3, PATIENCE)

    for task_id in ids:
        other.change(task_id, mark="pause")

    assert [_until_state(started, task_id, State.PAUSED).context for task_id in ids] == ["stopped"] * 3
