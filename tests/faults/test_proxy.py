"""The proxy itself: what it breaks, it breaks where it was told to."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from tests.faults.messages import Message, MySQLMessages, PostgreSQLMessages
from tests.faults.proxy import Link, Proxy, When
from tests.runtime.other import Other
from tests.waiting import until

pytestmark = pytest.mark.databases("postgresql", "mariadb")

STARTUP = b"\0\0\0\x09\0\3\0\0\0"


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    with Proxy(url) as proxy:
        yield proxy


@pytest.fixture
def other(url: str) -> Other:
    """Another way to the same database, with an empty table for effects."""
    other = Other(url)
    other.create_table()
    return other


@contextmanager
def connected(proxy: Proxy, **options: Any) -> Iterator[Connection]:
    engine = create_engine(proxy.url, poolclass=NullPool, **options)
    with engine.connect() as connection:
        yield connection


def store(connection: Connection, content: str) -> None:
    connection.execute(text("insert into effect values (:content)"), {"content": content})
    connection.commit()


def is_commit(link: Link, message: Message) -> bool:
    return message.text.startswith("commit: insert into effect")


@pytest.mark.parametrize(("when", "stored"), [(When.BEFORE, []), (When.AFTER, ["one"])])
def test_commit_is_done_or_not_by_when_its_connection_is_cut(
    proxy: Proxy, other: Other, when: When, stored: list[str]
) -> None:
    trap = proxy.trap(is_commit, when=when)

    with connected(proxy) as connection, pytest.raises(DBAPIError) as lost:
        store(connection, "one")

    assert (trap.fired, lost.value.connection_invalidated) == (1, True)
    assert other.contents() == stored


def test_late_commit_is_done_when_it_is_delivered(proxy: Proxy, other: Other) -> None:
    trap = proxy.trap(is_commit, when=When.LATE)
    with connected(proxy) as connection, pytest.raises(DBAPIError):
        store(connection, "one")
    before = other.contents()

    trap.deliver()

    assert (before, other.contents()) == ([], ["one"])


def test_trap_springs_at_the_message_and_as_often_as_it_was_told(proxy: Proxy, other: Other) -> None:
    trap = proxy.trap(is_commit, occurrence=2, times=2)
    outcomes = []

    for content in ("one", "two", "three", "four"):
        try:
            with connected(proxy) as connection:
                store(connection, content)
            outcomes.append("stored")
        except DBAPIError:
            outcomes.append("lost")

    assert outcomes == ["stored", "lost", "lost", "stored"]
    assert (trap.fired, other.contents()) == (2, ["four", "one"])


def test_messages_have_the_same_labels_whatever_their_values_are(proxy: Proxy, other: Other) -> None:
    def said(content: str) -> list[str]:
        proxy.begin_again()
        with connected(proxy) as connection:
            store(connection, content)
            assert connection.execute(text("select 1 where 'x' in ('y', 'z')")).first() is None
        until(lambda: not proxy.links())
        return proxy.sent

    assert said("one") == said("it's 2\\") != []
    assert "commit: insert into effect values (?)" in proxy.sent


def test_prepared_statement_has_the_label_of_the_one_that_is_not(proxy: Proxy, other: Other) -> None:
    with connected(proxy) as connection:
        for number in range(12):
            store(connection, str(number))

    assert proxy.sent.count("insert into effect values (?)") == 12


@pytest.mark.parametrize(("hung", "stored"), [({"down": False}, []), ({"up": False}, ["one"])])
def test_hung_direction_holds_back_what_goes_there_until_it_is_mended(
    proxy: Proxy, other: Other, hung: dict[str, bool], stored: list[str]
) -> None:
    with connected(proxy, isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("select 1"))
        storing = threading.Thread(target=store, args=(connection, "one"))
        proxy.hang(**hung)
        storing.start()
        until(lambda: proxy.links("insert"))
        if stored:
            until(other.contents)
        storing.join(0.2)
        held_back = (storing.is_alive(), other.contents())
        proxy.mend()
        storing.join(10.0)

    assert held_back == (True, stored)
    assert (storing.is_alive(), other.contents()) == (False, ["one"])


@pytest.mark.parametrize("how", ["cut", "reset"])
def test_broken_connection_is_noticed_at_once_on_both_sides(
    proxy: Proxy, other: Other, admin_url: str, how: str
) -> None:
    with connected(proxy) as connection:
        connection.execute(text("select 1"))
        assert sessions(admin_url) == 1
        (link,) = proxy.links()

        getattr(link, how)()

        assert farewell(connection) == ("reset" if how == "reset" else "end")
        with pytest.raises(DBAPIError):
            connection.execute(text("select 1"))
    until(lambda: sessions(admin_url) == 0, what="the server to notice")
    assert proxy.links() == []


def farewell(connection: Connection) -> str:
    """How the other end of a connection has said goodbye."""
    driver: Any = connection.connection.driver_connection
    number = driver.pgconn.socket if hasattr(driver, "pgconn") else driver._sock.fileno()
    with socket.socket(fileno=os.dup(number)) as link:
        link.settimeout(10.0)
        try:
            return link.recv(1).decode() or "end"
        except ConnectionResetError:
            return "reset"


def sessions(admin_url: str) -> int:
    """How many sessions there are on the database, besides this one."""
    query = {
        "postgresql": "select count(*) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()",
        "mysql": "select count(*) from information_schema.processlist where db = database() and id <> connection_id()",
    }
    engine = create_engine(admin_url, poolclass=NullPool)
    with engine.connect() as connection:
        return int(connection.scalar(text(query[engine.dialect.name])) or 0)


def test_slow_link_takes_its_time_in_both_directions(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        connection.execute(text("select 1"))
        proxy.slow(latency=0.15, jitter=0.05)
        began = time.monotonic()
        connection.execute(text("select 1"))
        took = time.monotonic() - began

    assert took >= 0.2


def test_narrow_link_takes_the_longer_the_more_is_sent(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        connection.execute(text("select 1"))
        proxy.slow(rate=20_000)
        began = time.monotonic()
        connection.execute(text("select :long"), {"long": "x" * 5_000}).all()
        took = time.monotonic() - began

    assert took >= 0.5


@pytest.mark.databases("postgresql")
def test_deaf_proxy_loses_notifications_and_nothing_else(proxy: Proxy) -> None:
    with connected(proxy, isolation_level="AUTOCOMMIT") as connection:
        driver: Any = connection.connection.driver_connection
        connection.execute(text("listen news"))
        proxy.deaf = True
        connection.execute(text("notify news, 'first'"))
        rows = connection.execute(text("select generate_series(1, 5000)")).all()
        proxy.deaf = False
        connection.execute(text("notify news, 'second'"))

        heard = [each.payload for each in driver.notifies(timeout=5.0, stop_after=1)]

    assert (len(rows), heard, proxy.swallowed) == (5000, ["second"], 1)


def test_proxy_lets_clients_in_again_after_the_server_was_away(proxy: Proxy) -> None:
    server, proxy._server = proxy._server, proxy._server.set(port=1)
    with pytest.raises(DBAPIError), connected(proxy):
        pass
    proxy._server = server

    with connected(proxy) as connection:
        assert connection.scalar(text("select 1")) == 1


@pytest.mark.databases("postgresql")
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_messages_of_postgresql_are_found_however_they_arrive(url: str, size: int) -> None:
    frames = [
        STARTUP,
        frame(b"Q", b"BEGIN\0"),
        frame(b"P", b"\0insert into t values ($1)\0\0\0") + frame(b"B", b"\0\0") + frame(b"E", b"") + frame(b"S", b""),
        frame(b"Q", b"COMMIT\0"),
        frame(b"X", b""),
    ]

    found = fed(PostgreSQLMessages(), b"".join(frames), size)

    assert [each.data for each in found] == frames
    texts = ["log in", "begin", "insert into t values (?)", "commit: insert into t values (?)", "leave"]
    assert [each.text for each in found] == texts


@pytest.mark.databases("mariadb")
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_messages_of_mariadb_are_found_however_they_arrive(url: str, size: int) -> None:
    packets = [packet(1, b"who I am"), packet(0, b"\3update t set a = 'it''s' where b = 7"), packet(0, b"\3COMMIT")]

    found = fed(MySQLMessages(), b"".join(packets), size)

    assert [each.data for each in found] == packets
    update = "update t set a = ? where b = ?"
    assert [each.text for each in found] == ["log in", update, f"commit: {update}"]


def fed(messages: Any, data: bytes, size: int) -> list[Message]:
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return [message for part in parts for message in messages.feed(part)]


def frame(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4) + body


def packet(number: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "little") + bytes([number]) + body
