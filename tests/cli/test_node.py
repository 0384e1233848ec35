"""Nodes that are processes, and what signals do to them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pyasync import Client, State
from tests.cli.conftest import Run
from tests.cli.nodes import node_process
from tests.waiting import until

PATIENCE = 60.0
"""Seconds that a process may take to import everything on a machine that is busy."""

APP = """
import threading
import anyio
import pyasync

@pyasync.task("counts")
async def counts(run):
    for i in range(run.context["i"], 1_000_000):
        await anyio.sleep(0.01)
        yield {"i": i + 1}

@pyasync.task("hangs")
def hangs():
    threading.Event().wait()

@pyasync.task("creates")
async def creates():
    return str(await pyasync.aio.create_task("counts", {"i": 0}, auto_run=False))
"""

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


def running(client: Client, id: UUID) -> bool:
    return client.get_task(id).node is not None


def logged(folder: Path, text: str) -> bool:
    return text in (folder / "log").read_text()


def test_sigterm_hands_over_and_leaves(client: Client, folder: Path, url: str) -> None:
    id = client.create_task("counts", {"i": 0})
    with node_process(url, folder, "shop", "--name", "alpha") as process:
        until(lambda: client.get_task(id).seq > 3, PATIENCE, "reports")

        process.send_signal(signal.SIGTERM)

        assert process.wait(PATIENCE) == 0
    task = client.get_task(id)
    assert (str(task.status), task.node) == ("(paused, run)", None)
    assert task.context["i"] == task.seq - 1  # the last write is the one that lets go of it
    assert client.get_nodes() == []
    assert logged(folder, "reason=SIGTERM running=1")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_at_once(client: Client, folder: Path, number: int, sqlite_url: str) -> None:
    id = client.create_task("hangs")
    with node_process(sqlite_url, folder, "shop", "--stop-grace", "1h") as process:
        until(lambda: running(client, id), PATIENCE, "a claim")
        process.send_signal(number)
        until(lambda: logged(folder, "the node stops"), PATIENCE)

        process.send_signal(number)

        assert process.wait(5.0) == 130


def test_the_end_of_stdin_stops_it_if_so_asked(client: Client, folder: Path, sqlite_url: str) -> None:
    with node_process(sqlite_url, folder, "shop", "--until-eof") as process:  # pytest's stdin has ended
        assert process.wait(PATIENCE) == 0
    assert logged(folder, "reason=end of input")


def test_tasks_use_the_node_as_the_default_one(client: Client, folder: Path, sqlite_url: str) -> None:
    id = client.create_task("creates")
    with node_process(sqlite_url, folder, "shop", "--types", "creates"):
        created = client.result(id, PATIENCE)

    assert client.get_task(UUID(created)).state is State.INIT


def test_settings_come_from_the_command_line(client: Client, folder: Path, sqlite_url: str) -> None:
    options = ["--name", "beta", "--concurrency", "3", "--types", "counts"]
    with node_process(sqlite_url, folder, "shop", *options):
        node = until(client.get_nodes, PATIENCE, "a node")[0]

    assert (node.name, node.slots, node.types) == ("beta", 3, ("counts",))


@pytest.mark.parametrize("wrong", [[], ["pyasync_no_such_module"], ["pyasync"], ["shop", "--lease", "0"]])
def test_what_cannot_run_is_a_usage_error(
    cli: Run, client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: list[Any]
) -> None:
    monkeypatch.chdir(folder)

    ran = cli("node", *wrong)

    assert ran.code == 2
    assert "Traceback" not in ran.err


def test_a_database_that_does_not_answer_is_exit_3(run: Run) -> None:
    ran = run("node", "pyasync.cli.workloads:registry", "--database", "sqlite:////nowhere/at/all.db")

    assert ran.code == 3
