"""When a micro-batch starts, whom a stage serves next, and the closed forms of both schedules."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeshard_p2p.core.layout import Leg
from edgeshard_p2p.core.schedule import (
    Order,
    Pace,
    Schedule,
    Server,
    Ticket,
    bubble_shares,
    iteration_of,
    iteration_us,
    loads_us,
)

SCHEDULES: tuple[Schedule, ...] = ("bubbles", "no-bubbles")


def _started(schedule: Schedule, *micro_batches: int) -> Pace:
    pace = Pace(schedule)
    for micro_batch in micro_batches:
        pace.joined(micro_batch)
    assert pace.starts() == sorted(micro_batches)
    return pace


def test_without_bubbles_each_starts_when_it_is_back() -> None:
    pace = _started("no-bubbles", 0, 1, 2)
    pace.back(1)
    assert pace.starts() == [1]
    assert pace.starts() == []
    pace.joined(3)
    assert pace.starts() == [3]


def test_with_bubbles_all_wait_for_the_last_of_the_iteration() -> None:
    pace = _started("bubbles", 0, 1, 2)
    for micro_batch in (2, 0):
        pace.back(micro_batch)
        assert pace.starts() == []
    pace.back(1)
    assert pace.starts() == [0, 1, 2]


def test_with_bubbles_a_newcomer_waits_for_the_next_iteration() -> None:
    pace = _started("bubbles", 0, 1)
    pace.joined(2)
    pace.back(0)
    assert pace.starts() == []
    pace.back(1)
    assert pace.starts() == [0, 1, 2]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_that_is_through_is_not_waited_for(schedule: Schedule) -> None:
    pace = _started(schedule, 0, 1)
    pace.back(0)
    pace.left(1)
    assert pace.starts() == [0]
    pace.left(0)
    assert pace.starts() == []
    assert pace.out == pace.waiting == set()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nothing_comes_back_that_has_not_started(schedule: Schedule) -> None:
    with pytest.raises(KeyError):
        Pace(schedule).back(0)


def _served(order: Order, *tickets: Ticket) -> list[Ticket]:
    server = Server(order)
    for ticket in tickets:
        server.arrive(ticket)
    served: list[Ticket] = []
    while (ticket_ := server.begin()) is not None:
        served.append(ticket_)
        server.end()
    return served


def test_first_come_first_served_and_together_by_number() -> None:
    early, low, high, piece = Ticket(3, 9), Ticket(5, 1), Ticket(5, 2), Ticket(5, 1, 1)
    assert _served("fifo", high, piece, low, early) == [early, low, piece, high]
    assert _served("lowest-id", high, piece, low, early) == [low, piece, high, early]


def test_a_server_takes_one_at_a_time() -> None:
    server = Server()
    assert server.begin() is None
    server.arrive(Ticket(0, 1))
    assert server.begin() == Ticket(0, 1)
    server.arrive(Ticket(1, 0))
    assert server.begin() is None
    server.end()
    assert server.begin() == Ticket(1, 0)


LEGS = [Leg("a", 10), Leg("a->b", 4, 6), Leg("b", 20), Leg("b->a", 1, 9)]
"""35 occupied and 15 of delay: alone 50."""


@pytest.mark.parametrize(
    ("n", "bubbles", "no_bubbles"), [(1, 50, 50), (2, 70, 50), (3, 90, 60), (5, 130, 100)]
)
def test_closed_forms_by_hand(n: int, bubbles: int, no_bubbles: int) -> None:
    assert iteration_of("bubbles", LEGS, n) == bubbles
    assert iteration_of("no-bubbles", LEGS, n) == no_bubbles


def test_bubble_shares_by_hand() -> None:
    assert bubble_shares("no-bubbles", LEGS, 5) == {
        "a": Fraction(1, 2),
        "a->b": Fraction(4, 5),
        "b": Fraction(0),
        "b->a": Fraction(19, 20),
    }
    assert bubble_shares("bubbles", LEGS, 2)["b"] == Fraction(3, 7)
    assert bubble_shares("bubbles", [Leg("a", 0)], 2) == {"a": Fraction(0)}


def test_a_resource_passed_twice_is_loaded_twice() -> None:
    legs = [Leg("a", 10), Leg("b", 12), Leg("a", 5)]
    assert loads_us(legs) == {"a": 15, "b": 12}
    assert iteration_of("no-bubbles", legs, 4) == 60


TIMES = st.integers(0, 10**6)


@given(TIMES, TIMES, st.integers(1, 64))
def test_bubbles_never_pay(bottleneck_us: int, others_us: int, n: int) -> None:
    pipeline_us = bottleneck_us + others_us
    with_bubbles = iteration_us("bubbles", pipeline_us, bottleneck_us, n)
    without = iteration_us("no-bubbles", pipeline_us, bottleneck_us, n)
    assert without <= with_bubbles
    assert (n == 1) <= (without == with_bubbles == pipeline_us)
