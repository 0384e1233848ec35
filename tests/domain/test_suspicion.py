"""The observer's rule: only a lock that this very connection saw held, and then free for a second, tells of death."""

from __future__ import annotations

from uuid import UUID

import pytest

from pyasync.domain.suspicion import LONGEST_GAP, PATIENCE, Look, Suspicions, tick, watched

A, B, C = UUID(int=1), UUID(int=2), UUID(int=3)
KEY, OTHER_KEY = "key", "other key"


def _look(
    at: float, held: bool | None, *, counter: int = 7, key: str | None = KEY, session: int = 0, took: float = 0.0
) -> Look:
    seen = {} if key is None else {key: held}
    return Look(at, at + took, session, {A: (counter, key)}, seen)


def _lost(*looks: Look) -> list[UUID]:
    """What comes of the last look after all the others, which declare nobody."""
    suspicions = Suspicions()
    for look in looks[:-1]:
        assert suspicions.observe(look) == []
    return suspicions.observe(looks[-1])


def test_node_is_lost_when_its_lock_was_held_and_is_free_for_a_second() -> None:
    assert _lost(_look(10, True), _look(10.4, False), _look(11.4, False)) == [A]


def test_looks_in_between_do_not_put_it_off() -> None:
    assert _lost(_look(10, True), _look(10.4, False), _look(10.8, False), _look(11.2, False), _look(11.4, False)) == [A]


def test_second_has_to_be_over() -> None:
    assert _lost(_look(10, True), _look(10.4, False), _look(11.39, False)) == []


def test_one_single_reading_proves_nothing() -> None:
    assert _lost(_look(10, True), _look(12.9, False)) == []


def test_lock_that_was_never_seen_held_proves_nothing() -> None:
    assert _lost(*(_look(10 + n, False) for n in range(20))) == []


def test_lock_that_this_connection_has_not_seen_held_proves_nothing() -> None:
    assert _lost(_look(10, True), *(_look(10.4 + n, False, session=1) for n in range(20))) == []


def test_reconnect_between_the_two_probes_drops_the_suspicion() -> None:
    assert (
        _lost(_look(10, True), _look(10.4, False), _look(11.4, False, session=1), _look(12.4, False, session=1)) == []
    )


def test_connection_that_has_seen_it_held_itself_can_suspect_again() -> None:
    looks = [_look(10, True), _look(11, True, session=1), _look(11.4, False, session=1), _look(12.4, False, session=1)]

    assert _lost(*looks) == [A]


def test_free_at_every_probe_means_at_every_probe() -> None:
    looks = [_look(10, True), _look(10.4, False), _look(10.8, True), _look(11.4, False)]

    assert _lost(*looks) == []
    assert _lost(*looks, _look(12.3, False)) == []
    assert _lost(*looks, _look(12.4, False)) == [A]


@pytest.mark.parametrize(
    "unknown", [_look(10.8, None), _look(10.8, False, key=None), Look(10.8, 10.8, 0, {A: (7, KEY)}, {})]
)
def test_what_cannot_be_seen_drops_what_was_seen(unknown: Look) -> None:
    assert _lost(_look(10, True), _look(10.4, False), unknown, _look(11.4, False), _look(12.5, False)) == []


def test_beat_in_between_begins_the_second_anew() -> None:
    looks = [_look(10, True), _look(10.4, False), _look(11.4, False, counter=8)]

    assert _lost(*looks) == []
    assert _lost(*looks, _look(12.3, False, counter=8)) == []
    assert _lost(*looks, _look(12.4, False, counter=8)) == [A]


def test_beats_while_it_is_held_do_not_matter() -> None:
    assert _lost(_look(10, True), _look(10.4, False, counter=8), _look(11.4, False, counter=8)) == [A]


def test_new_session_of_the_node_must_be_seen_held_itself() -> None:
    looks = [_look(10, True), _look(10.4, False), _look(11.4, False, key=OTHER_KEY)]

    assert _lost(*looks) == []
    assert _lost(*looks, *(_look(11.4 + n, False, key=OTHER_KEY) for n in (1, 2, 3))) == []


def test_new_session_with_the_same_counter_is_another_session() -> None:
    assert _lost(_look(10, True), _look(10.4, False), _look(10.8, True, key=OTHER_KEY), _look(11.4, False)) == []


def test_node_that_was_not_watched_for_a_while_must_be_seen_held_anew() -> None:
    unwatched = Look(10.8, 10.8, 0, {}, {})

    assert _lost(_look(10, True), _look(10.4, False), unwatched, _look(11.4, False), _look(12.4, False)) == []


