from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pyasync import Client, Node, Registry
from tests.cli.conftest import Run

Create = Callable[..., Any]

registry = Registry()


@registry.task("breaks")
def breaks() -> None:
    raise ValueError("first\x1b[31m\nsecond")


@pytest.fixture
def broken(client: Client, system: str) -> Any:
    """The id of a task that has failed."""
    with Node(system, registry) as node:
        id = node.create_task("breaks")
        node.wait_task(id, 30)
    return id


def test_a_task_is_shown_in_full(cli: Run, create: Create, url: str) -> None:
    id = create("report", {"page": 1}, user="ann", group="g", key="k", delay=3600)

    shown = dict(line.split(maxsplit=1) for line in cli("show", id).lines)

    assert shown["id"] == str(id)
    assert shown["state"] == "PENDING  (pending, run)"
    assert (shown["user"], shown["group"], shown["key"]) == ("ann", "g", "k")
    assert shown["arguments"] == '{"page": 1}'
    assert shown["why"].startswith("It waits for its time")
    assert "context" not in shown


def test_json_has_all_of_it(cli: Run, create: Create) -> None:
    id = create("report", {"x": ["ü"]}, user="ann")

    task = json.loads(cli("show", id, "--json").out)

    assert (task["id"], task["arguments"], task["state"]) == (str(id), {"x": ["ü"]}, "PENDING")
    assert (task["stage"], task["mark"]) == ("pending", "run")


def test_long_contents_are_cut(cli: Run, create: Create) -> None:
    ran = cli("show", create("report", ["word"] * 5_000))

    assert len(ran.out) < 5_000
    assert "--json shows all" in ran.out


def test_tracebacks_are_shown_on_demand(cli: Run, broken: Any) -> None:
    brief, full = cli("show", broken).out, cli("show", broken, "--errors").out

    assert "Traceback" not in brief
    assert r"ValueError: first\x1b[31m\nsecond" in brief
    assert "Traceback" in full
    assert "\x1b" not in brief + full


def test_why_is_a_sentence(cli: Run, create: Create) -> None:
    id = create(auto_run=False)

    ran = cli("why", id)

    assert (ran.code, ran.out) == (0, "It was created with auto_run=False and waits for run_task().\n")
    assert json.loads(cli("why", id, "--json").out)["why"] == ran.out.strip()
