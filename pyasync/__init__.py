"""pyasync: durable tasks, coordinated by nothing but your SQL database.

import pyasync

@pyasync.task("count")
def count(run):
    for i in range(run.context["i"], 10):
        yield {"i": i + 1}          # a commit: wherever the task runs next, it goes on from here

pyasync.init("sqlite:///tasks.db")
pyasync.wait_task(pyasync.create_task("count", {"i": 0}))
pyasync.stop()
"""

from __future__ import annotations

from importlib.metadata import version as _version

from pyasync.aio import AsyncClient
from pyasync.client import Client
from pyasync.context import Run, current_run
from pyasync.default import (
    cancel_task,
    cancel_tasks,
    change_task_group,
    count_tasks,
    create_task,
    create_tasks,
    delete_task,
    delete_tasks,
    get_nodes,
    get_task,
    get_tasks,
    init,
    pause_task,
    pause_tasks,
    register_task,
    result,
    run_task,
    run_tasks,
    stop,
    task,
    wait_task,
    watch_task,
    why,
)
from pyasync.domain.backoff import Backoff
from pyasync.domain.queues import Fifo, QueuePolicy
from pyasync.domain.report import KEEP, Failed, Finished, Phase, Report
from pyasync.domain.states import Event, Mark, Stage, State, Status
from pyasync.domain.task import NewTask, NodeInfo, Task
from pyasync.errors import (
    AlreadyInitialized,
    BadArgument,
    BlockingCall,
    ClaimLost,
    ContextNotReadable,
    ContextNotSerializable,
    ContextTooLarge,
    DatabaseUnavailable,
    ForkedProcess,
    InvalidTransition,
    KeyTaken,
    NameTooLong,
    NodeStopped,
    NoRetry,
    NotInitialized,
    PyasyncError,
    RetryLater,
    SchemaOutdated,
    SettingInvalid,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
    TransactionDoomed,
    TypeAlreadyRegistered,
    TypeNotRegistered,
)
from pyasync.registry import Registry
from pyasync.runtime.node import Health, Node
from pyasync.settings import Settings

__version__ = _version("pyasync")

__all__ = [
    "KEEP",
    "AlreadyInitialized",
    "AsyncClient",
    "Backoff",
    "BadArgument",
    "BlockingCall",
    "ClaimLost",
    "Client",
    "ContextNotReadable",
    "ContextNotSerializable",
    "ContextTooLarge",
    "DatabaseUnavailable",
    "Event",
    "Failed",
    "Fifo",
    "Finished",
    "ForkedProcess",
    "Health",
    "InvalidTransition",
    "KeyTaken",
    "Mark",
    "NameTooLong",
    "NewTask",
    "NoRetry",
    "Node",
    "NodeInfo",
    "NodeStopped",
    "NotInitialized",
    "Phase",
    "PyasyncError",
    "QueuePolicy",
    "Registry",
    "Report",
    "RetryLater",
    "Run",
    "SchemaOutdated",
    "SettingInvalid",
    "Settings",
    "Stage",
    "State",
    "Status",
    "Task",
    "TaskCancelled",
    "TaskFailed",
    "TaskNotFound",
    "TransactionDoomed",
    "TypeAlreadyRegistered",
    "TypeNotRegistered",
    "cancel_task",
    "cancel_tasks",
    "change_task_group",
    "count_tasks",
    "create_task",
    "create_tasks",
    "current_run",
    "delete_task",
    "delete_tasks",
    "get_nodes",
    "get_task",
    "get_tasks",
    "init",
    "pause_task",
    "pause_tasks",
    "register_task",
    "result",
    "run_task",
    "run_tasks",
    "stop",
    "task",
    "wait_task",
    "watch_task",
    "why",
]
