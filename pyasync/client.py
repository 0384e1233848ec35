"""`Client`: the verbs. It only creates and queries: no lease, no threads, safe before a fork."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, Concatenate, ParamSpec, TypedDict, TypeVar, Unpack, cast
from uuid import UUID

from pyasync.context import on_event_loop
from pyasync.domain.backoff import Backoff, dump_retry
from pyasync.domain.codec import Codec
from pyasync.domain.contents import encode
from pyasync.domain.failures import CANCELLED
from pyasync.domain.names import check_name
from pyasync.domain.reasons import explain
from pyasync.domain.states import Event, State
from pyasync.domain.task import NewTask, NodeInfo, Task
from pyasync.errors import BadArgument, BlockingCall, TaskCancelled, TaskFailed, TypeNotRegistered
from pyasync.ids import new_id
from pyasync.registry import check_seconds
from pyasync.settings import Settings
from pyasync.store import hints, nodes, schema, tasks
from pyasync.store.database import Database, Tx
from pyasync.store.tasks import Filter, Wish

P = ParamSpec("P")
R = TypeVar("R")

PRIORITIES = 1_000_000
LONGEST_PAGE = 10_000
FIRST_YEAR, LAST_YEAR = 1001, 9998
"""Moments that MySQL stores, and that every time zone can show."""
FIRST_LOOK, LONGEST_LOOK = 0.005, 0.5
"""Seconds between two looks at a task that is waited for: they grow."""


class Selection(TypedDict, total=False):
    """Which tasks; what is left out, or None, does not restrict. Names are equal byte for byte; lists are
    alternatives.
    """

    user: str | None
    group: str | None
    types: Sequence[str] | None
    states: Sequence[State | str] | None
    ids: Sequence[UUID] | None
    created_after: datetime | None
    created_before: datetime | None
    done_after: datetime | None
    done_before: datetime | None
    include_deleting: bool


class Client:
    """A system's tasks, by verbs that block. The twins for async code are on `pyasync.aio.AsyncClient`.

    `database` is a URL or a SQLAlchemy Engine or AsyncEngine. Every verb but the waiting ones takes `connection=`: a
    Connection or Session whose transaction it becomes a part of. Every verb of one task takes `user=`: another user's
    task is TaskNotFound.
    """

    _survives_fork = True
    _connections_kept = 0
    """Of the setting `connections`, those that do not go into the pool."""

    def __init__(self, database: Any, **settings: Any) -> None:
        self._set_up(database, Settings.load(**settings))
        schema.prepare(self._database, self.settings.migrate)

    def _set_up(self, database: Any, settings: Settings) -> None:
        self.settings = settings
        pool = settings.connections - self._connections_kept
        self._database = Database(database, settings, connections=pool, survives_fork=self._survives_fork)
        self._codec = Codec(None)
        self._known_types: set[str] = set()
        self._hints = hints.Sender(self._database)

    def close(self) -> None:
        """Close the connections to the database."""
        self._database.close()

    def __enter__(self) -> Client:
        """Use the client; it is closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the client."""
        self.close()

    # --- create

    def create_task(
        self,
        type: str,
        arguments: Any = None,
        *,
        id: UUID | None = None,
        user: str = "",
        group: str = "",
        auto_run: bool = True,
        run_at: datetime | None = None,
        delay: float | None = None,
        priority: int = 0,
        retry: Sequence[float] | Backoff | str | None = None,
        timeout: float | None = None,
        key: str | None = None,
        keep: float | None = None,
        headers: dict[str, Any] | None = None,
        connection: Any = None,
    ) -> UUID:
        """Create a task and return its id; that of the existing task if `id` exists, or a live one holds `key`.

        `arguments` is any JSON value. `run_at` (aware) or `delay` (seconds): not before. Higher `priority` goes first.
        `retry`, `timeout` and `keep` override those of the type. `headers` is for the host's own use.

        Raises TypeNotRegistered, BadArgument, ContextNotSerializable, ContextTooLarge, NameTooLong; nothing is then
        written.
        """
        if connection is None:
            self._refuse_loop("create_task")
        new = NewTask(
            type=type,
            arguments=arguments,
            id=id,
            user=user,
            group=group,
            auto_run=auto_run,
            run_at=run_at,
            delay=delay,
            priority=priority,
            retry=retry,
            timeout=timeout,
            key=key,
            keep=keep,
            headers=headers,
        )
        return self.create_tasks([new], connection=connection)[0]

    def create_tasks(self, new: Sequence[NewTask], *, connection: Any = None) -> list[UUID]:
        """Create many tasks at once and return their ids, in order; all or none. See `create_task`."""
        rows = [self._row(each) for each in new]
        if not rows:
            return []
        self._check_types({each.type for each in new}, connection)
        hint = hints.RUN if any(each.auto_run for each in new) else None
        alone = len(rows) == 1 and rows[0]["key_name"] is None
        looks = {} if connection is None else {"look_first": True}
        return self._call("create_tasks", connection, tasks.create, rows, hint=hint, single=alone, **looks)

    def _row(self, new: NewTask) -> dict[str, Any]:
        if not isinstance(new, NewTask):
            raise BadArgument(f"create_tasks() takes a list of NewTask, not of {type(new).__name__}")
        _check_times(new)
        key = None if new.key is None else check_name("key", new.key, empty=False)
        retry = dump_retry(new.retry)
        return {
            "id": _id(new.id) if new.id is not None else new_id(),
            "type": check_name("type", new.type, empty=False),
            "user_name": check_name("user", new.user, empty=True),
            "group_name": check_name("group", new.group, empty=True),
            "rank": -_priority(new.priority),
            "arguments": self._json(self._codec.dump(new.arguments), "arguments"),
            "retry": None if retry is None else self._json(retry, "retry"),
            "timeout": new.timeout,
            "keep": new.keep,
            "key_name": key,
            "held_key": key,
            "headers": None if not new.headers else self._json(_mapping(new.headers), "headers"),
            "run_at": new.run_at,
            "delay": new.delay,
            "auto_run": _flag("auto_run", new.auto_run),
        }

    def _json(self, value: Any, what: str) -> str:
        return encode(value, limit=self.settings.max_context_bytes, max_depth=self.settings.max_depth, what=what)

    def _check_types(self, types: set[str], connection: Any) -> None:
        """Refuse types that no node of this system has ever registered; what is known stays known."""
        unknown = types - self._known_types
        if not self.settings.strict or not unknown:
            return
        self._known_types |= self._call("create_tasks", connection, tasks.known_types, unknown, single=True)
        if missing := sorted(unknown - self._known_types):
            raise TypeNotRegistered(missing[0])

    # --- change one task

    def change_task_group(self, id: UUID, group: str, *, user: str | None = None, connection: Any = None) -> None:
        """Put a task into another group. Raises TaskNotFound."""
        group = check_name("group", group, empty=True)
        self._call("change_task_group", connection, tasks.move, _id(id), group, user=user)

    def run_task(
        self, id: UUID, *, now: bool = False, restart: bool = False, user: str | None = None, connection: Any = None
    ) -> None:
        """Run a task that was created with `auto_run=False`, is paused, or has failed, from its last checkpoint.

        `restart=True`: from its arguments. `now=True`: even if its time lies ahead. Raises TaskNotFound,
        InvalidTransition, and KeyTaken if it failed and another task holds its key by now.
        """
        wish = Wish(Event.USER_RUN, now=now, restart=restart)
        self._call("run_task", connection, tasks.mark, _id(id), wish, user=user, hint=hints.RUN)

    def pause_task(self, id: UUID, *, user: str | None = None, connection: Any = None) -> None:
        """Stop a task at its next report, or before it starts; `run_task` lets it go on. Raises TaskNotFound,
        InvalidTransition.
        """
        self._wish("pause_task", Event.USER_PAUSE, id, user, connection, hints.MARK)

    def cancel_task(self, id: UUID, *, user: str | None = None, connection: Any = None) -> None:
        """End a task as failed, keeping its row; `run_task` can run it again. Raises TaskNotFound,
        InvalidTransition.
        """
        self._wish("cancel_task", Event.USER_CANCEL, id, user, connection, hints.MARK)

    def delete_task(self, id: UUID, *, force: bool = False, user: str | None = None, connection: Any = None) -> None:
        """Delete a task: stop it, run its type's clean-up, remove the row; that cannot be taken back.

        `force=True` removes the row at once, without clean-up, unless a live node runs the task. Raises TaskNotFound,
        InvalidTransition.
        """
        if force:
            self._call("delete_task", connection, tasks.remove, _id(id), user=user)
            return
        self._wish("delete_task", Event.USER_DELETE, id, user, connection, hints.DELETE)

    def _wish(self, verb: str, event: Event, id: UUID, user: str | None, connection: Any, hint: str) -> None:
        self._call(verb, connection, tasks.mark, _id(id), Wish(event), user=user, hint=hint)

    # --- change many tasks

    def run_tasks(self, *, everything: bool = False, connection: Any = None, **filter: Unpack[Selection]) -> int:
        """Run all tasks that a filter selects and whose status allows it; return how many were changed.

        The filter is that of `get_tasks`, without paging; none at all needs `everything=True`. Without `connection`, a
        thousand tasks are one transaction.
        """
        return self._bulk("run_tasks", Event.USER_RUN, everything, connection, filter, hints.RUN)

    def pause_tasks(self, *, everything: bool = False, connection: Any = None, **filter: Unpack[Selection]) -> int:
        """Pause all tasks that a filter selects; see `run_tasks`."""
        return self._bulk("pause_tasks", Event.USER_PAUSE, everything, connection, filter, hints.MARK)

    def cancel_tasks(self, *, everything: bool = False, connection: Any = None, **filter: Unpack[Selection]) -> int:
        """Cancel all tasks that a filter selects; see `run_tasks`."""
        return self._bulk("cancel_tasks", Event.USER_CANCEL, everything, connection, filter, hints.MARK)

    def delete_tasks(self, *, everything: bool = False, connection: Any = None, **filter: Unpack[Selection]) -> int:
        """Delete all tasks that a filter selects; see `run_tasks`."""
        return self._bulk("delete_tasks", Event.USER_DELETE, everything, connection, filter, hints.DELETE)

    def _bulk(self, verb: str, event: Event, everything: bool, connection: Any, filter: Selection, hint: str) -> int:
        wanted = as_filter({**filter})
        if wanted.everything and not everything:
            raise BadArgument(f"{verb}() needs a filter, or everything=True for every task of every user")
        total, after = 0, None
        while True:
            number, after = self._call(verb, connection, tasks.mark_all, wanted, Wish(event), after=after, hint=hint)
            total += number
            if after is None:
                return total

    # --- find

    def get_task(
        self, id: UUID, *, include_deleting: bool = False, user: str | None = None, connection: Any = None
    ) -> Task:
        """Return a task. Raises TaskNotFound, also for one that is being deleted unless `include_deleting=True`."""
        return self._call(
            "get_task", connection, tasks.get, _id(id), user=user, include_deleting=include_deleting, single=True
        )

    def get_tasks(
        self,
        *,
        user: str | None = None,
        group: str | None = None,
        types: Sequence[str] | None = None,
        states: Sequence[State | str] | None = None,
        ids: Sequence[UUID] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        done_after: datetime | None = None,
        done_before: datetime | None = None,
        include_deleting: bool = False,
        offset: int = 0,
        limit: int = 100,
        after: UUID | None = None,
        connection: Any = None,
    ) -> list[Task]:
        """Return tasks, newest first. `after`, the last id of the page before, is cheaper than `offset` on deep pages.

        Raises BadArgument, and TaskNotFound if the row of `after` is gone.
        """
        wanted = as_filter(
            {
                "user": user,
                "group": group,
                "types": types,
                "states": states,
                "ids": ids,
                "created_after": created_after,
                "created_before": created_before,
                "done_after": done_after,
                "done_before": done_before,
                "include_deleting": include_deleting,
            }
        )
        _whole("offset", offset, 0, None)
        _whole("limit", limit, 1, LONGEST_PAGE)
        last = None if after is None else _id(after)
        return self._call(
            "get_tasks", connection, tasks.find, wanted, offset=offset, limit=limit, after=last, single=True
        )

    def count_tasks(self, *, connection: Any = None, **filter: Unpack[Selection]) -> dict[State, int]:
        """Count tasks by state; the filter is that of `get_tasks`, without paging. States without tasks are left
        out.
        """
        return self._call("count_tasks", connection, tasks.count, as_filter({**filter}), single=True)

    def find_ids(self, prefix: str, *, limit: int = 2) -> list[UUID]:
        """Return up to `limit` ids that begin with these hexadecimal digits, dashes or not."""
        digits = prefix.replace("-", "").lower()
        if not digits or len(digits) > 32 or set(digits) - set("0123456789abcdef"):
            raise BadArgument(f"{prefix!r} is no beginning of a task's id: ids are 32 hexadecimal digits")
        return self._call("find_ids", None, tasks.with_prefix, digits, limit, single=True)

    def get_nodes(self, *, connection: Any = None) -> list[NodeInfo]:
        """Return the nodes of this system, oldest first."""
        return self._call("get_nodes", connection, nodes.infos, single=True)

    def why(self, id: UUID, *, user: str | None = None, connection: Any = None) -> str:
        """Say in a sentence why a task is not running, or where it runs. Raises TaskNotFound."""
        return explain(self._call("why", connection, tasks.facts, _id(id), user=user, single=True))

    # --- wait

    def wait_task(self, id: UUID, timeout: float | None = None, *, user: str | None = None) -> Task:
        """Block until a task is finished or failed, and return it. Raises TimeoutError after `timeout` seconds;
        TaskNotFound.
        """
        return self._drive("wait_task", self._waiting(id, timeout, user))

    def result(self, id: UUID, timeout: float | None = None, *, user: str | None = None) -> Any:
        """Block until a task is finished, and return its result. Raises TaskFailed, TaskCancelled, TimeoutError,
        TaskNotFound.
        """
        return result_of(self._drive("result", self._waiting(id, timeout, user)))

    def watch_task(self, id: UUID, *, user: str | None = None) -> Iterator[Task]:
        """Iterate over a task as it changes: one for each new report or state, of which some may be skipped, until it
        ends.
        """
        self._refuse_loop("watch_task")
        for step in self._watching(id, user):
            if isinstance(step, Task):
                yield step
            else:
                time.sleep(step)

    def _drive(self, verb: str, steps: Generator[float, None, Task]) -> Task:
        self._refuse_loop(verb)
        while True:
            try:
                time.sleep(next(steps))
            except StopIteration as end:
                return cast("Task", end.value)

    def _waiting(self, id: UUID, timeout: float | None, user: str | None) -> Generator[float, None, Task]:
        """Yield how long to sleep until the task has ended; the sync and the async side each sleep in their own way."""
        check_seconds("timeout", timeout, zero=True)
        until = None if timeout is None else time.monotonic() + timeout
        delay = FIRST_LOOK
        while not (task := self.get_task(id, user=user)).ended:
            left = delay if until is None else until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"task {id} is still {task.state.value} after {timeout} seconds")
            yield min(delay, left)
            delay = min(LONGEST_LOOK, delay * 1.5, self.settings.poll_interval)
        return task

    def _watching(self, id: UUID, user: str | None) -> Iterator[Task | float]:
        """Yield the task when it has changed, and else how long to sleep."""
        seen, delay = None, FIRST_LOOK
        while True:
            task = self.get_task(id, user=user)
            if (now := (task.seq, task.state, task.epoch)) != seen:
                seen, delay = now, FIRST_LOOK
                yield task
                if task.ended:
                    return
            yield delay
            delay = min(LONGEST_LOOK, delay * 1.5, self.settings.poll_interval)

    # --- how the verbs reach the database

    def _call(
        self,
        verb: str,
        connection: Any,
        fn: Callable[Concatenate[Tx, P], R],
        *args: Any,
        hint: str | None = None,
        single: bool = False,
        **kwargs: Any,
    ) -> R:
        """Call a store function in a transaction of ours, or in the caller's, and wake up nodes afterwards."""
        call: Callable[..., R] = fn
        if kwargs.get("user") is not None:
            check_name("user", kwargs["user"], empty=True)
        if connection is not None:
            tx = self._database.bind(connection)
            answer = call(tx, *args, **kwargs)
            if hint is not None:
                self._hints.with_commit(tx, hint)
            return answer
        self._refuse_loop(verb)
        self._check_open()
        run = self._database.single if single else self._database.run
        answer = run(call, *args, **kwargs)
        if hint is not None:
            self._wake(hint)
        return answer

    def _wake(self, hint: str) -> None:
        self._hints.send(hint)

    def _check_open(self) -> None:
        """Raise if the client cannot be used any more."""

    def _refuse_loop(self, verb: str) -> None:
        if on_event_loop():
            raise BlockingCall(verb)


