"""A database that restarts, is away, loses sessions or takes no writes: nothing is lost, failed or taken over."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from pyasync import Client, DatabaseUnavailable
from tests.conftest import started
from tests.faults.effort import Effort
from tests.faults.load import loaded
from tests.faults.nodes import Nursery
from tests.servers import MariaDB, PostgreSQL, PrivateServer
from tests.waiting import until

SOON = 8.0
"""Seconds within which tasks must go on: five are promised, and this machine may be busy."""
IN_FLIGHT = 24
"""Steps that may be made without a write: one for each slot."""

ENDS = {
    "postgresql": (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL),  # fast, immediate, and of its first process alone
    "mariadb": (signal.SIGTERM, signal.SIGKILL),
}


@pytest.fixture(scope="module", params=[PostgreSQL, MariaDB], ids=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    yield from started(request.param)


@pytest.mark.timeout(180)
def test_nothing_is_lost_failed_or_taken_over_when_the_database_restarts_under_load(
    server: PrivateServer, nursery: Nursery, tmp_path: Path, effort: Effort
) -> None:
    with loaded(server.url(server.create()), nursery, tmp_path) as load:
        for number in effort.rounds(len(ENDS[server.kind]), 3 * len(ENDS[server.kind])):
            how = ENDS[server.kind][number % len(ENDS[server.kind])]
            running = sum(load.cluster.running().values())

            server.end(how)
            server.start()
            took = load.flows()

            print(f"{running} tasks ran at the {how.name}; {took:.2f} s after the restart they go on")
            assert running, "this counts only if tasks ran"
            assert took < SOON

        load.check()


@pytest.mark.timeout(180)
def test_tasks_go_on_soon_after_the_database_was_down_for_five_leases(
    server: PrivateServer, nursery: Nursery, tmp_path: Path
) -> None:
    with loaded(server.url(server.create()), nursery, tmp_path, lease=1.5) as load:
        nodes = [node.id() for node in load.cluster.nodes]
        down = time.monotonic()
        server.end(ENDS[server.kind][0])
        made = load.made()
        until(lambda: time.monotonic() > down + 5 * 1.5, what="five leases to pass")
        idle = load.made() - made

        server.start()
        took = load.flows()

        print(f"{took:.2f} s after the database is back tasks go on")
        assert idle <= IN_FLIGHT, "without a database no run makes more than one step"
        assert took < SOON
        load.check()
        assert [node.id() for node in load.cluster.nodes] == nodes


@pytest.mark.timeout(120)
def test_sessions_may_be_ended_again_and_again(
    server: PrivateServer, nursery: Nursery, tmp_path: Path, effort: Effort
) -> None:
    random, ended = effort.random("sessions"), 0
    with loaded(server.url(server.create()), nursery, tmp_path) as load:
        while ended < effort.number(60, 500):
            ended += end_sessions(server)
            at = time.monotonic() + random.uniform(0.0, 0.5)
            until(lambda at=at: time.monotonic() >= at, what="the next time")

        print(f"{ended} sessions ended")
        assert load.flows() < SOON
        load.check()


def end_sessions(server: PrivateServer) -> int:
    """End all sessions of the system's; return how many there were."""
    with server.connect() as connection:
        if server.kind == "postgresql":
            query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = :user"
            return int(connection.execute(text(query), {"user": server.user}).scalar_one())
        query = "SELECT count(*) FROM information_schema.processlist WHERE user = :user"
        number = int(connection.execute(text(query), {"user": server.user}).scalar_one())
        connection.execute(text(f"KILL USER {server.user}"))
        return number


@pytest.mark.timeout(120)
def test_no_live_node_is_taken_over_when_the_database_takes_writes_again(
    server: PrivateServer, nursery: Nursery, tmp_path: Path, effort: Effort
) -> None:
    lease = 6.0
    with loaded(server.url(server.create()), nursery, tmp_path, lease=lease) as load:
        for _ in effort.rounds(1, 3):
            since = time.monotonic()
            set_read_only(server, True)
            made = load.made()
            until(lambda since=since: time.monotonic() > since + 2 * lease, 20.0, "two leases to pass")
            idle = load.made() - made

            set_read_only(server, False)
            took = load.flows()

            print(f"{took:.2f} s after writes are taken again tasks go on")
            assert idle <= IN_FLIGHT, "without a write no run makes more than one step"
            assert took < SOON

        load.check()


