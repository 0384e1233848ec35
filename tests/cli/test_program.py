from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.servers import free_port


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    ran = run()

    assert ran.code == 2
    assert "usage: pyasync" in ran.err


def test_an_unknown_command_is_a_usage_error(run: Run) -> None:
    assert run("lsit").code == 2


def test_the_version_is_data(run: Run) -> None:
    ran = run("--version")

    assert ran.code == 0
    assert ran.out.startswith("pyasync ")


def test_without_a_database_the_message_says_how_to_name_one(run: Run) -> None:
    ran = run("list")

    assert (ran.code, ran.out) == (2, "")
    assert "PYASYNC_DATABASE_URL" in ran.err


@pytest.mark.parametrize("url", ["nonsense", "oracle://host/db", "sqlite://"])
def test_a_url_that_cannot_be_one_is_a_usage_error(run: Run, url: str) -> None:
    assert run("list", "--database", url).code == 2


def test_a_file_that_is_not_there_is_not_made(run: Run, tmp_path: Path) -> None:
    ran = run("list", "--database", f"sqlite:///{tmp_path / 'typo.db'}")

    assert ran.code == 3
    assert "there is no file" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(20)
@pytest.mark.parametrize("driver", ["postgresql", "mysql"])
def test_an_unreachable_server_is_told_at_once_and_without_its_password(run: Run, driver: str) -> None:
    ran = run("list", "--database", f"{driver}://ann:hunter2@127.0.0.1:{free_port()}/db")

    assert ran.code == 3
    assert len(ran.err.splitlines()) == 1
    assert "hunter2" not in ran.err


def test_a_password_that_is_refused_is_exit_3(run: Run, mariadb_url: str) -> None:
    ran = run("list", "--database", mariadb_url.replace("app@", "app:wrong@"))

    assert ran.code == 3
    assert "wrong" not in ran.err


def test_the_environment_names_the_database(run: Run, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYASYNC_DATABASE", "sqlite:////nowhere/at/all.db")
    monkeypatch.setenv("PYASYNC_DATABASE_URL", sqlite_url)

    assert run("migrate").code == 0
    monkeypatch.setenv("PYASYNC_DATABASE_URL", "")
    assert run("list").code == 3


def test_the_database_may_stand_before_the_command(run: Run, sqlite_url: str) -> None:
    assert run("--database", sqlite_url, "migrate").code == 0
    assert run("--database", "sqlite:////nowhere/at/all.db", "list", "--database", sqlite_url).code == 0


def test_a_setting_that_cannot_be_is_a_usage_error(run: Run, sqlite_url: str) -> None:
    ran = run("list", "--database", sqlite_url, "--schema", "a b")

    assert ran.code == 2
    assert "schema" in ran.err
