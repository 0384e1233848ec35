"""The verbs for async code: the same names, awaited. Each is derived from its blocking twin and runs in a worker
thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial, wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast
from uuid import UUID

import anyio
import anyio.to_thread

from pyasync import default
from pyasync.client import Client, result_of
from pyasync.context import AsyncRun as Run
from pyasync.context import current_run
from pyasync.domain.task import Task
from pyasync.errors import AlreadyInitialized
from pyasync.registry import Registry
from pyasync.runtime.node import Node

P = ParamSpec("P")
R = TypeVar("R")


class awaitable(Generic[P, R]):
    """A verb of Client as one of AsyncClient: the same arguments, awaited."""

    def __init__(self, verb: Callable[Concatenate[Any, P], R]) -> None:
        self._verb = verb
        self.__doc__ = verb.__doc__
        self.__wrapped__ = verb

    def __get__(self, client: AsyncClient, owner: object = None) -> Callable[P, Awaitable[R]]:
        """Bind the verb to a client."""

        @wraps(self._verb)
        async def call(*args: P.args, **kwargs: P.kwargs) -> R:
            connection = kwargs.get("connection")
            if hasattr(connection, "run_sync"):
                return cast("R", await connection.run_sync(partial(_with, self._verb, client.client, args, kwargs)))
            blocking = partial(self._verb, client.client, *args, **kwargs)
            return await anyio.to_thread.run_sync(blocking, limiter=client._limiter)

        return call


def _with(verb: Callable[..., R], client: Client, args: Any, kwargs: dict[str, Any], connection: Any) -> R:
    return verb(client, *args, **{**kwargs, "connection": connection})


class AsyncClient:
    """A system's tasks, by verbs that are awaited. `database` is what Client takes, or a Client or Node to use.

    `connection=` takes an AsyncConnection or AsyncSession (or a sync one, inside `run_sync`).
    """

    def __init__(self, database: Any, **settings: Any) -> None:
        self.client = database if isinstance(database, Client) else Client(database, **settings)
        self._owned = self.client is not database
        self._limiter = anyio.CapacityLimiter(8)

    async def __aenter__(self) -> AsyncClient:
        """Use the client; it is closed at the end."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the client, unless it was given."""
        if self._owned:
            await anyio.to_thread.run_sync(self.client.close)

    create_task = awaitable(Client.create_task)
    create_tasks = awaitable(Client.create_tasks)
    change_task_group = awaitable(Client.change_task_group)
    run_task = awaitable(Client.run_task)
    pause_task = awaitable(Client.pause_task)
    cancel_task = awaitable(Client.cancel_task)
    delete_task = awaitable(Client.delete_task)
    run_tasks = awaitable(Client.run_tasks)
    pause_tasks = awaitable(Client.pause_tasks)
    cancel_tasks = awaitable(Client.cancel_tasks)
    delete_tasks = awaitable(Client.delete_tasks)
    get_task = awaitable(Client.get_task)
    get_tasks = awaitable(Client.get_tasks)
    count_tasks = awaitable(Client.count_tasks)
    find_ids = awaitable(Client.find_ids)
    get_nodes = awaitable(Client.get_nodes)
    why = awaitable(Client.why)

    async def wait_task(self, id: UUID, timeout: float | None = None, *, user: str | None = None) -> Task:
        """Wait until a task is finished or failed, and return it. Raises TimeoutError, TaskNotFound."""
        steps = self.client._waiting(id, timeout, user)
        while (delay := await self._step(steps)) is not None:
            if isinstance(delay, Task):
                return delay
            await anyio.sleep(delay)
        raise AssertionError("waiting ends with a task")

    async def result(self, id: UUID, timeout: float | None = None, *, user: str | None = None) -> Any:
        """Wait until a task is finished, and return its result. Raises TaskFailed, TaskCancelled, TimeoutError,
        TaskNotFound.
        """
        return result_of(await self.wait_task(id, timeout, user=user))

    async def watch_task(self, id: UUID, *, user: str | None = None) -> AsyncIterator[Task]:
        """Iterate over a task as it changes, until it ends; see `Client.watch_task`."""
        steps = self.client._watching(id, user)
        while (step := await self._step(steps)) is not None:
            if isinstance(step, Task):
                yield step
            else:
                await anyio.sleep(step)

    async def _step(self, steps: Any) -> Any:
        """Do the next step of a waiting verb, which may look into the database; a generator's return value is its
        last.
        """
        return await anyio.to_thread.run_sync(_next, steps, limiter=self._limiter)


def _next(steps: Any) -> Any:
    try:
        return next(steps)
    except StopIteration as end:
        return end.value


async def init(database: Any, *, registry: Registry | None = None, run: bool = True, **settings: Any) -> Client:
    """Make and start the default node on this loop, asyncio's or trio's, and return it; see `pyasync.init`."""
    make = partial(default.make, database, registry=registry, run=run, **settings)
    client = await anyio.to_thread.run_sync(make)
    if isinstance(client, Node):
        await client.astart()
    try:
        return default.keep(client)
    except AlreadyInitialized:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(client.close)
        raise


async def stop(timeout: float | None = None) -> None:
    """Hand over the default node's running tasks, then leave, while this loop goes on; see `pyasync.stop`."""
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(default.stop, timeout)


def verb(method: Callable[Concatenate[Any, P], R]) -> Callable[P, R]:
    """Return a method of AsyncClient as a function of the default node or client."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(AsyncClient(default.current()), *args, **kwargs)

    return call


def derived(name: str, method: Callable[Concatenate[Any, P], R]) -> Callable[P, Awaitable[R]]:
    """Return a verb of Client as an async function of the default node or client."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        bound: Callable[P, Awaitable[R]] = getattr(AsyncClient(default.current()), name)
        return bound(*args, **kwargs)

    return call


register_task = default.register_task
task = default.task
create_task = derived("create_task", Client.create_task)
create_tasks = derived("create_tasks", Client.create_tasks)
change_task_group = derived("change_task_group", Client.change_task_group)
run_task = derived("run_task", Client.run_task)
pause_task = derived("pause_task", Client.pause_task)
cancel_task = derived("cancel_task", Client.cancel_task)
delete_task = derived("delete_task", Client.delete_task)
run_tasks = derived("run_tasks", Client.run_tasks)
pause_tasks = derived("pause_tasks", Client.pause_tasks)
cancel_tasks = derived("cancel_tasks", Client.cancel_tasks)
delete_tasks = derived("delete_tasks", Client.delete_tasks)
get_task = derived("get_task", Client.get_task)
get_tasks = derived("get_tasks", Client.get_tasks)
count_tasks = derived("count_tasks", Client.count_tasks)
get_nodes = derived("get_nodes", Client.get_nodes)
why = derived("why", Client.why)
wait_task = verb(AsyncClient.wait_task)
watch_task = verb(AsyncClient.watch_task)
result = verb(AsyncClient.result)

__all__ = ["AsyncClient", "Run", "current_run"]
