"""The scripted life of a task, the user's part in it, and what must be true of it whatever happened meanwhile.

A task makes 8 steps: 5 are yielded, 3 are committed together with a row of a ledger. After the third it rests until its
user has paused it. When it has finished, it is deleted, and its clean-up enters one more row.

    prepare(url)
    life = Life(client, url, folder, "async")
    life.live()                            # the user's part: create, pause, run, delete; checks as it goes

`client` may be cut off, killed or lied to; `url` must lead to the database directly. Any node that has the types runs
it: `registry(url)` here, or `cluster.start(registry="tests.faults.life:registry")`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from pyasync import Client, DatabaseUnavailable, Finished, InvalidTransition, Registry, Run, State, Task, TaskNotFound
from pyasync.aio import Run as AsyncRun
from tests.faults.worker import append, expected, mixed
from tests.runtime.other import Other
from tests.waiting import until

T = TypeVar("T")

STEPS = 8
COMMITTED = (3, 5, 7)
"""The steps that are stored by `run.commit`; the others are yielded."""
REST = 3
"""The step after which a task waits for its user."""
CLEANED = 0
"""What the clean-up enters into the ledger."""
REPORTS = STEPS + 1
"""Each step, and the end."""

RESTING = 30.0
PATIENCE = 60.0
RETRIES = [0.05] * 20
"""Seconds before each retry of an attempt that failed: only errors that are no transient ones make one fail."""

LEDGER = "CREATE TABLE ledger (task VARCHAR(32) NOT NULL, step INTEGER NOT NULL)"


# --- the node's part


def enter(connection: Connection, run: Run[Any] | AsyncRun[Any], step: int) -> None:
    """Enter a step into the ledger, which would take it a second time, too."""
    connection.execute(
        text("INSERT INTO ledger (task, step) VALUES (:task, :step)"), {"task": run.id.hex, "step": step}
    )


def note(run: Run[Any] | AsyncRun[Any], word: str, step: int) -> None:
    """Append a line to the task's file: where a run began, or that its step was acknowledged."""
    append(run.arguments["file"], f"{run.epoch} {word} {step}")


def steps(run: Run[Any] | AsyncRun[Any]) -> Iterator[tuple[int, dict[str, int]]]:
    """Count the steps that are left, with the context after each."""
    start, value = run.context.get("step", 0), run.context.get("value", 0)
    note(run, "start", start)
    for step in range(start + 1, STEPS + 1):
        value = mixed(value, step)
        yield step, {"step": step, "value": value}


def rests(run: Run[Any] | AsyncRun[Any], step: int) -> bool:
    """Whether to wait before a step; not where a run has begun after the user saw the task rest."""
    return step == REST + 1 and run.context.get("step", 0) < REST


class AsyncLife:
    """A life as async generators."""

    async def running(self, run: AsyncRun[Any]) -> AsyncIterator[Any]:
        """Make the steps."""
        context: dict[str, int] = {"value": run.context.get("value", 0)}
        for step, context in steps(run):
            if rests(run, step):
                await run.stop.wait(RESTING)
            if step in COMMITTED:
                await run.commit(context, lambda connection, step=step: enter(connection, run, step))
            else:
                yield context
            note(run, "ack", step)
        yield Finished(context["value"])

    async def deleting(self, run: AsyncRun[Any]) -> AsyncIterator[Any]:
        """Clean up once."""
        if "cleaned" not in run.context:
            await run.commit({**run.context, "cleaned": 1}, lambda connection: enter(connection, run, CLEANED))
        yield Finished()


class SyncLife:
    """A life as sync generators."""

    def running(self, run: Run[Any]) -> Iterator[Any]:
        """Make the steps."""
        context: dict[str, int] = {"value": run.context.get("value", 0)}
        for step, context in steps(run):
            if rests(run, step):
                run.stop.wait(RESTING)
            if step in COMMITTED:
                run.commit(context, lambda connection, step=step: enter(connection, run, step))
            else:
                yield context
            note(run, "ack", step)
        yield Finished(context["value"])

    def deleting(self, run: Run[Any]) -> Iterator[Any]:
        """Clean up once."""
        if "cleaned" not in run.context:
            run.commit({**run.context, "cleaned": 1}, lambda connection: enter(connection, run, CLEANED))
        yield Finished()


KINDS = {"async": AsyncLife, "sync": SyncLife}


def registry(url: str) -> Registry:
    """The types, one of each kind; their nodes may be killed as often as a test likes."""
    made = Registry()
    for kind, implementation in KINDS.items():
        made.register_task(kind, implementation, max_losses=None, retry=RETRIES)
    return made


# --- the user's part


def prepare(url: str) -> None:
    """Make the tables of the system, and the ledger."""
    Client(url, migrate="auto", strict=False).close()
    with Other(url).begin() as connection:
        connection.execute(text(LEDGER))


