"""What the demo has shown, computed from the database and the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from pyasync.cli.demo_story import Measured
from pyasync.cli.demo_view import plain
from pyasync.cli.demo_work import Work
from pyasync.cli.terminal import tasks_in_words
from pyasync.client import Client
from pyasync.domain.states import State
from pyasync.domain.task import Task


@dataclass(frozen=True)
class Check:
    """One claim, whether it holds, and the figures."""

    name: str
    holds: bool
    text: str


def judge(client: Client, work: Work, ledger: Counter[tuple[UUID, int]], measured: Measured) -> list[Check]:
    """Check everything that the demo claims."""
    ids = list(work.labels)
    tasks = {task.id: task for task in client.get_tasks(ids=ids, limit=len(ids))}
    return [
        *_endings(work, tasks),
        _steps(work, ledger, measured),
        _pause(work, measured),
        _takeover(work, measured),
        _handover(measured),
    ]


def _endings(work: Work, tasks: dict[UUID, Task]) -> Iterator[Check]:
    finished = [task for task in tasks.values() if task.state is State.FINISHED]
    lost = [id for id in work.labels if id not in tasks]
    right = [id for id, wanted in work.results.items() if id in tasks and tasks[id].result == wanted]
    total = len(work.labels)
    yield Check("finished", len(finished) == total, f"{len(finished)} of {total} tasks")
    yield Check("lost", not lost, tasks_in_words(len(lost)))
    yield Check("results", len(right) == total, f"{len(right)} of {total} are those of a direct computation")


def _steps(work: Work, ledger: Counter[tuple[UUID, int]], measured: Measured) -> Check:
    """A takeover repeats at most the step that was under way; nothing else repeats any."""
    needed = {(id, step) for id, steps in work.steps.items() for step in range(steps)}
    missing = needed - ledger.keys()
    repeated = Counter(id for (id, _), times in ledger.items() for _ in range(times - 1))
    allowed = all(id in measured.victims and times <= 1 for id, times in repeated.items())
    twice = f"{repeated.total()} twice, which kill -9 had cut off" if repeated else "none twice"
    text = f"{len(needed)} needed, {ledger.total()} begun: {twice}"
    return Check("steps", not missing and allowed and ledger.keys() <= needed, text)


def _pause(work: Work, measured: Measured) -> Check:
    if measured.paused is None:
        return Check("pause", False, "nothing was paused")
    what = work.labels[measured.paused.id]
    text = "stood still, and went on from its checkpoint" if measured.stood_still else "did not stand still"
    return Check("pause", measured.stood_still, f"{what} {text}")


def _takeover(work: Work, measured: Measured) -> Check:
    tasks = len(measured.victims)
    if measured.takeover is None or not tasks:
        return Check("takeover", False, "no task was taken over")
    text = f"{measured.takeover:.2f} s from kill -9 to a report on another node, of {tasks_in_words(tasks)}"
    return Check("takeover", True, text)


def _handover(measured: Measured) -> Check:
    if measured.leaving is None:
        return Check("hand-over", False, "no node was stopped")
    name, tasks = plain(measured.stopped), tasks_in_words(measured.handed_over)
    text = f"{measured.leaving:.2f} s for {name} to leave and hand over {tasks}, exit code {measured.exit_code}"
    return Check("hand-over", measured.exit_code == 0, text)
