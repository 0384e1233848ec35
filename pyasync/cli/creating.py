"""`create`: make tasks; their ids are what is written."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any
from uuid import UUID

from pyasync.cli import apps
from pyasync.cli.exits import Ended, Exit
from pyasync.cli.opening import opened
from pyasync.cli.options import add_database, add_json, document, environment, iso, seconds
from pyasync.cli.presenting import dumps
from pyasync.cli.terminal import say
from pyasync.domain.task import NewTask

STDIN = "-"


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("create", help="create a task and write its id", allow_abbrev=False)
    parser.add_argument("type", metavar="TYPE")
    parser.add_argument("arguments", metavar="JSON", nargs="?", help="its arguments; - reads them from stdin")
    parser.add_argument("--user", default="", metavar="NAME")
    parser.add_argument("--group", default="", metavar="NAME")
    parser.add_argument("--key", metavar="KEY", help="the live task of this user and type that has it, or a new one")
    parser.add_argument("--id", type=UUID, metavar="UUID", help="the id; if there is such a task, nothing is created")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--delay", type=seconds, metavar="SPAN", help="not before so many seconds, or 5m, 2h, 7d")
    start.add_argument("--run-at", type=iso, metavar="TIME", help="not before this ISO time with its zone")
    start.add_argument("--no-run", action="store_true", help="only when `pyasync run` says so")
    parser.add_argument("--priority", type=int, default=0, metavar="N", help="higher goes first")
    parser.add_argument("--retry", metavar='"S S ..."', help='seconds before each retry, such as "60 600 3600"')
    parser.add_argument("--timeout", type=seconds, metavar="SPAN", help="how long an attempt may take")
    parser.add_argument("--keep", type=seconds, metavar="SPAN", help="how long the row stays when it has ended")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="create so many, all or none")
    parser.add_argument("-a", "--app", metavar="MODULE:REGISTRY", help="its types need not run anywhere yet")
    add_json(parser, "write the ids as JSON")
    add_database(parser)
    parser.set_defaults(run=create)


def create(args: Namespace) -> int:
    """Create tasks."""
    new = _new(args)
    if args.count < 1 or (args.count > 1 and (args.key is not None or args.id is not None)):
        raise Ended(Exit.USAGE, "--count is 1 or more, and only 1 with --key or --id")
    with opened(args, **_strictness(args)) as client:
        ids = client.create_tasks([new] * args.count)
    if args.json:
        say(dumps(ids if args.count > 1 else ids[0]))
    else:
        say("\n".join(map(str, ids)))
    return Exit.OK


def _new(args: Namespace) -> NewTask:
    return NewTask(
        type=args.type,
        arguments=_arguments(args.arguments),
        id=args.id,
        user=args.user,
        group=args.group,
        auto_run=not args.no_run,
        run_at=args.run_at,
        delay=args.delay,
        priority=args.priority,
        retry=args.retry,
        timeout=args.timeout,
        key=args.key,
        keep=args.keep,
    )


def _arguments(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return document(sys.stdin.read() if text == STDIN else text)
    except Exception as error:
        raise Ended(Exit.USAGE, f"argument JSON: {error}") from None


def _strictness(args: Namespace) -> dict[str, bool]:
    """Take the word of an app for its types; any other must be known to the system."""
    app = args.app or environment("PYASYNC_APP")
    return {"strict": False} if app is not None and args.type in apps.load(app) else {}
