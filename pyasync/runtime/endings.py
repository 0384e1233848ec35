"""What a run's end means for its task: pure rules, from what happened to the write that says so."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pyasync.context import TIMEOUT
from pyasync.domain import failures
from pyasync.domain.backoff import load_retry
from pyasync.domain.contents import decode, encode
from pyasync.domain.failures import appended, failure
from pyasync.domain.report import KEEP, Phase, Report
from pyasync.domain.states import Event
from pyasync.errors import BadArgument, NoRetry, RetryLater
from pyasync.runtime.runs import Execution
from pyasync.settings import Settings
from pyasync.store.writes import Write, dump_errors

MESSAGE_LIMIT = 10_000


@dataclass(frozen=True)
class Stopped:
    """It ended since it was asked to stop."""


@dataclass(frozen=True)
class Returned:
    """Its generator ended without a final report."""


@dataclass(frozen=True)
class Unreadable:
    """Its context cannot be read by this node's code; another node's may."""

    reason: str


@dataclass(frozen=True)
class Raised:
    """User code raised."""

    error: BaseException


Outcome = Report | Stopped | Returned | Unreadable | Raised

UNREADABLE_DELAY = 5.0
"""Seconds for which a task that this node cannot read is left to others."""


@dataclass(frozen=True)
class Endings:
    """Turns reports and outcomes into writes. `now` gives the wall clock, which people read; `random` is 0 to 1."""

    settings: Settings
    now: Any
    random: Any

    def report(self, execution: Execution, report: Report) -> Write:
        """Return the write of a NORMAL report, or of a final one. Raises BadArgument and what `encode` raises."""
        write = Write(execution.claim, message=_message(report.message), progress=_progress(report.progress))
        if report.context is not KEEP:
            write.context = self._json(execution.task_type.codec.dump(report.context), "context")
            write.version = execution.task_type.version
        if report.phase is Phase.FINISHED:
            write.event = Event.TASK_FINISHED
            write.result = self._json(report.result, "result")
            write.removes = report.delete
        elif report.phase is Phase.FAILED:
            write.event = Event.TASK_FAILED
            entry = self._entry(execution, failures.ERROR, report.message or "failed")
            write.errors = dump_errors(appended(self._kept(execution), entry))
            write.message = None
            write.removes = report.delete
        elif report.result is not None:
            write.result = self._json(report.result, "result")
        if write.event is not None and execution.stage.value == "deleting" and report.phase is Phase.FINISHED:
            write.removes = True
        return write

    def ending(self, execution: Execution, outcome: Outcome) -> Write:
        """Return the write that ends a run."""
        timed_out = execution.stop.reason == TIMEOUT
        match outcome:
            case Report():
                return self._final(execution, outcome)
            case Raised(error):
                return self._raised(execution, error)
            case Unreadable(reason):
                return self._unreadable(execution, reason)
            case Stopped() if timed_out:
                return self._failed(execution, failures.TIMEOUT, "ran longer than its timeout allows")
            case Stopped():
                return self._paused(execution)
            case Returned() if timed_out or execution.stop.is_set():
                return self.ending(execution, Stopped())
            case Returned():
                return self._final(execution, Report(phase=Phase.FINISHED))

    def _final(self, execution: Execution, report: Report) -> Write:
        try:
            return self.report(execution, report)
        except Exception as error:
            return self._raised(execution, error)

    def _raised(self, execution: Execution, error: BaseException) -> Write:
        if isinstance(error, RetryLater):
            return self._retry(execution, error.delay)
        message, text = _described(error)
        return self._failed(execution, failures.ERROR, message, text, retry=not isinstance(error, NoRetry))

    def _failed(
        self, execution: Execution, kind: str, message: str, text: str | None = None, *, retry: bool = True
    ) -> Write:
        attempt = execution.row.attempt
        delay = self._retry_delay(execution, attempt) if retry else None
        errors = appended(self._kept(execution), self._entry(execution, kind, message, text))
        if delay is None:
            return Write(execution.claim, Event.TASK_FAILED, errors=dump_errors(errors))
        write = self._retry(execution, delay, errors)
        write.attempt = attempt + 1
        return write

    def _retry(self, execution: Execution, delay: float, errors: Sequence[dict[str, Any]] | None = None) -> Write:
        """Return the write that gives a task back until later; if it was cancelled meanwhile, that is its end."""
        write = Write(execution.claim, Event.SYS_RETRY, delay=delay, attempt=execution.row.attempt)
        write.cancelled = self._cancelled(execution, self._kept(execution) if errors is None else errors)
        write.errors = None if errors is None else dump_errors(errors)
        return write

    def _retry_delay(self, execution: Execution, attempt: int) -> float | None:
        stored = execution.row.retry
        policy = execution.task_type.retry if stored is None else load_retry(decode(stored))
        return policy.delay(attempt, self.random())

    def _paused(self, execution: Execution) -> Write:
        cancelled = self._cancelled(execution, self._kept(execution))
        return Write(execution.claim, Event.SYS_PAUSE, cancelled=cancelled)

    def _unreadable(self, execution: Execution, reason: str) -> Write:
        note = f"node {self.settings.name} let go of it: {reason}"
        write = self._retry(execution, UNREADABLE_DELAY * (1.0 + self.random()))
        write.note = note
        return write

    def _cancelled(self, execution: Execution, errors: Sequence[dict[str, Any]]) -> str:
        return dump_errors(appended(errors, self._entry(execution, failures.CANCELLED, "cancelled by a user")))

    def _kept(self, execution: Execution) -> list[dict[str, Any]]:
        return decode(execution.row.errors) if execution.row.errors else []

    def _entry(self, execution: Execution, kind: str, message: str, text: str | None = None) -> dict[str, Any]:
        return failure(
            kind,
            message,
            attempt=execution.row.attempt,
            node=self.settings.name,
            time=self.now().astimezone(UTC).isoformat(timespec="milliseconds"),
            traceback=text,
        )

    def _json(self, value: Any, what: str) -> str:
        return encode(value, limit=self.settings.max_context_bytes, max_depth=self.settings.max_depth, what=what)


def wall_clock() -> datetime:
    """Return the time that people read."""
    return datetime.now(UTC)


def _described(error: BaseException) -> tuple[str, str | None]:
    """Return an exception's message and traceback; even of one whose own text cannot be had."""
    try:
        text = "".join(traceback.format_exception(error, limit=-20))
        return str(error) if isinstance(error, NoRetry) else f"{type(error).__name__}: {error}", text
    except Exception as second:
        return f"{type(error).__name__}, whose own text cannot be had: {type(second).__name__}", None


def _message(message: str | None) -> str | None:
    if message is None:
        return None
    if not isinstance(message, str):
        raise BadArgument(f"a report's message is a text, not {type(message).__name__}")
    return message.replace("\0", "").encode("utf-8", "replace").decode()[:MESSAGE_LIMIT]


def _progress(progress: float | None) -> float | None:
    if progress is None:
        return None
    if isinstance(progress, bool) or not isinstance(progress, int | float) or not 0.0 <= progress <= 1.0:
        raise BadArgument(f"a report's progress is a number from 0 to 1, not {progress!r}")
    return float(progress)
