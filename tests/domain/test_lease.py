from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyasync.domain.lease import Lease, Observation
from pyasync.errors import BadArgument

LEASE = 12.0


def observed(*reads: tuple[int, float]) -> Observation:
    """What an observer knows after it has read these counters at these times."""
    (counter, at), *later = reads
    observation = Observation(counter, at, at)
    for counter, at in later:
        observation = observation.observe(counter, at, LEASE)
    return observation


def test_node_beats_three_times_a_lease() -> None:
    assert Lease(15.0).beat_interval == 5.0


@pytest.mark.parametrize(
    ("duration", "margin", "until"),
    [
        (15.0, None, 112.0),  # a fifth
        (3.0, None, 102.0),  # at least a second
        (1.0, None, 100.5),  # at most half of the lease
        (15.0, 4.0, 111.0),
        (15.0, 0.0, 115.0),
    ],
)
def test_node_trusts_its_lease_from_before_the_beat_to_a_margin_before_the_end(
    duration: float, margin: float | None, until: float
) -> None:
    assert Lease(duration, margin).trusted_until(100.0) == until


@given(st.floats(0.001, 1e6))
def test_node_trusts_its_lease_for_longer_than_a_beat_and_not_beyond_its_end(duration: float) -> None:
    lease = Lease(duration)

    assert lease.beat_interval < lease.trusted_until(0.0) < duration


@pytest.mark.parametrize(
    ("duration", "margin"),
    [(0.0, None), (-1.0, None), (float("nan"), None), (float("inf"), None), (5.0, -1.0), (5.0, 5.0)],
)
def test_lease_that_makes_no_sense_is_refused(duration: float, margin: float | None) -> None:
    with pytest.raises(BadArgument, match="lease"):
        Lease(duration, margin)


def test_node_is_lost_when_its_counter_stood_still_for_a_lease() -> None:
    assert observed((7, 0.0), (7, 6.0), (7, 12.0)).lost(LEASE)


def test_node_is_not_lost_before_a_whole_lease() -> None:
    assert not observed((7, 500.0), (7, 504.0), (7, 508.0), (7, 511.9)).lost(LEASE)


def test_node_is_not_lost_on_fewer_than_three_reads() -> None:
    assert not Observation(7, first=0.0, last=100.0, reads=2).lost(LEASE)


def test_node_that_beats_is_not_lost() -> None:
    assert not observed((7, 0.0), (7, 5.0), (8, 10.0), (8, 15.0)).lost(LEASE)


def test_counter_that_went_back_counts_as_a_beat() -> None:
    assert not observed((7, 0.0), (7, 6.0), (6, 12.0)).lost(LEASE)


def test_observer_that_paused_for_more_than_half_a_lease_starts_over() -> None:
    after_pause = observed((7, 0.0), (7, 6.0), (7, 12.1), (7, 18.0))

    assert after_pause == Observation(7, first=12.1, last=18.0, reads=2)
    assert not after_pause.lost(LEASE)
    assert after_pause.observe(7, 24.0, LEASE).observe(7, 24.2, LEASE).lost(LEASE)


def test_observer_whose_clock_went_back_starts_over() -> None:
    assert observed((7, 100.0), (7, 99.0)) == Observation(7, first=99.0, last=99.0, reads=1)


def test_nodes_own_lease_decides() -> None:
    observation = observed((7, 0.0), (7, 6.0), (7, 12.0))

    assert observation.lost(12.0)
    assert not observation.lost(13.0)


@given(
    beat=st.floats(0.01, LEASE / 3),
    gaps=st.lists(st.floats(0.01, 3 * LEASE), min_size=1, max_size=60),
)
def test_node_that_beats_in_time_is_never_lost_however_it_is_observed(beat: float, gaps: list[float]) -> None:
    now = 0.0
    observation = Observation(0, now, now)
    for gap in gaps:
        now += gap
        observation = observation.observe(int(now / beat), now, LEASE)

        assert not observation.lost(LEASE)
