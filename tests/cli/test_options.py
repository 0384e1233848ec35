from __future__ import annotations

from argparse import ArgumentTypeError
from datetime import UTC, datetime, timedelta

import pytest

from pyasync.cli.options import document, iso, moment, seconds


@pytest.mark.parametrize(
    ("text", "wanted"), [("90", 90.0), ("1.5s", 1.5), ("5m", 300.0), ("2H", 7_200.0), ("7d", 604_800.0)]
)
def test_time_spans(text: str, wanted: float) -> None:
    assert seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "-1", "5 minutes", "nan", "1e3"])
def test_what_is_no_time_span(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        seconds(text)


def test_a_moment_is_iso_with_its_zone() -> None:
    assert iso("2030-01-31T12:00:00Z") == datetime(2030, 1, 31, 12, tzinfo=UTC)


def test_a_moment_without_zone_is_no_guess() -> None:
    with pytest.raises(ArgumentTypeError, match="no time zone"):
        iso("2030-01-31T12:00:00")


def test_a_moment_may_be_so_long_ago() -> None:
    assert abs(datetime.now(UTC) - timedelta(days=7) - moment("7d")) < timedelta(minutes=1)


def test_a_document_that_cannot_be_read_is_not_repeated() -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        document('{"password": "hunter2"')

    assert "hunter2" not in str(caught.value)
    assert "character 23" in str(caught.value)
