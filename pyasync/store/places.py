"""So many at once, first come, first served."""

from __future__ import annotations

import threading
from collections import deque


class Places:
    """A semaphore that is fair: who comes again at once does not overtake who waits.

    With `threading.Semaphore`, one thread that works in a loop kept all others waiting for ever.
    """

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiting: deque[threading.Lock] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        """Take a place, when it is our turn."""
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()
        except BaseException:
            self._give_up(turn)
            raise

    def __exit__(self, *_: object) -> None:
        """Hand the place over to who has waited for the longest."""
        with self._lock:
            self._hand_over()

    def _give_up(self, turn: threading.Lock) -> None:
        with self._lock:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:
                self._hand_over()

    def _hand_over(self) -> None:
        if self._waiting:
            self._waiting.popleft().release()
        else:
            self._free += 1
