"""When an observer may call a node lost before its lease has run out: because its session's lock is free."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from uuid import UUID

PATIENCE = 1.0
"""Seconds for which a lock must be seen free: time for a living node to open a new session and say so."""
LONGEST_GAP = 3.0
"""Seconds between two looks after which the patience begins anew: what paused the observer may have paused the node."""
WATCHERS = 3
"""How many nodes watch each: one of them may die at the same moment, or have its own connection broken."""
TICK, LONGEST_TICK = 0.4, 1.0
"""Seconds from one look to the next, for each watcher of a node; the longest of all."""

Peers = Mapping[UUID, tuple[int, str | None]]
"""The counter and the session's key of each node, as read from their rows."""


@dataclass(frozen=True)
class Look:
    """What an observer saw: the rows of its peers, read first, and which of their locks are held, probed then.

    `asked` and `answered` are when it began and when it had it all, by the observer's monotonic clock; `session`
    changes with the connection over which it probed. A lock that is None, or left out, could not be seen.
    """

    asked: float
    answered: float
    session: int
    peers: Peers
    held: Mapping[str, bool | None]


@dataclass(frozen=True)
class Sight:
    """What is known of one node: its lock was seen held, and, if it was seen free since, when so for the first time."""

    counter: int
    key: str
    free_since: float | None = None


class Suspicions:
    """What one observer knows of the nodes that it watches."""

    def __init__(self) -> None:
        self._sights: Mapping[UUID, Sight] = {}
        self._session = 0
        self._answered = 0.0

    def observe(self, look: Look) -> list[UUID]:
        """Return the nodes to declare lost now, each by compare-and-set on the counter and key of this look."""
        before = self._sights if look.session == self._session else {}
        paused = look.asked - self._answered > LONGEST_GAP
        sights = {node: _sight(before.get(node), look, node, paused) for node in look.peers}
        known = {node: sight for node, sight in sights.items() if sight is not None}
        lost = [node for node, sight in known.items() if _free_for(sight, look.asked) >= PATIENCE]
        # If a declaration comes to nothing, the next one waits as long.
        again = {node: replace(known[node], free_since=look.answered) for node in lost}
        self._sights, self._session, self._answered = known | again, look.session, look.answered
        return lost

    def next_probe(self, now: float) -> float | None:
        """Return in how many seconds to look again because of a suspicion; None if there is none."""
        free = [_free_for(sight, now) for sight in self._sights.values() if sight.free_since is not None]
        return max(0.0, PATIENCE - max(free)) if free else None


def _sight(was: Sight | None, look: Look, node: UUID, paused: bool) -> Sight | None:
    counter, key = look.peers[node]
    held = None if key is None else look.held.get(key)
    if key is None or held is None:
        return None
    if held:
        return Sight(counter, key)
    if was is None or was.key != key:
        return None  # free, but never seen held: after a restart of the database, that is every lock
    if was.free_since is None or was.counter != counter or paused:
        return Sight(counter, key, look.answered)
    return was


def _free_for(sight: Sight, now: float) -> float:
    return 0.0 if sight.free_since is None else now - sight.free_since


def watched(me: str | None, peers: Peers) -> list[UUID]:
    """Return the nodes that the one with key `me` watches: the next ones when all are sorted by key, as in a ring."""
    if me is None:
        return []
    ring = sorted((key, node) for node, (_, key) in peers.items() if key is not None and key != me)
    first = bisect([key for key, _ in ring], me)
    return [node for _, node in (ring[first:] + ring[:first])[:WATCHERS]]


def tick(watchers: int) -> float:
    """Return the seconds between two looks at nodes that have so many watchers each."""
    return min(LONGEST_TICK, TICK * watchers) if watchers else LONGEST_TICK
