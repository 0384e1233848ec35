"""Nodes that run tasks, and a client that creates more of them: what the faults of a database are tried on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from sqlalchemy import create_engine

from pyasync import Client, PyasyncError
from pyasync.ids import new_id
from tests.faults.checks import Work
from tests.faults.nodes import Cluster, Nursery
from tests.waiting import until

LEASE = 3.0


@dataclass
class Load:
    """Nodes that run tasks, and a client that creates more of them all the time."""

    cluster: Cluster
    work: Work
    creator: Creator

    def made(self) -> int:
        """How many steps were made, stored or not."""
        return len(self.work.file.read_text().splitlines())

    def flows(self, steps: int = 20) -> float:
        """Wait until so many more steps were made while tasks run, and return in how many seconds."""
        began, made = time.monotonic(), self.made()
        until(lambda: self.made() >= made + steps, 60.0, "tasks to go on")
        return time.monotonic() - began

    def check(self) -> None:
        """Let all tasks end, and check that nothing was lost, failed or taken over."""
        self.creator.stop()
        until(self.work.done, 90.0, "the tasks to finish")
        self.work.check()
        assert self.creator.acknowledged()
        assert set(self.creator.acknowledged()) <= {row.id for row in self.cluster.rows("id")}
        assert list(self.cluster.lines("a node was declared lost")) == []
        assert list(self.cluster.lines("this node was declared lost")) == []
        assert self.cluster.taken_over() == 0
        print(f"{len(self.creator.acknowledged())} tasks created meanwhile, {self.creator.raised} creations raised")


@contextmanager
def loaded(
    url: str,
    nursery: Nursery,
    folder: Path,
    *,
    tasks: int = 12,
    steps: int = 12,
    create_every: float = 0.1,
    **settings: object,
) -> Iterator[Load]:
    """Start two nodes and a client that creates tasks."""
    with Cluster(url, nursery, folder) as cluster:
        # The cluster's own connections do not outlive the faults.
        cluster._engine = create_engine(url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        work = Work(cluster, folder / "steps", steps=steps, pause=0.1)
        work.create(tasks)
        cluster.start_some(2, **{"concurrency": 12, "lease": LEASE} | settings)
        with Creator(url, folder / "created", work.arguments, create_every) as creator:
            load = Load(cluster, work, creator)
            until(work.file.exists, what="the first step")
            load.flows()
            yield load


class Creator:
    """Creates a task every `pause` seconds; one whose creation raised is created again, under the same id."""

    def __init__(self, url: str, log: Path, arguments: dict[str, Any], pause: float) -> None:
        self.raised = 0
        self._client = Client(url, migrate="off", strict=False)
        self._log = log
        self._arguments = arguments
        self._pause = pause
        self._told = threading.Event()
        self._thread = threading.Thread(target=self._create, name="creator")

    def __enter__(self) -> Self:
        self._log.touch()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._client.close()

    def stop(self) -> None:
        """Stop when the creation under way is acknowledged."""
        self._told.set()
        self._thread.join()

    def acknowledged(self) -> list[UUID]:
        """What has been acknowledged."""
        return [UUID(line) for line in self._log.read_text().splitlines()]

    def _create(self) -> None:
        with open(self._log, "a") as log:
            types = cycle(("steps", "ledger"))
            while not self._told.wait(self._pause):
                self._create_one(next(types), task_id := new_id())
                log.write(f"{task_id}\n")
                log.flush()
                os.fsync(log.fileno())

    def _create_one(self, type: str, task_id: UUID) -> None:
        while True:
            try:
                self._client.create_task(type, self._arguments, id=task_id)
                return
            except PyasyncError as error:
                self.raised += 1
                print("a creation raised", repr(error))
                if self._told.is_set():
                    raise
