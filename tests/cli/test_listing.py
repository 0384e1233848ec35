from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pyasync import Client
from tests.cli.conftest import Run
from tests.cli.nodes import add_node

Create = Callable[..., Any]


def test_a_table_has_the_newest_first(cli: Run, create: Create, url: str) -> None:
    first = create("report", user="ann", group="g")
    second = create("invoice", user="bob", auto_run=False)

    ran = cli("list")

    assert ran.code == 0
    assert ran.lines[0].split() == ["ID", "TYPE", "USER", "GROUP", "STATE", "PROGRESS", "TRY", "AGE", "NODE", "MESSAGE"]
    assert ran.lines[1].split()[:4] == [str(second)[:18], "invoice", "bob", "INIT"]
    assert ran.lines[2].split()[:5] == [str(first)[:18], "report", "ann", "g", "PENDING"]


def test_filters_select(cli: Run, create: Create, url: str) -> None:
    wanted = create("a", user="ann", group="g")
    for other in ({"user": "bob"}, {"group": "h"}, {"type": "b"}, {"auto_run": False}):
        create(**{"type": "a", "user": "ann", "group": "g"} | other)

    ran = cli("list", "--user", "ann", "--group", "g", "--type", "a,c", "--state", "pending", "--json")

    assert [task["id"] for task in json.loads(ran.out)] == [str(wanted)]


def test_pages_follow_each_other(cli: Run, create: Create) -> None:
    ids = [str(create()) for _ in range(5)][::-1]

    first = json.loads(cli("list", "--limit", 2, "--json").out)
    second = json.loads(cli("list", "--limit", 2, "--json", "--after", first[-1]["id"]).out)

    assert [task["id"] for task in first + second] == ids[:4]


def test_tasks_are_counted_by_state(cli: Run, create: Create) -> None:
    for auto_run in (True, True, False):
        create(auto_run=auto_run)

    assert json.loads(cli("list", "--count", "--json").out) == {"INIT": 1, "PENDING": 2}
    assert [line.split() for line in cli("list", "--count").lines[1:]] == [
        ["INIT", "1"],
        ["PENDING", "2"],
        ["all", "3"],
    ]


def test_without_tasks_there_is_no_data(cli: Run) -> None:
    ran = cli("list")

    assert (ran.code, ran.out, ran.err) == (0, "", "no tasks\n")


def test_what_rows_hold_cannot_steer_the_terminal(cli: Run, create: Create) -> None:
    create("\x1b]0;owned\x07", {"x": "\x9b"}, user="\x1b[2J")

    for command in ("list", "nodes", "doctor"):
        assert "\x1b" not in cli(command).out
    assert "\x9b" not in cli("list", "--json").out


def test_an_unknown_state_is_a_usage_error(cli: Run) -> None:
    ran = cli("list", "--state", "sleeping")

    assert ran.code == 2
    assert "PENDING" in ran.err


def test_after_a_task_that_is_not_there(cli: Run) -> None:
    assert cli("list", "--after", "00000000-0000-0000-0000-000000000000").code == 4


def test_a_table_fits_the_terminal(cli: Run, create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    create("t" * 60, user="u" * 60, group="g" * 60)
    monkeypatch.setattr("pyasync.cli.terminal.is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")

    assert max(map(len, cli("list").lines)) <= 120


def test_nodes_that_are_silent_show(cli: Run, client: Client, url: str) -> None:
    add_node(client, "busy")
    add_node(client, "quiet", "a", "b", lease=-1.0)

    rows = [line.split() for line in cli("nodes").lines[1:]]

    assert [(row[1], row[2]) for row in rows] == [("busy", "alive"), ("quiet", "silent")]
    assert [node["state"] for node in json.loads(cli("nodes", "--json").out)] == ["alive", "silent"]


def test_without_nodes_there_is_no_data(cli: Run) -> None:
    assert cli("nodes").out == ""
