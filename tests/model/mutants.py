"""What each guard is good for: the protocol without it, and which invariants that breaks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tests.model.protocol import Protocol, Scope, ZeroRows

PROTOCOL = Protocol()

TAKEOVER = Scope(cuts=0)
LOST_REPLIES = Scope(steps=2)
FAILOVER = Scope(claims=3, cuts=0, failovers=1)
FAILOVER_OF_STEPS = Scope(steps=2, cuts=0, failovers=1)
USERS = Scope(cuts=0, wishes=2)
STOPS = Scope(takeovers=0, releases=1)
STOPS_AND_TAKEOVER = Scope(cuts=0, releases=1)
STOPS_AND_USERS = Scope(takeovers=0, cuts=0, wishes=1, releases=1)
SWALLOWED = Scope(steps=2, cuts=0, swallowed=1)

SCOPES = {
    "lost replies": LOST_REPLIES,
    "failover": FAILOVER,
    "failover of steps": FAILOVER_OF_STEPS,
    "failover and lost replies": Scope(steps=2, takeovers=0, failovers=1),
    "users": USERS,
    "removals": Scope(removes=True, cuts=0, wishes=1, removals=1),
    "removals and lost replies": Scope(removes=True, takeovers=0, wishes=1, removals=1),
    "stops": STOPS,
    "stops and takeover": STOPS_AND_TAKEOVER,
    "stops and users": STOPS_AND_USERS,
    "swallowed errors": SWALLOWED,
}
"""In which the protocol is tried, each gone through in less than a second."""

LONG_SCOPES = {
    "two lost replies": Scope(steps=2, claims=3, takeovers=2, cuts=2),
    "three nodes": Scope(nodes="ABC", steps=2, claims=3, takeovers=2),
    "two failovers": Scope(claims=3, cuts=0, failovers=2),
    "failover between three nodes": Scope(nodes="ABC", claims=3, takeovers=2, cuts=0, failovers=1),
    "three wishes": Scope(claims=3, wishes=3, removals=1),
    "stops, users and failover": Scope(takeovers=0, cuts=0, wishes=1, releases=1, failovers=1),
    "two stops": Scope(cuts=0, releases=2),
    "removals and failover": Scope(removes=True, takeovers=0, wishes=1, removals=1, failovers=1),
    "swallowed errors and lost replies": Scope(steps=2, cuts=2, swallowed=2),
}


@dataclass(frozen=True)
class Mutant:
    """The protocol with a guard or two taken out, the invariants that then break, and where that shows."""

    rules: Protocol
    broken: tuple[str, ...]
    scope: Scope


def _without(scope: Scope, *broken: str, **changed: Any) -> Mutant:
    return Mutant(replace(PROTOCOL, **changed), broken, scope)


MUTANTS = {
    "no fence": _without(TAKEOVER, "I2", guards_fence=False),
    "no seq": _without(LOST_REPLIES, "I5", "I6", guards_seq=False),
    "zero rows ignored": _without(TAKEOVER, "I4", "I17", zero_rows=ZeroRows.IGNORED),
    "zero rows are lost": _without(LOST_REPLIES, "I8", zero_rows=ZeroRows.LOST),
    "counted fence": _without(FAILOVER, "I1", "I2", random_fence=False),
    "forced release keeps the fence": _without(STOPS, "I17", forced_release_draws_fence=False),
    "status from a remembered mark": _without(STOPS_AND_USERS, "I10", status_from_row=False),
    "nothing is doomed": _without(SWALLOWED, "I4", "I6", "I17", dooms=False),
    "no reconciliation": _without(LOST_REPLIES, "I8", reconciles=False),
    "claim without status": _without(USERS, "I7", "I10", claim_checks_status=False),
    "final report after a lost one": _without(FAILOVER_OF_STEPS, "I6", final_is_redone_after_failover=False),
    "no stage, takeover keeps the fence": _without(TAKEOVER, "I2", guards_stage=False, takeover_draws_fence=False),
}

COVERED = {
    "no stage": _without(STOPS_AND_TAKEOVER, guards_stage=False),
    "takeover keeps the fence": _without(STOPS_AND_TAKEOVER, takeover_draws_fence=False),
}
"""What breaks nothing by itself, since the other guard of the two holds: without both, I2 breaks."""
