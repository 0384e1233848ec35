"""Open the database that the command line, or the environment, names; say at once when it does not answer."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

from pyasync.cli.exits import Ended, Exit
from pyasync.cli.options import environment
from pyasync.client import Client
from pyasync.settings import Migrate, Settings
from pyasync.store import checks, schema

R = TypeVar("R")

CANDIDATES = 8
"""How many ids an ambiguous beginning lists."""

_EXTRAS = {"psycopg": "postgres", "pymysql": "mysql"}


@contextmanager
def opened(args: argparse.Namespace, **settings: Any) -> Iterator[Client]:
    """Open a client for a command that finds its database and its tables in place."""
    with connected(args, **settings) as client:
        reach(client)
        schema.prepare(client._database, Settings.load(**settings).migrate or "check")
        yield client


def reach(client: Client) -> None:
    """Look whether a client's database is there, without making it. Raises Ended, DatabaseUnavailable."""
    name = checks.missing_file(client._database)
    if name is not None:
        raise Ended(Exit.DATABASE, f"there is no file {name}: check the name, or let `pyasync migrate` make it")
    checks.reach(client._database)


@contextmanager
def connected(args: argparse.Namespace, **settings: Any) -> Iterator[Client]:
    """Make a client that has not yet looked at its database."""
    unlooked: dict[str, Migrate] = {"migrate": "off"}
    with _explained():
        client = Client(url_of(args), **given(args), **{**settings, **unlooked})
    with client:
        yield client


def url_of(args: argparse.Namespace) -> str:
    """Return the database's URL."""
    url: str | None = args.database or environment("PYASYNC_DATABASE_URL", "PYASYNC_DATABASE")
    if url is None:
        raise Ended(Exit.USAGE, "no database: pass --database URL, or set PYASYNC_DATABASE_URL")
    return url


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that say where the tables are."""
    return {} if args.schema is None else {"schema": args.schema}


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what a URL can be wrong with into a line that says so."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(str(error.name))
        if extra is None:
            raise
        raise Ended(Exit.USAGE, f"the driver {error.name} is missing: pip install 'pyasync[{extra}]'") from None
    except Exception as error:
        words = checks.complaint(error)
        if words is None:
            raise
        # Not its words: they may repeat the URL, and with it the password.
        raise Ended(Exit.USAGE, "the database is no URL, such as sqlite:///tasks.db") from None


def inspected(client: Client, look: Any, *args: Any) -> Any:
    """Call one of `store.checks` on a client's database."""
    return client._call(look.__name__, None, look, *args, single=True)


def resolve(client: Client, text: str, user: str | None = None) -> UUID:
    """Return the id that a text is, or that alone begins with it."""
    digits = text.replace("-", "")
    if len(digits) == 32 and not set(digits.lower()) - set("0123456789abcdef"):
        return UUID(digits)
    found = client.find_ids(text, limit=CANDIDATES + 1)
    if user is not None and found:
        found = [task.id for task in client.get_tasks(ids=found, user=user, include_deleting=True)]
    if len(found) == 1:
        return found[0]
    raise Ended(Exit.REFUSED, _ambiguous(text, found) if found else f"no task's id begins with {text}")


def _ambiguous(text: str, found: list[UUID]) -> str:
    listed = [f"  {each}" for each in found[:CANDIDATES]] + ["  ..."] * (len(found) > CANDIDATES)
    return "\n".join([f"more than one task's id begins with {text}:", *listed])