def result_of(task: Task) -> Any:
    """Return the result of a task that has ended. Raises TaskFailed, TaskCancelled."""
    if task.state is State.FINISHED:
        return task.result
    kind = task.errors[-1].get("kind") if task.errors else None
    error = TaskCancelled if kind == CANCELLED else TaskFailed
    raise error(task.id, task.error or "failed", kind, task.errors)


def as_filter(given: dict[str, Any]) -> Filter:
    """Return the filter that keyword arguments describe. Raises BadArgument."""
    known = {field.name for field in fields(Filter)}
    if unknown := sorted(set(given) - known):
        raise BadArgument(f"no filter {unknown[0]!r}: there are {', '.join(sorted(known))}")
    filter = dict(given)
    for name in ("user", "group"):
        if filter.get(name) is not None:
            filter[name] = check_name(name, filter[name], empty=True)
    for name in ("created_after", "created_before", "done_after", "done_before"):
        _aware(name, filter.get(name))
    for name, convert in (("types", _type), ("states", _state), ("ids", _id)):
        if filter.get(name) is not None:
            filter[name] = tuple(convert(each) for each in _list(name, filter[name]))
    return Filter(**filter)


def _list(name: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence | set | frozenset):
        raise BadArgument(f"{name} is a list, not {value!r}")
    if len(value) > LONGEST_PAGE:
        raise BadArgument(f"{name} has {len(value)} entries, {LONGEST_PAGE} are allowed: select in several calls")
    return list(value)


