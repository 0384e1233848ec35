"""Claiming: the transaction that gives tasks to a node, and takes them from one that is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Integer,
    Row,
    ScalarSelect,
    Select,
    Table,
    UnaryExpression,
    Update,
    any_,
    bindparam,
    case,
    false,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
)
from sqlalchemy.sql import operators

from pyasync.domain.failures import CRASH_LOOP, NODE_LOST
from pyasync.domain.queues import PROBATION_LOSSES, Queue, QueuePolicy, queue_of
from pyasync.domain.states import ENDED, OWNED, Event, Mark, Stage, Status
from pyasync.domain.transitions import step
from pyasync.store.database import Tx
from pyasync.store.dialects import Batch, after, now
from pyasync.store.tables import tables
from pyasync.store.tasks import (
    Wish,
    cancelled_errors,
    change,
    locked_columns,
    reading,
    updating,
    updating_where,
    with_error,
)

DUE_BATCH = 1_000
LOST_BATCH = 500
REMOVAL_BATCH = 1_000


@dataclass(frozen=True)
class Offer:
    """What a node can run of one type: the version it understands, and what the type wants kept on its tasks' rows."""

    type: str
    version: int
    on_node_loss: str
    max_losses: int | None
    keep: float | None
    cleans: bool


@dataclass(frozen=True)
class Request:
    """What a node asks for: so many tasks of one queue, of these types and groups.

    `room` bounds single types further. The order is: stopped by the system, priority, the policy's.
    """

    queue: Queue
    limit: int
    offers: Sequence[Offer]
    policy: QueuePolicy
    groups: frozenset[str] | None = None
    room: Mapping[str, int] | None = None


def promote(tx: Tx) -> int:
    """Put tasks whose time has come into their queue; return how many."""
    column = tx.t.task.c
    query = select(column.id).where(column.due_at <= now()).order_by(column.due_at).limit(DUE_BATCH)
    ids = list(tx.execute(query.with_for_update(skip_locked=True)).scalars())
    if ids:
        queue = case(
            (column.losses >= PROBATION_LOSSES, Queue.PROBATION.value),
            (column.mark == Mark.DELETE.value, Queue.DELETE.value),
            else_=Queue.RUN.value,
        )
        values = {"queue": queue, "ready_at": column.due_at, "due_at": None}
        tx.execute(updating(tx, ids).ordered_values(*values.items()))
    return len(ids)


def waiting(tx: Tx, types: Sequence[str]) -> tuple[bool, float | None]:
    """Look, in one statement that locks nothing, whether tasks of some types may be claimable, and when the next is
    due.
    """
    column = tx.t.task.c
    queued = or_(*(_first(tx, queue, name).is_not(None) for queue in Queue for name in types), false())
    # Not min(due_at): MariaDB reads all of them for it.
    first = select(column.due_at).where(column.due_at.is_not(None)).order_by(column.due_at).limit(1).scalar_subquery()
    row = tx.execute(select(queued.label("queued"), first.label("due_at"), now().label("now"))).one()
    due_in = None if row.due_at is None else (row.due_at - row.now).total_seconds()
    return bool(row.queued) or (due_in is not None and due_in <= 0), due_in


def _first(tx: Tx, queue: Queue, type: str) -> ScalarSelect[Any]:
    """Select the first of a queue in the index's order: for any of them, PostgreSQL may read the whole table."""
    column = tx.t.task.c
    order = (column.stage, column.rank, column.ready_at, column.id)
    first = select(column.id).where(column.queue == queue.value, column.type == type).order_by(*order).limit(1)
    return first.scalar_subquery()


def next_due(tx: Tx) -> float | None:
    """Return in how many seconds the next task's time comes, or None."""
    column = tx.t.task.c
    first = select(column.due_at, now().label("now")).where(column.due_at.is_not(None)).order_by(column.due_at).limit(1)
    row = tx.execute(first).one_or_none()
    return None if row is None else max(0.0, (row.due_at - row.now).total_seconds())


