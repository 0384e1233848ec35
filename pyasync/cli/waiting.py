"""`wait` and `watch`: until a task has ended."""

from __future__ import annotations

from argparse import Namespace
from typing import Any
from uuid import UUID

from pyasync.cli.exits import Exit
from pyasync.cli.opening import inspected, opened, resolve
from pyasync.cli.options import add_database, add_id, add_json, seconds
from pyasync.cli.presenting import compact, dumps, named, task_facts
from pyasync.cli.terminal import COLOURS, bar, coloured, complain, safe, say
from pyasync.client import Client
from pyasync.domain.states import State
from pyasync.domain.task import Task
from pyasync.store import checks

_STATE_WIDTH = max(len(state) for state in State)


def add(commands: Any) -> None:
    """Add the commands."""
    parser = commands.add_parser("wait", help="wait until a task has ended, and write its result", allow_abbrev=False)
    add_id(parser)
    parser.add_argument("--timeout", type=seconds, metavar="SPAN", help="give up after so many seconds, or 5m, 2h")
    add_json(parser, "write the whole task, not only its result")
    add_database(parser)
    parser.set_defaults(run=wait)

    parser = commands.add_parser(
        "watch", help="write a line whenever a task changes, until it ends", allow_abbrev=False
    )
    add_id(parser)
    add_json(parser, "write an object a line")
    add_database(parser)
    parser.set_defaults(run=watch)


def wait(args: Namespace) -> int:
    """Wait for a task's result."""
    with opened(args) as client:
        task = client.wait_task(resolve(client, args.id, args.user), args.timeout, user=args.user)
    if args.json:
        say(dumps(task_facts(task)))
    elif task.state is State.FINISHED:
        say(dumps(task.result))
    return _ended(task)


def watch(args: Namespace) -> int:
    """Follow a task."""
    task: Task | None = None
    with opened(args) as client:
        id = resolve(client, args.id, args.user)
        for task in client.watch_task(id, user=args.user):
            say(compact(task_facts(task)) if args.json else _line(client, task))
    assert task is not None, "watching a task yields it at least once"
    return _ended(task)


def _ended(task: Task) -> int:
    if task.state is State.FINISHED:
        return Exit.OK
    complain(f"the task failed: {task.error or 'for an unknown reason'}")
    return Exit.FAILURE


def _line(client: Client, task: Task) -> str:
    now = inspected(client, checks.clock)
    state = coloured(task.state.value.ljust(_STATE_WIDTH), COLOURS.get(task.state))
    where = named(task.node, _names(client)) if task.node is not None else ""
    told = "  ".join(filter(None, [bar(task.progress), where and f"on {where}", safe(task.message or "")]))
    return f"{now:%H:%M:%S}  {state}  {told}".rstrip()


def _names(client: Client) -> dict[UUID, str]:
    return {node.id: node.name for node in client.get_nodes()}
