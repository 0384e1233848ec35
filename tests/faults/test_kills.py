"""Nodes that are killed one after the other, and what they leave."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest

from tests.faults.checks import Work
from tests.faults.effort import Effort
from tests.faults.nodes import Cluster, NodeProcess
from tests.faults.residue import sessions
from tests.waiting import until

INTERVAL = 0.5
LEASE = 3.0
"""For nodes that are killed before any other has seen them alive."""
NODES = 4


@dataclass
class Killer:
    """Kills a node again and again, a busy one if there is one, and starts another."""

    cluster: Cluster
    random: random.Random
    settings: dict[str, object]
    kills: int
    hits: list[int] = field(default_factory=list)
    """How many tasks each of those had running that had any."""

    def run(self, work: Work, timeout: float) -> None:
        """Kill so often, or until no task is left, and wait until none is."""
        give_up = time.monotonic() + timeout
        while not work.done():
            assert time.monotonic() < give_up, f"after {self.hits}: {self.cluster.client.count_tasks()}"
            if len(self.hits) < self.kills:
                self._kill()
            at = time.monotonic() + INTERVAL * self.random.uniform(0.5, 1.5)
            # A machine so busy that a start takes longer than an interval would have no node left.
            until(lambda at=at: time.monotonic() >= at and self.cluster.all_joined(), 60.0, "the next kill")

    def _kill(self) -> None:
        running = self.cluster.running()
        victim, tasks = self._choose(running)
        victim.kill()
        if tasks:
            self.hits.append(tasks)
        self.cluster.start(wait=False, **self.settings)

    def _choose(self, running: dict[UUID, int]) -> tuple[NodeProcess, int]:
        """A node that runs tasks, by their rows; if none does, any."""
        names = {info.id: info.name for info in self.cluster.client.get_nodes()}
        tasks = {names[node]: number for node, number in running.items() if node in names}
        alive = self.cluster.alive()
        busy = [node for node in alive if tasks.get(node.name)]
        victim = self.random.choice(busy or alive)
        return victim, tasks.get(victim.name, 0)


@pytest.mark.timeout(240)
def test_tasks_finish_exactly_while_one_node_after_the_other_is_killed(
    cluster: Cluster, tmp_path: Path, effort: Effort
) -> None:
    long = 2000 if cluster.url.startswith("postgresql") else 600
    tasks, concurrency = effort.number(200, long), 15 if effort.long else 5
    work = Work(cluster, tmp_path / "steps", steps=6, pause=0.1)
    settings: dict[str, object] = {"concurrency": concurrency, "lease": LEASE}
    killer = Killer(cluster, effort.random("kills"), settings, kills=effort.number(7, 30))
    work.create(tasks, ("steps",) * 7 + ("ledger",))
    before = sessions(cluster.url)
    started = time.monotonic()
    cluster.start_some(NODES, **settings)

    killer.run(work, timeout=180.0)

    took = time.monotonic() - started
    in_vain = work.check()
    print(f"{took:.1f} s, {len(killer.hits)} kills of nodes that ran {sum(killer.hits)} tasks;")
    print(f"{work.counted}; {cluster.taken_over()} taken over by nodes that live to tell; {in_vain} made in vain")
    assert len(killer.hits) >= effort.number(5, 25), "too few kills hit running tasks to prove anything"
    assert work.counted["takeover"] >= max(cluster.taken_over(), 1)
    for node in cluster.alive():
        assert node.terminate() == 0
    until(lambda: sessions(cluster.url) <= before, what="the sessions of all nodes to be gone")
