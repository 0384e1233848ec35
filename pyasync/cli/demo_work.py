"""The work that the demo gives its nodes, and what must come out."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pyasync.cli.workloads import DOT, MATRIX, Row, cells_of
from pyasync.domain.task import NewTask
from pyasync.ids import new_id

PAUSE = 0.4
"""Seconds that a step takes."""
DOTS, DOT_STEPS = 4, 36
ROWS, COLUMNS, CELL_STEPS = 2, 3, 24


@dataclass(frozen=True)
class Work:
    """The tasks to create; of these and of the cells that follow: names for people, needed steps, right results."""

    new: list[NewTask]
    groups: list[str]
    labels: dict[UUID, str]
    steps: dict[UUID, int]
    results: dict[UUID, Any]


def plan(tag: str) -> Work:
    """Plan alice's dot products and bob's matrix product; `tag` keeps the groups of two demos apart."""
    work = Work([], [f"{name}-{tag}" for name in ("vectors", "product", "cells")], {}, {}, {})
    for number in range(1, DOTS + 1):
        _plan_dot(work, number)
    _plan_matrix(work)
    return work


def _plan_dot(work: Work, number: int) -> None:
    id, a, b = new_id(), _vector(DOT_STEPS), _vector(DOT_STEPS)
    arguments = {"i": 0, "sum": 0, "a": a, "b": b}
    headers = {"pause": PAUSE}
    work.new.append(NewTask(type=DOT, id=id, user="alice", group=work.groups[0], arguments=arguments, headers=headers))
    work.labels[id], work.steps[id], work.results[id] = f"dot {number}", DOT_STEPS, _dot(a, b)


def _plan_matrix(work: Work) -> None:
    id, a, b = new_id(), _matrix(ROWS, CELL_STEPS), _matrix(CELL_STEPS, COLUMNS)
    headers = {"pause": PAUSE, "cells": work.groups[2], "fails_in": [0, 1]}
    arguments = {"a": a, "b": b}
    work.new.append(NewTask(type=MATRIX, id=id, user="bob", group=work.groups[1], arguments=arguments, headers=headers))
    cells = cells_of(id, a, b)
    results = {place: _dot(a[place[0]], [line[place[1]] for line in b]) for place in cells.values()}
    work.labels[id], work.results[id] = "matrix", [[results[r, c] for c in range(COLUMNS)] for r in range(ROWS)]
    for cell, (row, column) in cells.items():
        work.labels[cell], work.steps[cell] = f"cell {row},{column}", CELL_STEPS
        work.results[cell] = results[row, column]


def _dot(a: Row, b: Row) -> int:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _matrix(rows: int, columns: int) -> list[list[int]]:
    return [_vector(columns) for _ in range(rows)]


def _vector(length: int) -> list[int]:
    return [random.randint(0, 9) for _ in range(length)]
