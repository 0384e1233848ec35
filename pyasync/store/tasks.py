"""Tasks as people see them: create, find, count, and the users' verbs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import (
    JSON,
    BindParameter,
    ColumnElement,
    Executable,
    Row,
    Select,
    Table,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy import column as sql_column
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from pyasync.domain.failures import CANCELLED, appended, failure
from pyasync.domain.queues import PROBATION_LOSSES, Queue, queue_of
from pyasync.domain.reasons import Facts, NodeFacts
from pyasync.domain.states import ENDED, OWNED, Event, Mark, Stage, State, Status
from pyasync.domain.task import Task
from pyasync.domain.transitions import FAILED, INIT, PENDING, changed_by, state_of, statuses_of, step
from pyasync.errors import InvalidTransition, KeyTaken, TaskNotFound
from pyasync.store.database import Tx
from pyasync.store.dialects import after, document, now
from pyasync.store.types import Real

T = TypeVar("T")

BATCH = 1_000
KEY_TRIES = 5

# --- create


def create(tx: Tx, rows: Sequence[dict[str, Any]], *, look_first: bool = False) -> list[UUID]:
    """Insert tasks in one statement; return an id for each, that of the existing task where its id or key was taken.

    A row has the columns' values, and `auto_run`, `run_at` and `delay` for when it may run. `look_first` is for a
    caller's transaction: what MariaDB has inserted and taken back, for a key that is taken, stays locked until that
    ends, and keeps everybody from creating tasks.
    """
    absent = _absent(tx, _keyed(rows)) if look_first else []
    holders = _seen_holders(tx, absent)
    refused = {row["id"] for row in absent if _key(row) in holders}
    missing = [row for row in rows if row["id"] not in refused]
    for _ in range(KEY_TRIES):
        _insert(tx, sorted(_firsts(missing), key=itemgetter("id")))  # or those who create the same ones may deadlock
        absent = _absent(tx, _keyed(missing))
        holders |= _holders(tx, absent)
        refused |= {row["id"] for row in absent if _key(row) in holders}
        missing = _absent(tx, [row for row in absent if _key(row) not in holders], locking=True)
        if not missing:  # else the holder of a key ended between our statements
            return [holders.get(_key(row), row["id"]) if row["id"] in refused else row["id"] for row in rows]
    raise KeyTaken(missing[0]["id"], missing[0]["key_name"], None)


def _keyed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["key_name"] is not None]


def _firsts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out rows that repeat an id or a key: the first is to be stored, in whichever order rows are inserted."""
    firsts: list[dict[str, Any]] = []
    seen: set[UUID | _Key] = set()
    for row in rows:
        names = {row["id"]} if row["key_name"] is None else {row["id"], _key(row)}
        if seen.isdisjoint(names):
            firsts.append(row)
        seen |= names
    return firsts


def _insert(tx: Tx, rows: Sequence[dict[str, Any]]) -> None:
    plain = [row for row in rows if row["auto_run"] and row["run_at"] is None and row["delay"] is None]
    timed = [row for row in rows if row["auto_run"] and not (row["run_at"] is None and row["delay"] is None)]
    idle = [row for row in rows if not row["auto_run"]]
    for kind, some in (("plain", plain), ("timed", timed), ("idle", idle)):
        if some:
            at_once = tx.dialect.has_arrays
            insertion = _insertion(tx.dialect.name, tx.schema, kind, at_once)
            parameters = [{name: row[name] for name in _BROUGHT[kind]} for row in some]
            tx.execute(insertion, {"rows": document(parameters)} if at_once else parameters)


