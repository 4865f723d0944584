"""Times of rows that were not measured, from those that were."""

from __future__ import annotations

import pytest

from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.plan import Device, RowTimes, chunks_of

DEVICE = Device(
    PeerId("a", 1),
    True,
    0,
    (10, 100),
    decode=(RowTimes(4, (20, 220)),),
    prefill=(RowTimes(32, (30, 300)), RowTimes(128, (90, 1200))),
)


@pytest.mark.parametrize(
    ("rows", "us"),
    [(1, (10, 100)), (2, (14, 140)), (4, (20, 220)), (6, (30, 330)), (8, (40, 440))],
)
def test_decode_is_a_line_between_and_in_proportion_beyond(rows: int, us: tuple[int, int]) -> None:
    assert DEVICE.decode_us(rows) == us


@pytest.mark.parametrize(
    ("tokens", "us"),
    [(0, (0, 0)), (1, (30, 300)), (80, (60, 750)), (128, (90, 1200)), (130, (120, 1500))],
)
def test_prefill_is_the_sum_of_its_chunks(tokens: int, us: tuple[int, int]) -> None:
    assert DEVICE.prefill_us(tokens) == us


def test_without_prefill_times_prompts_cost_as_much_as_rows_of_decode() -> None:
    bare = Device(PeerId("a", 1), True, 0, (10, 100))
    assert bare.prefill_us(3) == (30, 300)


def test_prompts_are_cut_into_chunks() -> None:
    assert chunks_of(300) == (128, 128, 44)
    assert chunks_of(0) == ()
