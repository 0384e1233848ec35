"""What the nodes of these tests run: `python -m tests.faults.worker URL SETTINGS-JSON` is a node, until SIGTERM.

Without arguments it is a nursery: told by lines of JSON on its standard input, it forks such nodes. An import of all
that a node needs takes a second or two of CPU, a fork some milliseconds; nothing is started before the fork.

What a task does is a function of its arguments, so that any process can say what its result must be.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID, uuid5

import anyio
from sqlalchemy import Connection, create_engine, text

from pyasync import Client, Failed, Finished, InvalidTransition, NewTask, Node, Registry, RetryLater, Run, State
from pyasync.aio import Run as AsyncRun

log = logging.getLogger("tests.faults")

ANSWER = 0.2
"""Seconds for which a matrix lets its children have its slot before it looks at them again."""

ERROR_LINES = 4
"""Of a traceback: that much of it fits into the log of a test."""


# --- what tasks do


def mixed(before: int, step: int) -> int:
    """What a step makes of the context: no step can be left out, repeated or swapped without a trace."""
    return (before * 31 + step) % 1_000_003


def expected(steps: int) -> int:
    """The result of a task of so many steps."""
    value = 0
    for step in range(1, steps + 1):
        value = mixed(value, step)
    return value


def note(run: Run[Any] | AsyncRun[Any], step: int) -> None:
    """Append a line to the file that sees every step that was made, stored or not."""
    line = f"{run.id} {step} {run.epoch} {os.getpid()}\n".encode()
    fileno = os.open(run.arguments["file"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fileno, line)  # one write of a short line: processes do not tear each other's
    finally:
        os.close(fileno)


def apply(connection: Connection, run: Run[Any] | AsyncRun[Any], step: int) -> None:
    """Insert what only one run may ever insert: a second time is an error, not a no-op."""
    connection.execute(
        text("INSERT INTO applied (task, step) VALUES (:task, :step)"), {"task": run.id.hex, "step": step}
    )


@contextmanager
def watched(run: Run[Any] | AsyncRun[Any]) -> Iterator[None]:
    """Log for which reason a run was stopped."""
    try:
        yield
    finally:
        if run.stop.is_set():
            log.info("a run was stopped", extra={"task": str(run.id), "epoch": run.epoch, "reason": run.stop.reason})


async def steps(run: AsyncRun[Any]) -> AsyncIterator[Any]:
    """Make n steps with a pause in between, each noted and then checkpointed."""
    made, value = run.context.get("i", 0), run.context.get("value", 0)
    with watched(run):
        for step in range(made + 1, run.arguments["n"] + 1):
            if step > made + 1:
                await anyio.sleep(run.arguments["pause"])
            value = mixed(value, step)
            note(run, step)
            yield {"i": step, "value": value}
        yield Finished(value)


def ledger(run: Run[Any]) -> Iterator[Any]:
    """Do as `steps` does, but insert each step into a table with `run.commit`."""
    made, value = run.context.get("i", 0), run.context.get("value", 0)
    with watched(run):
        for step in range(made + 1, run.arguments["n"] + 1):
            if step > made + 1 and run.stop.wait(run.arguments["pause"]):
                return
            value = mixed(value, step)
            note(run, step)
            run.commit({"i": step, "value": value}, lambda connection, step=step: apply(connection, run, step))
        yield Finished(value)


async def idle(run: AsyncRun[Any]) -> AsyncIterator[Any]:
    """Report nothing, and end when asked to."""
    with watched(run):
        await run.stop
    return
    yield


async def reporter(run: AsyncRun[Any]) -> AsyncIterator[Any]:
    """Report once, then nothing more, and end when asked to."""
    yield {"i": 1}
    await run.stop


async def innocent(run: AsyncRun[Any]) -> AsyncIterator[Any]:
    """Make n steps, each of which takes its time before there is anything to report."""
    for step in range(run.context.get("i", 0) + 1, run.arguments["n"] + 1):
        await anyio.sleep(run.arguments["pause"])
        yield {"i": step}
    yield Finished(run.arguments["n"])


async def poison(run: AsyncRun[Any]) -> AsyncIterator[Any]:
    """End the process that runs it."""
    await anyio.sleep(run.arguments["pause"])
    os._exit(3)
    yield


async def flaky(run: AsyncRun[Any]) -> AsyncIterator[Any]:
    """Make one step, then fail; until all are made."""
    step = run.context.get("i", 0) + 1
    value = mixed(run.context.get("value", 0), step)
    yield {"i": step, "value": value}
    yield Finished(value) if step == run.arguments["n"] else Failed(f"step {step} is all for now")


async def doomed(run: AsyncRun[Any]) -> AsyncIterator[Any]:
    """Fail, and want no row kept of it."""
    yield {"i": 1}
    yield Failed("as it had to be", delete=True)


class Cleaned:
    """Make steps for ever; the clean-up notes that it ran."""

    async def running(self, run: AsyncRun[Any]) -> AsyncIterator[Any]:
        """Make steps until stopped."""
        for step in range(run.context.get("i", 0) + 1, 1_000_000):
            yield {"i": step}
            await anyio.sleep(run.arguments["pause"])

    async def deleting(self, run: AsyncRun[Any]) -> AsyncIterator[Any]:
        """Note the step after the last checkpoint."""
        note(run, run.context["i"])
        yield Finished()


# --- the ancestor's matrix: a parent, and a child for each cell of the product


def cells(size: int) -> list[tuple[int, int]]:
    """The places of a square matrix."""
    return [(row, column) for row in range(size) for column in range(size)]


def vector(seed: int, axis: str, index: int, size: int) -> list[int]:
    """A row of the first factor, or a column of the second."""
    rng = random.Random(f"{seed}/{axis}/{index}")
    return [rng.randrange(-9, 10) for _ in range(size)]


def product(seed: int, size: int) -> int:
    """The sum of all cells of the product."""
    rows = [vector(seed, "row", index, size) for index in range(size)]
    columns = [vector(seed, "column", index, size) for index in range(size)]
    return sum(dotted(rows[row], columns[column]) for row, column in cells(size))


def dotted(one: list[int], other: list[int]) -> int:
    """The dot product."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def child_id(parent: UUID, row: int, column: int) -> UUID:
    """The id of a cell's task: whoever creates it once more creates nothing."""
    return uuid5(parent, f"{row},{column}")


