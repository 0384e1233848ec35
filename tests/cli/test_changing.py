from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pyasync import Client, State
from tests.cli.conftest import Run

Create = Callable[..., Any]


def test_each_verb_says_what_became_of_the_task(cli: Run, create: Create, url: str) -> None:
    id = create(auto_run=False)

    for verb, state in [("run", "PENDING"), ("pause", "PAUSED"), ("run", "PENDING"), ("cancel", "FAILED")]:
        assert cli(verb, id).out == f"{id} {state}\n"
    assert cli("delete", id).out == f"{id} DELETING\n"
    assert cli("delete", id, "--force").out == f"{id} deleted\n"


def test_a_task_that_cannot_be_changed_does_not_keep_others_from_it(cli: Run, create: Create) -> None:
    failed, waiting = create(), create()
    cli("cancel", failed)

    ran = cli("pause", failed, waiting)

    assert ran.code == 4
    assert ran.out == f"{waiting} PAUSED\n"
    assert len(ran.err.splitlines()) == 1
    assert "does not allow user_pause" in ran.err


def test_a_new_task_is_deleted_at_once(cli: Run, create: Create) -> None:
    id = create(auto_run=False)

    assert cli("delete", id).out == f"{id} deleted\n"


def test_run_now_drops_the_time(cli: Run, create: Create, client: Client) -> None:
    id = create(delay=3600)

    assert cli("run", "--now", id).code == 0
    assert client.get_task(id).run_at is None


def test_filters_select_the_tasks_to_change(cli: Run, create: Create, client: Client, url: str) -> None:
    for user, type in [("ann", "a"), ("ann", "b"), ("bob", "a")]:
        create(type, user=user)

    ran = cli("pause", "--all-matching", "--user", "ann", "--type", "a,c")

    assert (ran.code, ran.out) == (0, "1 task\n")
    assert client.count_tasks(user="ann") == {State.PENDING: 1, State.PAUSED: 1}
    assert cli("cancel", "--everything").out == "3 tasks\n"
    assert cli("run", "--all-matching", "--state", "failed", "--user", "bob").out == "1 task\n"


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["--user", "ann"],
        ["--all-matching"],
        ["--all-matching", "--user", "ann", "0190"],
        ["--everything", "0190"],
        ["--group", "g", "0190"],
        ["--all-matching", "--user", "ann", "--force"],
    ],
)
def test_what_could_mean_more_tasks_than_was_meant_is_refused(
    cli: Run, create: Create, client: Client, wrong: list[str]
) -> None:
    create(user="ann")

    ran = cli("delete", *wrong)

    assert ran.code == 2
    assert client.count_tasks() == {State.PENDING: 1}


def test_a_task_is_put_into_another_group(cli: Run, create: Create, client: Client) -> None:
    id = create(group="old", user="ann")

    assert cli("group", id, "new", "--user", "bob").code == 4
    assert cli("group", id, "new", "--user", "ann").code == 0
    assert client.get_task(id).group == "new"