@lru_cache
def _insertion(dialect: str, schema: str | None, kind: str, at_once: bool) -> Executable:
    from pyasync.store.tables import tables

    table = tables(schema).task
    types = {name: Real if name == "delay" else table.c[name].type for name in _BROUGHT[kind]}
    source = _source(types) if at_once else None
    given: dict[str, Any] = {name: bindparam(name, type_=type_) for name, type_ in types.items()}
    given = given if source is None else {name: source.c[name] for name in types}
    status = INIT if kind == "idle" else PENDING
    values: dict[str, Any] = {name: given[name] for name in _GIVEN}
    values |= {"stage": status.stage.value, "mark": status.mark.value, "created_at": now(), "ready_at": now()}
    values |= {"epoch": 0, "seq": 0, "attempt": 1, "losses": 0, "version": 0, "on_node_loss": "resume"}
    values["queue"] = Queue.RUN.value if kind == "plain" else null()
    if kind != "plain":
        values["run_at"] = func.coalesce(given["run_at"], after(given["delay"]))
    if kind == "timed":
        waits = values["run_at"] > now()
        values |= {
            "queue": case((waits, null()), else_=Queue.RUN.value),
            "due_at": case((waits, values["run_at"]), else_=null()),
        }
    return _or_nothing(dialect, table, values, source)


def _source(types: dict[str, Any]) -> Any:
    """Read rows from one document: for a thousand of them, a thousand statements take four times as long."""
    columns = (sql_column(name, type_) for name, type_ in types.items())
    rows = func.json_to_recordset(cast(bindparam("rows", type_=Text), JSON))
    return rows.table_valued(*columns).render_derived(name="v", with_types=True)


_GIVEN = "id type user_name group_name rank arguments retry timeout keep key_name held_key headers".split()
_BROUGHT = {"plain": _GIVEN, "timed": [*_GIVEN, "run_at", "delay"], "idle": [*_GIVEN, "run_at", "delay"]}


def insert_or_nothing(tx: Tx, table: Any, values: dict[str, Any]) -> None:
    """Insert a row unless its key is taken."""
    tx.execute(_or_nothing(tx.dialect.name, table, values))


def _or_nothing(dialect: str, table: Any, values: dict[str, Any], source: Any = None) -> Executable:
    first = next(iter(table.c))
    if source is not None:
        chosen = select(*(literal(each) if isinstance(each, (str, int)) else each for each in values.values()))
        return postgresql.insert(table).from_select(list(values), chosen.select_from(source)).on_conflict_do_nothing()
    if dialect == "postgresql":
        return postgresql.insert(table).values(values).on_conflict_do_nothing()
    if dialect == "sqlite":
        return sqlite.insert(table).values(values).on_conflict_do_nothing()
    return mysql.insert(table).values(values).on_duplicate_key_update({first.name: first})


_Key = tuple[str, str, str | None]


def _key(row: dict[str, Any]) -> _Key:
    return (row["user_name"], row["type"], row["key_name"])


def _absent(tx: Tx, rows: Sequence[dict[str, Any]], *, locking: bool = False) -> list[dict[str, Any]]:
    """Return the rows that a key kept out; one whose id is there is itself the answer, whoever has its key by now.

    Looking without locks finds all but what came after a caller's snapshot. With locks, in MariaDB's repeatable read,
    it keeps everybody from creating tasks when there is nothing to find: ids to come are where it looks.
    """
    column = tx.t.task.c
    there: set[UUID] = set()
    for some in _batches(rows):
        query = select(column.id).where(column.id.in_([row["id"] for row in some]))
        query = reading(tx.t.task, "PRIMARY", query).with_for_update(read=True, key_share=True) if locking else query
        there |= set(tx.execute(query).scalars())
    return [row for row in rows if row["id"] not in there]


def _seen_holders(tx: Tx, rows: Sequence[dict[str, Any]]) -> dict[_Key, UUID]:
    """Find who holds the keys in the caller's snapshot and still does."""
    column = tx.t.task.c
    holders: dict[_Key, UUID] = {}
    for some in _batches(list(_holders(tx, rows, locking=False).values())):
        query = select(column.id, column.user_name, column.type, column.held_key).where(column.id.in_(some))
        found = tx.execute(reading(tx.t.task, "PRIMARY", query).with_for_update(read=True, key_share=True))
        holders |= {(row.user_name, row.type, row.held_key): row.id for row in found if row.held_key is not None}
    return holders


