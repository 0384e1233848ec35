"""What must be true after any run of "steps" and "ledger" tasks, whatever happened to the nodes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from pyasync import NewTask, State
from tests.faults.nodes import Cluster
from tests.faults.worker import expected

APPLIED = "CREATE TABLE applied (task VARCHAR(32) NOT NULL, step INTEGER NOT NULL, PRIMARY KEY (task, step))"


@dataclass
class Work:
    """Tasks of `steps` steps, `pause` seconds apart; every other one inserts its steps into a table."""

    cluster: Cluster
    file: Path
    steps: int
    pause: float

    def create(self, number: int, types: Sequence[str] = ("steps", "ledger")) -> list[UUID]:
        """Create the table and the tasks, of the types in turn."""
        self.cluster.execute(APPLIED)
        arguments = {"n": self.steps, "pause": self.pause, "file": str(self.file)}
        new = [NewTask(type=types[place % len(types)], arguments=arguments) for place in range(number)]
        return self.cluster.client.create_tasks(new)

    def done(self) -> bool:
        """Whether no task is left to run."""
        return all(state in (State.FINISHED, State.FAILED) for state in self.cluster.client.count_tasks())

    def check(self) -> int:
        """Check every task's row, result and steps, and return how many steps were made in vain."""
        made = self.made()
        applied = self._applied()
        rows = self.cluster.rows("id", "type", "stage", "mark", "seq", "epoch", "attempt", "errors", "result")
        for row in rows:
            self._check_row(row)
            self._check_lives(row, made[row.id])
            assert applied[row.id] == (list(range(1, self.steps + 1)) if row.type == "ledger" else []), row
        return sum(len(steps) for lives in made.values() for steps in lives.values()) - self.steps * len(rows)

    def _check_row(self, row: Row[Any]) -> None:
        assert (row.stage, row.mark, row.attempt, row.errors) == ("finished", "run", 1, None), row
        assert json.loads(row.result) == expected(self.steps), row
        assert row.seq == self.steps + 1, f"each step, and the end, is stored once: {row}"

    def _check_lives(self, row: Row[Any], lives: dict[int, list[int]]) -> None:
        """Each life goes on where the one before was stored, which has made at most one step more than that."""
        last = 0
        for epoch, steps in sorted(lives.items()):
            assert epoch <= row.epoch, (row, lives)
            assert steps == list(range(steps[0], steps[0] + len(steps))), (row, lives)
            assert steps[0] in (last, last + 1), (row, lives)
            last = steps[-1]
        assert last == self.steps, (row, lives)

    def made(self) -> dict[UUID, dict[int, list[int]]]:
        """The steps that were made, stored or not, by task and epoch."""
        made: dict[UUID, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for line in self.file.read_text().splitlines():
            task, step, epoch, _ = line.split()
            made[UUID(task)][int(epoch)].append(int(step))
        return made

    def _applied(self) -> dict[UUID, list[int]]:
        applied: dict[UUID, list[int]] = defaultdict(list)
        for task, step in self.cluster.execute("SELECT task, step FROM applied ORDER BY task, step"):
            applied[UUID(task)].append(step)
        return applied
