"""The demo's nodes: processes of their own, each `pyasync node`, which are all gone when the demo is."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Self

CONCURRENCY = 6
PATIENCE = 15.0
"""Seconds that a node may take to leave."""
LOG_SHOWN = 15  # lines


class Fate(StrEnum):
    """What has become of a node."""

    JOINING = "joining"
    ALIVE = "alive"
    KILLED = "killed"
    LEAVING = "leaving"
    LEFT = "left"
    DIED = "died"
    """By itself, which is not in the script."""


class NodeProcess:
    """One node."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.fate = Fate.JOINING
        self._log = log
        with open(log, "wb") as stderr:
            # A session of its own: Ctrl-C is for the demo, which then stops its nodes. The pipe ends with the demo,
            # however that goes, and --until-eof has the node leave then.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stderr=stderr, env=environment, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def look(self) -> None:
        """Note that it has ended."""
        if self.exit_code is None:
            return
        if self.fate is Fate.LEAVING:
            self.fate = Fate.LEFT
        elif self.fate in (Fate.JOINING, Fate.ALIVE):
            self.fate = Fate.DIED

    def kill(self) -> None:
        """End the process as `kill -9` does, and wait until it is gone."""
        self.fate = Fate.KILLED
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to leave."""
        self.fate = Fate.LEAVING
        self._process.terminate()

    def end(self) -> None:
        """See to it that it is gone."""
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
        with suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]  # a pipe

    def log(self) -> list[str]:
        """Return the end of what it wrote."""
        return self._log.read_text(errors="replace").splitlines()[-LOG_SHOWN:]


class Nodes(list[NodeProcess]):
    """All of them; on exit none is left."""

    def __init__(self, names: list[str], groups: list[str], folder: Path, environment: dict[str, str]) -> None:
        super().__init__()
        self._names = names
        self._options = ["--concurrency", str(CONCURRENCY), "--groups", ",".join(groups), "--until-eof"]
        self._environment = {**os.environ, **environment}
        self._folder = folder

    def __enter__(self) -> Self:
        """Start them."""
        try:
            for name in self._names:
                self.append(self._started(name))
        except BaseException:
            self.__exit__()
            raise
        return self

    def _started(self, name: str) -> NodeProcess:
        command = [sys.executable, "-m", "pyasync", "node", "pyasync.cli.workloads:registry", "--name", name]
        return NodeProcess(name, command + self._options, self._environment, self._folder / f"{name}.log")

    def __exit__(self, *_: object) -> None:
        """End them all: first ask all, then wait for each."""
        for node in self:
            if node.exit_code is None:
                node.stop()
        for node in self:
            node.end()
            node.look()

    def named(self, name: str) -> NodeProcess:
        """Return the node of a name."""
        return next(node for node in self if node.name == name)
