"""A node's right to be believed alive: what the node may trust of it, and when an observer may call the node lost."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pyasync.errors import BadArgument

BEATS_PER_LEASE = 3
_READS_TO_JUDGE = 3  # two would let one slow beat look like none
_LONGEST_GAP = 0.5  # of a lease; a pause of the observer is no silence of the observed


@dataclass(frozen=True)
class Lease:
    """Hold a lease of `duration` seconds, of which the node does not trust the last `margin`.

    `margin` None means a fifth of the duration but at least a second, and at most half of the duration.
    Raises BadArgument.
    """

    duration: float
    margin: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.duration < float("inf"):
            raise BadArgument(f"a lease must be longer than 0 seconds and finite, not {self.duration!r}")
        if self.margin is not None and not 0 <= self.margin < self.duration:
            raise BadArgument(f"the margin of a lease must be from 0 to below {self.duration}, not {self.margin!r}")

    @property
    def beat_interval(self) -> float:
        """Seconds between two beats."""
        return self.duration / BEATS_PER_LEASE

    def trusted_until(self, sent_at: float) -> float:
        """Return when the node stops to trust its lease; `sent_at` is just before its last successful beat was sent.

        Both are seconds of the node's boot-time clock, which goes on while the machine sleeps.
        """
        return sent_at + self.duration - self._margin()

    def _margin(self) -> float:
        if self.margin is not None:
            return self.margin
        return min(max(1.0, 0.2 * self.duration), self.duration / 2)


@dataclass(frozen=True)
class Observation:
    """Hold what an observer knows of another node: its `counter`, read unchanged `reads` times from `first` to `last`.

    The times are seconds of the observer's own monotonic clock; no other clock takes part.
    """

    counter: int
    first: float
    last: float
    reads: int = 1

    def observe(self, counter: int, now: float, lease: float) -> Observation:
        """Return what is known after `counter` was read at `now` of a node whose own lease is `lease` seconds."""
        gap = now - self.last
        if counter != self.counter or not 0 <= gap <= _LONGEST_GAP * lease:
            return Observation(counter, now, now)
        return replace(self, last=now, reads=self.reads + 1)

    def lost(self, lease: float) -> bool:
        """Tell whether the node was silent for long enough to be declared lost, by compare-and-set on `counter`."""
        return self.reads >= _READS_TO_JUDGE and self.last - self.first >= lease
