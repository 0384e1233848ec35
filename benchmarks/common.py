"""What the benchmarks share: a fresh database, repetitions, and a result that says what it was measured on."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy

import pyasync

Measure = Callable[[str, int], float]


@contextlib.contextmanager
def fresh(url: str | None) -> Iterator[str]:
    """Give a database that was not used before: a new SQLite file, or the one given with its pyasync tables emptied."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = url or f"sqlite:///{Path(folder) / 'benchmark.db'}"
        with pyasync.Client(chosen, migrate="auto") as client:
            for task in client.get_tasks(limit=1):
                sys.exit(f"{chosen} has tasks ({task.id}): give a database of its own")
        yield chosen


def main(question: str, unit: str, measure: Measure, *, size: int) -> None:
    """Measure a few times and write what came out; `measure(url, size)` returns one figure."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--database", help="an empty database; default: a new SQLite file each time")
    parser.add_argument("--size", type=int, default=size)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    figures = []
    for _ in range(options.runs):
        with fresh(options.database) as url:
            figures.append(measure(url, options.size))
    _write(question, unit, options, figures)


def _write(question: str, unit: str, options: argparse.Namespace, figures: list[float]) -> None:
    median = statistics.median(figures)
    print(f"{question}\n  {median:,.1f} {unit} (median of {len(figures)}; {min(figures):,.1f} to {max(figures):,.1f})")
    about = {
        "question": question,
        "unit": unit,
        "median": median,
        "figures": figures,
        "size": options.size,
        "database": "sqlite" if options.database is None else options.database.partition(":")[0],
        "pyasync": pyasync.__version__,
        "sqlalchemy": sqlalchemy.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    print(json.dumps(about))
