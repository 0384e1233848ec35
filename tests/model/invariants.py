"""What must be true of every step: the numbers are those by which the checks of the project are known."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from pyasync.domain.states import ENDED, Event, Mark, Stage
from pyasync.domain.transitions import TABLE
from tests.model.steps import Steps
from tests.model.world import Kind, Move, Row, World, Write


@dataclass(frozen=True)
class Invariants:
    """Tells which invariants a move breaks."""

    steps: Steps

    def broken(self, before: World, move: Move, watched: Collection[str]) -> list[str]:
        """Return which of the watched invariants a move breaks."""
        return [name for name in watched if INVARIANTS[name](self, before, move)]

    def fence_is_drawn_twice(self, before: World, move: Move) -> bool:
        """I1: a claim is never repeated, in any history."""
        return 0 < move.drew <= before.drawn

    def stale_write_is_stored(self, before: World, move: Move) -> bool:
        """I2: a write changes the row only under the claim that the row has."""
        if move.wrote is None or before.db.row is None:
            return False
        return (move.wrote.node, move.wrote.fence) != (before.db.row.owner, before.db.row.fence)

    def checkpoint_is_missing(self, before: World, move: Move) -> bool:
        """I4: a run goes on only from what is stored."""
        row, left = move.world.db.row, move.world.left
        if row is None or left.failovers < self.steps.scope.failovers:
            return False
        return any(run.seq > row.seq or run.context > row.context for run in move.world.runs)

    def write_is_stored_twice(self, before: World, move: Move) -> bool:
        """I5: the writes of a task are numbered without gaps, and each number is stored once."""
        write, row = move.wrote, before.db.row
        counted = write is not None and write.kind is not Kind.FORCE
        return counted and row is not None and write.seq != row.seq

    def effects_differ_from_checkpoint(self, before: World, move: Move) -> bool:
        """I6: the effect of a step is there, once, if and only if its checkpoint is; of all steps, if it finished."""
        row, effects = move.world.db
        if row is None:
            return max(effects) > 1 or (_finished(before.db.row, move) and 0 in effects)
        there = (1,) * row.context + (0,) * (len(effects) - row.context)
        return effects != there or (row.stage is Stage.FINISHED and 0 in effects)

    def ended_task_changes(self, before: World, move: Move) -> bool:
        """I7: what has finished or failed changes only because a user wants it; a failover takes the end itself
        back."""
        row = before.db.row
        if row is None or row.stage not in ENDED or move.by_user or move.world.left.failovers < before.left.failovers:
            return False
        return move.world.db.row is None or move.world.db.row.status != row.status

    def task_is_forgotten(self, before: World, move: Move) -> bool:
        """I8: no run is told that it lost a task which it has, and a row whose owner has forgotten it is found."""
        row = move.world.db.row
        if move.gave_up is not None and _is_owned_under(row, move.gave_up.fence):
            return True
        return self._is_orphan(move.world) and not self._is_found(move.world)

    def status_leaves_the_table(self, before: World, move: Move) -> bool:
        """I10: a status changes as the table says, from the row's own mark, and every one can be deleted."""
        if move.world.left.failovers < before.left.failovers:
            return False
        was, now = before.db.row, move.world.db.row
        if was is None or now is None:
            return was is not now and not _may_remove(was, move)
        if Event.USER_DELETE not in TABLE[now.status]:
            return True
        allowed = was.status if move.event is None else TABLE[was.status].get(move.event)
        return now.status not in (was.status, allowed) or (move.event is not None and now.status != allowed)

    def failed_transaction_is_acknowledged(self, before: World, move: Move) -> bool:
        """I17: what a node takes for stored is stored."""
        write, row = move.stored, move.world.db.row
        if write is None:
            return False
        return write.doomed or (not write.removes if row is None else row.last != write.identity)

    def _is_orphan(self, world: World) -> bool:
        row = world.db.row
        if row is None or not row.owned:
            return False
        return world.runs[self.steps.scope.nodes.index(row.owner)].fence != row.fence

    def _is_found(self, world: World) -> bool:
        """Whether the nodes themselves get from here to where the row is not forgotten, if nothing goes wrong."""
        seen, todo = {world}, [world]
        while todo:
            for move in self.steps.of_nodes(todo.pop()):
                if not self._is_orphan(move.world):
                    return True
                if move.world not in seen:
                    seen.add(move.world)
                    todo.append(move.world)
        return False


Check = Callable[[Invariants, World, Move], bool]

INVARIANTS: dict[str, Check] = {
    "I1": Invariants.fence_is_drawn_twice,
    "I2": Invariants.stale_write_is_stored,
    "I4": Invariants.checkpoint_is_missing,
    "I5": Invariants.write_is_stored_twice,
    "I6": Invariants.effects_differ_from_checkpoint,
    "I7": Invariants.ended_task_changes,
    "I8": Invariants.task_is_forgotten,
    "I10": Invariants.status_leaves_the_table,
    "I17": Invariants.failed_transaction_is_acknowledged,
}


def _is_owned_under(row: Row | None, fence: int) -> bool:
    return row is not None and row.owned and row.fence == fence


def _finished(row: Row | None, move: Move) -> bool:
    """Whether the row goes away now since its task has finished."""
    return move.wrote is not None and row is not None and row.stage is Stage.RUNNING


def _may_remove(row: Row | None, move: Move) -> bool:
    if row is None:
        return False
    if move.by_user:
        return True
    return move.wrote is not None and (row.stage is Stage.DELETING or _asked_to_remove(row, move.wrote))


def _asked_to_remove(row: Row, write: Write) -> bool:
    """Whether the task's last report removes the row: not if a user's deletion is to run the clean-up first."""
    return write.removes and row.owned and row.mark is not Mark.DELETE
