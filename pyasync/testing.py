"""Test tasks: `drive` runs one without a database, `drain` runs what is pending on a real one.

def test_it_goes_on_where_it_stopped():
    reports = drive(count, {"i": 0}, stop_after=3)

    assert drive(count, {"i": 0}, context=reports[-1].context)[-1] == Finished()
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, aclosing, closing, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import Any, TypedDict, Unpack
from uuid import UUID, uuid4
from weakref import WeakKeyDictionary

import anyio
import anyio.from_thread
import anyio.to_thread

from pyasync import context as contexts
from pyasync import default
from pyasync.context import PAUSE, AsyncRun, AsyncStop, Run, Stop, on_event_loop
from pyasync.domain.backoff import RetryPolicy
from pyasync.domain.codec import Codec
from pyasync.domain.contents import decode, encode
from pyasync.domain.report import KEEP, Failed, Finished, Phase, Report, as_report
from pyasync.domain.states import Stage, State
from pyasync.domain.task import Claim, Task
from pyasync.errors import BadArgument, ClaimLost, NoRetry, TaskNotFound
from pyasync.registry import Body, RegisteredTask, Registry, Shape, TaskType, bodies, positional
from pyasync.runtime.endings import Endings, wall_clock
from pyasync.runtime.node import Node
from pyasync.runtime.runs import Execution
from pyasync.settings import Settings

FIRST_LOOK, LONGEST_LOOK = 0.005, 0.1
"""Seconds between two looks at what is pending: they grow."""

PAGE = 1_000


class Options(TypedDict, total=False):
    """What `drive` takes by keyword."""

    stop_after: int | None
    context: Any
    user: str
    group: str
    headers: dict[str, Any] | None
    resources: Any
    connection: Any
    context_type: type[Any] | None
    deleting: bool


def drive(
    implementation: Any,
    arguments: Any = None,
    *,
    stop_after: int | None = None,
    context: Any = None,
    user: str = "",
    group: str = "",
    headers: dict[str, Any] | None = None,
    resources: Any = None,
    connection: Any = None,
    context_type: type[Any] | None = None,
    deleting: bool = False,
) -> list[Report]:
    """Run one attempt of a task without a database, and return its reports; the last one says how it ended.

    `implementation` is whatever can be registered, or was. The contexts of the reports are what a node would read back
    from the row, and what a node would refuse to store is refused here. A task that ends without a word is
    `Finished()`, as on a node; a raised NoRetry is `Failed`. What else the task raises is raised here, RetryLater too.

    `context` is a checkpoint to go on from. `stop_after=n` asks the run to stop (`run.stop.reason` is "pause") with its
    n-th report, and closes the generator as a node does: the list then ends with a NORMAL report. With 0 it is asked
    before it starts. `connection` is an Engine, Connection or Session for `run.commit`: the transactions of an Engine
    are committed, those of the others are the caller's. `context_type` is the type's, for one that is not registered.
    `deleting=True` runs the clean-up.

    Raises BadArgument, and what a node raises for reports that it cannot store.
    """
    rehearsal = _Rehearsal(
        implementation,
        arguments,
        stop_after=stop_after,
        context=context,
        user=user,
        group=group,
        headers=headers,
        resources=resources,
        connection=connection,
        context_type=context_type,
        deleting=deleting,
    )
    if not rehearsal.body.is_async:
        return rehearsal.play()
    if on_event_loop():
        raise BadArgument("drive() would block the event loop that runs in this thread: await adrive(...)")
    return anyio.run(rehearsal.play_async)


async def adrive(implementation: Any, arguments: Any = None, **options: Unpack[Options]) -> list[Report]:
    """Run one attempt of a task, as `drive` does, on the caller's loop; in a worker thread if it is sync."""
    rehearsal = _Rehearsal(implementation, arguments, **options)
    if rehearsal.body.is_async:
        return await rehearsal.play_async()
    return await anyio.to_thread.run_sync(rehearsal.play)


def drain(node_or_database: Any, timeout: float = 30.0, *, registry: Registry | None = None) -> int:
    """Block until nothing is left that can run now; return how many tasks have become finished or failed.

    Takes a started Node, or what Node takes: then a node runs just for this, with the types of `registry` (default:
    those of `pyasync.task`). Those tasks count that ended since the node was started, or last drained. Tasks that the
    tasks create are run too, and clean-ups. What waits for its time, a retry or `RetryLater` included, is left waiting;
    `run_task(id, now=True)` makes it due. Tasks of types that the node does not have are left alone.

    Raises TimeoutError, which says why the next task is not running.
    """
    if isinstance(node_or_database, Node):
        return _drained(node_or_database, timeout)
    types = default.registry if registry is None else registry
    with Node(node_or_database, types, migrate="auto", poll_interval=0.05) as node:
        return _drained(node, timeout)


