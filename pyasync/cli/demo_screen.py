"""How the demo is shown where nobody looks, or without rich: lines that are readable in a log."""

from __future__ import annotations

import time
from typing import Protocol, Self

from pyasync.cli.demo_nodes import Fate, NodeProcess
from pyasync.cli.demo_view import View, plain
from pyasync.cli.terminal import is_terminal, safe, say
from pyasync.domain.states import State

EVERY = 2.0
"""Seconds between two lines of progress."""


class Screen(Protocol):
    """What shows the view."""

    def __enter__(self) -> Self:
        """Begin to show."""
        ...

    def __exit__(self, *_: object) -> None:
        """Stop showing; what was shown stays."""
        ...

    def show(self, view: View) -> None:
        """Show a new view."""
        ...


def screen_for_stdout() -> Screen:
    """Return a live table where somebody looks and rich is installed, else lines."""
    if not is_terminal():
        return Lines()
    try:
        from pyasync.cli.demo_table import LiveTable
    except ImportError:
        return Lines()
    return LiveTable()


class Lines:
    """A line for each event, and one of progress from time to time."""

    def __init__(self) -> None:
        self._told = 0
        self._next = 0.0

    def __enter__(self) -> Self:
        """Begin to show."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop showing."""

    def show(self, view: View) -> None:
        """Write what is new."""
        for moment, text in view.told[self._told :]:
            say(f"{moment:5.1f} s  {safe(text)}")
        self._told = len(view.told)
        if view.tasks and time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY
            say(f"{view.clock():5.1f} s  {_progress(view)}")


def _progress(view: View) -> str:
    nodes = ", ".join(f"{plain(node.name)} {_doing(view, node)}" for node in view.nodes)
    return f"  {view.progress():4.0%} done, {view.count(State.FINISHED)} of {len(view.work.labels)} finished; {nodes}"


def _doing(view: View, node: NodeProcess) -> str:
    return f"runs {len(view.tasks_of(node.name))}" if node.fate in (Fate.ALIVE, Fate.LEAVING) else node.fate.value
