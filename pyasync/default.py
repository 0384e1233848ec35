"""The default node and registry, which the module-level functions use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from pyasync.client import Client
from pyasync.errors import AlreadyInitialized, NotInitialized
from pyasync.registry import Registry
from pyasync.runtime.node import Node

P = ParamSpec("P")
R = TypeVar("R")

registry = Registry()
"""What `pyasync.task` and `pyasync.register_task` register in."""

_lock = threading.Lock()
_client: Client | None = None


def init(database: Any, *, registry: Registry | None = None, run: bool = True, **settings: Any) -> Client:
    """Make and start the default node, on a loop in a thread of its own, and return it.

    `database` is a URL or a SQLAlchemy Engine or AsyncEngine; `run=False` only creates and queries: no lease, no
    threads. Raises AlreadyInitialized, SettingInvalid, SchemaOutdated, DatabaseUnavailable.
    """
    client = make(database, registry=registry, run=run, **settings)
    if isinstance(client, Node):
        client.start()
    try:
        return keep(client)
    except AlreadyInitialized:
        client.close()
        raise


def make(database: Any, *, registry: Registry | None, run: bool, **settings: Any) -> Client:
    """Make the default node or client, not yet started. Raises AlreadyInitialized."""
    if _taken():
        raise AlreadyInitialized
    if not run:
        return Client(database, **settings)
    return Node(database, globals()["registry"] if registry is None else registry, **settings)


def keep(client: Client) -> Client:
    """Make a client the default one. Raises AlreadyInitialized if another was faster."""
    global _client
    with _lock:
        if _taken():
            raise AlreadyInitialized
        _client = client
        return client


def _taken() -> bool:
    """Whether there is a default node or client already; one that our parent made before it forked is none of ours."""
    return _client is not None and not (isinstance(_client, Node) and _client.inherited)


def current() -> Client:
    """Return the default node or client. Raises NotInitialized."""
    if _client is None:
        raise NotInitialized
    return _client


def forget() -> Client | None:
    """Give up the default node or client, and return it."""
    global _client
    with _lock:
        client, _client = _client, None
    return client


def stop(timeout: float | None = None) -> None:
    """Hand over the default node's running tasks, then leave; see `Node.stop`. Does nothing without one."""
    client = _client
    if isinstance(client, Node):
        client.stop(timeout)
    elif client is not None:
        client.close()
    forget()


def verb(method: Callable[Concatenate[Any, P], R]) -> Callable[P, R]:
    """Return a method of Client as a function of the default one."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(current(), *args, **kwargs)

    return call


register_task = registry.register_task
task = registry.task
create_task = verb(Client.create_task)
create_tasks = verb(Client.create_tasks)
change_task_group = verb(Client.change_task_group)
run_task = verb(Client.run_task)
pause_task = verb(Client.pause_task)
cancel_task = verb(Client.cancel_task)
delete_task = verb(Client.delete_task)
run_tasks = verb(Client.run_tasks)
pause_tasks = verb(Client.pause_tasks)
cancel_tasks = verb(Client.cancel_tasks)
delete_tasks = verb(Client.delete_tasks)
get_task = verb(Client.get_task)
get_tasks = verb(Client.get_tasks)
count_tasks = verb(Client.count_tasks)
wait_task = verb(Client.wait_task)
watch_task = verb(Client.watch_task)
result = verb(Client.result)
why = verb(Client.why)
get_nodes = verb(Client.get_nodes)
