"""A database that lost acknowledged reports, as a failover to a lagging replica does: what was lost is done again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pyasync import Finished, Node, Registry, State, Task
from tests.runtime.conftest import Nodes
from tests.runtime.gate import Gate
from tests.runtime.other import Other


class Stepper:
    """Three steps, then the end; it waits at a gate before the step `at`, and keeps what it did."""

    def __init__(self, at: int, end: Any = None) -> None:
        self.at = at
        self.end = end
        self.gate = Gate()
        self.made: list[int] = []

    def body(self, run: Any) -> Iterator[Any]:
        for step in range((run.context or 0) + 1, 4):
            self._wait_before(step)
            self.made.append(step)
            yield step
        self._wait_before(4)
        if self.end is not None:
            yield self.end

    def _wait_before(self, step: int) -> None:
        if step == self.at:
            self.gate.pass_()


def _after_losing_a_report(started: Node, other: Other, stepper: Stepper) -> Task:
    """Run a task, and take its last report back while it waits at the gate."""
    task_id = started.create_task("task")
    stepper.gate.wait_for()
    stored = other.row(task_id).seq
    other.change(task_id, seq=stored - 1, context=str(stored - 1))

    stepper.gate.open()
    return started.wait_task(task_id, 20)


def _registry(stepper: Stepper) -> Registry:
    registry = Registry()
    registry.register_task("task", stepper.body)
    return registry


def test_run_whose_last_report_was_lost_begins_again_from_the_row(node: Nodes, other: Other) -> None:
    stepper = Stepper(at=3)

    task = _after_losing_a_report(node(_registry(stepper)), other, stepper)

    assert stepper.made == [1, 2, 3, 2, 3]
    assert (task.state, task.context, task.seq, task.epoch) == (State.FINISHED, 3, 4, 1)


@pytest.mark.parametrize("end", [None, Finished("all")], ids=["returns", "finishes"])
def test_task_does_not_finish_without_the_report_that_was_lost(node: Nodes, other: Other, end: Any) -> None:
    stepper = Stepper(at=4, end=end)

    task = _after_losing_a_report(node(_registry(stepper)), other, stepper)

    assert stepper.made == [1, 2, 3, 3]
    assert (task.state, task.context, task.attempt) == (State.FINISHED, 3, 1)
