"""What must be true after any run of "steps" and "ledger" tasks, whatever happened to the nodes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from pyasync import NewTask, State
from pyasync.domain.states import Event, Mark, Stage, Status
from pyasync.domain.transitions import step
from tests.faults.history import History
from tests.faults.nodes import Cluster
from tests.faults.worker import ACKNOWLEDGED, CREATED, append, expected

PAGE = 1_000
HIDDEN = [(Stage.PENDING, Mark.DELETE), (Stage.DELETING, Mark.DELETE), (Stage.PAUSED, Mark.DELETE)]
"""What is on its way out is listed only for those who ask for it."""

APPLIED = "CREATE TABLE applied (task VARCHAR(32) NOT NULL, step INTEGER NOT NULL, PRIMARY KEY (task, step))"


@dataclass
class Work:
    """Tasks of `steps` steps, `pause` seconds apart; every other one inserts its steps into a table."""

    cluster: Cluster
    file: Path
    steps: int
    pause: float
    counted: Counter[str] = field(default_factory=Counter)
    """What the last check has counted in the history: claims, takeovers and so on."""
    _history: History | None = None

    def create(self, number: int, types: Sequence[str] = ("steps", "ledger")) -> list[UUID]:
        """Create so many tasks, of the types in turn, and write down that they were acknowledged."""
        self.prepare()
        new = [NewTask(type=types[place % len(types)], arguments=self.arguments) for place in range(number)]
        ids = self.cluster.client.create_tasks(new)
        for each in ids:
            append(self._named(CREATED), str(each), durably=True)
        return ids

    def prepare(self) -> None:
        """Create the table, and have the history written from now on; doing so twice does nothing."""
        if self._history is None:
            self.cluster.execute(APPLIED)
            self._history = History(self.cluster.url)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of each task."""
        return {"n": self.steps, "pause": self.pause, "file": str(self.file)}

    def done(self) -> bool:
        """Whether no task is left to run."""
        return all(state in (State.FINISHED, State.FAILED) for state in self.cluster.client.count_tasks())

    def check(self) -> int:
        """Check every task's row, history, result and steps, and return how many steps were made in vain."""
        made = self.made()
        applied = self._applied()
        kept = "id type stage mark seq epoch attempt errors result".split()
        rows = [row for row in self.cluster.rows(*kept) if row.type in ("steps", "ledger")]
        history = self._checked_history()
        for row in rows:
            self._check_row(row)
            self._check_counts(row, history[row.id])
            self._check_lives(row, made[row.id])
            assert applied[row.id] == (list(range(1, self.steps + 1)) if row.type == "ledger" else []), row
        self._check_acknowledged({row.id: row for row in rows}, made)
        check_visible(self.cluster)
        in_vain = sum(len(steps) for lives in made.values() for steps in lives.values()) - self.steps * len(rows)
        assert 0 <= in_vain <= self.counted["takeover"] + self.counted["forced end"], self.counted
        return in_vain

    def _checked_history(self) -> dict[UUID, Counter[str]]:
        assert self._history is not None
        history = self._history.check()
        self.counted = sum(history.values(), Counter())
        return history

    def _check_acknowledged(self, rows: dict[UUID, Row[Any]], made: dict[UUID, dict[int, list[int]]]) -> None:
        """What somebody was told is stored is there, and nobody has done it again."""
        created = self.created()
        assert created <= rows.keys(), f"created, and gone: {created - rows.keys()}"
        told = self._lines(ACKNOWLEDGED)
        assert told, "no step was acknowledged"
        for line in told:
            task, number, epoch = line.split()
            assert rows[UUID(task)].seq >= int(number), line
            later = [steps for life, steps in made[UUID(task)].items() if life > int(epoch)]
            assert all(min(steps) > int(number) for steps in later), f"made again: {line}, {later}"

    def _check_row(self, row: Row[Any]) -> None:
        assert (row.stage, row.mark, row.attempt, row.errors) == ("finished", "run", 1, None), row
        assert json.loads(row.result) == expected(self.steps), row

    def _check_counts(self, row: Row[Any], counted: Counter[str]) -> None:
        """Each claim ends once, by the run itself or by a takeover."""
        assert counted["report"] == self.steps, f"each step is stored once: {row}, {counted}"
        ends = counted["end"] + counted["forced end"]
        assert (row.seq, row.epoch) == (self.steps + ends, ends + counted["takeover"]), f"{row}, {counted}"

    def _check_lives(self, row: Row[Any], lives: dict[int, list[int]]) -> None:
        """Each life goes on where the one before was stored, which has made at most one step more than that."""
        last = 0
        for epoch, steps in sorted(lives.items()):
            assert epoch <= row.epoch, (row, lives)
            assert steps == list(range(steps[0], steps[0] + len(steps))), (row, lives)
            assert steps[0] in (last, last + 1), (row, lives)
            last = steps[-1]
        assert last == self.steps, (row, lives)

    def created(self) -> set[UUID]:
        """The tasks whose creation was acknowledged."""
        return {UUID(line) for line in self._lines(CREATED)}

    def made(self) -> dict[UUID, dict[int, list[int]]]:
        """The steps that were made, stored or not, by task and epoch."""
        made: dict[UUID, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for line in self._lines():
            task, number, epoch, _ = line.split()
            made[UUID(task)][int(epoch)].append(int(number))
        return made

    def _lines(self, ending: str = "") -> list[str]:
        return Path(self._named(ending)).read_text().splitlines()

    def _named(self, ending: str) -> str:
        return str(self.file) + ending

    def _applied(self) -> dict[UUID, list[int]]:
        applied: dict[UUID, list[int]] = defaultdict(list)
        for task, number in self.cluster.execute("SELECT task, step FROM applied ORDER BY task, step"):
            applied[UUID(task)].append(number)
        return applied


def check_visible(cluster: Cluster) -> None:
    """Every task can be deleted by a user, and is listed unless somebody has asked for that."""
    rows = cluster.rows("id", "stage", "mark")
    statuses = {row.id: Status(Stage(row.stage), Mark(row.mark)) for row in rows}
    for status in set(statuses.values()):
        step(status, Event.USER_DELETE)
    listed, shown = _listed(cluster, include_deleting=True), _listed(cluster)
    assert listed == statuses.keys()
    assert shown == {each for each, status in statuses.items() if status not in HIDDEN}


def _listed(cluster: Cluster, **more: Any) -> set[UUID]:
    found: list[UUID] = []
    while page := cluster.client.get_tasks(limit=PAGE, after=found[-1] if found else None, **more):
        found += [task.id for task in page]
    return set(found)