_CLAIMED = (
    "id type user_name group_name stage mark arguments context version attempt epoch seq losses retry timeout headers "
    "errors rank ready_at"
).split()


def claim(tx: Tx, node_id: UUID, fence: UUID, request: Request) -> list[Row[Any]]:
    """Give the first tasks of a queue to a node, and return their rows as they were before.

    The claim is the fence, which is new with every call: a lost reply's rows are found again by it.
    """
    if request.limit <= 0 or not request.offers:
        return []
    if len(request.offers) == 1 and tx.dialect.returns_joined:
        return _claim_at_once(tx, node_id, fence, request, request.offers[0])
    candidates = [row for offer in request.offers for row in _candidates(tx, request, offer)]
    if len(request.offers) > 1:
        _sort(candidates, _directions(tx.schema, _Same(request.policy)))
    rows = candidates[: request.limit]
    offers = {offer.type: offer for offer in request.offers}
    for name in {row.type for row in rows}:
        _take(tx, node_id, fence, offers[name], [row.id for row in rows if row.type == name])
    return rows


def _claim_at_once(tx: Tx, node_id: UUID, fence: UUID, request: Request, offer: Offer) -> list[Row[Any]]:
    """Choose and take in one statement: a round trip less than one after the other."""
    claiming = _claiming(tx.schema, *_kind(request, offer))
    rows = list(tx.execute(claiming, _chosen_by(request, offer) | _taken_by(node_id, fence, offer)).all())
    _sort(rows, _directions(tx.schema, _Same(request.policy)))
    return rows


def _sort(rows: list[Row[Any]], directions: Sequence[bool]) -> None:
    """Merge what was ordered by type: by the last criterion first, since each sort keeps what the one before did."""
    for place, descends in reversed(list(enumerate(directions, len(_CLAIMED)))):
        rows.sort(key=lambda row, place=place: (row[place] is not None, row[place]), reverse=descends)  # type: ignore[misc]
    rows.sort(key=lambda row: (row.stage, row.rank))


@lru_cache
def _directions(schema: str | None, same: _Same) -> tuple[bool, ...]:
    """Return for each of a policy's criteria whether it goes from the highest down."""
    return tuple(_parts(each)[1] for each in same.policy.order(tables(schema).task.c))


def _parts(criterion: Any) -> tuple[Any, bool]:
    """Return what a policy orders by, and whether from the highest down."""
    descends = False
    while isinstance(criterion, UnaryExpression) and criterion.modifier is not None:
        descends |= criterion.modifier is operators.desc_op
        criterion = criterion.element
    return criterion, descends


def _candidates(tx: Tx, request: Request, offer: Offer) -> Sequence[Row[Any]]:
    return tx.execute(_selection(tx.schema, *_kind(request, offer)), _chosen_by(request, offer)).all()


def _kind(request: Request, offer: Offer) -> tuple[_Same, bool, bool]:
    """Return what the text of a selection depends on."""
    cleans = request.queue is not Queue.PROBATION or offer.cleans
    return _Same(request.policy), request.groups is not None, cleans


def _chosen_by(request: Request, offer: Offer) -> dict[str, Any]:
    values: dict[str, Any] = {"wanted_queue": request.queue.value, "wanted_type": offer.type}
    values["wanted_version"] = offer.version
    values["wanted_limit"] = min((request.room or {}).get(offer.type, request.limit), request.limit)
    if request.groups is not None:
        values["wanted_groups"] = list(request.groups)
    return values


@dataclass(frozen=True)
class _Same:
    """Stands for a policy of any class, equal to itself only."""

    policy: QueuePolicy = field(compare=False)
    identity: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", id(self.policy))


