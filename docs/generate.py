"""Write the generated parts of README.md and docs/, so that they say what the code says: python docs/generate.py"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from itertools import pairwise
from pathlib import Path

from pyasync.domain.states import Event
from pyasync.domain.transitions import TABLE, mermaid, state_of
from pyasync.settings import Settings

ROOT = Path(__file__).parents[1]

UNITS = {
    "concurrency": "tasks",
    "delete_concurrency": "tasks",
    "lease": "seconds",
    "poll_interval": "seconds",
    "stop_grace": "seconds",
    "schema": "name",
    "name": "text",
    "types": "names",
    "groups": "names",
    "max_context_bytes": "bytes",
    "max_depth": "levels",
    "migrate": "word",
    "queue": "policy",
    "delete_queue": "policy",
    "pooled": "yes or no",
    "strict": "yes or no",
    "stall_after": "seconds",
    "fast_detection": "yes or no",
    "connections": "connections",
    "database_timeout": "seconds",
}


def pages() -> Iterator[tuple[Path, str]]:
    """Yield each page with its text as it must be."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        yield path, _MARKED.sub(_generated, path.read_text())


_MARKED = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _generated(found: re.Match[str]) -> str:
    head, name, tail = found.groups()
    return f"{head}{GENERATORS[name]()}\n{tail}"


def diagram() -> str:
    return f"```mermaid\n{mermaid()}\n```"


def transitions() -> str:
    """Draw the table: a no-op is a dot, an empty cell an error."""
    lines = [["status", "shown as", *(event.value for event in Event)]]
    for status, row in TABLE.items():
        cells = {event: "removed" if target is None else _pair(target) for event, target in row.items()}
        cells |= {event: "·" for event, target in row.items() if target == status}
        lines.append([f"**{_pair(status)}**", state_of(status).value, *(cells.get(event, "") for event in Event)])
    return _table(lines)


def _pair(status: tuple[str, str]) -> str:
    return f"{status[0]}, {status[1]}"


def settings() -> str:
    meanings = _docstrings()
    lines = [["setting", "default", "unit", "meaning"]]
    lines += [[f"`{each.name}`", _default(each), UNITS[each.name], meanings[each.name]] for each in fields(Settings)]
    return _table(lines)


def _docstrings() -> dict[str, str]:
    """Return what stands below each field, which Python itself forgets."""
    body = ast.parse(inspect.getsource(Settings)).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def _default(field: Field[object]) -> str:
    if field.default is MISSING:
        return "host:pid"
    number = isinstance(field.default, int | float) and not isinstance(field.default, bool)
    return f"`{field.default:,}`".replace(",", "_") if number else f"`{field.default}`"


def _table(lines: list[list[str]]) -> str:
    head, *rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rows])


GENERATORS: Mapping[str, Callable[[], str]] = {
    "diagram": diagram,
    "transitions": transitions,
    "settings": settings,
}

if __name__ == "__main__":
    for path, text in pages():
        path.write_text(text)
