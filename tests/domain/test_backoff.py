from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyasync.domain.backoff import Backoff, RetryPolicy, dump_retry, load_retry
from pyasync.errors import BadArgument


def stored(retry: object) -> RetryPolicy:
    """The policy as it comes back from the row."""
    return load_retry(json.loads(json.dumps(dump_retry(retry))))  # type: ignore[arg-type]


def test_list_gives_one_retry_per_entry() -> None:
    policy = stored([60, 600, 3600])

    assert [policy.delay(attempt, 0.5) for attempt in (1, 2, 3, 4, 5)] == [60, 600, 3600, None, None]


def test_text_of_seconds_is_a_list() -> None:
    assert dump_retry("60 600  3600") == [60.0, 600.0, 3600.0]
    assert load_retry("60 600 3600") == stored([60, 600, 3600])


@pytest.mark.parametrize("retry", [None, [], "", (), Backoff(attempts=0)])
def test_nothing_means_no_retry(retry: object) -> None:
    assert stored(retry).delay(1, 0.5) is None


def test_list_is_taken_at_its_word() -> None:
    assert stored([60]).delay(1, 0.0) == stored([60]).delay(1, 0.99) == 60


def test_backoff_is_five_growing_retries_by_default() -> None:
    policy = stored(Backoff())

    assert [policy.delay(attempt, 0.0) for attempt in range(1, 7)] == [1.0, 2.0, 4.0, 8.0, 16.0, None]
    assert Backoff().delay(5, 1.0) == pytest.approx(14.4)
    assert Backoff().limit == 3600.0


def test_longest_list_and_longest_wait_are_allowed() -> None:
    assert len(dump_retry([0.0] * 10_000)) == 10_000
    assert Backoff(attempts=10_000).attempts == 10_000
    assert dump_retry([0.5]) == [0.5]
    assert dump_retry([3_162_240_000]) == [3_162_240_000.0]
    with pytest.raises(BadArgument, match="retry"):
        dump_retry([3_162_240_001])


def test_backoff_grows_up_to_its_limit() -> None:
    backoff = Backoff(first=1.0, factor=2.0, limit=5.0, attempts=9, jitter=0.0)

    assert [backoff.delay(retry, 0.5) for retry in (1, 2, 3, 4, 5)] == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_jitter_shortens_a_wait_by_at_most_its_share() -> None:
    backoff = Backoff(first=10.0, jitter=0.2)

    assert backoff.delay(1, 0.0) == 10.0
    assert backoff.delay(1, 0.5) == 9.0
    assert backoff.delay(1, 1.0) == 8.0


def test_backoff_gives_as_many_retries_as_it_says() -> None:
    policy = stored(Backoff(first=1.0, factor=3.0, attempts=2, jitter=0.0))

    assert [policy.delay(attempt, 0.0) for attempt in (1, 2, 3)] == [1.0, 3.0, None]


def test_backoff_comes_back_from_the_row_as_it_was() -> None:
    backoff = Backoff(first=2.0, factor=1.5, limit=60.0, attempts=7, jitter=0.3)

    assert stored(backoff) == RetryPolicy(backoff)


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0, 1e6), st.floats(1, 1e300), st.floats(0, 1e6))
def test_wait_is_never_beyond_the_limit(retry: int, random: float, first: float, factor: float, limit: float) -> None:
    assert 0 <= Backoff(first=first, factor=factor, limit=limit).delay(retry, random) <= limit


def test_first_wait_of_zero_stays_zero() -> None:
    assert Backoff(first=0.0, factor=1e300).delay(10_000, 0.5) == 0.0


@pytest.mark.parametrize(
    "retry",
    [
        [-1],
        [float("nan")],
        [float("inf")],
        [1e12],
        [True],
        [None],
        ["x"],
        "60 soon",
        b"60",
        60,
        {1, 2},
        [1.0] * 10_001,
    ],
    ids=lambda retry: repr(retry)[:20],
)
def test_what_is_no_retry_is_refused(retry: object) -> None:
    with pytest.raises(BadArgument, match="retry"):
        dump_retry(retry)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"first": -1},
        {"first": float("nan")},
        {"factor": 0.5},
        {"factor": float("inf")},
        {"limit": -1},
        {"limit": "1"},
        {"attempts": -1},
        {"attempts": 1.5},
        {"attempts": True},
        {"attempts": 10_001},
        {"jitter": 1.5},
        {"jitter": -0.1},
    ],
    ids=repr,
)
def test_backoff_that_makes_no_sense_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(BadArgument, match=next(iter(fields))):
        Backoff(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("row", [{"first": 1, "second": 2}, {"first": "x"}, 5, True, ["x"]], ids=repr)
def test_row_that_holds_no_retry_is_refused(row: object) -> None:
    with pytest.raises(BadArgument, match=r"retry|first"):
        load_retry(row)
