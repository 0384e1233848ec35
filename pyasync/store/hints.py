"""Wake-ups for nodes of other processes. They are hints: whatever is lost is found by the next poll."""

from __future__ import annotations

import contextlib
import time

from sqlalchemy import func, select

from pyasync.store.database import Database, Tx

RUN = "run"
"""Tasks became claimable."""
DELETE = "delete"
"""Tasks are to be deleted."""
MARK = "mark"
"""Somebody wants running tasks stopped."""

WINDOW = 0.02
"""Seconds in which a second hint is left out; receivers look once more a little later, and find what it was for."""


def channel(schema: str | None) -> str:
    """Return the name of the channel on which a system's hints are sent."""
    return "pyasync" if schema is None else f"pyasync_{schema}"


class Sender:
    """Sends hints where the database can, outside of data transactions: in them, NOTIFY makes commits wait for each
    other.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sent: dict[str, float] = {}

    def send(self, hint: str) -> None:
        """Send a hint now, unless the same was sent within the window."""
        if not self._database.dialect.notifies:
            return
        now = time.monotonic()
        if now - self._sent.get(hint, -1.0) < WINDOW:
            return
        self._sent[hint] = now
        with contextlib.suppress(Exception):  # a hint: polling finds what it was for
            self._database.attempt_single(_notify, hint)

    def with_commit(self, tx: Tx, hint: str) -> None:
        """Send a hint when the caller's transaction commits."""
        if tx.dialect.notifies:
            _notify(tx, hint)


def _notify(tx: Tx, hint: str) -> None:
    tx.execute(select(func.pg_notify(channel(tx.schema), hint)))
