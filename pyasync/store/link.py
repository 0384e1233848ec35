"""A connection of our own: no pool holds it back, it never reconnects by itself, and no fork breaks it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar
from weakref import WeakSet

from sqlalchemy import Engine, event

from pyasync.errors import ForkedProcess
from pyasync.store.database import Database, Tx

P = ParamSpec("P")
R = TypeVar("R")

KEEPALIVE = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 2, "TCP_USER_TIMEOUT": 2000}
"""On our side: a black hole is noticed in about 3 s, a little before the server notices it."""


class LineLost(Exception):
    """The session has ended: open a new one."""


class Link:
    """One session with the database, used by one thread at a time.

    Raises the database's error if it cannot be had.
    """

    def __init__(self, database: Database, deadline: float) -> None:
        self.dialect = database.dialect
        self.pooled = database._bounds.pooled
        self.lease = database._bounds.lease
        self.closed = True
        self.Error: type[Exception] = database.engine.dialect.loaded_dbapi.Error
        self._schema = database.schema
        self._pid = os.getpid()
        self._connection = _engine_beside(database, deadline).connect()
        self.closed = False
        # Kept because SQLAlchemy's own attribute would reconnect in silence: a new session, without the old one's lock.
        self.driver: Any = self._connection.connection.driver_connection
        cut_in_children(self)
        _keep_alive(self.fileno())

    def run(self, fn: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `fn(tx, ...)`, each of whose statements commits by itself (on SQLite: all of them together).

        Raises the database's error, and LineLost if the session had ended before.
        """
        return self._call(True, lambda tx: fn(tx, *args, **kwargs))

    def ask(self, fn: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `fn(tx, ...)`, which changes nothing, and so waits for no writer."""
        return self._call(False, lambda tx: fn(tx, *args, **kwargs))

    def _call(self, write: bool, fn: Callable[[Tx], R]) -> R:
        self.check()
        try:
            with self._connection.begin():
                if write:
                    self.dialect.begin(self._connection, write=True)
                return fn(Tx(self._connection, self.dialect, self._schema))
        except BaseException as error:
            # Whoever interrupts an exchange leaves an answer behind that the next statement would take for its own.
            if self._connection.invalidated or not isinstance(error, Exception):
                self.close()
            else:
                self._roll_back()
            raise

    def _roll_back(self) -> None:
        """End the transaction that a COMMIT may leave open when it fails: on SQLite, it locks everybody else out."""
        with suppress(self.Error):
            self._connection.dialect.do_rollback(self._connection.connection)

    def check(self) -> None:
        """Raise LineLost if the session has ended, ForkedProcess if it is our parent's."""
        if self._pid != os.getpid():
            raise ForkedProcess
        if self.closed:
            raise LineLost("the session with the database was closed")

    def fileno(self) -> int | None:
        """Return the file descriptor of the socket; None where there is none, or no longer."""
        with suppress(self.Error):
            if hasattr(self.driver, "pgconn"):
                return int(self.driver.pgconn.socket)
            if getattr(self.driver, "_sock", None) is not None:
                return int(self.driver._sock.fileno())
        return None

    def close(self) -> None:
        """End the session, without waiting for the server."""
        if not self.closed:
            self.closed = True
            self._connection.invalidate()  # a plain close would roll back first, and so wait for a server that hangs
            self._connection.close()

    def disown(self) -> None:
        """Leave the session to the process that it belongs to."""
        self.closed = True
        with suppress(AttributeError):
            self.driver.rollback = _nothing  # which the pool calls, and complains if it fails, when this is collected


def _nothing() -> None:
    pass


def _engine_beside(database: Database, deadline: float) -> Engine:
    """Return an engine with a pool for this one connection: however drained the others are, it is not held back."""
    engine = Engine(database.engine.pool.recreate(), database.engine.dialect, database.url, hide_parameters=True)

    def prepare(driver: Any, record: object) -> None:
        bounds = database._bounds
        database.dialect.prepare(driver, deadline=deadline, idle=bounds.lease, pooled=bounds.pooled)
        _autocommit(driver)

    event.listen(engine, "connect", prepare)
    return engine


def _autocommit(driver: Any) -> None:
    if callable(getattr(driver, "autocommit", None)):  # PyMySQL
        driver.autocommit(True)
    elif hasattr(driver, "pgconn"):
        driver.autocommit = True


def _keep_alive(fileno: int | None) -> None:
    if fileno is None:
        return
    link = socket.socket(fileno=fileno)
    try:
        if link.family in (socket.AF_INET, socket.AF_INET6):
            _set(link, socket.SOL_SOCKET, "SO_KEEPALIVE", 1)
            for option, value in KEEPALIVE.items():
                _set(link, socket.IPPROTO_TCP, option, value)
    finally:
        link.detach()


def _set(link: socket.socket, level: int, option: str, value: int) -> None:
    with suppress(AttributeError, OSError):  # systems differ in the options that they have
        link.setsockopt(level, getattr(socket, option), value)


# --- forks


class HasSocket(Protocol):
    """What has a socket that a forked child must not use."""

    def fileno(self) -> int | None:
        """Return its file descriptor, None if it has none now."""


_cut: WeakSet[HasSocket] = WeakSet()
"""The sockets of this process: the hook that runs after a fork is given nothing to find them by."""


def cut_in_children(owner: HasSocket) -> None:
    """See to it that a socket leads nowhere in children that this process forks."""
    _cut.add(owner)


def _cut_all() -> None:
    """Put /dev/null over the sockets: a shutdown or a goodbye would end the parent's session, which shares them."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for owner in list(_cut):
        # Asked now, not remembered: the number of a socket that was closed may belong to another file.
        fileno = owner.fileno()
        if fileno is not None and fileno >= 0:
            os.dup2(nowhere, fileno, inheritable=False)
        if isinstance(owner, Link):
            owner.disown()
    os.close(nowhere)


def in_children(hook: Callable[[], object]) -> None:
    """Have something called in each forked child, where there are forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=hook)


in_children(_cut_all)