def _holders(tx: Tx, rows: Sequence[dict[str, Any]], *, locking: bool = True) -> dict[_Key, UUID]:
    """Find who holds the keys; with locks: as committed now, even inside a caller's repeatable read.

    A statement for each user and type: for several at once, SQLite would go through the whole table.
    """
    column = tx.t.task.c
    holders: dict[_Key, UUID] = {}
    keys: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        keys.setdefault((row["user_name"], row["type"]), {})[row["key_name"]] = None
    for (user, type_), names in keys.items():
        for some in _batches(list(names)):
            theirs = column.user_name == user, column.type == type_, column.held_key.in_(some)
            query = reading(tx.t.task, "pyasync_task_key", select(column.held_key, column.id).where(*theirs))
            found = tx.execute(query.with_for_update(read=True, key_share=True) if locking else query)
            holders |= {(user, type_, row.held_key): row.id for row in found}
    return holders


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut what goes into one statement: PostgreSQL takes 65,535 parameters, SQLite may take 32,766."""
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def known_types(tx: Tx, types: Iterable[str]) -> set[str]:
    """Return those of the types that some node of this system has ever registered."""
    column = tx.t.type.c.type
    return set(tx.execute(select(column).where(column.in_(set(types)))).scalars())


# --- find


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which tasks; what is None does not restrict."""

    user: str | None = None
    group: str | None = None
    types: tuple[str, ...] | None = None
    states: tuple[State, ...] | None = None
    ids: tuple[UUID, ...] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    done_after: datetime | None = None
    done_before: datetime | None = None
    include_deleting: bool = False

    @property
    def everything(self) -> bool:
        """Whether nothing restricts it."""
        return self == Filter(include_deleting=self.include_deleting)


def get(tx: Tx, task_id: UUID, *, user: str | None = None, include_deleting: bool = False) -> Task:
    """Return one task. Raises TaskNotFound."""
    column = tx.t.task.c
    row = tx.execute(_columns(tx).where(column.id == task_id, *_owned_by(tx, user))).one_or_none()
    task = None if row is None else as_task(row)
    if task is None or (task.state is State.DELETING and not include_deleting):
        raise TaskNotFound(task_id)
    return task


def find(tx: Tx, wanted: Filter, *, offset: int, limit: int, after: UUID | None) -> list[Task]:
    """Return tasks, newest first; `after` is the last one of the page before."""
    column = tx.t.task.c
    query = _columns(tx).where(*_conditions(tx, wanted))
    if after is not None:
        query = query.where(_older_than(tx, after))
    query = query.order_by(column.created_at.desc(), column.id.desc()).offset(offset or None).limit(limit)
    return [as_task(row) for row in tx.execute(query)]


def _older_than(tx: Tx, task_id: UUID) -> ColumnElement[bool]:
    column = tx.t.task.c
    last = tx.execute(select(column.created_at).where(column.id == task_id)).scalar_one_or_none()
    if last is None:
        raise TaskNotFound(task_id)
    return or_(column.created_at < last, and_(column.created_at == last, column.id < task_id))


def count(tx: Tx, wanted: Filter) -> dict[State, int]:
    """Count tasks by what people see of them."""
    column = tx.t.task.c
    query = (
        select(column.stage, column.mark, func.count())
        .where(*_conditions(tx, wanted))
        .group_by(column.stage, column.mark)
    )
    counted: dict[State, int] = {}
    rows: Sequence[Any] = tx.execute(query).all()
    for stage, mark, number in rows:
        state = state_of(Status(Stage(stage), Mark(mark)))
        counted[state] = counted.get(state, 0) + number
    return counted


def with_prefix(tx: Tx, prefix: str, limit: int = 2) -> list[UUID]:
    """Return ids that begin with these hexadecimal digits."""
    low, high = UUID(hex=prefix.ljust(32, "0")), UUID(hex=prefix.ljust(32, "f"))
    column = tx.t.task.c.id
    return list(tx.execute(select(column).where(column.between(low, high)).order_by(column).limit(limit)).scalars())


