"""Drives user code, sync or async, from claim to end. Runs on the loop; knows no SQL."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextvars import copy_context
from typing import Any, Protocol

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from pyasync import context
from pyasync.context import AsyncRun, Run
from pyasync.domain.contents import decode
from pyasync.domain.report import Finished, Phase, Report, as_report
from pyasync.errors import RetryLater
from pyasync.registry import Shape, TaskType, positional
from pyasync.runtime.endings import Endings, Outcome, Raised, Returned, Stopped, Unreadable
from pyasync.runtime.runs import Execution, Runs
from pyasync.store.writes import Fate, Write, Written

log = logging.getLogger("pyasync.task")

Soon = Callable[..., None]
END = object()

CLOSING = 5.0
"""Seconds that a generator's clean-up may take before it is cancelled too."""

NO_THREAD_DELAY = 1.0
"""Seconds for which a sync task is given back by a process that cannot have another thread."""

SLICE = 0.005
"""Seconds after which one coroutine that runs one task after the other lets the loop see to all else."""

FORKED = 70
"""The exit code of a child that user code has forked and lets come back."""


class Sink(Protocol):
    """Where writes go."""

    def submit(self, execution: Execution, write: Write, reply: Callable[[Any], None] | None = None) -> None:
        """Store a write, and tell `reply` on the loop what became of it."""


class _Lost(Exception):
    """The task is no longer this run's."""


class _Behind(Exception):
    """The database went back in time: begin again from the row."""


