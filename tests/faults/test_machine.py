"""The store does what a model of it does, whatever users, nodes and sweepers ask of it, in any order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from pyasync import Client
from pyasync.settings import Settings
from pyasync.store.database import Database
from tests.faults.effort import Effort
from tests.faults.machine import EFFECT, Bed, StoreMachine

SEEN = (
    "another user's task",
    "claim",
    "doomed",
    "effect refused",
    "effect stored",
    "existing id or key",
    "refused: InvalidTransition",
    "refused: TaskNotFound",
    "taken over, then (paused, run)",
    "write stored",
    "write lost",
)
"""What must have happened often enough for the comparison to mean something."""

SEEN_SELDOM = (
    "refused: KeyTaken",
    "taken over, then (failed, delete)",
    "taken over, then (failed, run)",
    "taken over, then (paused, delete)",
    "taken over, then (pending, delete)",
    "write behind",
)


@pytest.fixture
def bed(url: str) -> Iterator[Bed]:
    database = Database(url, Settings(database_timeout=10.0))
    with Client(url, migrate="auto", strict=False, database_timeout=10.0) as client:
        EFFECT.create(database.engine)
        yield Bed(database, client)
    database.close()


# Threads that other tests have left in this process may draw random numbers while a strategy draws.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@pytest.mark.timeout(300)
def test_rows_are_always_as_the_model_has_them(bed: Bed, effort: Effort) -> None:
    machine = seed(effort.seed)(type("Machine", (StoreMachine,), {"bed": bed}))
    examples = settings(
        max_examples=effort.number(30, 200),
        stateful_step_count=effort.number(30, 50),
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink] if effort.long else [Phase.generate],
        report_multiple_bugs=False,
        # Each step is some transactions: what Hypothesis takes for slow is a database.
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )

    run_state_machine_as_test(machine, settings=examples)

    print(dict(sorted(bed.seen.items())))
    assert not [what for what in (SEEN + SEEN_SELDOM if effort.long else SEEN) if not bed.seen[what]]
