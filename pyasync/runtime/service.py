"""A service: a named thread around `tick`. The loop, backoff on errors and start/stop are written here, once."""

from __future__ import annotations

import logging
import random
import threading

log = logging.getLogger("pyasync.runtime")

FIRST_BACKOFF = 0.05

LASTING = 5
"""Failures in a row that a person should look at."""


class Service:
    """Calls `tick` until it is stopped; `wake` makes the next call come at once."""

    name = "service"
    longest_backoff = 2.0
    """Seconds between two rounds that fail, at most."""

    def __init__(self) -> None:
        self._awake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._failures = 0

    def tick(self) -> float:
        """Do one round; return in how many seconds the next one is due."""
        raise NotImplementedError

    @property
    def failing(self) -> bool:
        """Whether its last round failed."""
        return self._failures > 0

    def start(self) -> None:
        """Start the thread; starting twice does nothing."""
        if self._thread is None:
            thread = threading.Thread(target=self._loop, name=f"pyasync-{self.name}", daemon=True)
            thread.start()
            self._thread = thread  # not before: one that could not be had cannot be joined

    def stop(self, timeout: float | None = None) -> bool:
        """Stop after the round under way; False if it does not end in time. Stopping twice does nothing."""
        self._stopping.set()
        self.wake()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def wake(self) -> None:
        """Make the next round begin at once."""
        if not self._awake.is_set():
            self._awake.set()

    def pause(self, seconds: float) -> None:
        """Wait for the next round, or until woken."""
        self._awake.wait(seconds)

    def run_once(self) -> float:
        """Do one round, meeting errors with a wait that grows; return in how many seconds the next one is due."""
        try:
            delay = self.tick()
        except Exception:
            self._failures += 1
            self._log_failure()
            return min(self.longest_backoff, FIRST_BACKOFF * 2.0 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)
        if self._failures >= LASTING:
            log.warning("rounds succeed again", extra={"service": self.name, "failures": self._failures})
        self._failures = 0
        return delay

    def _log_failure(self) -> None:
        """Log the first failure, and that it lasts: a database that is away for an hour must not fill the log."""
        facts = {"service": self.name, "failures": self._failures}
        if self._failures == 1:
            log.warning("a round failed; it is tried again", exc_info=True, extra=facts)
        elif self._failures == LASTING:
            log.error("rounds go on failing; they are tried again, and not logged again", exc_info=True, extra=facts)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._awake.clear()
            delay = self.run_once()
            if delay > 0 and not self._stopping.is_set():
                self.pause(delay)