async def adrain(node_or_database: Any, timeout: float = 30.0, *, registry: Registry | None = None) -> int:
    """Wait until nothing is left that can run now; see `drain`."""
    return await anyio.to_thread.run_sync(partial(drain, node_or_database, timeout, registry=registry))


class _Rehearsal:
    """A run that keeps in a list what a node would store."""

    def __init__(self, implementation: Any, arguments: Any = None, **options: Unpack[Options]) -> None:
        self._options = options
        self._type = _type_of(implementation, options.get("context_type"))
        self.body = _body_of(self._type, deleting=options.get("deleting", False))
        self._stop_after = _checked(options.get("stop_after"))
        self._stop = AsyncStop() if self.body.is_async else Stop()
        self._run = self._make_run(decode(encode(arguments, limit=_SETTINGS.max_context_bytes, what="arguments")))
        self._writing = self._make_execution()
        self._reports: list[Report] = []
        self._ended = False
        if self._stop_after == 0:
            self._stop.set(PAUSE)

    def _make_run(self, arguments: Any) -> Any:
        options, codec = self._options, self._type.codec
        checkpoint = options.get("context")
        given = {
            "id": uuid4(),
            "type": self._type.name,
            "user": options.get("user", ""),
            "group": options.get("group", ""),
            "arguments": arguments,
            "context": codec.load(arguments if checkpoint is None else codec.dump(checkpoint)),
            "attempt": 1,
            "epoch": 1,
            "headers": options.get("headers") or {},
            "resources": options.get("resources"),
            "resumed": checkpoint is not None,
            "stop": self._stop,
            "_commit": self._commit,
        }
        return AsyncRun(**given) if self.body.is_async else Run(**given)

    def _make_execution(self) -> Execution:
        stage = Stage.DELETING if self._options.get("deleting") else Stage.RUNNING
        row = SimpleNamespace(attempt=1, errors=None)
        return Execution(Claim(self._run.id, uuid4(), uuid4(), 0), row, self._type, stage, self._stop)

    def play(self) -> list[Report]:
        """Run a sync implementation in this thread."""
        with _entered(self._run), self._concluded():
            function = self.body.make()
            if self.body.shape is Shape.FUNCTION:
                args, kwargs = self._call()
                self._keep(Finished(function(*args, **kwargs)))
                return self._reports
            with closing(function(self._run)) as generator:
                for value in generator:
                    if not self._goes_on(value):
                        break
        return self._reports

    async def play_async(self) -> list[Report]:
        """Run an async implementation on this loop."""
        with _entered(self._run), self._concluded():
            function = self.body.make()
            if self.body.shape is Shape.FUNCTION:
                args, kwargs = self._call()
                self._keep(Finished(await function(*args, **kwargs)))
                return self._reports
            async with aclosing(function(self._run)) as generator:
                async for value in generator:
                    if not self._goes_on(value):
                        break
        return self._reports

    def _call(self) -> tuple[list[Any], dict[str, Any]]:
        return positional(self._type.codec.load(self._run.arguments))

    def _goes_on(self, value: Any) -> bool:
        """Keep what was yielded; False if the generator is to be closed."""
        if self._ended:  # by `run.commit`
            return False
        self._keep(as_report(value))
        return not (self._ended or self._stop.is_set())

    @contextmanager
    def _concluded(self) -> Iterator[None]:
        """Add the end that a node adds where the task itself did not say one."""
        try:
            yield
        except NoRetry as error:
            self._keep(Failed(str(error)))
        if not (self._ended or self._stop.is_set()):
            self._keep(Finished())

    def _keep(self, report: Report) -> None:
        self._append(self._read_back(report))

    def _append(self, report: Report) -> None:
        self._reports.append(report)
        self._ended = report.phase is not Phase.NORMAL
        if not self._ended and len(self._reports) == self._stop_after:
            self._ask_to_stop()

    def _read_back(self, report: Report) -> Report:
        """Return a report as the row would give it back. Raises what a node raises for one that it cannot store."""
        write = _ENDINGS.report(self._writing, report)
        context = KEEP if write.context is None else self._type.codec.load(decode(write.context))
        result = None if write.result is None else decode(write.result)
        return replace(report, context=context, result=result)

    def _ask_to_stop(self) -> None:
        self._stop.set(PAUSE)
        if isinstance(self._stop, AsyncStop):
            ring = self._stop.ring
            ring() if on_event_loop() else anyio.from_thread.run_sync(ring)

    def _commit(self, report: Any, work: Callable[[Any], Any]) -> Any:
        if self._ended:
            raise ClaimLost(self._run.id)
        kept = self._read_back(as_report(report))
        with _transaction(self._options.get("connection")) as connection:
            value = work(connection)
        self._append(kept)
        return value


