"""POSIX locks on files in a folder: the kernel drops them with the process. Each file is made for one lock, once."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyasync.store.link import in_children

try:
    import fcntl
except ImportError:
    AVAILABLE = False  # on Windows: there the lease alone decides
else:
    AVAILABLE = True

ATTEMPTS = 3
"""To lock a new file: another process may look at it at that very moment, and some file systems never let us."""

_NAME = re.compile(r"[0-9a-f]{32}")  # names come from the database: none may lead out of the folder


@dataclass(frozen=True)
class _OwnFile:
    path: Path
    fileno: int


_own: dict[str, _OwnFile | None] = {}
"""The lock files of this process, by name.

A process loses its POSIX lock as soon as it closes *any* descriptor of the file, so it must know its own ones, all of
them, whichever node, connection or path they belong to, and never open them again. A file is in here before it is made.
"""
in_children(_own.clear)  # the locks are not inherited: to a child they are another process's


def take(folder: Path) -> str | None:
    """Make a file and lock it; return its name, or None if that cannot be done here."""
    if not AVAILABLE:
        return None
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        for _ in range(ATTEMPTS):
            name = secrets.token_hex(16)
            if _make(folder / name):
                return name
    return None


def _make(path: Path) -> bool:
    _own[path.name] = None
    try:
        fileno = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError:
        del _own[path.name]
        raise
    _own[path.name] = _OwnFile(path, fileno)
    if _locks(fileno):
        return True
    release(path.name)
    return False


def keeps(name: str) -> bool:
    """Tell whether our file is still there and locked."""
    own = _own.get(name)
    # Somebody who opened and closed the file within this process has dropped the lock: take it again.
    return own is not None and _locks(own.fileno) and _is_there(own)


def _locks(fileno: int) -> bool:
    try:
        fcntl.lockf(fileno, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_there(own: _OwnFile) -> bool:
    try:
        return os.path.samestat(os.stat(own.path), os.fstat(own.fileno))
    except OSError:
        return False


def release(name: str) -> None:
    """Remove our file; does nothing if it is not ours."""
    own = _own.get(name)
    if own is not None:
        with suppress(OSError):
            own.path.unlink()
        os.close(own.fileno)
        del _own[name]


def held(folder: Path, name: str) -> bool | None:
    """Tell whether a living process holds the lock; None if the file is missing or cannot be read."""
    if name in _own:
        return True
    if not AVAILABLE or not _NAME.fullmatch(name):
        return None
    try:
        fileno = os.open(folder / name, os.O_RDONLY)
    except OSError:
        return None
    try:
        # Shared: observers that probe exclusively take each other's probes for the holder.
        fcntl.lockf(fileno, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return None
    finally:
        os.close(fileno)
    return False


def forget(folder: Path, name: str) -> None:
    """Remove the file of a process that is believed dead."""
    if _NAME.fullmatch(name):
        with suppress(OSError):
            (folder / name).unlink()


def sweep(folder: Path, names: Collection[str], age: float) -> int:
    """Remove the files that are older than `age` seconds, not among `names`, and locked by nobody; return how many."""
    orphans = [path.name for path in _files(folder) if path.name not in names and _is_old(path, age)]
    free = [name for name in orphans if held(folder, name) is False]
    for name in free:
        forget(folder, name)
    return len(free)


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except OSError:
        return []


def _is_old(path: Path, age: float) -> bool:
    # A wall clock, but a harmless one: were it wrong, a file that is just being locked would go, which its maker sees.
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > age
    return False
