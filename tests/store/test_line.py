"""The keeper's line: its lock lives exactly as long as it, its end is noticed at once, and hints arrive by it."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from pyasync.settings import Settings
from pyasync.store import inotify, lockfiles, locks
from pyasync.store.database import Database, Tx
from pyasync.store.hints import MARK, NAME_LIMIT, RUN, channel, notify
from pyasync.store.line import LOOKS_LAST, Line, LineLost, _SQLiteLine, open_line
from pyasync.store.probes import held
from tests.store.holder import LEASE, Holder
from tests.waiting import until

DEADLINE = 5.0
SOON = 0.5  # a wake-up takes a few milliseconds, on a machine with nothing else to do
AT_ONCE = 1.0  # for the end of a session
LONG = 20.0
SERVERS = pytest.mark.databases("postgresql", "mariadb", "mysql")


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    yield from _opened(url)


@pytest.fixture
def line(database: Database) -> Iterator[Line]:
    line = open_line(database, fast=True, deadline=DEADLINE)
    yield line
    line.close()


def _opened(url: str, **settings: Any) -> Iterator[Database]:
    database = Database(url, Settings(**{"lease": LEASE} | settings))
    yield database
    database.close()


def _held(database: Database, key: str | None) -> bool | None:
    assert key is not None
    return database.once(held, [key])[key]


def _write(tx: Tx) -> None:
    tx.execute(text("create table if not exists written (x integer)"))
    tx.execute(text("insert into written values (1)"))


def _after(delay: float, deed: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(delay, deed)
    timer.start()
    return timer


def _session(tx: Tx) -> int:
    name = "pg_backend_pid" if tx.dialect.notifies else "connection_id"
    return int(tx.execute(text(f"select {name}()")).scalar_one())


def _end(database: Database, session: int) -> None:
    """End another session of the same user."""
    end = "select pg_terminate_backend({})" if database.dialect.notifies else "kill {}"
    database.once(lambda tx: tx.execute(text(end.format(session))))


# --- the lock


def test_lock_is_held_while_the_line_is_open_and_free_after(database: Database) -> None:
    line = open_line(database, fast=True, deadline=DEADLINE)
    key = line.key

    assert _held(database, key) is True
    assert line.verify() == key

    line.close()

    assert line.key is None
    until(lambda: _held(database, key) is not True, AT_ONCE, "the lock to be free")


def test_lock_is_free_as_soon_as_the_holding_process_is_killed(url: str, database: Database) -> None:
    with Holder(url) as holder:
        assert _held(database, holder.key) is True

        holder.kill()

        until(lambda: _held(database, holder.key) is False, AT_ONCE, "the lock to be free")


def test_every_line_has_a_lock_of_a_new_name(database: Database, line: Line) -> None:
    other = open_line(database, fast=True, deadline=DEADLINE)
    other.close()

    assert other.key is None
    assert _held(database, line.key) is True


def test_line_without_fast_detection_holds_no_lock(database: Database) -> None:
    line = open_line(database, fast=False, deadline=DEADLINE)

    assert line.key is None
    assert line.verify() is None

    line.close()


@pytest.mark.databases("mariadb", "mysql")
def test_lock_that_the_session_has_let_go_of_is_no_longer_published(line: Line) -> None:
    line.run(lambda tx: tx.execute(text("do release_lock(:key)"), {"key": line.key}))

    assert line.verify() is None
    assert line.key is None


@SERVERS
def test_session_behind_a_pooler_of_its_own_mind_takes_no_lock(
    database: Database, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Greeting:
        """What a pooler tells of a session: its own numbers."""

        backend_pid = 1

        @property
        def pgconn(self) -> Greeting:
            return self

        def thread_id(self) -> int:
            return self.backend_pid

    monkeypatch.setattr(locks, "_driver", lambda tx: Greeting())

    assert line.verify() is None
    assert open_line_and_close(database) is None


def open_line_and_close(database: Database) -> str | None:
    line = open_line(database, fast=True, deadline=DEADLINE)
    key = line.key
    line.close()
    return key


def test_lock_file_that_was_removed_is_replaced(sqlite_url: str) -> None:
    for database in _opened(sqlite_url):
        line = open_line(database, fast=True, deadline=DEADLINE)
        folder, was = Path(f"{database.url.database}-nodes"), line.key
        (folder / str(was)).unlink()

        now = line.verify()

        assert now != was
        assert [path.name for path in folder.iterdir()] == [now]
        line.close()
        assert list(folder.iterdir()) == []


def test_lock_that_this_process_dropped_by_closing_the_file_is_taken_again(sqlite_url: str) -> None:
    with Holder(sqlite_url) as other:
        for database in _opened(sqlite_url):
            line = open_line(database, fast=True, deadline=DEADLINE)
            path = Path(f"{database.url.database}-nodes", str(line.key))
            path.read_bytes()
            assert line.verify() == path.name

            assert other.do(f"held {path.name}") == "True"
            line.close()


def test_folder_that_cannot_be_made_turns_fast_detection_off(sqlite_url: str) -> None:
    for database in _opened(sqlite_url):
        Path(f"{database.url.database}-nodes").touch()
        line = open_line(database, fast=True, deadline=DEADLINE)

        assert line.key is None
        assert line.run(_one) == 1

        line.close()


def test_system_without_file_locks_turns_fast_detection_off(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockfiles, "AVAILABLE", False)
    for database in _opened(sqlite_url):
        line = open_line(database, fast=True, deadline=DEADLINE)

        assert line.key is None

        line.close()


# --- the session


def _one(tx: Tx) -> int:
    return int(tx.execute(text("select 1")).scalar_one())


@SERVERS
def test_terminated_session_is_noticed_within_a_second(database: Database, line: Line) -> None:
    session = line.run(_session)
    ended = _after(0.2, lambda: _end(database, session))

    began = time.monotonic()
    with pytest.raises(LineLost):
        line.wait(LONG)

    assert time.monotonic() - began < AT_ONCE
    ended.join()
    with pytest.raises(LineLost):
        line.run(_one)


@SERVERS
def test_session_that_breaks_under_a_statement_is_never_replaced_in_silence(database: Database, line: Line) -> None:
    _end(database, line.run(_session))

    with pytest.raises(DBAPIError):
        until(lambda: line.run(_one) == 0, AT_ONCE, "the session to be gone")

    assert line.closed
    with pytest.raises(LineLost):
        line.run(_one)
    with pytest.raises(LineLost):
        line.wait(0)


def test_statement_that_fails_leaves_the_line_as_it_was(database: Database, line: Line) -> None:
    with pytest.raises(DBAPIError):
        line.run(lambda tx: tx.execute(text("select nothing from nowhere")))

    assert not line.closed
    assert line.run(_one) == 1
    assert line.verify() == line.key is not None


def test_statements_are_committed(database: Database, line: Line) -> None:
    line.run(lambda tx: tx.execute(text("create table kept (x integer)")))
    line.run(lambda tx: tx.execute(text("insert into kept values (7)")))

    assert database.once(lambda tx: tx.execute(text("select x from kept")).scalar_one()) == 7


def test_drained_pool_holds_nobody_back(database: Database) -> None:
    connections = [database.engine.connect() for _ in range(database.connections + 1)]

    began = time.monotonic()
    line = open_line(database, fast=True, deadline=DEADLINE)

    assert line.run(_one) == 1
    assert time.monotonic() - began < AT_ONCE
    line.close()
    for connection in connections:
        connection.close()


@pytest.mark.databases("postgresql")
def test_server_is_told_to_look_after_the_session(line: Line) -> None:
    names = ["tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout"]

    shown = [line.run(lambda tx, name=name: tx.execute(text(f"show {name}")).scalar_one()) for name in names]

    assert shown == ["1", "1", "3", "4000"]


@pytest.mark.databases("mariadb", "mysql")
def test_server_ends_a_session_that_is_silent_for_a_lease(url: str) -> None:
    for database in _opened(url, lease=7.5):
        line = open_line(database, fast=True, deadline=DEADLINE)

        assert line.run(lambda tx: tx.execute(text("select @@session.wait_timeout")).scalar_one()) == 8

        line.close()


@SERVERS
def test_our_side_looks_after_the_session_too(line: Line) -> None:
    fileno = line._link.fileno()
    assert fileno is not None
    link = socket.socket(fileno=os.dup(fileno))

    with link:
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 2


@SERVERS
def test_server_that_does_not_answer_costs_a_deadline_and_no_more(url: str) -> None:
    with _Tunnel(url) as tunnel:
        for database in _opened(tunnel.url):
            line = open_line(database, fast=True, deadline=1.0)
            hung = open_line(database, fast=True, deadline=1.0)
            tunnel.swallow()

            began = time.monotonic()
            with pytest.raises(DBAPIError):
                line.run(_one)
            assert time.monotonic() - began < 4.0

            began = time.monotonic()
            hung.close()
            line.close()
            assert time.monotonic() - began < AT_ONCE


class _Tunnel:
    """A way to a server that can turn into a black hole."""

    def __init__(self, url: str) -> None:
        there = make_url(url)
        self._there = (there.host, there.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._swallows = False
        self.url = there.set(port=self._listener.getsockname()[1]).render_as_string(hide_password=False)
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> _Tunnel:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._ends:
            end.close()

    def swallow(self) -> None:
        self._swallows = True

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._there)
            self._ends += [near, far]
            for here, there in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(here, there), daemon=True).start()

    def _forward(self, here: socket.socket, there: socket.socket) -> None:
        try:
            while data := here.recv(65536):
                if not self._swallows:
                    there.sendall(data)
            there.shutdown(socket.SHUT_WR)
        except OSError:
            pass


# --- waiting


def test_wait_ends_with_the_time(line: Line) -> None:
    began = time.monotonic()

    hints = line.wait(0.05)

    assert hints == frozenset()
    assert 0.05 <= time.monotonic() - began < AT_ONCE


def test_interrupt_from_another_thread_ends_a_wait(line: Line) -> None:
    interrupted = _after(0.1, line.interrupt)

    began = time.monotonic()
    hints = line.wait(LONG)

    assert hints == frozenset()
    assert time.monotonic() - began < AT_ONCE
    interrupted.join()


def test_interrupt_before_a_wait_is_not_lost_and_counts_once(line: Line) -> None:
    line.interrupt()
    line.interrupt()

    began = time.monotonic()
    line.wait(LONG)
    assert time.monotonic() - began < AT_ONCE

    began = time.monotonic()
    line.wait(0.05)
    assert time.monotonic() - began >= 0.05


def test_interrupt_of_a_closed_line_is_harmless(database: Database) -> None:
    line = open_line(database, fast=True, deadline=DEADLINE)
    line.close()
    line.close()

    line.interrupt()

    with pytest.raises(LineLost):
        line.wait(0)


@pytest.mark.databases("postgresql")
def test_notification_wakes_up_at_once(database: Database, line: Line) -> None:
    database.once(_one)  # not the time to connect
    sent: list[float] = []

    def send() -> None:
        sent.append(time.monotonic())
        database.single(notify, RUN)

    sender = _after(0.1, send)
    hints = line.wait(LONG)

    assert hints == {RUN}
    assert time.monotonic() - sent[0] < SOON
    sender.join()


@pytest.mark.databases("postgresql")
def test_notifications_during_a_statement_are_kept_for_the_next_wait(database: Database, line: Line) -> None:
    def meanwhile(tx: Tx) -> None:
        database.single(notify, RUN)
        database.single(notify, MARK)
        tx.execute(text("select pg_sleep(0.05)"))

    line.run(meanwhile)

    assert line.wait(LONG) == {RUN, MARK}
    assert line.wait(0) == frozenset()


@pytest.mark.databases("postgresql")
@pytest.mark.parametrize("schema", ["Mixed", "a" * 63, None])
def test_system_in_a_schema_hears_its_own_notifications_only(url: str, schema: str | None) -> None:
    for database in _opened(url, schema=schema):
        for other in _opened(url, schema="other"):
            line = open_line(database, fast=False, deadline=DEADLINE)
            other.single(notify, MARK)
            database.single(notify, RUN)

            assert line.wait(LONG) == {RUN}

            line.close()


def test_channels_differ_and_fit() -> None:
    names = [channel(schema) for schema in (None, "a", "A", "a" * 63, "a" * 62 + "b")]

    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= NAME_LIMIT
    assert names[0] == "pyasync"
    assert names[1] == "pyasync_a"


def test_notify_does_nothing_where_the_database_cannot(database: Database) -> None:
    database.single(notify, RUN)


def test_write_of_another_process_wakes_up(sqlite_url: str) -> None:
    with Holder(sqlite_url) as other:
        for database in _opened(sqlite_url):
            line = open_line(database, fast=True, deadline=DEADLINE)
            line.wait(0)
            written = _after(0.1, lambda: other.do("write"))

            assert line.wait(LONG) == {RUN, MARK}

            written.join()
            line.close()


def test_write_between_two_waits_is_not_missed(sqlite_url: str) -> None:
    for database in _opened(sqlite_url):
        line = open_line(database, fast=True, deadline=DEADLINE)
        database.once(lambda tx: tx.execute(text("create table t (x integer)")))

        assert line.wait(LONG) == {RUN, MARK}

        line.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of writing")
def test_line_looks_at_a_file_only_while_somebody_writes(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    look = _SQLiteLine._current
    monkeypatch.setattr(_SQLiteLine, "_current", lambda line: looks.append(time.monotonic()) or look(line))
    database = Database(sqlite_url, Settings(lease=LEASE))
    line = open_line(database, fast=True, deadline=DEADLINE)
    database.once(_write)
    while line.wait(2 * LOOKS_LAST):
        pass
    looks.clear()

    assert line.wait(1.0) == frozenset()
    assert looks == [], "nobody has written"

    timer = _after(0.2, lambda: database.once(_write))
    assert line.wait(LONG)
    assert 0 < len(looks) < 50
    timer.join()
    line.close()
    database.close()


def test_line_looks_again_and_again_where_the_system_does_not_tell_of_writing(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inotify.sys, "platform", "other")
    database = Database(sqlite_url, Settings(lease=LEASE))
    line = open_line(database, fast=True, deadline=DEADLINE)

    timer = _after(0.2, lambda: database.once(_write))

    assert line.wait(LONG)
    timer.join()
    line.close()
    database.close()


def test_own_write_does_not_wake_up(sqlite_url: str) -> None:
    for database in _opened(sqlite_url):
        line = open_line(database, fast=True, deadline=DEADLINE)
        line.run(lambda tx: tx.execute(text("create table t (x integer)")))

        assert line.wait(0.05) == frozenset()

        line.close()


# --- poolers


@SERVERS
def test_line_through_a_pooler_has_no_session_to_rely_on(url: str) -> None:
    for database in _opened(url, pooled=True):
        line = open_line(database, fast=True, deadline=DEADLINE)

        assert line.key is None
        assert line.verify() is None
        assert line.run(_one) == 1
        database.single(notify, RUN)
        assert line.wait(0.1) == frozenset()
        interrupted = _after(0.1, line.interrupt)
        began = time.monotonic()
        line.wait(LONG)
        assert time.monotonic() - began < AT_ONCE

        interrupted.join()
        line.close()


# --- forks


def test_forked_child_does_not_disturb_its_parents_line(url: str, database: Database) -> None:
    with Holder(url) as holder:
        said = [holder.do(f"fork-{deed}") for deed in ("leave", "close", "use", "interrupt", "reopen")]

        assert said == ["left", "closed", "ForkedProcess", "interrupted", "reopened"]
        assert holder.do("wait") == "waited"
        assert holder.do("verify") == f"{holder.key} 1"
        assert _held(database, holder.key) is True


def test_lock_does_not_outlive_the_process_in_a_forked_child(sqlite_url: str) -> None:
    with Holder(sqlite_url) as holder:
        for database in _opened(sqlite_url):
            child = int(holder.do("fork-stay"))
            holder.kill()

            assert _held(database, holder.key) is False

            os.kill(child, 9)


# --- engines of the host


def test_line_beside_an_engine_of_one_connection(url: str) -> None:
    engine = create_engine(url, pool_size=1, max_overflow=0)
    for database in _opened(engine):  # type: ignore[arg-type]
        with database.engine.connect():
            line = open_line(database, fast=True, deadline=DEADLINE)
            assert line.run(_one) == 1
            line.close()
    engine.dispose()
