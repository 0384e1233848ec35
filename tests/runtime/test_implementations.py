"""The four kinds of implementations, sync and async, and what they are given."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import pydantic
import pytest

from pyasync import BadArgument, Finished, Registry, TaskNotFound, current_run
from tests.runtime.conftest import Nodes
from tests.runtime.other import Other
from tests.waiting import until

# What user code sees does not depend on the database: most of this runs on one, the round trips on all three.
ONE = pytest.mark.databases("sqlite")


class Counter:
    """Counts to its argument."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def running(self, run: Any) -> Iterator[Any]:
        for number in range(run.context, 3):
            yield number + 1
        yield Finished(f"counted{self.name}")

    def deleting(self, run: Any) -> Iterator[Any]:
        run.resources.append(f"cleaned{self.name}")
        yield Finished()


class AsyncCounter:
    def __init__(self, name: str = "") -> None:
        self.name = name

    async def running(self, run: Any) -> AsyncIterator[Any]:
        for number in range(run.context, 3):
            yield number + 1
        yield Finished(f"counted{self.name}")

    async def deleting(self, run: Any) -> AsyncIterator[Any]:
        run.resources.append(f"cleaned{self.name}")
        yield Finished()


def _named_counter() -> Counter:
    return Counter(" by a factory")


def _registry(resources: Any = None) -> Registry:
    @contextmanager
    def lifespan() -> Iterator[Any]:
        yield resources

    return Registry(lifespan)


# --- classes


@pytest.mark.parametrize("implementation", [Counter, AsyncCounter])
def test_class_runs_and_cleans_up_when_deleted(node: Nodes, other: Other, implementation: type) -> None:
    done: list[str] = []
    registry = _registry(done)
    registry.register_task("count", implementation)
    started = node(registry)

    task_id = started.create_task("count", 0)
    task = started.wait_task(task_id, 10)
    started.delete_task(task_id)

    assert (task.result, task.context, task.seq) == ("counted", 3, 4)
    until(lambda: other.row(task_id) is None, what="the row to go")
    assert done == ["cleaned"]
    with pytest.raises(TaskNotFound):
        started.get_task(task_id)


@ONE
@pytest.mark.parametrize(
    ("implementation", "result"),
    [
        (_named_counter, "counted by a factory"),
        (partial(Counter, " by a partial"), "counted by a partial"),
        (partial(AsyncCounter, " by a partial"), "counted by a partial"),
        (Counter(" by an object"), "counted by an object"),
        (AsyncCounter(" by an object"), "counted by an object"),
    ],
)
def test_factory_partial_and_object_are_as_good_as_a_class(node: Nodes, implementation: Any, result: str) -> None:
    registry = _registry()
    registry.register_task("count", implementation)
    started = node(registry)

    assert started.result(started.create_task("count", 0), 10) == result


@ONE
@pytest.mark.parametrize("implementation", [Counter, AsyncCounter])
def test_each_run_of_a_class_has_an_object_of_its_own(node: Nodes, implementation: type) -> None:
    seen: list[object] = []

    class Remembering(implementation):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            seen.append(self)

    registry = _registry()
    registry.register_task("count", Remembering)
    started = node(registry)

    for task_id in [started.create_task("count", 0) for _ in range(3)]:
        started.wait_task(task_id, 10)

    assert len(set(map(id, seen))) == 3


@ONE
def test_class_without_deleting_goes_at_once(node: Nodes, other: Other) -> None:
    class Plain:
        def running(self, run: Any) -> Iterator[Any]:
            yield Finished()

    registry = Registry()
    registry.register_task("plain", Plain)
    started = node(registry)
    task_id = started.create_task("plain")
    started.wait_task(task_id, 10)

    started.delete_task(task_id)

    until(lambda: other.row(task_id) is None, what="the row to go")


@ONE
@pytest.mark.parametrize("bad", [object(), 7, [], [Counter(), print], type("NoRunning", (), {})])
def test_what_is_none_of_the_four_kinds_is_refused_when_registered(bad: Any) -> None:
    with pytest.raises(BadArgument):
        Registry().register_task("bad", bad)


# --- generator functions


def _generators(registry: Registry, cleaned: list[str]) -> None:
    @registry.task("sync")
    def sync(run: Any) -> Iterator[Any]:
        yield run.context + 1
        yield Finished(current_run() is run)

    @sync.deleting
    def clean_up(run: Any) -> Iterator[Any]:
        cleaned.append("sync")
        yield Finished()

    @registry.task("async")
    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        yield run.context + 1
        yield Finished(current_run() is run)

    @asynchronous.deleting
    async def clean_up_too(run: Any) -> AsyncIterator[Any]:
        cleaned.append("async")
        yield Finished()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_generator_function_runs_and_has_its_own_clean_up(node: Nodes, other: Other, kind: str) -> None:
    cleaned: list[str] = []
    registry = Registry()
    _generators(registry, cleaned)
    started = node(registry)

    task_id = started.create_task(kind, 1)
    task = started.wait_task(task_id, 10)
    started.delete_task(task_id)

    assert (task.context, task.result) == (2, True)
    until(lambda: other.row(task_id) is None, what="the row to go")
    assert cleaned == [kind]


