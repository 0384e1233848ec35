"""The flaws found in the ancestor, go-async, each with a test that pyasync does not have it.

The numbers are those of the list that was made of them. Most concern the database, and run on each kind.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import anyio
import pytest
from sqlalchemy import exc, make_url, select, text, update

from pyasync import (
    AsyncClient,
    Client,
    Finished,
    InvalidTransition,
    Node,
    NodeStopped,
    Registry,
    Settings,
    State,
    TaskNotFound,
    current_run,
)
from pyasync.domain.queues import Fifo, Queue
from pyasync.domain.states import Event
from pyasync.ids import new_fence
from pyasync.runtime.node import LAST_WRITES
from pyasync.store import claims, nodes, writes
from pyasync.store.claims import Offer, Request
from pyasync.store.database import Database, Tx
from pyasync.store.nodes import Beat
from pyasync.store.tables import tables
from pyasync.store.writes import Fate, Write
from tests.faults.proxy import Proxy
from tests.runtime.blips import Blips
from tests.runtime.conftest import SHORT, Nodes
from tests.runtime.gate import PATIENCE, Gate
from tests.runtime.other import NODE as NODE_TABLE
from tests.runtime.other import Other, Statements
from tests.store.rows import FAR_AHEAD, LONG_AGO, NODE, STATUSES, Rows, recorded
from tests.waiting import auntil, until

# What user code sees of it does not depend on the database.
ONE = pytest.mark.databases("sqlite")
HEIR = UUID("00000000-0000-7000-8000-000000000002")
BEAT = Beat(counter=9, session_key=None, slots=10, running=0, draining=False, types={})


@pytest.fixture
def rows(url: str) -> Iterator[Rows]:
    """The tables, without a node."""
    database = Database(url, Settings(database_timeout=10.0))
    tables(None).metadata.create_all(database.engine)
    yield Rows(database)
    database.close()


@pytest.fixture
def client(rows: Rows, url: str) -> Iterator[Client]:
    with Client(url, migrate="off", strict=False, database_timeout=10.0) as client:
        yield client


def registered(body: Any, **options: Any) -> Registry:
    registry = Registry()
    registry.register_task("task", body, **options)
    return registry


def written(rows: Rows, *some: Write) -> list[Fate]:
    return [rows.database.once(writes.write, [each])[0].fate for each in some]


def take_over(rows: Rows) -> list[UUID]:
    return rows.database.once(claims.take_over, NODE, "north", new_fence())


def claim(tx: Tx, limit: int = 10) -> list[UUID]:
    offer = Offer("report", 0, "resume", 3, None, True)
    return [row.id for row in claims.claim(tx, HEIR, new_fence(), Request(Queue.RUN, limit, [offer], Fifo()))]


class Outage:
    """A database that can be taken away: a server behind a proxy, a file by the one lock for writing it."""

    def __init__(self, url: str, proxy: Proxy | None) -> None:
        self._proxy = proxy
        self._other = Other(url)
        self.url = url if proxy is None else proxy.url

    @contextmanager
    def __call__(self, how: str) -> Iterator[None]:
        """Take it away meanwhile; `how` the proxy does it."""
        if self._proxy is None:
            with self._other.begin():
                yield
        else:
            getattr(self._proxy, how)()
            yield
            self._proxy.mend()


@pytest.fixture
def outage(url: str) -> Iterator[Outage]:
    if url.startswith("sqlite"):
        yield Outage(url, None)
        return
    with Proxy(url) as proxy:
        yield Outage(url, proxy)


# --- safety


def test_g01_a_paused_node_cannot_overwrite_keep_alive_or_delete_what_another_runs(rows: Rows) -> None:
    rows.join()
    stale = rows.claimed(context='{"at":1}', seq=1)
    rows.lose()
    take_over(rows)
    assert rows.database.once(claim) == [stale.task_id]
    before = rows.all()

    refused = written(
        rows,
        Write(stale, context='"late"'),
        Write(stale, Event.TASK_FINISHED, result="1"),
        Write(stale, Event.TASK_FINISHED, removes=True),
        Write(stale, Event.SYS_PAUSE),
    )
    alive = rows.database.once(nodes.beat, NODE, BEAT)

    assert (refused, alive) == ([Fate.LOST] * 4, False)
    assert rows.all() == before


def test_g02_a_run_whose_task_was_given_to_another_node_is_told_and_not_resumed(node: Nodes, other: Other) -> None:
    gate, told, resumed = Gate(), [], []

    async def body(run: Any) -> AsyncIterator[Any]:
        try:
            await gate.apass()
            yield "late"
            resumed.append(run.id)
        finally:
            told.append(run.stop.reason)

    started = node(registered(body), lease=60.0)  # no beat: it is the write that finds out
    task_id = started.create_task("task")
    gate.wait_for()

    other.take_over(task_id)
    before = other.row(task_id)
    gate.open()
    until(lambda: told, PATIENCE, "the run to end")

    assert (told, resumed) == (["lost"], [])
    assert other.row(task_id) == before


def test_g03_a_task_that_finishes_while_its_node_is_swept_stays_finished(rows: Rows) -> None:
    claimed = rows.claimed()

    with ThreadPoolExecutor(1) as pool:
        with rows.database.transaction() as tx:
            writes.write(tx, [Write(claimed, Event.TASK_FINISHED, result="1")])
            sweep = pool.submit(take_over, rows)
            if rows.database.dialect.skips_locked:
                assert sweep.result(PATIENCE) == []
        assert sweep.result(PATIENCE) == []

    assert rows.status(claimed.task_id) == "finished, run"
    assert (rows.get(claimed.task_id).result, rows.get(claimed.task_id).losses) == ("1", 0)


def test_g04_no_wall_clock_makes_a_dead_node_alive_or_a_living_one_dead(node: Nodes, other: Other) -> None:
    observer = node(registered(lambda: "done"), name="observer", lease=1.0, fast_detection=False)
    living = node(Registry(), name="slow clock", lease=60.0)
    was = living.health().node_id
    dead = other.add_node()
    task_id = observer.create_task("task", auto_run=False)
    other.change(task_id, stage="running", mark="run", node_id=dead, fence=new_fence())

    with other.begin() as connection:
        connection.execute(update(NODE_TABLE).where(NODE_TABLE.c.id == was).values(beat_at=LONG_AGO))
        fast_clock = {"name": "fast clock", "beat_at": FAR_AHEAD, "lease": 1.0}
        connection.execute(update(NODE_TABLE).where(NODE_TABLE.c.id == dead).values(fast_clock))

    assert observer.result(task_id, PATIENCE) == "done"
    until(lambda: len(observer.get_nodes()) == 2, PATIENCE, "the dead node's row to go")
    assert {info.name: info.lost for info in observer.get_nodes()} == {"observer": False, "slow clock": False}
    assert living.health().node_id == was


def test_g05_an_outage_longer_than_the_lease_fails_no_task(outage: Outage, node: Nodes, other: Other) -> None:
    let_off, made = threading.Event(), []

    async def count(run: Any) -> AsyncIterator[Any]:
        while not let_off.is_set():
            made.append(run.id)
            yield len(made)
            await anyio.sleep(0.02)
        yield Finished("the result")

    short = {"url": outage.url, "lease": 1.0, "database_timeout": 1.0, "concurrency": 2}
    started = [node(registered(count, retry=[]), **short) for _ in range(2)]
    ids = [started[0].create_task("task") for _ in range(4)]
    until(lambda: len(set(made)) == 4, PATIENCE, "all to run")

    with outage("cut"):
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 1.5, what="more than a lease to pass")
    before = len(made)
    until(lambda: set(made[before:]) == set(ids), PATIENCE, "all to go on")
    let_off.set()

    assert [started[0].result(task_id, PATIENCE) for task_id in ids] == ["the result"] * 4
    assert {(other.row(task_id).attempt, other.row(task_id).errors) for task_id in ids} == {(1, None)}


def test_g06_context_result_and_state_are_stored_together_or_not_at_all(rows: Rows, client: Client) -> None:
    claimed = rows.claimed(context='"old"', result='"old"')
    final = Write(claimed, Event.TASK_FINISHED, context='"new"', result='"new"')

    def seen() -> tuple[Any, ...]:
        task = client.get_task(claimed.task_id)
        return task.state, task.context, task.result

    with pytest.raises(LookupError), rows.database.transaction() as tx:
        assert [each.fate for each in writes.write(tx, [final])] == [Fate.STORED]
        during = seen()
        raise LookupError
    after_rollback = seen()
    written(rows, final)

    assert during == after_rollback == (State.RUNNING, "old", "old")
    assert seen() == (State.FINISHED, "new", "new")


def test_g07_a_task_goes_on_only_when_its_checkpoint_is_stored(node: Nodes, other: Other) -> None:
    seen: list[Any] = []

    def body(run: Any) -> Iterator[Any]:
        for number in range(1, 4):
            blips.left = 1
            yield number
            seen.append(other.row(run.id).context)

    started = node(registered(body))
    blips = Blips(started, stored=False)

    task = started.wait_task(started.create_task("task"), PATIENCE)

    assert (seen, blips.fired) == (["1", "2", "3"], 3)
    assert (task.state, task.attempt) == (State.FINISHED, 1)


def test_g08_a_result_that_cannot_be_stored_at_once_is_sent_until_it_is(node: Nodes) -> None:
    calls: list[int] = []

    def body() -> str:
        calls.append(1)
        blips.left = 3
        return "the result"

    started = node(registered(body, retry=[]))
    blips = Blips(started, stored=False)

    task = started.wait_task(started.create_task("task"), PATIENCE)

    assert (task.result, task.epoch, task.attempt, task.errors) == ("the result", 1, 1, [])
    assert (len(calls), blips.fired) == (1, 3)


def test_g09_nothing_is_stored_after_the_final_report(node: Nodes) -> None:
    def body(run: Any) -> Iterator[Any]:
        yield {"at": 1}
        yield Finished("the result")
        yield {"at": 2}
        yield None

    started = node(registered(body))

    task_id = started.create_task("task")

    task = started.wait_task(task_id, PATIENCE)
    until(lambda: len(started._runs) == 0, PATIENCE, "the run to end")
    assert (task.state, task.context, task.result) == (State.FINISHED, {"at": 1}, "the result")
    assert started.get_task(task_id) == task


def test_g10_a_task_of_a_node_that_died_goes_on_and_one_that_must_not_says_why(rows: Rows, client: Client) -> None:
    resumes, fails = rows.claimed(context='{"at":3}').task_id, rows.claimed(on_node_loss="fail").task_id

    take_over(rows)

    row, failed = rows.get(resumes), client.get_task(fails)
    assert rows.database.once(claim) == [resumes]
    assert (row.context, row.losses, row.note) == ('{"at":3}', 1, "node north was lost")
    assert failed.error == "node north was lost while it ran this task, whose type has on_node_loss='fail'"
    assert failed.done_at is not None
    client.run_task(fails)
    assert (client.get_task(fails).done_at, rows.get(fails).losses) == (None, 0)


# --- stuck or invisible


def test_g11_a_task_of_any_status_is_seen_and_can_be_deleted(rows: Rows, client: Client) -> None:
    ids = {rows.put(status): status for status in STATUSES}
    lost = rows.claimed("running, pause", on_node_loss="fail", node_id=HEIR).task_id
    rows.database.once(claims.take_over, HEIR, "south", new_fence())

    shown = {task.id for task in client.get_tasks(include_deleting=True)}
    assert shown == ids.keys() | {lost}
    assert {client.get_task(task_id).state for task_id, status in ids.items() if "failed" in status} == {State.FAILED}
    assert rows.status(lost) == "failed, run"
    for task_id in shown:
        client.delete_task(task_id)
    assert {rows.get(task_id).mark for task_id in shown if rows.get(task_id)} == {"delete"}


def test_g12_a_deletion_that_waits_can_be_seen_explained_and_ended(rows: Rows, client: Client) -> None:
    task_id = rows.put("finished, run", type="a type that no node has")
    client.delete_task(task_id)

    with pytest.raises(TaskNotFound):
        client.get_task(task_id)
    assert client.get_task(task_id, include_deleting=True).state is State.DELETING
    assert [task.id for task in client.get_tasks(states=[State.DELETING], include_deleting=True)] == [task_id]
    assert client.why(task_id).startswith("It is being deleted")
    client.delete_task(task_id, force=True)
    assert rows.get(task_id) is None


@pytest.mark.parametrize("wish", ["run", "cancel", "delete"])
def test_g13_the_latest_wish_wins_and_only_a_deletion_is_for_good(rows: Rows, client: Client, wish: str) -> None:
    claimed = rows.claimed("running, pause")

    getattr(client, f"{wish}_task")(claimed.task_id)

    assert rows.status(claimed.task_id) == f"running, {wish}"
    client.delete_task(claimed.task_id)
    for verb in (client.run_task, client.pause_task, client.cancel_task):
        with pytest.raises(InvalidTransition):
            verb(claimed.task_id)
    assert rows.status(claimed.task_id) == "running, delete"


def test_g14_a_claim_that_no_run_came_of_is_let_go_of(node: Nodes, other: Other) -> None:
    started = node(registered(lambda: "done"), lease=1.0)
    task_id = started.create_task("task", auto_run=False)
    mine = started.health().node_id

    other.change(task_id, stage="running", mark="run", node_id=mine, fence=new_fence(), epoch=1)

    assert started.result(task_id, PATIENCE) == "done"
    assert (other.row(task_id).epoch, other.row(task_id).losses) == (2, 0)


def test_g15_no_slot_is_lost_with_a_task_that_is_lost(node: Nodes, other: Other) -> None:
    gates = [Gate() for _ in range(5)]

    async def body(run: Any) -> AsyncIterator[Any]:
        if run.arguments is not None:
            await gates[run.arguments].apass()
        yield "late"

    started = node(registered(body), concurrency=1, lease=60.0)
    for number, gate in enumerate(gates):
        task_id = started.create_task("task", number)
        gate.wait_for()
        other.take_over(task_id)
        gate.open()

    last = started.create_task("task")

    assert started.wait_task(last, PATIENCE).state is State.FINISHED


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_g16_a_run_that_never_reports_and_never_ends_holds_up_nobody(node: Nodes, other: Other, kind: str) -> None:
    gate = Gate()

    async def asynchronous(run: Any) -> AsyncIterator[Any]:
        gate.reached += 1
        await anyio.sleep_forever()
        yield

    def sync(run: Any) -> Iterator[Any]:
        gate.pass_()
        yield

    registry = registered(sync if kind == "sync" else asynchronous)
    registry.register_task("next", lambda: "had its turn")
    started = node(registry, concurrency=1 if kind == "async" else 2, stop_grace=0.1)
    task_id = started.create_task("task")
    gate.wait_for()

    started.pause_task(task_id)
    until(lambda: other.status(task_id) == "paused, pause", PATIENCE, "the task to be let go of")
    result = started.result(started.create_task("next"), PATIENCE)
    began = time.monotonic()
    started.stop()

    assert result == "had its turn"
    assert time.monotonic() - began < 2 * LAST_WRITES
    gate.open()


@ONE
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_g17_whatever_a_task_or_a_thread_of_it_raises_ends_that_attempt_at_once_and_not_the_node(node: Nodes) -> None:
    class Panic(BaseException):
        pass

    def panic() -> None:
        raise Panic("of the user's own")

    async def asynchronous() -> None:
        panic()

    def in_thread() -> str:
        thread = threading.Thread(target=panic)
        thread.start()
        thread.join()
        return "fine"

    registry = registered(panic, retry=[])
    registry.register_task("async", asynchronous, retry=[])
    registry.register_task("thread", in_thread)
    started = node(registry)

    failed = [started.wait_task(started.create_task(type), PATIENCE) for type in ("task", "async")]

    assert [(task.state, task.error) for task in failed] == [(State.FAILED, "Panic: of the user's own")] * 2
    assert started.result(started.create_task("thread"), PATIENCE) == "fine"


def test_g18_no_call_waits_for_ever_for_a_database_that_hangs(rows: Rows, outage: Outage) -> None:
    database = Database(outage.url, Settings(database_timeout=1.0))

    def ask(tx: Tx) -> int:
        return int(tx.execute(text("select 1")).scalar_one())

    assert database.once(ask) == 1
    with outage("hang"):
        began = time.monotonic()
        with pytest.raises(exc.DBAPIError) as caught:
            database.once(ask)
        took = time.monotonic() - began

    assert database.is_transient(caught.value)
    assert took < 8.0
    assert database.once(ask) == 1
    database.close()


# --- claiming and queues


def test_g19_nodes_that_claim_at_once_share_the_queue_without_an_error(rows: Rows) -> None:
    ids = rows.put_many(30)
    together = threading.Barrier(3)

    def drain() -> list[list[UUID]]:
        together.wait(PATIENCE)
        taken = []
        while some := rows.database.once(claim):
            taken.append(some)
        return taken

    with ThreadPoolExecutor(3) as pool:
        rounds = [each for future in [pool.submit(drain) for _ in range(3)] for each in future.result()]

    left = rows.database.once(claim, 30)  # who finds all that is left locked by others does not wait for it
    assert sorted(sum(rounds, left)) == ids
    assert max(map(len, rounds)) == 10


def test_g20_task_and_queue_are_one_row_of_one_transaction(rows: Rows, client: Client) -> None:
    with pytest.raises(LookupError), rows.database.transaction() as tx:
        client.create_task("report", connection=tx.connection)
        raise LookupError
    task_id = client.create_task("report")

    with pytest.raises(LookupError), rows.database.transaction() as tx:
        assert claim(tx) == [task_id]
        raise LookupError

    assert client.create_task("report", id=task_id) == task_id
    assert [rows.database.once(claim), rows.database.once(claim)] == [[task_id], []]


@pytest.mark.databases("postgresql", "mariadb")  # on SQLite nobody else writes meanwhile
def test_g20_a_task_is_not_claimed_before_its_creation_is_committed_and_not_lost_then(
    rows: Rows, client: Client
) -> None:
    with rows.database.transaction() as tx:
        task_id = client.create_task("report", connection=tx.connection)
        early = rows.database.once(claim)

    assert (early, rows.database.once(claim)) == ([], [task_id])


@pytest.mark.databases("postgresql", "mariadb")  # on SQLite the verbs of work take its own connection
def test_g20_verbs_inside_of_transactions_do_not_deadlock_the_smallest_pool(node: Nodes) -> None:
    def parent() -> list[str]:
        run = current_run()
        return [str(run.commit(number, lambda connection: started.create_task("child"))) for number in range(3)]

    registry = registered(parent)
    registry.register_task("child", lambda: "done")
    started = node(registry, connections=4)

    ids = [started.create_task("task") for _ in range(5)]

    children = [UUID(each) for task_id in ids for each in started.result(task_id, PATIENCE)]
    assert [started.result(each, PATIENCE) for each in children] == ["done"] * 15


def test_g21_the_order_is_that_of_readiness_and_no_touch_moves_a_task(rows: Rows, client: Client) -> None:
    first, second, third = rows.put_many(3)

    client.change_task_group(first, "moved")
    client.run_task(first)
    client.pause_task(second)
    client.run_task(second)

    assert [rows.database.once(claim, 1) for _ in range(3)] == [[first], [third], [second]]


def test_g22_one_look_for_all_runs_finds_those_to_stop_and_logs_nothing(
    node: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()

    async def body(run: Any) -> AsyncIterator[Any]:
        await gate.apass()
        yield

    started = node(registered(body), concurrency=20, stop_grace=PATIENCE)
    ids = [started.create_task("task") for _ in range(20)]
    gate.wait_for(20)
    statements = Statements(started._database.engine)

    def looks() -> int:
        return sum("mark IN" in each and "node_id =" in each for each in list(statements.sent))

    started.pause_tasks(ids=ids)
    until(lambda: looks() >= 5, PATIENCE, "five looks at the marks")
    seen = looks()
    gate.open()
    until(lambda: started.count_tasks() == {State.PAUSED: 20}, PATIENCE, "all to be paused")

    assert seen < 20, "a look for each run"
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_g23_no_sweep_reads_what_tasks_carry(rows: Rows) -> None:
    rows.join(HEIR)
    rows.put_many(5, "running, run", context='{"long":true}')

    with recorded(rows.database.engine) as quiet:
        rows.database.single(nodes.peers, NODE)
    with recorded(rows.database.engine) as sweep:
        assert len(take_over(rows)) == 5

    assert not [sql for sql, _ in quiet if "pyasync_task" in sql]
    assert not [sql for sql, _ in sweep if "context" in sql or "arguments" in sql]


# --- stopping


def test_g24_a_stop_ends_in_time_and_frees_even_the_task_that_ignores_it(node: Nodes, other: Other) -> None:
    gate = Gate()

    def deaf(run: Any) -> Iterator[Any]:
        if run.epoch == 1:
            gate.pass_()
        yield Finished(run.epoch)

    started = node(registered(deaf))
    task_id = started.create_task("task")
    gate.wait_for()

    began = time.monotonic()
    started.stop(0.1)
    took = time.monotonic() - began
    row = other.row(task_id)
    heir = node(registered(deaf))

    assert took < 2 * LAST_WRITES
    assert (row.stage, row.mark, row.losses, row.errors) == ("paused", "run", 0, None)
    assert heir.result(task_id, PATIENCE) == 2
    gate.open()


def test_g25_a_host_that_is_cancelled_pauses_its_tasks_and_fails_none(url: str, other: Other) -> None:
    ids: list[UUID] = []

    async def body(run: Any) -> AsyncIterator[Any]:
        for number in range(10_000):
            yield number
            await anyio.sleep(0.01)

    async def host() -> None:
        with anyio.CancelScope() as scope:
            async with Node(url, registered(body, retry=[]), **SHORT) as started:
                ids.append(await AsyncClient(started).create_task("task"))
                await auntil(lambda: other.row(ids[0]).seq > 1, PATIENCE, "the task to report")
                scope.cancel()
                await anyio.sleep_forever()

    anyio.run(host)

    row = other.row(ids[0])
    assert (row.stage, row.mark, row.attempt, row.errors) == ("paused", "run", 1, None)
    assert int(row.context) > 0


def test_g26_tasks_of_a_node_that_stops_can_use_it_to_the_end(node: Nodes, other: Other) -> None:
    gate = Gate()

    def body(run: Any) -> Iterator[Any]:
        gate.reached += 1
        run.stop.wait(PATIENCE)
        yield str(started.create_task("task", auto_run=False))

    started = node(registered(body), stop_grace=PATIENCE)
    task_id = started.create_task("task")
    gate.wait_for()

    started.stop()

    row = other.row(task_id)
    assert (row.stage, row.mark, row.errors) == ("paused", "run", None)
    assert other.status(UUID(row.context.strip('"'))) == "init, none"
    with pytest.raises(NodeStopped):
        started.get_task(task_id)


@ONE
def test_g27_everything_in_a_task_hears_its_stop(node: Nodes) -> None:
    gate, heard = Gate(), []

    def body(run: Any) -> Iterator[Any]:
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(run.stop.wait, PATIENCE) for _ in range(3)]
            gate.reached += 1
            heard.extend(each.result() for each in waiting)
        heard.append(run.stop.is_set())
        yield

    started = node(registered(body), stop_grace=PATIENCE)
    task_id = started.create_task("task")
    gate.wait_for()

    started.pause_task(task_id)

    until(lambda: started.get_task(task_id).state is State.PAUSED, PATIENCE, "the task to be paused")
    assert heard == [True] * 4


# --- the API


def test_g28_a_creation_that_is_repeated_is_one_task_and_a_child_belongs_to_its_parents_checkpoint(
    node: Nodes,
) -> None:
    def parent() -> str:
        run = current_run()

        def work(connection: Any) -> None:
            started.create_task("child", run.attempt, auto_run=False, connection=connection)
            if run.attempt == 1:
                raise LookupError("it crashes between child and checkpoint")

        run.commit({"has a child": True}, work)
        return "done"

    registry = registered(parent, retry=[0])
    registry.register_task("child", parent)
    started = node(registry)
    task_id = UUID(int=1)

    created = [started.create_task("task", id=task_id, key="k"), started.create_task("task", key="k")]

    assert created == [task_id, task_id]
    assert started.result(task_id, PATIENCE) == "done"
    assert [child.arguments for child in started.get_tasks(types=["child"])] == [2]


def test_g29_a_user_is_a_column_and_no_role_of_the_database(rows: Rows, client: Client, url: str) -> None:
    users = {"alice", "postgres", "root", make_url(url).username or "nobody", "o'neil \"; --"}
    content = {"long": "ä'\"\\`;" * 10_000}
    ids = {user: client.create_task("report", content, user=user) for user in users}

    for user, task_id in ids.items():
        assert [task.id for task in client.get_tasks(user=user)] == [task_id]
        assert client.get_task(task_id, user=user).arguments == content
    assert client.pause_tasks(user="alice") == 1


def test_g30_a_task_of_another_user_can_be_neither_seen_nor_changed(rows: Rows, client: Client) -> None:
    ids = [client.create_task("report", user="alice") for _ in range(2)]
    before = rows.all()
    verbs: list[Callable[..., Any]] = [
        client.get_task,
        client.why,
        client.run_task,
        client.pause_task,
        client.cancel_task,
        client.delete_task,
        lambda task_id, user: client.delete_task(task_id, force=True, user=user),
        lambda task_id, user: client.change_task_group(task_id, "mine", user=user),
    ]

    for verb in verbs:
        with pytest.raises(TaskNotFound):
            verb(ids[0], user="mallory")

    assert (client.get_tasks(user="mallory"), client.delete_tasks(user="mallory", ids=ids)) == ([], 0)
    assert rows.all() == before
    assert abs(ids[1].int - ids[0].int) > 2**32, "an id does not tell the next one"


def test_g30_nodes_that_start_at_once_make_the_tables_once_and_log_no_contexts(
    url: str, node: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="pyasync")

    def body(run: Any) -> Iterator[Any]:
        yield {"password": "xyzzy", "at": run.attempt}
        raise LookupError("this much may be said")

    with ThreadPoolExecutor(3) as pool:
        started = list(pool.map(lambda _: node(registered(body, retry=[0])), range(3)))
    task = started[0].wait_task(started[0].create_task("task", {"password": "xyzzy"}), PATIENCE)

    assert (task.state, len(task.errors)) == (State.FAILED, 2)
    assert "an attempt failed" in caplog.text
    assert "xyzzy" not in caplog.text
    assert not any("xyzzy" in str(record.__dict__) for record in caplog.records)


def test_g31_a_type_may_be_registered_after_the_start_and_a_with_block_is_all_there_is_to_stop(
    url: str, other: Other
) -> None:
    registry = Registry()

    with Node(url, registry, **SHORT) as started:
        registry.register_task("late", lambda: "not too late")
        result = started.result(started.create_task("late"), PATIENCE)

    assert result == "not too late"
    with other.begin() as connection:
        assert connection.execute(select(NODE_TABLE.c.id)).all() == []
