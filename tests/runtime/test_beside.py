"""What passes take besides their units, reckoned from processor times at the ends of passes."""

from __future__ import annotations

import math
import time

import pytest

from edgeshard_p2p.runtime.beside import IDLE_MIN, LOOK_S, PASSES_MIN, BesideClock, Mark

QUARTER = 0.25


class Life:
    """A process of a quarter of a core, with the clock that watches it."""

    def __init__(self, cores: float = QUARTER) -> None:
        self.told: list[int] = []
        self.n_turns = 0
        self.clock = BesideClock(self.told.append, lambda: self.n_turns, cores)
        self.last = self.clock.last
        self.now, self.process_s = self.last.at, self.last.process_s
        self.n_passes, self.forward_s = 0, 0.0

    def idle(self, seconds: float, cpu_s: float) -> None:
        self.now += seconds
        self.process_s += cpu_s

    def rest(self, n_looks: int = IDLE_MIN, share: float = 0.0) -> Life:
        """For so many looks, with so much of a core."""
        for _ in range(n_looks):
            self.idle(LOOK_S, LOOK_S * share)
            assert self.look() == []
        return self

    def serve(self, n_passes: int, forward_s: float, beside_s: float) -> list[int]:
        """So many passes, each with these times, all in 5 s; and what is told then."""
        for _ in range(n_passes):
            self.n_passes += 1
            self.n_turns += 2
            self.forward_s += forward_s
            self.idle(5.0 / n_passes, forward_s + beside_s)
        self.last = Mark(self.now, self.n_passes, self.process_s, self.forward_s)
        return self.look()

    def look(self) -> list[int]:
        self.told.clear()
        self.clock.look(self.last, self.now, self.process_s)
        return list(self.told)


def about(us: int) -> list[object]:
    return [pytest.approx(us, abs=2)]


def test_what_is_no_forward_pass_is_besides() -> None:
    life = Life().rest()
    assert life.serve(50, 0.010, 0.002) == about(8_000)  # 2 ms, of a quarter of a core


def test_what_it_takes_anyhow_does_not_count() -> None:
    life = Life().rest(IDLE_MIN - 1, share=0.05).rest(1, share=0.01)
    assert life.serve(50, 0.010, 0.003) == about(8_000)  # less 5 s of 1 %: 1 ms for each pass


def test_nothing_is_told_before_it_has_rested() -> None:
    life = Life().rest(IDLE_MIN - 1)
    assert life.serve(50, 0.010, 0.002) == []
    assert life.rest(1).serve(50, 0.010, 0.002) == about(8_000)


def test_while_it_loads_it_does_not_rest() -> None:
    life = Life().rest(IDLE_MIN - 1, share=0.01)
    for n_turns in (1, 1, 2):
        life.n_turns = n_turns
        life.rest(1)
    assert life.serve(50, 0.010, 0.003) == []


def test_each_stretch_is_reckoned_by_itself() -> None:
    life = Life().rest()
    life.serve(50, 0.010, 0.002)
    assert life.serve(50, 0.100, 0.001) == about(4_000)


def test_a_stretch_goes_on_until_it_has_passes_enough() -> None:
    life = Life().rest()
    assert life.serve(PASSES_MIN - 1, 0.010, 0.001) == []
    assert life.serve(1, 0.010, 0.001) == about(4_000)


def test_a_rest_ends_a_stretch() -> None:
    life = Life().rest()
    assert life.serve(PASSES_MIN - 1, 0.010, 0.500) == []
    assert life.rest(1).serve(PASSES_MIN, 0.010, 0.001) == about(4_000)


@pytest.mark.parametrize("cores", [1.5, 2.0, math.inf])
def test_with_more_than_one_processor_nothing_is_told(cores: float) -> None:
    life = Life(cores).rest()
    assert life.serve(50, 0.010, 0.002) == []


def test_less_than_nothing_is_next_to_nothing() -> None:
    """Nothing would be what is not known."""
    life = Life().rest(share=0.1)
    assert life.serve(50, 0.010, 0.002) == [1]


def test_what_a_pass_has_taken_so_far_counts_in_no_stretch() -> None:
    life = Life().rest()
    life.n_turns += 1
    life.idle(1.5, 0.140)
    assert life.look() == []  # in a pass of 150 ms
    life.n_turns -= 1
    life.idle(0.1, 0.010)
    assert life.serve(1, 0.0, 0.002) == []
    assert life.serve(PASSES_MIN, 0.010, 0.002) == about(8_000)


def test_one_that_stood_still_has_not_rested() -> None:
    life = Life().rest(share=0.01)
    life.idle(60.0, 0.0)
    assert life.look() == []
    assert life.serve(50, 0.010, 0.003) == about(8_000)


def test_a_pass_marks_where_things_stand() -> None:
    clock = BesideClock(lambda _: None, lambda: 0, 1.0)
    before = time.process_time()
    clock.passed(0.25)
    clock.passed(0.5)
    mark = clock.last
    assert (mark.n_passes, mark.forward_s) == (2, 0.75)
    assert before <= mark.process_s <= time.process_time()
    assert mark.at <= time.monotonic()
