from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from pyasync import Client, Finished, Node, Registry, Report, Run
from tests.cli import conftest

registry = Registry()


@registry.task("works")
def works(run: Run[Any]) -> Iterator[Report]:
    yield Report({"step": 1}, progress=0.5, message="half\x1b")
    yield Finished({"answer": 42})


@registry.task("breaks")
def breaks() -> None:
    raise ValueError("broken")


@pytest.fixture
def node(client: Client, system: str) -> Iterator[Node]:
    with Node(system, registry) as running:
        yield running


def test_the_result_is_what_is_written(cli: conftest.Run, node: Node, url: str) -> None:
    ran = cli("wait", node.create_task("works"))

    assert (ran.code, ran.out, ran.err) == (0, '{"answer": 42}\n', "")


def test_a_failed_task_has_no_result(cli: conftest.Run, node: Node) -> None:
    ran = cli("wait", node.create_task("breaks"))

    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "pyasync: the task failed: ValueError: broken\n"


def test_json_is_the_task_however_it_ended(cli: conftest.Run, node: Node) -> None:
    ran = cli("wait", node.create_task("breaks"), "--json")

    assert ran.code == 1
    assert json.loads(ran.out)["state"] == "FAILED"


def test_waiting_gives_up(cli: conftest.Run, client: Client) -> None:
    ran = cli("wait", client.create_task("idle"), "--timeout", "0.01")

    assert (ran.code, ran.out) == (1, "")
    assert "still PENDING" in ran.err


def test_each_change_is_a_line(cli: conftest.Run, node: Node, url: str) -> None:
    id = node.create_task("works", auto_run=False)
    node.run_task(id)

    lines = cli("watch", id).lines

    assert "FINISHED" in lines[-1]
    assert "100%" in lines[-1]
    assert r"half\x1b" in lines[-1]


def test_each_change_is_an_object(cli: conftest.Run, node: Node) -> None:
    ran = cli("watch", node.create_task("breaks"), "--json")

    states = [json.loads(line)["state"] for line in ran.lines]
    assert ran.code == 1
    assert states[-1] == "FAILED"


def test_a_task_that_is_not_there_cannot_be_waited_for(cli: conftest.Run, client: Client) -> None:
    assert cli("wait", "00000000-0000-0000-0000-000000000000").code == 4
    assert cli("watch", "00000000-0000-0000-0000-000000000000").code == 4
