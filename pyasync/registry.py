"""What can run: types of tasks, their implementations and options."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Any, Generic, TypeVar, get_type_hints, overload

from pyasync.domain.backoff import Backoff, RetryPolicy, dump_retry, load_retry
from pyasync.domain.codec import Codec
from pyasync.domain.names import check_name
from pyasync.domain.report import Finished, Report
from pyasync.errors import BadArgument, TypeAlreadyRegistered, TypeNotRegistered

F = TypeVar("F", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type[Any])
Lifespan = Callable[[], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]


class Shape(Enum):
    """How an implementation is called."""

    REPORTS = "reports"
    """`fn(run)` is a generator of reports, sync or async."""
    FUNCTION = "function"
    """`fn(*arguments)` returns the result."""
    HANDLERS = "handlers"
    """A list of functions, each of which takes what the one before returned."""


@dataclass(frozen=True)
class Body:
    """Something that can be run: how it is called, whether on the loop or in a thread, and how to get it for a run."""

    shape: Shape
    is_async: bool
    make: Callable[[], Callable[..., Any]]


@dataclass(frozen=True)
class TaskType:
    """A registered type."""

    name: str
    running: Body
    deleting: Body | None
    retry: RetryPolicy
    timeout: float | None = None
    on_node_loss: str = "resume"
    max_losses: int | None = 3
    concurrency: int | None = None
    keep: float | None = None
    codec: Codec = field(default_factory=lambda: Codec(None))
    version: int = 0
    upgrade: Callable[[Any, int], Any] | None = None


class RegisteredTask(Generic[F]):
    """A function that was registered as a task: it can still be called, and given a clean-up with `@fn.deleting`."""

    def __init__(self, registry: Registry, type: str, function: F) -> None:
        self.registry = registry
        self.type = type
        self.function = function
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", type)
        self.__wrapped__ = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself."""
        return self.function(*args, **kwargs)

    def deleting(self, cleanup: Callable[..., Any]) -> Callable[..., Any]:
        """Register the clean-up that runs when a task of this type is deleted."""
        self.registry.set_deleting(self.type, cleanup)
        return cleanup


class Decorator:
    """Registers what it decorates: a class stays what it is, a function can be given a clean-up."""

    def __init__(self, registry: Registry, type: str, options: dict[str, Any]) -> None:
        self._registry = registry
        self._type = type
        self._options = options

    @overload
    def __call__(self, implementation: Class) -> Class: ...
    @overload
    def __call__(self, implementation: F) -> RegisteredTask[F]: ...
    def __call__(self, implementation: Any) -> Any:
        """Register an implementation."""
        self._registry.register_task(self._type, implementation, **self._options)
        if inspect.isclass(implementation):
            return implementation
        return RegisteredTask(self._registry, self._type, implementation)


