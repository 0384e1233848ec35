"""Rolling deploys: old and new code side by side, on contexts that one wrote and the other has to read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pyasync import Finished, Registry, State
from tests.runtime.conftest import Nodes
from tests.runtime.gate import PATIENCE, Gate, as_async
from tests.runtime.other import Other
from tests.waiting import until

# Versions are compared in SQL; how a context is upgraded is not the database's business.
ONE = pytest.mark.databases("sqlite")


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _release(version: int, kind: str, body: Callable[[Any], Iterator[Any]], **options: Any) -> Registry:
    registry = Registry()
    registry.register_task("task", body if kind == "sync" else as_async(body), version=version, **options)
    return registry


def _new(run: Any) -> Iterator[Any]:
    yield {"count": run.context["count"] + 1, "resumed": run.resumed}
    yield Finished(["new", run.attempt, run.epoch])


def _old(run: Any) -> Iterator[Any]:
    yield run.context + 1
    yield Finished(["old", run.attempt, run.epoch])


def _write_as_new(other: Other, task_id: Any) -> None:
    """Leave the row as a node of version 2 does that stopped."""
    other.change(task_id, context='{"count":5}', version=2, stage="paused", seq=1, epoch=1)


def test_node_does_not_claim_what_newer_code_wrote_and_newer_code_ends_it(node: Nodes, other: Other, kind: str) -> None:
    old = node(_release(1, kind, _old), types=[])
    written_by_new, fresh = old.create_task("task", 5, auto_run=False), old.create_task("task", 5, auto_run=False)
    other.change(written_by_new, queue="run", mark="run", rank=-5)
    _write_as_new(other, written_by_new)
    old_claiming = node(_release(1, kind, _old))
    old.run_task(fresh)

    fresh_result = old_claiming.result(fresh, PATIENCE)
    still = other.row(written_by_new)
    why = old.why(written_by_new)
    new = node(_release(2, kind, _new))
    result = new.result(written_by_new, PATIENCE)

    assert fresh_result == ["old", 1, 1]
    assert (still.stage, still.epoch, still.attempt, still.errors) == ("paused", 1, 1, None)
    assert "version 2" in why
    assert result == ["new", 1, 2]
    assert new.get_task(written_by_new).context == {"count": 6, "resumed": True}


def test_new_node_upgrades_what_old_code_wrote(node: Nodes, other: Other, kind: str) -> None:
    gate = Gate()
    upgraded: list[Any] = []

    def old_body(run: Any) -> Iterator[Any]:
        yield run.context + 1
        gate.reached += 1
        run.stop.wait(PATIENCE)
        yield run.context + 2

    async def async_old_body(run: Any) -> AsyncIterator[Any]:
        yield run.context + 1
        gate.reached += 1
        await run.stop
        yield run.context + 2

    def upgrade(context: Any, from_version: int) -> Any:
        upgraded.append((context, from_version))
        return {"count": context}

    old_registry = Registry()
    old_registry.register_task("task", old_body if kind == "sync" else async_old_body, version=1)
    old = node(old_registry, stop_grace=20.0)
    task_id = old.create_task("task", 10)
    gate.wait_for()
    old.stop()
    handed_over = other.row(task_id)

    new = node(_release(3, kind, _new, upgrade=upgrade))
    result = new.result(task_id, PATIENCE)

    assert (handed_over.context, handed_over.version) == ("12", 1)
    assert upgraded == [(12, 1)]
    assert result == ["new", 1, 2]
    task = new.get_task(task_id)
    assert (task.context, task.version, task.errors) == ({"count": 13, "resumed": True}, 3, [])


@ONE
def test_arguments_are_not_upgraded(node: Nodes, kind: str) -> None:
    upgraded: list[Any] = []

    def upgrade(context: Any, from_version: int) -> Any:
        upgraded.append(context)
        return context

    started = node(_release(2, kind, _new, upgrade=upgrade))

    assert started.result(started.create_task("task", {"count": 1}), PATIENCE) == ["new", 1, 1]
    assert upgraded == []


@dataclass
class Strict:
    count: int


@pytest.mark.parametrize("fault", ["codec", "upgrade", "exit"])
def test_context_that_cannot_be_read_is_left_to_other_nodes_without_using_an_attempt(
    node: Nodes, other: Other, kind: str, fault: str
) -> None:
    def upgrade(context: Any, from_version: int) -> Any:
        raise SystemExit("no way back") if fault == "exit" else LookupError("no way back")

    options: dict[str, Any] = {"context_type": Strict} if fault == "codec" else {"upgrade": upgrade}
    puzzled = node(_release(2, kind, _new, **options), types=[])
    task_id = puzzled.create_task("task", {"count": 1}, auto_run=False)
    other.change(task_id, stage="paused", mark="run", queue="run", context='{"number":5}', version=1, seq=1, epoch=1)

    reader = node(_release(2, kind, _new, **options), name="puzzled")
    row = until(lambda: (row := other.row(task_id)).note and row, PATIENCE, "the node to let go of it")
    why = reader.why(task_id)

    assert (row.stage, row.mark, row.attempt, row.errors, row.context) == ("pending", "run", 1, None, '{"number":5}')
    assert "node puzzled let go of it: its context (version 1) cannot be read here" in row.note
    assert ("Strict has no 'number'" if fault == "codec" else "no way back") in row.note
    assert row.note in why
    assert 4 < (row.due_at - row.started_at).total_seconds() < 60
    assert len(reader._runs) == 0


def test_node_that_can_read_the_context_ends_what_another_let_go_of(node: Nodes, other: Other, kind: str) -> None:
    puzzled = node(_release(2, kind, _new, context_type=Strict), types=[])
    task_id = puzzled.create_task("task", {"count": 1}, auto_run=False)
    other.change(task_id, stage="paused", mark="run", queue="run", context='{"count":5,"new":1}', version=2, epoch=1)
    first = node(_release(2, kind, _new, context_type=Strict))
    until(lambda: other.row(task_id).note, PATIENCE, "the first node to let go of it")

    first.stop()
    second = node(_release(2, kind, _new))
    second.run_task(task_id, now=True)

    task = second.wait_task(task_id, PATIENCE)
    assert (task.state, task.attempt, task.errors) == (State.FINISHED, 1, [])
    assert other.row(task_id).note is None


@ONE
def test_type_that_no_node_has_waits_and_why_says_so(node: Nodes, kind: str) -> None:
    gone = node(_release(1, kind, _old))
    gone.stop()
    registry = Registry()
    registry.register_task("another", print)
    started = node(registry)

    task_id = started.create_task("task", 1)

    assert "the only live node does not have it" in started.why(task_id)