@lru_cache
def _selection(schema: str | None, same: _Same, in_groups: bool, cleans: bool) -> Select[Any]:
    """Make the statement once: building it anew would cost more than running it."""
    table = tables(schema).task
    column = table.c
    order = same.policy.order(column)
    criteria = (_parts(each)[0].label(f"order_{n}") for n, each in enumerate(order))
    query = (
        select(*(column[name] for name in _CLAIMED), *criteria)
        .where(
            column.queue == bindparam("wanted_queue", type_=column.queue.type),
            column.type == bindparam("wanted_type", type_=column.type.type),
            column.version <= bindparam("wanted_version", type_=column.version.type),
        )
        .order_by(column.stage, column.rank, *order)
        .limit(bindparam("wanted_limit", type_=Integer))
        .with_for_update(skip_locked=True, key_share=True)  # a host's row may refer to the task: that is no obstacle
    )
    if in_groups:
        query = query.where(
            column.group_name.in_(bindparam("wanted_groups", type_=column.group_name.type, expanding=True))
        )
    if not cleans:
        query = query.where(column.mark == Mark.RUN.value)
    return reading(table, "pyasync_task_claim", query)


def _take(tx: Tx, node_id: UUID, fence: UUID, offer: Offer, ids: Sequence[UUID]) -> None:
    taken = tx.execute(_taking(tx.schema, tx.dialect.has_arrays), _taken_by(node_id, fence, offer) | {"ids": ids})
    if taken.rowcount != len(ids):
        raise RuntimeError(f"claimed {taken.rowcount} of {len(ids)} locked rows")


def _taken_by(node_id: UUID, fence: UUID, offer: Offer) -> dict[str, Any]:
    return {
        "new_node": node_id,
        "new_fence": fence,
        "type_on_node_loss": offer.on_node_loss,
        "type_max_losses": offer.max_losses,
        "type_keep": offer.keep,
    }


@lru_cache
def _claiming(schema: str | None, same: _Same, in_groups: bool, cleans: bool) -> Any:
    table = tables(schema).task
    chosen = _selection(schema, same, in_groups, cleans).cte("chosen")
    return _taking_where(table, table.c.id == chosen.c.id).returning(*chosen.c)


@lru_cache
def _taking(schema: str | None, arrays: bool) -> Update:
    table = tables(schema).task
    listed = bindparam("ids", type_=ARRAY(table.c.id.type)) if arrays else bindparam("ids", expanding=True)
    return _taking_where(table, table.c.id == any_(listed) if arrays else table.c.id.in_(listed))


def _taking_where(table: Table[Any], among: ColumnElement[bool]) -> Update:
    column = table.c
    values = {
        "stage": case((column.mark == _word(Mark.DELETE), _word(Stage.DELETING)), else_=_word(Stage.RUNNING)),
        "queue": null(),
        "node_id": bindparam("new_node", type_=column.node_id.type),
        "fence": bindparam("new_fence", type_=column.fence.type),
        "epoch": column.epoch + literal_column("1"),
        "started_at": now(),
        "on_node_loss": bindparam("type_on_node_loss", type_=column.on_node_loss.type),
        "max_losses": bindparam("type_max_losses", type_=column.max_losses.type),
        "keep": func.coalesce(column.keep, bindparam("type_keep", type_=column.keep.type)),
    }
    claimable = (
        or_(column.stage == _word(Stage.PENDING), column.stage == _word(Stage.PAUSED)),
        or_(column.mark == _word(Mark.RUN), column.mark == _word(Mark.DELETE)),
    )
    return updating_where(table, among).where(column.queue.is_not(None), *claimable).values(values)


def _word(word: Stage | Mark) -> ColumnElement[Any]:
    """Render a word of ours as it is: a list of parameters would be rendered anew with every execution."""
    return literal_column(f"'{word.value}'")


