"""The revisions: what they make, that nothing stops them half-way for good, and that they come with the wheel."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from itertools import count
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import alembic.context
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, NullPool, create_engine, event, inspect, make_url, text

from pyasync.errors import SchemaOutdated
from pyasync.settings import Settings
from pyasync.store import schema
from pyasync.store.database import Database
from pyasync.store.tables import tables

ROOT = Path(__file__).parents[2]
TABLES = ["pyasync_node", "pyasync_task", "pyasync_type", "pyasync_version"]

KILLS_ITSELF_HALF_WAY = """
import os, signal, sys
from sqlalchemy import event
from pyasync.settings import Settings
from pyasync.store import schema
from pyasync.store.database import Database
database = Database(sys.argv[1], Settings())

@event.listens_for(database.engine, "before_cursor_execute")
def kill(connection, cursor, statement, *_):
    if "CREATE TABLE pyasync_node" in statement:
        os.kill(os.getpid(), signal.SIGKILL)

schema.upgrade(database)
"""

MIGRATES_FROM_THE_WHEEL = """
import sys
from pyasync.settings import Settings
from pyasync.store import schema
from pyasync.store.database import Database
database = Database(sys.argv[1], Settings())
schema.upgrade(database)
schema.check(database)
print(schema.__file__)
"""


def opened(url: str, name: str | None = None) -> closing[Database]:
    """A database, to be closed; `name` is the setting `schema`."""
    return closing(Database(url, Settings(schema=name)))


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with opened(url) as database:
        yield database


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    with create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as connection:
        yield connection


def table_names(url: str, name: str | None = None) -> list[str]:
    with connected(url) as connection:
        return sorted(inspect(connection).get_table_names(schema=name))


def drift(url: str) -> list[Any]:
    """What Alembic would change to get from the tables that are there to those of tables.py."""
    with connected(url) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": schema.VERSION_TABLE})
        return list(compare_metadata(context, tables(None).metadata))


def described(url: str) -> list[Any]:
    """All that the database itself knows of our tables: Alembic compares no checks, predicates, collations, options."""
    with connected(url) as connection:
        return DESCRIPTIONS[connection.dialect.name](connection)


def described_by_sqlite(connection: Connection) -> list[Any]:
    listed = "select sql from sqlite_master where tbl_name in ('pyasync_task', 'pyasync_node', 'pyasync_type')"
    return list(connection.scalars(text(f"{listed} order by name")))


def described_by_mariadb(connection: Connection) -> list[Any]:
    return [
        # SQLAlchemy creates a table's indexes in no order, and MariaDB lists them in that order.
        sorted(sql.replace(",\n", "\n").splitlines(), key=lambda line: line if " KEY " in line else "")
        for sql in (connection.execute(text(f"show create table {name}")).one()[1] for name in TABLES[:3])
    ]


def described_by_postgresql(connection: Connection) -> list[Any]:
    ours = "in ('pyasync_task'::regclass, 'pyasync_node'::regclass, 'pyasync_type'::regclass)"
    columns = (
        "select attrelid::regclass::text, attnum, attname, format_type(atttypid, atttypmod), attnotnull, "
        "attcollation::regcollation::text, col_description(attrelid, attnum) "
        f"from pg_attribute where attrelid {ours} and attnum > 0 and not attisdropped order by 1, 2"
    )
    constraints = f"select conname, pg_get_constraintdef(oid) from pg_constraint where conrelid {ours} order by 1"
    indexes = f"select pg_get_indexdef(indexrelid) from pg_index where indrelid {ours} order by 1"
    options = f"select relname, reloptions from pg_class where oid {ours} order by 1"
    return [connection.execute(text(query)).all() for query in (columns, constraints, indexes, options)]


DESCRIPTIONS: dict[str, Callable[[Connection], list[Any]]] = {
    "sqlite": described_by_sqlite,
    "mysql": described_by_mariadb,
    "postgresql": described_by_postgresql,
}


def test_an_empty_database_gets_the_tables(database: Database, url: str) -> None:
    schema.upgrade(database)

    assert table_names(url) == TABLES
    assert schema.current(database) == schema.expected() == "0001"
    schema.check(database)


def test_an_upgrade_that_finds_nothing_to_do_does_nothing(database: Database, url: str) -> None:
    schema.upgrade(database)
    before = described(url)

    schema.upgrade(database)

    assert described(url) == before


def test_alembic_finds_no_drift_from_the_tables_of_the_code(database: Database, url: str) -> None:
    schema.upgrade(database)

    assert drift(url) == []


def test_the_database_finds_no_drift_from_the_tables_of_the_code(database: Database, url: str) -> None:
    schema.upgrade(database)
    migrated = described(url)
    tables(None).metadata.drop_all(database.engine)
    tables(None).metadata.create_all(database.engine)

    assert described(url) == migrated


def test_an_empty_database_is_refused_with_the_command_that_helps(database: Database) -> None:
    with pytest.raises(SchemaOutdated, match="pyasync migrate") as refusal:
        schema.check(database)

    assert (refusal.value.found, refusal.value.expected) == (None, "0001")


def test_a_version_table_without_a_version_counts_as_no_tables(database: Database, url: str) -> None:
    schema.upgrade(database)
    with connected(url) as connection:
        connection.execute(text("delete from pyasync_version"))

    assert schema.current(database) is None
    schema.upgrade(database)

    schema.check(database)


@pytest.mark.parametrize("verb", [schema.check, schema.upgrade])
def test_newer_tables_are_refused_and_left_alone(
    database: Database, url: str, verb: Callable[[Database], None]
) -> None:
    schema.upgrade(database)
    with connected(url) as connection:
        connection.execute(text("update pyasync_version set version_num = '9999'"))

    with pytest.raises(SchemaOutdated, match="upgrade pyasync") as refusal:
        verb(database)

    assert (refusal.value.found, refusal.value.expected) == ("9999", "0001")
    assert schema.current(database) == "9999"


def test_a_check_of_tables_that_are_right_costs_one_statement(database: Database) -> None:
    schema.upgrade(database)
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))

    schema.check(database)

    assert len(statements) == 1


def test_auto_creates_the_tables(database: Database, url: str) -> None:
    schema.prepare(database, "auto")

    assert table_names(url) == TABLES
    schema.prepare(database, "auto")


def test_check_creates_nothing(database: Database, url: str) -> None:
    with pytest.raises(SchemaOutdated):
        schema.prepare(database, "check")

    assert table_names(url) == []


def test_off_does_not_even_look(database: Database, url: str) -> None:
    schema.prepare(database, "off")

    assert table_names(url) == []


@pytest.mark.databases("sqlite")
def test_a_file_is_migrated_unasked(database: Database) -> None:
    schema.prepare(database, None)

    schema.check(database)


@pytest.mark.databases("postgresql", "mariadb")
def test_a_server_is_not_migrated_unasked(database: Database) -> None:
    with pytest.raises(SchemaOutdated):
        schema.prepare(database, None)


def test_eight_processes_migrate_at_once(database: Database, url: str) -> None:
    # One process imports everything and the eight are forked off it, so that they are at it within milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    together = context.Barrier(8)
    processes = [context.Process(target=migrate, args=(url, together)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0] * 8
    assert drift(url) == []


def migrate(url: str, together: Barrier) -> None:
    with opened(url) as database:
        together.wait(30)
        schema.upgrade(database)
        schema.check(database)


def test_a_process_killed_half_way_is_no_obstacle_for_the_next(database: Database, url: str) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLS_ITSELF_HALF_WAY, url], cwd=ROOT, check=False)
    assert killed.returncode < 0
    with pytest.raises(SchemaOutdated):
        schema.check(database)

    schema.upgrade(database)

    schema.check(database)
    assert drift(url) == []


class Interrupted(Exception):
    """Stands for whatever ends an upgrade; it is raised where the next statement would be sent."""


# The others take all steps in one transaction.
@pytest.mark.databases("mariadb")
def test_an_upgrade_interrupted_after_each_of_its_steps_is_completed(database: Database, url: str) -> None:
    schema.upgrade(database)
    complete = described(url)
    tables(None).metadata.drop_all(database.engine)
    with connected(url) as connection:
        connection.execute(text("drop table pyasync_version"))

    interruptions = 0
    while not upgraded_by_one_step(database):
        interruptions += 1

    assert interruptions == 11  # the version's table, three tables, seven indexes; the last one writes the version
    assert described(url) == complete
    schema.check(database)


def upgraded_by_one_step(database: Database) -> bool:
    """Interrupt an upgrade before its second change; tell whether there was none left."""
    changes = count()

    def interrupt(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.lstrip().startswith(("CREATE", "INSERT")) and next(changes) == 1:
            raise Interrupted

    event.listen(database.engine, "before_cursor_execute", interrupt)
    try:
        schema.upgrade(database)
    except Interrupted:
        return False
    finally:
        event.remove(database.engine, "before_cursor_execute", interrupt)
    return True


def test_threads_migrate_databases_of_their_own_at_once(tmp_path: Path) -> None:
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        urls = [f"sqlite:///{tmp_path}/{number}.db" for number in range(4)]
        databases = [stack.enter_context(opened(url)) for url in urls]

        list(threads.map(schema.upgrade, databases))

        for database in databases:
            schema.check(database)


def test_a_host_in_the_middle_of_its_own_migration_goes_on_with_it(sqlite_url: str, tmp_path: Path) -> None:
    host = EnvironmentContext(Config(), ScriptDirectory(str(tmp_path)), as_sql=True)
    with host, opened(sqlite_url) as database:
        schema.upgrade(database)

        assert alembic.context.is_offline_mode()


def test_the_script_run_by_hand_makes_tables_that_pass(database: Database, url: str) -> None:
    run_by_hand(url, schema.sql(url))

    schema.check(database)
    assert drift(url) == []


def run_by_hand(url: str, script: str) -> None:
    BY_HAND[make_url(url).get_backend_name()](url, script)


def run_by_psycopg(url: str, script: str) -> None:
    import psycopg

    address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(script)  # type: ignore[call-overload]  # no literal


def run_by_pymysql(url: str, script: str) -> None:
    import pymysql
    from pymysql.constants.CLIENT import MULTI_STATEMENTS

    place = make_url(url)
    address: dict[str, Any] = {
        "host": place.host,
        "port": place.port,
        "user": place.username,
        "database": place.database,
    }
    with pymysql.connect(**address, client_flag=MULTI_STATEMENTS, autocommit=True) as connection:
        cursor = connection.cursor()
        cursor.execute(script)
        while cursor.nextset():
            pass


def run_by_sqlite3(url: str, script: str) -> None:
    import sqlite3

    with closing(sqlite3.connect(str(make_url(url).database))) as connection:
        connection.executescript(script)


BY_HAND = {"postgresql": run_by_psycopg, "mysql": run_by_pymysql, "sqlite": run_by_sqlite3}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mysql", "mariadb", "postgresql+asyncpg://host/name"])
def test_the_script_needs_no_database(kind: str) -> None:
    assert "CREATE TABLE pyasync_task" in schema.sql(kind)


def test_a_schema_is_a_system_of_its_own(postgresql_url: str) -> None:
    with opened(postgresql_url, "Work") as database, opened(postgresql_url) as other:
        schema.upgrade(database)

        schema.check(database)
        assert table_names(postgresql_url, "Work") == TABLES
        with pytest.raises(SchemaOutdated):
            schema.check(other)

        schema.upgrade(other)
        schema.check(other)


@pytest.mark.databases("postgresql")
def test_a_schema_that_is_there_needs_no_right_to_create_one(url: str, admin_url: str) -> None:
    place = make_url(url)
    with connected(admin_url) as admin:
        admin.execute(text(f"create schema work authorization {place.username}"))
        admin.execute(text(f"revoke create on database {place.database} from {place.username}"))
    with opened(url, "work") as database:
        schema.upgrade(database)

        schema.check(database)


def test_the_script_creates_the_schema(postgresql_url: str) -> None:
    run_by_hand(postgresql_url, schema.sql(postgresql_url, "Work"))

    with opened(postgresql_url, "Work") as database:
        schema.check(database)


def test_a_schema_of_mariadb_is_a_database(mariadb_url: str) -> None:
    name = f"{make_url(mariadb_url).database}_work"
    try:
        with opened(mariadb_url, name) as database:
            with pytest.raises(SchemaOutdated):
                schema.check(database)
            schema.upgrade(database)

            schema.check(database)
        assert table_names(mariadb_url, name) == TABLES
        assert table_names(mariadb_url) == []
    finally:
        with connected(mariadb_url) as connection:
            connection.execute(text(f"drop database if exists {name}"))


def test_the_code_knows_every_revision_in_the_folder() -> None:
    revisions = ScriptDirectory(str(ROOT / "migrations")).walk_revisions()

    assert tuple(revision.revision for revision in revisions) == schema.REVISIONS[::-1]


def test_alembic_is_not_imported_before_it_is_needed() -> None:
    script = "import sys; import pyasync.store.schema; assert 'alembic' not in sys.modules"

    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.timeout(180)
def test_the_revisions_come_with_the_wheel(tmp_path: Path, sqlite_url: str) -> None:
    built, target = tmp_path / "built", tmp_path / "target"
    # Without isolation pip need not download what builds the wheel.
    isolation = ["--no-build-isolation"] if find_spec("hatchling") else []
    pip("wheel", "--no-deps", *isolation, "--wheel-dir", built, ROOT)
    pip("install", "--no-deps", "--target", target, *built.glob("*.whl"))

    installed = subprocess.run(
        [sys.executable, "-c", MIGRATES_FROM_THE_WHEEL, sqlite_url],
        env={**os.environ, "PYTHONPATH": str(target)},
        cwd=tmp_path,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )

    assert Path(installed.stdout.strip()).is_relative_to(target)
    assert (target / "pyasync" / "migrations" / "versions" / "0001_initial.py").exists()


def pip(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)
