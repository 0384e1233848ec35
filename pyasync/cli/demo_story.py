"""The demo's script: pause a task, kill a node, stop another, and wait until all is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

from pyasync.cli.demo_nodes import Fate, NodeProcess
from pyasync.cli.demo_view import View, plain
from pyasync.cli.terminal import tasks_in_words
from pyasync.cli.workloads import ON_PURPOSE
from pyasync.domain.states import State
from pyasync.domain.task import Task

STILL = 1.5
"""Seconds for which the paused task is left alone."""
PATIENCE = 90.0
"""Seconds that each act may take: a machine that is busy with other things is slow, not wrong."""
EARLY, LATE = 0.15, 0.85
"""A task in the middle of its work has done at least and at most so much of it."""


class StoryFailed(Exception):
    """Something that must happen did not."""


@dataclass
class Measured:
    """What the story measured; seconds."""

    paused: Task | None = None
    stood_still: bool = False
    victims: dict[UUID, Task] = field(default_factory=dict)
    """The tasks of the killed node, as they were when it was gone."""
    takeover: float | None = None
    """From the kill to the first new report of one of its tasks elsewhere."""
    killed: str = ""
    stopped: str = ""
    handed_over: int = 0
    leaving: float | None = None
    exit_code: int | None = None


class Story:
    """Each act is a generator that is resumed whenever `view` is new."""

    def __init__(self, view: View) -> None:
        self.measured = Measured()
        self._view = view
        self._failed: set[UUID] = set()

    def acts(self) -> Iterator[None]:
        """Play one act after the other. Raises StoryFailed."""
        yield from self._join()
        yield from self._begin()
        yield from self._pause()
        yield from self._kill()
        yield from self._stop()
        yield from self._until(lambda: all(map(self._ended, self._view.work.labels)), "all tasks to end")

    def _until(self, condition: Callable[[], object], what: str) -> Iterator[None]:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self._watch_out(deadline, what)
            yield

    def _watch_out(self, deadline: float, what: str) -> None:
        for node in self._view.nodes:
            if node.fate is Fate.DIED:
                raise StoryFailed("\n".join([f"node {plain(node.name)} ended by itself; it wrote:", *node.log()]))
        if time.monotonic() > deadline:
            raise StoryFailed(f"waited {PATIENCE:g} s for {what}")
        self._notice_failures()

    def _notice_failures(self) -> None:
        for task in self._view.ordered():
            if task.errors and task.id not in self._failed:
                self._failed.add(task.id)
                message = str(task.errors[-1]["message"])
                planned = "fails, once, on purpose; its parent restarts it"
                self._view.tell(f"{self._view.label(task)} {planned if ON_PURPOSE in message else message}")

    def _join(self) -> Iterator[None]:
        self._view.tell(f"{len(self._view.nodes)} nodes start, each a process: {self._names()}")
        yield from self._until(lambda: set(self._view.joined.values()) >= self._everybody(), "the nodes to join")
        for node in self._view.nodes:
            node.fate = Fate.ALIVE

    def _everybody(self) -> set[str]:
        return {node.name for node in self._view.nodes}

    def _names(self) -> str:
        return ", ".join(plain(node.name) for node in self._view.nodes)

    def _begin(self) -> Iterator[None]:
        self._view.client.create_tasks(self._view.work.new)
        self._view.tell("alice creates dot products; bob a matrix product, a task for each cell")
        yield from self._until(lambda: len(self._in_the_middle()) >= 3, "tasks to be in the middle of their work")

    def _in_the_middle(self, node: str | None = None) -> list[Task]:
        tasks = self._view.ordered() if node is None else self._view.tasks_of(node)
        steady = [task for task in tasks if task.id in self._view.work.steps and task.node is not None]
        return [task for task in steady if EARLY <= (task.progress or 0.0) <= LATE]

    def _ended(self, id: UUID) -> bool:
        return id in self._view.tasks and self._view.tasks[id].state is State.FINISHED

    # --- pause and resume

    def _pause(self) -> Iterator[None]:
        task = self._in_the_middle()[0]
        self._view.client.pause_task(task.id)
        self._view.tell(f"{task.user} pauses {self._view.label(task)}")
        yield from self._until(lambda: self._now(task).state is State.PAUSED, "the task to pause")
        paused, since = self._now(task), time.monotonic()
        yield from self._until(lambda: time.monotonic() - since > STILL, "time to pass")
        self.measured.paused, self.measured.stood_still = paused, self._now(task).seq == paused.seq
        self._view.client.run_task(task.id)
        self._view.tell(f"and lets it go on, from {paused.message}")
        yield from self._until(lambda: self._now(task).seq > paused.seq, "the paused task to go on")

    def _now(self, task: Task) -> Task:
        return self._view.tasks[task.id]

    # --- kill

    def _kill(self) -> Iterator[None]:
        yield from self._until(lambda: len(self._in_the_middle(self._busiest().name)) >= 2, "a node in full swing")
        node, killed_at = self._busiest(), time.monotonic()
        node.kill()
        self._view.look()  # a dead process writes no more: what it owns now are its victims
        victims = [task for task in self._view.tasks_of(node.name) if not task.ended]
        self.measured.victims = {task.id: task for task in victims}
        self.measured.killed = node.name
        self._view.tell(f"kill -9 {node.pid}: {plain(node.name)} is gone; it ran {tasks_in_words(len(victims))}")
        yield from self._until(self._taken_over, "another node to take over")
        self.measured.takeover = time.monotonic() - killed_at
        self._tell_takeover(self._taken_over()[0], self.measured.takeover)
        yield from self._until(lambda: len(self._taken_over()) == len(victims), "all its tasks to go on")

    def _tell_takeover(self, first: Task, seconds: float) -> None:
        where = f"on {plain(self._view.owner(first) or 'another node')}"
        self._view.tell(f"{seconds:.1f} s later {self._view.label(first)} reports {first.message} {where}")

    def _busiest(self) -> NodeProcess:
        alive = [node for node in self._view.nodes if node.fate is Fate.ALIVE]
        return max(alive, key=lambda node: len(self._in_the_middle(node.name)))

    def _taken_over(self) -> list[Task]:
        """Return the killed node's tasks that were claimed again, and have reported since."""
        before = self.measured.victims
        tasks = [task for task in self._view.ordered() if task.id in before and task.epoch > before[task.id].epoch]
        return [task for task in tasks if task.seq > before[task.id].seq]

    # --- stop

    def _stop(self) -> Iterator[None]:
        node, began = self._busiest(), time.monotonic()
        tasks = self._view.tasks_of(node.name)
        node.stop()
        self._view.tell(f"kill -TERM {node.pid}: {plain(node.name)} hands {tasks_in_words(len(tasks))} over and leaves")
        yield from self._until(lambda: node.exit_code is not None, "the node to leave")
        node.look()
        self.measured.stopped, self.measured.handed_over = node.name, len(tasks)
        self.measured.leaving, self.measured.exit_code = time.monotonic() - began, node.exit_code
        rest = ", ".join(plain(each.name) for each in self._view.nodes if each.fate is Fate.ALIVE)
        self._view.tell(f"it has left after {self.measured.leaving:.1f} s; {rest} does the rest")