def remove_deleted(tx: Tx, types: Sequence[str], limit: int = REMOVAL_BATCH) -> int:
    """Remove tasks that wait for deletion, of types that have no clean-up; return how many."""
    if not types:
        return 0
    column = tx.t.task.c
    query = select(column.id).where(
        column.queue.in_([Queue.DELETE.value, Queue.PROBATION.value]),
        column.mark == Mark.DELETE.value,
        column.type.in_(types),
    )
    query = query.order_by(column.queue, column.type)  # or SQLite may prefer to read the whole table
    ids = list(tx.execute(query.limit(limit).with_for_update(skip_locked=True)).scalars())
    if ids:
        tx.dialect.write(tx.connection, _removal(tx.schema), [{"id": task_id} for task_id in ids])
    return len(ids)


@lru_cache
def _removal(schema: str | None) -> Batch:
    return Batch(tables(schema).task, {"id": "id"}, f"task.mark = '{Mark.DELETE.value}'", None)


def owned(tx: Tx, node_id: UUID) -> list[Row[Any]]:
    """Return (id, fence) of every task that the database says this node runs."""
    column = tx.t.task.c
    return list(tx.execute(select(column.id, column.fence).where(column.node_id == node_id)).all())


def marked(tx: Tx, node_id: UUID) -> list[Row[Any]]:
    """Return (id, fence, mark) of the running tasks of a node that somebody wants stopped."""
    column = tx.t.task.c
    wanted = column.mark.in_([Mark.PAUSE.value, Mark.CANCEL.value, Mark.DELETE.value])
    query = select(column.id, column.fence, column.mark).where(column.node_id == node_id, wanted)
    return list(tx.execute(query.where(column.stage == Stage.RUNNING.value)).all())


# --- taking over

_TAKEN = "id stage mark losses max_losses on_node_loss errors attempt".split()


def take_over(tx: Tx, node_id: UUID, node_name: str, fence: UUID, limit: int = LOST_BATCH) -> list[UUID]:
    """Apply `sys_pause` on behalf of a lost node to some of its tasks, with a new fence; return their ids."""
    return _let_go(tx, _owned_by(tx, node_id).limit(limit), fence, node_name)


def release(tx: Tx, node_id: UUID, claims: Sequence[tuple[UUID, UUID]], fence: UUID) -> list[UUID]:
    """Let go of tasks (id, fence) that the database says this node runs, but of which it knows nothing."""
    column = tx.t.task.c
    mine = or_(*((column.id == task_id) & (column.fence == held) for task_id, held in claims))
    return _let_go(tx, _owned_by(tx, node_id).where(mine), fence, None)


def release_fences(tx: Tx, node_id: UUID, fences: Sequence[UUID], fence: UUID) -> list[UUID]:
    """Let go of what was claimed with these fences: the replies of those claims were lost."""
    return _let_go(tx, _owned_by(tx, node_id).where(tx.t.task.c.fence.in_(fences)), fence, None)


def reload(tx: Tx, task_id: UUID, fence: UUID) -> Row[Any] | None:
    """Return a claimed task's row as it is now, or None if the claim does not stand."""
    column = tx.t.task.c
    query = select(*(column[name] for name in _CLAIMED)).where(column.id == task_id, column.fence == fence)
    return tx.execute(query.where(column.stage.in_([stage.value for stage in OWNED]))).one_or_none()


def _owned_by(tx: Tx, node_id: UUID) -> Select[Any]:
    column = tx.t.task.c
    stages = [stage.value for stage in OWNED]
    return (
        select(*(column[name] for name in _TAKEN), now().label("now"))
        .where(column.node_id == node_id, column.stage.in_(stages))
        .order_by(column.id)
        .with_for_update(skip_locked=True)
    )


