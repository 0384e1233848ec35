from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pyasync import Client
from pyasync.cli.doctor import Level, server_findings
from pyasync.ids import new_id
from pyasync.store.checks import Server
from tests.cli.conftest import Ran, Run
from tests.cli.nodes import add_node

Create = Callable[..., Any]


def findings(ran: Ran, level: str) -> list[str]:
    return [found["text"] for found in json.loads(ran.out) if found["level"] == level]


def test_a_system_in_good_health(cli: Run, client: Client, create: Create, url: str) -> None:
    add_node(client, "alpha", "idle")
    create("idle")

    ran = cli("doctor", "--json")

    assert ran.code == 0
    assert findings(ran, "fail") == []
    assert any("1 alive: alpha" in text for text in findings(ran, "ok"))
    assert any("1 task of type 'idle'" in text and "live nodes have the type" in text for text in findings(ran, "ok"))


def test_tasks_that_no_live_node_can_run(cli: Run, client: Client, create: Create, url: str) -> None:
    add_node(client, "alpha", "other")
    add_node(client, "quiet", "idle", lease=-1.0)
    create("idle")

    ran = cli("doctor", "--json")

    assert ran.code == 1
    assert len(findings(ran, "fail")) == 1
    assert "no live node has the type" in findings(ran, "fail")[0]
    assert any("quiet has been silent" in text for text in findings(ran, "warn"))


def test_tasks_of_nodes_that_are_gone(cli: Run, client: Client, create: Create, url: str) -> None:
    claimed = create("idle")
    client._database.run(_own, claimed)

    ran = cli("doctor")

    assert ran.code == 1
    assert "1 task of nodes that are gone" in ran.out


def _own(tx: Any, task_id: Any) -> None:
    task = tx.t.task
    tx.execute(task.update().where(task.c.id == task_id).values(node_id=new_id(), stage="running", queue=None))


def test_tasks_that_nobody_starts_and_clean_ups_that_failed(cli: Run, client: Client, create: Create, url: str) -> None:
    client._database.run(_spoil, create("idle", delay=3600), create("idle"), create("idle"))

    ran = cli("doctor", "--json")

    assert ran.code == 1
    assert "1 task overdue" in findings(ran, "fail")[-1]
    told = " ".join(findings(ran, "warn"))
    assert "not cleaned up after" in told
    assert "on probation" in told


def _spoil(tx: Any, overdue: Any, uncleaned: Any, suspect: Any) -> None:
    task = tx.t.task
    old = tx.execute(task.select().where(task.c.id == overdue)).one().created_at.replace(year=2020)
    for id, values in (
        (overdue, {"due_at": old}),
        (uncleaned, {"stage": "failed", "mark": "delete", "queue": None}),
        (suspect, {"losses": 2, "queue": "probation"}),
    ):
        tx.execute(task.update().where(task.c.id == id).values(values))


def test_a_database_without_tables(run: Run, url: str) -> None:
    run("migrate", "--check", "--database", url)
    ran = run("doctor", "--database", url)

    assert ran.code == 1
    assert "fail" in ran.out


def test_a_database_that_does_not_answer(run: Run) -> None:
    ran = run("doctor", "--database", "sqlite:////nowhere/at/all.db")

    assert ran.code == 1
    assert "there is no file" in ran.out
    assert len(ran.lines) == 1


SQLITE = {"journal_mode": "wal", "synchronous": "2"}
POSTGRESQL = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "transaction_isolation": "read committed",
    "read_only": "off",
}
MARIADB = {"isolation": "READ-COMMITTED", "innodb_flush_log_at_trx_commit": "1", "read_only": "OFF", "wsrep_on": "OFF"}


def worst(server: Server) -> Level:
    levels = [finding.level for finding in server_findings(server)]
    return max(levels, key=list(Level).index)


@pytest.mark.parametrize(
    ("server", "level"),
    [
        (Server("SQLite", "3.51.2", (3, 51, 2), SQLITE), Level.WARN),
        (Server("SQLite", "3.51.3", (3, 51, 3), SQLITE), Level.OK),
        (Server("SQLite", "3.34.1", (3, 34, 1), SQLITE), Level.FAIL),
        (Server("SQLite", "3.51.3", (3, 51, 3), SQLITE | {"journal_mode": "delete"}), Level.FAIL),
        (Server("PostgreSQL", "13.0", (13, 0), POSTGRESQL), Level.OK),
        (Server("PostgreSQL", "12.9", (12, 9), POSTGRESQL), Level.FAIL),
        (Server("PostgreSQL", "17.1", (17, 1), POSTGRESQL | {"read_only": "on"}), Level.FAIL),
        (Server("PostgreSQL", "17.1", (17, 1), POSTGRESQL | {"synchronous_commit": "off"}), Level.WARN),
        (Server("MariaDB", "10.6.1-MariaDB", (10, 6, 1), MARIADB), Level.OK),
        (Server("MariaDB", "10.5.9-MariaDB", (10, 5, 9), MARIADB), Level.FAIL),
        (Server("MariaDB", "11.4.2-MariaDB", (11, 4, 2), MARIADB | {"wsrep_on": "ON"}), Level.WARN),
        (Server("MySQL", "8.0.36", (8, 0, 36), MARIADB | {"innodb_flush_log_at_trx_commit": "2"}), Level.WARN),
    ],
)
def test_servers_are_judged_by_what_they_say(server: Server, level: Level) -> None:
    assert worst(server) is level