def child(run: Run[Any], row: int, column: int) -> NewTask:
    """The task of a cell."""
    size, seed = run.arguments["size"], run.arguments["seed"]
    one, other = vector(seed, "row", row, size), vector(seed, "column", column, size)
    arguments = {"one": one, "other": other} | {name: run.arguments[name] for name in ("failures", "pause")}
    return NewTask(type="dot", id=child_id(run.id, row, column), arguments=arguments, user=run.user)


def matrix(run: Run[Any]) -> Iterator[Any]:
    """Create the children, then give the slot back until all have finished; start those again that failed."""
    client: Client = run.resources
    ids = [child_id(run.id, *cell) for cell in cells(run.arguments["size"])]
    if not run.context.get("created"):
        client.create_tasks([child(run, *cell) for cell in cells(run.arguments["size"])])
        for each in ids:
            client.change_task_group(each, f"matrix {run.id}")
        yield {"created": True}
    tasks = client.get_tasks(ids=ids, group=f"matrix {run.id}", user=run.user, limit=len(ids))
    for task in tasks:
        if task.state is State.FAILED:
            with suppress(InvalidTransition):  # a run of this parent that has not ended yet was faster
                client.run_task(task.id)
    done = [task.result for task in tasks if task.state is State.FINISHED]
    if len(done) < len(ids):
        raise RetryLater(ANSWER)
    yield Finished(sum(done))


async def dot(run: AsyncRun[Any]) -> AsyncIterator[Any]:
    """Multiply two vectors, a place at a time; fail now and then, by chance but always the same."""
    one, other = run.arguments["one"], run.arguments["other"]
    place, value = run.context.get("place", 0), run.context.get("value", 0)
    chance = random.Random(f"{run.id}/{run.epoch}")
    while place < len(one):
        place, value = place + 1, value + one[place] * other[place]
        yield {"place": place, "value": value}
        await anyio.sleep(run.arguments["pause"])
        if chance.random() < run.arguments["failures"]:
            yield Failed("chance")
    yield Finished(value)


