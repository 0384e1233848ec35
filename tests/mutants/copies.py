"""Copies of the source, to be patched and tested where nothing else is changed by it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.catalogue import Mutant
from tests.mutants.witness import FAILED

SOURCE = Path(__file__).parents[2]
COPIED = ("pyasync", "migrations", "tests", "pyproject.toml")
TEST_TIMEOUT = 20
RUN_TIMEOUT = 180
SHOWN = 40  # lines of what pytest said


@dataclass(frozen=True)
class Verdict:
    """How the checks ended: pytest's exit code (None: not in time), the test that failed first, and what was said."""

    code: int | None
    failed: str | None
    seconds: float
    said: str

    @property
    def passed(self) -> bool:
        """Whether all went well; no test at all is not well."""
        return self.code == 0

    @property
    def caught(self) -> bool:
        """Whether a test failed: not its fixtures, and not the collection of tests."""
        return self.code == 1 and self.failed is not None


class Copy:
    """A copy of the source in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in COPIED:
            source = SOURCE / name
            if source.is_dir():
                shutil.copytree(source, folder / name)  # what is compiled, too: a third of the time
            else:
                shutil.copy(source, folder)

    def patch(self, mutant: Mutant) -> None:
        """Take the guard out. Raises ValueError if the source is not what it was."""
        file = self.folder / mutant.file
        file.write_text(mutant.patched(file.read_text()))
        shutil.rmtree(file.parent / "__pycache__", ignore_errors=True)  # it goes by the second of a change

    def check(self, checks: Sequence[str], database: str | None) -> Verdict:
        """Run tests, on one kind of database, up to the first that fails."""
        plugins = ["-p", "tests.mutants.witness", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", "-q", "-x", *plugins, f"--timeout={TEST_TIMEOUT}", *checks]
        if database is not None:
            command += ["-k", database]
        # The package is installed from the source itself: the copy has to come first, in subprocesses of tests too.
        env = {**os.environ, "PYTHONPATH": str(self.folder), "PYASYNC_TEST_REQUIRE": "all"}
        began = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=RUN_TIMEOUT
            )
        except subprocess.TimeoutExpired:
            return Verdict(None, None, time.monotonic() - began, f"it did not end within {RUN_TIMEOUT} s")
        said = "\n".join((done.stdout + done.stderr).splitlines()[-SHOWN:])
        return Verdict(done.returncode, self._failed(), time.monotonic() - began, said)

    def _failed(self) -> str | None:
        file = self.folder / FAILED
        return file.read_text() if file.exists() else None


@contextmanager
def copied() -> Iterator[Copy]:
    """Make a copy, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="pyasync-mutant-") as folder:
        yield Copy(Path(folder).resolve())
