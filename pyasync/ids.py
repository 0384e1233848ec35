"""Make ids: `new_id` for what must sort by creation, `new_fence` for what must never be guessed or repeated."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from struct import Struct
from uuid import UUID, uuid4

_WORDS = Struct("512Q")  # 4 KiB of randomness in one system call
_VERSION_7 = 7 << 76
_VARIANT_RFC = 0b10 << 62
_RANDOM_62 = (1 << 62) - 1


class Ids:
    """Make UUIDv7 (RFC 9562) that strictly increase, whatever the clock does; threads may share one.

    `clock` tells nanoseconds since 1970; `random` gives that many random bytes.
    """

    def __init__(self, clock: Callable[[], int] = time.time_ns, random: Callable[[int], bytes] = os.urandom) -> None:
        self._clock = clock
        self._random = random
        self._stamp = 0
        self.start_over()

    def start_over(self) -> None:
        """Drop what a forked child shares with its parent: the random words, and a lock that nobody will release."""
        self._lock = threading.Lock()
        self._words: list[int] = []

    def __call__(self) -> UUID:
        """Return an id above every one before it."""
        with self._lock:
            stamp = self._next_stamp()
            random = self._next_word() & _RANDOM_62
        return UUID(int=stamp >> 12 << 80 | _VERSION_7 | (stamp & 0xFFF) << 64 | _VARIANT_RFC | random)

    def _next_stamp(self) -> int:
        # Milliseconds, and 1/4096ths of one, in one number (RFC 9562, 6.2, method 3). A clock that stands still or
        # steps back is outrun by one such fraction per id, 0.25 us, which is less than it takes to make the id.
        stamp = (self._clock() << 12) // 1_000_000
        self._stamp = stamp if stamp > self._stamp else self._stamp + 1
        return self._stamp

    def _next_word(self) -> int:
        if not self._words:
            self._words.extend(_WORDS.unpack(self._random(_WORDS.size)))
        return self._words.pop()


# Increasing "within the process" needs one state for the process: the only module-level state here.
_process_ids = Ids()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process_ids.start_over)


def new_id() -> UUID:
    """Return a UUIDv7 above every one that this process made before; safe in threads and after a fork."""
    return _process_ids()


def new_fence() -> UUID:
    """Return a random id, straight from the system's generator, so that no fork or restored snapshot repeats it."""
    return uuid4()
