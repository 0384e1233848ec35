"""All settings of a node or client: one frozen object, validated once; the code below it trusts them."""

from __future__ import annotations

import difflib
import logging
import math
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pyasync.domain.names import check_name
from pyasync.errors import PyasyncError, SettingInvalid

Migrate = Literal["auto", "check", "off"]

_PREFIX = "PYASYNC_"
_OTHER_VARIABLES = frozenset({"PYASYNC_DATABASE", "PYASYNC_DATABASE_URL", "PYASYNC_APP"})  # not ours to judge
_TEST_PREFIX = "PYASYNC_TEST_"
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})
_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")  # needs no quoting in messages, and fits PostgreSQL's 63 bytes

_log = logging.getLogger(__name__)


def _host_and_pid() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Hold the settings; times are seconds. Raises SettingInvalid for a value that a setting cannot have."""

    concurrency: int = 10
    """Tasks that run at once on this node."""

    delete_concurrency: int = 5
    """Clean-ups (`deleting`) that run at once, in slots of their own, so that neither starves the other."""

    lease: float = 15.0
    """How long the node is believed alive without a beat; it beats every third of it. At least 1."""

    poll_interval: float = 1.0
    """The longest wait between two looks at the database; wake-ups only shorten it."""

    stop_grace: float = 10.0
    """How long a run that was told to stop may take before it is cancelled and released."""

    schema: str | None = None
    """The database schema of pyasync's tables; None: the connection's default."""

    name: str = field(default_factory=_host_and_pid)
    """What people see as the node's name; it need not be unique."""

    types: frozenset[str] | None = None
    """Claim only tasks of these types; None: of every registered type."""

    groups: frozenset[str] | None = None
    """Claim only tasks of these groups; None: of every group."""

    max_context_bytes: int = 1024 * 1024
    """The most bytes of UTF-8 that the JSON of arguments, a context or a result may have."""

    max_depth: int = 64
    """The most levels of lists and dicts in them; at most 200, so that no recursion limit is met on the way."""

    migrate: Migrate | None = None
    """"auto" creates and upgrades the tables, "check" refuses old ones, "off" does neither; None: by database."""

    queue: object | None = None
    """The policy that orders tasks to run; None: Fifo()."""

    delete_queue: object | None = None
    """The policy that orders tasks to clean up; None: Fifo()."""

    pooled: bool = False
    """Whether a pooler in transaction mode (PgBouncer) is in between: nothing then outlives a transaction."""

    strict: bool = True
    """Whether creating a task of a type that no node has ever registered is an error."""

    stall_after: float = 2.0
    """How long the event loop may give no sign of life before the stack that blocks it is logged."""

    fast_detection: bool = True
    """Whether a lost connection of a node's keeper shortens the wait for its lease to run out."""

    connections: int = 4
    """The most connections of a node: two of its own for keeping its lease and watching others, the rest in a pool."""

    database_timeout: float = 30.0
    """How long a statement may take before its connection is given up as hung."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = _CHECKS[each.name](each.name, getattr(self, each.name))
            object.__setattr__(self, each.name, value)

    @classmethod
    def load(cls, **overrides: object) -> Settings:
        """Return the settings of the environment (`PYASYNC_LEASE=5`), those in `overrides` taking precedence.

        Raises SettingInvalid, with the nearest name for one that does not exist.
        """
        for name in overrides:
            if name not in _CHECKS:
                raise SettingInvalid(name, "there is no such setting", _nearest(name))
        values: dict[str, Any] = dict(_from_environment(os.environ, overrides))
        return cls(**values | overrides)


def _from_environment(environment: Mapping[str, str], overrides: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for variable, text in environment.items():
        if not variable.startswith(_PREFIX) or not text.strip():  # set to nothing is how a shell unsets for one call
            continue
        name = variable.removeprefix(_PREFIX).lower()
        if name not in _READERS:
            _warn_if_misspelt(variable, name)
        elif name not in overrides:
            yield name, _read(variable, name, text)


def _warn_if_misspelt(variable: str, name: str) -> None:
    if variable in _OTHER_VARIABLES or variable.startswith(_TEST_PREFIX):
        return
    nearest = _nearest(name)
    if nearest:
        _log.warning("environment variable is no setting", extra={"variable": variable, "nearest": nearest})


def _read(variable: str, name: str, text: str) -> object:
    try:
        return _READERS[name](text.strip())
    except ValueError:
        raise SettingInvalid(name, f"{variable}={text!r} cannot be read") from None


def _read_bool(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ValueError(text)


def _read_names(text: str) -> frozenset[str]:
    return frozenset(filter(None, map(str.strip, text.split(","))))


def _nearest(name: str) -> str | None:
    return next(iter(difflib.get_close_matches(name, _CHECKS, n=1, cutoff=0.75)), None)


_Check = Callable[[str, object], object]


def _whole(low: int, high: float = math.inf) -> _Check:
    def check(name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise SettingInvalid(name, f"must be a whole number {_range(low, high)}, not {value!r}")
        return int(value)

    return check


def _seconds(low: float, high: float = math.inf) -> _Check:
    def check(name: str, value: object) -> float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low <= value < math.inf or value > high:  # type: ignore[operator]  # a number by now
            raise SettingInvalid(name, f"must be seconds {_range(low, high)}, not {value!r}")
        return float(value)  # type: ignore[arg-type]

    return check


def _range(low: float, high: float) -> str:
    return f"from {low:g} up" if high == math.inf else f"from {low:g} to {high:g}"


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise SettingInvalid(name, f"must be True or False, not {value!r}")
    return value


def _schema(name: str, value: object) -> str | None:
    if value is None or (isinstance(value, str) and _SCHEMA.fullmatch(value)):
        return value
    raise SettingInvalid(name, f"must be a letter or _, then letters, digits or _, at most 63 in all, not {value!r}")


def _name(name: str, value: object) -> str:
    try:
        return check_name(name, value, empty=False)
    except PyasyncError as error:
        raise SettingInvalid(name, str(error)) from None


def _names(name: str, value: object) -> frozenset[str] | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise SettingInvalid(name, f"must be a list of names or None, not {value!r}")
    try:
        # "" is a group, the one of every task created without; it is no type.
        return frozenset(check_name(name, each, empty=name == "groups") for each in value)
    except PyasyncError as error:
        raise SettingInvalid(name, str(error)) from None


def _migrate(name: str, value: object) -> object:
    if value in ("auto", "check", "off", None):
        return value
    raise SettingInvalid(name, f"must be 'auto', 'check', 'off' or None, not {value!r}")


def _anything(name: str, value: object) -> object:
    return value


_CHECKS: Mapping[str, _Check] = {
    "concurrency": _whole(1),
    "delete_concurrency": _whole(1),
    "lease": _seconds(1.0),
    "poll_interval": _seconds(0.01),
    "stop_grace": _seconds(0.0),
    "schema": _schema,
    "name": _name,
    "types": _names,
    "groups": _names,
    "max_context_bytes": _whole(1),
    "max_depth": _whole(1, 200),
    "migrate": _migrate,
    "queue": _anything,
    "delete_queue": _anything,
    "pooled": _flag,
    "strict": _flag,
    "stall_after": _seconds(0.01),
    "fast_detection": _flag,
    "connections": _whole(4),
    "database_timeout": _seconds(0.1),
}

_READERS: Mapping[str, Callable[[str], object]] = {
    "concurrency": int,
    "delete_concurrency": int,
    "lease": float,
    "poll_interval": float,
    "stop_grace": float,
    "schema": str,
    "name": str,
    "types": _read_names,
    "groups": _read_names,
    "max_context_bytes": int,
    "max_depth": int,
    "migrate": str,
    "pooled": _read_bool,
    "strict": _read_bool,
    "stall_after": float,
    "fast_detection": _read_bool,
    "connections": int,
    "database_timeout": float,
}
