"""`doctor`: look at everything that is known to go wrong, and say what to do about it."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from typing import Any

from pyasync.cli.exits import Ended, Exit
from pyasync.cli.opening import connected, inspected, reach
from pyasync.cli.options import add_database, add_json
from pyasync.cli.presenting import dumps
from pyasync.cli.terminal import age, coloured, safe, say, tasks_in_words
from pyasync.client import Client
from pyasync.errors import DatabaseUnavailable, SchemaOutdated
from pyasync.store import checks, schema
from pyasync.store.checks import Server

OVERDUE = 60.0
"""Seconds for which a task whose time has come may wait for a node to notice."""
OFF = 5.0
"""Seconds by which the clocks of this host and the database may differ."""
_OLDEST = {"SQLite": (3, 35), "PostgreSQL": (13,), "MariaDB": (10, 6), "MySQL": (8,)}


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


_COLOURS = {Level.OK: "32", Level.WARN: "33", Level.FAIL: "31"}


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and what to do."""

    level: Level
    subject: str
    text: str


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "doctor",
        help="check the database, the nodes and the tasks; exit code 1: something is wrong",
        allow_abbrev=False,
    )
    parser.add_argument("--strict", action="store_true", help="exit code 1 for warnings too")
    add_json(parser)
    add_database(parser)
    parser.set_defaults(run=examine)


def examine(args: Namespace) -> int:
    """Write what was found."""
    with connected(args) as client:
        found = list(_findings(client))
    if args.json:
        say(dumps([asdict(finding) for finding in found]))
    else:
        _write(found)
    bad = {Level.FAIL, Level.WARN} if args.strict else {Level.FAIL}
    return Exit.FAILURE if any(finding.level in bad for finding in found) else Exit.OK


def _write(found: list[Finding]) -> None:
    width = max(len(finding.subject) for finding in found)
    for each in found:
        say(f"{coloured(f'{each.level.value:4}', _COLOURS[each.level])}  {each.subject:{width}}  {safe(each.text)}")


def _findings(client: Client) -> Iterator[Finding]:
    """Look at one thing after the other, and stop where the next ones cannot be looked at."""
    began = time.monotonic()
    try:
        reach(client)
    except (Ended, DatabaseUnavailable) as error:
        yield Finding(Level.FAIL, "database", str(error))
        return
    where, took = checks.address(client._database), time.monotonic() - began
    yield Finding(Level.OK, "database", f"{where} answered in {took * 1000:.0f} ms, connecting included")
    yield from server_findings(inspected(client, checks.server))
    yield from _clock(client)
    yield from _lockout(client)
    yield from _tables(client)


def _tables(client: Client) -> Iterator[Finding]:
    try:
        schema.check(client._database)
    except SchemaOutdated as error:
        yield Finding(Level.FAIL, "tables", str(error))
        return
    yield Finding(Level.OK, "tables", f"version {schema.expected()}, as this pyasync {version('pyasync')} needs it")
    yield from _nodes(client)
    yield from _backlogs(client)
    yield from _oddities(client)


# --- the server


def server_findings(server: Server) -> Iterator[Finding]:
    """Judge a server by what it says of itself."""
    oldest = _OLDEST[server.kind]
    if server.number < oldest:
        needed = ".".join(map(str, oldest))
        yield Finding(Level.FAIL, "server", f"{server.kind} {server.version} is too old: {needed} or later is needed")
    else:
        yield Finding(Level.OK, "server", f"{server.kind} {server.version}")
    yield from _JUDGES[server.kind](server)


def _sqlite(server: Server) -> Iterator[Finding]:
    if (3, 7) <= server.number < (3, 51, 3):
        yield Finding(
            Level.WARN,
            "server",
            "SQLite 3.7.0 to 3.51.2 can corrupt a database in WAL mode when two connections write or checkpoint at the "
            "same moment (rare; fixed in 3.51.3): upgrade SQLite, or use a server for what must not be lost",
        )
    yield _expected(server, "journal_mode", {"wal"}, Level.FAIL, "pyasync needs WAL, which network file systems lack")


def _postgresql(server: Server) -> Iterator[Finding]:
    yield _writable(server)
    yield _expected(server, "transaction_isolation", {"read committed"}, Level.WARN, "a pooler may have changed it")
    for name in ("fsync", "full_page_writes"):
        yield _expected(server, name, {"on"}, Level.WARN, "a crash of the server can corrupt the database")
    yield _expected(
        server, "synchronous_commit", {"on", "remote_apply", "remote_write", "local"}, Level.WARN, _MAY_LOSE
    )


