"""Hear that a file was written, from Linux itself (inotify(7)): whoever waits for that need not look at it again and
again."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

_IN_MODIFY = 0x2
_FLAGS = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)


class Watch:
    """Becomes readable when the file is written, by any process of this host; needs no file descriptor of the file
    itself, whose closing would drop SQLite's locks.

    Raises OSError where there is no such thing.
    """

    def __init__(self, path: str) -> None:
        if sys.platform != "linux":
            raise OSError(f"no inotify on {sys.platform}")
        import ctypes  # here, since most systems are on no SQLite, and it takes long to import

        libc = ctypes.CDLL(None, use_errno=True)
        self._fileno: int | None = libc.inotify_init1(_FLAGS)
        if self._fileno < 0 or libc.inotify_add_watch(self._fileno, os.fsencode(path), _IN_MODIFY) < 0:
            error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
            self.close()
            raise error

    def fileno(self) -> int | None:
        """Return the file descriptor to wait for; None once it is closed."""
        return self._fileno

    def was_written(self) -> bool:
        """Whether the file was written since the last call."""
        with suppress(BlockingIOError):
            return self._fileno is not None and bool(os.read(self._fileno, 65536))
        return False

    def close(self) -> None:
        """Stop watching."""
        fileno, self._fileno = self._fileno, None
        if fileno is not None and fileno >= 0:
            os.close(fileno)
