"""How many tasks does one thread create a second, one by one and 1,000 a call; and what do wake-ups cost?

A create call returns when its commit is durable. On PostgreSQL it then wakes up other processes' nodes by NOTIFY, at
most once in 20 ms and outside of the data transaction; "silent" does not. "32 clients" create one by one at once, in
several processes; "raw, notify" sends NOTIFY with each commit, as a trigger would. Nobody listens.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from multiprocessing.synchronize import Barrier

from benchmarks import raw
from benchmarks.common import BATCH, Contender, Place, Question, Sizes, Target, batches, main, prepare
from pyasync import Client, NewTask
from pyasync.ids import new_id

CLIENTS, PROCESSES = 32, 2
PATIENCE = 600.0

Opening = Callable[[Place], AbstractContextManager[Callable[[int], object]]]
"""Opens a client, and gives what creates a task with it."""


class SilentClient(Client):
    """A client that wakes up nobody."""

    def _wake(self, hint: str) -> None:
        pass


def one_by_one(place: Place, size: int, *, make: Callable[..., Client] = Client) -> float:
    """Return tasks a second."""
    prepare(place)
    with make(place.url, migrate="off", strict=False) as client:
        client.create_task("noop", 0)  # what is compiled once in a process is no part of the figure
        began = time.perf_counter()
        for number in range(size):
            client.create_task("noop", number)
        return size / (time.perf_counter() - began)


def in_bulk(place: Place, size: int, *, make: Callable[..., Client] = Client) -> float:
    """Return tasks a second."""
    prepare(place)
    with make(place.url, migrate="off", strict=False) as client:
        client.create_tasks([NewTask(type="noop")] * 2)
        began = time.perf_counter()
        for numbers in batches(size):
            client.create_tasks([NewTask(type="noop", arguments=number) for number in numbers])
        return size / (time.perf_counter() - began)


def at_once(place: Place, size: int, *, opening: Opening) -> float:
    """Return tasks a second that many clients create one by one, each its part."""
    prepare(place)
    context = multiprocessing.get_context(
        "forkserver"
    )  # its processes have no threads of ours, and import nothing anew
    context.set_forkserver_preload(["benchmarks.raw", "psycopg"])
    gate = context.Barrier(CLIENTS + 1, timeout=PATIENCE)
    share = max(1, size // CLIENTS)
    work = (place, share, opening, gate)
    processes = [context.Process(target=_work, args=work, daemon=True) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    gate.wait()
    began = time.perf_counter()
    gate.wait()
    took = time.perf_counter() - began
    for process in processes:
        process.join()
    return share * CLIENTS / took


def _work(place: Place, share: int, opening: Opening, gate: Barrier) -> None:
    """Be some of the clients."""
    with ThreadPoolExecutor(CLIENTS // PROCESSES) as pool:
        for client in [pool.submit(_be_client, place, share, opening, gate) for _ in range(CLIENTS // PROCESSES)]:
            client.result()


def _be_client(place: Place, share: int, opening: Opening, gate: Barrier) -> None:
    """Create tasks between the two moments at which all clients pass the gate."""
    try:
        with opening(place) as create:
            create(0)
            gate.wait()
            for number in range(share):
                create(number)
            gate.wait()
    except BaseException:
        gate.abort()
        raise


@contextmanager
def _client(place: Place, *, make: Callable[..., Client]) -> Iterator[Callable[[int], object]]:
    with make(place.url, migrate="off", strict=False) as client:
        yield lambda number: client.create_task("noop", number)


@contextmanager
def _driver(place: Place, *, notify: bool) -> Iterator[Callable[[int], object]]:
    with closing(raw.opened(place)) as driver:
        yield lambda _: driver.create([new_id()], notify=notify)


def contenders(kind: str) -> Sequence[Contender]:
    """List ours and the raw limits; where there is NOTIFY, also with and without it."""
    found = [
        Contender("one by one", one_by_one),
        Contender("raw one by one", raw.create),
        Contender("in bulk", in_bulk, share=10),
        Contender("raw in bulk", partial(raw.create, batch=BATCH), share=10),
    ]
    return [*found, *(_with_and_without_notify() if kind == "postgresql" else [])]


def _with_and_without_notify() -> list[Contender]:
    return [
        Contender("one by one, silent", partial(one_by_one, make=SilentClient)),
        Contender("in bulk, silent", partial(in_bulk, make=SilentClient), share=10),
        *(Contender(f"32 clients{name}", partial(at_once, opening=opening)) for name, opening in AT_ONCE.items()),
    ]


AT_ONCE: dict[str, Opening] = {
    "": partial(_client, make=Client),
    ", silent": partial(_client, make=SilentClient),
    ", raw": partial(_driver, notify=False),
    ", raw, notify": partial(_driver, notify=True),
}

QUESTION = Question(
    name="create",
    unit="tasks/s",
    contenders=contenders,
    sizes=Sizes(small=20, usual=2_000, full=20_000),
    targets=(
        Target("one by one, silent", at_least=0.7, of="raw one by one", databases=("postgresql",)),
        Target("one by one", at_least=0.8, of="one by one, silent", databases=("postgresql",), note="with wake-ups on"),
        Target("one by one", at_least=0.7, of="raw one by one", databases=("mariadb", "sqlite")),
        Target("in bulk, silent", at_least=0.5, of="raw in bulk", databases=("postgresql",)),
        Target("in bulk", at_least=0.8, of="in bulk, silent", databases=("postgresql",), note="with wake-ups on"),
        Target("in bulk", at_least=0.5, of="raw in bulk", databases=("mariadb", "sqlite")),
        Target("in bulk", at_least=1.3, of="pgqueuer*bulk*", databases=("postgresql",)),
        Target("32 clients", of="32 clients, silent", databases=("postgresql",)),
        Target("32 clients, raw, notify", of="32 clients, raw", databases=("postgresql",)),
    ),
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
