"""The demo, from end to end, as somebody sees it who runs it for the first time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from pyasync import Client
from pyasync.cli import demo_screen
from pyasync.cli.demo_screen import Lines, screen_for_stdout
from pyasync.cli.demo_story import Measured
from pyasync.cli.demo_verdict import judge
from pyasync.cli.demo_work import Work, plan
from tests.waiting import until

PATIENCE = 180.0


@contextmanager
def demo(tmp_path: Path, url: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYASYNC_DATABASE": url, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "pyasync", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.timeout(240)
def test_it_holds_what_it_promises_and_leaves_nothing_behind(tmp_path: Path, sqlite_url: str) -> None:
    with demo(tmp_path, sqlite_url) as process:
        out, _ = process.communicate(timeout=PATIENCE)

    assert process.returncode == 0, out
    assert "11 of 11 tasks" in out
    assert "0 tasks" in out
    assert re.search(r"takeover +\d+\.\d\d s from kill -9", out)
    assert "FAIL" not in out
    assert not list(tmp_path.glob("pyasync-demo-*"))
    with Client(sqlite_url) as client:
        assert client.get_tasks() == []


@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_stops_its_nodes(tmp_path: Path, sqlite_url: str, number: int) -> None:
    with demo(tmp_path, sqlite_url) as process, Client(sqlite_url, migrate="auto") as client:
        until(client.get_nodes, PATIENCE, "a node")

        process.send_signal(number)

        assert process.wait(PATIENCE) == 130
        assert client.get_nodes() == []
    assert not list(tmp_path.glob("pyasync-demo-*"))


@pytest.mark.timeout(240)
def test_killed_it_takes_its_nodes_along(tmp_path: Path, sqlite_url: str) -> None:
    with demo(tmp_path, sqlite_url) as process, Client(sqlite_url, migrate="auto") as client:
        until(lambda: len(client.get_nodes()) == 3, PATIENCE, "the nodes")

        process.kill()

        until(lambda: not client.get_nodes(), PATIENCE, "the nodes to leave")


def test_without_rich_it_writes_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_screen, "is_terminal", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.live", None)
    monkeypatch.delitem(sys.modules, "pyasync.cli.demo_table", raising=False)

    assert isinstance(screen_for_stdout(), Lines)


# --- the verdict


@pytest.fixture
def client(sqlite_url: str) -> Iterator[Client]:
    with Client(sqlite_url, strict=False) as made:
        yield made


def once(work: Work) -> Counter[tuple[object, int]]:
    return Counter((id, step) for id, steps in work.steps.items() for step in range(steps))


def verdict(client: Client, work: Work, ledger: Counter[tuple[object, int]], measured: Measured) -> dict[str, bool]:
    return {check.name: check.holds for check in judge(client, work, ledger, measured)}  # type: ignore[arg-type]


def test_nothing_holds_where_nothing_happened(client: Client) -> None:
    assert not any(verdict(client, plan("t"), Counter(), Measured()).values())


def test_a_step_done_twice_is_only_forgiven_where_a_kill_cut_it_off(client: Client) -> None:
    work = plan("t")
    client.create_tasks([replace(new, auto_run=False) for new in work.new])
    id = next(iter(work.steps))
    ledger = once(work) + Counter({(id, 1): 1})
    victim = Measured(victims={id: client.get_task(id)})

    assert verdict(client, work, once(work), Measured())["steps"]
    assert not verdict(client, work, ledger, Measured())["steps"]
    assert verdict(client, work, ledger, victim)["steps"]
    assert not verdict(client, work, ledger + Counter({(id, 2): 1}), victim)["steps"]


def test_a_step_that_was_left_out_or_made_up_is_not_forgiven(client: Client) -> None:
    work = plan("t")
    id = next(iter(work.steps))

    assert not verdict(client, work, once(work) - Counter({(id, 1): 1}), Measured())["steps"]
    assert not verdict(client, work, once(work) + Counter({(uuid4(), 0): 1}), Measured())["steps"]
