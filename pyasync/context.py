"""What user code sees of the run it is in: `Run` for sync implementations, `AsyncRun` for async ones."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from uuid import UUID

import anyio
import anyio.to_thread

from pyasync.errors import NotInitialized

C = TypeVar("C")

PAUSE, CANCEL, DELETE = "pause", "cancel", "delete"
SHUTDOWN, TIMEOUT, LOST = "shutdown", "timeout", "lost"


class Stop:
    """Whether, and why, a run is asked to stop. Once set, it is never cleared; the first reason stays.

    `reason` is pause, cancel, delete, shutdown, timeout or lost.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._event = threading.Event()

    def is_set(self) -> bool:
        """Whether the run is asked to stop."""
        return self.reason is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until the run is asked to stop; False if `timeout` seconds pass first."""
        return self._event.wait(timeout)

    def set(self, reason: str) -> bool:
        """Ask the run to stop; False if it was asked before. For the node."""
        if self.reason is not None:
            return False
        self.reason = reason
        self._event.set()
        return True


class AsyncStop:
    """Whether, and why, an async run is asked to stop; it can be awaited."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._event: anyio.Event | None = None

    def is_set(self) -> bool:
        """Whether the run is asked to stop."""
        return self.reason is not None

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until the run is asked to stop; False if `timeout` seconds pass first."""
        if self._event is None:
            self._event = anyio.Event()
        if self.reason is None:
            with anyio.move_on_after(timeout):
                await self._event.wait()
        return self.reason is not None

    def __await__(self) -> Generator[Any, None, bool]:
        """Wait until the run is asked to stop."""
        return self.wait().__await__()

    def set(self, reason: str) -> bool:
        """Ask the run to stop; False if it was asked before. For the node, which then calls `ring` on the loop."""
        if self.reason is not None:
            return False
        self.reason = reason
        return True

    def ring(self) -> None:
        """Wake up those who wait; call it on the loop."""
        if self._event is not None:
            self._event.set()


@dataclass(eq=False)
class _BaseRun(Generic[C]):
    id: UUID
    type: str
    user: str
    group: str
    arguments: Any
    context: C
    attempt: int
    epoch: int
    headers: dict[str, Any]
    resources: Any
    resumed: bool = False
    """Whether a checkpoint was stored before: `context` is then the last one, else the arguments."""
    _commit: Callable[[Any, Callable[[Any], Any]], Any] = field(default=None, repr=False)  # type: ignore[assignment]


@dataclass(eq=False)
class Run(_BaseRun[C]):
    """One run of a task, for sync implementations.

    `context` is what to go on from: the arguments at first, the last checkpoint later. `attempt` counts from 1.
    `resources` is what the registry's lifespan gave.
    """

    stop: Stop = field(default_factory=Stop)

    def commit(self, report: Any, work: Callable[[Any], Any]) -> Any:
        """Call `work(connection)` and store `report` in one transaction; return what `work` returned.

        `work` takes a SQLAlchemy Connection to the task database (`Session(connection)` works), must be repeatable,
        since transient errors call it again in a fresh transaction, and must not commit. The report is written last and
        guarded: either both are stored, or neither is. A bare value is a context; `Finished(...)` ends the task.

        Raises ClaimLost if the task is no longer this run's, TransactionDoomed if `work` hid an error of the database,
        and what keeps `work` from its end again and again while the database answers, such as a lock or its own pauses.
        """
        return self._commit(report, work)


@dataclass(eq=False)
class AsyncRun(_BaseRun[C]):
    """One run of a task, for async implementations: as `Run`, but `commit` and `stop` are awaited."""

    stop: AsyncStop = field(default_factory=AsyncStop)

    def commit(self, report: Any, work: Callable[[Any], Any]) -> Awaitable[Any]:
        """Call the plain function `work(connection)` in a worker thread and store `report` in the same transaction.

        See `Run.commit`.
        """
        return _shielded(self._commit, report, work)


async def _shielded(commit: Callable[..., Any], report: Any, work: Callable[[Any], Any]) -> Any:
    # Whether a COMMIT was stored must be known: a cancellation waits for its end.
    return await anyio.to_thread.run_sync(commit, report, work, abandon_on_cancel=False)


_current: ContextVar[_BaseRun[Any]] = ContextVar("pyasync_run")


def current_run() -> Any:
    """Return the run that this code is part of. Raises NotInitialized outside of a task."""
    run = _current.get(None)
    if run is None:
        raise NotInitialized("current_run() is for code that a node runs as part of a task")
    return run


def enter(run: _BaseRun[Any]) -> Token[Any]:
    """Make `run` the current one of this context, until `leave`."""
    return _current.set(run)


def leave(entered: Token[Any]) -> None:
    """Undo an `enter`."""
    _current.reset(entered)


def on_event_loop() -> bool:
    """Whether an event loop, of asyncio or trio, runs in this very thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        trio = sys.modules.get("trio")
        return trio is not None and bool(trio.lowlevel.in_trio_run())
    return True
