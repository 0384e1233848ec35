"""The examples, run as a reader would run them, and broken off as a reader would not."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

import pyasync
from pyasync import Client, Node, State
from pyasync.testing import drive
from tests.waiting import auntil, until

EXAMPLES = Path(__file__).parents[2] / "examples"
SLOW = 50.0
"""Seconds for what takes two or three on a machine that has nothing else to do."""


def example(name: str) -> Any:
    """Import an example by its own name, as its neighbours do."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)


def start(name: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    yield
    pyasync.stop()


def test_the_quickstart_is_run_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with start("quickstart.py") as process:
        printed, _ = process.communicate(timeout=SLOW)

    assert (printed, process.returncode) == ("{'i': 10}\n", 0)


def test_a_job_goes_on_at_the_function_that_failed(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    example("jobs").main(sqlite_url)

    printed = capsys.readouterr().out
    assert printed.count("downloading") == 1
    assert printed.count("translating") == 3
    assert "result: {'published': 'THE TEXT OF A LETTER'}" in printed


# --- transfer


def test_wages_are_paid(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    example("transfer").main(sqlite_url)

    assert "balances: {'ada': 300, 'edsger': 300, 'firm': 100, 'grace': 300}" in capsys.readouterr().out


def test_nobody_is_paid_twice_by_a_task_that_is_stopped_and_resumed(sqlite_url: str) -> None:
    transfer = example("transfer")
    transfer.open_accounts(sqlite_url, {"firm": 1000, "ada": 0, "grace": 0})
    engine = transfer.create_engine(sqlite_url)
    wages = {"payer": "firm", "payees": ["ada", "grace"], "wage": 300}

    first = drive(transfer.pay_wages, wages, stop_after=1, connection=engine)
    rest = drive(transfer.pay_wages, wages, context=first[-1].context, connection=engine)

    engine.dispose()
    assert [report.message for report in first] == ["paid ada"]
    assert [report.message for report in rest] == ["paid grace", None]
    assert transfer.balances(sqlite_url) == {"ada": 300, "firm": 400, "grace": 300}


# --- dot


def test_a_dot_product_is_run_by_hand(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    example("dot").main(sqlite_url)

    assert "result: 70" in capsys.readouterr().out


def test_a_dot_product_counts_its_steps() -> None:
    reports = drive(example("dot").Dot, {"a": [1, 2], "b": [3, 4]})

    assert [report.context for report in reports[:-1]] == [
        {"i": 1, "sum": 3, "a": [1, 2], "b": [3, 4]},
        {"i": 2, "sum": 11, "a": [1, 2], "b": [3, 4]},
    ]
    assert reports[-1].result == 11


def test_a_dot_product_survives_failures(url: str) -> None:
    dot = example("dot")
    vectors = {"a": list(range(20)), "b": [2] * 20, "failure_rate": 0.3}
    with Node(url, dot.registry, migrate="auto") as node:
        task = node.get_task(node.create_task("dot", vectors, retry=[0] * 500))
        done = node.wait_task(task.id, SLOW)

    assert done.result == 380
    assert done.attempt > 1


# --- matrix

A, B = [[1, 2], [3, 4]], [[5, 6], [7, 8]]
PRODUCT = {"sum": 134, "matrix": [[19, 22], [43, 50]]}


def test_a_matrix_product_restarts_children_that_failed(url: str) -> None:
    pyasync.init(url, registry=example("matrix").registry, migrate="auto", poll_interval=0.1)
    id = pyasync.create_task("matrix", {"a": A, "b": B, "failure_rate": 0.3})

    assert pyasync.result(id, SLOW) == PRODUCT
    assert [child.group for child in pyasync.get_tasks(types=["dot"])] == [f"matrix/{id}"] * 4


def test_a_matrix_product_goes_on_after_its_node_was_stopped(sqlite_url: str) -> None:
    registry = example("matrix").registry
    pyasync.init(sqlite_url, registry=registry)
    id = pyasync.create_task("matrix", {"a": A, "b": B, "pause": 0.3})
    until(lambda: any(child.seq for child in pyasync.get_tasks(types=["dot"])), SLOW)
    pyasync.stop()

    pyasync.init(sqlite_url, registry=registry)

    assert pyasync.result(id, SLOW) == PRODUCT
    assert pyasync.count_tasks(types=["dot"]) == {State.FINISHED: 4}
    assert all(child.errors == [] for child in pyasync.get_tasks(types=["dot"]))


def test_a_deleted_matrix_product_takes_its_children_along(sqlite_url: str) -> None:
    pyasync.init(sqlite_url, registry=example("matrix").registry, poll_interval=0.1)
    id = pyasync.create_task("matrix", {"a": A, "b": B})
    pyasync.wait_task(id, SLOW)

    pyasync.delete_task(id)

    until(lambda: pyasync.get_tasks(include_deleting=True) == [], SLOW)


@pytest.mark.timeout(180)
def test_a_matrix_product_survives_a_kill_of_its_node(url: str) -> None:
    with Client(url, migrate="auto", strict=False) as client:
        run_and_kill_when(lambda: any(child.seq for child in client.get_tasks(types=["dot"])), url)

        assert run_to_the_end(url) == "result: {'sum': 621, 'matrix': [[30, 24, 18], [84, 69, 54], [138, 114, 90]]}"
        assert client.count_tasks() == {State.FINISHED: 1 + 9}


@pytest.mark.timeout(180)
def test_children_that_a_killed_node_has_just_created_are_not_created_again(sqlite_url: str) -> None:
    with Client(sqlite_url, migrate="auto", strict=False) as client:
        run_and_kill_when(client.count_tasks, sqlite_url)
        run_and_kill_when(lambda: client.count_tasks(types=["dot"]), sqlite_url)

        assert run_to_the_end(sqlite_url).startswith("result: {'sum': 621")
        assert client.count_tasks() == {State.FINISHED: 1 + 9}


def run_and_kill_when(condition: Callable[[], Any], url: str) -> None:
    with start("matrix.py", url, PYASYNC_LEASE="2") as process:
        until(condition, SLOW)
        process.kill()


def run_to_the_end(url: str) -> str:
    with start("matrix.py", url, PYASYNC_LEASE="2") as process:
        printed, _ = process.communicate(timeout=3 * SLOW)
    return printed.splitlines()[-1]


# --- web


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # which is all that SQLAlchemy's async side can do


@asynccontextmanager
async def shop(url: str) -> AsyncIterator[httpx.AsyncClient]:
    app = example("fastapi_app").create_app(url)
    transport = httpx.ASGITransport(app)
    headers = {"X-Customer": "ada"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://shop", headers=headers) as client,
    ):
        yield client


@pytest.fixture(params=["sqlite", "postgresql"])
def shop_url(request: pytest.FixtureRequest) -> str:
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
    url: str = request.getfixturevalue(f"{request.param}_url")
    return drivers[request.param] + url[url.index(":") :]


@pytest.mark.anyio
async def test_an_order_is_shipped_and_watched(shop_url: str) -> None:
    async with shop(shop_url) as client:
        order = (await client.post("/orders", json={"pieces": 2})).json()["order"]
        events = (await client.get(f"/orders/{order}/events")).text.split("\n\n")
        shown = (await client.get(f"/orders/{order}")).json()

    assert shown["state"] == "FINISHED"
    assert shown["result"] == "2 pieces are on their way"
    assert '"state":"FINISHED"' in events[-2]


@pytest.mark.anyio
async def test_an_order_that_is_rolled_back_leaves_no_task(shop_url: str) -> None:
    async with shop(shop_url) as client:
        refused = await client.post("/orders", json={"pieces": 99})

        assert refused.status_code == 409
        assert await pyasync.aio.get_tasks(include_deleting=True) == []


@pytest.mark.anyio
async def test_an_order_is_hidden_from_other_customers(sqlite_url: str) -> None:
    async with shop(f"sqlite+aiosqlite{sqlite_url[6:]}") as client:
        order = (await client.post("/orders", json={"pieces": 1})).json()["order"]
        other = {"X-Customer": "eve"}

        assert (await client.get(f"/orders/{order}", headers=other)).status_code == 404
        await auntil(lambda: finished(client, order))


async def finished(client: httpx.AsyncClient, order: str) -> bool:
    return bool((await client.get(f"/orders/{order}")).json()["state"] == "FINISHED")


def reports(url: str) -> FlaskClient:
    client: FlaskClient = example("flask_app").create_app(url).test_client()
    return client


def test_a_report_is_wanted_and_written_by_a_worker(sqlite_url: str) -> None:
    client = reports(sqlite_url)
    with Node(sqlite_url, example("flask_app").registry):
        id = client.post("/reports", json={"title": "Sums", "pages": 3}).json["id"]
        until(lambda: client.get(f"/reports/{id}").json["state"] == "FINISHED", SLOW)

        assert client.get("/reports").json == [
            {"id": id, "title": "Sums", "state": "FINISHED", "progress": 1.0, "result": {"url": f"/files/{id}.pdf"}}
        ]
        assert client.post(f"/reports/{id}/pause").status_code == 409


def test_a_report_waits_while_it_is_paused(sqlite_url: str) -> None:
    client = reports(sqlite_url)
    with Node(sqlite_url, example("flask_app").registry):
        id = client.post("/reports", json={"title": "Sums", "pages": 1_000}).json["id"]

        assert client.post(f"/reports/{id}/pause").status_code == 204
        until(lambda: client.get(f"/reports/{id}").json["state"] == "PAUSED", SLOW)
        assert client.post(f"/reports/{id}/cancel").status_code == 204
        assert client.get(f"/reports/{id}").json["state"] == "FAILED"


def test_a_report_is_hidden_from_other_users(sqlite_url: str) -> None:
    client = reports(sqlite_url)
    with Node(sqlite_url, example("flask_app").registry):
        id = client.post("/reports", json={"title": "Sums", "pages": 1}, headers={"X-User": "ada"}).json["id"]

        assert client.get(f"/reports/{id}", headers={"X-User": "eve"}).status_code == 404


def test_a_report_that_nobody_can_write_is_refused(sqlite_url: str) -> None:
    client = reports(sqlite_url)

    assert client.post("/reports", json={"title": "Sums", "pages": 1}).status_code == 503
    assert client.get("/reports").json == []
