"""The program: reads the command line, runs the command, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib.metadata import version

from pyasync.cli import changing, creating, demo, doctor, listing, logs, migrating, node, showing, waiting
from pyasync.cli.exits import Ended, Exit, code_of
from pyasync.cli.options import add_database
from pyasync.cli.terminal import complain
from pyasync.errors import PyasyncError
from pyasync.store.checks import complaint

_EPILOG = """\
environment: PYASYNC_DATABASE_URL, PYASYNC_APP, PYASYNC_LOG_LEVEL, and each setting (PYASYNC_LEASE=5).
exit codes:  0 ok, 1 failure, 2 usage, 3 database unreachable or not migrated, 4 no such task or not allowed,
             130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    _write_anyway()
    try:
        args = _parser().parse_args(argv)
    except SystemExit as end:  # how argparse says that it has said all
        return int(end.code or 0)
    try:
        logs.to_stderr(getattr(args, "log_level", None), getattr(args, "usual_log_level", "warning"))
        return int(args.run(args))
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        return _unread()
    except Exception as error:
        return _failed(error)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="pyasync",
        description="Durable tasks, coordinated by nothing but your SQL database.",
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pyasync {version('pyasync')}")
    add_database(parser, default=None)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    parser.set_defaults(run=lambda _: _usage(parser))
    for module in (demo, migrating, node, creating, listing, showing, changing, waiting, doctor):
        module.add(commands)
    return parser


def _usage(parser: ArgumentParser) -> Exit:
    parser.print_help(sys.stderr)
    return Exit.USAGE


def _failed(error: Exception) -> int:
    """Say what went wrong; what nobody expects keeps its traceback."""
    if isinstance(error, Ended):
        return _said(str(error), error.code)
    if isinstance(error, PyasyncError):
        return _said(str(error), code_of(error))
    if isinstance(error, TimeoutError):
        return _said(str(error), Exit.FAILURE)
    words = complaint(error)
    if words is None:
        raise error
    return _said(f"the database refused: {words}", Exit.DATABASE)


def _said(message: str, code: Exit) -> Exit:
    complain(message)
    return code


def _unread() -> int:
    """Leave quietly when whoever reads our output has enough, as in `pyasync list | head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or else the interpreter's last flush fails
    return Exit.FAILURE


def _write_anyway() -> None:
    """Let no message fail because the terminal cannot show one of its characters."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
