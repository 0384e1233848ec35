"""How attempts fail, are counted and tried again; and that nothing a task raises hurts its node."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest

from pyasync import Backoff, Failed, Finished, Node, NoRetry, Registry, RetryLater, State, Task, TaskFailed
from tests.runtime.conftest import Nodes
from tests.runtime.gate import PATIENCE, Gate, as_async
from tests.runtime.other import Other
from tests.waiting import until

# What is raised is the node's business; what becomes of the row is asked of each database.
ONE = pytest.mark.databases("sqlite")


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _function(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    async def asynchronous(*arguments: Any) -> Any:
        return function(*arguments)

    return function if kind == "sync" else asynchronous


def _ended(node: Nodes, implementation: Any, arguments: Any = None, **options: Any) -> Task:
    registry = Registry()
    registry.register_task("task", implementation, **options)
    started = node(registry)
    return started.wait_task(started.create_task("task", arguments), PATIENCE)


# --- retries


def test_task_is_tried_again_as_often_as_its_list_says(node: Nodes, kind: str) -> None:
    def failing() -> None:
        raise OSError("no luck")

    task = _ended(node, _function(kind, failing), retry=[0, 0.01])

    assert (task.state, task.error, task.attempt, task.epoch) == (State.FAILED, "OSError: no luck", 3, 3)
    assert [(each["attempt"], each["kind"], each["message"]) for each in task.errors] == [
        (1, "error", "OSError: no luck"),
        (2, "error", "OSError: no luck"),
        (3, "error", "OSError: no luck"),
    ]


def test_attempt_after_a_failure_goes_on_from_the_last_checkpoint(node: Nodes, kind: str) -> None:
    def stumbling(run: Any) -> Iterator[Any]:
        for number in range(run.context, 4):
            yield number + 1
            if number + 1 == run.attempt < 3:
                raise OSError(f"stumbled at {number + 1}")
        yield Finished(run.attempt)

    task = _ended(node, stumbling if kind == "sync" else as_async(stumbling), 0, retry=[0, 0])

    assert (task.state, task.context, task.result, task.epoch) == (State.FINISHED, 4, 3, 3)
    assert [each["message"] for each in task.errors] == ["OSError: stumbled at 1", "OSError: stumbled at 2"]
    assert task.error is None


def test_retry_waits_for_its_time(node: Nodes, other: Other, kind: str) -> None:
    attempts: list[int] = []

    def failing() -> None:
        attempts.append(1)
        raise OSError("not now")

    registry = Registry()
    registry.register_task("task", _function(kind, failing), retry=[3600])
    started = node(registry)
    task_id = started.create_task("task")
    until(lambda: other.row(task_id).seq == 1, PATIENCE, "the attempt to fail")

    task = started.get_task(task_id)
    row = other.row(task_id)

    assert (task.state, task.attempt, task.error) == (State.PENDING, 2, "OSError: not now")
    assert (row.queue, row.node_id, row.due_at == row.run_at) == (None, None, True)
    assert 3500 < (row.due_at - row.started_at).total_seconds() < 3700
    assert "waits for its time" in started.why(task_id)
    assert attempts == [1]


@ONE
def test_backoff_and_the_retry_of_a_single_task_override_each_other_as_told(node: Nodes, kind: str) -> None:
    def failing() -> None:
        raise OSError("no luck")

    registry = Registry()
    registry.register_task("task", _function(kind, failing), retry=Backoff(first=0.01, factor=1, attempts=2))
    started = node(registry)

    as_the_type = started.wait_task(started.create_task("task"), PATIENCE)
    as_a_list = started.wait_task(started.create_task("task", retry=[0]), PATIENCE)
    never = started.wait_task(started.create_task("task", retry=[]), PATIENCE)

    assert (as_the_type.attempt, as_a_list.attempt, never.attempt) == (3, 2, 1)


@ONE
def test_last_twenty_errors_are_kept_with_their_traceback_and_node(node: Nodes, kind: str) -> None:
    def failing() -> None:
        raise OSError("no luck")

    registry = Registry()
    registry.register_task("task", _function(kind, failing), retry=[0] * 24)
    started = node(registry, name="north", poll_interval=0.02)

    task = started.wait_task(started.create_task("task"), PATIENCE)

    assert [each["attempt"] for each in task.errors] == list(range(6, 26))
    assert {each["node"] for each in task.errors} == {"north"}
    assert all('raise OSError("no luck")' in each["traceback"] for each in task.errors)
    assert all(each["time"].endswith("+00:00") for each in task.errors)


@ONE
def test_long_errors_are_cut(node: Nodes, kind: str) -> None:
    def failing() -> None:
        raise OSError("x" * 100_000)

    task = _ended(node, _function(kind, failing))

    assert len(task.errors[0]["message"]) == 4_000
    assert len(task.errors[0]["traceback"]) == 8_000


@ONE
def test_error_with_what_databases_do_not_store_is_kept_all_the_same(node: Nodes, kind: str) -> None:
    def failing() -> None:
        raise OSError("nul \0 surrogate \ud800 ☃")

    task = _ended(node, _function(kind, failing))

    assert task.error == "OSError: nul \\0 surrogate ? ☃"


def test_task_that_must_not_be_tried_again_is_not(node: Nodes, kind: str) -> None:
    def failing(how: str) -> None:
        raise NoRetry("never" if how == "text" else OSError("never"))

    def reporting(run: Any) -> Iterator[Any]:
        yield Failed("never")

    registry = Registry()
    registry.register_task("raise", _function(kind, failing), retry=[0, 0])
    registry.register_task("report", reporting if kind == "sync" else as_async(reporting), retry=[0, 0])
    started = node(registry)

    ids = [started.create_task("raise", "text"), started.create_task("raise", "error"), started.create_task("report")]
    tasks = [started.wait_task(task_id, PATIENCE) for task_id in ids]

    assert [(task.state, task.error, task.attempt) for task in tasks] == [(State.FAILED, "never", 1)] * 3


def test_retry_later_gives_the_slot_back_and_is_no_attempt(node: Nodes, other: Other, kind: str) -> None:
    def busy(run: Any) -> Iterator[Any]:
        yield run.epoch
        if run.epoch < 3:
            raise RetryLater(0.01)
        yield Finished(run.attempt)

    registry = Registry()
    registry.register_task("task", busy if kind == "sync" else as_async(busy))
    started = node(registry, concurrency=1)

    task = started.wait_task(started.create_task("task"), PATIENCE)

    assert (task.state, task.result, task.attempt, task.epoch, task.errors) == (State.FINISHED, 1, 1, 3, [])


def test_task_that_waits_to_be_tried_later_leaves_its_slot_to_others(node: Nodes, other: Other, kind: str) -> None:
    def busy() -> None:
        raise RetryLater(3600)

    registry = Registry()
    registry.register_task("busy", _function(kind, busy))
    registry.register_task("next", lambda: "had its turn")
    started = node(registry, concurrency=1)
    busy_id = started.create_task("busy")
    until(lambda: other.row(busy_id).seq == 1, PATIENCE, "the slot to be given back")

    assert started.result(started.create_task("next"), PATIENCE) == "had its turn"
    assert other.row(busy_id).due_at is not None


def test_failed_task_that_is_run_again_begins_its_attempts_anew(node: Nodes, other: Other, kind: str) -> None:
    broken = threading.Event()
    broken.set()

    def fragile(run: Any) -> Iterator[Any]:
        yield {"epoch": run.epoch}
        if broken.is_set():
            raise OSError("broken")
        yield Finished(run.attempt)

    registry = Registry()
    registry.register_task("task", fragile if kind == "sync" else as_async(fragile), retry=[0])
    started = node(registry)
    task_id = started.create_task("task")
    failed = started.wait_task(task_id, PATIENCE)

    broken.clear()
    started.run_task(task_id)
    task = started.wait_task(task_id, PATIENCE)

    assert (failed.attempt, failed.epoch) == (2, 2)
    assert (task.state, task.result, task.attempt, task.epoch) == (State.FINISHED, 1, 1, 3)
    assert len(task.errors) == 2
    assert task.seq > failed.seq


# --- what a task may raise


class _Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def _recurse() -> None:
    _recurse()


def _raise(error: BaseException) -> None:
    raise error


ZOO: dict[str, Callable[[], None]] = {
    "SystemExit": lambda: _raise(SystemExit(1)),
    "KeyboardInterrupt": lambda: _raise(KeyboardInterrupt()),
    "GeneratorExit": lambda: _raise(GeneratorExit()),
    "RecursionError": _recurse,
    "MemoryError": lambda: _raise(MemoryError("all gone")),
    "StopIteration": lambda: _raise(StopIteration(5)),
    "StopAsyncIteration": lambda: _raise(StopAsyncIteration()),
    "CancelledError": lambda: _raise(asyncio.CancelledError()),
    "ExceptionGroup": lambda: _raise(ExceptionGroup("many", [OSError("one"), ValueError("two")])),
    "BaseExceptionGroup": lambda: _raise(BaseExceptionGroup("many", [KeyboardInterrupt()])),
    "Unspeakable": lambda: _raise(_Unspeakable()),
    "AssertionError": lambda: _raise(AssertionError()),
}


def _zoo(kind: str, shape: str) -> Any:
    def function(name: str) -> None:
        ZOO[name]()

    def generator(run: Any) -> Iterator[Any]:
        yield "checkpoint"
        ZOO[run.arguments]()

    if kind == "sync":
        return function if shape == "function" else generator

    async def async_function(name: str) -> None:
        ZOO[name]()

    async def async_generator(run: Any) -> AsyncIterator[Any]:
        yield "checkpoint"
        ZOO[run.arguments]()

    return async_function if shape == "function" else async_generator


@ONE
@pytest.mark.parametrize("shape", ["function", "generator"])
def test_whatever_a_task_raises_fails_its_attempt_and_the_node_lives_on(node: Nodes, kind: str, shape: str) -> None:
    """F32."""
    registry = Registry()
    registry.register_task("task", _zoo(kind, shape), retry=[0])
    registry.register_task("other", lambda: "fine")
    started = node(registry, concurrency=20, poll_interval=0.02)

    ids = {name: started.create_task("task", name) for name in ZOO}
    tasks = {name: started.wait_task(task_id, PATIENCE) for name, task_id in ids.items()}

    ends = {name: (task.state.value, task.attempt, len(task.errors)) for name, task in tasks.items()}
    assert ends == dict.fromkeys(ZOO, ("FAILED", 2, 2))
    unnamed = {
        name for name, task in tasks.items() if name not in str(task.error) + str(task.errors[-1].get("traceback"))
    }
    assert unnamed == set()
    assert started.result(started.create_task("other"), PATIENCE) == "fine"
    assert until(lambda: started.health().ok, PATIENCE)
    assert len(started._runs) == 0


@ONE
def test_failure_between_two_reports_keeps_the_checkpoint_before_it(node: Nodes) -> None:
    tasks = {kind: _ended(node, _zoo(kind, "generator"), "SystemExit") for kind in ("sync", "async")}

    assert {kind: (task.context, task.seq) for kind, task in tasks.items()} == {
        "sync": ("checkpoint", 2),
        "async": ("checkpoint", 2),
    }


@ONE
def test_coroutine_that_cancels_itself_fails_its_attempt(node: Nodes) -> None:
    async def suicidal() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(3600)

    registry = Registry()
    registry.register_task("task", suicidal)
    registry.register_task("other", _function("async", lambda: "fine"))
    started = node(registry)

    with pytest.raises(TaskFailed, match="CancelledError"):
        started.result(started.create_task("task"), PATIENCE)

    assert started.result(started.create_task("other"), PATIENCE) == "fine"


@ONE
def test_task_group_of_a_task_that_fails_takes_nobody_along(node: Nodes) -> None:
    gate = Gate()

    async def child() -> None:
        raise OSError("a child failed")

    async def grouping() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(child)
            await anyio.sleep_forever()

    async def timing() -> str:
        with anyio.move_on_after(0.01):
            await anyio.sleep_forever()
        try:
            async with asyncio.timeout(0.01):
                await anyio.sleep_forever()
        except TimeoutError:
            return "both timed out"
        return "never"

    async def patient() -> str:
        await gate.apass()
        return "not disturbed"

    registry = Registry()
    for function in (grouping, timing, patient):
        registry.register_task(function.__name__, function)
    started = node(registry)
    patient_id = started.create_task("patient")
    gate.wait_for()

    with pytest.raises(TaskFailed, match="ExceptionGroup"):
        started.result(started.create_task("grouping"), PATIENCE)
    timed = started.result(started.create_task("timing"), PATIENCE)
    gate.open()

    assert timed == "both timed out"
    assert started.result(patient_id, PATIENCE) == "not disturbed"


@ONE
@pytest.mark.parametrize("error", [OSError("no network"), SystemExit(1)])
def test_class_that_cannot_be_made_fails_the_attempt(node: Nodes, error: BaseException) -> None:
    class Broken:
        def __init__(self) -> None:
            raise error

        def running(self, run: Any) -> Iterator[Any]:
            yield 1

    class AsyncBroken:
        def __init__(self) -> None:
            raise error

        async def running(self, run: Any) -> AsyncIterator[Any]:
            yield 1

    assert _ended(node, Broken).state is State.FAILED
    assert _ended(node, AsyncBroken).state is State.FAILED


@ONE
def test_process_that_has_no_thread_left_gives_the_task_back(node: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    registry.register_task("task", lambda: "done")
    started = node(registry)
    refused: list[str] = []
    start = threading.Thread.start

    def scarce(thread: threading.Thread) -> None:
        if thread.name == "pyasync-run" and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)

    task = started.wait_task(started.create_task("task"), PATIENCE)

    assert refused == ["pyasync-run"]
    assert (task.result, task.attempt, task.epoch, task.errors) == ("done", 1, 2, [])
    assert _is_free(started)


def _is_free(started: Node) -> bool:
    return until(lambda: len(started._runs) == 0, PATIENCE, "the slots to be free")


@ONE
def test_slot_is_free_again_after_each_kind_of_end(node: Nodes, kind: str) -> None:
    def ending(how: str) -> Any:
        if how == "fail":
            raise OSError("broken")
        if how == "later":
            raise RetryLater(3600)
        return how

    registry = Registry()
    registry.register_task("task", _function(kind, ending), concurrency=1)
    started = node(registry, concurrency=2)

    for how in ["fail", "later", "fine"] * 4:
        task_id = started.create_task("task", how)
        until(lambda task_id=task_id: started.get_task(task_id).epoch == 1, PATIENCE, "its turn to come")

    assert _is_free(started)


@ONE
def test_node_takes_no_more_than_it_has_slots_for_even_if_some_are_on_probation(
    node: Nodes, other: Other, kind: str
) -> None:
    gate = Gate()
    at_once: list[int] = []
    running: set[Any] = set()

    def sync(run: Any) -> Iterator[Any]:
        running.add(run.id)
        at_once.append(len(running))
        gate.pass_()
        running.discard(run.id)
        yield 1

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        running.add(run.id)
        at_once.append(len(running))
        await gate.apass()
        running.discard(run.id)
        yield 1

    registry = Registry()
    registry.register_task("task", sync if kind == "sync" else asynchronous)
    first = node(registry, types=[])  # claims nothing
    ids = [first.create_task("task") for _ in range(6)]
    for task_id in ids[:3]:
        other.change(task_id, losses=2, queue="probation")

    started = node(registry, concurrency=2)
    gate.wait_for(2)
    until(lambda: started._claimer.due_in() > 0, PATIENCE, "a look into the queues")
    held = len(started._runs)
    gate.open()
    for task_id in ids:
        started.wait_task(task_id, PATIENCE)

    assert held == 2
    assert max(at_once) == 2
