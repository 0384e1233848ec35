"""Links to the database that are cut at the worst moment, hang, are slow, or lose what they should tell."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import anyio
import pytest
from sqlalchemy import text

from pyasync import Client, Finished, NewTask, Node, Registry, State
from tests.conftest import cannot_be_had
from tests.faults.effort import Effort
from tests.faults.messages import Message
from tests.faults.proxy import Link, Proxy, Trap, When
from tests.runtime.conftest import Nodes
from tests.runtime.other import Other
from tests.servers import PostgreSQL, Unavailable
from tests.waiting import until

pytestmark = [pytest.mark.databases("postgresql", "mariadb"), pytest.mark.timeout(120)]

PATIENCE = 30.0
STEPS = 3
LATENESS = 0.2
LEASE = 2.0
BEATS = "update pyasync_node set counter"
POLL = 1.0


class Work:
    """Tasks that report, and what they have seen: which step they were in, in which epoch."""

    def __init__(self) -> None:
        self.steps: dict[UUID, list[tuple[int, int]]] = {}
        self.begun: dict[UUID, float] = {}
        self.let_off = threading.Event()
        self.registry = Registry()
        for body in (self.yields, self.commits, self.counts, self.begins):
            self.registry.register_task(body.__name__, body, retry=[])

    async def yields(self, run: Any) -> AsyncIterator[Any]:
        """Make some steps, each of which is yielded."""
        for step in range((run.context or 0) + 1, STEPS + 1):
            yield step
            self._note(run, step)
        yield Finished(STEPS)

    async def commits(self, run: Any) -> AsyncIterator[Any]:
        """Make some steps, each of which is stored with its effect, which cannot be there twice."""
        for step in range((run.context or 0) + 1, STEPS + 1):
            await run.commit(step, lambda connection, step=step: enter(connection, f"{run.id.hex}-{step}"))
            self._note(run, step)
        yield Finished(STEPS)

    async def counts(self, run: Any) -> AsyncIterator[Any]:
        """Make steps until let off."""
        for step in itertools.count((run.context or 0) + 1):
            yield step
            self._note(run, step)
            if self.let_off.is_set():
                break
            await anyio.sleep(0.02)
        yield Finished(step)

    def begins(self, run: Any) -> Iterator[Any]:
        """Note when it began."""
        self.begun[run.id] = time.monotonic()
        yield Finished()

    def made(self) -> int:
        """How many steps were acknowledged."""
        return sum(len(each) for each in list(self.steps.values()))

    def finish(self, client: Client, ids: list[UUID]) -> None:
        """Let tasks end, and check that none was failed, nor lost, nor made a step twice."""
        self.let_off.set()
        for task_id in ids:
            task = client.wait_task(task_id, PATIENCE)
            assert (task.state, task.attempt, task.errors) == (State.FINISHED, 1, [])
            steps = [step for _, step in self.steps[task_id]]
            assert steps == list(range(1, len(steps) + 1))
            assert (task.result, task.seq) == (len(steps), len(steps) + 1)

    def _note(self, run: Any, step: int) -> None:
        self.steps.setdefault(run.id, []).append((run.epoch, step))


def enter(connection: Any, content: str) -> None:
    connection.execute(text("insert into effect values (:content)"), {"content": content})


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    with Proxy(url) as proxy:
        yield proxy


@pytest.fixture
def other(url: str) -> Other:
    """Another way to the same database, with an empty table for effects."""
    other = Other(url)
    Client(url, migrate="auto", strict=False).close()
    other.create_table()
    return other


@pytest.fixture
def client(url: str, other: Other) -> Iterator[Client]:
    """A client whose link is sound."""
    with Client(url) as client:
        yield client


# --- the answer to a COMMIT is lost


def is_report(link: Link, message: Message) -> bool:
    return "coalesce(v.context" in message.text and "done_at" not in message.text


def is_ending(link: Link, message: Message) -> bool:
    return "coalesce(v.context" in message.text and "done_at" in message.text


def is_claim(link: Link, message: Message) -> bool:
    return "update pyasync_task" in message.text and "epoch=" in message.text


def is_creation(link: Link, message: Message) -> bool:
    return "insert into pyasync_task" in message.text


def commit_of(what: Callable[[Link, Message], bool]) -> Callable[[Link, Message], bool]:
    return lambda link, message: message.text.startswith("commit: ") and what(link, message)


lost = pytest.mark.parametrize("when", [When.BEFORE, When.AFTER, When.LATE])


def lose(proxy: Proxy, what: Callable[[Link, Message], bool], when: When, occurrence: int = 2) -> Trap:
    return proxy.trap(commit_of(what), occurrence=occurrence, when=when, delay=LATENESS)


@lost
def test_report_whose_commit_is_lost_counts_once(
    proxy: Proxy, node: Nodes, work: Work, client: Client, when: When
) -> None:
    started = node(work.registry, url=proxy.url)
    trap = lose(proxy, is_report, when)

    task_id = client.create_task("yields")

    work.let_off.set()
    work.finish(client, [task_id])
    assert (trap.fired, work.steps[task_id]) == (1, [(1, 1), (1, 2), (1, 3)])
    assert started.health().ok


@lost
def test_effects_whose_commit_is_lost_are_there_once(
    proxy: Proxy, node: Nodes, work: Work, client: Client, other: Other, when: When
) -> None:
    node(work.registry, url=proxy.url)
    trap = lose(proxy, is_report, when)

    task_id = client.create_task("commits")

    work.finish(client, [task_id])
    assert (trap.fired, work.steps[task_id]) == (1, [(1, 1), (1, 2), (1, 3)])
    assert other.contents() == [f"{task_id.hex}-{step}" for step in (1, 2, 3)]


@lost
def test_end_whose_commit_is_lost_counts_once(
    proxy: Proxy, node: Nodes, work: Work, client: Client, when: When
) -> None:
    node(work.registry, url=proxy.url)
    trap = lose(proxy, is_ending, when, occurrence=1)

    task_id = client.create_task("yields")

    until(lambda: trap.fired)
    work.finish(client, [task_id])
    assert work.steps[task_id] == [(1, 1), (1, 2), (1, 3)]


@lost
def test_tasks_whose_creation_is_lost_are_created_once(
    proxy: Proxy, node: Nodes, work: Work, client: Client, when: When
) -> None:
    trap = lose(proxy, is_creation, when, occurrence=1)
    with Client(proxy.url, strict=False) as cut_off:
        ids = cut_off.create_tasks([NewTask(type="yields")] * 5)

    node(work.registry)

    work.finish(client, ids)
    assert trap.fired == 1
    assert client.count_tasks() == {State.FINISHED: 5}


@lost
def test_tasks_whose_claim_is_lost_are_found_again(
    proxy: Proxy, node: Nodes, work: Work, client: Client, other: Other, when: When
) -> None:
    node(work.registry, url=proxy.url, lease=LEASE)
    trap = lose(proxy, is_claim, when, occurrence=1)

    ids = client.create_tasks([NewTask(type="yields")] * 5)

    until(lambda: trap.fired)
    work.finish(client, ids)
    epoch = 1 if when is When.BEFORE else 2
    assert [(row.epoch, row.losses) for row in map(other.row, ids)] == [(epoch, 0)] * 5
    assert [{step[0] for step in work.steps[each]} for each in ids] == [{epoch}] * 5, "each was run once"


# --- the server does not answer


def test_node_whose_beats_get_stuck_claims_nothing_and_fails_nothing(
    proxy: Proxy, node: Nodes, work: Work, client: Client, other: Other
) -> None:
    started = node(work.registry, url=proxy.url, lease=LEASE)
    running = client.create_task("counts")
    until(lambda: work.made() > 3, PATIENCE, "the task to run")

    trap = proxy.trap(lambda link, message: BEATS in message.text, when=When.STUCK, times=1_000)
    stuck = time.monotonic()
    until(lambda: not started.health().ok, PATIENCE, "the node to notice")
    noticed = time.monotonic() - stuck
    waiting = client.create_task("yields")
    made = work.made()
    until(lambda: time.monotonic() > stuck + 2 * LEASE, PATIENCE, "two leases to pass")
    reason, statuses, went_on = started.health().reason, other.statuses(), work.made() > made
    trap.times = 0
    trap.deliver(wait=False)
    until(lambda: started.health().ok, PATIENCE, "the node to recover")

    assert (trap.fired > 0, noticed < LEASE + 0.5) == (True, True)
    assert reason == "it could not renew its lease: the database does not answer"
    assert statuses == ["running, run", "pending, run"], "no claim is made, and none is void"
    assert went_on, "reports are stored: the end of a lease only permits a takeover"
    work.finish(client, [running, waiting])
    assert {row.epoch for row in map(other.row, (running, waiting))} == {1}


def test_node_goes_on_with_the_threads_it_had_after_its_server_has_hung(
    proxy: Proxy, node: Nodes, work: Work, client: Client, other: Other
) -> None:
    started = node(work.registry, url=proxy.url, lease=LEASE, database_timeout=1.0)
    ids = [client.create_task("counts") for _ in range(5)]
    until(lambda: len(work.steps) == 5, PATIENCE, "all to run")
    threads = threads_of_node()

    proxy.hang()
    hung = time.monotonic()
    until(lambda: not started.health().ok, PATIENCE, "the node to notice")
    noticed = time.monotonic() - hung
    until(lambda: time.monotonic() > hung + 2 * LEASE, PATIENCE, "two leases to pass")
    made = work.made()
    proxy.mend()
    until(lambda: work.made() > made + 5 and started.health().ok, PATIENCE, "the node to recover")

    assert noticed < LEASE + 0.5
    assert threads_of_node() == threads
    work.finish(client, ids)
    assert {row.epoch for row in map(other.row, ids)} == {1}


def threads_of_node() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("pyasync-"))


@pytest.mark.parametrize("settings", [{"database_timeout": 1.0}, {}], ids=["impatient", "default"])
def test_node_stops_in_bounded_time_while_its_server_hangs(
    proxy: Proxy, work: Work, client: Client, other: Other, settings: dict[str, float]
) -> None:
    before = threads_of_node()
    started = Node(proxy.url, work.registry, **settings).start()
    task_id = client.create_task("counts")
    until(work.made, PATIENCE, "the task to run")
    proxy.hang()

    began = time.monotonic()
    started.stop(0.5)
    took = time.monotonic() - began

    print(f"stopped after {took:.1f} s")
    assert took < 20.0
    if not settings:
        proxy.mend()
    until(lambda: threads_of_node() == before, PATIENCE, "its threads to end, while the server hangs or afterwards")
    assert other.row(task_id).attempt == 1


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.databases("postgresql")
@pytest.mark.parametrize("what", ["sessions", "server"])
def test_tasks_go_on_after_the_processes_of_the_server_were_stopped(work: Work, what: str) -> None:
    try:
        server = PostgreSQL()
    except Unavailable as reason:
        cannot_be_had(str(reason))
    with server:
        url = server.url(server.create())
        with Node(url, work.registry, lease=LEASE, database_timeout=1.0, poll_interval=0.1, migrate="auto") as node:
            ids = [node.create_task("counts") for _ in range(5)]
            until(lambda: len(work.steps) == 5, PATIENCE, "all to run")
            with server.connect() as connection:
                query = text("select pid from pg_stat_activity where usename = :user")
                pids = list(connection.execute(query, {"user": server.user}).scalars())

            with stopped([*pids, *([server.pid] if what == "server" else [])]):
                since = time.monotonic()
                if what == "server":
                    until(lambda: not node.health().ok, PATIENCE, "the node to notice")
                    assert time.monotonic() - since < LEASE + 0.5
                until(lambda: time.monotonic() > since + 2 * LEASE, PATIENCE, "two leases to pass")
                made = work.made()
            until(lambda: work.made() > made + 5 and node.health().ok, PATIENCE, "the node to go on")

            work.finish(node, ids)
            assert {task.epoch for task in node.get_tasks(ids=ids)} == {1}


# --- hints are lost


@pytest.mark.databases("postgresql")
def test_task_whose_notification_is_lost_starts_with_the_next_poll(
    proxy: Proxy, node: Nodes, work: Work, client: Client, effort: Effort
) -> None:
    node(work.registry, url=proxy.url, poll_interval=POLL)
    proxy.deaf = True

    delays = [delay_of_start(client, work) for _ in range(effort.number(5, 20))]

    print(f"started after {sorted(delays)[0]:.2f} to {max(delays):.2f} s")
    assert proxy.swallowed >= len(delays)
    assert max(delays) < POLL + 0.5 + 0.5, "a poll, half a second, and room for a busy machine"


def test_task_starts_with_the_next_poll_when_the_keepers_connection_has_died(
    proxy: Proxy, node: Nodes, work: Work, client: Client, effort: Effort
) -> None:
    node(work.registry, url=proxy.url, poll_interval=POLL)
    delays = []

    for _ in range(effort.number(5, 20)):
        (link,) = until(lambda: proxy.links(BEATS))
        link.cut()
        delays.append(delay_of_start(client, work))

    print(f"started after {sorted(delays)[0]:.2f} to {max(delays):.2f} s")
    assert max(delays) < POLL + 0.5 + 0.5, "a poll, half a second, and room for a busy machine"


def delay_of_start(client: Client, work: Work) -> float:
    created = time.monotonic()
    task_id = client.create_task("begins")
    until(lambda: task_id in work.begun, PATIENCE, "the task to start")
    client.wait_task(task_id, PATIENCE)
    return work.begun[task_id] - created


# --- slow links


@pytest.mark.parametrize("how", [{"latency": 0.1, "jitter": 0.08}, {"rate": 20_000}], ids=["far", "narrow"])
def test_nodes_hold_their_leases_over_slow_links(
    proxy: Proxy, node: Nodes, work: Work, client: Client, other: Other, how: dict[str, float], effort: Effort
) -> None:
    started = [node(work.registry, url=proxy.url, lease=6.0) for _ in range(2)]
    was = {each.health().node_id for each in started}
    ids = [client.create_task("counts") for _ in range(10)]
    until(lambda: len(work.steps) == 10, PATIENCE, "all to run")
    proxy.slow(**how, seed=effort.seed)
    since = time.monotonic()

    trusted = []
    while time.monotonic() < since + effort.number(8, 30):
        made = work.made()
        until(lambda made=made: work.made() > made, PATIENCE, "a step")
        trusted.append(all(each.health().ok for each in started))

    proxy.mend()

    assert all(trusted)
    work.finish(client, ids)
    assert {each.health().node_id for each in started} == {each.id for each in client.get_nodes()} == was
    assert {(row.epoch, row.losses) for row in map(other.row, ids)} == {(1, 0)}


# --- one connection, again and again


def test_node_whose_keepers_connection_is_cut_again_and_again_is_not_taken_over(
    url: str, proxy: Proxy, node: Nodes, work: Work, client: Client, other: Other, effort: Effort
) -> None:
    victim = node(work.registry, url=proxy.url, lease=15.0)
    ids = [client.create_task("counts") for _ in range(5)]
    until(lambda: len(work.steps) == 5, PATIENCE, "all to run")
    chance, cuts = effort.random("cuts"), effort.number(20, 60)

    with Proxy(url) as watched:
        node(work.registry, url=watched.url, lease=15.0)
        until(lambda: watched.links("is_used_lock") or watched.links("pg_try_advisory_xact_lock_shared"))
        for _ in range(cuts):
            (link,) = until(lambda: proxy.links(BEATS), PATIENCE, "the keeper to beat again")
            link.cut()
            until_passed(chance.choice((0.0, 0.1, 1.0)) * chance.random())
        until_passed(3.0)  # for a suspicion to become a verdict
        looks = [label for label in watched.sent if "lock" in label]

    assert len(looks) > 5, "the other node has looked"
    assert victim.health().ok
    work.finish(client, ids)
    assert {(row.epoch, row.losses) for row in map(other.row, ids)} == {(1, 0)}
    assert victim.health().node_id in {each.id for each in client.get_nodes()}


def until_passed(seconds: float) -> None:
    """Let time pass in which the others do what they do."""
    at = time.monotonic() + seconds
    until(lambda: time.monotonic() >= at, seconds + 5.0)
