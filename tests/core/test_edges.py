"""One edge: order, once each, resends, credit, epochs, loss; and which edges a plan has."""

from __future__ import annotations

from itertools import pairwise

import pytest
from msgspec.structs import replace

from edgeshard_p2p.core.edges import (
    WAITING_MAX,
    WINDOW,
    Due,
    EdgeKind,
    EdgeSpec,
    InEdge,
    OutEdge,
    edges_of,
)
from tests.core.parts import PLAN, SOLO, TIMING, A, B, C, D, some

SPEC = EdgeSpec(1, EdgeKind.INNER, B, C, 1, -1)


def opened(epoch: int = 5, now: float = 0.0) -> OutEdge[str]:
    edge: OutEdge[str] = OutEdge("0" * 16, SPEC, epoch, TIMING, now)
    assert edge.wants_opening(now)
    assert edge.on_answer(epoch)
    return edge


def offer(edge: OutEdge[str], text: str) -> None:
    for item in text:
        edge.offer(item)


def test_edges_of_a_plan() -> None:
    plan = replace(PLAN, sources=(A, D))
    assert [(e.kind.value, str(e.sender), str(e.receiver), e.source) for e in edges_of(plan)] == [
        ("entry", "a@1", "b@1", 0),
        ("entry", "d@1", "b@1", 1),
        ("inner", "b@1", "c@1", -1),
        ("return", "c@1", "a@1", 0),
        ("return", "c@1", "d@1", 1),
    ]
    assert [edge.index for edge in edges_of(plan)] == [0, 1, 2, 3, 4]
    assert edges_of(SOLO) == ()


# --- sending --------------------------------------------------------------------------------


def test_nothing_leaves_before_the_answer() -> None:
    edge: OutEdge[str] = OutEdge("0" * 16, SPEC, 5, TIMING, 0.0)
    offer(edge, "ab")
    assert edge.take_sendable(0.0) == []
    assert not edge.on_answer(4)
    assert edge.take_sendable(0.0) == []
    assert edge.on_answer(5)
    assert edge.take_sendable(0.0) == [(1, "a"), (2, "b")]
    assert not edge.on_answer(5)


def test_opening_is_asked_again_until_its_deadline() -> None:
    edge: OutEdge[str] = OutEdge("0" * 16, SPEC, 5, TIMING, 0.0)
    asked = []
    while (now := edge.next_deadline()) is not None:
        if edge.wants_opening(now):
            asked.append(now)
    assert edge.is_lost
    assert {round(b - a, 6) for a, b in pairwise(asked)} == {TIMING.edge_retry_s}
    assert asked[-1] == TIMING.edge_deadline_s - TIMING.edge_retry_s


def test_opening_waits_for_what_is_on_a_slow_link_already() -> None:
    edge: OutEdge[str] = OutEdge("0" * 16, SPEC, 5, TIMING, 0.0, ahead_s=30.0)
    assert edge.wants_opening(TIMING.edge_deadline_s + 29.0)
    assert not edge.wants_opening(TIMING.edge_deadline_s + 30.0)
    assert edge.is_lost


def test_word_of_a_slow_link_waits_for_what_is_on_its_way_back() -> None:
    edge: OutEdge[str] = OutEdge("0" * 16, SPEC, 5, TIMING, 0.0, ahead_s=30.0)
    edge.on_answer(5)
    edge.offer("a")
    edge.take_sendable(0.0)
    assert edge.take_resends(TIMING.edge_lost_s + 29.0) == [(1, "a")]
    assert not edge.is_lost
    edge.take_resends(TIMING.edge_lost_s + 30.0)
    assert edge.is_lost


def test_what_a_slow_link_still_carries_is_not_sent_again() -> None:
    edge = opened()
    edge.offer("a", carry_s=10.0)
    edge.take_sendable(0.0)
    assert edge.take_resends(2 * 10.0 - 0.1) == []
    assert not edge.is_lost
    resend_at = some(edge.next_deadline())
    assert resend_at > 2 * 10.0
    assert edge.take_resends(resend_at) == [(1, "a")]


def test_edge_of_a_slow_link_is_lost_as_well() -> None:
    edge = opened()
    edge.offer("a", carry_s=10.0)
    edge.offer("b", carry_s=10.0)
    edge.take_sendable(0.0)
    while (now := edge.next_deadline()) is not None:
        edge.take_resends(now)
    assert edge.is_lost
    assert edge.drain() == ["a", "b"]