def set_read_only(server: PrivateServer, value: bool) -> None:
    """Have the server refuse writes of those who are no superusers, in sessions that there are already, too."""
    with server.connect() as connection:
        if server.kind == "postgresql":
            connection.execute(text(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if value else 'off'}"))
            connection.execute(text("SELECT pg_reload_conf()"))
        else:
            connection.execute(text(f"SET GLOBAL read_only = {int(value)}"))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("server", [PostgreSQL], ids=["postgresql"], indirect=True)
def test_a_session_that_takes_no_writes_is_given_up_for_another(
    server: PrivateServer, nursery: Nursery, tmp_path: Path
) -> None:
    with loaded(server.url(server.create()), nursery, tmp_path) as load:
        set_role(server, "SET default_transaction_read_only = on")
        end_sessions(server)
        until(lambda: any(load.cluster.lines("rounds go on failing")), 30.0, "the nodes to see that they cannot write")

        set_role(server, "RESET default_transaction_read_only")  # for the sessions that begin from now on
        took = load.flows()

        print(f"{took:.2f} s after new sessions may write tasks go on")
        assert took < SOON
        load.check()


def set_role(server: PrivateServer, change: str) -> None:
    with server.connect() as connection:
        connection.execute(text(f"ALTER ROLE {server.user} {change}"))


@pytest.mark.timeout(120)
def test_a_lock_that_stays_is_shown_to_a_creator_in_bounded_time_and_fails_no_task(
    server: PrivateServer, nursery: Nursery, tmp_path: Path
) -> None:
    name = server.create()
    with loaded(server.url(name), nursery, tmp_path, database_timeout=1.0) as load:
        client = Client(server.url(name), migrate="off", strict=False, database_timeout=1.0)
        with locked_tasks(server, name):
            since, made = time.monotonic(), load.made()
            with pytest.raises(DatabaseUnavailable) as raised:
                client.create_task("steps", load.work.arguments)
            took, idle = time.monotonic() - since, load.made() - made
        client.close()

        print(f"{took:.2f} s until {raised.value}; {load.flows():.2f} s after the lock is gone tasks go on")
        assert 5.0 < took < 20.0
        assert idle <= IN_FLIGHT, "without a write no run makes more than one step"
        load.check()


@contextmanager
def locked_tasks(server: PrivateServer, database: str) -> Iterator[None]:
    """Have nobody read or write the tasks."""
    postgresql = server.kind == "postgresql"
    lock = "LOCK TABLE pyasync_task IN ACCESS EXCLUSIVE MODE" if postgresql else "LOCK TABLES pyasync_task WRITE"
    with create_engine(server.admin_url(database), poolclass=NullPool).connect() as connection:
        connection.execute(text(lock))
        yield
        connection.rollback()
        if not postgresql:
            connection.execute(text("UNLOCK TABLES"))


@pytest.mark.parametrize("server", [PostgreSQL], ids=["postgresql"], indirect=True)
def test_a_statement_that_takes_too_long_is_shown_to_who_asked_for_it(server: PrivateServer) -> None:
    name = server.create()
    with Client(server.url(name), migrate="auto", strict=False, database_timeout=1.0) as client:
        with create_engine(server.admin_url(name), poolclass=NullPool).begin() as connection:
            body = "begin perform pg_sleep(30); return new; end"
            connection.execute(text(f"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS '{body}'"))
            slow = "CREATE TRIGGER slow BEFORE INSERT ON pyasync_task FOR EACH ROW EXECUTE FUNCTION slow()"
            connection.execute(text(slow))
        since = time.monotonic()

        with pytest.raises(DBAPIError, match="statement timeout"):
            client.create_task("steps")

        assert time.monotonic() - since < 10.0
        assert client.count_tasks() == {}
