"""How the demo is shown on a terminal: a live table, with rich."""

from __future__ import annotations

from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pyasync.cli.demo_nodes import Fate, NodeProcess
from pyasync.cli.demo_view import View, plain
from pyasync.cli.terminal import safe
from pyasync.domain.states import State
from pyasync.domain.task import Task

EVENTS = 6
"""So many fit under the table on 24 lines."""

_STATES = {
    State.PENDING: "yellow",
    State.RUNNING: "cyan",
    State.CANCELING: "magenta",
    State.PAUSED: "magenta",
    State.FINISHED: "green",
    State.FAILED: "red",
}
_FATES = {
    Fate.JOINING: ("○", "yellow"),
    Fate.ALIVE: ("●", "green"),
    Fate.LEAVING: ("◐", "yellow"),
    Fate.LEFT: ("■", "dim"),
    Fate.KILLED: ("✖", "bold red"),
    Fate.DIED: ("✖", "bold red"),
}
_COLOURS = ("blue", "yellow", "magenta")
"""A colour for each node, so that tasks are seen to move."""


class LiveTable:
    """Draws the view again and again in the same place."""

    def __init__(self) -> None:
        self._live = Live(auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last picture where it is."""
        self._live.stop()

    def show(self, view: View) -> None:
        """Draw a new view."""
        parts = [_nodes(view), *([_tasks(view)] if view.tasks else []), _events(view)]
        self._live.update(Group(*parts), refresh=True)


def _nodes(view: View) -> RenderableType:
    line = Text(f" {view.clock():4.1f} s   ")
    for number, node in enumerate(view.nodes):
        sign, style = _FATES[node.fate]
        line.append(f"{sign} ", style)
        line.append(plain(node.name), _COLOURS[number % len(_COLOURS)])
        line.append(f" {_doing(view, node)}   ", style)
    return line


def _doing(view: View, node: NodeProcess) -> str:
    if node.fate is not Fate.ALIVE:
        return node.fate.value
    return f"runs {len(view.tasks_of(node.name))}"


def _tasks(view: View) -> RenderableType:
    table = Table(box=None, header_style="dim")
    for title, width in (("task", 8), ("user", 5), ("group", 7), ("state", 9), ("progress", 18)):
        table.add_column(title, min_width=width, no_wrap=True)
    table.add_column("", justify="right", width=4)
    table.add_column("node", min_width=5, no_wrap=True)
    table.add_column("claims", justify="right")
    for task in view.ordered():
        table.add_row(*_row(view, task))
    return table


def _row(view: View, task: Task) -> tuple[RenderableType, ...]:
    progress = 1.0 if task.state is State.FINISHED else task.progress or 0.0
    return (
        Text(view.label(task)),
        Text(safe(task.user)),
        Text(safe(plain(task.group))),
        Text(task.state.value, _STATES.get(task.state, "")),
        ProgressBar(total=1.0, completed=progress, width=18),
        Text(f"{progress:.0%}"),
        _owner(view, task),
        Text(str(task.epoch), "bold" if task.epoch > 1 else "dim"),
    )


def _owner(view: View, task: Task) -> Text:
    names = [node.name for node in view.nodes]
    owner = view.owner(task)
    if owner is None:
        return Text("")
    return Text(plain(owner), _COLOURS[names.index(owner) % len(_COLOURS)])


def _events(view: View) -> RenderableType:
    lines = [Text("")]
    for moment, text in view.told[-EVENTS:]:
        lines.append(Text.assemble((f" {moment:4.1f} s  ", "dim"), safe(text), overflow="ellipsis", no_wrap=True))
    return Group(*lines)