def test_what_is_confirmed_is_waited_for_no_more() -> None:
    edge = opened()
    edge.offer("a", carry_s=10.0)
    edge.offer("b", carry_s=0.1)
    edge.take_sendable(0.0)
    edge.on_ack(5, 1, 1 + WINDOW, 0, 12.0)
    assert edge.next_deadline() == pytest.approx(12.0 + TIMING.resend_s + 2 * 0.1)


def test_window_bounds_what_is_on_its_way() -> None:
    edge = opened()
    offer(edge, "abcdefghijkl")
    assert len(edge.take_sendable(0.0)) == WINDOW
    assert edge.take_sendable(0.0) == []
    assert edge.on_ack(5, 2, 2 + WINDOW, 0, 0.0) == ["a", "b"]
    assert edge.take_sendable(0.0) == [(WINDOW + 1, "i"), (WINDOW + 2, "j")]


def test_credit_never_exceeds_the_window_and_never_shrinks() -> None:
    edge = opened()
    offer(edge, "a" * 40)
    edge.take_sendable(0.0)
    edge.on_ack(5, 0, 10**6, 0, 0.0)
    assert edge.take_sendable(0.0) == []
    edge.on_ack(5, 4, 4 + WINDOW, 0, 0.0)
    edge.on_ack(5, 4, 3, 0, 0.0)
    assert len(edge.take_sendable(0.0)) == 4


def test_acknowledgement_of_what_was_never_sent_says_nothing() -> None:
    edge = opened()
    offer(edge, "ab")
    edge.take_sendable(0.0)
    assert edge.on_ack(5, 3, 11, 0, 0.0) == []


def test_edge_that_is_offered_too_much_is_given_up() -> None:
    edge = opened()
    offer(edge, "a" * WAITING_MAX)
    assert not edge.is_lost
    offer(edge, "a")
    assert edge.is_lost


def test_acknowledgement_of_another_epoch_says_nothing() -> None:
    edge = opened()
    offer(edge, "ab")
    edge.take_sendable(0.0)
    assert edge.on_ack(4, 2, 10, 0, 0.0) == []
    assert edge.on_ack(6, 2, 10, 0, 0.0) == []
    assert edge.on_ack(5, 1, 9, 0, 0.0) == ["a"]
    assert edge.on_ack(5, 1, 9, 0, 0.0) == []


def test_unconfirmed_frames_are_sent_again_until_they_are_confirmed() -> None:
    edge = opened()
    offer(edge, "ab")
    edge.take_sendable(0.0)
    assert edge.take_resends(TIMING.resend_s - 0.01) == []
    assert edge.next_deadline() == TIMING.resend_s
    assert edge.take_resends(TIMING.resend_s) == [(1, "a"), (2, "b")]
    assert edge.on_ack(5, 1, 9, 0, TIMING.resend_s) == ["a"]
    assert edge.take_resends(2 * TIMING.resend_s) == [(2, "b")]
    edge.on_ack(5, 2, 10, 0, 2 * TIMING.resend_s)
    assert edge.next_deadline() is None


def test_resends_are_fewer_the_longer_no_word_comes() -> None:
    edge: OutEdge[str] = OutEdge("0" * 16, SPEC, 5, TIMING, 0.0, ahead_s=40.0)
    edge.on_answer(5)
    offer(edge, "a")
    edge.take_sendable(0.0)
    times = []
    while (now := some(edge.next_deadline())) < 20.0:
        assert edge.take_resends(now) == [(1, "a")]
        times.append(now)
    gaps = [b - a for a, b in pairwise(times)]
    assert times[0] == gaps[0] == TIMING.resend_s
    assert len(times) < 15  # Not 39, one each half second.
    assert len([time for time in times if time < TIMING.edge_lost_s]) >= 7
    assert edge.on_ack(5, 1, 9, 0, 20.0) == ["a"]
    offer(edge, "b")
    edge.take_sendable(21.0)
    assert edge.next_deadline() == 21.0 + TIMING.resend_s


def test_edge_without_progress_is_lost_with_all_it_carried() -> None:
    edge = opened()
    offer(edge, "a" * WINDOW + "z")
    edge.take_sendable(0.0)
    now = 0.0
    while not edge.is_lost:
        now = some(edge.next_deadline())
        edge.take_resends(now)
    assert now == TIMING.edge_lost_s
    assert edge.drain() == ["a"] * WINDOW + ["z"]
    assert edge.next_deadline() is None


