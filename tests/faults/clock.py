"""Clocks that a test sets, for processes that run under libfaketime: the time of day changes, durations do not.

clock = Clock(file)
with clock.nursery() as nursery: ...                    # of nodes that go by it
PostgreSQL(environment=clock.environment)
clock.set(HOUR)                                         # for all of them, from now on
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from threading import Event
from typing import Any, Self
from unittest import mock

from pyasync import Registry
from tests.faults import worker
from tests.faults.nodes import Nursery
from tests.servers import Unavailable

HOUR = 3600
LIBRARY = "faketime/libfaketimeMT.so.1"  # the one for processes with threads


class Clock:
    """A clock that is so many seconds ahead of the true one."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.offset = 0
        self.set(0)
        self.environment = {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "1",  # to read the file for each look at the clock costs most of a core
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset: int) -> None:
        """Set the clock; who goes by it sees that within a second."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset:+}\n")
        new.chmod(0o644)
        new.replace(self._file)
        self.offset = offset

    @contextmanager
    def nursery(self) -> Iterator[Nursery]:
        """Start what forks nodes that go by this clock."""
        with mock.patch.dict(os.environ, self.environment):
            nursery = Nursery()
        with nursery:
            yield nursery
        tidy(nursery._process.pid)


def library() -> Path:
    """Where libfaketime is. Raises Unavailable."""
    for folder in Path("/usr").glob("lib*"):
        for found in (*folder.glob(LIBRARY), *folder.glob(f"*/{LIBRARY}")):
            return found
    raise Unavailable("libfaketime not available: apt-get install libfaketime")


def tidy(pid: int) -> None:
    """Remove what libfaketime leaves of a process that was killed."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        with suppress(FileNotFoundError):
            os.unlink(f"/dev/shm/{name}")


class Nurseries(Nursery):
    """Forks nodes from several nurseries in turn."""

    def __init__(self, nurseries: list[Nursery]) -> None:
        self._next = cycle(nurseries)
        self._of: dict[int, Nursery] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Each nursery is ended by who made it."""

    def fork(self, url: str, settings: dict[str, Any], errors: Path) -> int:
        nursery = next(self._next)
        pid = nursery.fork(url, settings, errors)
        self._of[pid] = nursery
        return pid

    def ended(self, pid: int) -> int | None:
        return self._of[pid].ended(pid)

    def wait_until_stopped(self, pid: int) -> None:
        self._of[pid].wait_until_stopped(pid)


def registry(url: str) -> Registry:
    """The types of all node processes, and one that says what time it is there."""
    # libfaketime 0.9.10 refuses clock_nanosleep on the monotonic clock when it is told to leave that one alone.
    time.sleep = _sleep  # type: ignore[assignment]
    made = worker.registry(url)
    made.register_task("time of day", time_of_day)
    return made


def _sleep(seconds: float) -> None:
    Event().wait(seconds)


def time_of_day() -> tuple[int, float]:
    _sleep(0.3)  # lets other nodes have the next one
    return os.getpid(), time.time()
