"""Tasks that say when and where they begin. All processes of a machine have the same monotonic clock."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyasync import Registry
from pyasync.aio import Run


@dataclass(frozen=True)
class Beginning:
    """What the first line of a task's body has noted."""

    at: float
    epoch: int
    pid: int


async def beacon(run: Run[Any]) -> AsyncIterator[Any]:
    """Note the beginning, report once, so that no loss is fruitless, and go on until stopped."""
    line = f"{time.monotonic()} {run.epoch} {os.getpid()}\n"
    fileno = os.open(run.arguments, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fileno, line.encode())
    finally:
        os.close(fileno)
    yield run.arguments
    await run.stop


def beginnings(file: Path) -> list[Beginning]:
    """Return what was noted so far."""
    if not file.exists():
        return []
    lines = [line.split() for line in file.read_text().splitlines()]
    return [Beginning(float(at), int(epoch), int(pid)) for at, epoch, pid in lines]


def registry(url: str) -> Registry:
    """Return what the nodes of these tests run."""
    made = Registry()
    made.register_task("beacon", beacon)
    return made
