"""The list of mutants does not rot: each still fits the source, and names tests that there are."""

from __future__ import annotations

import ast
import shutil
from dataclasses import replace

import pytest

from tests.mutants.__main__ import run_all
from tests.mutants.catalogue import MUTANTS, Mutant
from tests.mutants.copies import SOURCE, copied

QUICK = "tests/test_ids.py::test_id_is_a_uuid_of_version_7_and_the_rfc_variant"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_source_and_compiles(mutant: Mutant) -> None:
    text = (SOURCE / mutant.file).read_text()

    patched = mutant.patched(text)

    compile(patched, mutant.file, "exec")
    assert ast.dump(ast.parse(patched)) != ast.dump(ast.parse(text))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_names_tests_that_there_are(mutant: Mutant) -> None:
    assert mutant.checks
    for check in mutant.checks:
        file, name = check.split("::")
        assert f"def {name}(" in (SOURCE / file).read_text()


def test_each_mutant_has_a_name_of_its_own() -> None:
    assert len({each.name for each in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("text", ["nothing of it", "old and old"])
def test_what_is_not_there_exactly_once_is_not_replaced(text: str) -> None:
    with pytest.raises(ValueError, match="not once"):
        replace(MUTANTS[0], old="old").patched(text)


def test_a_mutant_that_no_test_notices_survives(capsys: pytest.CaptureFixture[str]) -> None:
    harmless = replace(MUTANTS[0], name="harmless", new=MUTANTS[0].old, checks=(QUICK,), database=None)

    assert run_all([harmless]) == 1
    assert "SURVIVED: harmless" in capsys.readouterr().out


def test_a_mutant_that_breaks_all_is_not_taken_for_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    broken = replace(MUTANTS[0], name="broken", new='"', checks=(QUICK,), database=None)

    assert run_all([broken]) == 1
    assert "SURVIVED: broken" in capsys.readouterr().out


def test_another_source_than_the_copy_is_never_tested() -> None:
    with copied() as copy:
        shutil.rmtree(copy.folder / "pyasync")

        verdict = copy.check([QUICK], None)

    assert (verdict.passed, verdict.caught) == (False, False)
    assert "would run, and not the copy" in verdict.said
