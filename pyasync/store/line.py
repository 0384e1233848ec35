"""A keeper's own session with the database: it ends when the node does, others can see that, and hints arrive by it."""

from __future__ import annotations

import math
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

from sqlalchemy import text

from pyasync.store.database import Database, Tx
from pyasync.store.hints import MARK, RUN, channel
from pyasync.store.inotify import Watch
from pyasync.store.link import HasSocket, Link, cut_in_children
from pyasync.store.link import LineLost as LineLost
from pyasync.store.locks import locks_of

P = ParamSpec("P")
R = TypeVar("R")

LIKELY = frozenset({RUN, MARK})
"""What has probably happened when a database changed that cannot tell what did; the rest is left to the next poll."""

LOOK_INTERVAL = 0.01
"""Seconds between two looks at a SQLite database that somebody writes.

Where the system cannot tell of writing they never end, and cost about 2 % of a core of a small virtual machine.
"""

FIRST_LOOK, LOOKS_LAST = 0.001, 0.2
"""Seconds after a writing begins, and for which looks go on after it was last heard of."""


def open_line(database: Database, *, fast: bool, deadline: float) -> Line:
    """Open a session of its own, each of whose statements may take `deadline` seconds.

    `fast` has it hold a lock by which others see that it has ended. Raises the database's error.
    """
    line = _LINES[database.dialect.name](Link(database, deadline))
    try:
        line.open(fast=fast)
    except BaseException:
        line.close()
        raise
    return line


class Line:
    """A session that holds a lock named `key`; None: others cannot see its end, and so must wait for the lease.

    One thread uses it; `interrupt` is for all.
    """

    key: str | None = None
    patience = math.inf
    """Seconds for which what the socket does not tell may go unnoticed."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._locks = locks_of(link.dialect)
        self._hints: set[str] = set()
        self._alarm = _Alarm(link.fileno())

    def open(self, *, fast: bool) -> None:
        """Set up the session, and take the lock; behind a pooler neither would stay."""
        if self._link.pooled:
            return
        self._link.ask(self._settle)
        if fast:
            self.key = self._link.ask(self._locks.take)

    @property
    def closed(self) -> bool:
        """Whether the session has ended; a statement that merely failed does not end it."""
        return self._link.closed

    def run(self, fn: Callable[Concatenate[Tx, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `fn(tx, ...)`, each of whose statements commits by itself (on SQLite: all of them together).

        Raises the database's error, and LineLost if the session had ended before.
        """
        return self._link.run(fn, *args, **kwargs)

    def verify(self) -> str | None:
        """Return `key` after making sure that it is still held by this session; None if it is not."""
        if self.key is not None and not self._link.ask(self._locks.keeps, self.key):
            self._release()
        return self.key

    def wait(self, timeout: float) -> frozenset[str]:
        """Sleep until hints arrive, `interrupt` is called, or the time is over; return the hints, which may be none.

        Raises LineLost as soon as the session has ended.
        """
        until = time.monotonic() + timeout
        while True:
            self._link.check()
            self._hear()
            if self._alarm.rang() or self._hints:
                break
            left = until - time.monotonic()
            if left <= 0:
                break
            self._alarm.sleep(min(left, self.patience))
        hints, self._hints = frozenset(self._hints), set()
        return hints

    def interrupt(self) -> None:
        """End the present `wait`, or else the next one."""
        self._alarm.ring()

    def close(self) -> None:
        """End the session, and with it the lock."""
        self.interrupt()
        self._link.close()
        self._release()
        self._alarm.close()

    def _release(self) -> None:
        key, self.key = self.key, None
        if key is not None:
            self._locks.release(key)

    def _settle(self, tx: Tx) -> None:
        """Set up the session."""

    def _hear(self) -> None:
        """Gather the hints that have arrived, without waiting for any."""

    def _lose(self, reason: object) -> NoReturn:
        self._link.close()
        raise LineLost(str(reason).strip())


class _PostgreSQLLine(Line):
    _SETTINGS: Mapping[str, str] = {
        "tcp_keepalives_idle": "1",
        "tcp_keepalives_interval": "1",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "4000",
        "idle_session_timeout": "0",  # a session ended for being idle would look like a dead node
    }
    _CHANGE = text(
        "select set_config(name, wanted.value, false) from pg_settings "
        "join unnest(cast(:names as text[]), cast(:values as text[])) as wanted (name, value) using (name)"
    )

    def _settle(self, tx: Tx) -> None:
        self._link.driver.add_notify_handler(lambda notification: self._hints.add(notification.payload))
        values = {"names": list(self._SETTINGS), "values": list(self._SETTINGS.values())}
        tx.execute(self._CHANGE, values).all()
        tx.connection.exec_driver_sql(f'listen "{channel(tx.schema)}"')

    def _hear(self) -> None:
        session = self._link.driver.pgconn
        try:
            session.consume_input()
            while notification := session.notifies():
                self._hints.add(notification.extra.decode())
        except self._link.Error as error:
            self._lose(error)


