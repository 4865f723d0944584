"""What passes take besides their units: learned from several stretches, told when it has moved."""

from __future__ import annotations

from edgeshard_p2p.core.beside import STRETCHES, Beside
from edgeshard_p2p.core.effects import Log, SavePassTime


def told(beside: Beside, *stretches_us: int) -> list[int]:
    effects = [effect for us in stretches_us for effect in beside.on_timed(us)]
    return [effect.us for effect in effects if isinstance(effect, SavePassTime)]


def test_the_second_lowest_is_told_once_there_are_three() -> None:
    beside = Beside()
    assert told(beside, 10_000, 90_000) == []
    assert (told(beside, 9_000), beside.us) == ([10_000], 10_000)


def test_a_third_more_or_less_is_not_told() -> None:
    beside = Beside(9_000)
    assert (told(beside, *[12_000] * 9, *[6_000] * 9), beside.us) == ([], 9_000)
    assert (told(beside, *[12_001] * 4), beside.us) == ([12_001], 12_001)


def test_one_low_stretch_and_a_few_high_ones_move_nothing() -> None:
    beside = Beside(9_000)
    assert told(beside, *[9_000] * 5, 0, *[90_000] * (STRETCHES - 3), 9_000, 9_000) == []


def test_what_no_plan_depends_on_is_not_told_again() -> None:
    beside = Beside()
    assert told(beside, *[1] * 5) == [1]  # The first is: something is known now.
    assert (told(beside, *[500] * 5), told(beside, *[501] * 4)) == ([], [501])
    assert told(beside, *[1] * 5) == [1]


def test_it_says_so() -> None:
    beside = Beside()
    effects = [effect for us in (1_500,) * 3 for effect in beside.on_timed(us)]
    assert Log("a pass takes 1.5 ms of this device besides its units") in effects
