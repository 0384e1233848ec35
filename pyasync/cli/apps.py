"""Find the registry that `MODULE:REGISTRY` names, or the default one that importing `MODULE` fills."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from types import ModuleType

from pyasync import default
from pyasync.cli.exits import Ended, Exit
from pyasync.cli.terminal import tell
from pyasync.registry import Registry


def load(app: str) -> Registry:
    """Import what `MODULE:REGISTRY` names, from the current directory too."""
    module_name, _, attribute = app.partition(":")
    module = _import(module_name)
    registry = _attribute(module, attribute) if attribute else default.registry
    if not isinstance(registry, Registry):
        raise Ended(Exit.USAGE, f"{app} is a {type(registry).__name__}, not a pyasync.Registry{_hint(module)}")
    if not list(registry):
        where = app if attribute else f"importing {module_name}"
        raise Ended(Exit.USAGE, f"{where} registers no task type{_hint(module)}")
    return registry


def _import(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _broken(name, error) from error
        raise Ended(Exit.USAGE, f"cannot import {name!r}: {error}; name it as MODULE or MODULE:REGISTRY") from None
    except (TypeError, ValueError):
        if name and not name.startswith("."):
            raise
        raise Ended(Exit.USAGE, f"{name!r} is no module's name; name it as MODULE or MODULE:REGISTRY") from None
    except Exception as error:
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> Ended:
    """Show where the module fails: that is for its author to see."""
    tell("".join(traceback.format_exception(error)).rstrip())
    return Ended(Exit.USAGE, f"importing {name} failed: {type(error).__name__}")


def _attribute(module: ModuleType, path: str) -> object:
    found: object = module
    for name in path.split("."):
        if not hasattr(found, name):
            raise Ended(Exit.USAGE, f"{module.__name__} has no {path!r}{_hint(module)}")
        found = getattr(found, name)
    return found


def _hint(module: ModuleType) -> str:
    found = [name for name, value in vars(module).items() if isinstance(value, Registry) and list(value)]
    return f"; did you mean {module.__name__}:{found[0]}?" if found else ""
