"""`migrate`: create the tables, or bring them up to date."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from pyasync.cli.exits import Exit
from pyasync.cli.opening import connected, given, reach, url_of
from pyasync.cli.options import add_database
from pyasync.cli.terminal import say
from pyasync.settings import Settings
from pyasync.store import checks, schema


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("migrate", help="create or upgrade pyasync's tables", allow_abbrev=False)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="only say whether they are up to date; exit code 3: no")
    how.add_argument("--sql", action="store_true", help="only write the SQL that creates them")
    add_database(parser)
    parser.set_defaults(run=migrate)


def migrate(args: Namespace) -> int:
    """Create, upgrade or check the tables, or write their SQL."""
    with connected(args) as client:
        if args.sql:
            say(schema.sql(url_of(args), Settings.load(**given(args)).schema).rstrip())
            return Exit.OK
        database = client._database
        if args.check:
            reach(client)
            schema.check(database)
            say(f"up to date: version {schema.expected()}")
            return Exit.OK
        checks.reach(database)
        before = schema.current(database)
        schema.upgrade(database)
    say(_done(before))
    return Exit.OK


def _done(before: str | None) -> str:
    if before is None:
        return f"created: version {schema.expected()}"
    if before == schema.expected():
        return f"nothing to do: version {before}"
    return f"upgraded: from version {before} to {schema.expected()}"
