"""The test bed: what `url` gives is a fresh, empty database, on each kind of database in turn.

    def test_something(url): ...                                  # [sqlite], [postgresql], [mariadb]

    @pytest.mark.databases("postgresql", "mariadb")               # only these
    def test_something_with_servers(url, admin_url): ...          # admin_url: the same database, as a superuser

    def test_something_of_one(postgresql_url): ...                # or sqlite_url, mariadb_url

The servers are private ones (servers.py), each started when the first test asks for it. `PYASYNC_TEST_URLS` adds
servers that run already: comma separated URLs of users who may create databases, such as
`mysql+pymysql://root:secret@127.0.0.1:3306`, each known under the name its URL begins with. A test whose database is
not on this machine is skipped, and fails if `PYASYNC_TEST_REQUIRE=all`. `PostgreSQL` and `MariaDB` in servers.py give
a test that has to break its server one of its own.

Tests of faults take `effort` (faults/effort.py), which is a sample chosen by a seed, unless `--long` asks for all.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.faults.effort import Effort
from tests.runtime.conftest import Nodes
from tests.runtime.other import Other
from tests.servers import MariaDB, PostgreSQL, PrivateServer, Server, Unavailable, running_server

KINDS = ("sqlite", "postgresql", "mariadb")
LOG_SHOWN = 4000  # characters
LONG_TIMEOUT = 3 * 3600  # seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--long", action="store_true", help="every point of the sweeps, and the long forms")
    group.addoption("--seed", type=int, help="what was printed by the run that is to be repeated")
    group.addoption("--iterations", type=int, default=1, help="how often to repeat each long form")
    group.addoption("--duration", type=float, help="seconds for each test that goes by rounds, instead")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = random.randrange(2**32)


def pytest_report_header(config: pytest.Config) -> str:
    return f"faults: --seed={config.option.seed}{' --long' if config.option.long else ''}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give those that take their time by `effort` the time for it."""
    if not config.option.long:
        return
    for item in items:
        if "effort" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(LONG_TIMEOUT), append=False)


@pytest.fixture
def effort(pytestconfig: pytest.Config, _seed: int) -> Effort:
    option = pytestconfig.option
    print("seed", _seed)
    return Effort(_seed, option.long, option.iterations, option.duration)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "_seed" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("seeds")
        seeds = [metafunc.config.option.seed, *(marker.args if marker else ())]
        metafunc.parametrize("_seed", seeds, ids=["", *map(str, seeds[1:])] if marker else [pytest.HIDDEN_PARAM])
    if "_database" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("databases")
    wanted = [place for place in _places() if marker is None or _kind(place) in marker.args]
    metafunc.parametrize("_database", wanted, indirect=True, ids=map(_name, wanted))


def _places() -> list[str]:
    """The kinds of our own databases, and the URLs of other people's."""
    return [*KINDS, *filter(None, os.environ.get("PYASYNC_TEST_URLS", "").split(","))]


def _kind(place: str) -> str:
    return place if place in KINDS else running_server(place).kind


def _name(place: str) -> str:
    if place in KINDS:
        return place
    server = running_server(place)
    return f"{server.kind}@{server.admin.host}:{server.admin.port}"


class Database:
    """A database that one test has for itself, and the URLs that lead to it."""

    def __init__(self, url: str, admin_url: str) -> None:
        self.url = url
        self.admin_url = admin_url


@pytest.fixture
def url(_database: Database) -> str:
    return _database.url


@pytest.fixture
def admin_url(_database: Database) -> str:
    return _database.admin_url


@pytest.fixture
def _database(request: pytest.FixtureRequest) -> Iterator[Database]:
    if request.param == "sqlite":
        sqlite_url = request.getfixturevalue("sqlite_url")
        yield Database(sqlite_url, sqlite_url)
    elif request.param in KINDS:
        yield from _fresh(request.getfixturevalue(f"{request.param}_server"))
    else:
        yield from _fresh(running_server(request.param))


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def postgresql_url(postgresql_server: Server) -> Iterator[str]:
    yield from (database.url for database in _fresh(postgresql_server))


@pytest.fixture
def mariadb_url(mariadb_server: Server) -> Iterator[str]:
    yield from (database.url for database in _fresh(mariadb_server))


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Server]:
    yield from started(PostgreSQL)


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[Server]:
    yield from started(MariaDB)


@pytest.fixture
def node(url: str) -> Iterator[Nodes]:
    nodes = Nodes(url)
    yield nodes
    nodes.stop()


@pytest.fixture
def other(url: str) -> Other:
    return Other(url)


def _fresh(server: Server) -> Iterator[Database]:
    written = server.written()
    name = server.create()
    yield Database(server.url(name), server.admin_url(name))
    server.drop(name)
    # pytest keeps this to itself unless the test has failed.
    sys.stdout.write(server.log(written)[-LOG_SHOWN:])


def started(make: Callable[[], PrivateServer]) -> Iterator[PrivateServer]:
    """Start a server for as long as a fixture lasts."""
    try:
        server = make()
    except Unavailable as reason:
        cannot_be_had(str(reason))
    with server:
        yield server


def cannot_be_had(reason: str) -> NoReturn:
    """Skip the test, or fail it where every database is required."""
    if os.environ.get("PYASYNC_TEST_REQUIRE") == "all":
        pytest.fail(f"{reason} (PYASYNC_TEST_REQUIRE=all)", pytrace=False)
    pytest.skip(reason)