def _let_go(tx: Tx, query: Select[Any], fence: UUID, lost_node: str | None) -> list[UUID]:
    """Apply `sys_pause`, or `task_failed` to what must not go on, to locked rows, computed from the rows themselves."""
    rows = tx.execute(query).all()
    groups: dict[tuple[Any, ...], list[Row[Any]]] = {}
    for row in rows:
        verdict = _verdict(row, lost_node)
        groups.setdefault((Status(Stage(row.stage), Mark(row.mark)), *verdict), []).append(row)
    for (status, event, kind), some in groups.items():
        _let_go_of(tx, status, event, kind, some, fence, lost_node)
    return [row.id for row in rows]


def _verdict(row: Row[Any], lost_node: str | None) -> tuple[Event, str | None]:
    if lost_node is None:
        return Event.SYS_PAUSE, None
    if row.on_node_loss == "fail" and row.stage == Stage.RUNNING.value:
        return Event.TASK_FAILED, NODE_LOST
    if row.max_losses is not None and row.losses + 1 >= row.max_losses:
        return Event.TASK_FAILED, CRASH_LOOP
    return Event.SYS_PAUSE, None


def _let_go_of(
    tx: Tx, status: Status, event: Event, kind: str | None, rows: Sequence[Row[Any]], fence: UUID, lost_node: str | None
) -> None:
    column = tx.t.task.c
    target = step(status, event)
    assert target is not None, "a takeover removes nothing"
    deleting = status.stage is Stage.RUNNING and target.mark is Mark.DELETE
    losses = literal(0) if deleting else column.losses + (1 if lost_node is not None else 0)
    values: dict[str, Any] = {
        "stage": target.stage.value,
        "mark": target.mark.value,
        "queue": _queue(target, losses),
        "ready_at": now(),
        "node_id": None,
        "fence": fence,
        "losses": losses,
        "attempt": 1 if deleting else column.attempt,
        "note": None if lost_node is None else f"node {lost_node} was lost",
    }
    if target.stage in ENDED:
        values |= {"done_at": now(), "purge_at": after(column.keep), "held_key": None}
    for ids, errors in _errors(status, target, kind, rows, lost_node):
        written = values if errors is None else values | {"errors": errors}
        # MariaDB computes assignments one after the other: `queue` must read the losses as they were.
        ordered = sorted(written.items(), key=lambda item: item[0] != "queue")
        tx.execute(updating(tx, ids).ordered_values(*ordered))


def _queue(target: Status, losses: Any) -> Any:
    queue = queue_of(target)
    if queue is None:
        return null()
    return case((losses >= PROBATION_LOSSES, Queue.PROBATION.value), else_=queue.value)


def _errors(
    status: Status, target: Status, kind: str | None, rows: Sequence[Row[Any]], lost_node: str | None
) -> list[tuple[list[UUID], str | None]]:
    """Return the rows' ids with the errors to store; one by one where these differ."""
    if kind is not None:
        return [([row.id], _lost_errors(row, kind, lost_node)) for row in rows]
    if status.mark is Mark.CANCEL and target.stage is Stage.FAILED:
        return [([row.id], cancelled_errors(row)) for row in rows]
    return [([row.id for row in rows], None)]


def _lost_errors(row: Row[Any], kind: str, lost_node: str | None) -> str:
    reasons = {
        CRASH_LOOP: f"crash loop: {row.losses + 1} nodes were lost while they ran this task, the last one {lost_node}, "
        "without a report in between; it may be what kills them. Run it again when that is mended",
        NODE_LOST: f"node {lost_node} was lost while it ran this task, whose type has on_node_loss='fail'",
    }
    return with_error(row, kind, reasons[kind], lost_node)


# --- retention


def purge(tx: Tx, limit: int = REMOVAL_BATCH) -> int:
    """Apply `user_delete` to ended tasks that were kept long enough; return how many."""
    column = tx.t.task.c
    query = select(*locked_columns(tx)).where(column.purge_at <= now()).order_by(column.purge_at).limit(limit)
    rows = tx.execute(query.with_for_update(skip_locked=True)).all()
    change(tx, Wish(Event.USER_DELETE), rows)
    return len(rows)