def _conditions(tx: Tx, wanted: Filter) -> list[ColumnElement[bool]]:
    column = tx.t.task.c
    equal = [(column.user_name, wanted.user), (column.group_name, wanted.group)]
    among: list[tuple[Any, Any]] = [(column.type, wanted.types), (column.id, wanted.ids)]
    conditions = [one == value for one, value in equal if value is not None]
    conditions += [one.in_(values) for one, values in among if values is not None]
    bounds = [
        (wanted.created_after, column.created_at.__gt__),
        (wanted.created_before, column.created_at.__lt__),
        (wanted.done_after, column.done_at.__gt__),
        (wanted.done_before, column.done_at.__lt__),
    ]
    conditions += [compare(value) for value, compare in bounds if value is not None]
    return [*conditions, *_in_states(tx, wanted)]


def _in_states(tx: Tx, wanted: Filter) -> list[ColumnElement[bool]]:
    if wanted.states is None and wanted.include_deleting:
        return []
    shown = [state for state in State if state is not State.DELETING or wanted.include_deleting]
    chosen = shown if wanted.states is None else wanted.states
    return [_is_one_of(tx, [status for state in chosen for status in statuses_of(state)])]


def _is_one_of(tx: Tx, statuses: Iterable[Status]) -> ColumnElement[bool]:
    column = tx.t.task.c
    marks: dict[Stage, list[str]] = {}
    for status in statuses:
        marks.setdefault(status.stage, []).append(status.mark.value)
    return or_(
        *(and_(column.stage == stage.value, column.mark.in_(some)) for stage, some in marks.items()), literal(1) == 0
    )


def _owned_by(tx: Tx, user: str | None) -> list[ColumnElement[bool]]:
    return [] if user is None else [tx.t.task.c.user_name == user]


_SHOWN = (
    "id type user_name group_name stage mark arguments context progress message result errors attempt epoch seq "
    "node_id rank key_name run_at created_at started_at done_at version headers"
).split()


def _columns(tx: Tx) -> Select[Any]:
    return select(*(tx.t.task.c[name] for name in _SHOWN))


def as_task(row: Row[Any]) -> Task:
    """Return a row as people see it."""
    status = Status(Stage(row.stage), Mark(row.mark))
    errors = json.loads(row.errors) if row.errors else []
    arguments = json.loads(row.arguments)
    return Task(
        id=row.id,
        type=row.type,
        user=row.user_name,
        group=row.group_name,
        state=state_of(status),
        arguments=arguments,
        context=arguments if row.context is None else json.loads(row.context),
        progress=None if row.progress is None else 1.0 if status.stage is Stage.FINISHED else row.progress,
        message=row.message,
        result=None if row.result is None else json.loads(row.result),
        error=errors[-1]["message"] if errors and status.stage is not Stage.FINISHED else None,
        errors=errors,
        attempt=row.attempt,
        epoch=row.epoch,
        seq=row.seq,
        node=row.node_id,
        priority=-row.rank,
        key=row.key_name,
        run_at=row.run_at,
        created_at=row.created_at,
        started_at=row.started_at,
        done_at=row.done_at,
        version=row.version,
        headers=json.loads(row.headers) if row.headers else {},
        status=status,
    )


