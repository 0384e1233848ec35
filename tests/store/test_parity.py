"""One set of verbs: on Client, AsyncClient, pyasync and pyasync.aio, with the same names and the same parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import pyasync
from pyasync import aio
from pyasync.client import Client
from pyasync.errors import NotInitialized
from tests.store.conftest import url_of
from tests.store.rows import Rows

VERBS = [
    "cancel_task",
    "cancel_tasks",
    "change_task_group",
    "count_tasks",
    "create_task",
    "create_tasks",
    "delete_task",
    "delete_tasks",
    "get_nodes",
    "get_task",
    "get_tasks",
    "pause_task",
    "pause_tasks",
    "result",
    "run_task",
    "run_tasks",
    "wait_task",
    "watch_task",
    "why",
]
OF_A_CLIENT_ONLY = ["close", "find_ids"]
WAITING = ["result", "wait_task", "watch_task"]

PUBLIC = [
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


def parameters(verb: Callable[..., Any]) -> list[str]:
    """What a verb takes, with defaults, as a caller sees it."""
    return [str(each) for name, each in inspect.signature(verb).parameters.items() if name != "self"]


def public(cls: type) -> list[str]:
    return sorted(name for name, member in vars(cls).items() if not name.startswith("_") and callable(member))


def test_a_client_has_these_verbs() -> None:
    assert public(Client) == sorted(VERBS + OF_A_CLIENT_ONLY)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_is_everywhere_with_the_same_parameters(verb: str) -> None:
    expected = parameters(getattr(Client, verb))

    assert parameters(getattr(pyasync, verb)) == expected
    assert parameters(getattr(aio.AsyncClient, verb)) == expected
    assert parameters(getattr(aio, verb)) == expected


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_says_everywhere_what_it_does(verb: str) -> None:
    for place in (Client, pyasync, aio.AsyncClient, aio):
        assert getattr(place, verb).__doc__, place


def test_init_and_stop_are_the_same_on_both_sides() -> None:
    assert parameters(aio.init) == parameters(pyasync.init)
    assert parameters(aio.stop) == parameters(pyasync.stop)
    assert aio.register_task is pyasync.register_task or parameters(aio.register_task) == parameters(
        pyasync.register_task
    )


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in WAITING])
def test_every_verb_but_the_waiting_ones_takes_a_connection(verb: str) -> None:
    parameter = inspect.signature(getattr(Client, verb)).parameters["connection"]

    assert (parameter.kind, parameter.default) == (inspect.Parameter.KEYWORD_ONLY, None)


SINGLE = ["cancel_task", "change_task_group", "delete_task", "get_task", "pause_task", "run_task", "why", *WAITING]


@pytest.mark.parametrize("verb", SINGLE)
def test_every_verb_of_one_task_takes_a_user(verb: str) -> None:
    parameter = inspect.signature(getattr(Client, verb)).parameters["user"]

    assert (parameter.kind, parameter.default) == (inspect.Parameter.KEYWORD_ONLY, None)


@pytest.mark.parametrize("verb", VERBS)
def test_a_module_level_verb_before_init_says_so(verb: str) -> None:
    call: dict[str, Any] = {"create_task": ("report",), "create_tasks": ([],), "change_task_group": (1, "g")}
    arguments = call.get(verb, () if verb.endswith("s") and verb != "get_nodes" else (1,))
    if verb == "get_nodes":
        arguments = ()

    with pytest.raises(NotInitialized, match=r"pyasync\.init\(database\)"):
        getattr(pyasync, verb)(*arguments)
    with pytest.raises(NotInitialized):
        getattr(aio, verb)(*arguments)


def test_the_public_names_are_these() -> None:
    assert pyasync.__all__ == PUBLIC
    assert sorted(pyasync.__all__, key=sort_key) == PUBLIC
    assert [name for name in PUBLIC if not hasattr(pyasync, name)] == []


def sort_key(name: str) -> tuple[int, str]:
    """As the linter sorts: constants, then classes, then the rest."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_the_async_side_gives_the_same_answers(client: Client, rows: Rows) -> None:
    finished = rows.put("finished, run", result="5")
    failed = rows.put("failed, run", errors='[{"message":"boom"}]')

    paused = rows.put("paused, pause", user_name="bob")
    one, all_ = client.get_task(finished), client.get_tasks(user="alice")

    async def run() -> None:
        async with aio.AsyncClient(client) as other:
            assert await other.get_task(finished) == await other.wait_task(finished) == one
            assert await other.get_tasks(user="alice") == all_
            assert await other.count_tasks() == {"FINISHED": 1, "FAILED": 1, "PAUSED": 1}
            assert await other.why(failed) == "It failed in attempt 1: boom; run_task() runs it again."
            assert await other.result(finished) == 5
            assert [task.id async for task in other.watch_task(finished)] == [finished]
            with pytest.raises(pyasync.TaskFailed, match="boom"):
                await other.result(failed)
            with pytest.raises(TimeoutError):
                await other.wait_task(paused, timeout=0)

    anyio.run(run)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_async_side_has_a_client_of_its_own(database: Any, rows: Rows, loop: str) -> None:
    task_id = rows.put("pending, run")

    async def run() -> str:
        async with aio.AsyncClient(url_of(database), migrate="off") as client:
            await client.pause_task(task_id)
            return (await client.get_task(task_id)).state

    assert anyio.run(run, backend=loop) == "PAUSED"
