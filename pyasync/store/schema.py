"""Create and upgrade the tables, and refuse those that are not this version's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import column, exc, inspect, select, table

from pyasync.errors import SchemaOutdated
from pyasync.store.database import DRIVERS, Database, Tx
from pyasync.store.dialects import dialect_for

# Alembic is imported where it is used: a node whose tables are up to date never needs it.
if TYPE_CHECKING:
    from alembic.config import Config

REVISIONS = ("0001",)
"""Every revision in migrations/versions, oldest first, so that looking at the version reads no files."""

VERSION_TABLE = "pyasync_version"

# Alembic keeps what it is about in its modules. Taken after the database's lock, and never the other way round.
_alembic_is_busy = threading.Lock()


def prepare(database: Database, mode: Literal["auto", "check", "off"] | None) -> None:
    """Do what the setting `migrate` says; None is "auto" where the database is a file, and "check" elsewhere.

    Raises SchemaOutdated.
    """
    match mode or ("auto" if database.dialect.embedded else "check"):
        case "auto" if current(database) != expected():
            upgrade(database)
        case "check":
            check(database)


def check(database: Database) -> None:
    """Raise SchemaOutdated unless the tables are of this version, neither older nor newer."""
    found = current(database)
    if found != expected():
        raise SchemaOutdated(found, expected())


def current(database: Database) -> str | None:
    """Return the version of the tables; None if there are none."""
    try:
        return database.single(_version)
    except exc.DBAPIError:  # by its error, each database says in its own way that a table is missing
        return database.run(_version_if_any)


def expected() -> str:
    """Return the version that this pyasync needs."""
    return REVISIONS[-1]


def upgrade(database: Database) -> None:
    """Create the tables, or bring old ones up to date. Any number of processes may do so at once.

    Raises SchemaOutdated if the tables are newer than this pyasync.
    """
    import alembic.command  # noqa: F401 - takes a while, and others would wait for the lock meanwhile

    database.run(_upgrade)


def sql(database: str, schema: str | None = None) -> str:
    """Return the script that creates the tables, to be run by hand; `database` is a URL, or just "postgresql"."""
    from alembic import command

    script = StringIO()
    config = _config(script, dialect=_driver(database), schema=schema)
    with _alembic_to_ourselves():
        command.upgrade(config, "head", sql=True)
    return script.getvalue()


def _version(tx: Tx) -> str | None:
    version: str | None = tx.execute(select(column("version_num")).select_from(_version_table(tx))).scalar()
    return version


def _version_table(tx: Tx) -> Any:
    return table(VERSION_TABLE, schema=tx.schema)


def _version_if_any(tx: Tx) -> str | None:
    return _version(tx) if inspect(tx.connection).has_table(VERSION_TABLE, schema=tx.schema) else None


def _upgrade(tx: Tx) -> None:
    from alembic import command

    tx.connection.detach()  # closed at the end, and with it go the lock and what it has set for the session
    tx.dialect.lock_migration(tx.connection, tx.schema)
    found = _version_if_any(tx)
    if found is not None and found not in REVISIONS:
        raise SchemaOutdated(found, expected())
    if found != expected():
        with _alembic_to_ourselves():
            command.upgrade(_config(StringIO(), connection=tx.connection, schema=tx.schema), "head")


def _config(output: StringIO, **attributes: object) -> Config:
    from alembic.config import Config

    config = Config(output_buffer=output, attributes=attributes)
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    return config


def _folder() -> Path:
    """Return the revisions: within the package once it is installed, beside it in a source tree."""
    package = Path(__file__).parents[1]
    shipped = package / "migrations"
    return shipped if shipped.exists() else package.parent / "migrations"


def _driver(database: str) -> str:
    """Return what we use on a kind of database: other drivers' types have other names."""
    kind = dialect_for(database.partition(":")[0].partition("+")[0]).name
    return f"{kind}+{DRIVERS[kind]}"


@contextmanager
def _alembic_to_ourselves() -> Iterator[None]:
    """Keep other threads out; give Alembic back to a host whose own env.py imports what calls us."""
    import alembic.context
    import alembic.op

    with _alembic_is_busy:
        hosts = [getattr(module, "_proxy", None) for module in (alembic.context, alembic.op)]
        try:
            yield
        finally:
            for proxy in filter(None, hosts):
                proxy._install_proxy()
