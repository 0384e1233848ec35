from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyasync import default
from pyasync.cli.apps import load
from pyasync.cli.exits import Ended, Exit

MODULE = "pyasync_test_app"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(default.registry, "_types", {})
    yield tmp_path
    sys.modules.pop(MODULE, None)


def write(folder: Path, *lines: str) -> None:
    (folder / f"{MODULE}.py").write_text("\n".join(["import pyasync", *lines]))


def refused(app: str) -> str:
    with pytest.raises(Ended) as caught:
        load(app)
    assert caught.value.code is Exit.USAGE
    return str(caught.value)


def test_a_registry_is_found_by_its_name(folder: Path) -> None:
    write(folder, "class tasks:", "    mine = pyasync.Registry()", "tasks.mine.register_task('a', print)")

    assert [each.name for each in load(f"{MODULE}:tasks.mine")] == ["a"]


def test_a_module_alone_means_the_default_registry(folder: Path) -> None:
    write(folder, "pyasync.register_task('b', print)")

    assert load(MODULE) is default.registry


def test_a_module_that_registers_nothing_by_default_is_asked_for_its_registry(folder: Path) -> None:
    write(folder, "mine = pyasync.Registry()", "mine.register_task('a', print)")

    assert f"did you mean {MODULE}:mine?" in refused(MODULE)


def test_a_registry_without_types_is_refused(folder: Path) -> None:
    write(folder, "mine = pyasync.Registry()")

    assert "registers no task type" in refused(f"{MODULE}:mine")


def test_what_is_no_registry_is_refused(folder: Path) -> None:
    write(folder, "mine = 1")

    assert "is a int, not a pyasync.Registry" in refused(f"{MODULE}:mine")


def test_what_a_module_does_not_have(folder: Path) -> None:
    write(folder)

    assert "has no 'mine'" in refused(f"{MODULE}:mine")


@pytest.mark.parametrize("app", ["pyasync_no_such_module", "pyasync_no_such.module:x", ":x", ".x", "tasks.py/x"])
def test_what_is_no_module(app: str) -> None:
    assert "MODULE or MODULE:REGISTRY" in refused(app)


def test_a_module_that_fails_shows_where(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, "import pyasync_no_such_module")

    message = refused(MODULE)

    assert message == f"importing {MODULE} failed: ModuleNotFoundError"
    assert "line 2" in capsys.readouterr().err
