"""What the tests of the store begin with: empty tables, a client, and rows put where a test wants them.

Making a database takes a second where the disk is slow, and there are hundreds of tests: those that ask for `database`
share one of each kind, which is emptied after each. `url` is still a fresh one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from sqlalchemy import delete

from pyasync.client import Client
from pyasync.settings import Settings
from pyasync.store.database import Database
from pyasync.store.tables import tables
from tests.conftest import KINDS, _kind, _name, _places
from tests.servers import running_server
from tests.store.rows import Rows

Urls: TypeAlias = Callable[[str], str]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "_place" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("databases")
        wanted = [place for place in _places() if marker is None or _kind(place) in marker.args]
        metafunc.parametrize("_place", wanted, indirect=True, ids=map(_name, wanted))


@pytest.fixture(scope="session")
def _urls(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Urls:
    made: dict[str, str] = {}
    return lambda place: (
        made.get(place) or made.setdefault(place, _made(place, request, tmp_path_factory.mktemp("store")))
    )


def _made(place: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """Make a database with our tables, to be used by many tests; return its URL."""
    if place == "sqlite":
        url = f"sqlite:///{folder / 'test.db'}"
    else:
        server = request.getfixturevalue(f"{place}_server") if place in KINDS else running_server(place)
        name = server.create()
        url = server.url(name)
        if place not in KINDS:  # our own servers go away with all they have
            request.addfinalizer(lambda: server.drop(name))
    database = Database(url, Settings())
    tables(None).metadata.create_all(database.engine)
    database.close()
    return url


@pytest.fixture
def _place(request: pytest.FixtureRequest) -> str:
    place: str = request.param
    return place


@pytest.fixture
def database(_place: str, _urls: Urls) -> Iterator[Database]:
    database = Database(_urls(_place), Settings(database_timeout=10.0))
    yield database
    with database.transaction() as tx:
        for table in (tx.t.task, tx.t.node, tx.t.type):
            tx.execute(delete(table))
    database.close()


@pytest.fixture
def client(database: Database) -> Iterator[Client]:
    with Client(url_of(database), migrate="off", strict=False, database_timeout=10.0) as client:
        yield client


@pytest.fixture
def rows(database: Database) -> Rows:
    return Rows(database)


def url_of(database: Database) -> str:
    """Return the URL under which others reach a database."""
    return database.url.render_as_string(hide_password=False)
