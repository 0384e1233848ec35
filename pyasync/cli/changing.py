"""`run`, `pause`, `cancel`, `delete` and `group`: change tasks, by their ids or by a filter."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pyasync.cli.exits import Ended, Exit, code_of
from pyasync.cli.opening import opened, resolve
from pyasync.cli.options import add_database, add_filters, add_id, filters
from pyasync.cli.terminal import complain, say, tasks_in_words
from pyasync.client import Client
from pyasync.errors import PyasyncError, TaskNotFound


@dataclass(frozen=True)
class Verb:
    """A command that changes tasks: one by one, or all that a filter selects."""

    name: str
    help: str
    options: dict[str, str]
    one: Callable[..., None]
    many: Callable[..., int]


VERBS = (
    Verb(
        "run",
        "run tasks that are new, paused or failed",
        {"restart": "from the arguments, not from the last checkpoint", "now": "even if the time lies ahead"},
        Client.run_task,
        Client.run_tasks,
    ),
    Verb("pause", "stop tasks at their next report", {}, Client.pause_task, Client.pause_tasks),
    Verb("cancel", "end tasks as failed, and keep their rows", {}, Client.cancel_task, Client.cancel_tasks),
    Verb(
        "delete",
        "stop tasks, clean up after them and remove their rows",
        {"force": "remove the row at once, without clean-up"},
        Client.delete_task,
        Client.delete_tasks,
    ),
)


def add(commands: Any) -> None:
    """Add the commands."""
    for verb in VERBS:
        _add_verb(commands.add_parser(verb.name, help=verb.help, allow_abbrev=False), verb)
    parser = commands.add_parser("group", help="put a task into another group", allow_abbrev=False)
    add_id(parser)
    parser.add_argument("group", metavar="GROUP")
    add_database(parser)
    parser.set_defaults(run=move)


def _add_verb(parser: ArgumentParser, verb: Verb) -> None:
    parser.add_argument("ids", metavar="ID", nargs="*", help="ids, or beginnings of them that no other id has")
    for option, help in verb.options.items():
        parser.add_argument(f"--{option}", action="store_true", help=help)
    parser.add_argument("--all-matching", action="store_true", help="all that the filters select, instead of ids")
    parser.add_argument("--everything", action="store_true", help="every task of every user")
    add_filters(parser, user="of this user; with ids: only if they are this user's")
    add_database(parser)
    parser.set_defaults(run=lambda args: _change(args, verb))


def move(args: Namespace) -> int:
    """Put a task into another group."""
    with opened(args) as client:
        client.change_task_group(resolve(client, args.id, args.user), args.group, user=args.user)
    return Exit.OK


def _change(args: Namespace, verb: Verb) -> int:
    _check(args, verb)
    with opened(args) as client:
        if args.ids:
            return _change_each(client, args, verb)
        number = verb.many(client, everything=args.everything, **filters(args))
    say(tasks_in_words(number))
    return Exit.OK


def _check(args: Namespace, verb: Verb) -> None:
    """Refuse what could mean more tasks than was meant, such as `delete "$ID" --user alice` with an empty `$ID`."""
    bulk = args.all_matching or args.everything
    chosen = filters(args)
    if not args.ids and not bulk:
        raise Ended(Exit.USAGE, f"{verb.name} which tasks? Name their ids, or pass --all-matching with filters")
    if args.ids and (bulk or chosen.keys() - {"user"}):
        raise Ended(Exit.USAGE, "pass ids, or --all-matching with filters, not both")
    if args.all_matching and not args.everything and not chosen:
        raise Ended(Exit.USAGE, "--all-matching needs a filter; --everything means every task of every user")
    if bulk and (given := [name for name in verb.options if getattr(args, name)]):
        raise Ended(Exit.USAGE, f"--{given[0]} takes ids")


def _change_each(client: Client, args: Namespace, verb: Verb) -> int:
    """Change one task after the other; one that cannot be changed does not keep the others from it."""
    codes = [_change_one(client, text, args, verb) for text in args.ids]
    return max(codes)


def _change_one(client: Client, text: str, args: Namespace, verb: Verb) -> int:
    options = {name: getattr(args, name) for name in verb.options}
    try:
        id = resolve(client, text, args.user)
        verb.one(client, id, user=args.user, **options)
    except Ended as error:
        return _refused(str(error), error.code)
    except PyasyncError as error:
        return _refused(str(error), code_of(error))
    say(f"{id} {_state(client, id)}")
    return Exit.OK


def _refused(message: str, code: Exit) -> Exit:
    complain(message)
    return code


def _state(client: Client, id: UUID) -> str:
    try:
        return client.get_task(id, include_deleting=True).state.value
    except TaskNotFound:
        return "deleted"
