"""Devices that turn out slower than their records say: who finds out, who believes it, how long."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgeshard_p2p.core.flow import Flow, Frame
from edgeshard_p2p.core.gray import FRAMES, PERCENT_MAX, SLOW_BY_US, Judge, Slowness
from edgeshard_p2p.core.ids import PeerId, UnitRange
from edgeshard_p2p.core.messages import FrameKind, RowGroupHeader, Slow
from edgeshard_p2p.core.records import UnitTimes
from tests.core.parts import PLAN, TIMING, A, B, C, membership, sent
from tests.core.test_flow import ENTRY, INNER, RETURN, TENSOR, opened, received

STRETCH_S = TIMING.slow_stretch_s
PROMISED_US = 10_000
STEP_S = STRETCH_S / FRAMES


def decode(position: int, service_us: int, rows: int = 1) -> Frame:
    group = RowGroupHeader(0, 1, 1, position, rows, position, 6, 0)
    return Frame(FrameKind.HIDDEN, (group,), 9, service_us, TENSOR)


def token(position: int, service_us: int) -> Frame:
    group = RowGroupHeader(0, 1, 1, position, 1, position, 0, 0)
    return Frame(FrameKind.TOKENS, (group,), 9, service_us, tokens=(3,))


def verdicts(
    frame: Callable[[int], Frame],
    me: PeerId = C,
    edge: int = INNER,
    n: int = 3 * FRAMES,
    step_s: float = STEP_S,
    promised_us: int = PROMISED_US,
) -> list[Slow]:
    """What is told to the sender of so many frames."""
    judge = Judge(membership(A, B, C, me=me), TIMING, lambda peer, units, rows: promised_us)
    flow, told = opened(me), []
    for k in range(n):
        header = received(edge, frame(k), k + 1).header
        told += [slow for _, slow in sent(judge.on_frame(header, flow, k * step_s), Slow)]
    return told


def test_sustained_slowness_is_told_once_with_how_slow() -> None:
    assert verdicts(lambda k: decode(k, 3 * PROMISED_US)) == [Slow(PLAN.id, 300)]


@pytest.mark.parametrize("n", [FRAMES, 2 * FRAMES])
def test_one_slow_stretch_is_not_enough(n: int) -> None:
    assert verdicts(lambda k: decode(k, 3 * PROMISED_US), n=n) == []


@pytest.mark.parametrize(
    "service_us",
    [
        lambda k: 2 * PROMISED_US,
        lambda k: PROMISED_US if k % 4 else 4 * PROMISED_US,
        lambda k: 3 * PROMISED_US if k < FRAMES else PROMISED_US,
    ],
    ids=["not beyond twice", "now and then", "for one stretch"],
)
def test_what_is_not_slow(service_us: Callable[[int], int]) -> None:
    assert verdicts(lambda k: decode(k, service_us(k)), n=6 * FRAMES) == []


def test_a_share_that_is_taken_in_long_pieces_counts_as_a_whole() -> None:
    told = verdicts(lambda k: decode(k, 11 * PROMISED_US if k % 4 == 0 else PROMISED_US))
    assert len(told) == 1
    assert 300 <= told[0].percent <= 450


@pytest.mark.parametrize(("longer_us", "n_told"), [(SLOW_BY_US - 1, 0), (SLOW_BY_US, 1)])
def test_little_work_is_slow_only_where_it_takes_long(longer_us: int, n_told: int) -> None:
    told = verdicts(lambda k: decode(k, 400 + longer_us), promised_us=400)
    assert len(told) == n_told


def test_frames_far_apart_are_no_stretch() -> None:
    step_s = 2 * STRETCH_S
    assert verdicts(lambda k: decode(k, 9 * PROMISED_US), n=6 * FRAMES, step_s=step_s) == []


def test_prompts_are_not_judged() -> None:
    assert verdicts(lambda k: decode(k, 9 * PROMISED_US, rows=5)) == []


def test_last_stage_is_judged_by_the_source_but_not_for_the_prompt() -> None:
    slow = 3 * PROMISED_US
    assert verdicts(lambda k: token(10 + k, slow), A, RETURN) == [Slow(PLAN.id, 300)]
    assert verdicts(lambda k: token(10 * k, slow), A, RETURN) == []


def test_everybody_is_judged_by_the_units_behind_the_edge() -> None:
    asked: list[tuple[PeerId, UnitRange]] = []

    def promise(peer: PeerId, units: UnitRange, rows: int) -> int:
        asked.append((peer, units))
        return 0

    for me, edge, frame in [
        (B, ENTRY, decode(0, 1)),
        (C, INNER, decode(0, 1)),
        (A, RETURN, token(1, 1)),
        (A, RETURN, token(2, 1)),
    ]:
        judge = Judge(membership(A, B, C, me=me), TIMING, promise)
        judge._next_positions[PLAN.id, 0, 1, 1] = frame.groups[0].position
        assert judge.on_frame(received(edge, frame, 1).header, opened(me), 0.0) == []
    entry, second, last = (A, PLAN.entry), (B, UnitRange(2, 4)), (C, UnitRange(4, 6))
    assert asked == [entry, second, last, last]


@pytest.mark.parametrize("flow", [None, opened(B)], ids=["unknown plan", "not my edge"])
def test_frames_that_are_nobodys_business_say_nothing(flow: Flow | None) -> None:
    judge = Judge(membership(A, B, me=C), TIMING, lambda peer, units, rows: PROMISED_US)
    for k in range(5 * FRAMES):
        header = received(INNER, decode(k, 9 * PROMISED_US), k + 1).header
        assert judge.on_frame(header, flow, k * STEP_S) == []


# --- the owner ------------------------------------------------------------------------------

FIGURES = (UnitTimes(1, 10, 100, 1_000), UnitTimes(4, 20, 200, 2_000))


def test_figures_are_as_much_slower_as_was_told_and_then_as_measured_again() -> None:
    slowness = Slowness(TIMING)
    assert slowness.of(FIGURES) == FIGURES
    assert slowness.on_slow(B, Slow(PLAN.id, 300), opened(A), 5.0)
    assert slowness.of(FIGURES) == (UnitTimes(1, 30, 300, 3_000), UnitTimes(4, 60, 600, 6_000))
    ends_at = 5.0 + TIMING.slow_expiry_s
    assert slowness.next_deadline() == ends_at
    assert slowness.tick(ends_at - 0.01) == []
    assert slowness.tick(ends_at)
    assert slowness.of(FIGURES) == FIGURES
    assert slowness.next_deadline() is None


def test_only_who_receives_its_frames_is_heard() -> None:
    slowness = Slowness(TIMING)
    assert slowness.on_slow(C, Slow(PLAN.id, 300), opened(A), 0.0) == []
    assert slowness.on_slow(B, Slow("0" * 16, 300), None, 0.0) == []
    assert slowness.percent == 100


def test_figures_change_at_most_so_often_and_within_bounds() -> None:
    slowness, flow = Slowness(TIMING), opened(A)
    slowness.on_slow(B, Slow(PLAN.id, 300), flow, 0.0)
    assert slowness.on_slow(B, Slow(PLAN.id, 300), flow, TIMING.slow_heed_s - 0.01) == []
    assert slowness.percent == 300
    for k in range(1, 5):
        slowness.on_slow(B, Slow(PLAN.id, PERCENT_MAX), flow, k * TIMING.slow_heed_s)
    assert slowness.percent == PERCENT_MAX
    longest_us = 3_600_000_000
    assert slowness.of((UnitTimes(1, longest_us, longest_us, 1),))[0].block_us == longest_us


def test_one_that_keeps_turning_out_slow_is_trusted_later_and_later() -> None:
    slowness, flow, now, waits = Slowness(TIMING), opened(A), 0.0, []
    for _ in range(7):
        slowness.on_slow(B, Slow(PLAN.id, 300), flow, now)
        ends_at = slowness.next_deadline()
        assert ends_at is not None
        waits.append((ends_at - now) / TIMING.slow_expiry_s)
        slowness.tick(ends_at)
        now = ends_at + 1.0
    assert waits == pytest.approx([1, 2, 4, 8, 16, 16, 16])
