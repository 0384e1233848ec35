"""A pause, cancel or delete that lands between any two statements of a run's life is never overwritten.

A life is one claim, three reports and the end. It is lived once to count the statements that the committer sends on its
behalf; then once more for each of them, with the verb committed by another connection right before, or right after it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event

from pyasync import Client, Finished, InvalidTransition, Node, Registry, State
from tests.runtime.conftest import Nodes
from tests.runtime.gate import PATIENCE
from tests.runtime.other import Other
from tests.waiting import until

COMMITTER = "pyasync-committer"
LIMIT = 200

ENDS = {
    "pause": {"paused, pause", "finished, run"},
    "cancel": {"failed, run", "finished, run"},
    "delete": {None},
}
"""What the table makes of each verb; "finished" only if the end was stored first, or the run could not be told."""


class Points:
    """Counts the statements that the committer sends once a task is there, and does a deed at one of them."""

    def __init__(self, started: Node) -> None:
        self.count = 0
        self.at: tuple[str, int] | None = None
        self.deed: Any = None
        self.fired = 0
        self._watching = False
        engine = started._database.engine
        event.listen(engine, "before_cursor_execute", lambda *_: self._pass("before"))
        event.listen(engine, "after_cursor_execute", lambda *_: self._pass("after"))

    def begin(self, at: tuple[str, int] | None, deed: Any) -> None:
        """Count from here on."""
        self.count, self.at, self.deed = 0, at, deed
        self._watching = True

    def end(self) -> int:
        """Stop counting; return how many there were."""
        self._watching = False
        return self.count

    def _pass(self, when: str) -> None:
        if not self._watching or threading.current_thread().name != COMMITTER:
            return
        self.count += when == "before"
        if self.at is not None and self.count >= self.at[1] and when == self.at[0]:
            self.at = None
            self.deed()


class Verb:
    """A user's verb, from a thread and a client of its own; it may have to wait for a row's lock, or come too late."""

    def __init__(self, client: Client, name: str, task_id: UUID, seen: threading.Event) -> None:
        self._call = getattr(client, f"{name}_task")
        self._task_id = task_id
        self._seen = seen
        self.refused: Exception | None = None
        self.blocked = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __call__(self) -> None:
        """Begin; return when it is committed, or when it waits for the very transaction that we are in."""
        self._thread.start()
        self._thread.join(0.1)
        self.blocked = self._thread.is_alive()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._call(self._task_id)
        except InvalidTransition as error:
            self.refused = error
        self._seen.set()


def _registry(cleaned: list[UUID]) -> Registry:
    registry = Registry()

    @registry.task("life")
    def life(run: Any) -> Iterator[Any]:
        for number in range(run.context or 0, 3):
            yield number + 1
        yield Finished("lived")

    @life.deleting
    def clean_up(run: Any) -> Iterator[Any]:
        cleaned.append(run.id)
        yield Finished()

    return registry


@pytest.mark.timeout(600)
@pytest.mark.parametrize("verb", ["pause", "cancel", "delete"])
def test_verb_that_lands_at_any_statement_of_a_life_is_not_lost(node: Nodes, other: Other, url: str, verb: str) -> None:
    cleaned: list[UUID] = []
    started = node(_registry(cleaned), poll_interval=0.05)
    points = Points(started)
    with Client(url, migrate="off") as client:
        total = _live(started, client, other, points, verb, None, cleaned)
        fired = [
            _live(started, client, other, points, verb, (when, number), cleaned)
            for number in range(1, total + 1)
            for when in ("before", "after")
        ]

    assert 5 <= total < LIMIT
    assert len(fired) == total * 2
    assert points.fired == total * 2


def _live(
    started: Node,
    client: Client,
    other: Other,
    points: Points,
    name: str,
    at: tuple[str, int] | None,
    cleaned: list[UUID],
) -> int:
    """Live one life with the verb at a point, and check what became of it; return how many statements there were."""
    task_id = client.create_task("life", auto_run=False)
    seen = threading.Event()
    verb = Verb(client, name, task_id, seen)
    points.begin(at, verb)
    client.run_task(task_id)
    started._wake("run")
    if at is None:
        client.wait_task(task_id, PATIENCE)
        return points.end()
    until(seen.is_set, PATIENCE, f"{name} {at} to land")
    verb.join()
    points.fired += 1
    _check(client, other, name, task_id, verb, cleaned)
    return points.end()


def _check(client: Client, other: Other, name: str, task_id: UUID, verb: Verb, cleaned: list[UUID]) -> None:
    ends = {"finished, run"} if verb.refused else ENDS[name]
    end = until(
        lambda: (status := other.status(task_id)) in ends and [status], PATIENCE, f"{name} to be heeded: {ends}"
    )[0]
    if name == "delete":
        assert verb.refused is None, "a delete is never refused"
        until(lambda: task_id in cleaned, PATIENCE, "the clean-up")
        return
    row = other.row(task_id)
    assert (row.node_id, row.queue) == (None, None)
    if verb.refused:
        assert row.result == '"lived"'
    if end == "paused, pause":
        client.run_task(task_id)
        task = client.wait_task(task_id, PATIENCE)
        assert (task.state, task.result, task.attempt, task.errors) == (State.FINISHED, "lived", 1, [])
    if end == "failed, run":
        assert [each["kind"] for each in client.get_task(task_id).errors] == ["cancelled"]
