"""`node`: run tasks until told to stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
from argparse import ArgumentParser, Namespace
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pyasync
from pyasync.cli import apps
from pyasync.cli.exits import Ended, Exit
from pyasync.cli.logs import LEVELS
from pyasync.cli.opening import connected, given, url_of
from pyasync.cli.options import add_database, environment, names, seconds
from pyasync.runtime.node import Node
from pyasync.store import checks

log = logging.getLogger("pyasync.node")

LOOK = 1.0
"""Seconds between two looks at whether the node is still there."""

_SETTINGS = (
    "name",
    "concurrency",
    "delete_concurrency",
    "types",
    "groups",
    "lease",
    "poll_interval",
    "stop_grace",
    "migrate",
)


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "node",
        help="run tasks until SIGTERM or SIGINT; a second signal ends it at once",
        description="Run tasks. SIGTERM and SIGINT hand what runs over to other nodes; a second signal ends the "
        "process at once, and others take over.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "app", metavar="MODULE[:REGISTRY]", nargs="?", help="the types it runs; without REGISTRY: the default one"
    )
    parser.add_argument("-a", "--app", metavar="MODULE[:REGISTRY]", dest="app_option", help="the same")
    _add_settings(parser)
    parser.add_argument("--log-level", choices=LEVELS, help="log to stderr from this level on (info)")
    parser.add_argument(
        "--until-eof", action="store_true", help="also stop when stdin ends, as it does with its parent"
    )
    add_database(parser)
    parser.set_defaults(run=run, usual_log_level="info")


def _add_settings(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("settings", "each may also come from the environment, as PYASYNC_LEASE")
    group.add_argument("--name", metavar="NAME", help="what people see (host:pid)")
    group.add_argument("--concurrency", type=int, metavar="N", help="tasks at once (10)")
    group.add_argument("--delete-concurrency", type=int, metavar="N", help="clean-ups at once (5)")
    group.add_argument("--types", type=names, metavar="A,B", help="only these types")
    group.add_argument("--groups", type=names, metavar="A,B", help="only tasks of these groups")
    group.add_argument(
        "--lease", type=seconds, metavar="SPAN", help="how long it is believed alive without a beat (15)"
    )
    group.add_argument("--poll-interval", type=seconds, metavar="SPAN", help="longest wait between two looks (1)")
    group.add_argument("--stop-grace", type=seconds, metavar="SPAN", help="how long a run may take to stop (10)")
    group.add_argument("--migrate", choices=("auto", "check", "off"), help="what to do about old tables")


def run(args: Namespace) -> int:
    """Run a node until told to stop."""
    app = args.app or args.app_option or environment("PYASYNC_APP")
    if app is None:
        raise Ended(Exit.USAGE, "run which types? Name MODULE or MODULE:REGISTRY, or set PYASYNC_APP")
    registry = apps.load(app)
    settings = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None} | given(args)
    with connected(args) as client:
        checks.reach(client._database)
        where = checks.address(client._database)
    signals = Signals(until_eof=args.until_eof)
    # The default node: tasks may use pyasync.create_task() and its likes.
    node = pyasync.init(url_of(args), registry=registry, **settings)
    assert isinstance(node, Node)
    log.info("the node runs", extra={"node": node.settings.name, "database": where, "types": _types(node)})
    return _until_stopped(node, signals)


def _types(node: Node) -> str:
    wanted = node.settings.types
    return ",".join(each.name for each in node.registry if wanted is None or each.name in wanted)


def _until_stopped(node: Node, signals: Signals) -> int:
    while not signals.told.wait(LOOK):
        if node._host_ended.is_set():
            raise Ended(Exit.FAILURE, "the node's event loop has failed; see the log")
    log.info("the node stops", extra={"reason": signals.reason, "running": node.health().running})
    # In a thread, so that this one is free for the second signal whatever the stop waits for.
    with ThreadPoolExecutor(1) as stopper:
        stopper.submit(pyasync.stop).result()
    log.info("the node has left")
    return Exit.OK


class Signals:
    """The first SIGTERM or SIGINT sets `told`; the second ends the process."""

    def __init__(self, *, until_eof: bool) -> None:
        self.told = threading.Event()
        self.reason = ""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        if until_eof:
            threading.Thread(target=self._read, name="pyasync-stdin", daemon=True).start()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.told.is_set():
            os._exit(Exit.INTERRUPTED)
        self._tell(signal.Signals(number).name)

    def _read(self) -> None:
        # Not sys.stdin: a daemon thread inside it would abort the interpreter at its end.
        while os.read(0, 4096):
            pass
        self._tell("end of input")

    def _tell(self, reason: str) -> None:
        self.reason = reason
        self.told.set()
