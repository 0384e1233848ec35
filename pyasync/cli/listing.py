"""`list` and `nodes`: what there is, in a table."""

from __future__ import annotations

from argparse import Namespace
from datetime import datetime
from typing import Any
from uuid import UUID

from pyasync.cli.exits import Exit
from pyasync.cli.opening import inspected, opened, resolve
from pyasync.cli.options import add_database, add_filters, add_json, filters
from pyasync.cli.presenting import dumps, named, node_facts, short, since, state_cell, task_facts
from pyasync.cli.terminal import COLOURS, Cell, Column, age, bar, is_terminal, safe, say, table, tell
from pyasync.client import Client
from pyasync.domain.states import State
from pyasync.domain.task import NodeInfo, Task
from pyasync.store import checks
from pyasync.store.checks import Silence

_TASKS = (
    Column("ID"),
    Column("TYPE", elastic=True),
    Column("USER", elastic=True),
    Column("GROUP", elastic=True),
    Column("STATE"),
    Column("PROGRESS"),
    Column("TRY", right=True),
    Column("AGE", right=True),
    Column("NODE", elastic=True),
    Column("MESSAGE", elastic=True),
)
_NODES = (
    Column("ID"),
    Column("NAME", elastic=True),
    Column("STATE"),
    Column("RUNS", right=True),
    Column("BEAT", right=True),
    Column("VERSION"),
    Column("TYPES", elastic=True),
)


def add(commands: Any) -> None:
    """Add the commands."""
    parser = commands.add_parser("list", help="list tasks, newest first", allow_abbrev=False)
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many (50)")
    parser.add_argument("--after", metavar="ID", help="go on after this task, the last of the page before")
    parser.add_argument("--deleting", action="store_true", help="also those that are being deleted")
    parser.add_argument("--count", action="store_true", help="only how many there are, by state")
    add_json(parser)
    add_filters(parser)
    add_database(parser)
    parser.set_defaults(run=list_tasks)

    parser = commands.add_parser("nodes", help="list nodes, oldest first", allow_abbrev=False)
    add_json(parser)
    add_database(parser)
    parser.set_defaults(run=list_nodes)


def list_tasks(args: Namespace) -> int:
    """List or count tasks."""
    wanted = {**filters(args), "include_deleting": args.deleting}
    with opened(args) as client:
        if args.count:
            return _count(client.count_tasks(**wanted), args.json)
        after = None if args.after is None else resolve(client, args.after)
        tasks = client.get_tasks(**wanted, limit=args.limit, after=after)
        if args.json:
            say(dumps([task_facts(task) for task in tasks]))
        else:
            _table(client, tasks, args.limit)
    return Exit.OK


def _count(counted: dict[State, int], as_json: bool) -> int:
    ordered = {state: counted[state] for state in State if state in counted}
    if as_json:
        say(dumps({state.value: number for state, number in ordered.items()}))
        return Exit.OK
    rows = [(state_cell(state), str(number)) for state, number in ordered.items()]
    for line in table((Column("STATE"), Column("TASKS", right=True)), [*rows, ("all", str(sum(ordered.values())))]):
        say(line)
    return Exit.OK


def _table(client: Client, tasks: list[Task], limit: int) -> None:
    if not tasks:
        tell("no tasks")
        return
    nodes = {node.id: node.name for node in client.get_nodes()}
    now = inspected(client, checks.clock)
    for line in table(_TASKS, [_row(task, nodes, now) for task in tasks]):
        say(line)
    if len(tasks) == limit and is_terminal():
        tell(f"there may be more: --after {short(tasks[-1].id)}")


def _row(task: Task, nodes: dict[UUID, str], now: datetime) -> tuple[Cell | str, ...]:
    return (
        short(task.id),
        safe(task.type),
        safe(task.user),
        safe(task.group),
        state_cell(task.state),
        bar(task.progress),
        str(task.attempt),
        since(task.created_at, now),
        named(task.node, nodes),
        safe(task.error or task.message or ""),
    )


def list_nodes(args: Namespace) -> int:
    """List nodes."""
    with opened(args) as client:
        nodes = client.get_nodes()
        silences = inspected(client, checks.silences)
    if args.json:
        facts = [{**node_facts(node), "state": state_of(node, silences.get(node.id))} for node in nodes]
        say(dumps(facts))
    elif not nodes:
        tell("no nodes")
    else:
        for line in table(_NODES, [_node_row(node, silences.get(node.id)) for node in nodes]):
            say(line)
    return Exit.OK


def state_of(node: NodeInfo, silence: Silence | None) -> str:
    """Return how a node is, in a word."""
    if node.lost:
        return "lost"
    if silence is not None and silence.too_long:
        return "silent"
    return "draining" if node.draining else "alive"


_NODE_COLOURS = {
    "alive": COLOURS[State.FINISHED],
    "draining": COLOURS[State.PAUSED],
    "silent": COLOURS[State.PENDING],
    "lost": COLOURS[State.FAILED],
}


def _node_row(node: NodeInfo, silence: Silence | None) -> tuple[Cell | str, ...]:
    state = state_of(node, silence)
    return (
        short(node.id),
        safe(node.name),
        Cell(state, _NODE_COLOURS[state]),
        f"{node.running}/{node.slots}",
        "" if silence is None else age(silence.since),
        safe(node.version),
        safe(", ".join(node.types)),
    )
