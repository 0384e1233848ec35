"""Tasks are named by beginnings of their ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from tests.cli.conftest import Run

Create = Callable[..., Any]

ONE = UUID("01900000-0000-7000-8000-00000000000a")
OTHER = UUID("01900000-0000-7000-8000-00000000000b")


@pytest.mark.parametrize("text", ["abc", "ABCDEF01-2345", "abcdef01234578"])
def test_a_beginning_that_no_other_id_has_is_enough(cli: Run, create: Create, url: str, text: str) -> None:
    id = create(id=UUID("abcdef01-2345-7890-8000-000000000000"))
    create(id=ONE)

    ran = cli("show", text)

    assert ran.code == 0
    assert str(id) in ran.lines[0]


def test_a_beginning_that_two_ids_have_lists_them(cli: Run, create: Create) -> None:
    create(id=ONE)
    create(id=OTHER)

    ran = cli("why", "0190")

    assert (ran.code, ran.out) == (4, "")
    assert ran.err.splitlines()[1:] == [f"  {ONE}", f"  {OTHER}"]


def test_another_users_tasks_do_not_make_a_beginning_ambiguous(cli: Run, create: Create) -> None:
    create(id=ONE, user="ann")
    create(id=OTHER, user="bob")

    assert str(ONE) in cli("show", "0190", "--user", "ann").lines[0]


def test_another_users_task_is_not_found(cli: Run, create: Create) -> None:
    create(id=ONE, user="ann")

    assert cli("show", ONE, "--user", "bob").code == 4
    assert cli("pause", "0190", "--user", "bob").code == 4


@pytest.mark.parametrize("text", ["019f", str(OTHER)])
def test_an_id_that_nobody_has_is_not_found(cli: Run, create: Create, text: str) -> None:
    create(id=ONE)

    assert cli("show", text).code == 4


@pytest.mark.parametrize("text", ["", "xyz", "0" * 33])
def test_what_is_no_id_is_a_usage_error(cli: Run, client: object, text: str) -> None:
    assert cli("show", text).code == 2
