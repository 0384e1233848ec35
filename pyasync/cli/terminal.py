"""Text for a terminal: tables, bars and ages; nothing that a row holds can steer the terminal."""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from pyasync.domain.states import State

GAP = "  "
LEAST = 8
"""Columns of a terminal that an elastic column keeps."""
_STEERING = re.compile(r"[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")

COLOURS = {
    State.PENDING: "33",
    State.RUNNING: "36",
    State.CANCELING: "35",
    State.PAUSED: "35",
    State.FINISHED: "32",
    State.FAILED: "31",
    State.DELETING: "90",
}
"""ANSI colours, by what people see of a task."""


def say(line: str = "") -> None:
    """Write a line of data."""
    print(line, flush=True)


def tell(line: str) -> None:
    """Write a line for people, beside the data."""
    print(line, file=sys.stderr, flush=True)


def complain(message: str) -> None:
    """Write an error for people."""
    tell("\n".join(safe_lines(f"pyasync: {message}")))


def safe(text: str) -> str:
    """Return a text as one line in which whatever could steer a terminal is escaped."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def safe_lines(text: str) -> list[str]:
    """Return a text's lines, each safe."""
    return [safe(line.expandtabs(4)) for line in text.splitlines()]


def safe_json(document: str) -> str:
    """Escape what JSON leaves as it is and a terminal obeys; it can only stand inside of strings."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def age(seconds: float) -> str:
    """Return a time span in one unit, such as `12s`, `3m`, `5h` or `9d`."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def tasks_in_words(number: int) -> str:
    """Return a number of tasks in words."""
    return "1 task" if number == 1 else f"{number} tasks"


def bar(fraction: float | None, width: int = 10) -> str:
    """Draw a fraction; nothing for None."""
    if fraction is None:
        return ""
    filled = int(fraction * width + 0.5)
    full, empty = ("█", "░") if _draws(sys.stdout.encoding) else ("#", ".")
    return f"{full * filled}{empty * (width - filled)} {int(fraction * 100):3d}%"


def _draws(encoding: str | None) -> bool:
    try:
        "█░".encode(encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def is_terminal() -> bool:
    """Whether a person looks at what is written to stdout."""
    return sys.stdout.isatty()


def coloured(text: str, colour: str | None) -> str:
    """Colour a text where a person looks at it and has not asked for none (https://no-color.org)."""
    if not colour or not is_terminal() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


@dataclass(frozen=True)
class Column:
    """A column of a table; numbers stand on the right, and what is `elastic` is cut to what room there is."""

    title: str
    right: bool = False
    elastic: bool = False


@dataclass(frozen=True)
class Cell:
    """A text in a colour."""

    text: str
    colour: str | None = None


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell | str]]) -> list[str]:
    """Return the lines of a table as wide as the terminal; where there is none nothing is cut."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    lines = [[Cell(column.title) for column in columns], *cells]
    widths = [max(columns_of(line[n].text) for line in lines) for n in range(len(columns))]
    _fit(columns, widths)
    return [_line(columns, line, widths) for line in lines]


def _fit(columns: Sequence[Column], widths: list[int]) -> None:
    """Take what is too much from the elastic columns, always from the widest one."""
    if not is_terminal():
        return
    too_much = sum(widths) + len(GAP) * (len(widths) - 1) - shutil.get_terminal_size().columns
    elastic = [n for n, column in enumerate(columns) if column.elastic]
    for _ in range(max(0, too_much) if elastic else 0):
        widest = max(elastic, key=lambda n: widths[n])
        widths[widest] -= widths[widest] > LEAST


def _line(columns: Sequence[Column], cells: Sequence[Cell], widths: Sequence[int]) -> str:
    parts = zip(columns, cells, widths, strict=True)
    return GAP.join(coloured(_padded(column, cell.text, width), cell.colour) for column, cell, width in parts).rstrip()


def _padded(column: Column, text: str, width: int) -> str:
    text = cut(text, width)
    padding = " " * (width - columns_of(text))
    return padding + text if column.right else text + padding


def cut(text: str, width: int) -> str:
    """Cut a text to a width, and show that something is missing."""
    if columns_of(text) <= width:
        return text
    kept = ""
    for sign in text:
        if columns_of(kept + sign) >= width:
            break
        kept += sign
    return kept + "…"


def columns_of(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(sign) in "WF" for sign in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))
