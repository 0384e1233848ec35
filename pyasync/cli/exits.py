"""How a command ends: its exit code, and the one line that says why."""

from __future__ import annotations

from enum import IntEnum

from pyasync.errors import (
    BadArgument,
    ContextNotSerializable,
    ContextTooLarge,
    DatabaseUnavailable,
    InvalidTransition,
    KeyTaken,
    NameTooLong,
    PyasyncError,
    SchemaOutdated,
    SettingInvalid,
    TaskNotFound,
    TypeNotRegistered,
)


class Exit(IntEnum):
    """The exit codes."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    """The command line, the settings, or what could not be imported."""
    DATABASE = 3
    """It cannot be reached, or its tables are not of this version."""
    REFUSED = 4
    """There is no such task, or its status does not allow this."""
    INTERRUPTED = 130


class Ended(Exception):
    """End the command with a message on stderr and an exit code."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


_CODES: dict[type[PyasyncError], Exit] = {
    BadArgument: Exit.USAGE,
    SettingInvalid: Exit.USAGE,
    NameTooLong: Exit.USAGE,
    ContextNotSerializable: Exit.USAGE,
    ContextTooLarge: Exit.USAGE,
    DatabaseUnavailable: Exit.DATABASE,
    SchemaOutdated: Exit.DATABASE,
    TaskNotFound: Exit.REFUSED,
    InvalidTransition: Exit.REFUSED,
    KeyTaken: Exit.REFUSED,
    TypeNotRegistered: Exit.REFUSED,
}


def code_of(error: PyasyncError) -> Exit:
    """Return the exit code for an error of pyasync's."""
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), Exit.FAILURE)
