"""Takes over the tasks of nodes that are lost, and removes rows that were kept long enough. Nobody leads: every node
sweeps.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from uuid import UUID

from pyasync.domain.lease import Observation
from pyasync.domain.suspicion import Look, Suspicions, tick, watched
from pyasync.ids import new_fence
from pyasync.runtime.service import Service
from pyasync.settings import Settings
from pyasync.store import claims, nodes, probes
from pyasync.store.database import Database
from pyasync.store.nodes import Peer
from pyasync.store.probes import Probe

log = logging.getLogger("pyasync.runtime")


class Sweeper(Service):
    """Judges the other nodes by its own monotonic clock, declares them lost by compare-and-set, and takes over.

    `beating` says whether this node's own beats are stored, `on_released` is called when tasks became claimable.
    """

    name = "sweeper"

    def __init__(
        self,
        *,
        database: Database,
        settings: Settings,
        node_id: Callable[[], UUID],
        session_key: Callable[[], str | None],
        beating: Callable[[], bool],
        on_released: Callable[[], None],
    ) -> None:
        super().__init__()
        self._session_key = session_key
        self._beating = beating
        self._probe = Probe(database, deadline=max(1.0, settings.lease / 3))
        self._suspicions = Suspicions()
        self._watched: list[UUID] = []
        self._database = database
        self._interval = settings.lease
        self._node_id = node_id
        self._on_released = on_released
        self._lock = threading.Lock()
        self._observations: dict[UUID, Observation] = {}
        self._peers: dict[UUID, Peer] = {}
        self._lost: list[tuple[UUID, str]] = []
        self._strays: list[tuple[UUID, UUID]] = []
        self._spent: list[UUID] = []
        self._watching = False
        self._next_sweep = 0.0

    def observe(self, peers: Sequence[Peer], lost: Sequence[tuple[UUID, str]]) -> None:
        """Take what the keeper read with a beat: whether there are others to watch, and nodes that are lost already."""
        with self._lock:
            newcomers = bool(peers) and not self._watching
            self._watching = bool(peers)
            self._lost = list(lost)
        if newcomers or lost:
            self.wake()

    def release(self, strays: Sequence[tuple[UUID, UUID]]) -> None:
        """Let go of tasks (id, fence) that the database says this node runs, but of which it knows nothing."""
        with self._lock:
            self._strays = list(strays)
        self.wake()

    def let_go_of(self, node_id: UUID) -> None:
        """Let go of what this node has claimed under an id that had been declared lost, without its knowing."""
        with self._lock:
            self._spent.append(node_id)
        self.wake()

    def tick(self) -> float:
        """Judge, declare, take over, and from time to time look for orphans and for rows to purge."""
        self._release_strays()
        if self._watching:
            self._judge()
        for node_id, name in self._lost:
            self.take_over(node_id, name)
        self._lost = []
        while self._spent:
            self.take_over(self._spent[-1], "this node, as it was")
            self._spent.pop()
        if time.monotonic() >= self._next_sweep:
            self._sweep()
        return self._next_tick()

    def _next_tick(self) -> float:
        sweep = max(0.05, self._next_sweep - time.monotonic())
        if not self._watching:
            return sweep
        shortest = min((peer.lease for peer in self._peers.values()), default=self._interval)
        suspicion = self._suspicions.next_probe(time.monotonic())
        if suspicion is not None:
            return min(sweep, suspicion)
        return min(sweep, tick(len(self._watched)), shortest / 4) * random.uniform(0.9, 1.0)

    def _release_strays(self) -> None:
        strays, self._strays = self._strays, []
        if strays:
            released = self._database.once(claims.release, self._node_id(), strays, new_fence())
            log.warning("tasks that nobody ran were let go of", extra={"tasks": len(released)})
            self._on_released()

    def _judge(self) -> None:
        """Read the others' counters and locks, and declare those lost that are."""
        if not self._beating():
            self._forget()
            return
        asked = time.monotonic()
        self._peers = {peer.id: peer for peer in self._database.single(nodes.peers, self._node_id())}
        for peer in self._out_of_lease(asked):
            self._declare(peer, "its lease ran out")
        for peer in self._out_of_sight(asked):
            self._declare(peer, "its connection ended")

    def _forget(self) -> None:
        """Begin anew: while the database takes no writes (a standby, a full disk), all are silent who live."""
        self._observations, self._suspicions = {}, Suspicions()
        self._probe.close()

    def _out_of_lease(self, now: float) -> list[Peer]:
        """Return the nodes whose counter stood still for their own lease, under our eyes."""
        before, self._observations = self._observations, {}
        for peer in self._peers.values():
            seen = before.get(peer.id, Observation(peer.counter, now, now, 0))
            self._observations[peer.id] = seen.observe(peer.counter, now, peer.lease)
        return [peer for peer in self._peers.values() if self._observations[peer.id].lost(peer.lease)]

    def _out_of_sight(self, asked: float) -> list[Peer]:
        """Return the nodes whose session's lock has been free for long enough, after we saw it held."""
        rows = {peer.id: (peer.counter, peer.session_key) for peer in self._peers.values()}
        self._watched = watched(self._session_key(), rows)
        keys = [key for node_id in self._watched if (key := rows[node_id][1]) is not None]
        held = self._probe.probe(keys) if keys else {}
        seen = {node_id: rows[node_id] for node_id in self._watched}
        look = Look(asked, time.monotonic(), self._probe.session, seen, held)
        return [self._peers[node_id] for node_id in self._suspicions.observe(look)]

    def _declare(self, peer: Peer, reason: str) -> None:
        """Declare a node lost, if it is still as it was read."""
        if not self._database.once(nodes.declare_lost, peer):
            return
        log.warning(
            "a node was declared lost", extra={"lost_node": peer.name, "node_id": str(peer.id), "reason": reason}
        )
        if peer.session_key is not None:
            self._database.single(probes.forget, peer.session_key)
        self._lost.append((peer.id, peer.name))

    def take_over(self, node_id: UUID, name: str) -> int:
        """Take over all tasks of a lost node, and remove its row; return how many."""
        taken = 0
        while released := self._database.once(claims.take_over, node_id, name, new_fence()):
            taken += len(released)
            self._on_released()
        self._database.once(nodes.remove_lost, node_id)
        if taken:
            log.warning("tasks were taken over", extra={"node_id": str(node_id), "lost_node": name, "tasks": taken})
        return taken

    def _sweep(self) -> None:
        for node_id in self._database.single(nodes.orphaned):
            self.take_over(node_id, str(node_id))
        while self._database.once(claims.purge) >= claims.REMOVAL_BATCH:
            pass
        keys = {peer.session_key for peer in self._peers.values()} | {self._session_key()}
        self._database.single(probes.sweep, {key for key in keys if key is not None}, self._interval * 4)
        self._next_sweep = time.monotonic() + self._interval * random.uniform(0.9, 1.1)

    def _loop(self) -> None:
        """Close the observer's connection at the thread's own end, however late that is."""
        try:
            super()._loop()
        finally:
            self._probe.close()
