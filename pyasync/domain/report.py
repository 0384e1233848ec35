"""What a running task may yield, and how a run ends."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, Final


class Keep(Enum):
    """The type of `KEEP`."""

    KEEP = "keep"

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = Keep.KEEP
"""Leave the context as it is."""


class Phase(StrEnum):
    """What a report says about the task."""

    NORMAL = "normal"
    """It goes on."""
    FINISHED = "finished"
    """It has ended well."""
    FAILED = "failed"
    """It has ended badly, and is not tried again."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a running task tells the world; its context is what the task goes on from, wherever it runs next.

    `progress` is 0 to 1. `message` is for people; of a FAILED report it is the error. What is None stays as it was.
    `delete` removes the row when the task ends.
    """

    context: Any = KEEP
    phase: Phase = Phase.NORMAL
    delete: bool = False
    progress: float | None = None
    message: str | None = None
    result: Any = None

    def __post_init__(self) -> None:
        if type(self.phase) is not Phase:  # its word will do, and what is none fails where it is written
            object.__setattr__(self, "phase", Phase(self.phase))


def Finished(result: Any = None, context: Any = KEEP, delete: bool = False) -> Report:
    """Say that the task has ended well, with its result."""
    return Report(context, Phase.FINISHED, delete, None, None, result)


def Failed(error: object, context: Any = KEEP, delete: bool = False) -> Report:
    """Say that the task has failed and is not to be tried again."""
    return Report(context, Phase.FAILED, delete, None, str(error), None)


def as_report(value: Any) -> Report:
    """Return what was yielded as a Report: a bare value is the context of a NORMAL one, a bare `yield` keeps it."""
    if isinstance(value, Report):
        return value
    return Report() if value is None else Report(value)