class Executor:
    """Runs executions in a task group on the loop, or in threads of their own if they are sync.

    A task of the group runs one execution after the other, as long as none has to wait: tasks that never wait cost no
    spawn each. Before it begins one it has the next task called, which goes on if that one waits.

    It is made by the task that hosts the group.
    """

    def __init__(
        self,
        *,
        tasks: TaskGroup,
        soon: Soon,
        runs: Runs,
        sink: Sink,
        endings: Endings,
        resources: Any,
        commit: Callable[[Execution, Any, Callable[[Any], Any]], Any],
        reload: Callable[[Execution], None],
        on_room: Callable[[], None],
    ) -> None:
        self._tasks = tasks
        self._soon = soon
        self._runs = runs
        self._sink = sink
        self._endings = endings
        self._resources = resources
        self._commit = commit
        self._reload = reload
        self._on_room = on_room
        self._host = _this_task()
        self._pid = os.getpid()
        self._waiting: deque[Execution] = deque()
        self._called = False
        self._context = copy_context()

    def launch(self, executions: list[Execution]) -> None:
        """Start runs; call it on the loop."""
        self._waiting.extend(executions)
        self._call_next()

    def _call_next(self) -> None:
        """Have one more task run what waits, unless one is about to begin."""
        if self._waiting and not self._called:
            self._called = True
            self._context.run(self._tasks.start_soon, self._run_waiting)

    async def _run_waiting(self) -> None:
        self._called = False
        clean, until = copy_context(), time.monotonic() + SLICE
        with anyio.CancelScope() as scope:
            # Not after a run that was cancelled, or that has set a variable of its context.
            while self._waiting and time.monotonic() < until and not scope.cancel_called and copy_context() == clean:
                execution = self._waiting.popleft()
                self._call_next()
                await self._drive(execution, scope)
        self._call_next()

    async def _drive(self, execution: Execution, scope: anyio.CancelScope) -> None:
        execution.cancel = scope.cancel
        try:
            outcome = await self._outcome(execution)
        finally:
            execution.cancel = None
            self.left(execution)
        if outcome is not None and not (execution.let_go or execution.ended):
            self._end(execution, outcome)

    def _end(self, execution: Execution, outcome: Outcome) -> None:
        execution.ending = True
        try:
            self._sink.submit(execution, self._endings.ending(execution, outcome))
        except Exception:  # it would take all the other runs on this loop along
            log.exception("a run's end cannot be told: it is let go of", extra=facts(execution))
            self._runs.ended(execution)

    def left(self, execution: Execution) -> None:
        """Note that user code of a run has ended."""
        if self._runs.left(execution):
            self._on_room()

    async def _outcome(self, execution: Execution) -> Outcome | None:
        """Run user code to its end; None if there is nothing to write about it."""
        while not execution.let_go:
            try:
                outcome = await self._attempt(execution)
                if execution.behind:
                    raise _Behind
                execution.ending = True
                await _until_quiet(execution)
                return outcome
            except _Lost:
                return None
            except _Behind:
                log.error("the database went back in time: the run begins again from its row", extra=facts(execution))
                execution.behind = False
                await anyio.to_thread.run_sync(self._reload, execution)
        return None

    async def _attempt(self, execution: Execution) -> Outcome:
        if execution.stop.is_set():
            return Stopped()
        try:
            execution.run = run = self._run(execution)
        except BaseException as error:
            return self._unread(execution, error)
        entered = context.enter(run)
        try:
            return await self._ran(execution, run)
        finally:
            context.leave(entered)

    async def _ran(self, execution: Execution, run: Any) -> Outcome:
        try:
            thread = None if execution.body.is_async else self._thread(execution)
        except RuntimeError:
            log.exception("no thread for a run: it is tried again later", extra=facts(execution))
            return Raised(RetryLater(NO_THREAD_DELAY))
        try:
            return await self._call(execution, run, thread)
        except (_Lost, _Behind):
            raise
        except BaseException as error:
            if self._is_cancelled():
                raise
            if not isinstance(error, RetryLater):  # it only wants to wait
                log.info("an attempt failed", extra=facts(execution), exc_info=error)
            return Raised(error)
        finally:
            _end_if_forked(self._pid)
            if thread is not None:
                thread.end()

    def _thread(self, execution: Execution) -> _Thread:
        thread = _Thread(self._soon, lambda: self.left(execution))
        self._runs.entered(execution)
        return thread

    def _unread(self, execution: Execution, error: BaseException) -> Outcome:
        log.warning("a task's context cannot be read", extra=facts(execution), exc_info=error)
        return Unreadable(f"its context (version {execution.row.version}) cannot be read here: {error}")

    def _run(self, execution: Execution) -> Any:
        row = execution.row
        arguments = decode(row.arguments)
        given = {
            "id": row.id,
            "type": row.type,
            "user": row.user_name,
            "group": row.group_name,
            "arguments": arguments,
            "context": read_context(execution.task_type, row, arguments),
            "attempt": row.attempt,
            "epoch": row.epoch + 1,
            "headers": decode(row.headers) if row.headers else {},
            "resources": self._resources,
            "resumed": row.context is not None,
            "stop": execution.stop,
            "_commit": lambda report, work: self._commit(execution, report, work),
        }
        return AsyncRun(**given) if execution.body.is_async else Run(**given)

    async def _call(self, execution: Execution, run: Any, thread: _Thread | None) -> Outcome:
        body = execution.body
        function = body.make() if thread is None else await thread.step(body.make)
        if body.shape is Shape.FUNCTION:
            args, kwargs = positional(_arguments(execution, run))
            call = function(*args, **kwargs) if thread is None else thread.step(function, *args, **kwargs)
            return Finished(await call)
        generator = _stepped(function(run), thread) if thread is not None else function(run)
        return await self._iterate(execution, run, generator)

    async def _iterate(self, execution: Execution, run: Any, generator: AsyncGenerator[Any, None]) -> Outcome:
        """Store what a generator yields, and go on only when it is stored."""
        try:
            async for value in generator:
                _end_if_forked(self._pid)
                report = as_report(value)
                if execution.ended:  # by `run.commit`
                    return Returned()
                if report.phase is not Phase.NORMAL:
                    return report
                await self._store(execution, report)
                if run.stop.is_set():
                    return Stopped()
            return Returned()
        finally:
            await self._close(generator, execution)

    async def _store(self, execution: Execution, report: Report) -> None:
        await _begin_writing(execution)
        try:
            if execution.let_go:
                raise _Lost
            check(await self._answer(execution, self._endings.report(execution, report)))
        finally:
            execution.writing.release()

    async def _answer(self, execution: Execution, write: Write) -> Written | Exception:
        stored = anyio.Event()
        answers: list[Any] = []

        def reply(answer: Any) -> None:
            answers.append(answer)
            stored.set()

        self._sink.submit(execution, write, reply)
        await stored.wait()
        return answers[0]  # type: ignore[no-any-return]

    async def _close(self, generator: AsyncGenerator[Any, None], execution: Execution) -> None:
        """Close a generator in the task that iterates it, so that its clean-up runs; even when cancelled, for a
        while.
        """
        with anyio.move_on_after(CLOSING, shield=True):
            try:
                await generator.aclose()
            except BaseException:
                if self._is_cancelled():
                    raise
                log.exception("closing a task's generator failed", extra=facts(execution))

    def _is_cancelled(self) -> bool:
        """Whether we were cancelled, by a scope or with the whole loop; else user code raised it, or cancelled
        itself.
        """
        whole_loop = self._host is not None and self._host.cancelling() > 0
        return whole_loop or anyio.current_effective_deadline() == float("-inf")


