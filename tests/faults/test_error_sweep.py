"""Errors of the database at each statement of a task's life, each code that it may answer with."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError

from pyasync import Client, DatabaseUnavailable, Node
from pyasync.store import nodes
from pyasync.store.line import open_line
from tests.faults.effort import Effort
from tests.faults.errors import FULL, PERMANENT, TRANSIENT, Error, Failing
from tests.faults.failpoints import Point, Sent, tapped
from tests.faults.life import KINDS, REPORTS, Life, prepare, registry

TURNS = 7
"""Each statement fails every so many times that it is sent; not all in the same round, or a service would begin to wait
long between its rounds."""
LAST = 14
"""After so many times it passes: several statements alike in one transaction would else fail it for ever."""
WRITES = ("insert", "update", "delete")
TOGETHER = 6
"""Nodes, each with one task, that run at once: they wait most of the time."""


@dataclass(frozen=True)
class Bout:
    """A life in which an error meets one of TURNS statements of each kind; `turn` says which.

    They are statements of the node's, or of the client's.
    """

    error: Error
    turn: int
    kind: str
    of_client: bool = False

    def live(self, url: str, folder: Path, *, spotless: bool = True) -> list[Point]:
        """Live a life on a node of its own; return where the error was met."""
        failing = Failing(self.error, self._hits)
        group = f"{self}"
        with Client(url, strict=False) as client:
            # A run whose own end cannot be stored is let go of after two beats.
            lease = 15.0 if spotless else 3.0
            node = Node(url, registry(url), migrate="check", poll_interval=0.1, lease=lease, groups=[group], name=group)
            with tapped(client if self.of_client else node) as tap, node:
                tap.begin(failing)
                life = Life(client, url, folder, self.kind, group, spotless=spotless)
                life.live()
        assert self.of_client or life.errors == [], "the client was let alone"
        return failing.fired

    def start(self, url: str) -> list[Point]:
        """Start a node, and stop it; return where the error was met."""
        failing = Failing(self.error, lambda sent: sent.number == 1 and self._hits(sent))
        with Client(url, strict=False):
            node = Node(url, registry(url), migrate="check")
            with tapped(node) as tap:
                tap.begin(failing)
                node.start()
                assert node.health().ok
                node.stop()
        return failing.fired

    def _hits(self, sent: Sent) -> bool:
        return sent.number <= LAST and (sent.number + crc32(sent.label.encode())) % TURNS == self.turn

    def __str__(self) -> str:
        return f"{self.error}, turn {self.turn}, {'client, ' if self.of_client else ''}{self.kind}"


def bouts(url: str, errors: Mapping[str, list[Error]], *, of_client: bool = False) -> list[Bout]:
    """List the bouts of a database."""
    turns = [(error, turn) for error in errors[make_url(url).get_backend_name()] for turn in range(TURNS)]
    return [Bout(*each, list(KINDS)[place % 2], of_client) for place, each in enumerate(turns)]


@pytest.mark.parametrize("kind", KINDS)
def test_life_without_errors_is_as_it_is_written(url: str, tmp_path: Path, kind: str) -> None:
    prepare(url)
    with Client(url) as client, Node(url, registry(url), poll_interval=0.1):
        life = Life(client, url, tmp_path, kind)
        life.create()
        life.rest()
        life.finish()
        life.check()
        assert (life.row().epoch, life.row().seq) == (2, REPORTS + 1), "claimed twice, and paused once"
        life.delete()
        life.check_gone()


def test_errors_that_go_away_leave_no_trace_whichever_statement_they_meet(
    url: str, tmp_path: Path, effort: Effort
) -> None:
    prepare(url)
    some = effort.sample(bouts(url, TRANSIENT), 12)

    fight(some, lambda bout: bout.live(url, tmp_path))


def test_errors_that_go_away_keep_no_verb_from_being_done(url: str, tmp_path: Path, effort: Effort) -> None:
    prepare(url)
    some = effort.sample(bouts(url, TRANSIENT, of_client=True), 6)

    fight(some, lambda bout: bout.live(url, tmp_path))


def test_errors_that_go_away_keep_no_node_from_starting(url: str, effort: Effort) -> None:
    prepare(url)
    some = effort.sample(bouts(url, TRANSIENT), 6)

    fight(some, lambda bout: bout.start(url))


def test_errors_that_stay_are_shown_or_leave_no_trace(url: str, tmp_path: Path, effort: Effort) -> None:
    prepare(url)
    some = effort.sample(bouts(url, PERMANENT), 5)

    fight(some, lambda bout: bout.live(url, tmp_path, spotless=False))


def fight(bouts: Sequence[Bout], how: Callable[[Bout], list[Point]]) -> None:
    """Fight bouts, some at once."""
    with ThreadPoolExecutor(TOGETHER) as pool:
        done = {bout: pool.submit(how, bout) for bout in bouts}
    for bout, each in done.items():
        if (error := each.exception()) is not None:
            error.add_note(str(bout))
            raise error
        print(bout, *each.result(), sep=", ")
    assert sum(len(each.result()) for each in done.values()) >= len(bouts), "no error was met"


def test_full_disk_makes_tasks_wait_and_their_creator_hear_of_it(url: str, tmp_path: Path) -> None:
    prepare(url)
    full = threading.Event()
    error = FULL[make_url(url).get_backend_name()]
    failing = Failing(error, lambda sent: full.is_set() and sent.label.endswith(WRITES))
    with Client(url, strict=False) as client:
        node = Node(url, registry(url), migrate="check", poll_interval=0.1)
        with tapped(node) as tap, node:
            tap.begin(failing)
            life = Life(client, url, tmp_path)
            life.create()
            life.until_it_rests()

            full.set()
            with pytest.raises(DatabaseUnavailable):
                node.create_task("async")  # which tries for ten seconds
            tries = len(failing.fired)
            full.clear()
            life.live()
    print(tries, "tries")
    assert tries < 100, "nobody tries in a tight loop"


def test_session_of_its_own_whose_commit_fails_locks_nobody_out(sqlite_url: str) -> None:
    prepare(sqlite_url)
    busy = TRANSIENT["sqlite"][0]
    failing = Failing(busy, lambda sent: sent.label.endswith("commit"))
    with Client(sqlite_url) as client, tapped(client) as tap:
        line = open_line(client._database, fast=False, deadline=1.0)
        tap.begin(failing)
        with pytest.raises(OperationalError):
            line.run(nodes.register, ["some"])
        tap.end()

        with closing(sqlite3.connect(client._database.url.database, timeout=0.2)) as other:
            other.execute("begin immediate")

        line.run(nodes.register, ["others"])
        line.close()
    assert len(failing.fired) == 1