def test_pause_of_the_observer_begins_the_second_anew() -> None:
    woken = 10.4 + LONGEST_GAP + 0.1

    assert _lost(_look(10, True), _look(10.4, False), _look(woken, False)) == []
    assert _lost(_look(10, True), _look(10.4, False), _look(woken, False), _look(woken + 1, False)) == [A]


def test_pause_within_a_look_does_not_count_as_time_seen_free() -> None:
    slow = _look(10.4, False, took=2)

    assert _lost(_look(10, True), slow, _look(12.5, False)) == []
    assert _lost(_look(10, True), slow, _look(13.3, False, took=5)) == []
    assert _lost(_look(10, True), slow, _look(13.4, False)) == [A]


def test_declaration_that_came_to_nothing_is_repeated_a_second_later() -> None:
    looks = [_look(10, True), _look(10.4, False), _look(11.4, False)]
    suspicions = Suspicions()
    for look in looks:
        suspicions.observe(look)

    assert suspicions.observe(_look(11.5, False)) == []
    assert suspicions.observe(_look(12.4, False)) == [A]


def test_nodes_are_judged_one_by_one() -> None:
    peers = {A: (1, "a"), B: (2, "b"), C: (3, None)}
    suspicions = Suspicions()

    suspicions.observe(Look(10, 10, 0, peers, {"a": True, "b": True}))
    suspicions.observe(Look(10.4, 10.4, 0, peers, {"a": False, "b": True}))
    suspicions.observe(Look(10.8, 10.8, 0, peers, {"a": False, "b": False}))

    assert suspicions.observe(Look(11.4, 11.4, 0, peers, {"a": False, "b": False})) == [A]
    assert suspicions.observe(Look(11.8, 11.8, 0, peers, {"a": False, "b": False})) == [B]


def test_second_probe_is_due_a_second_after_the_answer_of_the_first() -> None:
    suspicions = Suspicions()
    assert suspicions.next_probe(9) is None

    suspicions.observe(_look(10, True))
    assert suspicions.next_probe(10) is None

    suspicions.observe(_look(10.5, False, took=0.25))
    assert suspicions.next_probe(10.75) == PATIENCE
    assert suspicions.next_probe(11.5) == 0.25
    assert suspicions.next_probe(20) == 0

    suspicions.observe(_look(11, True))
    assert suspicions.next_probe(11) is None


def test_second_probe_is_due_for_the_longest_suspected_first() -> None:
    peers = {A: (1, "a"), B: (2, "b")}
    suspicions = Suspicions()

    suspicions.observe(Look(10, 10, 0, peers, {"a": True, "b": True}))
    suspicions.observe(Look(10.25, 10.25, 0, peers, {"a": False, "b": True}))
    suspicions.observe(Look(10.5, 10.5, 0, peers, {"a": False, "b": False}))

    assert suspicions.next_probe(10.5) == 0.75


def test_declared_node_asks_for_no_probe_at_once() -> None:
    suspicions = Suspicions()
    for look in (_look(10, True), _look(10.5, False), _look(11.5, False)):
        suspicions.observe(look)

    assert suspicions.next_probe(11.5) == PATIENCE


# --- sharing


def _ring(size: int) -> dict[UUID, tuple[int, str | None]]:
    return {UUID(int=n): (1, f"key {n:02}") for n in range(size)}


@pytest.mark.parametrize(
    ("me", "expected"), [(0, [1, 2, 3]), (5, [6, 7, 8]), (7, [8, 9, 0]), (9, [0, 1, 2])], ids=lambda value: str(value)
)
def test_each_watches_its_three_successors(me: int, expected: list[int]) -> None:
    assert watched(f"key {me:02}", _ring(10)) == [UUID(int=n) for n in expected]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 50])
def test_each_is_watched_by_three_or_by_all(size: int) -> None:
    ring = _ring(size)

    watching = [node for _, key in ring.values() for node in watched(key, ring)]

    assert sorted(watching) == sorted([*ring] * min(3, size - 1))


def test_nobody_watches_itself_or_what_has_no_lock() -> None:
    peers = {A: (1, "a"), B: (1, None), C: (1, "c")}

    assert watched("a", peers) == [C]
    assert watched("b", peers) == [C, A]
    assert watched(None, peers) == []
    assert watched("a", {}) == []


def test_few_nodes_look_often_and_many_once_a_second() -> None:
    assert [tick(watchers) for watchers in (0, 1, 2, 3)] == [1.0, 0.4, 0.8, 1.0]