def facts(tx: Tx, task_id: UUID, *, user: str | None = None) -> Facts:
    """Return what says why a task is not running. Raises TaskNotFound."""
    column, node = tx.t.task.c, tx.t.node.c
    more = (column.due_at, column.queue, column.note, now().label("now"))
    row = tx.execute(_columns(tx).add_columns(*more).where(column.id == task_id, *_owned_by(tx, user))).one_or_none()
    if row is None:
        raise TaskNotFound(task_id)
    held = select(column.node_id, func.count()).where(column.node_id.is_not(None)).group_by(column.node_id)
    rows: Sequence[Any] = tx.execute(held).all()
    running = dict(row for row in rows)
    query = select(node.id, node.name, node.types, node.slots, node.draining, node.beat_at, node.lease)
    nodes = [
        NodeFacts(
            id=each.id,
            name=each.name,
            types=json.loads(each.types),
            running=running.get(each.id, 0),
            slots=each.slots,
            draining=each.draining,
            silent=(row.now - each.beat_at).total_seconds() > each.lease,
        )
        for each in tx.execute(query.where(node.lost.is_(False)))
    ]
    return Facts(as_task(row), row.due_at, row.queue, row.note, row.now, nodes)


# --- the users' verbs


@dataclass(frozen=True)
class Wish:
    """What a user wants of a task: an event of the table, and how `user_run` is meant."""

    event: Event
    now: bool = False
    restart: bool = False


def locked_columns(tx: Tx) -> list[Any]:
    """Return the columns that a user's verb decides by, and the database's time."""
    return [*(tx.t.task.c[name] for name in _LOCKED), now().label("now")]


_LOCKED = "id stage mark losses errors attempt user_name type key_name due_at".split()


def mark(tx: Tx, task_id: UUID, wish: Wish, *, user: str | None = None) -> None:
    """Apply a user's wish to one task. Raises TaskNotFound, InvalidTransition, KeyTaken."""
    row = lock(tx, task_id, user=user)
    status = Status(Stage(row.stage), Mark(row.mark))
    target = step(status, wish.event, task_id)
    if wish.restart and target is not None and target.stage in OWNED:
        raise InvalidTransition(task_id, row.stage, row.mark, "user_run(restart=True)")
    change(tx, wish, [row])


def mark_all(tx: Tx, wanted: Filter, wish: Wish, *, after: UUID | None, limit: int = BATCH) -> tuple[int, UUID | None]:
    """Apply a user's wish to the next tasks in id order, leaving out those whose status forbids it.

    Returns how many were changed, and the last id, or None when there are no more.
    """
    column = tx.t.task.c
    conditions = [*_conditions(tx, wanted), _is_one_of(tx, changed_by(wish.event))]
    ids = select(column.id).where(*conditions).order_by(column.id).limit(limit)
    _begin_writing(tx)
    found = list(tx.execute(ids if after is None else ids.where(column.id > after)).scalars())
    rows = tx.execute(_in_order(tx, select(*locked_columns(tx)).where(column.id.in_(found), *conditions))).all()
    takers = [row for row in rows if _takes_key(wish, row)]
    others = [row for row in rows if not _takes_key(wish, row)]
    change(tx, wish, others)
    changed = len(others) + sum(_took_key(tx, wish, row) for row in takers)
    return changed, found[-1] if len(found) == limit else None


def _in_order(tx: Tx, query: Select[Any]) -> Select[Any]:
    """Lock rows in the order of their ids."""
    return reading(tx.t.task, "PRIMARY", query).order_by(tx.t.task.c.id).with_for_update()


def reading(task: Table[Any], index: str, query: Select[Any]) -> Select[Any]:
    """Have MariaDB read by an index: it locks what it reads, in that order, and of a small table it would read all."""
    for name in ("mysql", "mariadb"):
        query = query.with_hint(task, f"FORCE INDEX ({index})", name)
    return query


def updating(tx: Tx, ids: Collection[UUID]) -> Update:
    """Begin an update of rows that are locked already, which locks no others."""
    return updating_where(tx.t.task, tx.t.task.c.id.in_(ids))


def updating_where(task: Table[Any], among: ColumnElement[bool]) -> Update:
    """Begin an update as `updating` does, of rows that a condition on their ids names."""
    change = update(task).where(among)
    for name in ("mysql", "mariadb"):
        change = change.with_hint("FORCE INDEX (PRIMARY)", dialect_name=name)
    return change


