"""Try every interleaving, the shortest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from tests.model.invariants import INVARIANTS, Invariants
from tests.model.protocol import Protocol, Scope
from tests.model.steps import Steps
from tests.model.world import World, first


@dataclass(frozen=True)
class Verdict:
    """What a search has found: all worlds there are, or the shortest way to one that must not be."""

    worlds: Collection[World]
    broken: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.broken:
            return f"nothing is broken in {len(self.worlds)} worlds"
        return f"{', '.join(self.broken)} broken after {len(self.worlds)} worlds, in {len(self.trace)} steps"


def search(rules: Protocol, scope: Scope, watched: Collection[str] = tuple(INVARIANTS)) -> Verdict:
    """Go through all worlds that can be reached, up to the first in which one of the watched invariants is broken."""
    steps = Steps(rules, scope)
    invariants = Invariants(steps)
    start = first(scope)
    came: dict[World, tuple[World, str] | None] = {start: None}
    todo = deque([start])
    while todo:
        world = todo.popleft()
        for move in steps(world):
            if broken := invariants.broken(world, move, watched):
                return Verdict(came, tuple(broken), (*_way(came, world), move.label))
            if move.world not in came:
                came[move.world] = (world, move.label)
                todo.append(move.world)
    return Verdict(came)


def _way(came: dict[World, tuple[World, str] | None], world: World) -> list[str]:
    labels = []
    while (step := came[world]) is not None:
        world, label = step
        labels.append(label)
    return labels[::-1]
