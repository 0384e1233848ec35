from __future__ import annotations

import os
import sys
import threading
from itertools import pairwise
from uuid import UUID

import pytest

from pyasync.ids import Ids, new_fence, new_id

MILLISECOND = 1_000_000


class Clock:
    """A clock that stands where it is put, in nanoseconds."""

    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def test_id_is_a_uuid_of_version_7_and_the_rfc_variant() -> None:
    made = new_id()

    assert made.version == 7
    assert made.variant == "specified in RFC 4122"


def test_id_has_the_layout_of_the_rfc() -> None:
    ids = Ids(clock=Clock(0x017F22E279B0 * MILLISECOND + MILLISECOND // 2), random=lambda size: b"\xff" * size)

    assert ids() == UUID("017f22e2-79b0-7800-bfff-ffffffffffff")


def test_ids_increase_strictly() -> None:
    made = [new_id() for _ in range(10_000)]

    assert all(before < after for before, after in pairwise(made))
    assert sorted(made, key=str) == made


def test_ids_increase_while_the_clock_stands_still() -> None:
    ids = Ids(clock=Clock(5 * MILLISECOND))

    made = [ids() for _ in range(10_000)]

    assert all(before < after for before, after in pairwise(made))


def test_ids_increase_when_the_clock_steps_back() -> None:
    clock = Clock(5_000 * MILLISECOND)
    ids = Ids(clock=clock)
    before = ids()

    clock.now = 1_000 * MILLISECOND

    assert ids() > before


def test_id_tells_the_millisecond_of_its_creation() -> None:
    assert Ids(clock=Clock(1_700_000_000_123 * MILLISECOND))().int >> 80 == 1_700_000_000_123


def test_ids_of_many_threads_are_distinct_and_increase_in_each() -> None:
    ids = Ids()
    made: list[list[UUID]] = [[] for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    threads = [threading.Thread(target=lambda own=own: own.extend(ids() for _ in range(3_000))) for own in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)

    assert len({each for own in made for each in own}) == 24_000
    assert all(before < after for own in made for before, after in pairwise(own))


def test_ids_that_start_over_draw_new_randomness_and_go_on_increasing() -> None:
    drawn: list[int] = []
    ids = Ids(clock=Clock(MILLISECOND), random=lambda size: drawn.append(size) or bytes(size))  # type: ignore[func-returns-value]
    before = ids()

    ids.start_over()

    assert ids() > before
    assert drawn == [4096, 4096]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_does_not_repeat_its_parents_randomness() -> None:
    new_id()  # both have a buffer of random bytes now
    reader, writer = os.pipe()

    child = os.fork()
    if child == 0:
        os.write(writer, b"".join(new_id().bytes for _ in range(100)))
        os._exit(0)
    os.waitpid(child, 0)
    sent = os.read(reader, 1600)
    os.close(reader)
    os.close(writer)

    childs = {sent[start + 8 : start + 16] for start in range(0, 1600, 16)}
    assert len(childs) == 100
    assert childs.isdisjoint(new_id().bytes[8:] for _ in range(100))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_forked_while_a_thread_makes_an_id_can_make_ids() -> None:
    from pyasync import ids

    with ids._process_ids._lock:
        child = os.fork()
        if child == 0:
            new_id()
            os._exit(7)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_fences_are_random_and_do_not_repeat() -> None:
    fences = {new_fence() for _ in range(1_000)}

    assert len(fences) == 1_000
    assert {fence.version for fence in fences} == {4}