def _this_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # trio, which cancels by scopes only
        return None


async def _begin_writing(execution: Execution) -> None:
    """Wait for a `run.commit` that user code has left in the background: two writes at once would pass for one."""
    if not execution.writing.acquire(blocking=False):
        await anyio.to_thread.run_sync(execution.writing.acquire)


async def _until_quiet(execution: Execution) -> None:
    await _begin_writing(execution)
    execution.writing.release()


def check(answer: Written | Exception) -> None:
    """Raise what a write's answer means for its run, unless it was stored."""
    if isinstance(answer, Exception):
        raise answer
    if answer.fate is Fate.BEHIND:
        raise _Behind
    if answer.fate is not Fate.STORED:
        raise _Lost


def read_context(task_type: TaskType, row: Any, arguments: Any) -> Any:
    """Return what a run goes on from, upgraded to this node's version and in the type's own form."""
    stored = arguments if row.context is None else decode(row.context)
    if row.context is not None and row.version < task_type.version and task_type.upgrade is not None:
        stored = task_type.upgrade(stored, row.version)
    return task_type.codec.load(stored)


def _arguments(execution: Execution, run: Any) -> Any:
    """Return what a plain function is called with: the arguments, even after `run.commit` has stored another
    context.
    """
    return execution.task_type.codec.load(run.arguments) if run.resumed else run.context


async def _stepped(generator: Any, thread: _Thread) -> AsyncGenerator[Any, None]:
    """Make a sync generator look async: each step runs in the run's own thread."""
    try:
        while (value := await thread.step(next, generator, END)) is not END:
            yield value
    finally:
        await thread.step(generator.close)


class _Thread:
    """The one thread in which a sync run's code runs, step by step.

    It cannot be cancelled: a run that is let go of leaves it behind, as a daemon, and its slot stays taken until it
    ends.
    """

    def __init__(self, soon: Soon, on_end: Callable[[], None]) -> None:
        self._soon = soon
        self._on_end = on_end
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        inherited = copy_context()
        inherited.run(_outside_of_loops)
        threading.Thread(target=inherited.run, args=(self._work,), name="pyasync-run", daemon=True).start()

    async def step(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `fn` in the thread; a cancellation leaves the call behind."""
        done = anyio.Event()
        answer: list[tuple[Any, BaseException | None]] = []
        pid = os.getpid()

        def job() -> None:
            try:
                answer.append((fn(*args, **kwargs), None))
            except BaseException as error:
                answer.append((None, error))
            _end_if_forked(pid)
            self._soon(done.set)

        self._jobs.put(job)
        await done.wait()
        value, error = answer[0]
        if error is not None:
            raise error
        return value

    def end(self) -> None:
        """End the thread after the step under way."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
        self._on_end()


def _end_if_forked(pid: int) -> None:
    """End a child that comes back from user code: it would take what its parent's loop waits for, or wait for ever."""
    if os.getpid() != pid:
        os.write(2, b"pyasync: a process that a task has forked came back from the task's code; end it with os._exit\n")
        os._exit(FORKED)


def _outside_of_loops() -> None:
    """Forget, in a thread's copy of the context, that the loop's own code runs under a loop."""
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:
        sniffio.current_async_library_cvar.set(None)


def facts(execution: Execution) -> dict[str, Any]:
    """Return what a log line says of a run; never its context."""
    return {
        "task_id": str(execution.claim.task_id),
        "type": execution.task_type.name,
        "user": execution.row.user_name,
        "epoch": execution.row.epoch + 1,
    }
