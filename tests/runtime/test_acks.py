"""Which acknowledgements go soon, and that none is lost by waiting."""

from __future__ import annotations

import pytest

from edgeshard_p2p.core.effects import Send
from edgeshard_p2p.core.messages import Address, FrameAck
from edgeshard_p2p.runtime.acks import EDGES_MAX, UNTOLD_MAX, Acks

TO, PLAN = Address("10.0.0.1", 7911), "a" * 16
TOLD = FrameAck(PLAN, 3, epoch=2, acked=10, credit=15, chunks=1)


def put(acks: Acks, ack: FrameAck) -> bool:
    return acks.put(Send(TO, ack), ack)


def after(ack: FrameAck) -> tuple[bool, list[object]]:
    """Whether it goes soon after TOLD has gone, and what goes."""
    acks = Acks()
    put(acks, TOLD)
    acks.take()
    is_soon = put(acks, ack)
    return is_soon, [effect.message for effect in acks.take()]


@pytest.mark.parametrize(
    ("ack", "is_soon"),
    [
        (FrameAck(PLAN, 3, 2, 11, 15, 1), False),
        (FrameAck(PLAN, 3, 2, 10 + UNTOLD_MAX - 1, 16, 1), False),
        (FrameAck(PLAN, 3, 2, 10 + UNTOLD_MAX, 16, 1), True),
        (FrameAck(PLAN, 3, 2, 11, 15 + UNTOLD_MAX, 1), True),
        (FrameAck(PLAN, 3, 2, 11, 16, 2), True),
        (FrameAck(PLAN, 3, 3, 0, 8, 0), True),
        (TOLD, True),
    ],
    ids=["a frame", "some", "many", "credit", "a chunk", "a new epoch", "asked again"],
)
def test_what_somebody_waits_for_goes_soon(ack: FrameAck, is_soon: bool) -> None:
    assert after(ack) == (is_soon, [ack])


def test_the_first_of_an_edge_goes_soon() -> None:
    assert put(Acks(), TOLD)


def test_the_latest_stands_for_those_before_it() -> None:
    acks = Acks()
    acks_put = [FrameAck(PLAN, edge, 1, acked, 8 + acked) for acked in (1, 2) for edge in (0, 1)]
    for ack in acks_put:
        put(acks, ack)
    assert [effect.message for effect in acks.take()] == acks_put[2:]
    assert acks.take() == []


def test_edges_of_the_past_are_forgotten() -> None:
    acks = Acks()
    for edge in range(EDGES_MAX + 1):
        put(acks, FrameAck(PLAN, edge, 1, 1, 9))
    acks.take()
    acks.take()
    assert put(acks, FrameAck(PLAN, 0, 1, 2, 10))
