"""What the benchmarks share: arguments, databases, interleaved runs, targets, a table and JSON.

A benchmark is a file with a question as its docstring, and at its end:

    QUESTION = Question(
        name="drain",
        unit="tasks/s",
        contenders=contenders,                   # a function of the kind of database that lists Contender objects
        targets=(Target("pyasync 1,000", at_least=0.45, of="raw *", databases=("postgresql",)),),
        sizes=Sizes(small=20, usual=5_000, full=20_000),
    )

    if __name__ == "__main__":
        main(QUESTION, __doc__)

What is measured is a module-level function of a `Place` (a fresh, empty database) and a size, which returns a figure in
the question's unit, or a dict of figures by their units (`{"p50, ms": 1.6, "p95, ms": 3.0}`). Each run takes every
contender in turn, each on a fresh database, so that a slow minute of the machine hits them all. A function that cannot
measure here, because something is missing, raises `Unmeasured`; whatever else it raises ends the program.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, NullPool, create_engine, make_url, text

from pyasync import Client, NewTask
from tests.servers import MariaDB, PostgreSQL, Server, Unavailable, running_server

KINDS = ("postgresql", "mariadb", "sqlite")
BATCH = 1_000
_DRIVERS = {"postgresql": "psycopg", "mariadb": "PyMySQL"}


class Unmeasured(Exception):
    """A contender cannot be measured on this machine; the message says why."""


@dataclass(frozen=True)
class Place:
    """A fresh database without tables. `admin_url` leads there as a user who sees everybody's sessions."""

    kind: str
    url: str
    admin_url: str

    @property
    def parts(self) -> URL:
        """The URL's parts, for drivers: host, port, username, database (of SQLite: the file)."""
        return make_url(self.url)


Figures = float | Mapping[str, float]


@dataclass(frozen=True)
class Contender:
    """Somebody who does the work. `share` of the question's size is enough for one that is slow."""

    name: str
    measure: Callable[[Place, int], Figures]
    share: float = 1.0


@dataclass(frozen=True)
class Target:
    """What a contender's figure shall be: by itself, or as a ratio to the best of those whose names match `of`.

    `of` is a pattern as in file names ("raw *"), or several; `figure` is the unit, if it is not the question's. Without
    a bound, the ratio is shown and not judged.
    """

    contender: str
    at_least: float | None = None
    at_most: float | None = None
    of: str | tuple[str, ...] = ()
    figure: str | None = None
    databases: tuple[str, ...] = KINDS
    note: str = ""


@dataclass(frozen=True)
class Sizes:
    """How much work: inside `make test`, by default, and for the documentation."""

    small: int
    usual: int
    full: int


@dataclass(frozen=True)
class Question:
    """What is asked, of whom, and what the answer shall be."""

    name: str
    unit: str
    contenders: Callable[[str], Sequence[Contender]]
    sizes: Sizes
    targets: Sequence[Target] = ()
    runs: int = 3
    less_is_better: bool = False
    databases: tuple[str, ...] = KINDS
    """On which the question makes sense; `("sqlite",)` for one that no database has a part in."""