TYPES: dict[str, Any] = {
    "innocent": innocent,
    "reporter": reporter,
    "idle": idle,
    "poison": poison,
    "flaky": flaky,
    "doomed": doomed,
    "cleaned": Cleaned,
    "matrix": matrix,
    "dot": dot,
}


def registry(url: str) -> Registry:
    """All types; `run.resources` is a client of the same system."""

    @contextmanager
    def client() -> Iterator[Client]:
        with Client(url, migrate="off") as client:
            yield client

    made = Registry(lifespan=client)
    # Tests may kill their nodes as often as they like, before the first report too: that is not what kills nodes.
    made.register_task("steps", steps, max_losses=None)
    made.register_task("ledger", ledger, max_losses=None)
    for name, implementation in TYPES.items():
        made.register_task(name, implementation)
    return made


# --- a node


class _Lines(logging.Formatter):
    """A record as a line of JSON, with all that was passed as `extra` and the end of its traceback."""

    _usual = frozenset(vars(logging.makeLogRecord({})))

    def format(self, record: logging.LogRecord) -> str:
        line = {name: value for name, value in vars(record).items() if name not in self._usual}
        line |= {"at": time.monotonic(), "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info).splitlines()[-ERROR_LINES:]
        return json.dumps(line, default=str)


def run_node(url: str, settings: dict[str, Any]) -> None:
    """Run a node until SIGTERM. Settings of ours: `late`, and `registry`, the "module:function" that makes it."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    late = settings.pop("late", 0.0)
    module, function = settings.pop("registry", "tests.faults.worker:registry").split(":")
    made = getattr(importlib.import_module(module), function)(url)
    node = Node(url, made, **settings)
    if late:
        _come_back_late(node, late)
    with node:
        asked.wait()
    log.info("the node has stopped")


def _come_back_late(node: Node, late: float) -> None:
    """Have the keeper go on so much later than the runs after the process was stopped.

    Else it is chance whether they write before the node knows that it was declared lost, and it is what the database
    makes of such writes that a test wants to see.
    """
    tick, last = node._keeper.tick, time.monotonic()

    def tick_late() -> float:
        nonlocal last
        if time.monotonic() - last > node.settings.lease:
            time.sleep(late)
        last = time.monotonic()
        return tick()

    node._keeper.tick = tick_late  # type: ignore[method-assign]


# --- the nursery


def nurse() -> None:
    """Do what each line says, and answer with a line; at the end of the input, kill all that is left."""
    for driver in ("sqlite+pysqlite", "postgresql+psycopg", "mysql+pymysql"):
        create_engine(f"{driver}://")  # imports the driver
    gc.freeze()  # the children share what is never looked at
    children: set[int] = set()
    try:
        for line in sys.stdin:
            order = json.loads(line)
            if "url" in order:
                answer: Any = _fork(children, **order)
            elif "stopped" in order:
                answer = os.WIFSTOPPED(os.waitpid(order["stopped"], os.WUNTRACED)[1])
            else:
                answer = _ended(children, order["ended"])
            print(json.dumps(answer), flush=True)
    finally:
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _fork(children: set[int], url: str, settings: dict[str, Any], errors: str) -> int:
    if pid := os.fork():
        children.add(pid)
        return pid
    children.clear()
    nowhere = os.open(os.devnull, os.O_RDWR)
    stderr = os.open(errors, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for target, source in ((0, nowhere), (1, nowhere), (2, stderr)):
        os.dup2(source, target)
    run_node(url, settings)
    sys.exit()


def _ended(children: set[int], pid: int) -> int | None:
    """The exit code of a child, None while it lives. Until somebody asks, its pid belongs to nobody else."""
    gone, status = os.waitpid(pid, os.WNOHANG)
    if not gone:
        return None
    children.discard(pid)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run_node(sys.argv[1], json.loads(sys.argv[2]))
    else:
        nurse()
