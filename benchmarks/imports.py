"""How long does `import pyasync` take in a fresh interpreter, beside that of the libraries that it stands on?

What only some need, such as Alembic and the drivers, must not be imported with it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from benchmarks.common import Contender, Place, Question, Sizes, Target, main

NOT_NEEDED = ("alembic", "psycopg", "pymysql", "rich", "msgspec", "pydantic", "trio", "fastapi", "flask")

_PROGRAM = """
import sys, time
began = time.perf_counter()
import {modules}
took = time.perf_counter() - began
print(took * 1000)
print(*(name for name in {not_needed} if name in sys.modules))
"""


def imports(place: Place, size: int, modules: str) -> float:
    """Return the median of so many interpreters, in milliseconds."""
    return statistics.median(_import(modules) for _ in range(size))


def _import(modules: str) -> float:
    program = _PROGRAM.format(modules=modules, not_needed=NOT_NEEDED)
    took, found = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    if found:
        raise AssertionError(f"{modules} imported {found}, too")
    return float(took)


def contenders(kind: str) -> Sequence[Contender]:
    """Ours, and the libraries that any program with a database and an event loop has."""
    return [
        Contender("pyasync", partial(imports, modules="pyasync")),
        Contender("sqlalchemy and anyio", partial(imports, modules="sqlalchemy, anyio")),
    ]


QUESTION = Question(
    name="imports",
    unit="ms",
    contenders=contenders,
    sizes=Sizes(small=1, usual=1, full=3),
    targets=(Target("pyasync", at_most=1.3, of="sqlalchemy and anyio"),),
    runs=11,
    less_is_better=True,
    databases=("sqlite",),
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
