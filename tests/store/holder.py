"""A process that holds a line, to be killed: it prints the line's key, then does what it is told, a word a line.

`with Holder(url) as holder` starts one, `holder.do("fork-close")` tells it, `holder.key` names its lock.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from sqlalchemy import text

from pyasync.settings import Settings
from pyasync.store.database import Database, Tx
from pyasync.store.line import Line, open_line
from pyasync.store.probes import held

LEASE = 300.0  # nobody beats, and MariaDB ends a session that is silent for a lease


class Holder:
    """Another process that holds a line."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.store.holder", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # so that a complaint is taken for the answer
            text=True,
        )
        self.key = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()

    def do(self, word: str) -> str:
        """Have it do something, and return what it says."""
        assert self._process.stdin
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self._read()

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout
        said = self._process.stdout.readline().strip()
        assert said, "the holder has ended"
        return said


def main(url: str) -> None:
    database = Database(url, Settings(lease=LEASE))
    line = open_line(database, fast=True, deadline=5.0)
    _say(str(line.key))
    for word in sys.stdin:
        deed, *names = word.split()
        _say(_seen(database, names[0]) if names else _DEEDS[deed](line, database))


def _say(what: str) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def _seen(database: Database, key: str) -> str:
    return str(database.once(held, [key])[key])


def _write(line: Line, database: Database) -> str:
    line.run(lambda tx: tx.execute(text("create table if not exists written (x integer)")))
    return "written"


def _verify(line: Line, database: Database) -> str:
    return f"{line.verify()} {line.run(_one)}"


def _one(tx: Tx) -> int:
    return int(tx.execute(text("select 1")).scalar_one())


def _reopen(line: Line, database: Database) -> str:
    """Open a line of the child's own, as a node that is started after the fork does."""
    own = open_line(Database(database.url, Settings(lease=LEASE)), fast=True, deadline=5.0)
    key = own.key
    line.close()
    verified = own.verify() == key
    own.close()
    return "reopened" if verified else "lost"


def _close(line: Line, database: Database) -> str:
    line.close()
    if line._link.fileno() is not None:
        with suppress(Exception):
            line._link.driver.close()  # says goodbye to the server, which a driver may do whenever it is collected
    return "closed"


def _leave(line: Line, database: Database) -> str:
    return "left"


def _use(line: Line, database: Database) -> str:
    try:
        line.run(_one)
    except Exception as error:
        return type(error).__name__
    return "used"


def _interrupt(line: Line, database: Database) -> str:
    line.interrupt()
    return "interrupted"


def _wait(line: Line, database: Database) -> str:
    began = time.monotonic()
    line.wait(0.2)
    return "waited" if time.monotonic() - began >= 0.2 else "woken"


Deed = Callable[[Line, Database], str]


def _forked(deed: Deed) -> Deed:
    """Do something in a child that then exits as a program does, with all that Python cleans up."""

    def in_child(line: Line, database: Database) -> str:
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.write(writing, deed(line, database).encode())
            sys.exit()
        os.wait()
        return os.read(reading, 1000).decode()

    return in_child


def _fork_and_stay(line: Line, database: Database) -> str:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        sys.exit()
    return str(child)


_HERE: dict[str, Deed] = {"write": _write, "verify": _verify, "wait": _wait, "fork-stay": _fork_and_stay}
_IN_CHILD: dict[str, Deed] = {
    "fork-close": _close,
    "fork-leave": _leave,
    "fork-use": _use,
    "fork-interrupt": _interrupt,
    "fork-reopen": _reopen,
}
_DEEDS = _HERE | {word: _forked(deed) for word, deed in _IN_CHILD.items()}

if __name__ == "__main__":
    main(sys.argv[1])
