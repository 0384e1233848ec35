"""Nodes and the like in processes of their own, for the benchmarks that need more than one."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import Any, Self

PATIENCE = 60.0

SPAWN = multiprocessing.get_context("spawn")
"""How processes are started: afresh, as on any machine, with nothing inherited."""


class Process:
    """Something that is entered in a process of its own, such as a node; functions can be called with it there.

    with Process(make_node, place.url) as node:
        seconds = node.call(cpu)        # a module's function, called with what `make_node` returned

    The process starts at once: several may do so side by side before the first is waited for.
    """

    def __init__(self, make: Callable[..., AbstractContextManager[Any]], *arguments: Any) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function there, and return what it returned."""
        self.ask(function, *arguments)
        return self.answer()

    def ask(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin a call; `answer` waits for its end."""
        self._pipe.send((function, arguments))

    def answer(self) -> Any:
        """Return what the call returned that was asked for."""
        if not self._pipe.poll(PATIENCE):
            raise TimeoutError(f"process {self._process.pid} does not answer")
        return self._pipe.recv()  # EOFError: it has ended, and has said why

    def kill(self) -> float:
        """End it by SIGKILL; return when that was, by the monotonic clock, which all processes share."""
        at = time.monotonic()
        self._process.kill()
        self._process.join()
        return at

    def __enter__(self) -> Self:
        """Wait until it was entered there."""
        self.answer()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it there, and wait for the end of its process."""
        self._pipe.close()
        self._process.join(PATIENCE)
        self._process.kill()


def _serve(pipe: Connection, make: Callable[..., AbstractContextManager[Any]], arguments: Sequence[Any]) -> None:
    with make(*arguments) as entered:
        pipe.send(None)
        while True:
            try:
                function, rest = pipe.recv()
            except EOFError:
                return
            pipe.send(function(entered, *rest))
