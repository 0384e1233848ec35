"""How much of a fault test to run: a seeded sample and short forms, or, with --long, every point and the long forms."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Effort:
    """What the options of the test run ask for; see `tests/conftest.py`."""

    seed: int
    long: bool = False
    iterations: int = 1
    duration: float | None = None
    """Seconds."""

    def sample(self, points: Sequence[T], number: int) -> list[T]:
        """Return all points if the run is a long one, else so many of them that the seed chooses, in their order."""
        if self.long or number >= len(points):
            return list(points)
        places = sorted(self.random("sample").sample(range(len(points)), number))
        return [points[place] for place in places]

    def number(self, short: int, long: int) -> int:
        """Return how often to do something, or how much of it."""
        return long * self.iterations if self.long else short

    def rounds(self, short: int, long: int) -> Iterator[int]:
        """Count rounds: so many, or for as long as the run was told to go on."""
        if self.duration is None:
            yield from range(self.number(short, long))
            return
        end, number = time.monotonic() + self.duration, 0
        while not number or time.monotonic() < end:
            yield number
            number += 1

    def random(self, name: str) -> random.Random:
        """Return a generator whose numbers follow from the seed and the name alone."""
        return random.Random(f"{self.seed}/{name}")