def main(question: Question, text: str | None, arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print a table and JSON for each database."""
    options = _parser(question, text).parse_args(arguments)
    size = options.size or getattr(question.sizes, "small" if options.small else "full" if options.full else "usual")
    runs = options.runs or (1 if options.small else question.runs)
    for kind in options.databases:
        if kind not in question.databases:
            continue
        with contextlib.ExitStack() as stack:
            try:
                server = _server(stack, kind, options.servers)
            except Unavailable as reason:
                print(f"{question.name}: not on {kind}: {reason}", file=sys.stderr)
                continue
            answer = _Answer(question, kind, size, runs)
            answer.measure(server, _contenders(question, kind, options))
            answer.show()
            answer.write(options.json, server)


def prepare(place: Place, type: str = "", size: int = 0, **fields: Any) -> None:
    """Make pyasync's tables, and create tasks of a type that no node needs to know yet; `fields` are NewTask's.

    The arguments of each are its number.
    """
    with Client(place.url, migrate="auto", strict=False) as client:
        for numbers in batches(size):
            client.create_tasks([NewTask(type=type, arguments=number, **fields) for number in numbers])


def batches(size: int) -> Iterator[range]:
    """Cut so many numbers into what one call creates."""
    return (range(start, min(size, start + BATCH)) for start in range(0, size, BATCH))


def p95(figures: Sequence[float]) -> float:
    """Return the 95th percentile."""
    return statistics.quantiles(figures, n=20, method="inclusive")[-1] if len(figures) > 1 else figures[0]


def connect(url: str) -> Connection:
    """Connect with SQLAlchemy, in autocommit mode: for looks before and after a measurement, in none."""
    return create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect()


def _parser(question: Question, text: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{question.name}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--databases", type=_names, default=KINDS, help=f"default: {','.join(KINDS)}")
    parser.add_argument("--runs", type=int, help=f"how often to measure each; default: {question.runs}")
    parser.add_argument("--size", type=int, help=f"how much work; default: {question.sizes.usual:,}")
    parser.add_argument("--small", action="store_true", help=f"--size {question.sizes.small} --runs 1")
    parser.add_argument("--full", action="store_true", help=f"--size {question.sizes.full}")
    parser.add_argument("--only", default="*", help="contenders whose names match this pattern, such as 'pyasync*'")
    parser.add_argument("--peers", action="store_true", help="measure other libraries, too, from PyPI")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the JSON lines to a file")
    parser.add_argument(
        "--servers", type=_names, default=(), help="URLs of running servers and users who may create databases there"
    )
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _contenders(question: Question, kind: str, options: argparse.Namespace) -> list[Contender]:
    found = list(question.contenders(kind))
    if options.peers:
        from benchmarks import peers

        found += peers.contenders(question.name, kind)
    return [each for each in found if fnmatchcase(each.name, options.only)]


# --- databases


class _Files:
    """SQLite, which needs no server: each database is a file in a folder of its own."""

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Place]:
        with tempfile.TemporaryDirectory(prefix="pyasync-benchmark-") as folder:
            url = f"sqlite:///{Path(folder) / 'benchmark.db'}"
            yield Place("sqlite", url, url)


class _Databases:
    """The databases of a server."""

    def __init__(self, kind: str, server: Server) -> None:
        self._kind = kind
        self._server = server

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Place]:
        name = self._server.create()
        try:
            yield Place(self._kind, self._server.url(name), self._server.admin_url(name))
        finally:
            self._server.drop(name)


def _server(stack: contextlib.ExitStack, kind: str, running: Sequence[str]) -> _Files | _Databases:
    """Return where to get databases of a kind: a private server with the settings it has by default, unless one runs.

    Raises Unavailable.
    """
    if kind == "sqlite":
        return _Files()
    for url in running:
        if _kind_of(url) == kind:
            return _Databases(kind, running_server(url))
    return _Databases(kind, stack.enter_context({"postgresql": PostgreSQL, "mariadb": MariaDB}[kind]()))


def _kind_of(url: str) -> str:
    name = make_url(url).get_backend_name()
    return "mariadb" if name == "mysql" else name


_ASKED = {
    "postgresql": {
        "version": "show server_version",
        "fsync": "show fsync",
        "synchronous_commit": "show synchronous_commit",
        "shared_buffers": "show shared_buffers",
    },
    "mariadb": {
        "version": "select version()",
        "innodb_flush_log_at_trx_commit": "select @@innodb_flush_log_at_trx_commit",
        "innodb_buffer_pool_size": "select @@innodb_buffer_pool_size",
        "log_bin": "select @@log_bin",
    },
    "sqlite": {
        "version": "select sqlite_version()",
        "journal_mode": "pragma journal_mode",
        "synchronous": "pragma synchronous",
    },
}


def _settings(place: Place) -> dict[str, Any]:
    """Ask a database, with a connection as pyasync makes it, how it is set."""
    with Client(place.url, migrate="auto") as client, client._database.autocommit() as tx:
        return {name: tx.execute(text(query)).scalar() for name, query in _ASKED[place.kind].items()}


# --- an answer


@dataclass
class _Answer:
    """What came out on one database."""

    question: Question
    kind: str
    size: int
    runs: int
    figures: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """By contender and unit."""
    unmeasured: dict[str, str] = field(default_factory=dict)

    def measure(self, server: _Files | _Databases, contenders: Sequence[Contender]) -> None:
        """Take every contender in turn, as often as there are runs."""
        with _progress(f"{self.question.name} on {self.kind}", self.runs * len(contenders)) as tell:
            for run in range(self.runs):
                for contender in contenders:
                    tell(f"{contender.name}, run {run + 1} of {self.runs}")
                    self._measure(server, contender)

    def _measure(self, server: _Files | _Databases, contender: Contender) -> None:
        if contender.name in self.unmeasured:
            return
        try:
            with server.fresh() as place:
                came = contender.measure(place, max(1, round(self.size * contender.share)))
        except Unmeasured as reason:
            self.unmeasured[contender.name] = str(reason)
            return
        by_unit = came if isinstance(came, Mapping) else {self.question.unit: came}
        for unit, figure in by_unit.items():
            self.figures.setdefault((contender.name, unit), []).append(figure)

    def show(self) -> None:
        """Print the table."""
        print(f"\n{self.question.name} on {self.kind}, size {self.size:,}, {self.runs} runs\n")
        limits = [
            limit for limit in dict.fromkeys(_patterns(target.of) for target in self._targets()) if self._has(limit)
        ]
        rows = [["", "unit", "median", "min", "max", *(f"x {', '.join(limit)}" for limit in limits)]]
        for (name, unit), figures in self.figures.items():
            ratios = [self._ratio(name, unit, limit) if self._asked(name, limit) else None for limit in limits]
            shown = [_number(each) for each in (statistics.median(figures), min(figures), max(figures))]
            rows.append([name, unit, *shown, *("" if ratio is None else f"{ratio:.3g}" for ratio in ratios)])
        _print_table(rows)
        for name, reason in self.unmeasured.items():
            print(f"{name}: not measured: {reason}")
        for target in self._bounds():
            print(self._verdict(target))

    def write(self, path: Path | None, server: _Files | _Databases) -> None:
        """Print one line of JSON, or append it to a file."""
        with server.fresh() as place:
            line = json.dumps(self._document(_settings(place)))
        if path is None:
            print(line, flush=True)
        else:
            with open(path, "a") as file:
                file.write(line + "\n")

    def _document(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {
            "question": self.question.name,
            "database": self.kind,
            "settings": settings,
            "size": self.size,
            "runs": self.runs,
            "contenders": [self._summary(*key) for key in self.figures],
            "unmeasured": self.unmeasured,
            "targets": [{**asdict(each), "reached": self._reached(each)} for each in self._bounds()],
            "versions": _versions(self.kind),
            "cores": os.cpu_count(),
            "machine": platform.platform(),
        }

    def _summary(self, name: str, unit: str) -> dict[str, Any]:
        figures = self.figures[name, unit]
        median = statistics.median(figures)
        return {
            "name": name,
            "unit": unit,
            "median": median,
            "min": min(figures),
            "max": max(figures),
            "figures": figures,
        }

    def _targets(self) -> list[Target]:
        return [target for target in self.question.targets if self.kind in target.databases]

    def _bounds(self) -> list[Target]:
        return [each for each in self._targets() if each.at_least is not None or each.at_most is not None]

    def _asked(self, name: str, limit: Sequence[str]) -> bool:
        return any(each.contender == name and _patterns(each.of) == limit for each in self._targets())

    def _verdict(self, target: Target) -> str:
        reached = self._reached(target)
        word = {True: "reached", False: "NOT reached", None: "not measured"}[reached]
        bound, limit = ("at least", target.at_least) if target.at_most is None else ("at most", target.at_most)
        unit = f"x {', '.join(_patterns(target.of))}" if target.of else self._unit(target)
        value = self._value(target)
        seen = "" if value is None else f" ({_number(value)})"
        note = f", {target.note}" if target.note else ""
        return f"{word}{seen}: {target.contender} {bound} {limit:,} {unit}{note}"

    def _reached(self, target: Target) -> bool | None:
        value = self._value(target)
        if value is None:
            return None
        least, most = target.at_least, target.at_most
        return (least is None or value >= least) and (most is None or value <= most)

    def _value(self, target: Target) -> float | None:
        unit = self._unit(target)
        if target.of:
            return self._ratio(target.contender, unit, _patterns(target.of))
        figures = self.figures.get((target.contender, unit))
        return None if figures is None else statistics.median(figures)

    def _unit(self, target: Target) -> str:
        return target.figure or self.question.unit

    def _has(self, patterns: Sequence[str]) -> bool:
        return any(_matches(name, patterns) for name, _ in self.figures)

    def _ratio(self, name: str, unit: str, patterns: Sequence[str]) -> float | None:
        """Divide a median by the best median of others."""
        ours = self.figures.get((name, unit))
        others = [
            statistics.median(figures)
            for (other, its_unit), figures in self.figures.items()
            if its_unit == unit and _matches(other, patterns)
        ]
        best = (min if self.question.less_is_better else max)(others, default=0.0)
        return statistics.median(ours) / best if ours and best else None


def _patterns(of: str | tuple[str, ...]) -> tuple[str, ...]:
    return (of,) if isinstance(of, str) else of


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        words = [f"{cell:<{width}}" for cell, width in zip(row[:2], widths[:2], strict=True)]
        numbers = [f"{cell:>{width}}" for cell, width in zip(row[2:], widths[2:], strict=True)]
        print("  ".join([*words, *numbers]).rstrip())


def _versions(kind: str) -> dict[str, str]:
    names = ["pyasync", "sqlalchemy", *([_DRIVERS[kind]] if kind in _DRIVERS else [])]
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


@contextlib.contextmanager
def _progress(title: str, steps: int) -> Iterator[Callable[[str], None]]:
    """Show how far we are: a bar on a terminal, else lines; what is yielded is told of each step that begins."""
    if not sys.stderr.isatty():
        yield lambda step: print(f"{title}: {step}", file=sys.stderr)
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda step: print(f"{title}: {step}", file=sys.stderr)
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(title, total=steps)
        begun = iter(range(steps))
        yield lambda step: progress.update(bar, completed=next(begun), description=f"{title}: {step}")
