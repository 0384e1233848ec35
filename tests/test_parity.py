"""One API: each verb on the module, on a client and awaited, with the same arguments; no public name by accident."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import pyasync
from pyasync import aio
from pyasync.aio import AsyncClient
from pyasync.client import Client

VERBS = (
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
)
WAITING = ("result", "wait_task", "watch_task")
OTHERS_OF_A_CLIENT = ("close", "find_ids")


def _arguments(function: object, *, skip: int) -> list[str]:
    parameters = list(inspect.signature(function).parameters.values())  # type: ignore[arg-type]
    return [str(each.replace(annotation=inspect.Parameter.empty)) for each in parameters[skip:]]


def test_a_client_has_these_verbs_and_no_others() -> None:
    public = [name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")]

    assert sorted(public) == sorted([*VERBS, *OTHERS_OF_A_CLIENT])


@pytest.mark.parametrize("verb", VERBS)
def test_verb_takes_the_same_arguments_everywhere(verb: str) -> None:
    expected = _arguments(getattr(Client, verb), skip=1)

    assert _arguments(inspect.unwrap(getattr(pyasync, verb)), skip=1) == expected
    assert _arguments(inspect.unwrap(getattr(aio, verb)), skip=1) == expected
    assert _arguments(inspect.unwrap(inspect.getattr_static(AsyncClient, verb)), skip=1) == expected


@pytest.mark.parametrize("verb", sorted(set(VERBS) - set(WAITING)))
def test_verb_that_does_not_wait_takes_a_connection(verb: str) -> None:
    assert "connection" in inspect.signature(getattr(Client, verb)).parameters


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.endswith("_task") and verb != "create_task"])
def test_verb_of_one_task_can_be_kept_to_one_user(verb: str) -> None:
    assert "user" in inspect.signature(getattr(Client, verb)).parameters


def test_public_names_are_listed_and_sorted() -> None:
    assert pyasync.__all__ == sorted(pyasync.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert all(hasattr(pyasync, name) for name in pyasync.__all__)
    assert {*VERBS, "init", "stop", "task", "register_task", "current_run"} <= set(pyasync.__all__)


def test_importing_pyasync_imports_neither_alembic_nor_what_is_optional() -> None:

    unwanted = "alembic psycopg pymysql rich trio sqlalchemy.orm pydantic msgspec"
    program = f"import sys, pyasync; print([name for name in '{unwanted}'.split() if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
