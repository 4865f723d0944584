"""What passes take besides their units, reckoned from processor times at the ends of passes."""

from __future__ import annotations

import math
import time

import pytest

from edgeshard_p2p.runtime.beside import PASSES_MIN, STRETCH_MAX_S, STRETCH_S, BesideClock, Mark

QUARTER = 0.25


class Life:
    """A process of a quarter of a core, with the clock that watches it."""

    def __init__(self, cores: float = QUARTER) -> None:
        self.told: list[int] = []
        self.n_turns = 0
        self.clock = BesideClock(self.told.append, lambda: self.n_turns, lambda: cores)
        self.last = self.clock.last
        self.now, self.process_s = self.last.at, self.last.process_s
        self.n_passes, self.forward_s = 0, 0.0

    def idle(self, seconds: float, cpu_s: float) -> None:
        self.now += seconds
        self.process_s += cpu_s

    def serve(self, n_passes: int, seconds: float, forward_s: float, beside_s: float) -> None:
        """So many passes, each with these times, all in so many seconds."""
        for _ in range(n_passes):
            self.n_passes += 1
            self.n_turns += 2
            self.forward_s += forward_s
            self.idle(seconds / n_passes, forward_s + beside_s)
        self.last = Mark(self.now, self.n_passes, self.process_s, self.forward_s)

    def look(self) -> list[int]:
        self.told.clear()
        self.clock.look(self.last, self.now, self.process_s)
        return list(self.told)


def test_what_is_no_forward_pass_is_besides() -> None:
    life = Life()
    life.serve(50, 5.0, 0.010, 0.002)
    assert life.look() == [pytest.approx(8_000, abs=2)]  # 2 ms, of a quarter of a core


def test_what_it_takes_anyhow_does_not_count() -> None:
    life = Life()
    life.idle(2.0, 0.020)
    assert life.look() == []
    for n_turns in (1, 1, 2):  # It loads something.
        life.n_turns = n_turns
        life.idle(2.0, 1.000)
        assert life.look() == []
    life.serve(50, 5.0, 0.010, 0.003)
    assert life.look() == [pytest.approx(8_000, abs=2)]  # less 5 s of 1 %: 1 ms for each pass


def test_each_stretch_is_reckoned_by_itself() -> None:
    life = Life()
    life.serve(50, 5.0, 0.010, 0.002)
    life.look()
    life.serve(50, 5.0, 0.100, 0.001)
    assert life.look() == [pytest.approx(4_000, abs=2)]


def test_a_stretch_goes_on_until_it_has_passes_and_time_enough() -> None:
    life = Life()
    life.serve(PASSES_MIN - 1, STRETCH_S, 0.010, 0.001)
    assert life.look() == []
    life.serve(1, STRETCH_S, 0.010, 0.001)
    assert life.look() == [pytest.approx(4_000, abs=2)]
    life.serve(PASSES_MIN, STRETCH_S / 2, 0.010, 0.001)
    assert life.look() == []


def test_a_few_passes_in_a_long_time_count_for_nothing() -> None:
    life = Life()
    life.serve(3, 1.0, 0.010, 0.500)
    life.idle(STRETCH_MAX_S, 0.0)
    assert life.look() == []
    life.serve(50, 5.0, 0.010, 0.001)
    assert life.look() == [pytest.approx(4_000, abs=2)]


@pytest.mark.parametrize("cores", [1.5, 2.0, math.inf])
def test_with_more_than_one_processor_nothing_is_told(cores: float) -> None:
    life = Life(cores)
    life.serve(50, 5.0, 0.010, 0.002)
    assert life.look() == []


def test_less_than_nothing_is_nothing() -> None:
    life = Life()
    life.idle(2.0, 0.200)
    life.look()
    life.serve(50, 5.0, 0.010, 0.002)
    assert life.look() == [0]


def test_a_pass_marks_where_things_stand() -> None:
    clock = BesideClock(lambda _: None, lambda: 0, lambda: 1.0)
    before = time.process_time()
    clock.passed(0.25)
    clock.passed(0.5)
    mark = clock.last
    assert (mark.n_passes, mark.forward_s) == (2, 0.75)
    assert before <= mark.process_s <= time.process_time()
    assert mark.at <= time.monotonic()
