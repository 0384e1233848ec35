"""The command line in this process, on a database whose tables are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pyasync import Client
from pyasync.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command returned and wrote."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYASYNC_DATABASE_URL", "PYASYNC_DATABASE", "PYASYNC_APP"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*args: object) -> Ran:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        return Ran(code, *capsys.readouterr())

    return call


@pytest.fixture
def system(request: pytest.FixtureRequest) -> str:
    """The URL of `url` where the test has it, else of a SQLite file."""
    name = "url" if "_database" in request.fixturenames else "sqlite_url"
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture
def cli(run: Run, system: str, client: Client) -> Run:
    return lambda *args: run(*args, "--database", system)


@pytest.fixture
def client(system: str) -> Iterator[Client]:
    with Client(system, migrate="auto", strict=False) as made:
        yield made


@pytest.fixture
def create(client: Client) -> Callable[..., Any]:
    """Create a task that no node will run."""
    return lambda type="idle", arguments=None, **more: client.create_task(type, arguments, **more)
