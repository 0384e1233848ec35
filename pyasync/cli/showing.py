"""`show` and `why`: all about one task."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

from pyasync.cli.exits import Exit
from pyasync.cli.opening import inspected, opened, resolve
from pyasync.cli.options import add_database, add_id, add_json
from pyasync.cli.presenting import compact, dumps, laid_out, named, task_facts, when
from pyasync.cli.terminal import COLOURS, bar, coloured, safe, safe_lines, say
from pyasync.domain.task import Task
from pyasync.store import checks

LONGEST = 2_000
"""Characters of arguments, context and result that are shown; `--json` shows all."""

SMALL = 80
"""Characters that stand on one line."""
_LABEL = 11


def add(commands: Any) -> None:
    """Add the commands."""
    parser = commands.add_parser("show", help="show all about a task", allow_abbrev=False)
    add_id(parser)
    parser.add_argument("--errors", action="store_true", help="all errors that are kept, with their tracebacks")
    add_json(parser)
    add_database(parser)
    parser.set_defaults(run=show)

    parser = commands.add_parser("why", help="say why a task is not running", allow_abbrev=False)
    add_id(parser)
    add_json(parser)
    add_database(parser)
    parser.set_defaults(run=why)


def why(args: Namespace) -> int:
    """Say why a task is not running."""
    with opened(args) as client:
        id = resolve(client, args.id, args.user)
        sentence = client.why(id, user=args.user)
    say(dumps({"id": id, "why": sentence}) if args.json else safe(sentence))
    return Exit.OK


def show(args: Namespace) -> int:
    """Show a task."""
    with opened(args) as client:
        id = resolve(client, args.id, args.user)
        task = client.get_task(id, user=args.user, include_deleting=True)
        if args.json:
            say(dumps(task_facts(task)))
            return Exit.OK
        nodes = {node.id: node.name for node in client.get_nodes()}
        for line in _view(task, client.why(id), nodes, inspected(client, checks.clock)):
            say(line)
    for line in _errors(task) if args.errors else _last_error(task):
        say(line)
    return Exit.OK


def _view(task: Task, why: str, nodes: dict[UUID, str], now: datetime) -> Iterator[str]:
    yield from _line("id", str(task.id))
    yield from _line("type", task.type)
    yield from _line("user", task.user)
    yield from _line("group", task.group)
    yield from _line("key", task.key)
    yield f"{'state':{_LABEL}}{coloured(task.state.value, COLOURS.get(task.state))}  {task.status}"
    yield from _line("node", named(task.node, nodes))
    yield from _line("progress", f"{bar(task.progress, 20)}  {task.message or ''}".strip())
    yield from _line("why", why)
    yield from _line("counts", f"attempt {task.attempt}, claimed {_times(task.epoch)}, reported {_times(task.seq)}")
    yield from _line("priority", str(task.priority) if task.priority else None)
    yield from _moments(task, now)
    yield from _contents(task)


def _moments(task: Task, now: datetime) -> Iterator[str]:
    yield from _line("created", when(task.created_at, now))
    yield from _line("run at", when(task.run_at, now))
    yield from _line("claimed", when(task.started_at, now))
    yield from _line("ended", when(task.done_at, now))


def _contents(task: Task) -> Iterator[str]:
    yield from _json("headers", task.headers or None)
    yield from _json("arguments", task.arguments)
    if task.context != task.arguments:
        yield from _json("context", task.context)
    yield from _json("result", task.result)


def _line(label: str, text: str | None) -> Iterator[str]:
    if text:
        yield f"{label:{_LABEL}}{safe(text)}"


def _json(label: str, value: Any) -> Iterator[str]:
    if value is None:
        return
    document = compact(value)
    if len(document) > SMALL:
        document = laid_out(value)
    if len(document) > LONGEST:
        document = f"{document[:LONGEST]} ... ({len(document)} characters; --json shows all)"
    first, *more = document.splitlines()
    yield f"{label:{_LABEL}}{first}"
    yield from (" " * _LABEL + line for line in more)


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def _last_error(task: Task) -> Iterator[str]:
    if task.errors:
        more = f" ({len(task.errors)} are kept; --errors shows them)"
        yield f"{'error':{_LABEL}}{_headline(task.errors[-1])}{more}"


def _errors(task: Task) -> Iterator[str]:
    for number, error in enumerate(task.errors, 1):
        yield ""
        yield f"error {number} of {len(task.errors)}: {_headline(error)}"
        yield from ("  " + line for line in safe_lines(str(error.get("traceback") or "")))


def _headline(error: dict[str, Any]) -> str:
    facts = [("attempt", error.get("attempt")), ("node", error.get("node")), ("at", error.get("time"))]
    told = ", ".join(f"{name} {value}" for name, value in facts if value)
    return safe(f"{error.get('message')} ({error.get('kind')}; {told})")
