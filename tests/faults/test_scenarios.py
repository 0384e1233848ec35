"""The scenarios of the ancestor's own tests, on every database, with the first and with the last come served first."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pyasync import Client, Fifo, InvalidTransition, NewTask, Node, State, TaskNotFound
from tests.faults.effort import Effort
from tests.faults.worker import expected, product, registry
from tests.waiting import until


class Lifo:
    """Last come, first served."""

    def order(self, task: Any) -> tuple[Any, ...]:
        return (task.ready_at.desc(), task.id.desc())


@pytest.fixture(params=[Fifo, Lifo], ids=["fifo", "lifo"])
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings of the node: the defaults but for its queues' policy, and tables of its own making."""
    return {"queue": request.param(), "delete_queue": request.param(), "migrate": "auto", "poll_interval": 0.2}


@pytest.fixture
def node(url: str, settings: dict[str, Any]) -> Iterator[Node]:
    with Node(url, registry(url), **settings) as node:
        yield node


@pytest.fixture
def seed(effort: Effort) -> int:
    return effort.seed


def steps(folder: Path, number: int = 20, pause: float = 0.02) -> dict[str, Any]:
    return {"n": number, "pause": pause, "file": str(folder / "steps")}


def is_gone(node: Node, task: UUID) -> bool:
    with suppress(TaskNotFound):
        node.get_task(task, include_deleting=True)
        return False
    return True


def test_tasks_finish(node: Node, tmp_path: Path) -> None:
    tasks = node.create_tasks([NewTask(type="steps", arguments=steps(tmp_path, 10))] * 25)

    assert [node.result(task, 20.0) for task in tasks] == [expected(10)] * 25


def test_tasks_start_in_the_order_of_the_policy(url: str, settings: dict[str, Any], tmp_path: Path) -> None:
    with Client(url, migrate="auto", strict=False) as client:
        tasks = [client.create_task("steps", steps(tmp_path, 1)) for _ in range(5)]

        with Node(url, registry(url), concurrency=1, **settings):
            for task in tasks:
                client.wait_task(task, 10.0)

    started = [UUID(line.split()[0]) for line in (tmp_path / "steps").read_text().splitlines()]
    assert started == (tasks if isinstance(settings["queue"], Fifo) else tasks[::-1])


def test_a_task_that_is_deleted_while_it_runs_cleans_up_once_and_is_gone(node: Node, tmp_path: Path) -> None:
    task = node.create_task("cleaned", steps(tmp_path))
    until(lambda: node.get_task(task).seq > 3)

    node.delete_task(task)

    until(lambda: is_gone(node, task))
    assert len((tmp_path / "steps").read_text().splitlines()) == 1


def test_a_task_without_clean_up_that_is_deleted_while_it_runs_is_gone(node: Node, tmp_path: Path) -> None:
    task = node.create_task("steps", steps(tmp_path, 1000))
    until(lambda: node.get_task(task).seq > 3)

    node.delete_task(task)

    until(lambda: is_gone(node, task))
    assert node.count_tasks(include_deleting=True) == {}


def test_a_task_that_fails_and_is_run_again_by_its_user_finishes_in_the_end(node: Node) -> None:
    task = node.create_task("flaky", {"n": 5})
    failures = 0

    while node.wait_task(task, 10.0).state is State.FAILED:
        failures += 1
        node.run_task(task)

    assert (failures, node.result(task)) == (4, expected(5))


def test_a_task_that_is_paused_and_resumed_all_the_time_finishes_in_the_end(
    node: Node, seed: int, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    task = node.create_task("steps", steps(tmp_path, 30, 0.03))
    pauses = 0

    while not node.get_task(task).ended:
        at = time.monotonic() + chance.uniform(0.1, 0.3)
        until(lambda at=at: time.monotonic() > at)
        with suppress(InvalidTransition):  # it has ended meanwhile
            node.pause_task(task)
            until(lambda: node.get_task(task).state is State.PAUSED or node.get_task(task).ended)
            node.run_task(task)
            pauses += 1

    print(pauses, "pauses")
    assert pauses > 1
    assert node.result(task) == expected(30)
    assert len((tmp_path / "steps").read_text().splitlines()) == 30, "each step was made once"


def test_a_task_that_fails_and_wants_no_row_kept_is_gone(node: Node) -> None:
    task = node.create_task("doomed")

    until(lambda: is_gone(node, task))


def test_a_matrix_is_right_after_its_node_was_stopped_and_started_again_and_again(
    url: str, settings: dict[str, Any], seed: int
) -> None:
    chance = random.Random(seed)
    task = UUID(int=chance.getrandbits(128))
    arguments = {"size": 4, "seed": seed, "failures": 0.1, "pause": 0.03}
    starts = 0

    ended = False
    while not ended:
        starts += 1
        with Node(url, registry(url), **settings) as node:
            node.create_task("matrix", arguments, id=task)  # the id makes it one task
            at = time.monotonic() + chance.uniform(0.2, 0.4)
            until(lambda at=at, node=node: time.monotonic() > at or node.get_task(task).ended)
            ended = node.get_task(task).ended
    print(starts, "starts")

    with Node(url, registry(url), **settings) as node:
        assert node.result(task) == product(seed, 4)
    assert starts > 2


def test_matrices_that_fill_all_slots_do_not_starve_their_own_children(node: Node, seed: int) -> None:
    arguments = [{"size": 2, "seed": seed + place, "failures": 0.1, "pause": 0.0} for place in range(10)]
    tasks = [node.create_task("matrix", each) for each in arguments]

    assert [node.result(task, 30.0) for task in tasks] == [product(seed + place, 2) for place in range(10)]
