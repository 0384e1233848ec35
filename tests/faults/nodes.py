"""Node processes for the tests: each is started, stopped and killed by its pid, and leaves a log.

with Cluster(url, nursery, folder) as cluster:
    node = cluster.start(concurrency=5)
    cluster.client.create_tasks(...)
    node.kill()
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from sqlalchemy import Row, create_engine, func, make_url, select
from sqlalchemy.exc import OperationalError

from pyasync import Client, NodeInfo
from pyasync.store.tables import tables
from tests.waiting import until

START_TIMEOUT = 30.0
SHOWN = 60  # lines of a log that are shown of a test that failed
LOCK_PATIENCE = 0.25
"""Seconds after which SQLite's write lock counts as held by somebody who does not go on."""


class Nursery:
    """A process that forks node processes from one that has imported all they need."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests, which then end it
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=START_TIMEOUT)

    def fork(self, url: str, settings: dict[str, Any], errors: Path) -> int:
        """Start a node process, and return its pid."""
        return int(self._ask(url=url, settings=settings, errors=str(errors)))

    def ended(self, pid: int) -> int | None:
        """The exit code of one of its children, None while that lives; to be asked until it is known, and not again."""
        return self._ask(ended=pid)  # type: ignore[no-any-return]

    def wait_until_stopped(self, pid: int) -> None:
        """Wait until all threads of a child that was sent SIGSTOP have stopped: kill() returns before that."""
        assert self._ask(stopped=pid), "it ended instead"

    def _ask(self, **order: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the nursery has ended"
        return json.loads(answer)


class NodeProcess:
    """A process that runs a node. `code` is its exit code, None as long as nobody has seen its end."""

    def __init__(self, cluster: Cluster, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        self.code: int | None = None
        self._cluster = cluster
        self._errors = cluster.folder / f"{name}.log"
        self.pid = cluster.nursery.fork(cluster.url, {**settings, "name": name}, self._errors)

    def __repr__(self) -> str:
        return f"<{self.name}, pid {self.pid}, exit code {self.code}>"

    def kill(self) -> float:
        """End it by SIGKILL; return when, by the monotonic clock, that was asked for."""
        at = time.monotonic()
        self._signal(signal.SIGKILL)
        self.wait()
        return at

    def terminate(self) -> int:
        """End it by SIGTERM, and return its exit code."""
        self.ask_to_stop()
        return self.wait()

    def ask_to_stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Send it a signal; return when, by the monotonic clock, that was."""
        at = time.monotonic()
        self._signal(number)
        return at

    def stop(self) -> None:
        """Let it do nothing at all until `go_on`, in the middle of whatever it did."""
        self._signal(signal.SIGSTOP)
        self._cluster.nursery.wait_until_stopped(self.pid)

    def stop_outside_of_transactions(self) -> None:
        """Stop it where it does not hold the one write lock of a SQLite database: it would lock everybody out."""
        self.stop()
        while not self._cluster.can_write():
            self.go_on()
            until(self._cluster.can_write, what="the stopped node to let go of the database")
            self.stop()

    def stop_inside_a_transaction(self) -> float:
        """Stop it between storing reports and the commit; it must have tasks that report. Return when it had."""
        self._signal(signal.SIGUSR1)
        self._cluster.nursery.wait_until_stopped(self.pid)
        return time.monotonic()

    def go_on(self) -> None:
        """Let it go on after a stop."""
        self._signal(signal.SIGCONT)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait until it has ended, and return its exit code."""
        until(lambda: not self.alive, timeout, f"the end of {self}")
        assert self.code is not None
        return self.code

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        if self.code is None:
            self.code = self._cluster.nursery.ended(self.pid)
        return self.code is None

    def row(self) -> NodeInfo | None:
        """Its row, if it has joined; the newest one."""
        return next((info for info in reversed(self._cluster.client.get_nodes()) if info.name == self.name), None)

    def id(self) -> UUID:
        """The id under which it has joined."""
        row = self.row()
        assert row is not None, f"{self} has not joined\n{self.text()}"
        return row.id

    def joined(self) -> bool:
        """Whether it has joined. Fails if it has ended."""
        assert self.alive, f"{self} ended\n{self.text()}"
        return self.row() is not None

    def joined_again(self, was: UUID) -> bool:
        """Whether it has joined under another id than it had. Fails if it has ended."""
        assert self.alive, f"{self} ended\n{self.text()}"
        row = self.row()
        return row is not None and row.id != was

    def text(self) -> str:
        """The end of what it wrote."""
        with suppress(FileNotFoundError):
            return "\n".join(self._errors.read_text().splitlines()[-SHOWN:])
        return ""

    def lines(self, message: str = "") -> list[dict[str, Any]]:
        """The lines of its log whose message begins so."""
        with suppress(FileNotFoundError):
            lines = [_line(line) for line in self._errors.read_text().splitlines()]
            return [line for line in lines if line["message"].startswith(message)]
        return []

    def _signal(self, number: signal.Signals) -> None:
        assert self.alive, f"{self} has ended\n{self.text()}"
        os.kill(self.pid, number)


def _line(text: str) -> dict[str, Any]:
    with suppress(json.JSONDecodeError):  # a traceback of the interpreter, or a line that a kill cut off
        line = json.loads(text)
        if isinstance(line, dict):
            return line
    return {"message": text, "level": "?"}


class Cluster:
    """The node processes of one test, and a client of the same system. All are killed at the end."""

    def __init__(self, url: str, nursery: Nursery, folder: Path) -> None:
        self.url = url
        self.nursery = nursery
        self.folder = folder
        self.nodes: list[NodeProcess] = []
        self.client = Client(url, migrate="auto", strict=False)
        self._engine = create_engine(url, isolation_level="AUTOCOMMIT")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.alive():
            node.kill()
        for node in self.nodes:
            # pytest keeps this to itself unless the test has failed.
            print(f"--- {node}\n{node.text()}")
        self.client.close()
        self._engine.dispose()

    def start(self, *, wait: bool = True, **settings: Any) -> NodeProcess:
        """Start a node, and wait until it has joined."""
        node = NodeProcess(self, f"node-{len(self.nodes) + 1}", settings)
        self.nodes.append(node)
        if wait:
            until(node.joined, START_TIMEOUT, f"{node} to join")
        return node

    def start_some(self, number: int, **settings: Any) -> list[NodeProcess]:
        """Start some nodes at once, and wait until all have joined."""
        nodes = [self.start(wait=False, **settings) for _ in range(number)]
        for node in nodes:
            until(node.joined, START_TIMEOUT, f"{node} to join")
        return nodes

    def alive(self) -> list[NodeProcess]:
        """The processes that have not ended."""
        return [node for node in self.nodes if node.alive]

    def all_joined(self) -> bool:
        """Whether every process that has not ended has joined."""
        names = {info.name for info in self.client.get_nodes()}
        return all(node.name in names for node in self.alive())

    def rows(self, *columns: str) -> Sequence[Row[Any]]:
        """These columns of all tasks, in the order of creation."""
        column = tables(None).task.c
        with self._engine.connect() as connection:
            return connection.execute(select(*(column[name] for name in columns)).order_by(column.id)).all()

    def running(self) -> Counter[UUID]:
        """How many tasks each node runs, by the tasks' rows."""
        column = tables(None).task.c
        query = select(column.node_id, func.count()).where(column.node_id.is_not(None)).group_by(column.node_id)
        with self._engine.connect() as connection:
            return Counter({row[0]: row[1] for row in connection.execute(query)})

    def can_write(self) -> bool:
        """Whether someone can write who does not want to wait. Only SQLite says no: it has one writer."""
        if make_url(self.url).get_backend_name() != "sqlite":
            return True
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql(f"pragma busy_timeout = {int(LOCK_PATIENCE * 1000)}")
                connection.exec_driver_sql("begin immediate")
                connection.exec_driver_sql("rollback")
        except OperationalError:
            return False
        return True

    def execute(self, sql: str) -> Sequence[Row[Any]]:
        """Run a statement, and return its rows if it has any."""
        with self._engine.connect() as connection:
            result = connection.exec_driver_sql(sql)
            return result.all() if result.returns_rows else []

    def lines(self, message: str) -> Iterator[dict[str, Any]]:
        """The lines of all logs whose message begins so."""
        for node in self.nodes:
            yield from node.lines(message)

    def taken_over(self) -> int:
        """How many tasks the nodes say that they have taken over from lost ones."""
        return sum(line["tasks"] for line in self.lines("tasks were taken over"))