@ONE
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_clean_up_may_be_a_plain_function(node: Nodes, other: Other, kind: str) -> None:
    cleaned: list[Any] = []
    registry = Registry()

    def clean(*arguments: Any) -> None:
        cleaned.append(arguments)

    async def async_clean(*arguments: Any) -> None:
        cleaned.append(arguments)

    registry.register_task("kept", lambda: None, deleting=clean if kind == "sync" else async_clean)
    started = node(registry)
    task_id = started.create_task("kept", auto_run=False)
    started.run_task(task_id)
    started.wait_task(task_id, 10)

    started.delete_task(task_id)

    until(lambda: other.row(task_id) is None, what="the row to go")
    assert cleaned == [()]


# --- plain functions


def _plain(registry: Registry) -> None:
    @registry.task("sync")
    def sync(*args: Any, **kwargs: Any) -> Any:
        return [list(args), kwargs]

    @registry.task("async")
    async def asynchronous(*args: Any, **kwargs: Any) -> Any:
        return [list(args), kwargs]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_plain_function_is_called_with_the_arguments_and_returns_the_result(node: Nodes, kind: str) -> None:
    registry = Registry()
    _plain(registry)
    started = node(registry)

    def called_with(arguments: Any) -> Any:
        return started.result(started.create_task(kind, arguments), 10)

    assert called_with([1, [2]]) == [[1, [2]], {}]
    assert called_with({"a": 1}) == [[], {"a": 1}]
    assert called_with("text") == [["text"], {}]
    assert called_with(0) == [[0], {}]
    assert called_with(False) == [[False], {}]
    assert called_with(None) == [[], {}]
    assert called_with([]) == [[], {}]


@ONE
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_wrong_number_of_arguments_fails_the_attempt_with_the_reason(node: Nodes, kind: str) -> None:
    registry = Registry()

    async def asynchronous(one: int) -> int:
        return one

    registry.register_task("one", (lambda one: one) if kind == "sync" else asynchronous)
    started = node(registry)

    task = started.wait_task(started.create_task("one", [1, 2]), 10)

    assert task.state == "FAILED"
    assert "takes 1 positional argument but 2 were given" in str(task.error)


@ONE
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_plain_function_finds_its_run(node: Nodes, kind: str) -> None:
    registry = Registry(lambda: _yielding("resource"))

    def told() -> dict[str, Any]:
        run = current_run()
        return {
            "id": str(run.id),
            "type": run.type,
            "user": run.user,
            "group": run.group,
            "attempt": run.attempt,
            "epoch": run.epoch,
            "headers": run.headers,
            "resources": run.resources,
            "stopping": run.stop.is_set(),
        }

    async def asynchronous() -> dict[str, Any]:
        return told()

    registry.register_task("tell", told if kind == "sync" else asynchronous)
    started = node(registry)

    task_id = started.create_task("tell", user="ann", group="g", headers={"trace": "t"})

    assert started.result(task_id, 10) == {
        "id": str(task_id),
        "type": "tell",
        "user": "ann",
        "group": "g",
        "attempt": 1,
        "epoch": 1,
        "headers": {"trace": "t"},
        "resources": "resource",
        "stopping": False,
    }


@contextmanager
def _yielding(value: Any) -> Iterator[Any]:
    yield value


@ONE
def test_partial_callable_object_and_bound_method_are_plain_functions(node: Nodes) -> None:
    class Adder:
        def __init__(self, number: int) -> None:
            self.number = number

        def __call__(self, other: int) -> int:
            return self.number + other

        def add(self, other: int) -> int:
            return self.number + other

    registry = Registry()
    registry.register_task("partial", partial(max, 5))
    registry.register_task("object", Adder(10))
    registry.register_task("method", Adder(20).add)
    started = node(registry)

    assert started.result(started.create_task("partial", 7), 10) == 7
    assert started.result(started.create_task("object", 7), 10) == 17
    assert started.result(started.create_task("method", 7), 10) == 27


@ONE
def test_registered_function_can_still_be_called() -> None:
    registry = Registry()

    @registry.task("add")
    def add(one: int, two: int) -> int:
        """Add."""
        return one + two

    assert add(1, two=2) == 3
    assert add.__doc__ == "Add."
    assert add.__name__ == "add"


