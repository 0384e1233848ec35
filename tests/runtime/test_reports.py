"""`yield` is a commit: what is stored when a generator goes on, what a report says, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest

from pyasync import KEEP, Failed, Finished, Node, Phase, Registry, Report, State, Task
from tests.runtime.conftest import Nodes
from tests.runtime.other import Other, Statements
from tests.waiting import auntil, until

# What a report may say is checked before any SQL; that it is stored is seen on each database.
ONE = pytest.mark.databases("sqlite")


def _as_async(function: Callable[[Any], Iterator[Any]]) -> Callable[[Any], AsyncIterator[Any]]:
    async def call(run: Any) -> AsyncIterator[Any]:
        for value in function(run):
            yield value

    return call


def _registry(function: Callable[[Any], Iterator[Any]], kind: str, **options: Any) -> Registry:
    registry = Registry()
    registry.register_task("task", function if kind == "sync" else _as_async(function), **options)
    return registry


def _all_ended(started: Node, number: int) -> list[Task]:
    ids = [started.create_task("task", n) for n in range(number)]
    return [started.wait_task(task_id, 30) for task_id in ids]


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- a yield is a commit


def test_another_connection_reads_the_context_when_the_generator_goes_on(node: Nodes, other: Other, kind: str) -> None:
    seen: list[Any] = []

    def report(run: Any) -> Iterator[Any]:
        for number in range(3):
            yield {"number": number}
            row = other.row(run.id)
            seen.append((row.context, row.seq))

    started = node(_registry(report, kind))

    started.wait_task(started.create_task("task"), 20)

    assert seen == [('{"number":0}', 1), ('{"number":1}', 2), ('{"number":2}', 3)]


def test_state_context_progress_and_result_of_the_last_report_are_one_write(
    node: Nodes, other: Other, kind: str
) -> None:
    def report(run: Any) -> Iterator[Any]:
        yield Report({"n": 1}, progress=0.5, message="half")
        yield Finished({"rows": 7}, context={"n": 2})

    started = node(_registry(report, kind))

    task = started.wait_task(started.create_task("task"), 20)

    assert task.state is State.FINISHED
    assert (task.context, task.progress, task.message, task.result) == ({"n": 2}, 1.0, "half", {"rows": 7})
    assert (task.seq, task.epoch, task.attempt) == (2, 1, 1)
    row = other.row(task.id)
    assert (row.node_id, row.queue, row.done_at is not None) == (None, None, True)


# --- the forms of a report


@ONE
def test_bare_value_is_a_context_and_bare_yield_keeps_it(node: Nodes, other: Other, kind: str) -> None:
    seen: list[Any] = []

    def report(run: Any) -> Iterator[Any]:
        for value in ([1, 2], None, "text", 0, False, {}, Report(None), Report(KEEP)):
            yield value
            row = other.row(run.id)
            seen.append((row.seq, row.context))

    started = node(_registry(report, kind))

    started.wait_task(started.create_task("task"), 20)

    assert seen == [
        (1, "[1,2]"),
        (2, "[1,2]"),
        (3, '"text"'),
        (4, "0"),
        (5, "false"),
        (6, "{}"),
        (7, "null"),
        (8, "null"),
    ]


@ONE
def test_what_a_report_leaves_out_stays_as_it_was(node: Nodes, kind: str) -> None:
    def report(run: Any) -> Iterator[Any]:
        yield Report({"n": 1}, progress=0.25, message="a quarter", result={"so far": 1})
        yield Report(progress=0.5)
        yield Report(message="more")
        yield Failed("broken")

    started = node(_registry(report, kind))

    task = started.wait_task(started.create_task("task"), 20)

    assert task.state is State.FAILED
    assert (task.context, task.progress, task.message) == ({"n": 1}, 0.5, "more")
    assert task.result == {"so far": 1}
    assert task.error == "broken"


FINALS: list[tuple[Report, str, Any, str | None]] = [
    (Finished(), "FINISHED", None, None),
    (Finished([1, {"a": None}]), "FINISHED", [1, {"a": None}], None),
    (Finished(0), "FINISHED", 0, None),
    (Report(phase=Phase.FINISHED, result="x"), "FINISHED", "x", None),
    (Report(phase="finished", result="x"), "FINISHED", "x", None),  # type: ignore[arg-type]
    (Failed("no luck"), "FAILED", None, "no luck"),
    (Failed(OSError("disk")), "FAILED", None, "disk"),
    (Report(phase=Phase.FAILED, message="as such"), "FAILED", None, "as such"),
]


@ONE
def test_final_reports_end_the_task(node: Nodes, kind: str) -> None:
    def report(run: Any) -> Iterator[Any]:
        yield 1
        yield FINALS[run.arguments][0]

    started = node(_registry(report, kind, retry=[0, 0]))

    tasks = _all_ended(started, len(FINALS))

    assert [[task.state.value, task.result, task.error] for task in tasks] == [expected for _, *expected in FINALS]
    assert {(task.context, task.attempt) for task in tasks} == {(1, 1)}


@pytest.mark.parametrize("final", [Finished(delete=True), Failed("x", delete=True)])
def test_final_report_with_delete_removes_the_row(node: Nodes, other: Other, kind: str, final: Report) -> None:
    def report(run: Any) -> Iterator[Any]:
        yield 1
        yield final

    registry = _registry(report, kind)
    started = node(registry)

    task_id = started.create_task("task")

    until(lambda: other.row(task_id) is None, 20, "the row to go")
    until(lambda: len(started._runs) == 0, 20, "its slot to be free")


def test_final_report_with_delete_runs_the_clean_up_of_a_task_that_was_deleted_meanwhile(
    node: Nodes, other: Other, kind: str
) -> None:
    running, deleted, cleaned = threading.Event(), threading.Event(), threading.Event()

    def report(run: Any) -> Iterator[Any]:
        running.set()
        deleted.wait(20)
        yield Finished(delete=True)

    def clean_up(run: Any) -> Iterator[Any]:
        cleaned.set()
        yield Finished()

    started = node(_registry(report, kind, deleting=clean_up))
    task_id = started.create_task("task")
    running.wait(20)

    started.delete_task(task_id)
    deleted.set()

    until(lambda: other.row(task_id) is None, 20, "the row to go")
    assert cleaned.is_set()


@ONE
def test_nothing_after_a_final_report_counts(node: Nodes, kind: str) -> None:
    """F33."""
    went_on = threading.Event()

    def report(run: Any) -> Iterator[Any]:
        try:
            yield Finished("final")
            went_on.set()
            yield Report({"late": True}, message="late")
        finally:
            run.resources.append("closed")

    closed: list[str] = []
    registry = Registry(lambda: _yielding(closed))
    registry.register_task("task", report if kind == "sync" else _closing(report))
    started = node(registry)

    task = started.wait_task(started.create_task("task", "start"), 20)
    until(lambda: closed, what="the generator to be closed")

    assert (task.result, task.context, task.message, task.seq) == ("final", "start", None, 1)
    assert not went_on.is_set()


def _closing(function: Callable[[Any], Iterator[Any]]) -> Callable[[Any], AsyncIterator[Any]]:
    async def call(run: Any) -> AsyncIterator[Any]:
        generator = function(run)
        try:
            for value in generator:
                yield value
        finally:
            generator.close()

    return call


class _yielding:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __enter__(self) -> Any:
        return self.value

    def __exit__(self, *_: object) -> None:
        pass


@ONE
@pytest.mark.parametrize("fault", [OSError("while closing"), SystemExit(1), GeneratorExit(), KeyboardInterrupt()])
def test_generator_that_fails_while_it_is_closed_has_ended_all_the_same(
    node: Nodes, kind: str, fault: BaseException
) -> None:
    def report(run: Any) -> Iterator[Any]:
        try:
            yield Finished("final")
        finally:
            raise fault

    started = node(_registry(report, kind) if kind == "sync" else _async_registry(fault))

    assert started.result(started.create_task("task"), 20) == "final"
    assert started.result(started.create_task("task"), 20) == "final"


def _async_registry(fault: BaseException) -> Registry:
    registry = Registry()

    @registry.task("task")
    async def report(run: Any) -> AsyncIterator[Any]:
        try:
            yield Finished("final")
        finally:
            raise fault

    return registry


@ONE
def test_generator_that_ignores_its_closing_has_ended_all_the_same(node: Nodes) -> None:
    """F32."""
    registry = Registry()

    @registry.task("sync")
    def sync(run: Any) -> Iterator[Any]:
        try:
            yield Finished("final")
        except GeneratorExit:
            yield "still here"

    @registry.task("async")
    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        try:
            yield Finished("final")
        except GeneratorExit:
            yield "still here"

    started = node(registry)

    assert started.result(started.create_task("sync"), 20) == "final"
    assert started.result(started.create_task("async"), 20) == "final"


@ONE
def test_generator_that_ends_by_itself_is_finished(node: Nodes, kind: str) -> None:
    def report(run: Any) -> Iterator[Any]:
        yield {"n": 1}

    started = node(_registry(report, kind))

    task = started.wait_task(started.create_task("task"), 20)

    assert (task.state, task.context, task.result) == (State.FINISHED, {"n": 1}, None)


@ONE
def test_generator_that_yields_nothing_is_finished(node: Nodes, kind: str) -> None:
    def report(run: Any) -> Iterator[Any]:
        yield from ()

    started = node(_registry(report, kind))

    task = started.wait_task(started.create_task("task", [1]), 20)

    assert (task.state, task.context, task.seq) == (State.FINISHED, [1], 1)


# --- rubbish


RUBBISH: list[tuple[Any, str]] = [
    (object(), "object is not a JSON type"),
    ({"a": {1, 2}}, "$.a: set is not a JSON type"),
    ({1: 2}, "a key is int, not text"),
    (float("nan"), "nan is not a JSON number"),
    ({"x": [float("inf")]}, "$.x[0]: inf is not a JSON number"),
    ("\0", "text with NUL"),
    ("\ud800", "lone surrogate"),
    (b"bytes", "bytes is not a JSON type"),
    ("x" * 2_000, "needs at least 2002 bytes as JSON, 1000 are allowed"),
    (Report(1, progress=1.5), "progress is a number from 0 to 1, not 1.5"),
    (Report(1, progress=float("nan")), "progress is a number from 0 to 1, not nan"),
    (Report(1, progress=True), "progress is a number from 0 to 1, not True"),
    (Report(1, progress="half"), "progress is a number from 0 to 1, not 'half'"),  # type: ignore[arg-type]
    (Report(1, message=5), "message is a text, not int"),  # type: ignore[arg-type]
    (Finished(object()), "object is not a JSON type"),
    (Finished("x" * 2_000), "The result needs at least 2002 bytes as JSON, 1000 are allowed"),
    (Finished(1, context="x" * 2_000), "The context needs at least 2002 bytes as JSON, 1000 are allowed"),
    (Report(1, result=object()), "object is not a JSON type"),
]


@ONE
def test_rubbish_fails_the_attempt_with_the_reason_and_stores_nothing_of_it(node: Nodes, kind: str) -> None:
    """F33."""

    def report(run: Any) -> Iterator[Any]:
        yield {"good": True}
        yield RUBBISH[run.arguments][0]

    started = node(_registry(report, kind), max_context_bytes=1_000)

    tasks = _all_ended(started, len(RUBBISH))

    errors = [str(task.error) for task in tasks]
    assert [reason for (_, reason), error in zip(RUBBISH, errors, strict=True) if reason not in error] == []
    assert {task.state for task in tasks} == {State.FAILED}
    assert [task.context for task in tasks] == [{"good": True}] * len(RUBBISH)
    assert {(task.progress, task.message, task.result) for task in tasks} == {(None, None, None)}
    assert len(started._runs) == 0


@ONE
def test_word_that_is_no_phase_fails_the_attempt(node: Nodes, kind: str) -> None:
    def report(run: Any) -> Iterator[Any]:
        yield Report(1, phase="sideways")  # type: ignore[arg-type]

    started = node(_registry(report, kind))

    task = started.wait_task(started.create_task("task"), 20)

    assert (task.state, task.error) == (State.FAILED, "ValueError: 'sideways' is not a valid Phase")


@ONE
def test_rubbish_uses_an_attempt_like_any_failure(node: Nodes, kind: str) -> None:
    def report(run: Any) -> Iterator[Any]:
        yield object() if run.attempt == 1 else {"attempt": run.attempt}

    started = node(_registry(report, kind, retry=[0]))

    task = started.wait_task(started.create_task("task"), 20)

    assert (task.state, task.context, task.attempt) == (State.FINISHED, {"attempt": 2}, 2)


def test_every_text_that_is_strict_json_comes_back_the_same(node: Nodes, kind: str) -> None:
    contexts = ["ünï ☃ 😀", "'\"\\ %s :name {now} v.x", "\x01\x1f\u2028\\u0000", {"k'\"\\:%": [1e308, -0.0, 10**30]}]

    def report(run: Any) -> Iterator[Any]:
        yield from contexts
        yield Finished(contexts)

    started = node(_registry(report, kind))

    task = started.wait_task(started.create_task("task", contexts), 20)

    assert task.result == contexts
    assert task.context == contexts[-1]
    assert task.arguments == contexts


@ONE
def test_message_is_cut_to_its_limit_and_made_printable(node: Nodes, kind: str) -> None:
    def report(run: Any) -> Iterator[Any]:
        yield Report(1, message="a\0\ud800" + "x" * 20_000)

    started = node(_registry(report, kind))

    task = started.wait_task(started.create_task("task"), 20)

    assert str(task.message) == "a?" + "x" * 9_998


def test_context_of_just_the_limit_is_stored(node: Nodes, kind: str) -> None:
    def report(run: Any) -> Iterator[Any]:
        yield "x" * (1024 * 1024 - 2)
        yield Finished('"' * 400_000)

    started = node(_registry(report, kind))

    task = started.wait_task(started.create_task("task"), 20)

    assert (len(task.context), len(task.result)) == (1_048_574, 400_000)


# --- many at once


def test_reports_that_come_together_are_stored_together(node: Nodes) -> None:
    registry = Registry()
    together = 50
    ready: list[Any] = []

    @registry.task("steps")
    async def steps(run: Any) -> AsyncIterator[Any]:
        ready.append(run)
        await auntil(lambda: len(ready) == together, 30)
        for number in range(10):
            yield number

    started = node(registry, concurrency=together)
    statements = Statements(started._database.engine)

    ids = [started.create_task("steps") for _ in range(together)]
    until(lambda: len(ready) == together, 30, "all to run")
    begun = statements.begun
    tasks = [started.wait_task(task_id, 30) for task_id in ids]

    assert [(task.state, task.context, task.seq) for task in tasks] == [(State.FINISHED, 9, 11)] * together
    assert statements.begun - begun < together * 10 / 3


def test_two_hundred_generators_run_at_once(node: Nodes) -> None:
    registry = Registry()
    at_once: set[Any] = set()

    @registry.task("steps")
    async def steps(run: Any) -> AsyncIterator[Any]:
        at_once.add(run.id)
        await auntil(lambda: len(at_once) == 200, 30)
        for number in range(5):
            yield number
            await anyio.lowlevel.checkpoint()
        yield Finished(str(run.id))

    started = node(registry, concurrency=200)

    ids = [started.create_task("steps") for _ in range(200)]
    results = [started.result(task_id, 50) for task_id in ids]

    assert results == [str(task_id) for task_id in ids]


@ONE
def test_generator_that_never_rests_is_held_back_by_its_own_commits(node: Nodes, kind: str) -> None:
    """F33."""
    yielded: list[int] = []

    def report(run: Any) -> Iterator[Any]:
        number = 0
        while True:
            number += 1
            yielded.append(number)
            yield number

    started = node(_registry(report, kind))
    task_id = started.create_task("task")
    until(lambda: len(yielded) > 20)

    started.pause_task(task_id)
    until(lambda: started.get_task(task_id).state is State.PAUSED, 20)

    task = started.get_task(task_id)
    assert task.context == len(yielded)
    assert task.seq == len(yielded) + 1  # the pause is a write, too
