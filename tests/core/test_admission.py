"""Who gets a slot: first in first out, fair by source, running first, bounded."""

from __future__ import annotations

from random import Random

import pytest

from edgeshard_p2p.core.admission import (
    QUEUE_MAX,
    RETRY_MAX_MS,
    RETRY_MIN_MS,
    RETRY_MS,
    Admission,
    Waiting,
)
from edgeshard_p2p.core.ids import PeerId
from tests.core.parts import A, B, C, request


def ask(
    admission: Admission,
    source: PeerId,
    sequence: int,
    since: float = 0.0,
    attempt: int = 1,
    is_running: bool = False,
) -> str:
    return admission.on_ask(Waiting(request(sequence, source), attempt, is_running, since), 0.0)


def grants(admission: Admission) -> list[str]:
    return [str(waiting.request) for waiting in admission.grant_next(0.0)]


def test_slots_are_granted_until_they_are_gone() -> None:
    admission = Admission(2)
    assert [ask(admission, A, k) for k in (1, 2, 3)] == ["granted", "granted", "queued"]
    assert grants(admission) == []


def test_same_ask_again_gets_the_same_answer() -> None:
    admission = Admission(1)
    for _ in range(3):
        assert ask(admission, A, 1) == "granted"
        assert ask(admission, A, 2) == "queued"
    assert (len(admission.granted), len(admission.queue)) == (1, 1)


def test_first_come_first_served() -> None:
    admission = Admission(1)
    ask(admission, A, 1)
    for sequence, since in ((2, 5.0), (3, 4.0), (4, 6.0)):
        ask(admission, A, sequence, since)
    ask(admission, A, 3, since=7.0)  # Repeating an ask does not lose the place.
    order = []
    for k in (1, 3, 2, 4):
        admission.give_back(request(k), 1, 0.0)
        order += grants(admission)
    assert order == ["a@1#3", "a@1#2", "a@1#4"]


def test_source_that_holds_fewer_goes_first() -> None:
    admission = Admission(3)
    for k in (1, 2, 3):
        ask(admission, A, k)
    for k in (4, 5):
        ask(admission, A, k, since=float(k))
    ask(admission, B, 1, since=9.0)
    admission.give_back(request(1), 1, 0.0)
    assert grants(admission) == ["b@1#1"]
    admission.give_back(request(2), 1, 0.0)
    assert grants(admission) == ["a@1#4"]


def test_running_requests_go_before_new_ones() -> None:
    admission = Admission(2)
    ask(admission, A, 1)
    ask(admission, A, 2)
    ask(admission, B, 1, since=1.0)
    ask(admission, A, 3, since=9.0, is_running=True)
    admission.give_back(request(1), 1, 0.0)
    assert grants(admission) == ["a@1#3"]  # Though a holds another already, and b none.


def test_queue_is_bounded_and_says_so() -> None:
    admission = Admission(1)
    verdicts = [ask(admission, A, k) for k in range(QUEUE_MAX + 3)]
    assert verdicts == ["granted", *["queued"] * QUEUE_MAX, "overloaded", "overloaded"]
    assert ask(admission, A, 5) == "queued"  # Those inside stay inside.
    assert ask(admission, A, 999, is_running=True) == "queued"  # What runs was admitted before.


def test_release_of_an_earlier_attempt_leaves_the_slot() -> None:
    admission = Admission(1)
    ask(admission, A, 1, attempt=1)
    ask(admission, A, 1, attempt=2)  # It overtook the release of attempt 1.
    admission.give_back(request(1), 1, 0.0)
    assert ask(admission, B, 1) == "queued"
    admission.give_back(request(1), 2, 0.0)
    assert grants(admission) == ["b@1#1"]


def test_withdrawal_of_an_earlier_ask_leaves_the_place() -> None:
    admission = Admission(1)
    ask(admission, B, 1)
    ask(admission, A, 1, attempt=2)
    admission.give_back(request(1), 1, 0.0)
    assert request(1) in admission.queue
    admission.give_back(request(1), 2, 0.0)
    assert not admission.queue


def test_giving_back_what_was_never_granted_changes_nothing() -> None:
    admission = Admission(1)
    admission.give_back(request(1), 1, 0.0)
    assert (admission.granted, admission.queue) == ({}, {})


def test_grants_and_asks_lapse_with_their_source() -> None:
    admission = Admission(1)
    ask(admission, A, 1)
    ask(admission, A, 2)
    ask(admission, B, 1)
    admission.forget_source(A)
    assert grants(admission) == ["b@1#1"]
    assert not admission.queue


def test_what_the_source_has_forgotten_is_forgotten_here() -> None:
    admission = Admission(2)
    for k in (1, 2, 3, 4):
        ask(admission, A, k)
    ask(admission, B, 1)
    admission.forget_below(A, 4)
    assert (set(admission.granted), set(admission.queue)) == (
        set(),
        {request(4), request(1, B)},
    )


@pytest.mark.parametrize("seed", range(20))
def test_never_more_grants_than_slots_and_nobody_waits_beside_a_free_one(seed: int) -> None:
    rng = Random(seed)
    admission = Admission(rng.randint(1, 4))
    for _ in range(300):
        who = request(rng.randint(1, 12), rng.choice((A, B, C)))
        attempt = rng.randint(1, 3)
        if rng.random() < 0.6:
            asked = Waiting(who, attempt, rng.random() < 0.3, rng.random())
            admission.on_ask(asked, 0.0)
        elif rng.random() < 0.8:
            admission.give_back(who, attempt, 0.0)
        else:
            admission.forget_source(who.source)
        assert not set(admission.granted) & set(admission.queue)
        admission.grant_next(0.0)
        assert len(admission.granted) <= admission.slots
        assert not admission.queue or len(admission.granted) == admission.slots


def test_who_is_refused_is_told_how_often_slots_come_back() -> None:
    admission = Admission(4)
    assert admission.retry_ms() == RETRY_MS
    for k in range(1, 5):
        admission.on_ask(Waiting(request(k), 1, False, 0.0), 10.0)
    admission.give_back(request(1), 1, 18.0)
    assert admission.retry_ms() == 2000
    admission.give_back(request(2), 1, 26.0)  # Longer than the one before it: it counts a quarter.
    assert admission.retry_ms() == 2500
    admission.on_ask(Waiting(request(5), 1, False, 0.0), 30.0)
    admission.forget_source(A)
    assert admission.retry_ms() == 2500


@pytest.mark.parametrize(("held_s", "retry_ms"), [(0.1, RETRY_MIN_MS), (1e4, RETRY_MAX_MS)])
def test_hint_is_no_shorter_and_no_longer_than_sense_allows(held_s: float, retry_ms: int) -> None:
    admission = Admission(1)
    admission.on_ask(Waiting(request(1), 1, False, 0.0), 0.0)
    admission.give_back(request(1), 1, held_s)
    assert admission.retry_ms() == retry_ms