def _type(value: Any) -> str:
    return check_name("types", value, empty=False)


def _state(value: Any) -> State:
    try:
        return State(value.upper() if isinstance(value, str) else value)
    except ValueError:
        raise BadArgument(f"no state {value!r}: there are {', '.join(State)}") from None


def _id(value: Any) -> UUID:
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except (TypeError, ValueError, AttributeError):
        raise BadArgument(f"a task's id is a UUID, not {value!r}") from None


def _priority(priority: Any) -> int:
    _whole("priority", priority, -PRIORITIES, PRIORITIES)
    return int(priority)


def _whole(name: str, value: Any, low: int, high: int | None) -> None:
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high)
    if not fits:
        raise BadArgument(f"{name} is a whole number from {low}{'' if high is None else f' to {high}'}, not {value!r}")


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadArgument(f"{name} is True or False, not {value!r}")
    return value


def _mapping(headers: Any) -> dict[str, Any]:
    if not isinstance(headers, dict):
        raise BadArgument(f"headers is a dict, not {type(headers).__name__}")
    return headers


def _check_times(new: NewTask) -> None:
    _aware("run_at", new.run_at)
    check_seconds("delay", new.delay, zero=True)
    check_seconds("timeout", new.timeout)
    check_seconds("keep", new.keep, zero=True)
    if new.run_at is not None and new.delay is not None:
        raise BadArgument("give run_at or delay, not both")


def _aware(name: str, moment: Any) -> None:
    if moment is None:
        return
    if not isinstance(moment, datetime):
        raise BadArgument(f"{name} is a datetime, not {type(moment).__name__}")
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise BadArgument(f"{name} has no time zone: pass an aware datetime, such as datetime.now(UTC)")
    if not FIRST_YEAR <= moment.year <= LAST_YEAR:
        raise BadArgument(f"{name} must be in a year from {FIRST_YEAR} to {LAST_YEAR}, not {moment.year}")
