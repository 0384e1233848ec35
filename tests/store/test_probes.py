"""The observer's look at other nodes' locks: what it must see, and what it must not take for the death of a node."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from pyasync.domain.suspicion import PATIENCE, Look, Suspicions, tick
from pyasync.settings import Settings
from pyasync.store import lockfiles, locks
from pyasync.store.database import Database, Tx
from pyasync.store.line import Line, LineLost, open_line
from pyasync.store.probes import Probe, forget, held, sweep
from tests.conftest import cannot_be_had
from tests.servers import MariaDB, PostgreSQL, PrivateServer, Unavailable
from tests.store.holder import LEASE, Holder
from tests.waiting import until

DEADLINE = 5.0
SERVERS = pytest.mark.databases("postgresql", "mariadb", "mysql")
NEVER_HELD = {"postgresql": "123", "mysql": f"pyasync:{'0' * 32}", "sqlite": "0" * 32}
NODE = UUID(int=1)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    yield from _opened(url)


@pytest.fixture
def line(database: Database) -> Iterator[Line]:
    line = open_line(database, fast=True, deadline=DEADLINE)
    yield line
    line.close()


@pytest.fixture
def probe(database: Database) -> Iterator[Probe]:
    probe = Probe(database, deadline=DEADLINE)
    yield probe
    probe.close()


def _opened(url: str, **settings: Any) -> Iterator[Database]:
    database = Database(url, Settings(**{"lease": LEASE} | settings))
    yield database
    database.close()


def _key(line: Line) -> str:
    assert line.key is not None
    return line.key


def _end_others(database: Database) -> None:
    """End every session with this database but the one that does it."""
    ends = {
        "postgresql": "select pg_terminate_backend(pid) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid()",
        "mysql": "select concat('kill ', id) from information_schema.processlist "
        "where db = database() and id <> connection_id()",
    }

    def end(tx: Tx) -> None:
        for (answer,) in tx.execute(text(ends[tx.dialect.name])).all():
            if isinstance(answer, str):
                tx.execute(text(answer))

    database.once(end)


# --- what is seen


def test_held_free_and_unknown_locks_are_told_apart(url: str, database: Database, probe: Probe) -> None:
    never = NEVER_HELD[database.dialect.name]
    with Holder(url) as one, Holder(url) as other:
        other.kill()
        until(lambda: probe.probe([other.key])[other.key] is False, what="the killed one's lock to be free")

        seen = probe.probe([one.key, other.key, never])

    # A row of SQLite's without its file has not lost its lock: somebody has removed the file.
    assert seen == {one.key: True, other.key: False, never: None if database.dialect.name == "sqlite" else False}
    assert probe.session == 0


def test_nothing_asked_is_nothing_answered(database: Database, probe: Probe) -> None:
    assert probe.probe([]) == {}
    assert database.once(held, []) == {}


@pytest.mark.databases("postgresql", "sqlite")
@pytest.mark.parametrize("key", ["", "nonsense", "99999999999", "2147483648", "../test.db", "a" * 300])
def test_key_that_can_be_none_of_ours_is_unknown(probe: Probe, key: str) -> None:
    assert probe.probe([key]) == {key: None}


def test_many_locks_are_looked_at_together(database: Database, probe: Probe) -> None:
    lines = [open_line(database, fast=True, deadline=DEADLINE) for _ in range(5)]
    keys = [_key(line) for line in lines]

    assert probe.probe(keys) == dict.fromkeys(keys, True)

    for line in lines:
        line.close()
    until(lambda: True not in probe.probe(keys).values(), what="the locks to be free")


def test_observers_do_not_take_each_other_for_the_holder(url: str, database: Database) -> None:
    with Holder(url) as holder, Holder(url) as other:
        holder.kill()
        until(lambda: database.once(held, [holder.key])[holder.key] is False, what="the lock to be free")
        probes = [Probe(database, deadline=DEADLINE) for _ in range(2)]
        seen: set[bool | None] = set()

        def look(probe: Probe) -> None:
            seen.update(probe.probe([holder.key])[holder.key] for _ in range(200))

        threads = [threading.Thread(target=look, args=(probe,)) for probe in probes]
        for thread in threads:
            thread.start()
        asked = [other.do(f"held {holder.key}") for _ in range(50)]
        for thread in threads:
            thread.join()

        assert seen == {False}
        assert set(asked) == {"False"}
        for probe in probes:
            probe.close()


def test_lock_of_a_node_in_the_same_process_is_answered_without_losing_it(sqlite_url: str) -> None:
    with Holder(sqlite_url) as other:
        for database in _opened(sqlite_url):
            line = open_line(database, fast=True, deadline=DEADLINE)
            key = _key(line)

            assert database.once(held, [key]) == {key: True}

            assert other.do(f"held {key}") == "True"
            line.close()
            assert other.do(f"held {key}") == "None"


def test_folder_is_the_same_by_whichever_path_the_database_was_opened(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for database in _opened(f"sqlite:///{tmp_path}/real/test.db"):
        for other in _opened(f"sqlite:///{tmp_path}/link/test.db"):
            line = open_line(database, fast=True, deadline=DEADLINE)

            assert (
                other.once(locks.folder_of) == database.once(locks.folder_of) == Path(f"{tmp_path}/real/test.db-nodes")
            )

            line.close()


# --- what proves nothing


@SERVERS
def test_broken_connection_changes_the_session_and_answers_nothing(
    database: Database, line: Line, probe: Probe, caplog: pytest.LogCaptureFixture
) -> None:
    key = _key(line)
    assert probe.probe([key]) == {key: True}

    _end_others(database)
    with caplog.at_level(logging.WARNING):
        seen = probe.probe([key])

    assert seen == {key: None}
    assert probe.session == 1
    assert len(caplog.records) == 1
    until(lambda: probe.probe([key]) == {key: False}, what="the lock that went with the sessions to be free")
    assert probe.session == 1


@SERVERS
def test_lost_connections_of_all_nodes_are_no_reason_for_suspicion(
    database: Database, line: Line, probe: Probe
) -> None:
    suspicions, key = Suspicions(), _key(line)
    _observe(suspicions, probe, key)

    _end_others(database)

    until_ = time.monotonic() + PATIENCE + 0.5
    while time.monotonic() < until_:
        assert _observe(suspicions, probe, key) == []
        time.sleep(0.1)
    assert suspicions.next_probe(time.monotonic()) is None


@SERVERS
def test_answer_of_a_session_that_we_were_not_introduced_to_is_unknown(
    line: Line, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Greeting:
        backend_pid = 1

        @property
        def pgconn(self) -> Greeting:
            return self

        def thread_id(self) -> int:
            return self.backend_pid

    monkeypatch.setattr(locks, "_driver", lambda tx: Greeting())

    assert probe.probe([_key(line)]) == {_key(line): None}


@SERVERS
def test_probe_through_a_pooler_sees_nothing(url: str, line: Line) -> None:
    for database in _opened(url, pooled=True):
        assert Probe(database, deadline=DEADLINE).probe([_key(line)]) == {_key(line): None}


@SERVERS
def test_database_that_cannot_be_reached_is_unknown(url: str, database: Database, line: Line) -> None:
    gone = Database(database.url.set(port=1), Settings())
    probe = Probe(gone, deadline=DEADLINE)

    assert probe.probe([_key(line)]) == {_key(line): None}
    assert probe.probe([_key(line)]) == {_key(line): None}

    gone.close()


def test_file_that_cannot_be_read_is_unknown(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Holder(sqlite_url) as holder:
        for database in _opened(sqlite_url):
            folder = database.once(locks.folder_of)
            (folder / ("0" * 32)).symlink_to("0" * 32)

            assert lockfiles.held(folder, "0" * 32) is None

            monkeypatch.setattr(lockfiles, "AVAILABLE", False)
            assert lockfiles.held(folder, holder.key) is None


@pytest.mark.parametrize("make", [PostgreSQL, MariaDB])
def test_restart_of_the_database_is_no_reason_for_suspicion(make: type[PrivateServer]) -> None:
    try:
        server = make()
    except Unavailable as reason:
        cannot_be_had(str(reason))
    with server:
        for database in _opened(server.url(server.create())):
            line, probe, suspicions = (
                open_line(database, fast=True, deadline=DEADLINE),
                Probe(database, deadline=5),
                Suspicions(),
            )
            key = _key(line)
            _observe(suspicions, probe, key)
            session = probe.session

            server.stop()
            with pytest.raises(LineLost):
                line.wait(DEADLINE)
            server.start()

            assert not any(_observe(suspicions, probe, key) for _ in range(3))
            assert probe.session != session
            assert probe.probe([key]) == {key: False}
            assert suspicions.next_probe(time.monotonic()) is None
            line.close()
            probe.close()


# --- both together


def _observe(suspicions: Suspicions, probe: Probe, key: str, counter: int = 1) -> list[UUID]:
    asked = time.monotonic()
    seen = probe.probe([key])
    return suspicions.observe(Look(asked, time.monotonic(), probe.session, {NODE: (counter, key)}, seen))


def test_killed_process_is_declared_lost_after_the_patience_and_a_tick(url: str, probe: Probe) -> None:
    with Holder(url) as holder:
        suspicions = Suspicions()
        assert _observe(suspicions, probe, holder.key) == []

        holder.kill()
        killed = time.monotonic()
        while not (lost := _observe(suspicions, probe, holder.key)):
            next_probe = suspicions.next_probe(time.monotonic())
            time.sleep(tick(1) if next_probe is None else min(tick(1), next_probe))

        assert lost == [NODE]
        assert PATIENCE <= time.monotonic() - killed < 2 * PATIENCE


@SERVERS
def test_node_whose_session_breaks_has_time_to_come_back(database: Database, probe: Probe) -> None:
    suspicions, counter = Suspicions(), 1
    line = open_line(database, fast=True, deadline=DEADLINE)
    _observe(suspicions, probe, _key(line), counter)

    for _ in range(3):
        end = "select pg_terminate_backend(pg_backend_pid())" if database.dialect.notifies else "kill connection_id()"
        with pytest.raises(Exception, match=r".+"):
            line.run(lambda tx, end=end: tx.execute(text(end)))
        was = _key(line)
        assert _observe(suspicions, probe, was, counter) == []
        line.close()
        line, counter = open_line(database, fast=True, deadline=DEADLINE), counter + 1
        assert _observe(suspicions, probe, _key(line), counter) == []
        assert _key(line) != was
        assert suspicions.next_probe(time.monotonic()) is None
    line.close()


# --- what is left


def test_lost_nodes_lock_leaves_nothing_behind(url: str, database: Database) -> None:
    with Holder(url) as holder:
        holder.kill()

        database.once(forget, holder.key)
        database.once(forget, holder.key)

        if database.dialect.name == "sqlite":
            assert list(database.once(locks.folder_of).iterdir()) == []


def test_forget_and_sweep_touch_nothing_but_lock_files(sqlite_url: str, tmp_path: Path) -> None:
    for database in _opened(sqlite_url):
        line = open_line(database, fast=True, deadline=DEADLINE)
        folder = database.once(locks.folder_of)
        (folder / "notes.txt").touch()
        os.utime(folder / "notes.txt", (0, 0))

        database.once(forget, "../test.db")
        assert database.once(sweep, [], 0.0) == 0

        assert (tmp_path / "test.db").exists()
        assert {path.name for path in folder.iterdir()} == {"notes.txt", line.key}
        line.close()


def test_sweep_removes_old_files_that_nobody_holds_and_no_row_names(sqlite_url: str) -> None:
    orphan, named, young = "0" * 32, "1" * 32, "2" * 32
    with Holder(sqlite_url) as other:
        for database in _opened(sqlite_url):
            line = open_line(database, fast=True, deadline=DEADLINE)
            folder = database.once(locks.folder_of)
            for key in (orphan, named, young):
                (folder / key).touch()
            for key in (orphan, named, other.key, _key(line)):
                os.utime(folder / key, (0, 0))

            assert database.once(sweep, [named], 15.0) == 1

            assert {path.name for path in folder.iterdir()} == {named, young, other.key, line.key}
            assert other.do(f"held {line.key}") == "True"
            line.close()


@SERVERS
def test_servers_sweep_their_locks_themselves(database: Database) -> None:
    assert database.once(sweep, [], 0.0) == 0
