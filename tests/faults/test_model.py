"""The protocol breaks no invariant in any interleaving, and without any of its guards it does."""

from __future__ import annotations

import pytest

from pyasync.domain.transitions import FAILED, FINISHED, TABLE
from tests.faults.effort import Effort
from tests.model.mutants import COVERED, LONG_SCOPES, MUTANTS, PROTOCOL, SCOPES
from tests.model.search import search

UNREACHED = {"(init, none)", "(failed, delete)"}
"""The model's task waits from the start, and its clean-up does not fail."""


@pytest.mark.parametrize("name", SCOPES | LONG_SCOPES)
def test_protocol_breaks_no_invariant(name: str, effort: Effort) -> None:
    if name in LONG_SCOPES and not effort.long:
        pytest.skip("gone through with --long")

    verdict = search(PROTOCOL, (SCOPES | LONG_SCOPES)[name])

    print(verdict)
    assert not verdict.broken, "\n".join(verdict.trace)
    assert any(not any(world.left) for world in verdict.worlds), "all that may go wrong goes wrong in one history"


@pytest.mark.parametrize(("name", "invariant"), [(name, each) for name in MUTANTS for each in MUTANTS[name].broken])
def test_without_a_guard_an_invariant_breaks(name: str, invariant: str) -> None:
    verdict = search(MUTANTS[name].rules, MUTANTS[name].scope, [invariant])

    assert verdict.broken == (invariant,)
    assert verdict.trace


@pytest.mark.parametrize("name", [name for name in MUTANTS if MUTANTS[name].scope not in SCOPES.values()])
def test_mutants_that_have_a_scope_of_their_own_break_it_by_their_change_alone(name: str) -> None:
    assert not search(PROTOCOL, MUTANTS[name].scope).broken


@pytest.mark.parametrize("name", COVERED)
def test_guard_of_stage_and_fence_of_takeover_cover_each_other(name: str) -> None:
    verdict = search(COVERED[name].rules, COVERED[name].scope)

    assert not verdict.broken, "\n".join(verdict.trace)


def test_model_reaches_every_status_and_end() -> None:
    worlds = [world for scope in ("users", "stops and users") for world in search(PROTOCOL, SCOPES[scope]).worlds]
    reached = {world.db.row.status for world in worlds if world.db.row}

    assert {str(status) for status in TABLE if status not in reached} <= UNREACHED
    assert {FINISHED, FAILED} <= reached
    assert any(world.db.row is None for world in worlds)
