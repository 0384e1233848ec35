"""An observer's look at other nodes' locks, over a connection of its own."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from sqlalchemy.exc import SQLAlchemyError

from pyasync.store.database import Database, Tx
from pyasync.store.link import LineLost, Link
from pyasync.store.locks import Held, locks_of

log = logging.getLogger(__name__)


def held(tx: Tx, keys: Sequence[str]) -> Held:
    """Tell which locks somebody holds: True, False, or None where that cannot be known.

    The transaction's session must not be the one that holds any of them.
    """
    return locks_of(tx.dialect).held(tx, keys) if keys else {}


def forget(tx: Tx, key: str) -> None:
    """Remove what a node has left of its lock, after it was declared lost."""
    locks_of(tx.dialect).forget(tx, key)


def sweep(tx: Tx, keys: Collection[str], age: float) -> int:
    """Remove what is left of locks that no row names (`keys` do) and nobody holds, if older than `age` seconds."""
    return locks_of(tx.dialect).sweep(tx, keys, age)


class Probe:
    """An observer's connection. `session` changes whenever it broke: what was seen before then proves nothing.

    Each of its statements may take `deadline` seconds.
    """

    def __init__(self, database: Database, *, deadline: float) -> None:
        self.session = 0
        self._database = database
        self._deadline = deadline
        self._link: Link | None = None
        self._failing = False

    def probe(self, keys: Sequence[str]) -> Held:
        """Tell which locks somebody holds; None for all if the database gives no answer, or not directly."""
        if not keys or self._database._bounds.pooled:
            return dict.fromkeys(keys)
        try:
            answer = self._opened().ask(held, keys)
        except (SQLAlchemyError, LineLost) as error:
            self._fail(error)
            return dict.fromkeys(keys)
        self._failing = False
        return answer

    def close(self) -> None:
        """Close the connection; the next probe opens another."""
        link, self._link = self._link, None
        if link is not None:
            self.session += 1
            link.close()

    def _opened(self) -> Link:
        if self._link is None:
            self._link = Link(self._database, self._deadline)
        return self._link

    def _fail(self, error: Exception) -> None:
        """Give the connection up after any error, even one that it might survive."""
        self.close()
        if not self._failing:
            log.warning("other nodes' locks cannot be seen: their leases decide", extra={"reason": str(error)})
        self._failing = True