def _mysql(server: Server) -> Iterator[Finding]:
    yield _writable(server)
    yield _expected(server, "isolation", {"READ-COMMITTED"}, Level.WARN, "a proxy may have changed it")
    yield _expected(server, "innodb_flush_log_at_trx_commit", {"1"}, Level.WARN, _MAY_LOSE)
    if server.settings.get("wsrep_on", "OFF").upper() == "ON":
        yield Finding(
            Level.WARN,
            "server",
            "Galera: its nodes can lose updates that they have acknowledged to each other's clients; let every pyasync "
            "node of the system write to one and the same server",
        )


_JUDGES: dict[str, Callable[[Server], Iterator[Finding]]] = {
    "SQLite": _sqlite,
    "PostgreSQL": _postgresql,
    "MariaDB": _mysql,
    "MySQL": _mysql,
}
_MAY_LOSE = "a crash of the server can lose what it has acknowledged"


def _writable(server: Server) -> Finding:
    return _expected(server, "read_only", {"off", "OFF", "0"}, Level.FAIL, "use the primary: pyasync writes")


def _expected(server: Server, name: str, wanted: set[str], level: Level, reason: str) -> Finding:
    found = server.settings.get(name, "unknown")
    if found in wanted:
        return Finding(Level.OK, "server", f"{name} is {found}")
    return Finding(level, "server", f"{name} is {found}, not {' or '.join(sorted(wanted))}: {reason}")


def _lockout(client: Client) -> Iterator[Finding]:
    found = inspected(client, checks.lockout)
    if found is not None:
        who = "another process" if found.pid is None else f"process {found.pid}"
        text = f"{who} is inside a transaction and does not go on, so nobody else can write: let it go on, or end it"
        yield Finding(Level.FAIL, "database", text)


def _clock(client: Client) -> Iterator[Finding]:
    off = (inspected(client, checks.clock) - datetime.now(UTC)).total_seconds()
    if abs(off) > OFF:
        text = (
            f"the database's is {age(abs(off))} {'ahead of' if off > 0 else 'behind'} this host's; --run-at goes by it"
        )
        yield Finding(Level.WARN, "clock", text)


# --- nodes and tasks


def _nodes(client: Client) -> Iterator[Finding]:
    nodes, silences = client.get_nodes(), inspected(client, checks.silences)
    silent = [node for node in nodes if not node.lost and node.id in silences and silences[node.id].too_long]
    alive = [node for node in nodes if not node.lost and node not in silent]
    names = f": {', '.join(node.name for node in alive)}" if alive else ", so no task runs"
    yield Finding(Level.OK if alive else Level.WARN, "nodes", f"{len(alive)} alive{names}")
    for node in silent:
        since = age(silences[node.id].since)
        advice = "another node will declare it lost" if alive else "start a node: it will take its tasks over"
        yield Finding(Level.WARN, "nodes", f"{node.name} has been silent for {since}: {advice}")
    for node in nodes:
        if node.lost:
            yield Finding(Level.WARN, "nodes", f"{node.name} is lost, and its tasks are being taken over")
    if len(versions := {node.version for node in alive}) > 1:
        yield Finding(Level.WARN, "nodes", f"they run different versions of pyasync: {', '.join(sorted(versions))}")


def _backlogs(client: Client) -> Iterator[Finding]:
    for backlog in inspected(client, checks.backlogs):
        waits = f"{tasks_in_words(backlog.tasks)} of type {backlog.type!r}, the oldest for {age(backlog.oldest)}"
        if backlog.runnable:
            yield Finding(Level.OK, "waiting", f"{waits}; live nodes have the type")
        else:
            yield Finding(Level.FAIL, "waiting", f"{waits}, and no live node has the type: start one that registers it")


def _oddities(client: Client) -> Iterator[Finding]:
    found = inspected(client, checks.oddities, OVERDUE)
    told = (
        (found.orphans, Level.FAIL, "of nodes that are gone: any node's next sweep takes them over; start one"),
        (found.overdue, Level.FAIL, "overdue, and no node has looked: start one"),
        (found.uncleaned, Level.WARN, "not cleaned up after: `pyasync delete` tries again, --force gives up"),
        (
            found.suspects,
            Level.WARN,
            "on probation: nodes were lost while they ran them; see `pyasync show --errors`",
        ),
    )
    for number, level, text in told:
        if number:
            yield Finding(level, "tasks", f"{tasks_in_words(number)} {text}")
    if not any(number for number, _, _ in told):
        yield Finding(Level.OK, "tasks", "none is stuck, overdue or half deleted")
