"""What is kept on a task's row about its errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

KEPT = 20
MESSAGE_LIMIT = 4_000
TRACEBACK_LIMIT = 8_000

CANCELLED = "cancelled"
TIMEOUT = "timeout"
CRASH_LOOP = "crash loop"
NODE_LOST = "node lost"
ERROR = "error"


def failure(
    kind: str,
    message: str,
    *,
    attempt: int,
    node: str | None = None,
    time: str | None = None,
    traceback: str | None = None,
) -> dict[str, Any]:
    """Describe a failed attempt. `time` is ISO 8601; long texts keep their end, where the reason stands."""
    entry = {
        "kind": kind,
        "message": _printable(message)[:MESSAGE_LIMIT],
        "attempt": attempt,
        "node": node,
        "time": time,
    }
    if traceback:
        entry["traceback"] = _printable(traceback)[-TRACEBACK_LIMIT:]
    return entry


def appended(errors: Sequence[dict[str, Any]], entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the errors with one more, the last twenty."""
    return [*errors, entry][-KEPT:]


def _printable(text: str) -> str:
    """Make a text that every database stores: no NUL, no lone surrogates."""
    return text.replace("\0", "\\0").encode("utf-8", "replace").decode()
