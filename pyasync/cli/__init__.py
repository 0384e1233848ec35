"""The command `pyasync`: `main(["list", "--user", "ann"])` does what it does in a shell, and returns the exit code."""

from __future__ import annotations

from pyasync.cli.program import main

__all__ = ["main"]
