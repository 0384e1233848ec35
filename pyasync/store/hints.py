"""Wake-ups for nodes of other processes. They are hints: whatever is lost is found by the next poll."""

from __future__ import annotations

import contextlib
import hashlib
import time

from sqlalchemy import Text, bindparam, func, select

from pyasync.store.database import Database, Tx

RUN = "run"
"""Tasks became claimable."""
DELETE = "delete"
"""Tasks are to be deleted."""
MARK = "mark"
"""Somebody wants running tasks stopped."""

WINDOW = 0.02
"""Seconds in which a second hint is left out; receivers look once more a little later, and find what it was for."""


NAME_LIMIT = 63
"""Bytes of an identifier of PostgreSQL's; it cuts off longer ones when listening, and refuses them when notifying."""


def channel(schema: str | None) -> str:
    """Return the name of the channel on which the nodes of a system notify each other."""
    name = f"pyasync_{schema}" if schema else "pyasync"
    return name if len(name) <= NAME_LIMIT else f"pyasync_{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def notify(tx: Tx, hint: str) -> None:
    """Wake up other processes' nodes, where the database can; outside a data transaction, which it would make wait."""
    if tx.dialect.notifies:
        tx.execute(_NOTIFY, {"channel": channel(tx.schema), "hint": hint})


_NOTIFY = select(func.pg_notify(bindparam("channel", type_=Text), bindparam("hint", type_=Text)))


class Sender:
    """Sends hints, at most one of a kind in a window, and outside of data transactions where these are ours."""

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
            self._database.attempt_single(notify, hint)

    def with_commit(self, tx: Tx, hint: str) -> None:
        """Send a hint when the caller's transaction commits."""
        notify(tx, hint)
