"""Two users whose tasks are in groups of the same name."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest

from pyasync import Node, Registry, State, TaskNotFound
from tests.waiting import until

GROUP = "reports"


def whose(owner: str) -> str:
    return f"for {owner}"


@pytest.fixture
def node(url: str) -> Iterator[Node]:
    registry = Registry()
    registry.register_task("whose", whose)
    with Node(url, registry, migrate="auto") as node:
        yield node


@pytest.fixture
def tasks(node: Node) -> dict[str, list[UUID]]:
    """Three tasks of each user, in groups of the same name, not yet run."""
    users = ("ada", "Ada", "postgres")  # the second differs by case only, the third is also a role of a database
    return {
        user: [node.create_task("whose", [user], user=user, group=GROUP, auto_run=False) for _ in range(3)]
        for user in users
    }


def test_each_user_finds_only_their_own_tasks(node: Node, tasks: dict[str, list[UUID]]) -> None:
    for user, own in tasks.items():
        assert {task.id for task in node.get_tasks(user=user, group=GROUP)} == set(own)
        assert node.count_tasks(user=user, group=GROUP) == {State.INIT: 3}
    assert node.count_tasks(group=GROUP) == {State.INIT: 9}
    assert node.get_tasks(user="ADA", group=GROUP) == []


def test_a_verb_of_one_user_touches_no_task_of_another(node: Node, tasks: dict[str, list[UUID]]) -> None:
    before = node.get_tasks(user="Ada")

    assert node.run_tasks(user="ada", group=GROUP) == 3
    for task in tasks["ada"]:
        assert node.result(task, 10.0) == "for ada"
    assert node.delete_tasks(user="postgres", group=GROUP) == 3

    until(lambda: node.count_tasks(include_deleting=True) == {State.FINISHED: 3, State.INIT: 3})
    assert node.get_tasks(user="Ada") == before


def test_another_users_task_is_not_there(node: Node, tasks: dict[str, list[UUID]]) -> None:
    theirs = tasks["Ada"][0]
    before = node.get_task(theirs)

    for verb in (node.get_task, node.run_task, node.pause_task, node.cancel_task, node.delete_task, node.why):
        with pytest.raises(TaskNotFound):
            verb(theirs, user="ada")
    with pytest.raises(TaskNotFound):
        node.change_task_group(theirs, "taken", user="ada")
    with pytest.raises(TaskNotFound):
        node.wait_task(theirs, 1.0, user="ada")

    assert node.get_task(theirs) == before


def test_a_task_that_changes_its_group_keeps_its_user(node: Node, tasks: dict[str, list[UUID]]) -> None:
    moved = tasks["ada"][0]

    node.change_task_group(moved, "archive", user="ada")

    assert [task.id for task in node.get_tasks(user="ada", group="archive")] == [moved]
    assert node.get_tasks(user="Ada", group="archive") == []
    assert len(node.get_tasks(user="ada", group=GROUP)) == 2


def test_a_key_is_each_users_own(node: Node, tasks: dict[str, list[UUID]]) -> None:
    first, second = (
        node.create_task("whose", ["x"], user=user, group=GROUP, key="k", delay=60) for user in ("ada", "Ada")
    )

    assert first != second
    assert node.create_task("whose", ["x"], user="ada", group="other", key="k") == first
