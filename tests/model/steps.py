"""What may happen next: what a node does, what becomes of a write, and what others do meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pyasync.domain.states import Event, Mark, Stage, Status
from pyasync.domain.transitions import TABLE, sources, step
from pyasync.store.writes import Fate, judge
from tests.model.protocol import Protocol, Scope, ZeroRows
from tests.model.world import (
    Database,
    Kind,
    Mode,
    Move,
    Row,
    Run,
    World,
    Write,
    commit,
    commit_row,
    spend,
    with_flight,
    with_run,
)

CLAIMABLE = frozenset(sources(Event.SYS_EXECUTE))
WISHES = (Event.USER_RUN, Event.USER_PAUSE, Event.USER_CANCEL, Event.USER_DELETE)
BUSY = (Mode.RUNNING, Mode.WRITING, Mode.DOUBTING)


@dataclass(frozen=True)
class Steps:
    """The steps of a protocol, within a scope."""

    rules: Protocol
    scope: Scope

    def __call__(self, world: World) -> Iterator[Move]:
        """Yield all that may happen next."""
        yield from self.of_nodes(world)
        yield from self._troubles(world)
        yield from self._takeover(world)
        yield from self._users(world)

    def of_nodes(self, world: World) -> Iterator[Move]:
        """Yield what happens if nothing goes wrong from now on."""
        for place in range(len(world.runs)):
            yield from self._claim(world, place)
            yield from self._send(world, place)
            yield from self._settle(world, place)
            yield from self._reconcile(world, place)
        for write in world.flight:
            yield from self._apply(world, write)

    # --- claiming

    def _claim(self, world: World, place: int) -> Iterator[Move]:
        """Find a task that can be claimed; claim it under a new fence, if it still can be."""
        run, row, node = world.runs[place], world.db.row, self.scope.nodes[place]
        if run.mode is Mode.IDLE and row is not None and row.status in CLAIMABLE and _may_look(world, place):
            yield Move(f"{node} finds the task", with_run(world, place, Run(Mode.CLAIMING)))
        if run.mode is not Mode.CLAIMING:
            return
        if row is None or (self.rules.claim_checks_status and row.status not in CLAIMABLE):
            yield Move(f"{node} cannot claim it any more", with_run(world, place, Run()))
        elif world.left.claims:
            yield from self._take(world, place, row)

    def _take(self, world: World, place: int, row: Row) -> Iterator[Move]:
        node = self.scope.nodes[place]
        cleaning = row.mark is Mark.DELETE
        status = Status(Stage.DELETING if cleaning else Stage.RUNNING, row.mark)
        world, fence = self._draw(spend(world, "claims"), row)
        taken = commit_row(world, row._replace(status=status, owner=node, fence=fence))
        known = Run(Mode.RUNNING, fence, row.seq, row.context, row.mark, cleaning)
        label = f"{node} claims it with fence {fence}"
        yield Move(label, with_run(taken, place, known), Event.SYS_EXECUTE, fence)
        if world.left.cuts:
            lost = spend(with_run(taken, place, Run()), "cuts")
            yield Move(f"{label}, and the reply is lost", lost, Event.SYS_EXECUTE, fence)

    def _draw(self, world: World, row: Row) -> tuple[World, int]:
        """Draw a fence: at random it is none that ever was."""
        fence = world.drawn + 1 if self.rules.random_fence else row.fence + 1
        return world._replace(drawn=max(world.drawn, fence)), fence

    # --- writing

    def _send(self, world: World, place: int) -> Iterator[Move]:
        """Send what a run may write next."""
        run = world.runs[place]
        if run.mode is Mode.RUNNING:
            for kind in self._kinds(world, run):
                yield from self._send_one(world, place, kind)
        if run.mode in BUSY and not (run.write and run.write.kind is Kind.FORCE) and world.left.releases:
            yield from self._force(world, place)

    def _kinds(self, world: World, run: Run) -> Iterator[Kind]:
        if run.cleaning:
            yield Kind.REMOVE
        elif run.context < self.scope.steps:
            yield Kind.REPORT
        else:
            yield Kind.REMOVE if self.scope.removes else Kind.FINISH
        if world.left.releases:
            yield Kind.RELEASE
            yield Kind.FAIL

    def _send_one(self, world: World, place: int, kind: Kind) -> Iterator[Move]:
        run, node = world.runs[place], self.scope.nodes[place]
        write = Write(node, run.fence, run.seq, kind, run.context, run.mark)
        left = spend(world, "releases") if kind in (Kind.RELEASE, Kind.FAIL) else world
        yield self._sent(left, place, write, "is sent")
        if kind is Kind.REPORT and world.left.swallowed:
            doomed = write._replace(doomed=True)
            yield self._sent(spend(world, "swallowed"), place, doomed, "is sent after a statement that failed")

    def _force(self, world: World, place: int) -> Iterator[Move]:
        """Let go of a run that may still write: what it has sent is not listened to any more."""
        run, node = world.runs[place], self.scope.nodes[place]
        world, fence = spend(world, "releases"), 0
        if self.rules.forced_release_draws_fence:
            world, fence = self._draw(world, Row(fence=run.fence))
        write = Write(node, run.fence, run.seq, Kind.FORCE, run.context, run.mark, fence)
        yield self._sent(_deaf(world, node), place, write, "is sent", drew=fence)

    def _sent(self, world: World, place: int, write: Write, what: str, drew: int = 0) -> Move:
        run = world.runs[place]._replace(mode=Mode.WRITING, write=write)
        sent = with_flight(with_run(world, place, run), *world.flight, write)
        return Move(f"{write} {what}", sent, drew=drew)

    # --- what becomes of a write

    def _apply(self, world: World, write: Write) -> Iterator[Move]:
        """Let the database take a write that is under way, or refuse it."""
        world = with_flight(world, *_without(world.flight, write))
        if write.doomed and self.rules.dooms:
            yield from self._rolled_back(world, write)
            return
        target = self._target(world.db.row, write)
        if target is None:
            yield self._no_rows(world, write)
        elif write.doomed:
            yield from self._doomed(world, write, target)
        else:
            yield self._accepted(commit(world, Database(target[0], _effects(world, write))), write)

    def _target(self, row: Row | None, write: Write) -> tuple[Row | None] | None:
        """Return what a write makes of the row; None if it is refused."""
        if row is None or not self._held(row, write):
            return None
        seq = row.seq + 1
        if write.event is None:
            return (row._replace(seq=seq, context=write.context + 1, last=write.identity),)
        status = row.status if self.rules.status_from_row else Status(row.stage, write.mark)
        if write.event not in TABLE.get(status, {}):
            return None
        target = step(status, write.event)
        cleaned = row.stage is Stage.RUNNING and status.mark is Mark.DELETE
        if target is None or (write.removes and not cleaned):
            return (None,)
        fence = write.new_fence or row.fence
        return (row._replace(status=target, owner="", fence=fence, seq=seq, last=write.identity),)

    def _held(self, row: Row, write: Write) -> bool:
        """The guard of every fenced write. A forced release takes the seq from the row, under its lock."""
        return (
            (not self.rules.guards_fence or row.fence == write.fence)
            and (not self.rules.guards_seq or row.seq == write.seq or write.kind is Kind.FORCE)
            and (not self.rules.guards_stage or row.owned)
        )

    def _accepted(self, world: World, write: Write) -> Move:
        label = f"the database stores {write}"
        move = Move(label, world, write.event, wrote=write)
        return self._answer_stored(move, write) if write.heard else move

    def _rolled_back(self, world: World, write: Write) -> Iterator[Move]:
        """Tell the run that its transaction was rolled back: it may try again."""
        place = self._place(write)
        run = world.runs[place]._replace(mode=Mode.RUNNING, write=None)
        told = with_run(world, place, run) if write.heard else world
        yield Move(f"{write} is rolled back, since a statement had failed", told)

    def _doomed(self, world: World, write: Write, target: tuple[Row | None]) -> Iterator[Move]:
        """Commit after a statement that failed: MariaDB stores the rest, PostgreSQL nothing; both say that all went
        well."""
        half = self._accepted(commit_row(world, target[0]), write)
        yield half._replace(label=f"{half.label} without the effect")
        nothing = Move(f"the database stores nothing of {write}, and says COMMIT", world)
        yield self._answer_stored(nothing, write) if write.heard else nothing

    def _no_rows(self, world: World, write: Write) -> Move:
        """Tell the node that its write changed no row."""
        move = Move(f"the database refuses {write}", world)
        place = self._place(write)
        run = world.runs[place]
        if not write.heard:
            return move
        match self.rules.zero_rows:
            case ZeroRows.READ_BACK:
                return move._replace(world=with_run(world, place, run._replace(mode=Mode.DOUBTING)))
            case ZeroRows.LOST:
                return move._replace(world=with_run(world, place, Run()), gave_up=run)
            case ZeroRows.IGNORED:
                return self._answer_stored(move, write)

    def _answer_stored(self, move: Move, write: Write) -> Move:
        """Let the node go on: with a report comes back what is wanted of the task."""
        place = self._place(write)
        run, row = move.world.runs[place], move.world.db.row
        mark = run.mark if row is None else row.mark
        after = Run(Mode.RUNNING, run.fence, write.seq + 1, write.context + 1, mark, run.cleaning)
        told = with_run(move.world, place, Run() if write.event else after)
        return move._replace(world=told, stored=write)

    # --- doubt

    def _settle(self, world: World, place: int) -> Iterator[Move]:
        """Find out what became of a write: by sending it once more, or by reading."""
        run = world.runs[place]
        if run.mode is not Mode.DOUBTING or run.write is None:
            return
        yield self._sent(world, place, run.write, "is sent again")
        if self.rules.zero_rows is not ZeroRows.LOST:
            yield from self._read_back(world, place, run.write)

    def _read_back(self, world: World, place: int, write: Write) -> Iterator[Move]:
        known = judge(write, world.db.row)  # type: ignore[arg-type]
        label = f"{write.node} reads back: {known.fate.value}"
        match known.fate:
            case Fate.STORED:
                yield self._answer_stored(Move(label, world), write)
            case Fate.LOST:
                yield Move(label, with_run(world, place, Run()), gave_up=world.runs[place])
            case Fate.UNSTORED:
                yield self._sent(world, place, write, "was not stored: it is sent again")
            case Fate.BEHIND:
                yield from self._behind(world, place, write, label)

    def _behind(self, world: World, place: int, write: Write, label: str) -> Iterator[Move]:
        """Follow a database that went back in time: begin again from the row; a run that has ended cannot."""
        run, row = world.runs[place], world.db.row
        assert row is not None
        if write.event is None:
            again = run._replace(mode=Mode.RUNNING, seq=row.seq, context=row.context, write=None)
            yield Move(label, with_run(world, place, again))
            return
        ended = write._replace(seq=row.seq)
        if write.event is Event.TASK_FINISHED and self.rules.final_is_redone_after_failover:
            ended = ended._replace(kind=Kind.RELEASE)
        yield self._sent(world, place, ended, "follows a database that went back in time")

    # --- reconciliation

    def _reconcile(self, world: World, place: int) -> Iterator[Move]:
        """Let go of a row that the node knows nothing of; give up a run that the database does not know."""
        if not self.rules.reconciles:
            return
        run, row, node = world.runs[place], world.db.row, self.scope.nodes[place]
        mine = row is not None and row.owned and row.owner == node
        if row is not None and mine and row.fence != run.fence:
            yield self._let_go(world, row, f"{node} lets go of a row that it knows nothing of")
        if run.fence and not (row is not None and mine and row.fence == run.fence):
            told = with_run(_deaf(world, node), place, Run())
            yield Move(f"{node} gives up a run that the database does not know", told, gave_up=run)

    def _let_go(self, world: World, row: Row, label: str, keeps_fence: bool = False) -> Move:
        """Apply `sys_pause` to a row on behalf of its owner."""
        world, fence = (world, row.fence) if keeps_fence else self._draw(world, row)
        released = row._replace(status=step(row.status, Event.SYS_PAUSE), owner="", fence=fence)
        return Move(label, commit_row(world, released), Event.SYS_PAUSE, 0 if keeps_fence else fence)

    # --- what others do

    def _takeover(self, world: World) -> Iterator[Move]:
        """Take the task from its owner, whose lease may be taken for expired at any moment; nobody claims it yet."""
        row = world.db.row
        if row is not None and row.owned and world.left.takeovers:
            keeps = not self.rules.takeover_draws_fence
            yield self._let_go(spend(world, "takeovers"), row, f"the task is taken from {row.owner}", keeps)

    def _users(self, world: World) -> Iterator[Move]:
        """Let a user want something, which changes neither fence nor seq, or remove the row."""
        row = world.db.row
        if row is None:
            return
        for event in WISHES if world.left.wishes else ():
            target = TABLE[row.status].get(event, row.status)
            if target != row.status:
                changed = commit_row(spend(world, "wishes"), row._replace(status=target) if target else None)
                yield Move(f"a user: {event.value}", changed, event, by_user=True)
        if world.left.removals:
            how = "by hand" if row.owned else "by force"
            gone = commit_row(spend(world, "removals"), None)
            yield Move(f"a user removes the row {how}", gone, by_user=True)

    def _troubles(self, world: World) -> Iterator[Move]:
        """Lose replies, to writes that the database may yet take, and the last transaction."""
        for write in world.flight if world.left.cuts else ():
            if write.heard:
                yield Move(f"the reply to {write} is lost", self._cut(spend(world, "cuts"), write))
        if world.left.failovers and world.before is not None:
            yield Move("FAILOVER: the last transaction is lost", self._failed_over(world, world.before))

    def _cut(self, world: World, write: Write) -> World:
        place = self._place(write)
        world = with_flight(world, *_without(world.flight, write), write._replace(heard=False))
        return with_run(world, place, world.runs[place]._replace(mode=Mode.DOUBTING))

    def _failed_over(self, world: World, before: tuple[object, ...]) -> World:
        """Return the world on another server: what was under way to the old one dies with it."""
        world = spend(world, "failovers")._replace(db=before, before=None, flight=())
        for place, run in enumerate(world.runs):
            if run.mode is Mode.WRITING:
                world = with_run(world, place, run._replace(mode=Mode.DOUBTING))
        return world

    def _place(self, write: Write) -> int:
        return self.scope.nodes.index(write.node)


def _may_look(world: World, place: int) -> bool:
    """Whether a node looks for tasks; which one does so first makes no difference."""
    first = not world.drawn and all(run.mode is Mode.IDLE for run in world.runs[:place])
    return world.left.claims > 0 and (place == 0 or not first)


def _effects(world: World, write: Write) -> tuple[int, ...]:
    """Return users' effects with that of a report, which is committed together with the row."""
    effects, step_ = world.db.effects, write.context
    return effects if write.event else (*effects[:step_], effects[step_] + 1, *effects[step_ + 1 :])


def _without(flight: tuple[Write, ...], write: Write) -> tuple[Write, ...]:
    place = flight.index(write)
    return flight[:place] + flight[place + 1 :]


def _deaf(world: World, node: str) -> World:
    """Return the world in which a node does not listen for answers any more."""
    return with_flight(world, *(each._replace(heard=False) if each.node == node else each for each in world.flight))
