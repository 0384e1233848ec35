"""The composition root: builds the services of a node, wires them, starts and stops them in order."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import random
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread

from pyasync import context
from pyasync.client import Client
from pyasync.context import AsyncStop
from pyasync.errors import AlreadyInitialized, BlockingCall, DatabaseUnavailable, NodeStopped
from pyasync.ids import new_fence
from pyasync.registry import Lifespan, Registry
from pyasync.runtime.claimer import Claimer
from pyasync.runtime.commits import Commits
from pyasync.runtime.committer import Committer
from pyasync.runtime.endings import Endings, Stopped, wall_clock
from pyasync.runtime.executor import Executor
from pyasync.runtime.inbox import Inbox, soon_on_this_loop
from pyasync.runtime.keeper import Keeper, Seen
from pyasync.runtime.pulse import Pulse
from pyasync.runtime.reconciler import Reconciler
from pyasync.runtime.runs import Execution, Runs
from pyasync.runtime.sweeper import Sweeper
from pyasync.runtime.watcher import Watcher
from pyasync.settings import Settings
from pyasync.store import claims, hints, schema
from pyasync.store.nodes import Beat

log = logging.getLogger("pyasync.runtime")

LAST_WRITES = 5.0
"""Seconds that a stop waits for the last writes to be stored, after the runs had theirs."""

LEAST_WAIT = 0.5
"""Seconds that a service is given to end, however long the last writes took."""


class Node(Client):
    """One embedding of pyasync in a process: it runs tasks, and has all the verbs of a Client.

    `with Node(...)` in sync code (tasks run on a loop of its own thread), `async with Node(...)` in async code (tasks
    run on the caller's loop, asyncio or trio; the verbs are awaited on `AsyncClient(node)`). Several nodes can live in
    one process.
    """

    _survives_fork = False
    _connections_kept = 2  # the keeper's, and the one over which the sweeper watches others

    def __init__(self, database: Any, registry: Registry | None = None, **settings: Any) -> None:
        self._set_up(database, Settings.load(**settings))
        self.registry = Registry() if registry is None else registry
        self._state = "new"
        self._lock = threading.RLock()
        self._joining, self._joined = threading.Lock(), False
        self._pid = os.getpid()
        self._hosted, self._host_ended = threading.Event(), threading.Event()
        self._host_error: Exception | None = None
        self._inbox: Inbox | None = None
        self._end_loop: Callable[[], None] | None = None
        self._build()

    def _build(self) -> None:
        settings, database = self.settings, self._database
        self._runs = Runs()
        self._endings = Endings(settings, wall_clock, random.random)
        self._pulse = Pulse(settings.stall_after)
        self._reconciler = Reconciler()
        self._claimer = Claimer(runs=self._runs, registry=self.registry, settings=settings, may_claim=self._may_claim)
        self._keeper = Keeper(
            database=database,
            lease=settings.lease,
            node_name=settings.name,
            version=importlib.metadata.version("pyasync"),
            fast=settings.fast_detection,
            tell=self._tell,
            on_beat=self._on_beat,
            on_hint=self._on_hint,
            on_lost=self._on_lost,
        )
        self._committer = Committer(
            database=database,
            runs=self._runs,
            claimer=self._claimer,
            endings=self._endings,
            node_id=lambda: self._keeper.node_id,
            launch=self._launch,
            stop=self._stop_run,
            soon=lambda fn, *args: self._soon(fn, *args),
        )
        self._watcher = Watcher(
            database=database,
            runs=self._runs,
            settings=settings,
            node_id=lambda: self._keeper.node_id,
            stop=self._stop_run,
            let_go=self._let_go,
            look=self._pulse.check,
        )
        self._sweeper = Sweeper(
            database=database,
            settings=settings,
            node_id=lambda: self._keeper.node_id,
            session_key=lambda: self._keeper.session_key,
            beating=lambda: not self._keeper.failing,
            on_released=self._on_released,
        )
        self._commits = Commits(
            database=database,
            runs=self._runs,
            endings=self._endings,
            beating=lambda: not self._keeper.failing,
            stop=self._stop_run,
            lost=self._lost_run,
            on_room=self._on_room,
        )

    # --- starting and stopping

    def start(self) -> Node:
        """Join the system and run tasks, on a loop in a thread of its own. Raises what keeps it from that."""
        if context.on_event_loop():
            raise BlockingCall("init")
        self._begin()
        try:
            threading.Thread(target=self._run_loop, name="pyasync-loop", daemon=True).start()
        except RuntimeError as error:  # no thread can be had
            self._host_error = error
            self._host_gone()
        self._join()
        return self

    async def astart(self) -> Node:
        """Join the system and run tasks on the caller's loop. Raises what keeps it from that."""
        self._begin()
        self._host_task = _spawn(self._host, self._host_gone)
        try:
            await anyio.to_thread.run_sync(self._join, abandon_on_cancel=True)  # the stop calls it off, and waits
        except BaseException:
            await self.astop(0.0)
            raise
        return self

    def stop(self, timeout: float | None = None) -> None:
        """Hand running tasks over, then leave; blocks for at most about `timeout` (default: `stop_grace`) seconds.

        Runs are told to stop; what has not reached a report by then is cancelled and let go of. A second call while the
        node stops can only shorten that, and does not wait; later ones do nothing.
        """
        if context.on_event_loop():
            raise BlockingCall("stop")
        if self.inherited:
            return
        until = time.monotonic() + (self.settings.stop_grace if timeout is None else timeout)
        with self._lock:
            was = self._state
            self._state = {"new": "stopped", "running": "stopping"}.get(was, was)
        if was == "stopping":
            self._stop_all(until)
        elif was == "running":
            self._leave(until)
        elif was == "new":
            self._database.close()

    async def astop(self, timeout: float | None = None) -> None:
        """Stop, as `stop` does, while the caller's loop goes on."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.stop, timeout)

    @property
    def inherited(self) -> bool:
        """Whether this process was forked from the one that made the node: what it runs and holds is that one's."""
        return self._pid != os.getpid()

    def close(self) -> None:
        """Stop the node."""
        self.stop()

    def __enter__(self) -> Node:
        """Start the node; it is stopped at the end."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop the node."""
        self.stop()

    async def __aenter__(self) -> Node:
        """Start the node on the caller's loop; it is stopped at the end."""
        return await self.astart()

    async def __aexit__(self, *_: object) -> None:
        """Stop the node."""
        await self.astop()

    def _begin(self) -> None:
        with self._lock:
            if self._state != "new":
                raise NodeStopped if self._state in ("stopping", "stopped") else AlreadyInitialized
            self._state = "running"

    def _join(self) -> None:
        """Join the system once the loop is there, and start the services; undo it all if that fails."""
        with self._joining:
            self._check_running()  # whoever waited for us may have been cancelled before we began
            try:
                self._start_services()
            except BaseException:
                self._undo(time.monotonic())
                raise

    def _start_services(self) -> None:
        self._hosted.wait()
        if self._host_error is not None:
            raise self._host_error
        schema.prepare(self._database, self.settings.migrate)
        self._claimer.register(self._database)
        self._keeper.join()
        self._joined = True
        self._check_running()  # a stop may have given up waiting for us
        self.registry.on_change(self._on_change)
        for service in (self._keeper, self._committer, self._watcher, self._sweeper):
            service.start()

    def _check_running(self) -> None:
        if self._state != "running":
            raise NodeStopped

    def _leave(self, until: float) -> None:
        self._call_off()
        if not self._joining.acquire(timeout=max(0.0, until - time.monotonic()) + LAST_WRITES):
            log.error("the node's start does not end: it undoes itself once it does")
            return
        try:
            if self._state == "stopping":  # else the start has undone itself
                self._undo(until)
        finally:
            self._joining.release()

    def _call_off(self) -> None:
        """End a start that still waits for the loop: the lifespan may hang."""
        if not self._hosted.is_set():
            self._host_error = NodeStopped()
            self._hosted.set()

    def _undo(self, until: float) -> None:
        """Leave the system, as far as it was joined, and end the loop."""
        self._state = "stopping"
        try:
            if self._joined:
                self._hand_over(until)
        finally:
            try:
                self._end_host()
            finally:
                self._database.close()
                self._state = "stopped"

    def _hand_over(self, until: float) -> None:
        """Let every run end or be let go of, store the last writes, and leave: the node's row goes last."""
        self._claimer.draining = True
        self._committer.finish_round(LAST_WRITES)  # it may be claiming: what it claims must be told to stop, too
        self._keeper.beat_soon()
        had_runs = len(self._runs) > 0
        self._stop_all(until)
        last = max(until, time.monotonic()) + LAST_WRITES
        handed_over = self._runs.wait_until_ended(last - time.monotonic())
        if not handed_over:
            log.error("some runs could not be handed over in time: their leases must run out")
        self._stop_services(last)
        self._go(tell=had_runs and handed_over)

    def _stop_services(self, last: float) -> None:
        """Stop all but the keeper, which beats until they have ended."""
        services = (self._watcher, self._sweeper, self._committer)
        for service in services:
            service.stop(0.0)
        for service in services:
            service.stop(max(LEAST_WAIT, last - time.monotonic()))

    def _go(self, *, tell: bool) -> None:
        """Say goodbye in a thread that can be left behind: a server that hangs must not hold the process up."""
        leaving = threading.Thread(target=self._say_goodbye, args=(tell,), name="pyasync-leave", daemon=True)
        try:
            leaving.start()
        except RuntimeError:  # no thread can be had
            self._say_goodbye(tell)
            return
        leaving.join(LAST_WRITES)
        if leaving.is_alive():
            log.error("the database does not answer: the node's lease must run out")

    def _say_goodbye(self, tell: bool) -> None:
        if tell:
            self._hints.send(hints.RUN)  # others need not wait for their next poll
        if not self._keeper.stop(LAST_WRITES):  # its thread still uses the connection
            log.error("the node's keeper does not end: its lease must run out")
            return
        try:
            self._keeper.leave()
        except Exception:
            log.exception("the node's row could not be removed: its lease must run out")

    def _stop_all(self, until: float) -> None:
        for execution in self._runs:
            self._stop_run(execution, context.SHUTDOWN, by=until)
        self._watcher.wake()

    # --- the loop

    def _run_loop(self) -> None:
        try:
            anyio.run(self._host)
        except Exception as error:  # no loop can be had
            self._host_failed(error)
        finally:
            self._host_gone()

    async def _host(self) -> None:
        """Run on the loop, from start to stop: the resources, and the task group in which runs live."""
        try:
            with anyio.CancelScope() as scope:
                self._end_loop = partial(soon_on_this_loop(), self._quit, scope)
                if self._state == "running":  # a stop that came before found no loop to end
                    await self._serve()
        except Exception as error:
            self._host_failed(error)
        finally:
            self._host_left()

    async def _serve(self) -> None:
        async with _entered(self.registry.lifespan) as resources, anyio.create_task_group() as group:
            self._inbox = Inbox()
            self._soon = self._inbox.put
            self._pulse.attach(self._soon)
            self._executor = self._make_executor(group, resources)
            self._hosted.set()
            await self._inbox.run()
            group.cancel_scope.cancel()

    def _quit(self, scope: anyio.CancelScope) -> None:
        """End the host, on the loop: after the calls that wait, or in the middle of entering the lifespan."""
        if self._inbox is None:
            scope.cancel()
        else:
            self._inbox.close()

    def _host_failed(self, error: Exception) -> None:
        self._host_error = error
        if self._hosted.is_set():
            log.error("the node's loop failed: it stops", exc_info=error)

    def _host_left(self) -> None:
        try:
            if self._hosted.is_set() and self._state == "running":  # the host's loop ends without having stopped us
                threading.Thread(target=self.stop, args=(0.0,), name="pyasync-stop").start()
        except RuntimeError:
            log.exception("no thread can be had to stop the node: stop it yourself")
        finally:
            self._host_gone()

    def _host_gone(self) -> None:
        """Note that the loop, or what was to run on it, has ended."""
        self._host_ended.set()
        if not self._hosted.is_set():
            self._host_error = self._host_error or RuntimeError("the node's loop ended before the node had started")
            self._hosted.set()

    def _make_executor(self, group: Any, resources: Any) -> Executor:
        return Executor(
            tasks=group,
            soon=self._soon,
            runs=self._runs,
            sink=self._committer,
            endings=self._endings,
            resources=resources,
            commit=self._commits.commit,
            reload=self._reload,
            on_room=self._on_room,
        )

    def _end_host(self) -> None:
        if self._end_loop is not None:
            with suppress(RuntimeError):  # the loop is closed, or trio's run is over
                self._end_loop()
        if not self._host_ended.wait(LAST_WRITES):
            log.error("the node's loop does not end: it is left behind")

    # --- how the services meet

    def _tell(self) -> Beat:
        return Beat(
            counter=0,
            session_key=None,
            slots=self.settings.concurrency,
            running=len(self._runs),
            draining=self._claimer.draining,
            types={each.name: each.version for each in self._claimer.types()},
        )

    def _on_beat(self, seen: Seen) -> None:
        self._sweeper.observe(seen.peers, seen.lost)
        strays, vanished = self._reconciler.compare(seen.owned, self._runs)
        for execution in vanished:
            self._lost_run(execution)
        if strays:
            self._sweeper.release(strays)

    def _on_hint(self, hint: str) -> None:
        if hint in (hints.RUN, hints.DELETE):
            self._claimer.wake(full=hint == hints.DELETE)
            self._committer.wake()
        if hint in (hints.MARK, hints.DELETE):
            self._watcher.notice()

    def _on_lost(self, was: UUID, now: UUID) -> None:
        for execution in self._runs:
            self._lost_run(execution)
        self._sweeper.let_go_of(was)

    def _on_change(self) -> None:
        self._keeper.beat_soon()
        self._on_released()

    def _on_released(self) -> None:
        self._claimer.wake(full=True)
        self._committer.wake()
        self._hints.send(hints.RUN)  # there may be more than this node has slots for

    def _on_room(self) -> None:
        self._claimer.has_room()
        self._committer.wake()

    def _may_claim(self) -> bool:
        return self._keeper.trusted and self._pulse.alive()

    def _launch(self, executions: list[Execution]) -> None:
        self._executor.launch(executions)
        if len(self._runs) <= len(executions) or any(each.deadline is not None for each in executions):
            self._watcher.wake()

    def _stop_run(self, execution: Execution, reason: str, by: float | None = None) -> None:
        """Ask a run to stop, from any thread; `by` is when it is let go of, `stop_grace` from now if it was not asked
        before.
        """
        if not execution.stop.set(reason):
            if by is not None and execution.stop_by is not None:
                execution.stop_by = min(by, execution.stop_by)
            return
        execution.stop_by = time.monotonic() + self.settings.stop_grace if by is None else by
        if isinstance(execution.stop, AsyncStop):
            self._soon(execution.stop.ring)
        self._watcher.wake()

    def _lost_run(self, execution: Execution) -> None:
        """Tell a run that its task is no longer its own: nothing that it writes counts any more."""
        execution.let_go = True
        self._stop_run(execution, context.LOST)
        if self._runs.ended(execution):
            self._on_room()

    def _let_go(self, execution: Execution) -> None:
        """End a run that did not stop in time: its task gets a new fence, its coroutine is cancelled, its thread left
        behind.
        """
        execution.cancelled = True
        if not (execution.let_go or execution.ended or execution.ending):
            execution.let_go = True
            write = self._endings.ending(execution, Stopped())
            write.new_fence = new_fence()
            self._committer.force(execution, write)
        self._soon(self._cancel, execution)

    @staticmethod
    def _cancel(execution: Execution) -> None:
        if execution.cancel is not None:
            execution.cancel()

    def _reload(self, execution: Execution) -> None:
        """Read a run's row again after the database went back in time; the run is lost if its claim does not stand."""
        try:
            row = self._database.run(claims.reload, execution.claim.task_id, execution.claim.fence)
        except DatabaseUnavailable:
            log.warning(
                "a run's row cannot be read again: it is let go of", extra={"task_id": str(execution.claim.task_id)}
            )
            row = None
        if row is None:
            self._lost_run(execution)
        else:
            execution.row, execution.claim = row, execution.claim.after(row.seq)

    # --- what a node adds to a client's verbs

    def health(self) -> Health:
        """Say how the node is, for a probe: `ok` is whether it can be relied on to run tasks now."""
        if self._state != "running":
            return Health(False, f"it is {self._state}", len(self._runs), self._keeper.node_id)
        if not self._keeper.trusted:
            reason = "it could not renew its lease: the database does not answer"
        elif self._pulse.stalled:
            reason = "its event loop is blocked"
        else:
            reason = ""
        return Health(not reason, reason, len(self._runs), self._keeper.node_id)

    def _check_types(self, types: set[str], connection: Any) -> None:
        super()._check_types({name for name in types if name not in self.registry}, connection)

    def _wake(self, hint: str) -> None:
        self._on_hint(hint)
        super()._wake(hint)

    def _check_open(self) -> None:
        if self._state == "stopped":
            raise NodeStopped


@dataclass(frozen=True)
class Health:
    """How a node is."""

    ok: bool
    reason: str
    running: int
    node_id: UUID


def _spawn(host: Callable[[], Coroutine[Any, Any, None]], ended: Callable[[], None]) -> Any:
    """Run the host in the background of the caller's loop, so that start and stop may come from different tasks of it.

    Returns the task, to be kept: asyncio itself keeps weak references only.
    """
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return trio.lowlevel.spawn_system_task(host)
    task = asyncio.get_running_loop().create_task(host())
    task.add_done_callback(lambda _: ended())  # one that is cancelled before it begins runs no code of its own
    return task


@asynccontextmanager
async def _entered(lifespan: Lifespan | None) -> AsyncIterator[Any]:
    if lifespan is None:
        yield None
        return
    manager = lifespan()
    if isinstance(manager, AbstractAsyncContextManager):
        async with manager as resources:
            yield resources
    else:
        with manager as resources:
            yield resources
