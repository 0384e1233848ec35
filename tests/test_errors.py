from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from uuid import UUID

import pytest

from pyasync import errors

TASK = UUID("01890000-0000-7000-8000-000000000001")
HOLDER = UUID("01890000-0000-7000-8000-000000000002")

EXAMPLES: list[Exception] = [
    errors.BadArgument("delay must not be negative"),
    errors.SettingInvalid("leese", "there is no such setting", "lease"),
    errors.SettingInvalid("lease", "must be seconds"),
    errors.NameTooLong("user", 300, 255),
    errors.ContextNotSerializable("nan is not a JSON number", "$.a[3]"),
    errors.ContextTooLarge(2000, 1000, "result"),
    errors.ContextNotReadable("report.build", TASK, "version 3 is newer than 2"),
    errors.NotInitialized(),
    errors.AlreadyInitialized(),
    errors.NodeStopped(),
    errors.ForkedProcess(),
    errors.BlockingCall("create_task"),
    errors.TypeAlreadyRegistered("report.build"),
    errors.TypeNotRegistered("report.build"),
    errors.TaskNotFound(TASK),
    errors.InvalidTransition(TASK, "finished", "run", "user_pause"),
    errors.InvalidTransition(None, "finished", "run", "user_run"),
    errors.KeyTaken(TASK, "daily", HOLDER),
    errors.TaskFailed(TASK, "no such file", "FileNotFoundError", [{"attempt": 1}]),
    errors.TaskCancelled(TASK, "cancelled by a user", "cancelled"),
    errors.ClaimLost(TASK),
    errors.TransactionDoomed("duplicate key"),
    errors.DatabaseUnavailable("postgresql://me:secret@db/app", "connection refused"),
    errors.SchemaOutdated("0001", "0002"),
    errors.SchemaOutdated(None, "0002"),
    errors.RetryLater(2.5),
    errors.NoRetry("bad input"),
]


def in_module(base: type[BaseException]) -> set[type[BaseException]]:
    return {each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, base)}


def test_every_error_has_an_example_here() -> None:
    raisable = in_module(BaseException) - {errors.PyasyncError, errors.TaskSignal}

    assert {type(example) for example in EXAMPLES} == raisable


def test_every_error_but_a_signal_is_a_pyasync_error() -> None:
    assert in_module(BaseException) - in_module(errors.TaskSignal) == in_module(errors.PyasyncError)
    assert not issubclass(errors.TaskSignal, errors.PyasyncError)


def test_every_error_is_drawn_in_the_tree() -> None:
    drawn = str(errors.__doc__).split()

    assert [each.__name__ for each in in_module(BaseException) if each.__name__ not in drawn] == []


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_error_survives_copying_and_pickling(error: Exception, clone: Callable[[Exception], Exception]) -> None:
    other = clone(error)

    assert type(other) is type(error)
    assert vars(other) == vars(error)
    assert str(other) == str(error)


@pytest.mark.parametrize("error", [error for error in EXAMPLES if error.args], ids=lambda error: type(error).__name__)
def test_error_takes_its_facts_by_keyword_too(error: Exception) -> None:
    names = inspect.signature(type(error)).parameters

    other = type(error)(**dict(zip(names, error.args, strict=True)))

    assert vars(other) == vars(error)
    assert str(other) == str(error)


@pytest.mark.parametrize(
    "error",
    [error for error in EXAMPLES if TASK in error.args],
    ids=lambda error: type(error).__name__,
)
def test_message_names_the_task(error: Exception) -> None:
    assert str(TASK) in str(error)


def test_invalid_transition_carries_task_status_and_event() -> None:
    error = errors.InvalidTransition(TASK, "finished", "run", "user_pause")

    assert (error.task_id, error.status, error.event) == (TASK, ("finished", "run"), "user_pause")
    assert "(finished, run), which does not allow user_pause" in str(error)


def test_invalid_transition_says_that_a_finished_task_is_created_anew() -> None:
    assert "create a finished one anew" in str(errors.InvalidTransition(TASK, "finished", "run", "user_run"))


def test_database_unavailable_never_shows_the_password() -> None:
    error = errors.DatabaseUnavailable("postgresql://me:se@cr/et@db:5432/app", "cannot reach me:x, password=se@cr/et")

    assert error.url == "postgresql://me:***@db:5432/app"
    assert "se@cr" not in str(error) + repr(error) + error.reason


def test_database_unavailable_hides_a_password_in_the_query_and_in_a_url_inside_the_reason() -> None:
    error = errors.DatabaseUnavailable("mysql://db/app?user=me&password=secret&a=1", "mysql://me:secret@db refused")

    assert error.url == "mysql://db/app?user=me&password=***&a=1"
    assert error.reason == "mysql://me:***@db refused"


def test_database_unavailable_keeps_a_url_without_password() -> None:
    assert errors.DatabaseUnavailable("sqlite:////var/a.db", "disk is full").url == "sqlite:////var/a.db"
    assert errors.DatabaseUnavailable("postgresql://me@db:5432/app", "no").url == "postgresql://me@db:5432/app"


def test_blocking_call_names_the_twin_to_await() -> None:
    error = errors.BlockingCall("create_task")

    assert error.twin == "pyasync.aio.create_task"
    assert "await pyasync.aio.create_task(...)" in str(error)


def test_unknown_setting_is_told_with_the_nearest_name() -> None:
    assert "did you mean 'lease'?" in str(errors.SettingInvalid("leese", "there is no such setting", "lease"))


def test_cancelled_is_caught_as_failed() -> None:
    with pytest.raises(errors.TaskFailed, match="was cancelled"):
        raise errors.TaskCancelled(TASK, "by a user")


@pytest.mark.parametrize("delay", [-0.1, float("nan"), float("inf"), True, "5", None])
def test_retry_later_refuses_what_is_no_delay(delay: object) -> None:
    with pytest.raises(errors.BadArgument, match="seconds from 0 up"):
        errors.RetryLater(delay)  # type: ignore[arg-type]


def test_no_retry_takes_an_exception_and_keeps_its_text() -> None:
    assert errors.NoRetry(ValueError("bad row")).error == "bad row"
    assert errors.NoRetry(KeyboardInterrupt()).error == "KeyboardInterrupt"
