"""What the demo sees at one moment, and what it told so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from pyasync.cli.demo_nodes import Nodes
from pyasync.cli.demo_work import Work
from pyasync.client import Client
from pyasync.domain.states import State
from pyasync.domain.task import Task


@dataclass
class View:
    """Tasks and nodes as the database has them, read again by `look`."""

    client: Client
    work: Work
    nodes: Nodes
    clock: Callable[[], float]
    """Seconds since the curtain rose."""
    tasks: dict[UUID, Task] = field(default_factory=dict)
    joined: dict[UUID, str] = field(default_factory=dict)
    """Names of nodes, also of those that are gone, by their ids."""
    told: list[tuple[float, str]] = field(default_factory=list)

    def look(self) -> None:
        """Read tasks and nodes."""
        ids = list(self.work.labels)
        self.tasks = {task.id: task for task in self.client.get_tasks(ids=ids, limit=len(ids))}
        names = {node.name for node in self.nodes}
        self.joined |= {node.id: node.name for node in self.client.get_nodes() if node.name in names}
        for node in self.nodes:
            node.look()

    def tell(self, text: str) -> None:
        """Note an event."""
        self.told.append((self.clock(), text))

    def owner(self, task: Task) -> str | None:
        """Return the name of the node that runs a task."""
        return None if task.node is None else self.joined.get(task.node)

    def tasks_of(self, name: str) -> list[Task]:
        """Return the tasks that a node runs."""
        return [task for task in self.ordered() if self.owner(task) == name]

    def ordered(self) -> list[Task]:
        """Return the tasks in the order of the plan."""
        return [self.tasks[id] for id in self.work.labels if id in self.tasks]

    def label(self, task: Task) -> str:
        """Return a task's name for people."""
        return self.work.labels[task.id]

    def progress(self) -> float:
        """Return how much of all steps is done."""
        done = sum((task.progress or 0.0) * self.work.steps.get(id, 0) for id, task in self.tasks.items())
        return done / sum(self.work.steps.values())

    def count(self, state: State) -> int:
        """Return how many tasks are in a state."""
        return sum(task.state is state for task in self.tasks.values())


def plain(name: str) -> str:
    """Return a node's or group's name without the tag that keeps two demos apart."""
    return name.rpartition("-")[0] or name
