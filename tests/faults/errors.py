"""Errors that databases answer with, made as real as they can be: by the server itself, on the very connection."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.faults.failpoints import Point, Sent


@dataclass(frozen=True)
class Error:
    """An error; `make` gets the driver's connection, and raises it."""

    name: str
    make: Callable[[Any], None]
    after: bool = False
    """It comes when the statement has done its work, instead of before that: with the end of the session."""

    def __str__(self) -> str:
        return f"{self.name} {'after' if self.after else 'instead of'} it"


class Failing:
    """Answers what is `chosen` with an error, and lets the rest pass."""

    def __init__(self, error: Error, chosen: Callable[[Sent], bool]) -> None:
        self.fired: list[Point] = []
        self._error = error
        self._chosen = chosen

    def __call__(self, sent: Sent) -> Any:
        """Let it pass, or raise the error."""
        if not self._chosen(sent):
            return sent.go()
        self.fired.append(sent.point(after=self._error.after))
        if self._error.after:
            sent.go()
        self._error.make(sent.driver)
        raise AssertionError(f"{self._error} was not raised")


# --- PostgreSQL


def _raise(code: str) -> Callable[[Any], None]:
    sql = f"do $$ begin raise exception 'made by a test' using errcode = '{code}'; end $$"
    return lambda driver: driver.execute(sql)


def _terminate(driver: Any) -> None:
    driver.execute("select pg_terminate_backend(pg_backend_pid())")


def _cut(driver: Any) -> None:
    """Cut the line, and find that out."""
    link = socket.socket(fileno=driver.fileno() if hasattr(driver, "pgconn") else driver._sock.fileno())
    try:
        link.shutdown(socket.SHUT_RDWR)
    finally:
        link.detach()
    driver.cursor().execute("select 1")


# --- MariaDB


def _signal(code: int, *, ends: bool = False) -> Callable[[Any], None]:
    def make(driver: Any) -> None:
        cursor = driver.cursor()
        if ends:  # the server has rolled the transaction back when it answers so
            cursor.execute("rollback")
        cursor.execute(f"signal sqlstate 'HY000' set mysql_errno = {code}, message_text = 'made by a test'")

    return make


def _kill(driver: Any) -> None:
    cursor = driver.cursor()
    cursor.execute("kill connection_id()")
    cursor.execute("select 1")


# --- SQLite


def _fail(code: int, *, ends: bool = False) -> Callable[[Any], None]:
    def make(driver: Any) -> None:
        if ends:  # SQLite may have rolled the transaction back when it answers so
            driver.rollback()
        error = sqlite3.OperationalError(f"made by a test: {code}")
        error.sqlite_errorcode = code
        raise error

    return make


SERIALIZATION = ("40001", "40P01", "55P03")
SHUTDOWN = ("57P01", "57P02", "57P03", "08006", "08003", "53300", "25006", "25P03")

TRANSIENT: dict[str, list[Error]] = {
    "postgresql": [
        *(Error(code, _raise(code)) for code in SERIALIZATION + SHUTDOWN),
        *(Error("end of session", _terminate, after) for after in (False, True)),
        *(Error("cut line", _cut, after) for after in (False, True)),
    ],
    "mysql": [
        Error("1213", _signal(1213, ends=True)),
        *(Error(str(code), _signal(code)) for code in (1205, 1020, 1290, 1836, 1927, 2006, 2013)),
        *(Error("kill", _kill, after) for after in (False, True)),
        *(Error("cut line", _cut, after) for after in (False, True)),
    ],
    "sqlite": [
        *(Error(f"{name} {code}", _fail(code)) for name, code in (("busy", 5), ("snapshot", 517), ("locked", 6))),
        *(Error(f"full {'' if ends else 'not '}rolled back", _fail(13, ends=ends)) for ends in (False, True)),
    ],
}
"""By the name of SQLAlchemy's dialect."""

PERMANENT: dict[str, list[Error]] = {
    "postgresql": [Error("57014", _raise("57014"))],
    "mysql": [Error(str(code), _signal(code)) for code in (1969, 3024)],
    "sqlite": [Error(f"io error {'' if ends else 'not '}rolled back", _fail(10, ends=ends)) for ends in (False, True)],
}
"""Those that nobody should meet by trying again for ever: a statement that took too long, a disk that is broken."""

FULL: dict[str, Error] = {
    "postgresql": Error("53100", _raise("53100")),
    "mysql": Error("1114", _signal(1114)),
    "sqlite": Error("full", _fail(13, ends=True)),
}
"""The disk is full."""