def drop(tx: Tx, ids: Iterable[UUID], *conditions: ColumnElement[bool]) -> None:
    """Delete rows that are locked already, one by one: a DELETE of several takes no hint of the index to read by."""
    column = tx.t.task.c.id
    one = delete(tx.t.task).where(column == bindparam("task_id", type_=column.type), *conditions)
    tx.execute(one, [{"task_id": each} for each in ids])


def _takes_key(wish: Wish, row: Row[Any]) -> bool:
    return wish.event is Event.USER_RUN and row.stage in ENDED and row.key_name is not None


def _took_key(tx: Tx, wish: Wish, row: Row[Any]) -> bool:
    try:
        change(tx, wish, [row])
    except KeyTaken:
        return False
    return True


def lock(tx: Tx, task_id: UUID, *, user: str | None = None) -> Row[Any]:
    """Lock one task's row and return it as it is now, whatever the caller's snapshot shows. Raises TaskNotFound."""
    column = tx.t.task.c
    _begin_writing(tx)
    query = select(*locked_columns(tx)).where(column.id == task_id, *_owned_by(tx, user))
    row = tx.execute(query.with_for_update()).one_or_none()
    if row is None:
        raise TaskNotFound(task_id)
    return row


def _begin_writing(tx: Tx) -> None:
    """Take SQLite's one lock: a caller's transaction may not have begun, and only a write makes its driver begin it."""
    if not tx.dialect.skips_locked:
        column = tx.t.task.c
        tx.execute(update(tx.t.task).where(column.id.is_(None)).values(epoch=column.epoch))


def change(tx: Tx, wish: Wish, rows: Sequence[Row[Any]]) -> None:
    """Write what a wish makes of locked rows."""
    groups: dict[Status, list[Row[Any]]] = {}
    for row in rows:
        groups.setdefault(Status(Stage(row.stage), Mark(row.mark)), []).append(row)
    for status, some in groups.items():
        _change_group(tx, wish, status, some)


def _change_group(tx: Tx, wish: Wish, status: Status, rows: Sequence[Row[Any]]) -> None:
    target = step(status, wish.event, rows[0].id)
    column = tx.t.task.c
    same = and_(column.stage == status.stage.value, column.mark == status.mark.value)
    if target is None:
        drop(tx, [row.id for row in rows], same)
        return
    values = _written(tx, wish, status, target)
    if not values:
        return
    if wish.event is Event.USER_CANCEL and target == FAILED:
        _cancel(tx, rows, values, same)
        return
    taking_key = status.stage in ENDED and any(row.key_name is not None for row in rows)
    change = updating(tx, [row.id for row in rows]).where(same).values(values)
    if not taking_key:
        tx.execute(change)
        return
    try:
        with tx.connection.begin_nested():
            tx.execute(change)
    except IntegrityError as error:
        raise KeyTaken(rows[0].id, rows[0].key_name, _holder(tx, rows[0])) from error


def _written(tx: Tx, wish: Wish, status: Status, target: Status) -> dict[str, Any]:
    """Return the columns that a wish changes, given the status before and after it."""
    column = tx.t.task.c
    values: dict[str, Any] = {}
    if target != status:
        values |= {"stage": target.stage.value, "mark": target.mark.value}
    if target.stage not in OWNED and target != status:
        values |= _waiting(tx, target)
    if wish.event is Event.USER_DELETE and target != status:
        values |= {"run_at": None, "held_key": None}
        if target.stage not in OWNED:
            values |= {"queue": Queue.DELETE.value, "due_at": None, "purge_at": None, "attempt": 1, "losses": 0}
    if target.stage in ENDED and target != status:
        values |= {"done_at": now(), "purge_at": after(column.keep), "held_key": None}
    if wish.event is Event.USER_RUN and target.stage not in OWNED:
        values |= _run_again(tx, wish, status, target)
    return values


