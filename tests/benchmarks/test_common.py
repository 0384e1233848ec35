"""What the benchmarks share: who is measured in which order, and what is said of the targets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import Contender, Place, Question, Sizes, Target, Unmeasured, main


def test_contenders_take_turns_in_each_run_on_fresh_databases() -> None:
    seen: list[tuple[str, str]] = []

    def measure(name: str) -> Contender:
        return Contender(name, lambda place, size: seen.append((name, place.url)) or 1.0)

    ask([measure("a"), measure("b")], [], "--runs", "2")

    assert [name for name, _ in seen] == ["a", "b", "a", "b"]
    assert len({url for _, url in seen}) == 4


def test_target_is_the_ratio_of_medians_to_the_best_that_matches(capsys: pytest.CaptureFixture[str]) -> None:
    contenders = [constant("ours", 5.0), constant("raw 1", 4.0), constant("raw 2", 10.0), constant("other", 100.0)]

    ask(contenders, [Target("ours", at_least=0.5, of="raw *"), Target("ours", at_least=0.6, of="raw *")])

    printed = capsys.readouterr().out
    assert "\nreached (0.5): ours at least 0.5 x raw *\n" in printed
    assert "\nNOT reached (0.5): ours at least 0.6 x raw *\n" in printed


def test_best_is_the_least_where_less_is_better(capsys: pytest.CaptureFixture[str]) -> None:
    contenders = [constant("ours", 5.0), constant("raw 1", 4.0), constant("raw 2", 10.0)]

    ask(contenders, [Target("ours", at_most=1.3, of="raw *")], less_is_better=True)

    assert "\nreached (1.25): ours at most 1.3 x raw *\n" in capsys.readouterr().out


def test_contender_that_cannot_be_measured_ends_nothing(tmp_path: Path) -> None:
    def measure(place: Place, size: int) -> float:
        raise Unmeasured("no network")

    contenders = [constant("ours", 5.0), Contender("peer", measure)]
    ask(contenders, [Target("ours", at_least=1.0, of="peer")], "--json", str(tmp_path / "answer"))

    answer: dict[str, Any] = json.loads((tmp_path / "answer").read_text())
    assert answer["unmeasured"] == {"peer": "no network"}
    assert [(each["contender"], each["reached"]) for each in answer["targets"]] == [("ours", None)]


def test_measurement_that_fails_ends_the_program() -> None:
    def measure(place: Place, size: int) -> float:
        raise AssertionError("19 of 20 tasks are finished")

    with pytest.raises(AssertionError, match="19 of 20"):
        ask([Contender("ours", measure)], [])


def test_share_is_what_a_slow_contender_has_to_do() -> None:
    sizes: list[int] = []

    ask([Contender("slow", lambda place, size: sizes.append(size) or 1.0, share=0.1)], [], "--size", "50")

    assert sizes == [5]


def constant(name: str, figure: float) -> Contender:
    return Contender(name, lambda place, size: figure)


def ask(
    contenders: Sequence[Contender], targets: Sequence[Target], *arguments: str, less_is_better: bool = False
) -> None:
    question = Question(
        name="question",
        unit="tasks/s",
        contenders=lambda kind: contenders,
        sizes=Sizes(1, 1, 1),
        targets=targets,
        runs=1,
        less_is_better=less_is_better,
    )
    main(question, None, ["--databases", "sqlite", *arguments])
