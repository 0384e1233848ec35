"""A machine that does anything to the store, in any order, and compares the rows with a model after each step."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import Column, Integer, MetaData, String, Table, delete, insert, select
from sqlalchemy.exc import IntegrityError

from pyasync import Client, InvalidTransition, KeyTaken, NewTask, State, TaskNotFound
from pyasync.domain.failures import CANCELLED
from pyasync.domain.queues import Fifo, Queue
from pyasync.domain.states import OWNED, Event, Mark, Stage, Status
from pyasync.domain.task import Claim
from pyasync.domain.transitions import TABLE
from pyasync.errors import TransactionDoomed
from pyasync.ids import new_fence, new_id
from pyasync.store import claims, nodes, writes
from pyasync.store.claims import Offer, Request
from pyasync.store.database import Database
from pyasync.store.nodes import Beat, Peer
from pyasync.store.writes import Fate, Write
from tests.faults.expected import TOMORROW, Expected, Tasks
from tests.store.rows import faults
from tests.waiting import until

OFFERS = (
    Offer("plain", 1, "resume", 3, None, cleans=False),
    Offer("cleans", 1, "resume", 2, None, cleans=True),
    Offer("fails", 1, "fail", None, None, cleans=False),
)
USERS = ("ann", "Ann", "bob")
"""Names are compared byte for byte."""
GROUPS = ("", "nightly")
BEAT = Beat(counter=1, session_key=None, slots=10, running=0, draining=False, types={})
VERBS = {
    Event.USER_RUN: (Client.run_task, Client.run_tasks),
    Event.USER_PAUSE: (Client.pause_task, Client.pause_tasks),
    Event.USER_CANCEL: (Client.cancel_task, Client.cancel_tasks),
    Event.USER_DELETE: (Client.delete_task, Client.delete_tasks),
}
REFUSALS = (TaskNotFound, InvalidTransition, KeyTaken)

EFFECT = Table(
    "machine_effect",
    MetaData(),
    Column("task", String(32), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
)
"""What tasks write themselves, together with a report."""

picks = st.integers(0, 500)
"""Which of those that there are, the newest first."""
users = st.sampled_from([None, None, None, *USERS])
"""On whose behalf: mostly nobody's."""
events = st.sampled_from([None, None, Event.SYS_PAUSE, Event.TASK_FINISHED, Event.TASK_FAILED, Event.SYS_RETRY])
"""How a run goes on, or ends; most go on."""


@dataclass(frozen=True)
class Bed:
    """What all examples share: the database, a client, and how often what was seen."""

    database: Database
    client: Client
    seen: Counter[str] = field(default_factory=Counter)


@dataclass
class NodeSeen:
    """A node as the machine knows it."""

    id: UUID
    name: str
    counter: int = 1
    lost: bool = False

    @property
    def peer(self) -> Peer:
        return Peer(self.id, self.name, self.counter, None, 15.0)


Method = TypeVar("Method", bound=Callable[..., None])


def action(weight: int = 1, needs: str = "bed", **given: st.SearchStrategy[Any]) -> Callable[[Method], Method]:
    """Make a method one of the steps, so often in proportion to others, while there is what it needs.

    Rules would do but for Hypothesis, which leaves half of them out of each example: nothing much happens if nobody
    creates, or nobody claims.
    """

    def mark(method: Method) -> Method:
        ACTIONS[method.__name__] = Action(weight, needs, st.fixed_dictionaries(given))
        return method

    return mark


@dataclass(frozen=True)
class Action:
    """How often a step is made, the list without which it is not, and what it is given."""

    weight: int
    needs: str
    given: st.SearchStrategy[dict[str, Any]]


ACTIONS: dict[str, Action] = {}


