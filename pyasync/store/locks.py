"""Locks that a database or the kernel drops with the session or process that holds them: signs of life, no fences."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import text

from pyasync.store import lockfiles
from pyasync.store.database import Tx
from pyasync.store.dialects import Dialect

CLASS = 0x70796173
"""Ours among PostgreSQL's two-integer advisory locks, whose keys are apart from those of the one-integer form."""

Held = dict[str, bool | None]
"""By key: whether somebody holds the lock; None where that cannot be known."""


class Locks:
    """The locks of one kind of database. A lock's name is random and never used again."""

    def take(self, tx: Tx) -> str | None:
        """Take a lock for as long as this session lives; None where others could not see that it has ended."""
        raise NotImplementedError

    def keeps(self, tx: Tx, key: str) -> bool:
        """Tell whether this session still has its lock, and whether the link is still direct."""
        raise NotImplementedError

    def held(self, tx: Tx, keys: Sequence[str]) -> Held:
        """Look at other sessions' locks."""
        raise NotImplementedError

    def release(self, key: str) -> None:
        """Let go of a lock that does not go with the session."""

    def forget(self, tx: Tx, key: str) -> None:
        """Remove what a lost node has left of its lock."""

    def sweep(self, tx: Tx, keys: Collection[str], age: float) -> int:
        """Remove what is older than `age` seconds, is not among `keys`, and is held by nobody; return how many."""
        return 0


def locks_of(dialect: Dialect) -> Locks:
    """Return the locks of a kind of database."""
    return _LOCKS[dialect.name]


class _AdvisoryLocks(Locks):
    """PostgreSQL's. They need no privilege, and a shared probe does not get into the way of other probes."""

    _PID = text("select pg_backend_pid()")
    _TAKE = text("select pg_try_advisory_lock(:class, :key)")
    _HELD = text(
        "select pg_backend_pid(), key, not pg_try_advisory_xact_lock_shared(:class, key) "
        "from unnest(cast(:keys as integer[])) key"
    )

    def take(self, tx: Tx) -> str | None:
        if not self._is_direct(tx, tx.execute(self._PID).scalar_one()):
            return None
        while True:
            key = secrets.randbits(32) - 2**31
            if tx.execute(self._TAKE, {"class": CLASS, "key": key}).scalar_one():
                return str(key)

    def keeps(self, tx: Tx, key: str) -> bool:
        # The same backend is the same session, which nobody else could tell to unlock.
        return self._is_direct(tx, tx.execute(self._PID).scalar_one())

    def held(self, tx: Tx, keys: Sequence[str]) -> Held:
        numbers = {int(key): key for key in keys if re.fullmatch(r"-?\d{1,10}", key) and -(2**31) <= int(key) < 2**31}
        rows: Sequence[Any] = tx.execute(self._HELD, {"class": CLASS, "keys": list(numbers)}).all()
        seen = {numbers[number]: held for pid, number, held in rows if self._is_direct(tx, pid)}
        return {key: seen.get(key) for key in keys}

    def _is_direct(self, tx: Tx, pid: int) -> bool:
        """Tell whether the backend that answers is the one that we were introduced to; a pooler makes up its own."""
        return bool(pid == _driver(tx).pgconn.backend_pid)


class _NamedLocks(Locks):
    """MariaDB's and MySQL's. Their names are case-insensitive, so they have one case only."""

    _TAKE = text("select get_lock(:key, 0), is_used_lock(:key), connection_id()")
    _KEEPS = text("select 1, is_used_lock(:key), connection_id()")

    def take(self, tx: Tx) -> str | None:
        key = f"pyasync:{secrets.token_hex(16)}"
        return key if self._is_ours(tx, self._TAKE, key) else None

    def keeps(self, tx: Tx, key: str) -> bool:
        return self._is_ours(tx, self._KEEPS, key)

    def held(self, tx: Tx, keys: Sequence[str]) -> Held:
        asked = "".join(f", is_used_lock(:key_{n})" for n in range(len(keys)))
        parameters = {f"key_{n}": key for n, key in enumerate(keys)}
        answer: Sequence[Any] = tx.execute(text(f"select connection_id(){asked}"), parameters).one()
        if not self._is_direct(tx, answer[0]):
            return dict.fromkeys(keys)
        return {key: holder is not None for key, holder in zip(keys, answer[1:], strict=True)}

    def _is_ours(self, tx: Tx, statement: Any, key: str) -> bool:
        answer: Sequence[Any] = tx.execute(statement, {"key": key}).one()
        got, holder, session = answer
        return got == 1 and holder == session and self._is_direct(tx, session)

    def _is_direct(self, tx: Tx, session: int) -> bool:
        """Tell whether the server's number for this session is the one in its greeting, which has room for 32 bits."""
        return bool(session & 0xFFFFFFFF == _driver(tx).thread_id())


class _FileLocks(Locks):
    """SQLite's: files in a folder beside the database."""

    def take(self, tx: Tx) -> str | None:
        return lockfiles.take(folder_of(tx))

    def keeps(self, tx: Tx, key: str) -> bool:
        return lockfiles.keeps(key)

    def held(self, tx: Tx, keys: Sequence[str]) -> Held:
        folder = folder_of(tx)
        return {key: lockfiles.held(folder, key) for key in keys}

    def release(self, key: str) -> None:
        lockfiles.release(key)

    def forget(self, tx: Tx, key: str) -> None:
        lockfiles.forget(folder_of(tx), key)

    def sweep(self, tx: Tx, keys: Collection[str], age: float) -> int:
        return lockfiles.sweep(folder_of(tx), keys, age)


def folder_of(tx: Tx) -> Path:
    """Return the folder of a SQLite database's lock files; the same one by whichever path the database was opened."""
    path = tx.connection.exec_driver_sql("pragma database_list").all()[0][2]
    return Path(f"{path}-nodes")


_LOCKS: dict[str, Locks] = {"postgresql": _AdvisoryLocks(), "mysql": _NamedLocks(), "sqlite": _FileLocks()}


def _driver(tx: Tx) -> Any:
    return tx.connection.connection.driver_connection
