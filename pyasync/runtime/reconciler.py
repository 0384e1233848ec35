"""Compares what the database says this node runs with what it knows: no row may be owned by a node that has forgotten
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from pyasync.runtime.runs import Execution, Runs

PATIENCE = 2
"""Beats in a row after which a difference counts: claims and ends are on their way at any moment."""


class Reconciler:
    """Counts for how many beats a difference has lasted."""

    def __init__(self) -> None:
        self._strays: dict[tuple[UUID, UUID], int] = {}

    def compare(self, owned: Mapping[UUID, UUID], runs: Runs) -> tuple[list[tuple[UUID, UUID]], list[Execution]]:
        """Return the rows (task, fence) that memory does not know, and the runs that the database does not know."""
        before, self._strays = self._strays, {}
        for row in owned.items():
            run = runs.find(*row)
            if run is None or run.ended:  # as far as we know; its thread may go on
                self._strays[row] = before.get(row, 0) + 1
        vanished = [execution for execution in runs if self._vanished(execution, owned)]
        return [row for row, beats in self._strays.items() if beats >= PATIENCE], vanished

    @staticmethod
    def _vanished(execution: Execution, owned: Mapping[UUID, UUID]) -> bool:
        if execution.ended or owned.get(execution.claim.task_id) == execution.claim.fence:
            execution.misses = 0
            return False
        execution.misses += 1
        return execution.misses >= PATIENCE
