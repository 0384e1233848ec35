"""The guards of the protocol, each of which can be taken out, and how far to look."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ZeroRows(Enum):
    """What a node makes of a write that changed no row."""

    READ_BACK = "read back"
    LOST = "lost"
    IGNORED = "ignored"


@dataclass(frozen=True)
class Protocol:
    """What pyasync does; a mutant is this with a field or two changed."""

    guards_fence: bool = True
    """A write counts only under the fence that its claim drew."""
    guards_seq: bool = True
    """A write counts only right after the report that it follows."""
    guards_stage: bool = True
    """A write counts only while a node owns the task."""
    zero_rows: ZeroRows = ZeroRows.READ_BACK
    random_fence: bool = True
    """A fence is drawn at random; else it is the row's, plus one."""
    takeover_draws_fence: bool = True
    forced_release_draws_fence: bool = True
    status_from_row: bool = True
    """The end of a run makes of the row's own mark what it becomes; else of the mark that the node saw last."""
    dooms: bool = True
    """A transaction in which a statement of the user's failed is not committed."""
    reconciles: bool = True
    """What the database says a node runs is compared with what that node knows."""
    claim_checks_status: bool = True
    """A claim looks at the row's status in the statement that takes it."""
    final_is_redone_after_failover: bool = True
    """A final report that follows a lost one is not stored: the run begins again from the row."""


@dataclass(frozen=True)
class Scope:
    """How many of each kind may happen; the fewer, the sooner everything has been tried."""

    nodes: str = "AB"
    steps: int = 1
    """Reports of the task, each with a checkpoint and an effect."""
    claims: int = 2
    takeovers: int = 1
    cuts: int = 1
    """Replies that are lost, of claims and writes."""
    wishes: int = 0
    """Users' verbs: run, pause, cancel, delete."""
    removals: int = 0
    """Rows that users remove by force, or by hand."""
    failovers: int = 0
    swallowed: int = 0
    """Statements of the user's that fail, and whose error the user's code swallows."""
    releases: int = 0
    """Runs that end before the task has: stopped, failed, or let go of while they may still write."""
    removes: bool = False
    """The task's last report removes its row."""
