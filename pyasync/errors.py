"""Every error pyasync raises, in one tree: each carries its facts as attributes and says what to do next.

PyasyncError
├── BadArgument (ValueError)             a value that cannot be right: naive datetime, negative delay, bad name
├── SettingInvalid (ValueError)          a setting that does not exist, or a value it cannot have
├── NameTooLong (ValueError)             user, group, type or key above its limit of bytes
├── ContextNotSerializable (ValueError)  a context, result or argument that is not strict JSON
├── ContextTooLarge                      the same, above its limit of bytes
├── ContextNotReadable                   a stored context that the code at hand cannot decode
├── NotInitialized                       a module-level verb before `init`
├── AlreadyInitialized                   `init` twice without `stop`
├── NodeStopped                          the node or client has been stopped
├── ForkedProcess                        a node or client used by a child process that inherited it
├── BlockingCall                         a blocking verb in a thread whose event loop runs
├── TypeAlreadyRegistered                two implementations for one type
├── TypeNotRegistered                    a type that no node of this system has registered
├── TaskNotFound (LookupError)           no such task, or another user's
├── InvalidTransition                    the task's status does not allow this
├── KeyTaken                             another live task of this user and type has the key
├── TaskFailed                           raised by `result`: the task ended without one
│   └── TaskCancelled                    ... because somebody cancelled it
├── ClaimLost                            the task is no longer this run's to write
├── TransactionDoomed                    a statement failed inside `work`, and `work` hid it
├── DatabaseUnavailable                  the database did not answer
└── SchemaOutdated                       the tables do not match this version of pyasync

TaskSignal                               raised by a task to say how it ends; no error of pyasync's
├── RetryLater                           give the slot back and try again, without using an attempt
└── NoRetry                              fail now, whatever attempts are left
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID


class PyasyncError(Exception):
    """Catch everything that pyasync raises.

    `args` are the arguments of the constructor, which is what makes every error picklable; the message is built
    from the attributes when it is asked for.
    """


class BadArgument(PyasyncError, ValueError):
    """Tell that an argument cannot be right; nothing was written. `reason` names the argument and the cure."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SettingInvalid(PyasyncError, ValueError):
    """Tell that setting `name` does not exist (`nearest` is the likely one) or cannot have the value it was given."""

    def __init__(self, name: str, reason: str, nearest: str | None = None) -> None:
        super().__init__(name, reason, nearest)
        self.name = name
        self.reason = reason
        self.nearest = nearest

    def __str__(self) -> str:
        hint = f"; did you mean {self.nearest!r}?" if self.nearest else ""
        return f"Setting {self.name!r}: {self.reason}{hint}"


class NameTooLong(PyasyncError, ValueError):
    """Tell that `field` has `size` bytes of UTF-8 where `limit` are allowed; nothing was written."""

    def __init__(self, field: str, size: int, limit: int) -> None:
        super().__init__(field, size, limit)
        self.field = field
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"{self.field} has {self.size} bytes of UTF-8, {self.limit} are allowed; "
            "shorten it, or keep the long form in the arguments and a digest of it here."
        )


