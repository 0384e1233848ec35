"""How long to wait before a task is tried again: a list of waits, or a `Backoff` that grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from pyasync.domain.contents import JSON
from pyasync.errors import BadArgument

MAX_RETRIES = 10_000  # nobody means more, and a list of waits is a column of every row
MAX_WAIT = 100 * 366 * 86_400.0  # seconds: a century, so that no date overflows


@dataclass(frozen=True)
class Backoff:
    """Wait `first` seconds before the first retry and `factor` times longer before each next, up to `limit` seconds.

    `attempts` counts the retries. A wait is shortened by up to the fraction `jitter` of it, at random, so that tasks
    that failed together do not come back together. Raises BadArgument.
    """

    first: float = 1.0
    factor: float = 2.0
    limit: float = 3600.0
    attempts: int = 5
    jitter: float = 0.1

    def __post_init__(self) -> None:
        _require("first", self.first, 0, MAX_WAIT)
        _require("factor", self.factor, 1, math.inf)
        _require("limit", self.limit, 0, MAX_WAIT)
        _require("jitter", self.jitter, 0, 1)
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):
            raise BadArgument(f"attempts must be a whole number, not {self.attempts!r}")
        _require("attempts", self.attempts, 0, MAX_RETRIES)

    def delay(self, retry: int, random: float) -> float:
        """Return the seconds to wait before retry number `retry`, counted from 1; `random` is from 0 to 1."""
        try:
            grown = self.first * float(self.factor) ** (retry - 1)
        except OverflowError:
            grown = self.limit if self.first else 0.0
        return min(grown, self.limit) * (1 - self.jitter * random)


@dataclass(frozen=True)
class RetryPolicy:
    """Decide when a task that failed is tried again."""

    waits: Backoff | tuple[float, ...] = ()

    def delay(self, attempt: int, random: float) -> float | None:
        """Return the seconds to wait after failed attempt number `attempt`, counted from 1; None: no retry is left.

        `random`, from 0 to 1, spreads the waits of a Backoff; a list is taken at its word.
        """
        if isinstance(self.waits, Backoff):
            return self.waits.delay(attempt, random) if attempt <= self.waits.attempts else None
        return self.waits[attempt - 1] if attempt <= len(self.waits) else None


def dump_retry(retry: Backoff | Sequence[float] | str | None) -> JSON:
    """Return `retry` as the row keeps it: None, a list of seconds, or the fields of a Backoff.

    A text of seconds with blanks between, "60 600 3600", is a list too. Raises BadArgument.
    """
    if retry is None:
        return None
    return asdict(retry) if isinstance(retry, Backoff) else list(_waits(retry))


def load_retry(stored: JSON) -> RetryPolicy:
    """Return the policy that `dump_retry` wrote; None never retries. Raises BadArgument."""
    match stored:
        case None:
            return RetryPolicy()
        case dict():
            return RetryPolicy(_backoff(stored))
        case _:
            return RetryPolicy(_waits(stored))


def _backoff(stored: dict[str, Any]) -> Backoff:
    unknown = stored.keys() - {each.name for each in fields(Backoff)}
    if unknown:
        raise BadArgument(f"retry has no {', '.join(map(repr, sorted(unknown)))}")
    return Backoff(**stored)


def _waits(retry: object) -> tuple[float, ...]:
    entries = retry.split() if isinstance(retry, str) else retry
    if isinstance(entries, bytes) or not isinstance(entries, Sequence):
        raise BadArgument(f"retry must be a list of seconds, a Backoff or None, not {retry!r}")
    if len(entries) > MAX_RETRIES:
        raise BadArgument(f"retry has {len(entries)} entries, {MAX_RETRIES} are allowed; use a Backoff")
    return tuple(_wait(entry) for entry in entries)


def _wait(entry: object) -> float:
    if isinstance(entry, str):
        try:
            entry = float(entry)
        except ValueError:
            raise BadArgument(f"retry: {entry!r} is not a number of seconds") from None
    _require("each entry of retry", entry, 0, MAX_WAIT)
    return float(entry)  # type: ignore[arg-type]  # a number by now


def _require(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadArgument(f"{name} must be a number, not {value!r}")
    if not low <= value <= high or not math.isfinite(value):
        limits = f"from {low:g} up" if high == math.inf else f"from {low:g} to {high:g}"
        raise BadArgument(f"{name} must be {limits}, not {value!r}")
