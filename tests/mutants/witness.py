"""A plugin of pytest for runs in a copy of the source: the copy must be what runs, and what fails is written down."""

from __future__ import annotations

from pathlib import Path

import pytest

import pyasync

FAILED = "first-failure"
"""The file in the copy that gets the id of the test that failed first."""


class Witness:
    """Sees the reports of tests; a test whose fixtures fail is none that failed."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FAILED

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.when == "call" and not self._file.exists():
            self._file.write_text(report.nodeid)


def pytest_configure(config: pytest.Config) -> None:
    ran = Path(pyasync.__file__).resolve()
    if not ran.is_relative_to(config.rootpath.resolve()):
        raise pytest.UsageError(f"{ran} would run, and not the copy in {config.rootpath}")
    config.pluginmanager.register(Witness(config.rootpath))
