"""Logs on stderr, each with its facts: `12:00:01 WARNING tasks were taken over lost_node=beta tasks=4`."""

from __future__ import annotations

import logging
import os
import sys

from pyasync.cli.exits import Ended, Exit
from pyasync.cli.terminal import safe, safe_lines

LEVELS = ("debug", "info", "warning", "error")
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _WithFacts(logging.Formatter):
    """Ends a line with what `extra` holds; what comes from rows cannot steer the terminal."""

    default_msec_format = "%s.%03d"

    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {name}={value}" for name, value in vars(record).items() if name not in _OWN)
        time, level = self.formatTime(record, "%H:%M:%S"), record.levelname
        lines = [safe(f"{time} {level:7} {record.getMessage()}{facts}")]
        if record.exc_info:
            lines += safe_lines(self.formatException(record.exc_info))
        return "\n    ".join(lines)


def to_stderr(level: str | None, default: str) -> None:
    """Log to stderr from a level on: what the flag says, or else `PYASYNC_LOG_LEVEL`.

    Who has set up logging already, as a host that calls `main` may, is left alone.
    """
    chosen = (level or os.environ.get("PYASYNC_LOG_LEVEL") or default).lower()
    if chosen not in LEVELS:
        raise Ended(Exit.USAGE, f"no log level {chosen!r}: there are {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_WithFacts())
    logging.basicConfig(level=chosen.upper(), handlers=[handler])
