"""Keeps the node's lease: joins, beats and leaves, on a connection and in a thread of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from uuid import UUID

from pyasync.domain.lease import Lease
from pyasync.ids import new_id
from pyasync.runtime.service import Service
from pyasync.store import claims, nodes
from pyasync.store.database import Database, Tx
from pyasync.store.line import Line, LineLost, open_line
from pyasync.store.nodes import Beat, Peer

log = logging.getLogger("pyasync.runtime")

SHORTEST_PAUSE = 0.05
"""Seconds between two rounds, however long the beats take."""


@dataclass(frozen=True)
class Seen:
    """What came back with a beat."""

    owned: dict[UUID, UUID]
    """Task and fence of all that the database says this node runs."""
    peers: list[Peer]
    lost: list[tuple[UUID, str]]


def boot_clock() -> float:
    """Return seconds that also pass while the machine sleeps, where there is such a clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class Keeper(Service):
    """Raises the node's counter every third of a lease; waits in between for hints and for its connection's end.

    `tell` says what the node is like now, `on_beat` takes what came back, `on_hint` takes wake-ups, `on_lost` is called
    with the new id when this node was declared lost.
    """

    name = "keeper"

    def __init__(
        self,
        *,
        database: Database,
        lease: float,
        node_name: str,
        version: str,
        fast: bool,
        tell: Callable[[], Beat],
        on_beat: Callable[[Seen], None],
        on_hint: Callable[[str], None],
        on_lost: Callable[[UUID, UUID], None],
    ) -> None:
        super().__init__()
        self.node_id = new_id()
        # Within the patience of those who see that its session's lock is free, and of those who wait for its beat.
        self.longest_backoff = min(1.0, lease / 6)
        self._database = database
        self._lease = Lease(lease)
        self._name = node_name
        self._version = version
        self._fast = fast
        self._tell = tell
        self._on_beat = on_beat
        self._on_hint = on_hint
        self._on_lost = on_lost
        self._line: Line | None = None
        self._joined = False
        self._counter = 0
        self._trusted_until = 0.0
        self._next_beat = 0.0

    @property
    def trusted(self) -> bool:
        """Whether the node may believe that nobody has declared it lost."""
        return boot_clock() < self._trusted_until

    @property
    def session_key(self) -> str | None:
        """The name of the lock by which others see that this node's session stands; None: they cannot."""
        line = self._line
        return None if line is None else line.key

    def beat_soon(self) -> None:
        """Beat at once, to tell others of a change."""
        self._next_beat = 0.0
        self.wake()

    def wake(self) -> None:
        """Make the next round begin at once."""
        super().wake()
        line = self._line
        if line is not None:
            line.interrupt()

    def pause(self, seconds: float) -> None:
        """Wait for the next beat, for hints, or for the end of the connection."""
        line = self._line
        if line is None:
            super().pause(seconds)
            return
        try:
            for hint in line.wait(seconds):
                self._on_hint(hint)
        except LineLost:
            self._drop_line()

    def tick(self) -> float:
        """Beat if it is time; return when the next beat is."""
        now = time.monotonic()
        if self._line is None or now >= self._next_beat:
            self._beat_at(now)
        # Always some: it is in the pause that hints, and the end of the connection, are heard.
        return max(SHORTEST_PAUSE, self._next_beat - time.monotonic())

    def join(self) -> None:
        """Join the system, or raise why that cannot be."""
        self._database.patiently(lambda: self._beat_at(time.monotonic()))

    def leave(self) -> None:
        """Remove the node's row, then close the session, so that nobody waits for the lease."""
        self._trusted_until = 0.0
        try:
            self._database.run(nodes.leave, self.node_id)
        finally:
            self._drop_line()

    def _beat_at(self, now: float) -> None:
        """Beat. The next one is due from when this one was sent, as the lease is: over a slow link that matters."""
        self._next_beat = now + self._lease.beat_interval  # first: `beat_soon` may ask for another one meanwhile
        try:
            self._beat()
        except Exception:
            self._next_beat = 0.0
            raise

    def _beat(self) -> None:
        line = self._open()
        sent_at = boot_clock()
        try:
            line.verify()
            seen = line.run(self._round, line.key)
        except Exception:
            # Else the session stands, and with it the lock by which others see that we live. One that takes no beat for
            # so long may lead to a server that has become a standby; another one leads to its successor.
            if line.closed or not self.trusted:
                self._drop_line()
            raise
        self._joined = True
        if seen is None:
            self._declared_lost()
            return
        self._trusted_until = self._lease.trusted_until(sent_at)
        self._on_beat(seen)

    def _open(self) -> Line:
        if self._line is None:
            deadline = max(1.0, self._lease.duration / 3)
            self._line = open_line(self._database, fast=self._fast, deadline=deadline)
        return self._line

    def _drop_line(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _round(self, tx: Tx, key: str | None) -> Seen | None:
        self._counter += 1
        beat = replace(self._tell(), counter=self._counter, session_key=key)
        if not self._joined:
            nodes.join(tx, self.node_id, self._name, self._version, self._lease.duration, beat)
        if not nodes.beat(tx, self.node_id, beat):
            return None
        owned = {row.id: row.fence for row in claims.owned(tx, self.node_id)}
        return Seen(owned, nodes.peers(tx, self.node_id), nodes.lost(tx))

    def _declared_lost(self) -> None:
        """Join again under a new id: the old one is spent."""
        was, self.node_id = self.node_id, new_id()
        self._joined, self._counter, self._trusted_until, self._next_beat = False, 0, 0.0, 0.0
        log.warning(
            "this node was declared lost; it joins again", extra={"node_id": str(was), "now": str(self.node_id)}
        )
        self._on_lost(was, self.node_id)
        self._drop_line()
        self.wake()
