"""Nodes and clients that are killed at each statement that they send, and what others make of what they leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from pyasync import Client, InvalidTransition, Node, TaskNotFound
from tests.faults.effort import Effort
from tests.faults.failpoints import Listing, Point, asking, dying, tapped
from tests.faults.life import KINDS, Life, prepare, registry
from tests.faults.nodes import Cluster
from tests.runtime.other import Other
from tests.store.rows import faults
from tests.waiting import until

LEASE = 3.0
SETTINGS = {"lease": LEASE, "poll_interval": 0.2, "stop_grace": 2.0}
TOGETHER = 20
"""Nodes that are killed on one database before another goes on with all their tasks: one lease for all."""
POLLS = ("claims.", "claimer.nothing", "watcher.", "sweeper.", "nodes.", "keeper._beat", "probes.")
"""What nodes send again and again: the first two times stand for all."""


class Doomed:
    """A node that is to be killed at a point, and the user of the tasks that it alone may run."""

    def __init__(self, cluster: Cluster, folder: Path, point: Point, number: int) -> None:
        self.point = point
        self.kind = list(KINDS)[number % len(KINDS)]
        self.failure: BaseException | None = None
        group = f"g{number}"
        self._lives = [Life(cluster.client, cluster.url, folder, self.kind, group) for _ in range(2)]
        self._dead, self._rests = threading.Event(), threading.Event()
        self.process = cluster.start(wait=False, registry=dying(point), groups=[group], **SETTINGS)
        self._user = threading.Thread(target=self._use, daemon=True)
        self._user.start()

    def has_ended(self) -> bool:
        """Whether the process has ended; it is asked to, if it still lives when the second task rests."""
        if self.process.alive and self._rests.is_set():
            self._rests.clear()
            self.process.ask_to_stop()
        if not self.process.alive:
            self._dead.set()
        return self._dead.is_set()

    def was_killed(self) -> bool:
        """Whether it was killed at its point."""
        return self.process.code == -signal.SIGKILL and f"killed {self.point}" in self.process.text()

    def join(self) -> None:
        """Wait until the user has seen the tasks to their ends; raise what was wrong with them."""
        self._user.join()
        if self.failure is not None:
            self.failure.add_note(f"its node was to be killed {self.point}")
            raise self.failure

    def _use(self) -> None:
        try:
            self._lives[0].live()
            if not self._dead.is_set():
                self._live_on(self._lives[1])
        except BaseException as error:
            self.failure = error

    def _live_on(self, life: Life) -> None:
        """Let the node see what it sends when it is stopped while it runs a task."""
        life.create()
        life.until_it_rests()
        self._rests.set()
        life.live()


def points_of_a_node(url: str, folder: Path) -> list[Point]:
    """List what a node sends from its start to its end while it runs a task and begins another."""
    Node(url, registry(url), migrate="check").start().stop()  # makes the types known, which the others need not
    listing = Listing()
    with Client(url, strict=False) as client:
        node = Node(url, registry(url), migrate="check", **SETTINGS)
        with tapped(node) as tap:
            tap.begin(listing)
            node.start()
            Life(client, url, folder).live()
            second = Life(client, url, folder)
            second.create()
            second.until_it_rests()
            node.stop()
        client.delete_task(second.id, force=True)
    polls = [each for each in listing.points(2) if each.label.startswith(POLLS)]
    return polls + [each for each in listing.points() if not each.label.startswith(POLLS)]


def test_task_goes_on_whichever_statement_its_node_was_killed_at(
    cluster: Cluster, tmp_path: Path, effort: Effort
) -> None:
    prepare(cluster.url)
    points = effort.sample(points_of_a_node(cluster.url, tmp_path), 20)

    for start in range(0, len(points), TOGETHER):
        kill_at(cluster, tmp_path, points[start : start + TOGETHER])


def kill_at(cluster: Cluster, folder: Path, points: Sequence[Point]) -> None:
    doomed = [Doomed(cluster, folder, point, number) for number, point in enumerate(points)]
    until(lambda: not [each for each in doomed if not each.has_ended()], 60.0, "all nodes to be killed")
    missed = [each.point for each in doomed if not each.was_killed()]

    heir = cluster.start(registry="tests.faults.life:registry", concurrency=TOGETHER, **SETTINGS)
    for each in doomed:
        each.join()

    heir.terminate()
    assert not missed, "they ended otherwise"


# --- clients


@dataclass(frozen=True)
class Verb:
    """A verb, and the statuses of its task before and after it; None: there is no row."""

    name: str
    before: str | None
    after: str | None
    key: str | None = None

    def arguments(self, task: UUID) -> dict[str, Any]:
        """Return what the verb is called with."""
        return {"id": str(task)} | ({"type": "async", "key": self.key and task.hex} if self.before is None else {})

    def prepare(self, client: Client) -> UUID:
        """Return the id of a task of the status before."""
        task = uuid4()
        if self.before is not None:
            client.create_task("async", id=task, auto_run=self.before == "pending, run")
        return task


VERBS = [
    Verb("create_task", None, "pending, run"),
    Verb("create_task", None, "pending, run", "with a key"),
    Verb("run_task", "init, none", "pending, run"),
    Verb("pause_task", "pending, run", "paused, pause"),
    Verb("cancel_task", "pending, run", "failed, run"),
    Verb("delete_task", "pending, run", "pending, delete"),
    Verb("delete_task", "init, none", None),
]


def points_of_a_verb(client: Client, verb: Verb) -> list[Point]:
    """List what a client sends for a verb."""
    listing, task = Listing(), verb.prepare(client)
    with tapped(client) as tap:
        tap.begin(listing)
        getattr(client, verb.name)(**verb.arguments(task))
    return listing.points()


def test_verb_is_done_or_not_whichever_statement_its_process_was_killed_at(cluster: Cluster, effort: Effort) -> None:
    prepare(cluster.url)
    other = Other(cluster.url)
    with Client(cluster.url, strict=False) as client:
        listed = [(verb, point) for verb in VERBS for point in points_of_a_verb(client, verb)]
    points = effort.sample(listed, 20)
    tasks = [verb.prepare(cluster.client) for verb, _ in points]

    killed = [
        cluster.start(wait=False, registry=asking(point, verb.name, **verb.arguments(task)))
        for (verb, point), task in zip(points, tasks, strict=True)
    ]
    codes = [each.wait() for each in killed]

    assert codes == [-signal.SIGKILL] * len(points)
    for (verb, point), task in zip(points, tasks, strict=True):
        row = other.row(task)
        assert other.status(task) in (verb.before, verb.after), (verb, point)
        assert row is None or not faults(row), (verb, point)
        with suppress(TaskNotFound, InvalidTransition):  # deleted or cancelled already
            getattr(cluster.client, verb.name)(**verb.arguments(task))
        assert other.status(task) == verb.after, (verb, point)
