from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pyasync import Client, State
from tests.cli.conftest import Run

APP = """
import pyasync
registry = pyasync.Registry()
registry.register_task("known", print)
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "pyasync_creating_app.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)
    return "pyasync_creating_app:registry"


def test_the_id_is_what_is_written(cli: Run, client: Client, app: str, url: str) -> None:
    options = ("--user", "ann", "--group", "g", "--priority", 5, "--retry", "60 600", "--timeout", "2m", "--no-run")

    ran = cli("create", "known", '{"n": 1}', "-a", app, *options)

    task = client.get_task(UUID(ran.out.strip()))
    assert ran.code == 0
    assert (task.user, task.group, task.priority, task.state) == ("ann", "g", 5, State.INIT)
    assert task.arguments == {"n": 1}


def test_a_type_that_nobody_has_registered_is_refused(cli: Run) -> None:
    ran = cli("create", "unknown")

    assert ran.code == 4
    assert "unknown" in ran.err


def test_many_are_created_at_once(cli: Run, client: Client, app: str) -> None:
    ran = cli("create", "known", "--count", 3, "-a", app)

    assert [client.get_task(UUID(line)).type for line in ran.lines] == ["known"] * 3


def test_the_task_that_holds_a_key_is_the_answer(cli: Run, app: str) -> None:
    first = cli("create", "known", "--key", "k", "-a", app)
    second = cli("create", "known", "--key", "k", "-a", app)

    assert first.out == second.out


def test_arguments_come_from_stdin(cli: Run, client: Client, app: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('["from", "stdin"]'))

    ran = cli("create", "known", "-", "-a", app, "--json")

    assert client.get_task(UUID(json.loads(ran.out))).arguments == ["from", "stdin"]


@pytest.mark.parametrize(
    "wrong",
    [
        ['{"secret": "hunter2"'],
        ["null", "--run-at", "2030-01-01T00:00:00"],
        ["null", "--run-at", "2030-01-01T00:00:00Z", "--delay", "5"],
        ["null", "--delay", "soon"],
        ["null", "--retry", "60 x"],
        ["null", "--count", "0"],
        ["null", "--count", "2", "--key", "k"],
        ["null", "--user", "x" * 256],
        ["NaN"],
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(cli: Run, client: Client, app: str, wrong: list[Any]) -> None:
    ran = cli("create", "known", *wrong, "-a", app)

    assert ran.code == 2
    assert ran.out == ""
    assert "hunter2" not in ran.err
    assert client.get_tasks() == []
