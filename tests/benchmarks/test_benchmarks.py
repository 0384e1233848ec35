"""The benchmarks run, small, so that they cannot rot: each gives figures, and says what they were measured on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import QUESTIONS
from tests.servers import Server

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("question", QUESTIONS)
def test_benchmark_gives_figures_on_sqlite(question: str, tmp_path: Path) -> None:
    answers = run(question, tmp_path, "--databases", "sqlite")

    check(answers, question, "sqlite")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("question", ["drain", "create", "reports"])
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_benchmark_gives_figures_on_a_running_server(
    question: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(f"{kind}_server")
    url = server.admin.render_as_string(hide_password=False)

    answers = run(question, tmp_path, "--databases", kind, "--servers", url)

    check(answers, question, kind)


def test_benchmarks_on_the_shelf_are_those_that_make_bench_runs() -> None:
    files = (ROOT / "benchmarks").glob("*.py")

    asking = {file.stem for file in files if "\nQUESTION = " in file.read_text()}

    assert asking == set(QUESTIONS)


def run(question: str, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run a benchmark as people do, but small, and return what it answers for each database."""
    target = folder / "answers.json"
    command = [sys.executable, "-m", f"benchmarks.{question}", "--small", "--json", str(target), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in target.read_text().splitlines()] if target.exists() else []


def check(answers: list[dict[str, Any]], question: str, kind: str) -> None:
    [answer] = answers
    assert (answer["question"], answer["database"]) == (question, kind)
    assert answer["settings"]["version"]
    assert answer["contenders"]
    assert all(each["figures"] and each["median"] >= 0 for each in answer["contenders"])
    assert not answer["unmeasured"]
