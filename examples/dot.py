"""The dot product of two vectors, one element a step: a class, whose checkpoint says how far it came.

python examples/dot.py
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pyasync
from pyasync import Finished, Registry, Report, Run

registry = Registry()


@registry.task("dot")
class Dot:
    """Multiply `a` and `b`. `pause`: seconds that a step takes; `failure_rate`: how many of the steps fail, 0 to 1."""

    def running(self, run: Run[dict[str, Any]]) -> Iterator[Report]:
        context = {"i": 0, "sum": 0} | run.context  # at first just the arguments, later the last checkpoint
        while context["i"] < len(context["a"]):
            yield self._step(context, run.arguments)
        yield Finished(context["sum"])

    def _step(self, context: dict[str, Any], arguments: dict[str, Any]) -> Report:
        time.sleep(arguments.get("pause", 0))
        if random.random() < arguments.get("failure_rate", 0):
            raise ArithmeticError(f"bad luck with element {context['i']}")
        context["sum"] += context["a"][context["i"]] * context["b"][context["i"]]
        context["i"] += 1
        return Report(context, progress=context["i"] / len(context["a"]))


def main(database: str) -> None:
    pyasync.init(database, registry=registry)
    vectors = {"a": [1, 2, 3, 4], "b": [5, 6, 7, 8], "failure_rate": 0.2}
    id = pyasync.create_task("dot", vectors, retry=[0] * 100)  # each retry begins at the step that failed
    for task in pyasync.watch_task(id):
        print(f"{task.state}  attempt {task.attempt}  {task.context.get('i', 0)} of {len(vectors['a'])}")
    print("result:", pyasync.result(id))
    pyasync.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"sqlite:///{folder}/dot.db")
