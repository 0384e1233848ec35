"""A PostgreSQL standby of our own, and what makes it the primary.

with PostgreSQL() as primary, Standby(primary) as standby:
    primary.wait_for(standby)
    die(primary)
    promote(standby)
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from sqlalchemy import make_url, text

from tests.servers import HOST, PostgreSQL, Unavailable
from tests.waiting import until

SETTINGS = {"wal_keep_size": "256MB", "wal_receiver_timeout": "5s"}


class Standby(PostgreSQL):
    """Follows a primary from a copy of its data; `port` is that of a server that has ended."""

    def __init__(self, primary: PostgreSQL, port: int | None = None) -> None:
        super().__init__(settings=SETTINGS)
        if not (self._programs / "pg_basebackup").exists():
            raise Unavailable("pg_basebackup not available: apt-get install postgresql")
        self.admin = self.admin.set(port=port)
        self._primary = primary

    def _initialize(self) -> None:
        source = ["--host", HOST, "--port", str(self._primary.admin.port), "--username=postgres"]
        copy = ["--checkpoint=fast", "--wal-method=stream", "--no-sync", "--write-recovery-conf"]
        self._run(self._program("pg_basebackup"), f"--pgdata={self.data}", *source, *copy)

    def _add_user(self) -> None:
        """Nobody is to be added: the copy has all users."""


def follow(primary: PostgreSQL, *, synchronous: bool) -> None:
    """Wait until the primary's standby streams, and have commits wait for it, or not."""
    names = "*" if synchronous else ""
    wanted = "sync" if synchronous else "async"
    with primary.connect() as connection:
        connection.execute(text(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'"))
        connection.execute(text("SELECT pg_reload_conf()"))
        query = text("SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'")
        until(lambda: connection.execute(query).scalars().all() == [wanted], 30.0, f"a standby that is {wanted}")


def die(server: PostgreSQL) -> None:
    """End a server as the loss of its machine would: no process of it does anything more."""
    processes = children(server)
    server.end(signal.SIGKILL)
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children(server: PostgreSQL) -> dict[int, str]:
    """The processes of a server but for its first one, by pid, with what each says that it does."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The name of a process may have spaces, but what follows it has none.
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == server.pid:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return found


def promote(standby: PostgreSQL) -> None:
    """Make a standby the primary, and wait until it takes writes. It waits for no standby of its own."""
    with standby.connect() as connection:
        connection.execute(text("SELECT pg_promote(wait => true)"))
        until(lambda: not connection.scalar(text("SELECT pg_is_in_recovery()")), 30.0, "the standby to be promoted")


def url_of_both(servers: tuple[PostgreSQL, PostgreSQL], database: str) -> str:
    """The URL under which libpq finds the one of two servers that takes writes."""
    hosts = [f"{HOST}:{server.admin.port}" for server in servers]
    url = make_url(servers[0].url(database)).set(host=None, port=None)
    both = url.update_query_dict({"host": hosts, "target_session_attrs": "read-write"})
    return both.render_as_string(hide_password=False)
