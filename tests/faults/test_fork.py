"""F34: processes that a task forks or starts: they neither beat nor use our sockets, and our node goes on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pyasync import Finished, ForkedProcess, NewTask, Registry, State, current_run
from pyasync.runtime.executor import FORKED
from tests.faults import worker
from tests.faults.nodes import Cluster
from tests.faults.residue import files
from tests.runtime.conftest import Nodes
from tests.runtime.gate import PATIENCE
from tests.waiting import until

# SQLite's library is not to be carried over a fork while another thread writes, as the guide says.
SERVERS = pytest.mark.databases("postgresql", "mariadb")
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

LEASE = 1.0
DONE, OTHERWISE, REFUSED = 0, 3, 7


def code_of(deed: Callable[[], object]) -> int:
    """Fork, do something in the child, and return how that went as its exit code."""
    pid = os.fork()
    if pid == 0:
        code = OTHERWISE
        with suppress(BaseException):
            try:
                deed()
                code = DONE
            except ForkedProcess:
                code = REFUSED
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def code_of_process(deed: Callable[[], object]) -> int | None:
    """Do as `code_of` does, by multiprocessing."""

    def main() -> None:
        try:
            deed()
        except ForkedProcess:
            sys.exit(REFUSED)

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    process.join(PATIENCE)
    return process.exitcode


@SERVERS
@pytest.mark.parametrize("by", [code_of, code_of_process])
def test_child_of_a_task_cannot_use_its_parents_node_which_goes_on(
    node: Nodes, by: Callable[[Callable[[], object]], int]
) -> None:
    registry = Registry()
    registry.register_task("child", lambda: "done")

    @registry.task("forks")
    def forks() -> dict[str, int]:
        run = current_run()
        return {
            "a verb": by(started.get_tasks),
            "a verb that writes": by(lambda: started.create_task("child")),
            "run.commit": by(lambda: run.commit("in a child", lambda connection: None)),
            "stop": by(started.stop),
        }

    started = node(registry, lease=LEASE)
    was = started.health().node_id

    task = started.wait_task(started.create_task("forks"), PATIENCE)

    assert task.result == {"a verb": REFUSED, "a verb that writes": REFUSED, "run.commit": REFUSED, "stop": DONE}
    assert (task.state, task.context) == (State.FINISHED, None)
    assert started.result(started.create_task("child"), PATIENCE) == "done"
    assert started.count_tasks() == {State.FINISHED: 2}, "no child has created any"
    assert (started.health().node_id, started.health().ok) == (was, True)


def _ended(pid: int) -> int:
    """Wait for a child's end, and return its exit code."""
    try:
        status = until(lambda: os.waitpid(pid, os.WNOHANG)[1], 20.0, "the child to end")
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return os.waitstatus_to_exitcode(status)


def plain() -> Any:
    return os.fork()


async def plain_async() -> Any:
    return os.fork()


def generator(run: Any) -> Iterator[Any]:
    pid = os.fork()
    yield {"pid": pid}
    yield Finished(pid)


async def generator_async(run: Any) -> AsyncIterator[Any]:
    pid = os.fork()
    yield {"pid": pid}
    yield Finished(pid)


def raising(run: Any) -> Iterator[Any]:
    pid = os.fork()
    if pid == 0:
        raise OSError("in the child")
    yield Finished(pid)


@SERVERS
@pytest.mark.parametrize("body", [plain, plain_async, generator, generator_async, raising])
def test_child_that_comes_back_from_a_tasks_code_ends_and_writes_nothing(node: Nodes, body: Any) -> None:
    registry = Registry()
    registry.register_task("forks", body)
    registry.register_task("noop", lambda: "done")
    started = node(registry, lease=LEASE)

    task = started.wait_task(started.create_task("forks"), PATIENCE)

    assert (task.state, task.attempt, task.epoch) == (State.FINISHED, 1, 1)
    assert task.result > 0, "it is the parent's word"
    assert _ended(task.result) == FORKED
    assert [started.result(started.create_task("noop"), PATIENCE) for _ in range(20)] == ["done"] * 20


@pytest.mark.parametrize("closing", [True, False])
def test_program_that_a_task_starts_has_none_of_our_files(node: Nodes, closing: bool) -> None:
    """Whatever it is told about file descriptors: ours are closed when another program begins."""
    registry = Registry()

    @registry.task("starts")
    def starts() -> dict[str, int]:
        program = [sys.executable, "-c", "input()"]
        nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(program, stdin=subprocess.PIPE, close_fds=closing, **nowhere) as child:
            until(lambda: b"input()" in Path(f"/proc/{child.pid}/cmdline").read_bytes(), what="the program to begin")
            found = files(child.pid)
            child.communicate(b"\n")
        return dict(found)

    if not Path("/proc/self/fd").exists():
        pytest.skip("this system does not tell about files")
    ours = files(os.getpid())
    started = node(registry)

    found = started.result(started.create_task("starts"), PATIENCE)

    new = set(files(os.getpid()) - ours)
    assert new, "this counts only if we have files"
    assert not [name for name in found if name == "socket" or "test.db" in name], (found, new)


# --- a child that outlives its parent


def leave_a_child(arguments: Any) -> Iterator[Any]:
    """Fork a child that lives on, and tell its pid."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # whatever becomes of the test
        signal.pause()
        os._exit(0)
    yield {"pid": pid}
    yield Finished(pid)


def registry(url: str) -> Registry:
    """Return what the nodes of this test run."""
    made = worker.registry(url)
    made.register_task("leave", leave_a_child)
    return made


@SERVERS
def test_child_that_outlives_its_node_keeps_nobody_from_taking_over(cluster: Cluster) -> None:
    """It holds no session's lock, and it does not beat."""
    doomed = cluster.start(registry=f"{__name__}:registry")
    pid = cluster.client.result(cluster.client.create_task("leave"), 30.0)
    ids = cluster.client.create_tasks([NewTask(type="innocent", arguments={"n": 100, "pause": 0.1})] * 4)
    until(lambda: sum(cluster.running().values()) == 4, 30.0, "the tasks to run")
    heir = cluster.start()
    # The heir must have seen the doomed one alive: it looks every 0.4 to 1 s.
    seen = max(row.seq for row in cluster.rows("seq")) + 15
    until(lambda: max(row.seq for row in cluster.rows("seq")) >= seen, 30.0, "the tasks to go on")

    doomed.kill()

    try:
        until(lambda: cluster.client.count_tasks() == {State.FINISHED: 5}, 60.0, "the others to finish")
        assert Path(f"/proc/{pid}").exists(), "the child has lived all the while"
        assert {task.epoch for task in cluster.client.get_tasks(ids=ids)} == {2}
        assert [line["reason"] for line in heir.lines("a node was declared lost")] == ["its connection ended"]
    finally:
        os.kill(pid, signal.SIGKILL)
