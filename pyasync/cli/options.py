"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import argparse
import json
import os
import re
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
FILTERS = ("user", "group", "types", "states", "created_after", "created_before", "done_after", "done_before")
"""The filters of `get_tasks` that the command line has."""


def add_database(parser: ArgumentParser, default: str | None = SUPPRESS) -> None:
    """Add what says where the tasks are: it may stand before the command, too, and a command without it keeps that."""
    group = parser.add_argument_group("database")
    add = partial(group.add_argument, default=default)
    add("--database", metavar="URL", help="such as sqlite:///tasks.db; or PYASYNC_DATABASE_URL")
    add("--schema", metavar="NAME", help="the schema of pyasync's tables; or PYASYNC_SCHEMA")


def add_json(parser: ArgumentParser, help: str = "write JSON") -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help=help)


def add_id(parser: ArgumentParser) -> None:
    """Add a task's id, and the guard."""
    parser.add_argument("id", metavar="ID", help="a task's id, or a beginning of it that no other id has")
    add_guard(parser)


def add_guard(parser: ArgumentParser) -> None:
    """Add `--user` as a guard."""
    parser.add_argument("--user", metavar="NAME", help="only if it is this user's task")


def add_filters(parser: ArgumentParser, *, user: str = "of this user") -> None:
    """Add what selects tasks."""
    group = parser.add_argument_group("filters")
    group.add_argument("--user", metavar="NAME", help=user)
    group.add_argument("--group", metavar="NAME", help="of this group")
    group.add_argument("--type", metavar="TYPE", dest="types", action="extend", type=names, help="of these types")
    group.add_argument("--state", metavar="STATE", dest="states", action="extend", type=names, help="in these states")
    for what in ("created", "done"):
        for side in ("after", "before"):
            help = f"{what} {side} an ISO time, or a time span ago, such as 7d"
            group.add_argument(f"--{what}-{side}", metavar="WHEN", type=moment, help=help)


def filters(args: argparse.Namespace) -> dict[str, Any]:
    """Return the filters that were given, as `get_tasks` takes them."""
    return {name: getattr(args, name) for name in FILTERS if getattr(args, name) is not None}


def environment(*names: str) -> str | None:
    """Return the first of these environment variables that is set to something."""
    return next(filter(None, (os.environ.get(name, "").strip() for name in names)), None)


def names(text: str) -> list[str]:
    """Read names with commas between."""
    return [name.strip() for name in text.split(",")]


def seconds(text: str) -> float:
    """Read a time span: `90`, `90s`, `5m`, `2h` or `7d`."""
    found = _SPAN.fullmatch(text.strip().lower())
    if found is None:
        raise ArgumentTypeError(f"{text!r} is no time span, such as 90, 5m, 2h or 7d")
    return float(found[1]) * _UNITS[found[2]]


def moment(text: str) -> datetime:
    """Read a moment: ISO 8601 with its time zone, or a time span that ends now."""
    if _SPAN.fullmatch(text.strip().lower()):
        return datetime.now(UTC) - timedelta(seconds=seconds(text))
    return iso(text)


def iso(text: str) -> datetime:
    """Read a moment in ISO 8601, with its time zone."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no ISO time, such as 2030-01-31T12:00:00+01:00") from None
    if read.tzinfo is None:
        raise ArgumentTypeError(f"{text!r} has no time zone: end it with Z or, say, +01:00")
    return read


def document(text: str) -> Any:
    """Read JSON. What cannot be read is not repeated: it may hold secrets."""
    try:
        return json.loads(text)
    except ValueError as error:
        place = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise ArgumentTypeError(f"this is not JSON{place} (a text needs its quotes: '\"text\"')") from None
