"""What nodes leave behind: threads and open files of this process, and sessions with the database.

with nothing_left(url):
    ...                     # start nodes in this process, and stop them
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sqlalchemy import NullPool, create_engine, make_url

from pyasync.store.dialects import dialect_for
from tests.waiting import until

PATIENCE = 15.0
"""Seconds in which a server notices that a connection was closed, and a daemon thread ends."""

_SESSIONS = {
    "postgresql": "pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
    "mysql": "information_schema.processlist where db = database() and id <> connection_id()",
}


@dataclass(frozen=True)
class Residue:
    """What there is now; `files` by what they are, such as `socket` or a path."""

    threads: Counter[str]
    files: Counter[str]
    sessions: int

    def beyond(self, before: Residue) -> list[str]:
        """Return what there is more of than before."""
        more = [*(self.threads - before.threads), *(self.files - before.files)]
        return more + ["session"] * (self.sessions - before.sessions)


def residue(url: str) -> Residue:
    """Look at this process, and at the database that the URL names."""
    return Residue(Counter(thread.name for thread in threading.enumerate()), files(os.getpid()), sessions(url))


@contextmanager
def nothing_left(url: str) -> Iterator[None]:
    """Fail if there is more at the end than there was at the beginning, after a while."""
    sessions(url)  # imports what a first connection needs, some of which stays open
    before = residue(url)
    yield
    until_nothing_is_left(url, before)


def until_nothing_is_left(url: str, before: Residue) -> None:
    """Wait until there is no more than there was; fail if that takes too long."""
    with suppress(TimeoutError):  # the assertion tells more
        until(lambda: not residue(url).beyond(before), PATIENCE)
    left = residue(url).beyond(before)
    assert not left, left


def files(pid: int) -> Counter[str]:
    """The open files of a process: sockets and the like by kind, others by path. Empty where the system cannot say."""
    found: Counter[str] = Counter()
    with suppress(FileNotFoundError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # the one by which we look
                name = os.readlink(f"/proc/{pid}/fd/{number}").partition(":[")[0]
                found[re.sub("[0-9a-f]{32}$", "*", name)] += 1  # each life of a node has a lock file of its own
    return found


def threads(pid: int) -> int:
    """The number of threads of a process; 0 where the system cannot say."""
    with suppress(FileNotFoundError):
        return len(os.listdir(f"/proc/{pid}/task"))
    return 0


def sessions(url: str) -> int:
    """The number of others' sessions with the database. SQLite has none: there, open files tell."""
    others = _SESSIONS.get(dialect_for(make_url(url).get_backend_name()).name)
    if others is None:
        return 0
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        return int(connection.exec_driver_sql(f"select count(*) from {others}").scalar_one())
