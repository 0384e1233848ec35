"""The nodes' rows: joining, beating, leaving, and being declared lost."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import and_, delete, select, update

from pyasync.domain.task import NodeInfo
from pyasync.store.database import Tx
from pyasync.store.dialects import now
from pyasync.store.tasks import insert_or_nothing


@dataclass(frozen=True)
class Beat:
    """What a node tells with each beat."""

    counter: int
    session_key: str | None
    slots: int
    running: int
    draining: bool
    types: Mapping[str, int]
    """The types it runs, with their versions."""


@dataclass(frozen=True)
class Peer:
    """Another node as an observer reads it."""

    id: UUID
    name: str
    counter: int
    session_key: str | None
    lease: float


def join(tx: Tx, node_id: UUID, name: str, version: str, lease: float, beat: Beat) -> None:
    """Insert a node's row; the same call again changes nothing."""
    values = {"id": node_id, "name": name, "version": version, "lease": lease, "counter": beat.counter, "lost": False}
    values |= {"joined_at": now(), "beat_at": now(), **_told(beat)}
    insert_or_nothing(tx, tx.t.node, values)


def register(tx: Tx, types: Collection[str]) -> None:
    """Remember that this system knows some types."""
    column = tx.t.type.c.type
    known = set(tx.execute(select(column).where(column.in_(types))).scalars())
    for name in sorted(set(types) - known):
        insert_or_nothing(tx, tx.t.type, {"type": name, "first_seen_at": now()})


def beat(tx: Tx, node_id: UUID, beat: Beat) -> bool:
    """Raise a node's counter; False if it was declared lost, or the row is gone."""
    column = tx.t.node.c
    raised = update(tx.t.node).where(column.id == node_id, column.lost.is_(False))
    return bool(tx.execute(raised.values(counter=beat.counter, beat_at=now(), **_told(beat))).rowcount)


def _told(beat: Beat) -> dict[str, Any]:
    return {
        "session_key": beat.session_key,
        "slots": beat.slots,
        "running": beat.running,
        "draining": beat.draining,
        "types": json.dumps(dict(beat.types)),
    }


def leave(tx: Tx, node_id: UUID) -> None:
    """Remove a node's row. If tasks still name it, they count as a lost node's from now on."""
    tx.execute(delete(tx.t.node).where(tx.t.node.c.id == node_id))


def peers(tx: Tx, node_id: UUID) -> list[Peer]:
    """Return the other nodes that count as alive."""
    column = tx.t.node.c
    query = select(column.id, column.name, column.counter, column.session_key, column.lease)
    rows: Sequence[Any] = tx.execute(query.where(column.id != node_id, column.lost.is_(False))).all()
    return [Peer(*row) for row in rows]


def declare_lost(tx: Tx, peer: Peer) -> bool:
    """Declare a node lost if its counter and session are still the ones that were seen: a compare-and-set."""
    column = tx.t.node.c
    same_session = column.session_key.is_(None) if peer.session_key is None else column.session_key == peer.session_key
    same = and_(column.id == peer.id, column.counter == peer.counter, same_session, column.lost.is_(False))
    return bool(tx.execute(update(tx.t.node).where(same).values(lost=True)).rowcount)


def lost(tx: Tx) -> list[tuple[UUID, str]]:
    """Return (id, name) of the nodes declared lost, whose tasks are to be taken over."""
    column = tx.t.node.c
    return [(row.id, row.name) for row in tx.execute(select(column.id, column.name).where(column.lost.is_(True)))]


def orphaned(tx: Tx) -> list[UUID]:
    """Return owners that have no row: they are lost at once."""
    owner, node = tx.t.task.c.node_id, tx.t.node.c.id
    return list(tx.execute(select(owner).where(owner.is_not(None), owner.not_in(select(node))).distinct()).scalars())


def remove_lost(tx: Tx, node_id: UUID) -> bool:
    """Remove a lost node's row, unless a task still names it."""
    column = tx.t.node.c
    named = select(tx.t.task.c.id).where(tx.t.task.c.node_id == node_id).exists()
    return bool(tx.execute(delete(tx.t.node).where(column.id == node_id, column.lost.is_(True), ~named)).rowcount)


def infos(tx: Tx) -> list[NodeInfo]:
    """Return every node as people see it, oldest first."""
    column = tx.t.node.c
    names = "id name version types running slots beat_at draining lost".split()
    rows: Sequence[Any] = tx.execute(select(*(column[name] for name in names)).order_by(column.joined_at)).all()
    return [_info(row) for row in rows]


def _info(row: Any) -> NodeInfo:
    return NodeInfo(
        row.id,
        row.name,
        row.version,
        tuple(json.loads(row.types)),
        row.running,
        row.slots,
        row.beat_at,
        row.draining,
        row.lost,
    )