def _waiting(tx: Tx, target: Status) -> dict[str, Any]:
    """Put a task into the queue of its new status, or take it out; it waits while its run_at lies ahead."""
    column = tx.t.task.c
    queue = queue_of(target)
    if queue is None:
        return {"queue": None, "due_at": None}
    ahead = and_(column.run_at.is_not(None), column.run_at > now())
    tried = (column.losses >= PROBATION_LOSSES, Queue.PROBATION.value)
    return {
        "queue": case((ahead, null()), tried, else_=queue.value),
        "due_at": case((ahead, column.run_at), else_=null()),
        "ready_at": now(),
    }


def _run_again(tx: Tx, wish: Wish, status: Status, target: Status) -> dict[str, Any]:
    column = tx.t.task.c
    values: dict[str, Any] = {}
    if status.stage in ENDED:
        values |= {
            "attempt": 1,
            "losses": 0,
            "done_at": None,
            "purge_at": None,
            "held_key": column.key_name,
            "result": None,
        }
        values |= {"queue": case((column.run_at > now(), null()), else_=Queue.RUN.value)}
    if wish.now:
        tried = column.losses >= PROBATION_LOSSES
        queue = (
            Queue.RUN.value if status.stage in ENDED else case((tried, Queue.PROBATION.value), else_=Queue.RUN.value)
        )
        values |= {"run_at": None, "due_at": None, "queue": queue}
        if target == status:  # who waits in a queue already keeps the place; MariaDB sets ready_at before due_at
            values["ready_at"] = case((column.due_at.is_not(None), now()), else_=column.ready_at)
    if wish.restart:
        values |= {"context": None, "progress": None, "message": None, "result": None, "version": 0}
    return values


def _cancel(tx: Tx, rows: Sequence[Row[Any]], values: dict[str, Any], same: ColumnElement[bool]) -> None:
    table = tx.t.task
    key: BindParameter[Any] = bindparam("task_id", type_=table.c.id.type)
    cancelling = update(table).where(table.c.id == key, same).values(values | {"errors": bindparam("all_errors")})
    tx.execute(cancelling, [{"task_id": row.id, "all_errors": cancelled_errors(row)} for row in rows])


def cancelled_errors(row: Row[Any]) -> str:
    """Return a locked row's errors with the one that says that it was cancelled."""
    return with_error(row, CANCELLED, "cancelled by a user")


def with_error(row: Row[Any], kind: str, message: str, node: str | None = None) -> str:
    """Return what is stored of a locked row's errors when there is one more."""
    time = row.now.isoformat(timespec="milliseconds")
    entry = failure(kind, message, attempt=row.attempt, node=node, time=time)
    return json.dumps(appended(json.loads(row.errors) if row.errors else [], entry))


def _holder(tx: Tx, row: Row[Any]) -> UUID | None:
    wanted = {"user_name": row.user_name, "type": row.type, "key_name": row.key_name}
    return _holders(tx, [wanted]).get(_key(wanted))


def move(tx: Tx, task_id: UUID, group: str, *, user: str | None = None) -> None:
    """Put a task into another group. Raises TaskNotFound."""
    row = lock(tx, task_id, user=user)
    if state_of(Status(Stage(row.stage), Mark(row.mark))) is State.DELETING:
        raise TaskNotFound(task_id)
    tx.execute(update(tx.t.task).where(tx.t.task.c.id == task_id).values(group_name=group))


def remove(tx: Tx, task_id: UUID, *, user: str | None = None) -> None:
    """Remove the row of a task that no live node runs, without clean-up. Raises TaskNotFound, InvalidTransition."""
    row = lock(tx, task_id, user=user)
    column, node = tx.t.task.c, tx.t.node.c
    live = select(node.id).where(node.lost.is_(False))
    unowned = or_(column.stage.not_in([stage.value for stage in OWNED]), column.node_id.not_in(live))
    removed = tx.execute(delete(tx.t.task).where(column.id == task_id, unowned))
    if removed.rowcount == 0:
        raise InvalidTransition(task_id, row.stage, row.mark, "user_delete(force=True)")
