"""Nodes that are only rows, and nodes that are processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from pyasync import Client
from pyasync.ids import new_id
from pyasync.store import nodes
from pyasync.store.nodes import Beat


def add_node(client: Client, name: str, *types: str, lease: float = 60.0, version: str = "1") -> UUID:
    """Insert the row of a node; with a lease below 0 it has been silent for too long."""
    id = new_id()
    beat = Beat(1, None, 1, 0, False, dict.fromkeys(types, 0))
    client._database.run(nodes.join, id, name, version, lease, beat)
    return id


@contextmanager
def node_process(url: str, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `pyasync node`; its stderr is the file `log`. If it still runs at the end, it is killed."""
    command = [sys.executable, "-m", "pyasync", "node", *arguments]
    environment = {**os.environ, "PYASYNC_DATABASE_URL": url}
    with (
        open(folder / "log", "w") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env=environment
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()