class ContextNotSerializable(PyasyncError, ValueError):
    """Tell that the value at `path` (such as `$.rows[3]`) is not strict JSON; nothing was written."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        where = f" at {self.path}" if self.path else ""
        return (
            f"Not strict JSON{where}: {self.reason}. Use dict (with text keys), list, str, int, finite float, bool "
            "and None, or register the type with a context_type."
        )


class ContextTooLarge(PyasyncError):
    """Tell that `what` needs at least `size` bytes as JSON where `limit` are allowed; nothing was written."""

    def __init__(self, size: int, limit: int, what: str = "context") -> None:
        super().__init__(size, limit, what)
        self.size = size
        self.limit = limit
        self.what = what

    def __str__(self) -> str:
        return (
            f"The {self.what} needs at least {self.size} bytes as JSON, {self.limit} are allowed; keep the data "
            "elsewhere and a reference to it here, or raise the setting max_context_bytes."
        )


class ContextNotReadable(PyasyncError):
    """Tell that the code at hand cannot decode the stored context of `task_id`; the row is unchanged."""

    def __init__(self, type: str, task_id: UUID | None, reason: str) -> None:
        super().__init__(type, task_id, reason)
        self.type = type
        self.task_id = task_id
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"The context of {_named(self.task_id)} of type {self.type!r} cannot be read: {self.reason}. "
            "Register the type with an `upgrade` from its version, or let a node that knows the context run it."
        )


class NotInitialized(PyasyncError):
    """Tell that a module-level verb was called before `init`, or `current_run` outside of a task."""

    def __init__(self, reason: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        if self.reason is not None:
            return self.reason
        return "pyasync is not initialized in this process; call pyasync.init(database) first, or use a Client."


class AlreadyInitialized(PyasyncError):
    """Tell that `init` was called twice."""

    def __str__(self) -> str:
        return "pyasync is initialized already in this process; call pyasync.stop() first, or use Node for a second."


class NodeStopped(PyasyncError):
    """Tell that the node or client was stopped, so that it answers no more."""

    def __str__(self) -> str:
        return "This node or client has been stopped; make a new one, or call the verb before it stops."


class ForkedProcess(PyasyncError):
    """Tell that a child process used a node or client that its parent had made."""

    def __str__(self) -> str:
        return (
            "This process was forked after pyasync was initialized and must not share its parent's connections; "
            "call init (or make the Client) in the child, for instance in gunicorn's post_fork hook."
        )


class BlockingCall(PyasyncError):
    """Tell that the blocking `verb` was called in a thread whose event loop runs; `twin` is the one to await."""

    def __init__(self, verb: str) -> None:
        super().__init__(verb)
        self.verb = verb
        self.twin = f"pyasync.aio.{verb}"

    def __str__(self) -> str:
        return (
            f"{self.verb}() would block the event loop that runs in this thread; use `await {self.twin}(...)` "
            f"(of an AsyncClient: `await client.{self.verb}(...)`)."
        )


class TypeAlreadyRegistered(PyasyncError):
    """Tell that `type` has an implementation already."""

    def __init__(self, type: str) -> None:
        super().__init__(type)
        self.type = type

    def __str__(self) -> str:
        return f"Task type {self.type!r} is registered already; choose another name, or use a Registry of its own."


class TypeNotRegistered(PyasyncError):
    """Tell that no node of this system has ever registered `type`; nothing was written."""

    def __init__(self, type: str) -> None:
        super().__init__(type)
        self.type = type

    def __str__(self) -> str:
        return (
            f"Task type {self.type!r} is not registered by any node of this system; check its spelling, start a node "
            "that registers it, or create with the setting strict=False."
        )


class TaskNotFound(PyasyncError, LookupError):
    """Tell that there is no task `task_id`, or that it is another user's, deleted or being deleted."""

    def __init__(self, task_id: UUID) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return (
            f"{_named(self.task_id)} is not found: it does not exist, is another user's, or is deleted. "
            "get_task(id, include_deleting=True) shows one that is still being deleted."
        )


class InvalidTransition(PyasyncError):
    """Tell that `status`, a (stage, mark), does not allow `event`; nothing was changed. `task_id` may be None."""

    def __init__(self, task_id: UUID | None, stage: str, mark: str, event: str) -> None:
        super().__init__(task_id, stage, mark, event)
        self.task_id = task_id
        self.status = (stage, mark)
        self.event = event

    def __str__(self) -> str:
        stage, mark = self.status
        return f"{_named(self.task_id)} is ({stage}, {mark}), which does not allow {self.event}. {_advice(self.event)}"


class KeyTaken(PyasyncError):
    """Tell that `holder_id`, a task of the same user and type, holds `key`, so that `task_id` cannot have it."""

    def __init__(self, task_id: UUID | None, key: str, holder_id: UUID | None) -> None:
        super().__init__(task_id, key, holder_id)
        self.task_id = task_id
        self.key = key
        self.holder_id = holder_id

    def __str__(self) -> str:
        return (
            f"{_named(self.task_id)} cannot have the key {self.key!r}: {_named(self.holder_id).lower()} of the same "
            "user and type holds it; wait until that one has ended, or cancel or delete it."
        )