class Registry:
    """The types that a node can run.

    `lifespan` makes a context manager, sync or async, that is entered once in each node; its value is `run.resources`.
    """

    def __init__(self, lifespan: Lifespan | None = None) -> None:
        self.lifespan = lifespan
        self._types: dict[str, TaskType] = {}
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []

    def task(self, type: str, **options: Any) -> Decorator:
        """Register what this decorates, a function or a class, as a type. The options are those of `register_task`."""
        return Decorator(self, type, options)

    def register_task(
        self,
        type: str,
        implementation: Any,
        *,
        deleting: Callable[..., Any] | None = None,
        retry: Sequence[float] | Backoff | str | None = None,
        timeout: float | None = None,
        on_node_loss: str = "resume",
        max_losses: int | None = 3,
        concurrency: int | None = None,
        keep: float | None = None,
        context_type: type[Any] | None = None,
        version: int = 0,
        upgrade: Callable[[Any, int], Any] | None = None,
    ) -> None:
        """Register an implementation under a type's name.

        `implementation` is a class with `running(self, run)` and optionally `deleting(self, run)`, each a generator of
        reports; or a generator function of the run; or a plain function of the arguments; or a list of plain functions.
        `retry`: seconds before each retry, or a Backoff; `timeout`: seconds from claim to end; `on_node_loss`: "resume"
        or "fail"; `max_losses`: lost nodes in a row, without a report, after which the task fails; `concurrency`: how
        many at once on one node; `keep`: seconds an ended row is kept; `context_type`: a dataclass, msgspec or pydantic
        model; `version` and `upgrade(context, from_version)`: how contexts of older code are read.

        Raises TypeAlreadyRegistered, BadArgument.
        """
        check_name("type", type, empty=False)
        running, own_deleting = bodies(implementation)
        _check(on_node_loss=on_node_loss, timeout=timeout, keep=keep, max_losses=max_losses, concurrency=concurrency)
        if isinstance(version, bool) or not isinstance(version, int) or version < 0:
            raise BadArgument(f"version must be a whole number from 0, not {version!r}")
        self._add(
            TaskType(
                name=type,
                running=running,
                deleting=own_deleting if deleting is None else body_of(deleting),
                retry=load_retry(dump_retry(retry)),
                timeout=timeout,
                on_node_loss=on_node_loss,
                max_losses=max_losses,
                concurrency=concurrency,
                keep=keep,
                codec=Codec(context_type),
                version=version,
                upgrade=upgrade,
            )
        )

    def _add(self, task_type: TaskType) -> None:
        with self._lock:
            if task_type.name in self._types:
                raise TypeAlreadyRegistered(task_type.name)
            self._types[task_type.name] = task_type
        self._tell()

    def set_deleting(self, type: str, cleanup: Callable[..., Any]) -> None:
        """Give a registered type its clean-up."""
        with self._lock:
            self._types[type] = replace(self[type], deleting=body_of(cleanup))
        self._tell()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each registration."""
        self._listeners.append(listener)

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()

    def __getitem__(self, type: str) -> TaskType:
        """Return a registered type. Raises TypeNotRegistered."""
        try:
            return self._types[type]
        except KeyError:
            raise TypeNotRegistered(type) from None

    def __contains__(self, type: object) -> bool:
        """Whether a type is registered here."""
        return type in self._types

    def __iter__(self) -> Iterator[TaskType]:
        """Iterate over the registered types."""
        return iter(list(self._types.values()))


def bodies(implementation: Any) -> tuple[Body, Body | None]:
    """Return how an implementation runs, and how it cleans up. Raises BadArgument if it is none of the four kinds."""
    if isinstance(implementation, RegisteredTask):
        registered = implementation.registry[implementation.type]
        return registered.running, registered.deleting
    if isinstance(implementation, list | tuple):
        return _handlers(implementation), None
    made = _made(implementation)
    if made is None:
        return body_of(implementation), None
    cls, factory = made
    deleting = getattr(cls, "deleting", None)
    return _method(cls, factory, "running"), None if deleting is None else _method(cls, factory, "deleting")


def body_of(function: Any) -> Body:
    """Return how a function runs. Raises BadArgument if it is not callable."""
    if not callable(function):
        raise BadArgument(f"an implementation is a class, a function or a list of functions, not {function!r}")
    plain = _plain(function)
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        return Body(Shape.REPORTS, inspect.isasyncgenfunction(plain), lambda: function)
    return Body(Shape.FUNCTION, inspect.iscoroutinefunction(plain), lambda: function)


def _made(implementation: Any) -> tuple[Any, Callable[[], Any]] | None:
    """Return what makes the object of a class-like implementation: a class, a partial of one, a factory, an object."""
    if inspect.isclass(implementation):
        return _with_running(implementation), implementation
    if isinstance(implementation, partial) and inspect.isclass(implementation.func):
        return _with_running(implementation.func), implementation
    if hasattr(implementation, "running"):
        return implementation, lambda: implementation
    returned = _returned(implementation)
    if inspect.isclass(returned) and hasattr(returned, "running"):
        return returned, implementation
    return None


def _returned(function: Any) -> Any:
    try:
        return get_type_hints(function).get("return")
    except Exception:
        return None


def _with_running(cls: Any) -> Any:
    if not hasattr(cls, "running"):
        raise BadArgument(f"class {cls.__name__} has no method running(self, run): a task's class needs one")
    return cls


def _method(cls: Any, factory: Callable[[], Any], name: str) -> Body:
    method = _plain(getattr(cls, name))
    is_async = inspect.isasyncgenfunction(method)
    if not is_async and not inspect.isgeneratorfunction(method):
        raise BadArgument(f"{name}() of {cls!r} must be a generator: it yields reports")
    return Body(Shape.REPORTS, is_async, lambda: getattr(factory(), name))


def _plain(function: Any) -> Any:
    while isinstance(function, partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def _handlers(handlers: Sequence[Any]) -> Body:
    if not handlers:
        raise BadArgument("a list of handlers needs at least one")
    steps = [body_of(handler) for handler in handlers]
    if any(step.shape is not Shape.FUNCTION for step in steps):
        raise BadArgument("a list of handlers takes plain functions, not generators")
    if len({step.is_async for step in steps}) > 1:
        raise BadArgument("the handlers of one list must be all sync or all async")
    is_async = steps[0].is_async
    run_all = _run_async_handlers if is_async else _run_handlers
    return Body(Shape.HANDLERS, is_async, lambda: partial(run_all, list(handlers)))


@dataclass(frozen=True)
class _Progress:
    """How far a job has come: the next handler, and what the ones before returned."""

    outputs: tuple[Any, ...]

    def report(self, total: int) -> Report:
        done = len(self.outputs)
        context = {"next": done, "outputs": list(self.outputs)}
        return Finished(self.outputs[-1], context) if done == total else Report(context, progress=done / total)

    def arguments(self, run: Any) -> tuple[list[Any], dict[str, Any]]:
        return positional(self.outputs[-1] if self.outputs else run.arguments)


def _progress(run: Any) -> _Progress:
    return _Progress(tuple(run.context["outputs"]) if run.resumed else ())


def _run_handlers(handlers: Sequence[Callable[..., Any]], run: Any) -> Iterator[Report]:
    progress = _progress(run)
    for handler in handlers[len(progress.outputs) :]:
        args, kwargs = progress.arguments(run)
        progress = _Progress((*progress.outputs, handler(*args, **kwargs)))
        yield progress.report(len(handlers))


async def _run_async_handlers(handlers: Sequence[Callable[..., Any]], run: Any) -> Any:
    progress = _progress(run)
    for handler in handlers[len(progress.outputs) :]:
        args, kwargs = progress.arguments(run)
        progress = _Progress((*progress.outputs, await handler(*args, **kwargs)))
        yield progress.report(len(handlers))


def positional(arguments: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return how a plain function is called, as in JSON-RPC: a list positionally, a dict by keywords, a scalar
    alone.
    """
    if arguments is None:
        return [], {}
    if isinstance(arguments, Mapping):
        return [], dict(arguments)
    if isinstance(arguments, list | tuple):
        return list(arguments), {}
    return [arguments], {}


def _check(
    *,
    on_node_loss: str,
    timeout: float | None,
    keep: float | None,
    max_losses: int | None,
    concurrency: int | None,
) -> None:
    if on_node_loss not in ("resume", "fail"):
        raise BadArgument(f"on_node_loss is 'resume' or 'fail', not {on_node_loss!r}")
    for name, seconds in (("timeout", timeout), ("keep", keep)):
        check_seconds(name, seconds)
    for name, number in (("max_losses", max_losses), ("concurrency", concurrency)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise BadArgument(f"{name} must be a whole number from 1, or None, not {number!r}")


def check_seconds(name: str, value: object, *, zero: bool = False) -> None:
    """Check a number of seconds. Raises BadArgument."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or value < 0:
        raise BadArgument(f"{name} must be a number of seconds, not {value!r}")
    if value == 0 and not zero:
        raise BadArgument(f"{name} must be more than 0 seconds")
    if value > 3_155_760_000:
        raise BadArgument(f"{name} must be less than a hundred years, not {value!r}")