# --- lists of handlers


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_list_of_handlers_resumes_at_the_one_that_failed(node: Nodes, kind: str) -> None:
    calls: list[str] = []

    def load(name: str) -> list[int]:
        calls.append("load")
        return [len(name), 10]

    def add(one: int, two: int) -> int:
        calls.append("add")
        if calls.count("add") == 1:
            raise OSError("not yet")
        return one + two

    def tell(number: int) -> str:
        calls.append("tell")
        return f"it is {number}"

    registry = Registry()
    handlers = [load, add, tell]
    registry.register_task("job", handlers if kind == "sync" else [*map(_asynchronous, handlers)], retry=[0])
    started = node(registry)

    task = started.wait_task(started.create_task("job", "abc"), 10)

    assert calls == ["load", "add", "add", "tell"]
    assert task.result == "it is 13"
    assert task.context == {"next": 3, "outputs": [[3, 10], 13, "it is 13"]}
    assert task.attempt == 2


def _asynchronous(function: Any) -> Any:
    async def call(*args: Any) -> Any:
        return function(*args)

    return call


@ONE
def test_progress_of_a_job_is_the_share_of_its_handlers(node: Nodes) -> None:
    go = threading.Event()
    registry = Registry()
    registry.register_task("job", [lambda: 1, lambda one: go.wait(10) and one + 1])
    started = node(registry)

    task_id = started.create_task("job")
    half = until(lambda: (task := started.get_task(task_id)).seq == 1 and task, what="the first handler's report")
    go.set()

    assert half.progress == 0.5
    assert half.context == {"next": 1, "outputs": [1]}
    assert started.result(task_id, 10) == 2


@ONE
def test_handlers_of_one_list_are_all_sync_or_all_async() -> None:
    with pytest.raises(BadArgument, match="all sync or all async"):
        Registry().register_task("mixed", [print, _asynchronous(print)])


# --- resources


@ONE
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_lifespan_is_entered_once_per_node_and_exited_when_it_stops(node: Nodes, kind: str) -> None:
    log: list[str] = []

    @contextmanager
    def sync() -> Iterator[Any]:
        log.append("enter")
        yield {"number": 5}
        log.append("exit")

    @asynccontextmanager
    async def asynchronous() -> AsyncIterator[Any]:
        log.append("enter")
        yield {"number": 5}
        log.append("exit")

    registry = Registry(sync if kind == "sync" else asynchronous)
    registry.register_task("number", lambda: current_run().resources["number"])
    one, two = node(registry), node(registry)

    results = [one.result(one.create_task("number"), 10) for _ in range(4)]
    before = list(log)
    one.stop()
    two.stop()

    assert results == [5, 5, 5, 5]
    assert before == ["enter", "enter"]
    assert log == ["enter", "enter", "exit", "exit"]


@ONE
def test_lifespan_that_fails_keeps_the_node_from_starting(node: Nodes) -> None:
    @contextmanager
    def broken() -> Iterator[Any]:
        raise OSError("no network")
        yield

    fresh = node.make(Registry(broken))

    with pytest.raises(OSError, match="no network"):
        fresh.start()

    assert fresh.health().ok is False


# --- context types


@dataclass
class DataContext:
    done: int
    names: list[str]


class StructContext(msgspec.Struct):
    done: int
    names: list[str]


class ModelContext(pydantic.BaseModel):
    done: int
    names: list[str]


@pytest.mark.parametrize("context_type", [DataContext, StructContext, ModelContext])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_context_type_is_what_goes_in_and_out(node: Nodes, context_type: Any, kind: str) -> None:
    seen: list[Any] = []
    registry = Registry()

    def count(run: Any) -> Iterator[Any]:
        seen.append(run.context)
        yield context_type(done=run.context.done + 1, names=[*run.context.names, "x"])
        raise OSError("once more")

    async def async_count(run: Any) -> AsyncIterator[Any]:
        for each in count(run):
            yield each

    registry.register_task("count", count if kind == "sync" else async_count, context_type=context_type, retry=[0])
    started = node(registry)

    task = started.wait_task(started.create_task("count", {"done": 0, "names": []}), 10)

    assert task.context == {"done": 2, "names": ["x", "x"]}
    assert seen == [context_type(done=0, names=[]), context_type(done=1, names=["x"])]


@ONE
def test_report_that_does_not_fit_the_context_type_fails_the_attempt(node: Nodes) -> None:
    registry = Registry()

    @registry.task("count", context_type=DataContext)
    def count(run: Any) -> Iterator[Any]:
        yield {"done": "many"}

    started = node(registry)

    task = started.wait_task(started.create_task("count", {"done": 0, "names": []}), 10)

    assert task.state == "FAILED"
    assert task.context == {"done": 0, "names": []}
    assert "needs 'names'" in str(task.error)


# --- registering while a node runs


def test_type_that_is_registered_after_the_start_is_known_to_others_and_runs(node: Nodes, url: str) -> None:
    from pyasync import Client, TypeNotRegistered

    registry = Registry()
    started = node(registry)

    registry.register_task("late", lambda: "here")

    with Client(url, migrate="off") as client:

        def created() -> Any:
            try:
                return client.create_task("late")
            except TypeNotRegistered:
                return None

        task_id = until(created, what="others to know the type")
        assert client.result(task_id, 10) == "here"
    assert started.health().ok