@dataclass
class Life:
    """One task, and what its user does and sees. `live` does it all; tests may also do it part by part."""

    client: Client
    url: str
    folder: Path
    kind: str = "async"
    group: str = ""
    patience: float = PATIENCE
    spotless: bool = True
    """Whether no attempt may fail on the way."""
    id: UUID = field(default_factory=uuid4)
    errors: list[Exception] = field(default_factory=list)
    """What the client raised where a user tries again."""

    @property
    def file(self) -> Path:
        """Where its runs note what they see."""
        return self.folder / f"{self.id.hex}.life"

    def live(self) -> None:
        """Create the task, pause it at its rest, let it finish, and delete it; check it before and after that."""
        self.create()
        self.rest()
        self.finish()
        self.check()
        self.delete()
        self.check_gone()

    def create(self) -> None:
        """Create the task; the id makes it one, however often that is repeated."""
        arguments = {"file": str(self.file)}
        self._ask(lambda: self.client.create_task(self.kind, arguments, id=self.id, group=self.group))

    def rest(self) -> None:
        """Pause the task once it rests; one whose node died there may have gone on, and finished."""
        self.until_it_rests()
        if self._wish(self.client.pause_task, InvalidTransition):
            self._until("be paused", lambda task: task.state is State.PAUSED or task.ended)

    def until_it_rests(self) -> None:
        """Wait until the task rests, or has gone on."""
        # Not by its seq, which the end of an attempt that failed raises, too.
        self._until("rest", lambda task: (task.context or {}).get("step", 0) >= REST or task.ended)

    def finish(self) -> None:
        """Let the task go on to its end."""
        self._wish(self.client.run_task, InvalidTransition)
        self._until("end", lambda task: task.ended)

    def delete(self) -> None:
        """Delete the task, and wait until its row is gone."""
        self._wish(self.client.delete_task, TaskNotFound)
        until(lambda: self.look() is None, self.patience, f"{self} to be gone")

    def look(self) -> Task | None:
        """Return the task as it is stored, None if it is gone; what its runs were told is stored must be."""
        acknowledged = max(self._acknowledged(), default=0)
        with suppress(TaskNotFound):
            task = self._ask(lambda: self.client.get_task(self.id, include_deleting=True))
            assert task.seq >= acknowledged, f"step {acknowledged} was acknowledged: {task}"
            return task
        return None

    def _acknowledged(self) -> list[int]:
        return [step for notes in self._notes().values() for word, step in notes if word == "ack"]

    def _until(self, what: str, condition: Callable[[Task], bool]) -> Task:
        def seen() -> Task | None:
            task = self.look()
            assert task is not None, f"{self} is gone"
            return task if condition(task) else None

        found = until(seen, self.patience, f"{self} to {what}")
        assert found is not None
        return found

    def _wish(self, verb: Callable[[UUID], None], refusal: type[Exception]) -> bool:
        """Ask for a change; whether there was still something to change, as a repetition may find that there is not."""
        try:
            self._ask(lambda: verb(self.id))
        except refusal:
            task = self.look()
            assert task is None or task.ended, f"{refusal.__name__} is no answer for {task}"
            return False
        return True

    def _ask(self, call: Callable[[], T]) -> T:
        """Call a verb until the database answers it."""

        def answer() -> tuple[T] | None:
            try:
                return (call(),)
            except (DatabaseUnavailable, SQLAlchemyError) as error:
                self.errors.append(error)
                return None

        found = until(answer, self.patience, f"an answer of the database about {self}")
        assert found is not None
        return found[0]

    # --- what must be true

    def check(self) -> None:
        """Check the task once it has ended: what it has done and stored, and that the errors it met left no trace."""
        row = self.row()
        assert (row.stage, row.mark) == ("finished", "run"), row
        assert not self.spotless or (row.attempt, row.errors) == (1, None), row
        assert row.attempt == 1 + len(json.loads(row.errors or "[]")), row
        assert json.loads(row.result) == expected(STEPS), row
        # Each report is stored once; a run that its node ended in order, to pause it for one, has stored that, too.
        assert 0 <= row.seq - REPORTS < row.epoch, row
        assert self.ledger() == list(COMMITTED), "each step is in the ledger exactly once"
        notes = self._notes()
        assert max(notes) <= row.epoch, (row, notes)
        self._check_runs(notes)

    def check_gone(self) -> None:
        """Check that nothing is left of the task but what it has done, clean-up included."""
        assert self.row() is None
        assert self.ledger() == [CLEANED, *COMMITTED], "the clean-up is in the ledger exactly once"

    def row(self) -> Any:
        """Return all columns of the task's row, None if there is none."""
        return Other(self.url).row(self.id)

    def ledger(self) -> list[int]:
        """Return the steps of this task that are in the ledger."""
        query = text("SELECT step FROM ledger WHERE task = :task ORDER BY step")
        with Other(self.url).begin() as connection:
            return list(connection.execute(query, {"task": self.id.hex}).scalars())

    def _check_runs(self, notes: dict[int, list[tuple[str, int]]]) -> None:
        """Each run goes on from where it was stored, which is no less than those before were told."""
        told = 0
        for epoch, (first, *acks) in sorted(notes.items()):
            assert first[0] == "start", (epoch, notes)
            assert first[1] >= told, f"run {epoch} began before a step that was acknowledged: {notes}"
            assert acks == [("ack", step) for step in range(first[1] + 1, first[1] + 1 + len(acks))], (epoch, notes)
            told = first[1] + len(acks)

    def _notes(self) -> dict[int, list[tuple[str, int]]]:
        """Return what the runs have noted, by epoch."""
        notes: dict[int, list[tuple[str, int]]] = defaultdict(list)
        with suppress(FileNotFoundError):
            for line in self.file.read_text().splitlines():
                epoch, word, step = line.split()
                notes[int(epoch)].append((word, int(step)))
        return notes

    def __str__(self) -> str:
        return f"the {self.kind} task {self.id}"