class _MySQLLine(Line):
    def _settle(self, tx: Tx) -> None:
        # The server's own way to notice that a node has vanished without a word.
        tx.execute(text("set session wait_timeout = :seconds"), {"seconds": math.ceil(self._link.lease)})

    def _hear(self) -> None:
        """Look for the end of the session: a server that was asked nothing says nothing else."""
        link: socket.socket | None = self._link.driver._sock
        if link is None:
            self._lose("the connection was closed")
        timeout = link.gettimeout()
        link.setblocking(False)
        try:
            said = link.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            link.settimeout(timeout)
            return
        except OSError as error:
            self._lose(error)
        self._lose("the server broke off" if said else "the server closed the connection")


class _SQLiteLine(Line):
    _version = 0
    _watch: Watch | None = None
    _look_until = math.inf
    _pause = LOOK_INTERVAL
    _looked_at = 0.0

    @property
    def patience(self) -> float:  # type: ignore[override]
        """Seconds until the next look: none is due while nobody writes, if the system tells of that."""
        return self._pause if time.monotonic() < self._look_until else math.inf

    def verify(self) -> str | None:
        """Do as others do, and take a new lock file if somebody has removed the old one."""
        had = self.key is not None
        if super().verify() is None and had:
            self.key = self._link.ask(self._locks.take)
        return self.key

    def close(self) -> None:
        """End the session, and stop watching."""
        super().close()
        if self._watch is not None:
            self._watch.close()

    def _settle(self, tx: Tx) -> None:
        self._version = self._current()
        path = tx.connection.exec_driver_sql("pragma database_list").all()[0][2]
        with suppress(OSError):  # no WAL, or another system: look again and again
            self._watch = Watch(f"{path}-wal")
            self._alarm.hear(self._watch)
            self._look_until = 0.0

    def _hear(self) -> None:
        """See whether another connection has changed the database: hints of everything that may have happened."""
        if self._watch is not None:
            time.sleep(max(0.0, self._looked_at + self._pause - time.monotonic()))  # however often somebody writes
            self._note_writing(self._watch.was_written())
            if math.isinf(self.patience):
                return
        self._looked_at = time.monotonic()
        try:
            version = self._current()
        except self._link.Error as error:
            if not self._link.dialect.is_transient(error):
                self._lose(error)
            return
        if version != self._version:
            self._hints |= LIKELY
        self._version = version

    def _note_writing(self, written: bool) -> None:
        """Look for a while from now on, at once and then less and less: what is written counts once it is synced."""
        self._pause = min(2 * self._pause, LOOK_INTERVAL)
        if written:
            if time.monotonic() >= self._look_until:
                self._pause = FIRST_LOOK
            self._look_until = time.monotonic() + LOOKS_LAST

    def _current(self) -> int:
        return int(self._link.driver.execute("pragma data_version").fetchone()[0])


_LINES: Mapping[str, type[Line]] = {"postgresql": _PostgreSQLLine, "mysql": _MySQLLine, "sqlite": _SQLiteLine}


class _Alarm:
    """What ends a sleep: any thread that rings, or the other end of a socket."""

    def __init__(self, fileno: int | None) -> None:
        self._lock = threading.Lock()
        self._rung = False
        self._bell, self._ear = socket.socketpair()
        self._selector = _selector()
        for end in (self._bell, self._ear):
            end.setblocking(False)
            cut_in_children(end)
        for each in (self._ear.fileno(), fileno):
            if each is not None:
                self._selector.register(each, selectors.EVENT_READ)

    def ring(self) -> None:
        # Not while it is closed: the byte could go to a file that got the number of the bell.
        with self._lock, suppress(OSError):
            self._rung = True
            self._bell.send(b"!")

    def hear(self, other: HasSocket) -> None:
        """Let something else end a sleep, too."""
        cut_in_children(other)
        self._selector.register(other.fileno() or 0, selectors.EVENT_READ)

    def rang(self) -> bool:
        if not self._rung:  # saves a system call a hundred times a second
            return False
        with self._lock, suppress(OSError):
            self._rung = False
            self._ear.recv(4096)
        return True

    def sleep(self, timeout: float) -> None:
        self._selector.select(timeout)

    def close(self) -> None:
        with self._lock:
            self._selector.close()
            self._bell.close()
            self._ear.close()


def _selector() -> selectors.BaseSelector:
    """Return a selector that knows file descriptors of any number, and has none itself that a fork would share."""
    kind: Any = getattr(selectors, "PollSelector", selectors.SelectSelector)
    selector: selectors.BaseSelector = kind()
    return selector
