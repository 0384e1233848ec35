"""`demo`: three nodes work for two users; one of them is killed, another stopped, and nothing is lost."""

from __future__ import annotations

import secrets
import signal
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyasync.cli.demo_nodes import Nodes
from pyasync.cli.demo_screen import screen_for_stdout
from pyasync.cli.demo_story import Measured, Story, StoryFailed
from pyasync.cli.demo_verdict import Check, judge
from pyasync.cli.demo_view import View
from pyasync.cli.demo_work import Work, plan
from pyasync.cli.exits import Ended, Exit
from pyasync.cli.opening import connected
from pyasync.cli.options import add_database, environment
from pyasync.cli.terminal import coloured, say
from pyasync.cli.workloads import LEDGER, read_ledger
from pyasync.client import Client
from pyasync.errors import PyasyncError
from pyasync.store import checks, schema

NAMES = ("alpha", "beta", "gamma")
LOOK = 0.1
"""Seconds between two looks at the database."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo",
        help="watch three nodes share work, and survive kill -9",
        description="Start three nodes, give them work for two users, pause a task, kill -9 a node in the middle, stop "
        "another one, and check that nothing was lost or wrong. Takes half a minute; exit code 0: all held.",
        allow_abbrev=False,
    )
    add_database(parser)
    parser.set_defaults(run=demo)


def demo(args: Namespace) -> int:
    """Play the demo, and say whether it held what it promises."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the nodes and the folder go then too
    with tempfile.TemporaryDirectory(prefix="pyasync-demo-") as folder:
        place = Path(folder)
        args.database = args.database or environment("PYASYNC_DATABASE_URL", "PYASYNC_DATABASE")
        args.database = args.database or f"sqlite:///{place / 'demo.db'}"
        with _prepared(args) as client, _work(client) as work:
            measured = _play(client, args.database, work, place)
            verdict = judge(client, work, read_ledger(place / "ledger"), measured)
    return _conclude(verdict)


@contextmanager
def _prepared(args: Namespace) -> Iterator[Client]:
    with connected(args) as client:
        checks.reach(client._database)
        schema.prepare(client._database, "auto" if schema.current(client._database) is None else "check")
        say(f"database: {checks.address(client._database)}")
        yield client


@contextmanager
def _work(client: Client) -> Iterator[Work]:
    """Plan the work; leave nothing of it behind."""
    work = plan(secrets.token_hex(2))
    try:
        yield work
    finally:
        for id in work.labels:
            with suppress(PyasyncError):
                client.delete_task(id, force=True)


def _play(client: Client, url: str, work: Work, folder: Path) -> Measured:
    tag = work.groups[0].rpartition("-")[2]
    began = time.monotonic()
    names = [f"{name}-{tag}" for name in NAMES]
    with Nodes(names, work.groups, folder, _environment(client, url, folder)) as nodes, screen_for_stdout() as screen:
        view = View(client, work, nodes, lambda: time.monotonic() - began)
        story = Story(view)
        try:
            for _ in story.acts():
                screen.show(view)
                time.sleep(LOOK)
                view.look()
            screen.show(view)
        except StoryFailed as error:
            raise Ended(Exit.FAILURE, f"the demo failed: {error}") from None
    return story.measured


def _environment(client: Client, url: str, folder: Path) -> dict[str, str]:
    """Return what the nodes must know; not on their command lines, since a URL may hold a password."""
    place = {"PYASYNC_DATABASE_URL": url, "PYASYNC_SCHEMA": client.settings.schema or ""}
    return place | {LEDGER: str(folder / "ledger")}


def _conclude(verdict: list[Check]) -> int:
    say()
    for check in verdict:
        mark = coloured("ok  ", "32") if check.holds else coloured("FAIL", "31")
        say(f"{mark}  {check.name:10} {check.text}")
    return Exit.OK if all(check.holds for check in verdict) else Exit.FAILURE
