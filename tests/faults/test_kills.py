"""Nodes that are killed every second, and what they leave."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest

from tests.faults.checks import Work
from tests.faults.nodes import Cluster, NodeProcess
from tests.waiting import until

INTERVAL = 1.0
KILLS = 30
"""At most: enough to prove it, and each costs half a second of CPU for the node that takes the place."""
LEASE = 3.0
"""For nodes that are killed before any other has seen them alive."""


@dataclass
class Killer:
    """Kills a node every second, a busy one if there is one, and starts another."""

    cluster: Cluster
    seed: int
    settings: dict[str, object]
    kills: int = 0
    hits: list[int] = field(default_factory=list)
    """How many tasks each of those had running that had any."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def run(self, work: Work, timeout: float) -> None:
        """Kill until no task is left."""
        give_up = time.monotonic() + timeout
        while not work.done():
            assert time.monotonic() < give_up, f"after {self.kills} kills: {self.cluster.client.count_tasks()}"
            if self.kills < KILLS:
                self._kill()
            at = time.monotonic() + INTERVAL
            # A machine so busy that a start takes longer than an interval would have no node left.
            until(lambda at=at: time.monotonic() >= at and self.cluster.all_joined(), 60.0, "the next kill")

    def _kill(self) -> None:
        running = self.cluster.running()
        victim, tasks = self._choose(running)
        victim.kill()
        self.kills += 1
        if tasks:
            self.hits.append(tasks)
        self.cluster.start(wait=False, **self.settings)

    def _choose(self, running: dict[UUID, int]) -> tuple[NodeProcess, int]:
        """A node that runs tasks, by their rows; if none does, any."""
        names = {info.id: info.name for info in self.cluster.client.get_nodes()}
        tasks = {names[node]: number for node, number in running.items() if node in names}
        alive = self.cluster.alive()
        busy = [node for node in alive if tasks.get(node.name)]
        victim = self._random.choice(busy or alive)
        return victim, tasks.get(victim.name, 0)


def run_under_kills(cluster: Cluster, folder: Path, *, nodes: int, tasks: int, concurrency: int, hits: int) -> None:
    settings: dict[str, object] = {"concurrency": concurrency, "lease": LEASE}
    killer = Killer(cluster, random.randrange(2**32), settings)
    print("seed", killer.seed)
    work = Work(cluster, folder / "steps", steps=5, pause=0.05)
    work.create(tasks, ("steps",) * 7 + ("ledger",))
    started = time.monotonic()
    cluster.start_some(nodes, **settings)

    killer.run(work, timeout=150.0)

    took = time.monotonic() - started
    in_vain = work.check()
    print(f"{took:.1f} s, {killer.kills} kills, {len(killer.hits)} hit {sum(killer.hits)} running tasks;")
    print(f"{cluster.taken_over()} taken over by nodes that live to tell; {in_vain} steps made in vain")
    assert len(killer.hits) >= hits, "too few kills hit running tasks to prove anything"


@pytest.mark.databases("postgresql")
@pytest.mark.timeout(240)
def test_two_thousand_tasks_finish_exactly_while_a_node_is_killed_every_second(
    cluster: Cluster, tmp_path: Path
) -> None:
    run_under_kills(cluster, tmp_path, nodes=4, tasks=2000, concurrency=15, hits=10)


@pytest.mark.databases("mariadb", "sqlite")
@pytest.mark.timeout(240)
def test_some_tasks_finish_exactly_while_a_node_is_killed_every_second(cluster: Cluster, tmp_path: Path) -> None:
    run_under_kills(cluster, tmp_path, nodes=3, tasks=200, concurrency=5, hits=4)