class StoreMachine(RuleBasedStateMachine):
    """Users, nodes and sweepers on one store; `bed` is set by who makes the class."""

    bed: Bed

    def __init__(self) -> None:
        super().__init__()
        self.bed.seen["example"] += 1
        self.tasks = Tasks()
        self.ids: list[UUID] = []
        self.claims: list[Claim] = []
        self.nodes: list[NodeSeen] = []
        self.gone: set[UUID] = set()
        self.effects: set[tuple[str, int]] = set()
        self.rows: dict[UUID, Any] = {}
        self.found: set[tuple[str, int]] = set()
        with self.bed.database.transaction() as tx:
            for table in (tx.t.task, tx.t.node, EFFECT):
                tx.execute(delete(table))

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Do one of the things that can be done now."""
        # SQLite's clock shows milliseconds: what became ready in the same one would be claimed in another order.
        began = time.time_ns() // 1_000_000
        until(lambda: time.time_ns() // 1_000_000 > began)
        names = [name for name, each in ACTIONS.items() if getattr(self, each.needs) for _ in range(each.weight)]
        name = data.draw(st.sampled_from(names), "what")
        given = data.draw(ACTIONS[name].given, "given")
        self._saw(f"step: {name}")
        getattr(self, name)(**given)

    # --- users

    @initialize()
    def begin(self) -> None:
        """Begin with some nodes, and a task of each type."""
        self.join()
        self.join()
        self.create([NewTask(type=offer.type, user="ann", id=new_id()) for offer in OFFERS])

    @action(
        weight=2,
        types=st.lists(st.sampled_from(OFFERS), min_size=1, max_size=3),
        user=st.sampled_from(USERS),
        group=st.sampled_from(GROUPS),
        key=st.sampled_from([None, "k", "K"]),
        keep=st.sampled_from([None, None, 0.0]),
        delay=st.sampled_from([None] * 5 + [TOMORROW]),
        auto_run=st.sampled_from([True] * 5 + [False]),
        priority=st.integers(0, 1),
        again=st.none() | picks,
    )
    def create_some(self, types: list[Offer], again: int | None, **given: Any) -> None:
        """Create tasks at once; one of them perhaps under an id that exists, or has existed."""
        new = [NewTask(type=offer.type, id=new_id(), **given) for offer in types]
        if again is not None and self.ids:
            new[0] = replace(new[0], id=self._one_of(self.ids, again))
        self.create(new)

    def create(self, new: list[NewTask]) -> None:
        before = len(self.tasks.rows)

        ids = self.bed.client.create_tasks(new)

        assert ids == [self.tasks.create(each) for each in new]
        self._saw("existing id or key", len(self.tasks.rows) - before < len(new))
        self.ids += [task_id for task_id in ids if task_id not in self.ids]

    @action(
        weight=5,
        needs="ids",
        pick=picks,
        event=st.sampled_from(list(VERBS)),
        user=users,
        options=st.sampled_from([{}, {}, {"now": True}, {"restart": True}]),
    )
    def wish(self, pick: int, event: Event, user: str | None, options: dict[str, bool]) -> None:
        task_id = self._some_id(pick)
        options = options if event is Event.USER_RUN else {}
        self._saw("another user's task", user is not None and self._is_foreign(task_id, user))

        self._wish(task_id, event, user, **options)

    def _wish(self, task_id: UUID, event: Event, user: str | None = None, **options: bool) -> None:
        self._same(
            lambda: VERBS[event][0](self.bed.client, task_id, user=user, **options),
            lambda: self.tasks.wish(task_id, event, user=user, **options),
        )

    @action(needs="holders", pick=picks)
    def give_the_key_to_another(self, pick: int) -> None:
        """End a task that holds a key, create another with that key, and run the first again."""
        row = self._one_of(self.holders, pick)

        self._wish(row.id, Event.USER_CANCEL)
        self.create([NewTask(type=row.type, user=row.user, key=row.key, id=new_id())])
        self._wish(row.id, Event.USER_RUN)

    @property
    def holders(self) -> list[Expected]:
        return [row for row in self.tasks.rows.values() if row.holds_key]

    @action(needs="ids", pick=picks, user=users)
    def delete_by_force(self, pick: int, user: str | None) -> None:
        task_id = self._some_id(pick)
        alive = {node.id for node in self.alive}

        self._same(
            lambda: self.bed.client.delete_task(task_id, force=True, user=user),
            lambda: self.tasks.remove(task_id, user, alive),
        )

    @action(needs="ids", pick=picks, user=users, group=st.sampled_from(GROUPS))
    def change_group(self, pick: int, user: str | None, group: str) -> None:
        task_id = self._some_id(pick)

        self._same(
            lambda: self.bed.client.change_task_group(task_id, group, user=user),
            lambda: self._move(task_id, user, group),
        )

    def _move(self, task_id: UUID, user: str | None, group: str) -> None:
        row = self.tasks.visible(task_id, user)
        if row.state is State.DELETING:
            raise TaskNotFound(task_id)
        row.group = group

    @action(
        event=st.sampled_from(list(VERBS)),
        user=users,
        group=st.sampled_from([None, *GROUPS]),
        types=st.none() | st.lists(st.sampled_from([offer.type for offer in OFFERS]), min_size=1, unique=True),
        states=st.none() | st.lists(st.sampled_from(list(State)), min_size=1, unique=True),
    )
    def wish_for_many(self, event: Event, **filter: Any) -> None:
        everything = all(value is None for value in filter.values())
        chosen = self._chosen(**filter)

        changed = VERBS[event][1](self.bed.client, everything=everything, **filter)

        assert changed == self.tasks.wish_all(chosen, event)

    @action(
        user=st.sampled_from(USERS), states=st.none() | st.lists(st.sampled_from(list(State)), min_size=1, unique=True)
    )
    def find(self, user: str, states: list[State] | None) -> None:
        chosen = self._chosen(user, None, None, states)

        found = self.bed.client.get_tasks(user=user, states=states)
        counted = self.bed.client.count_tasks(user=user, states=states)

        assert {task.id: task.state for task in found} == {row.id: row.state for row in chosen}
        assert counted == Counter(row.state for row in chosen)

    def _chosen(
        self, user: str | None, group: str | None, types: list[str] | None, states: list[State] | None
    ) -> list[Expected]:
        return [
            row
            for row in self.tasks.rows.values()
            if user in (None, row.user)
            and group in (None, row.group)
            and (types is None or row.type in types)
            and (row.state is not State.DELETING if states is None else row.state in states)
        ]

    # --- nodes

    @action(needs="absent")
    def join(self) -> None:
        node = NodeSeen(new_id(), f"node {len(self.gone) + len(self.nodes)}")

        self.bed.database.once(nodes.join, node.id, node.name, "1.0", 15.0, BEAT)

        self.nodes.append(node)

    @action(needs="nodes", pick=picks)
    def beat(self, pick: int) -> None:
        node = self._one_of(self.nodes, pick)
        node.counter += not node.lost

        assert self.bed.database.once(nodes.beat, node.id, replace(BEAT, counter=node.counter)) is not node.lost

    @action(needs="nodes", pick=picks, late=st.sampled_from([0, 0, 1]))
    def declare_lost(self, pick: int, late: int) -> None:
        """Declare a node lost; not if it has raised its counter since it was looked at."""
        node = self._one_of(self.nodes, pick)
        seen = replace(node.peer, counter=node.counter - late)

        declared = self.bed.database.once(nodes.declare_lost, seen)

        assert declared is not (node.lost or bool(late))
        node.lost |= declared

    @action(needs="nodes", pick=picks)
    def leave(self, pick: int) -> None:
        """Remove a node's row: what it still owns is a lost node's."""
        node = self._one_of(self.nodes, pick)

        self.bed.database.once(nodes.leave, node.id)

        self._forget(node)

    @property
    def alive(self) -> list[NodeSeen]:
        return [node for node in self.nodes if not node.lost]

    @property
    def absent(self) -> bool:
        return len(self.nodes) < 3

    def _forget(self, node: NodeSeen) -> None:
        self.nodes.remove(node)
        self.gone.add(node.id)

    @action(
        weight=6,
        needs="nodes",
        pick=picks,
        queue=st.sampled_from([Queue.RUN] * 4 + [Queue.DELETE, Queue.PROBATION]),
        limit=st.integers(1, 3),
        groups=st.sampled_from([None] * 5 + [frozenset({"nightly"})]),
        promoting=st.booleans(),
    )
    def claim(self, pick: int, queue: Queue, limit: int, groups: frozenset[str] | None, promoting: bool) -> None:
        """Claim the first tasks of a queue, as a node does that is alive, or does not know yet that it is not."""
        self._claim(self._one_of(self.nodes, pick), queue, limit, groups, promoting)

    def _claim(self, node: NodeSeen, queue: Queue, limit: int, groups: frozenset[str] | None, promoting: bool) -> None:
        offers = [offer for offer in OFFERS if queue is not Queue.DELETE or offer.cleans]
        request = Request(queue, limit, offers, Fifo(), groups)
        fence = new_fence()
        if promoting:
            self.tasks.promote()
        first = self._first(request)

        with self.bed.database.transaction() as tx:
            if promoting:
                claims.promote(tx)
            rows = claims.claim(tx, node.id, fence, request)

        assert ([row.id for row in rows] == first) or promoting
        assert len(rows) == len(first)
        by_type = {offer.type: offer for offer in OFFERS}
        self.claims += [self.tasks.claim(row.id, node.id, fence, by_type[row.type]) for row in rows]
        self._saw("claim", rows)

    def _first(self, request: Request) -> list[UUID]:
        """Return what is to be claimed: paused tasks first, then higher priority, then who waits longest."""
        cleaned = {offer.type for offer in OFFERS if offer.cleans}
        types = {offer.type for offer in request.offers}
        candidates = [
            row
            for row in self.tasks.rows.values()
            if row.queue is request.queue
            and row.type in types
            and (request.groups is None or row.group in request.groups)
            and (row.queue is not Queue.PROBATION or row.type in cleaned or row.status.mark is Mark.RUN)
        ]
        candidates.sort(key=lambda row: (row.status.stage, row.rank, str(self.rows[row.id].ready_at), row.id))
        return [row.id for row in candidates[: request.limit]]

    @action(
        weight=6,
        needs="claims",
        sent=st.lists(
            st.tuples(picks, events, st.sampled_from([0, 0, 0, 0, -1, 1]), st.booleans()), min_size=1, max_size=3
        ),
        delay=st.sampled_from([0.0, TOMORROW]),
    )
    def write(self, sent: list[tuple[int, Event | None, int, bool]], delay: float) -> None:
        """Send a group of reports and ends: by claims that stand, by those that do not, and out of their order."""
        group = {}
        for pick, event, offset, removes in sent:
            claim = self._some_claim(pick)
            write = self._write(claim.after(max(0, claim.seq + offset)), event, delay, removes)
            group[claim.task_id] = (claim, write)

        written = self.bed.database.once(writes.write, [write for _, write in group.values()])

        for (claim, write), answer in zip(group.values(), written, strict=True):
            assert answer.fate is self.tasks.write(write), write
            self._saw(f"write {answer.fate.value}")
            self._note(claim, write, answer.fate)

    def _write(self, claim: Claim, event: Event | None, delay: float, removes: bool) -> Write:
        write = Write(claim, event, context=str(claim.seq + 1))
        row = self.tasks.rows.get(claim.task_id)
        kinds = [] if row is None else row.errors
        if event in (Event.TASK_FINISHED, Event.TASK_FAILED):
            cleaning = row is not None and row.status.stage is Stage.DELETING
            write.removes = removes or (event is Event.TASK_FINISHED and cleaning)
        if event is Event.TASK_FINISHED:
            write.result = str(claim.seq)
        if event in (Event.TASK_FAILED, Event.SYS_RETRY):
            write.errors = _errors(*kinds, "error")
        if event is Event.SYS_RETRY:
            write.delay, write.attempt = delay, 1 + (row.attempt if row else 0)
        write.cancelled = _errors(*kinds, CANCELLED)
        return write

    def _note(self, claim: Claim, write: Write, fate: Fate) -> None:
        """Let a claim follow what is stored; one that is spent stays, and writes now and then."""
        if fate is Fate.STORED and write.event is None:
            self.claims[self.claims.index(claim)] = claim.after(write.claim.seq + 1)

    @action(needs="claims", pick=picks)
    def force(self, pick: int) -> None:
        """Let go of a run that may still write."""
        claim = self._some_claim(pick)
        write = self._write(claim, Event.SYS_PAUSE, 0.0, removes=False)
        write.new_fence = new_fence()
        stands = self._stands(claim)

        written = self.bed.database.once(writes.force, write)

        assert written.fate is (Fate.STORED if stands else Fate.LOST)
        if stands:
            self.tasks.write(replace(write, claim=claim.after(self.tasks.rows[claim.task_id].seq)))

    @action(
        weight=4,
        needs="claims",
        pick=picks,
        event=st.sampled_from([None, None, Event.TASK_FINISHED]),
        failing=st.sampled_from([0, 0, 1]),
    )
    def commit(self, pick: int, event: Event | None, failing: int) -> None:
        """Write an effect and the report in one transaction, as `run.commit` does; perhaps swallow an error before."""
        claim = self._some_claim(pick)
        write = self._write(claim, event, 0.0, removes=False)
        effect = (claim.task_id.hex, claim.seq)

        try:
            stored = self._commit(write, effect, bool(failing))
        except TransactionDoomed:
            self._saw("doomed")
            assert failing
            return

        assert not failing or not stored, "a transaction in which a statement failed was committed"
        if stored:
            self.effects.add(effect)
            assert self.tasks.write(write) is Fate.STORED
            self._note(claim, write, Fate.STORED)
        self._saw("effect stored" if stored else "effect refused")

    def _commit(self, write: Write, effect: tuple[str, int], failing: bool) -> bool:
        """Return whether all was stored; else nothing was."""
        try:
            with self.bed.database.guarded() as tx:
                tx.execute(insert(EFFECT).values(effect))
                if failing:
                    _swallow(lambda: tx.execute(insert(EFFECT).values(effect)))
                    self.bed.database.check(tx)
                written = writes.write(tx, [write])[0]
                if written.fate is not Fate.STORED or written.read:
                    raise _Refused
        except (_Refused, IntegrityError):
            return False
        return True

    # --- those who clear up

    @action(
        weight=5,
        needs="owners",
        pick=picks,
        limit=st.sampled_from([1, 500]),
        event=st.sampled_from([None] * 8 + [*VERBS]),
    )
    def lose_an_owner(self, pick: int, limit: int, event: Event | None) -> None:
        """Lose a node that has tasks, of which a user has perhaps just wished something."""
        node = self._one_of(self.owners, pick)
        if event is not None:
            self._wish(next(row.id for row in self.tasks.rows.values() if row.node == node.id), event)

        self._lose(node, limit)

    @property
    def owners(self) -> list[NodeSeen]:
        owning = {row.node for row in self.tasks.rows.values()}
        return [node for node in self.alive if node.id in owning]

    def _lose(self, node: NodeSeen, limit: int) -> None:
        """Declare a node lost, take its tasks from it, and let another node join."""
        assert self.bed.database.once(nodes.declare_lost, node.peer)

        node.lost = True
        self.take_over(limit)
        self.join()

    @action(needs="uncleaned", pick=picks, times=st.sampled_from([1, 2]))
    def lose_who_cleans_up(self, pick: int, times: int) -> None:
        """Delete a task that has a clean-up, and lose the node that begins it, perhaps so often that it is given up."""
        row = self._one_of(self.uncleaned, pick)

        self._wish(row.id, Event.USER_DELETE)
        for _ in range(times):
            if row.queue and self.alive:
                self._read()
                self._claim(self.alive[0], row.queue, 1000, None, promoting=False)
                self._lose(self.alive[0], 500)

    @property
    def uncleaned(self) -> list[Expected]:
        return [row for row in self.tasks.rows.values() if row.type == "cleans" and not row.owned]

    @action(limit=st.sampled_from([1, 500]))
    def take_over(self, limit: int) -> None:
        """Take tasks from nodes that were declared lost, or left without handing them over."""
        lost = self.bed.database.once(nodes.lost)
        orphaned = self.bed.database.once(nodes.orphaned)

        assert sorted(lost) == sorted((node.id, node.name) for node in self.nodes if node.lost)
        assert set(orphaned) == {row.node for row in self.tasks.rows.values() if row.node in self.gone}
        for node_id, name in [*lost, *((node_id, str(node_id)) for node_id in orphaned)]:
            self._take_over(node_id, name, limit)

    def _take_over(self, node_id: UUID, name: str, limit: int) -> None:
        theirs = sorted((row for row in self.tasks.rows.values() if row.node == node_id), key=lambda row: row.id)[
            :limit
        ]
        fence = new_fence()

        taken = self.bed.database.once(claims.take_over, node_id, name, fence, limit)

        assert sorted(taken) == [row.id for row in theirs]
        for row in theirs:
            self.tasks.take_over(row, fence)
            self._saw(f"taken over, then {row.status}")
        self._remove_lost(node_id)

    def _remove_lost(self, node_id: UUID) -> None:
        removed = self.bed.database.once(nodes.remove_lost, node_id)

        node = next((node for node in self.nodes if node.id == node_id), None)
        assert removed is (node is not None and not any(row.node == node_id for row in self.tasks.rows.values()))
        if removed and node is not None:
            self._forget(node)

    @action(needs="claims", chosen=st.lists(picks, min_size=1, max_size=3), by_fence=st.booleans())
    def reconcile(self, chosen: list[int], by_fence: bool) -> None:
        """Let go of what a node owns and knows nothing of; what it has lost long ago stays as it is."""
        some = [self._some_claim(pick) for pick in chosen]
        node_id, fence = some[0].node_id, new_fence()
        named = {(claim.task_id, claim.fence) for claim in some}
        fences = {claim.fence for claim in some}
        mine = [row for row in self.tasks.rows.values() if row.owned and row.node == node_id]
        strays = [row for row in mine if (row.fence in fences if by_fence else (row.id, row.fence) in named)]

        if by_fence:
            released = self.bed.database.once(claims.release_fences, node_id, list(fences), fence)
        else:
            released = self.bed.database.once(claims.release, node_id, list(named), fence)

        assert set(released) == {row.id for row in strays}
        for row in strays:
            self.tasks.release(row, fence)

    @action(types=st.lists(st.sampled_from(["plain", "fails"]), max_size=2, unique=True))
    def remove_deleted(self, types: list[str]) -> None:
        """Remove tasks that wait for deletion, and have no clean-up."""
        self._remove_deleted(types)

    def _remove_deleted(self, types: Sequence[str]) -> None:
        deleted = [
            row.id
            for row in self.tasks.rows.values()
            if row.type in types and row.queue and row.status.mark is Mark.DELETE
        ]

        assert self.bed.database.once(claims.remove_deleted, types) == len(deleted)
        for task_id in deleted:
            del self.tasks.rows[task_id]

    @action()
    def purge(self) -> None:
        assert self.bed.database.once(claims.purge) == self.tasks.purge()

    @action(needs="alive")
    def claim_all(self) -> None:
        """I9: a node with enough free slots leaves nothing that can be claimed."""
        node = self.alive[0]
        self._remove_deleted(["plain", "fails"])
        self._read()
        for queue in Queue:
            self._claim(node, queue, 1000, None, promoting=True)

        assert not [row for row in self.tasks.rows.values() if row.queue]
        assert not [row for row in self.tasks.rows.values() if row.due and row.run_at is None]

    # --- what must be so

    @invariant()
    def check(self) -> None:
        """Compare everything: the model has what users, nodes and time make of it, and nothing else may change it."""
        self._read()
        self._rows_are_as_expected()
        self._every_row_is_sound()
        self._every_claim_is_its_own()

    def _rows_are_as_expected(self) -> None:
        """I2, I3, I5, I7, I14; I6 and I17: effects are those of stored reports."""
        expected = {row.id: row.columns() for row in self.tasks.rows.values()}

        assert {row.id: _columns(row) for row in self.rows.values()} == expected
        assert self.found == self.effects

    def _every_row_is_sound(self) -> None:
        """No column contradicts another; I10: a user can delete what is in any status."""
        for row in self.rows.values():
            assert not faults(row)
            assert Event.USER_DELETE in TABLE[Status(Stage(row.stage), Mark(row.mark))]

    def _every_claim_is_its_own(self) -> None:
        """I1, I8: an owned row is under a claim that was made, of a node that others can find; a key is held once."""
        known = {node.id for node in self.nodes} | self.gone
        drawn = {(claim.task_id, claim.node_id, claim.fence) for claim in self.claims}
        owned = [row for row in self.rows.values() if row.stage in OWNED]
        held = [(row.user_name, row.type, row.held_key) for row in self.rows.values() if row.held_key is not None]

        assert all((row.id, row.node_id, row.fence) in drawn and row.node_id in known for row in owned)
        assert len(held) == len(set(held))

    def teardown(self) -> None:
        """I10: whatever happened, users and nodes together get rid of every task; at once, or when a time has come."""
        self.bed.client.delete_tasks(everything=True)
        with self.bed.database.transaction() as tx:
            for node_id in tx.execute(select(tx.t.task.c.node_id).distinct()).scalars().all():
                if node_id is not None:
                    claims.take_over(tx, node_id, "gone", new_fence())
        self.bed.client.delete_tasks(everything=True)

        self.bed.database.once(claims.remove_deleted, [offer.type for offer in OFFERS])

        self._read()
        assert all(row.due_at is not None for row in self.rows.values())

    # --- helpers

    def _read(self) -> None:
        with self.bed.database.transaction() as tx:
            self.rows = {row.id: row for row in tx.execute(select(tx.t.task))}
            self.found = {(row.task, row.seq) for row in tx.execute(select(EFFECT))}

    def _same(self, real: Callable[[], object], expected: Callable[[], object]) -> None:
        """Do it to the database and to the model: both must refuse it, for the same reason, or neither."""
        refused = _refusal(real)

        assert refused == _refusal(expected)
        self._saw(f"refused: {refused.__name__}" if refused else "verb")

    def _saw(self, what: str, happened: object = True) -> None:
        self.bed.seen[what] += bool(happened)

    def _is_foreign(self, task_id: UUID, user: str) -> bool:
        row = self.tasks.rows.get(task_id)
        return row is not None and row.user != user

    def _some_id(self, pick: int) -> UUID:
        """Choose a task: mostly one that is there."""
        there = [task_id for task_id in self.ids if task_id in self.tasks.rows]
        return self._one_of(there if there and pick % 8 < 7 else self.ids, pick // 8)

    def _some_claim(self, pick: int) -> Claim:
        """Choose a claim: mostly one that stands."""
        standing = [claim for claim in self.claims if self._stands(claim)]
        return self._one_of(standing if standing and pick % 4 < 3 else self.claims, pick // 4)

    def _stands(self, claim: Claim) -> bool:
        row = self.tasks.rows.get(claim.task_id)
        return row is not None and row.owned and row.fence == claim.fence

    @staticmethod
    def _one_of(items: Sequence[Any], pick: int) -> Any:
        """Choose; the newest first, which is what simple examples need."""
        return items[-1 - pick % len(items)]


class _Refused(Exception):
    """The report was refused: roll the effect back."""


def _refusal(call: Callable[[], object]) -> type[Exception] | None:
    try:
        call()
    except REFUSALS as error:
        return type(error)
    return None


def _swallow(call: Callable[[], object]) -> None:
    try:
        call()
    except IntegrityError:
        return


def _errors(*kinds: str) -> str:
    return json.dumps([{"kind": kind, "message": kind} for kind in kinds])


def _columns(row: Any) -> dict[str, Any]:
    """Return a row's columns as the model tells them: of times only whether they are there."""
    names = (
        "type user_name group_name queue rank node_id fence epoch seq attempt losses context result key_name held_key"
    )
    return {
        **{name: getattr(row, name) for name in names.split()},
        **{name: getattr(row, name) is not None for name in ("run_at", "due_at", "done_at", "purge_at")},
        "status": f"({row.stage}, {row.mark})",
        "errors": [entry["kind"] for entry in json.loads(row.errors or "[]")],
    }
