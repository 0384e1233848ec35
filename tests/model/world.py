"""What there is: a row, users' effects beside it, what each node knows, and writes that are under way."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

from pyasync.domain.states import OWNED, Event, Mark, Stage, Status
from pyasync.domain.transitions import PENDING
from tests.model.protocol import Scope


class Kind(StrEnum):
    """What a write says."""

    REPORT = "report"
    FINISH = "finish"
    FAIL = "fail"
    REMOVE = "finish, removing the row"
    RELEASE = "release"
    FORCE = "forced release"


EVENTS = {
    Kind.FINISH: Event.TASK_FINISHED,
    Kind.FAIL: Event.TASK_FAILED,
    Kind.REMOVE: Event.TASK_FINISHED,
    Kind.RELEASE: Event.SYS_PAUSE,
    Kind.FORCE: Event.SYS_PAUSE,
}
"""What the end of a run is in the table of states; a report is no event."""

Stored = tuple[int, int, Kind]
"""A write by its fence, seq and kind."""


class Row(NamedTuple):
    """The task's row."""

    status: Status = PENDING
    owner: str = ""
    fence: int = 0
    seq: int = 0
    context: int = 0
    """How many steps its checkpoint has behind it."""
    last: Stored | None = None
    """Which write was stored last; nobody in the model decides by it."""

    @property
    def stage(self) -> Stage:
        return self.status.stage

    @property
    def mark(self) -> Mark:
        return self.status.mark

    @property
    def owned(self) -> bool:
        return self.status.stage in OWNED


class Write(NamedTuple):
    """A fenced write on its way; it has what the store's `judge` asks for."""

    node: str
    fence: int
    seq: int
    kind: Kind
    context: int
    """How many steps the run had behind it."""
    mark: Mark
    """What the run last saw to be wanted of its task."""
    new_fence: int = 0
    doomed: bool = False
    """A statement of the user's has failed before it, in its transaction."""
    heard: bool = True
    """Whether its node still listens for the answer."""

    @property
    def claim(self) -> Write:
        return self

    @property
    def event(self) -> Event | None:
        return EVENTS.get(self.kind)

    @property
    def removes(self) -> bool:
        return self.kind is Kind.REMOVE

    @property
    def identity(self) -> Stored:
        """What it is however often it is sent. A forced release takes the seq that the row has."""
        return (self.fence, -1 if self.kind is Kind.FORCE else self.seq, self.kind)

    def __str__(self) -> str:
        return f"{self.node}'s {self.kind} (fence {self.fence}, seq {self.seq})"


class Mode(StrEnum):
    """What a node is about."""

    IDLE = "idle"
    CLAIMING = "claiming"
    """It has found a task that can be claimed."""
    RUNNING = "running"
    WRITING = "writing"
    DOUBTING = "doubting"
    """It does not know what became of its write."""


class Run(NamedTuple):
    """What a node knows of its run."""

    mode: Mode = Mode.IDLE
    fence: int = 0
    seq: int = 0
    context: int = 0
    mark: Mark = Mark.NONE
    cleaning: bool = False
    write: Write | None = None


class Database(NamedTuple):
    """What is committed: the row, None if there is none, and how often the effect of each step is there."""

    row: Row | None
    effects: tuple[int, ...]


class Left(NamedTuple):
    """How often each may still happen."""

    claims: int
    takeovers: int
    cuts: int
    wishes: int
    removals: int
    failovers: int
    swallowed: int
    releases: int


class World(NamedTuple):
    """All there is."""

    db: Database
    before: Database | None
    """What a failover brings back: the database without its last transaction."""
    runs: tuple[Run, ...]
    flight: tuple[Write, ...]
    drawn: int
    """The greatest fence that was ever drawn; no failover takes that back."""
    left: Left


class Move(NamedTuple):
    """A step that was made, and what the invariants must know of it."""

    label: str
    world: World
    event: Event | None = None
    """What happened to the task, in the table of states."""
    drew: int = 0
    """The fence that was drawn."""
    wrote: Write | None = None
    """The write that changed the row."""
    stored: Write | None = None
    """The write that its node takes for stored from now on."""
    gave_up: Run | None = None
    """The run that was told that its task is no longer its own."""
    by_user: bool = False


def first(scope: Scope) -> World:
    """Return the world in which a task waits, and nobody runs it."""
    left = Left(**{name: getattr(scope, name) for name in Left._fields})
    return World(Database(Row(), (0,) * scope.steps), None, (Run(),) * len(scope.nodes), (), 0, left)


def spend(world: World, name: str) -> World:
    """Return the world in which something may happen once less."""
    left: Any = world.left
    return world._replace(left=left._replace(**{name: getattr(left, name) - 1}))


def commit(world: World, db: Database) -> World:
    """Return the world after a transaction."""
    return world._replace(db=db, before=world.db if world.left.failovers else None)


def commit_row(world: World, row: Row | None) -> World:
    """Return the world after a transaction that changed the row, or removed it."""
    return commit(world, world.db._replace(row=row))


def with_run(world: World, place: int, run: Run) -> World:
    """Return the world in which a node knows this of its run."""
    return world._replace(runs=(*world.runs[:place], run, *world.runs[place + 1 :]))


def with_flight(world: World, *writes: Write) -> World:
    """Return the world in which these writes are under way; their order means nothing."""
    return world._replace(flight=tuple(sorted(writes)))
