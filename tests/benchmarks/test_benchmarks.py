"""The benchmarks run, small, so that they cannot rot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import QUESTIONS

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("question", QUESTIONS)
def test_benchmark_gives_a_figure_and_says_what_it_was_measured_on(question: str, url: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{question}", "--size", "20", "--runs", "1", "--database", url]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["median"] > 0
    assert result["size"] == 20
    assert result["pyasync"]