class TaskFailed(PyasyncError):
    """Tell that the task ended without a result: its last `error`, the error's `kind`, and all `errors` kept."""

    def __init__(
        self,
        task_id: UUID,
        error: str,
        kind: str | None = None,
        errors: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        kept = list(errors or [])
        super().__init__(task_id, error, kind, kept)
        self.task_id = task_id
        self.error = error
        self.kind = kind
        self.errors = kept

    def __str__(self) -> str:
        kind = f" ({self.kind})" if self.kind else ""
        return f"{_named(self.task_id)} failed{kind}: {self.error}. run_task(id) tries it again from its last context."


class TaskCancelled(TaskFailed):
    """Tell that the task has no result because it was cancelled."""

    def __str__(self) -> str:
        return f"{_named(self.task_id)} was cancelled: {self.error}. run_task(id) goes on from its last context."


class ClaimLost(PyasyncError):
    """Tell that `task_id` is no longer this run's to write; what it wanted to write was refused."""

    def __init__(self, task_id: UUID) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return (
            f"{_named(self.task_id)} is no longer this run's: it was taken over, released or deleted. Nothing was "
            "written; let this run end, the task goes on from its last committed context."
        )


class TransactionDoomed(PyasyncError):
    """Tell that a statement failed inside `work` and was not reported; the transaction was rolled back."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return (
            f"A statement failed inside work and work went on: {self.cause}. Nothing was committed; let the error "
            "out of work, or try such a statement inside connection.begin_nested()."
        )


class DatabaseUnavailable(PyasyncError):
    """Tell that the database at `url` (its password removed) did not answer; `reason` is the driver's."""

    def __init__(self, url: str, reason: str) -> None:
        url, reason = _without_password(url), _without_password(reason)
        super().__init__(url, reason)
        self.url = url
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"The database {self.url} did not answer: {self.reason}. Check that it runs, that this host reaches it, "
            "and the user, the password and the name of the database in the URL."
        )


class SchemaOutdated(PyasyncError):
    """Tell that the tables have version `found` (None: there are none) where this pyasync needs `expected`."""

    def __init__(self, found: str | int | None, expected: str | int) -> None:
        super().__init__(found, expected)
        self.found = found
        self.expected = expected

    def __str__(self) -> str:
        found = "there are no pyasync tables" if self.found is None else f"the tables have version {self.found}"
        return (
            f"In this database {found}, and this pyasync needs version {self.expected}. Run `pyasync migrate` against "
            "it (or use migrate='auto'); where the tables are newer, upgrade pyasync instead."
        )


class TaskSignal(Exception):
    """Share a base among what a task raises to say how its attempt ends."""


class RetryLater(TaskSignal):
    """Give the slot back and run the task again after `delay` seconds; no attempt is used and no error is kept.

    Raises BadArgument when `delay` is negative or not finite.
    """

    def __init__(self, delay: float) -> None:
        if isinstance(delay, bool) or not isinstance(delay, (int, float)) or not 0 <= delay < math.inf:
            raise BadArgument(f"RetryLater takes seconds from 0 up, not {delay!r}")
        super().__init__(delay)
        self.delay = float(delay)

    def __str__(self) -> str:
        return f"The task asks to be run again in {self.delay:g} s."


class NoRetry(TaskSignal):
    """Fail the task now, with this error, whatever attempts are left."""

    def __init__(self, error: str | BaseException) -> None:
        # Kept as text: an exception may hold what cannot be pickled, and text is what the row keeps.
        text = error if isinstance(error, str) else str(error) or type(error).__name__
        super().__init__(text)
        self.error = text


def _named(task_id: UUID | None) -> str:
    return "The task" if task_id is None else f"Task {task_id}"


def _advice(event: str) -> str:
    match event:
        case "user_run":
            return "Only a task that is new, paused or failed can be run; create a finished one anew."
        case "user_pause" | "user_cancel":
            return "Only a task that has neither ended nor been deleted can be paused or cancelled; see get_task(id)."
        case _:
            return "Somebody else changed it in between; look at it with get_task(id) before you try again."


def _without_password(text: str) -> str:
    # Greedy up to the last @, for a password that holds an @ or a / itself.
    text = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"((?:password|passwd|pwd)=)[^&\s]+", r"\1***", text, flags=re.IGNORECASE)