def test_any_progress_keeps_the_edge() -> None:
    edge = opened()
    offer(edge, "abcd")
    edge.take_sendable(0.0)
    for k in range(1, 4):
        now = k * (TIMING.edge_lost_s - 0.1)
        edge.on_ack(5, k, k + WINDOW, 0, now)
        edge.take_resends(now)
        assert not edge.is_lost


def test_lost_credit_is_asked_for_again() -> None:
    edge = opened()
    offer(edge, "a" * WINDOW + "z")
    edge.take_sendable(0.0)
    edge.on_ack(5, WINDOW, WINDOW, 0, 0.0)  # All arrived, none consumed; the next credit is lost.
    assert edge.take_sendable(0.0) == []
    assert edge.next_deadline() == TIMING.resend_s
    assert not edge.wants_opening(TIMING.resend_s - 0.01)
    assert edge.wants_opening(TIMING.resend_s)
    assert not edge.wants_opening(TIMING.resend_s)
    edge.on_ack(5, WINDOW, 2 * WINDOW, 0, TIMING.resend_s)
    assert edge.take_sendable(TIMING.resend_s) == [(WINDOW + 1, "z")]


# --- receiving ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch", "sequence", "expected"),
    [(5, 3, True), (5, 2, False), (5, 1, False), (5, 4, False), (4, 3, False), (6, 3, False)],
)
def test_only_the_next_frame_of_the_epoch_is_accepted(
    epoch: int, sequence: int, expected: bool
) -> None:
    edge = InEdge(SPEC)
    assert edge.on_open(5)
    assert edge.accepts(5, 1)
    assert edge.accepts(5, 2)
    assert edge.accepts(epoch, sequence) is expected
    assert edge.received == (3 if expected else 2)


def test_nothing_is_accepted_before_the_opening() -> None:
    assert not InEdge(SPEC).accepts(0, 1)


def test_later_epoch_starts_anew_and_an_older_one_is_ignored() -> None:
    edge = InEdge(SPEC)
    edge.on_open(5)
    edge.accepts(5, 1)
    edge.consumed = 1
    assert edge.on_open(5)
    assert (edge.received, edge.credit) == (1, 1 + WINDOW)
    assert edge.on_open(7)
    assert (edge.received, edge.credit) == (0, WINDOW)
    assert not edge.on_open(5)
    assert edge.epoch == 7
    assert edge.accepts(7, 1)


def test_frames_of_an_earlier_epoch_give_no_credit_in_the_next() -> None:
    edge = InEdge(SPEC)
    edge.on_open(5)
    assert edge.accepts(5, 1)
    assert edge.accepts(5, 2)
    edge.consume(Due(SPEC, 5, is_chunk=True))
    assert (edge.credit, edge.chunks) == (WINDOW + 1, 1)
    edge.on_open(6)
    assert edge.accepts(6, 1)
    edge.consume(Due(SPEC, 5, is_chunk=True))
    assert (edge.received, edge.credit, edge.chunks) == (1, WINDOW, 0)
    edge.consume(Due(SPEC, 6))
    assert (edge.credit, edge.chunks) == (WINDOW + 1, 0)


def test_chunks_are_ahead_until_the_other_end_has_computed_them() -> None:
    edge = opened()
    edge.offer("a", is_chunk=True)
    edge.offer("b")
    edge.offer("c", is_chunk=True)
    assert edge.chunks_ahead == 2
    edge.take_sendable(0.0)
    edge.on_ack(5, 3, 3 + WINDOW, 1, 0.0)
    assert edge.chunks_ahead == 1
    edge.on_ack(5, 3, 3 + WINDOW, 0, 0.0)  # An old one that comes late.
    edge.on_ack(4, 3, 3 + WINDOW, 2, 0.0)  # Of another epoch.
    assert edge.chunks_ahead == 1
    edge.on_ack(5, 3, 3 + WINDOW, 10**6, 0.0)  # More than there are.
    assert edge.chunks_ahead == 0
    edge.offer("d", is_chunk=True)
    assert edge.chunks_ahead == 1


def test_lost_word_of_a_chunk_is_asked_for_again() -> None:
    edge = opened()
    edge.offer("a", is_chunk=True)
    edge.take_sendable(0.0)
    edge.on_ack(5, 1, 1 + WINDOW, 0, 0.0)
    assert edge.next_deadline() == TIMING.resend_s
    assert not edge.wants_opening(0.0)
    assert edge.wants_opening(TIMING.resend_s)
    edge.on_ack(5, 1, 2 + WINDOW, 1, TIMING.resend_s)
    assert edge.next_deadline() is None
