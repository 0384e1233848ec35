"""What the nodes of these tests run: `python -m tests.faults.worker URL SETTINGS-JSON` is a node, until a signal.

Without arguments it is a nursery: told by lines of JSON on its standard input, it forks such nodes. An import of all
that a node needs takes a second or two of CPU, a fork some milliseconds; nothing is started before the fork.

What a task does is a function of its arguments, so that any process can say what its result must be.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import math
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID, uuid5

import anyio
from sqlalchemy import Connection, create_engine, text

from pyasync import Client, Failed, Finished, InvalidTransition, NewTask, Node, Registry, RetryLater, Run, State
from pyasync.aio import Run as AsyncRun
from pyasync.cli.node import Signals
from pyasync.store import writes
from pyasync.store.database import Tx
from pyasync.store.writes import Fate, Write, Written

log = logging.getLogger("tests.faults")

ANSWER = 0.2
"""Seconds for which a matrix lets its children have its slot before it looks at them again."""

ACKNOWLEDGED, CREATED = ".acknowledged", ".created"
"""What the names of the files of acknowledged steps and of created tasks end with."""

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
    append(run.arguments["file"], f"{run.id} {step} {run.epoch} {os.getpid()}")


def acknowledged(run: Run[Any] | AsyncRun[Any], step: int) -> None:
    """Append a line to the file of all steps of which a task was told that they are stored."""
    append(run.arguments["file"] + ACKNOWLEDGED, f"{run.id} {step} {run.epoch}")


def append(file: str, line: str, *, durably: bool = False) -> None:
    """Append a line, which outlives this process; if `durably`, the machine too."""
    fileno = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fileno, f"{line}\n".encode())  # one write of a short line: processes do not tear each other's
        if durably:
            os.fsync(fileno)
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
            acknowledged(run, step)
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
            acknowledged(run, step)
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


def waiting(run: Run[Any]) -> Iterator[Any]:
    """Do as `reporter` does, in a thread."""
    yield {"i": 1}
    run.stop.wait()


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


async def stubborn(run: AsyncRun[Any]) -> AsyncIterator[Any]:
    """Report once, then nothing more, even if its node is to stop; the second run has nothing left to do."""
    if run.epoch == 1:
        yield {"i": 1}
        await run.stop
        if run.stop.reason == "shutdown":
            await anyio.sleep_forever()
    yield Finished()


async def blocker(run: AsyncRun[Any]) -> AsyncIterator[Any]:
    """Block the loop for so many seconds, as no async task should."""
    yield {"i": 1}
    time.sleep(run.arguments["seconds"])  # noqa: ASYNC251 - the very mistake
    yield Finished()


def hoarder(run: Run[Any]) -> Iterator[Any]:
    """Keep all threads of the process from running for about so many seconds, but only the first time."""
    yield {"i": 1}
    if run.epoch == 1:
        took = hoard(run.arguments["seconds"])
        log.info("the interpreter was not given back", extra={"seconds": took})
    yield Finished()


def hoard(seconds: float) -> float:
    """Match a pattern that takes twice as long for each letter more, and that gives nobody else a turn meanwhile."""
    letters = 16
    while (took := _matched(letters)) < 0.1:
        letters += 1
    time.sleep(0.2)  # for what the others wanted to store meanwhile
    began = time.monotonic()
    _matched(letters + round(math.log2(seconds / took)))
    return time.monotonic() - began


def _matched(letters: int) -> float:
    """Return the seconds of CPU that it took: another process that takes turns does not count."""
    began = time.thread_time()
    assert not re.match(r"(a+)+$", "a" * letters + "b")
    return time.thread_time() - began


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
    "waiting": waiting,
    "idle": idle,
    "poison": poison,
    "flaky": flaky,
    "doomed": doomed,
    "stubborn": stubborn,
    "blocker": blocker,
    "hoarder": hoarder,
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


def run(url: str, settings: dict[str, Any]) -> None:
    """Do what the setting `job` names as "module:function": run a node, if there is none."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    _named(settings.pop("job", "tests.faults.worker:run_node"))(url, settings)


def _named(name: str) -> Any:
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def run_node(url: str, settings: dict[str, Any]) -> None:
    """Run a node as `pyasync node` does: one signal stops it, a second one ends the process.

    Settings of ours: `late`, and `registry`, the "module:function" that makes it.
    """
    signals = Signals(until_eof=False)
    late = settings.pop("late", 0.0)
    made = _named(settings.pop("registry", "tests.faults.worker:registry"))(url)
    node = Node(url, made, **settings)
    if late:
        _come_back_late(node, late)
    _halt_when_told()
    with node:
        signals.told.wait()
        log.info("the node stops")
    log.info("the node has stopped")


def run_creator(url: str, settings: dict[str, Any]) -> None:
    """Create tasks, one after the other, and write down the id of each that was acknowledged."""
    with Client(url, migrate="off", strict=False) as client:
        for place in range(settings["number"]):
            task = client.create_task(settings["types"][place % len(settings["types"])], settings["arguments"])
            append(settings["arguments"]["file"] + CREATED, str(task), durably=True)


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


def _halt_when_told() -> None:
    """On SIGUSR1, stop this process inside its next transaction that stores reports: their rows stay locked."""
    write, told = writes.write, threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: told.set())

    def write_and_stop(tx: Tx, some: Sequence[Write]) -> list[Written]:
        written = write(tx, some)
        if told.is_set() and any(each.fate is Fate.STORED for each in written):
            told.clear()
            log.info("stopped before the commit", extra={"rows": len(written)})
            # To this very thread: if another one took the signal, this one might get to its commit first.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        return written

    writes.write = write_and_stop


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
    run(url, settings)
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
        run(sys.argv[1], json.loads(sys.argv[2]))
    else:
        nurse()