_SETTINGS = Settings()
_ENDINGS = Endings(_SETTINGS, wall_clock, random.random)


def _checked(stop_after: Any) -> int | None:
    if stop_after is None:
        return None
    if isinstance(stop_after, bool) or not isinstance(stop_after, int) or stop_after < 0:
        raise BadArgument(f"stop_after is a number of reports, not {stop_after!r}")
    return stop_after


def _type_of(implementation: Any, context_type: type[Any] | None) -> TaskType:
    if isinstance(implementation, RegisteredTask):
        return implementation.registry[implementation.type]
    running, deleting = bodies(implementation)
    name = getattr(implementation, "__name__", "task")
    return TaskType(name, running, deleting, RetryPolicy(), codec=Codec(context_type))


def _body_of(task_type: TaskType, *, deleting: bool) -> Body:
    if not deleting:
        return task_type.running
    if task_type.deleting is None:
        raise BadArgument(f"{task_type.name} has no clean-up: its row is simply removed")
    return task_type.deleting


@contextmanager
def _entered(run: Any) -> Iterator[None]:
    """Make `current_run` return the run meanwhile."""
    token = contexts._current.set(run)
    try:
        yield
    finally:
        contexts._current.reset(token)


def _transaction(connection: Any) -> AbstractContextManager[Any]:
    """Open what `work` is given, by what SQLAlchemy's objects can do: only the store names them."""
    if connection is None:
        raise BadArgument("run.commit() needs a database: pass drive(..., connection=engine)")
    is_async = hasattr(connection, "run_sync") or hasattr(connection, "sync_engine")
    if is_async or not hasattr(connection, "begin"):
        kind = type(connection).__name__
        raise BadArgument(f"connection= takes a SQLAlchemy Engine, Connection or Session, not {kind}")
    if hasattr(connection, "get_bind"):
        return nullcontext(connection.connection())
    begun: AbstractContextManager[Any] = (
        connection.begin() if hasattr(connection, "connect") else nullcontext(connection)
    )
    return begun


# --- drain


_counted: WeakKeyDictionary[Node, set[tuple[UUID, int]]] = WeakKeyDictionary()
"""Task and epoch of the ends that earlier drains of a node have counted.

It may have run a task before it is drained: a count that begins with the call would differ from one time to the next.
"""


def _drained(node: Node, timeout: float) -> int:
    until, pause = time.monotonic() + timeout, FIRST_LOOK
    while (task := _busy(node)) is not None:
        if time.monotonic() > until:
            raise TimeoutError(f"still not drained after {timeout:g} s; {_reason(node, task)}")
        time.sleep(pause)
        pause = min(LONGEST_LOOK, pause * 1.5)
    ended = {(task.id, task.epoch) for task in _found(node, [State.FINISHED, State.FAILED], done_after=_started(node))}
    new = ended - _counted.get(node, set())
    _counted[node] = ended
    return len(new)


def _busy(node: Node) -> Task | None:
    """Return a task that runs, or could run now, if there is any."""
    now = datetime.now(UTC)
    states = [State.PENDING, State.RUNNING, State.CANCELING, State.DELETING]
    return next((task for task in _found(node, states) if _runs(task) or _could_run(node, task, now)), None)


def _runs(task: Task) -> bool:
    return task.status.stage in (Stage.RUNNING, Stage.DELETING)


def _could_run(node: Node, task: Task, now: datetime) -> bool:
    groups = node.settings.groups
    return (task.run_at is None or task.run_at <= now) and (groups is None or task.group in groups)


def _found(node: Node, states: list[State], done_after: datetime | None = None) -> Iterator[Task]:
    only = node.settings.types
    types = [each.name for each in node.registry if only is None or each.name in only]
    find = partial(node.get_tasks, types=types, states=states, done_after=done_after, include_deleting=True, limit=PAGE)
    page = find()
    while page:
        yield from page
        page = find(after=page[-1].id) if len(page) == PAGE else []


def _started(node: Node) -> datetime:
    """Return when the node drew its id, a UUIDv7; by this host's clock, since tests run beside their database."""
    return datetime.fromtimestamp((node.health().node_id.int >> 80) / 1000, UTC)


def _reason(node: Node, task: Task) -> str:
    try:
        why = node.why(task.id)
    except TaskNotFound:
        why = "It is gone by now."
    return f"task {task.id} of type {task.type!r}: {why}"
