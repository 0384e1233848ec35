"""A start that is cancelled leaves nothing behind: no threads, no connections, no files, and no row of a node."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest

import pyasync
from pyasync import Node, NodeStopped, NotInitialized, Registry, default
from pyasync.runtime import node as nodes
from tests.faults.residue import residue, until_nothing_is_left
from tests.runtime.conftest import SHORT
from tests.runtime.gate import PATIENCE
from tests.waiting import auntil, until


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Held:
    """Holds a start at a point, in the thread or on the loop that gets there."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is held before it begins."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.reached.set()
            assert self.go_on.wait(PATIENCE)
            return function(*args, **kwargs)

        return call


def _hold(held: Held, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name = {
        "before its tables are made": (nodes.schema, "prepare"),
        "before it joins": (nodes.Keeper, "join"),
        "after it has joined": (nodes.Keeper, "start"),
    }[point]
    monkeypatch.setattr(owner, name, held.before(getattr(owner, name)))


SQLITE = pytest.mark.databases("sqlite")  # about loops and threads, not about the database

POINTS = ("before its tables are made", "before it joins", "after it has joined")


def _none_left(url: str) -> bool:
    """Whether no node has a row."""
    with pyasync.Client(url, migrate="auto") as client:
        return client.get_nodes() == []


async def _enter(url: str) -> None:
    async with Node(url, Registry(), **SHORT):
        await anyio.sleep_forever()


async def _init(url: str) -> None:
    await pyasync.aio.init(url, **SHORT)
    try:
        await anyio.sleep_forever()
    finally:
        await pyasync.aio.stop()


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("start", [_enter, _init])
def test_start_that_is_cancelled_leaves_nothing(
    url: str, backend: str, start: Callable[[str], Any], point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _before(url, backend)
    held = Held()
    _hold(held, point, monkeypatch)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(start, url)
            await auntil(held.reached.is_set, PATIENCE)
            group.cancel_scope.cancel()
            held.go_on.set()

    anyio.run(main, backend=backend)

    until_nothing_is_left(url, before)
    assert _none_left(url)
    with pytest.raises(NotInitialized):
        default.current()


def _before(url: str, backend: str) -> Any:
    """Look at what there is once all that stays for good has come: tables, and the loops' worker threads."""
    assert _none_left(url)
    anyio.run(_have_two_threads, backend=backend)
    return residue(url)


async def _have_two_threads() -> None:
    """Have the loop's library make as many threads as a start that is cancelled needs: trio keeps them for 10 s."""
    both = threading.Barrier(2)
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(anyio.to_thread.run_sync, both.wait)


@pytest.mark.parametrize("point", POINTS)
def test_start_that_asyncio_itself_cancels_leaves_nothing(
    url: str, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timeout of asyncio's own is no scope that can be shielded from."""
    before = _before(url, "asyncio")
    held = Held()
    _hold(held, point, monkeypatch)

    async def main() -> None:
        starting = asyncio.get_running_loop().create_task(_enter(url))
        await auntil(held.reached.is_set, PATIENCE)
        starting.cancel()
        asyncio.get_running_loop().call_later(0.05, held.go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(main())

    until_nothing_is_left(url, before)
    assert _none_left(url)


@pytest.mark.parametrize("turns", range(4))
def test_start_that_is_cancelled_at_its_first_steps_leaves_nothing(url: str, turns: int) -> None:
    async def main() -> None:
        starting = asyncio.get_running_loop().create_task(_enter(url))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    before = _before(url, "asyncio")
    asyncio.run(main())

    until_nothing_is_left(url, before)
    assert _none_left(url)


def test_start_that_is_cancelled_while_the_lifespan_is_entered_leaves_it(url: str, backend: str) -> None:
    said: list[str] = []
    entering = threading.Event()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        said.append("entered")
        entering.set()
        try:
            await anyio.sleep(0.2)
            yield
        finally:
            said.append("left")

    async def enter() -> None:
        async with Node(url, Registry(lifespan=lifespan), **SHORT):
            await anyio.sleep_forever()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(enter)
            await auntil(entering.is_set, PATIENCE)
            group.cancel_scope.cancel()

    before = _before(url, backend)
    anyio.run(main, backend=backend)

    until_nothing_is_left(url, before)
    assert (said, _none_left(url)) == (["entered", "left"], True)


def test_stop_that_comes_while_a_node_starts_ends_it_when_it_has_started(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _before(url, "asyncio")
    held = Held()
    _hold(held, "before it joins", monkeypatch)
    node = Node(url, Registry(), **SHORT)
    starting = Outcome(node.start)
    assert held.reached.wait(PATIENCE)

    stopping = Outcome(node.stop)
    until(lambda: node.health().reason == "it is stopping", PATIENCE)
    held.go_on.set()

    assert isinstance(starting.wait(), NodeStopped)
    assert stopping.wait() is None
    assert node.health().reason == "it is stopped"
    until_nothing_is_left(url, before)
    assert _none_left(url)


class Outcome:
    """What became of a call in a thread that a test can leave behind: the error it raised, or None."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException as error:
            self._error = error

    def wait(self) -> BaseException | None:
        """Return how it ended; fail if it does not."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it hangs"
        return self._error


class Hanging:
    """A lifespan that is never entered."""

    def __init__(self) -> None:
        self.reached = threading.Event()

    @asynccontextmanager
    async def awaiting(self) -> AsyncIterator[None]:
        self.reached.set()
        await anyio.sleep_forever()
        yield


@SQLITE
def test_stop_ends_a_start_whose_lifespan_hangs(url: str) -> None:
    before = _before(url, "asyncio")
    lifespan = Hanging()
    node = Node(url, Registry(lifespan=lifespan.awaiting), **SHORT)
    starting = Outcome(node.start)
    assert lifespan.reached.wait(PATIENCE)

    stopping = Outcome(lambda: node.stop(0.0))

    assert stopping.wait() is None
    assert isinstance(starting.wait(), NodeStopped)
    assert node.health().reason == "it is stopped"
    until_nothing_is_left(url, before)


@SQLITE
def test_stop_ends_although_a_lifespan_blocks_the_loop_for_ever(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "LAST_WRITES", 0.5)
    reached, release = threading.Event(), threading.Event()

    @contextmanager
    def blocking() -> Iterator[None]:
        reached.set()
        release.wait(PATIENCE * 3)
        yield

    before = _before(url, "asyncio")
    node = Node(url, Registry(lifespan=blocking), **SHORT)
    starting = Outcome(node.start)
    assert reached.wait(PATIENCE)

    stopping = Outcome(lambda: node.stop(0.0))

    assert stopping.wait() is None
    assert isinstance(starting.wait(), NodeStopped)
    release.set()
    until_nothing_is_left(url, before)


@SQLITE
def test_start_whose_lifespan_hangs_can_be_given_a_timeout(url: str, backend: str) -> None:
    before = _before(url, backend)
    lifespan = Hanging()

    async def main() -> None:
        with anyio.fail_after(0.3):
            await Node(url, Registry(lifespan=lifespan.awaiting), **SHORT).astart()

    starting = Outcome(lambda: anyio.run(main, backend=backend))

    assert isinstance(starting.wait(), TimeoutError)
    assert lifespan.reached.is_set()
    until_nothing_is_left(url, before)


@SQLITE
def test_start_whose_lifespan_hangs_can_be_given_a_timeout_of_asyncios_own(url: str) -> None:
    before = _before(url, "asyncio")
    lifespan = Hanging()

    async def main() -> None:
        await asyncio.wait_for(Node(url, Registry(lifespan=lifespan.awaiting), **SHORT).astart(), 0.3)

    starting = Outcome(lambda: asyncio.run(main()))

    assert isinstance(starting.wait(), TimeoutError)
    assert lifespan.reached.is_set()
    until_nothing_is_left(url, before)


_INTERRUPTED = """
import signal, sys, threading
from contextlib import asynccontextmanager
import anyio
from pyasync import Node, Registry

@asynccontextmanager
async def lifespan():
    threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
    await anyio.sleep_forever()
    yield

main = threading.get_ident()
signal.signal(signal.SIGINT, signal.default_int_handler)
node = Node(sys.argv[1], Registry(lifespan=lifespan), migrate="auto")
try:
    node.start()
except KeyboardInterrupt:
    print("interrupted", node.health().reason)
"""

_NO_FILES = """
import os, resource, sys
import anyio
from pyasync import Node, Registry

anyio.run(anyio.sleep, 0)
node = Node(sys.argv[1], Registry(), migrate="auto")
used = max(map(int, os.listdir("/proc/self/fd")))
resource.setrlimit(resource.RLIMIT_NOFILE, (used, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    node.start()
except OSError as error:
    print(error.errno, node.health().reason)
"""


def _program(source: str, url: str) -> str:
    command = [sys.executable, "-c", source, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    return done.stdout.strip() or done.stderr


@SQLITE
def test_start_whose_lifespan_hangs_can_be_interrupted(url: str) -> None:
    assert _program(_INTERRUPTED, url) == "interrupted it is stopped"


@SQLITE
@pytest.mark.skipif(sys.platform != "linux", reason="this system does not list open files in /proc")
def test_start_raises_that_no_file_can_be_opened_for_the_loop(url: str) -> None:
    assert _program(_NO_FILES, url) == f"{errno.EMFILE} it is stopped"


def _no_thread(name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let threads of a name not be had; return the list of those that were asked for."""
    asked: list[str] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == name:
            asked.append(name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return asked


@pytest.mark.parametrize("name", ["loop", "keeper", "committer", "watcher", "sweeper"])
def test_start_that_gets_no_thread_leaves_nothing(url: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _before(url, "asyncio")
    asked = _no_thread(f"pyasync-{name}", monkeypatch)
    node = Node(url, Registry(), **SHORT)

    starting = Outcome(node.start)

    assert isinstance(starting.wait(), RuntimeError)
    assert Outcome(node.stop).wait() is None
    assert asked == [f"pyasync-{name}"]
    until_nothing_is_left(url, before)
    assert _none_left(url)


def test_stop_that_gets_no_thread_leaves_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _before(url, "asyncio")
    node = Node(url, Registry(), **SHORT).start()
    asked = _no_thread("pyasync-leave", monkeypatch)

    stopping = Outcome(node.stop)

    assert stopping.wait() is None
    assert asked == ["pyasync-leave"]
    until_nothing_is_left(url, before)
    assert _none_left(url)
