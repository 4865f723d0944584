"""A good chain where there are more different devices than can be searched.

It is built from few devices that hold much, each next one the nearest, and then improved piece by
piece: some runs in a row are placed anew, exactly, on their own devices and a few others.  Cut by
counts of steps, so that every machine finds the same.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from edgeshard_p2p.core.kinds import States
from edgeshard_p2p.core.latency_dp import (
    UNREACHABLE,
    Placement,
    Problem,
    cheapest,
    fewest_units,
    is_within_reach,
)

RUNS_AT_ONCE = 8
OTHERS_AT_ONCE = 3
"""Of larger pieces and other mixtures none did better for its time (``scripts/bench plan``)."""
PIECES_MAX = 40
BUILDS = 3
BUILD_STEPS_MAX = 100
"""Devices that are tried for each."""
TRIES_MAX = 12
"""Sets of devices that chains are built from; the last is of all."""


def built(problem: Problem, n_builds: int = BUILDS) -> Placement | None:
    """The cheapest of so many chains, each built from more of the devices that hold most."""
    if problem.may_be_alone:
        return Placement(int(problem.entry[-1]), problem.n_units, [])
    n_devices = len(problem.units)
    if not is_within_reach(problem, [1] * n_devices):
        return None
    lengths = (problem.ends - np.arange(problem.n_units + 1)).max(axis=1)
    by_length = np.argsort(-lengths, kind="stable")
    builder, found = _Builder(problem), list[Placement]()
    n_least = int(np.searchsorted(np.cumsum(lengths[by_length]), fewest_units(problem))) + 1
    tries = range(n_least, n_devices + 1)
    for n_taken in sorted({*tries[: TRIES_MAX - 1], *tries[-1:]}):
        taken = sorted(by_length[:n_taken].tolist())
        if (placement := builder.chain(taken)) is not None:
            found.append(placement)
        if len(found) == n_builds:
            break
    return min(found, default=None)


class _Builder:
    """Goes from device to device, always the nearest that is left, and back where that leads
    nowhere."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._ends = problem.ends.tolist()
        self._hop, self._leave = problem.hop.tolist(), problem.leave.tolist()
        self._steps_left = 0

    def chain(self, devices: list[int]) -> Placement | None:
        problem = self._problem
        may_end = np.flatnonzero(problem.finish < UNREACHABLE)
        longest = problem.longest[may_end]
        for entry_end in sorted({int(longest.max(initial=-1)), problem.shortest}, reverse=True):
            last_ends = may_end[longest >= entry_end].tolist()
            if entry_end < problem.shortest or not last_ends:
                continue
            left = [device for device in devices if self._ends[device][entry_end] > entry_end]
            self._steps_left = BUILD_STEPS_MAX
            runs = self._runs(
                problem.enter.tolist(), left, entry_end, (last_ends[0], last_ends[-1])
            )
            if runs is not None:
                return self._problem.placed(entry_end, runs)
        return None

    def _runs(
        self, hops: list[int], left: list[int], done: int, last: tuple[int, int]
    ) -> list[tuple[int, int]] | None:
        """From ``done`` to an end within ``last``."""
        for device in sorted(left, key=lambda device: (hops[device], device)):
            self._steps_left -= 1
            end = min(self._ends[device][done], last[1])
            if self._steps_left < 0 or hops[device] >= UNREACHABLE:
                return None
            if end <= done:
                continue
            if end >= last[0] and self._leave[device] < UNREACHABLE:
                return [(device, end)]
            others = [other for other in left if other != device]
            rest = self._runs(self._hop[device], others, end, last)
            if rest is not None:
                return [(device, end), *rest]
        return None


def improved(problem: Problem, placement: Placement, n_pieces: int = PIECES_MAX) -> Placement:
    """Pass after pass, until none finds anything or so many pieces were placed anew."""
    by_speed = np.argsort(problem.units[:, -1], kind="stable").tolist()
    number = n_in_vain = 0
    while n_pieces > 0:
        used = {device for device, _ in placement.runs}
        free = [device for device in by_speed if device not in used]
        begin = number * OTHERS_AT_ONCE
        others = {free[(begin + k) % len(free)] for k in range(min(len(free), OTHERS_AT_ONCE))}
        better, n_placed = _pass(problem, placement, others, n_pieces)
        n_in_vain = n_in_vain + 1 if better.cost == placement.cost else 0
        placement, n_pieces, number = better, n_pieces - n_placed, number + 1
        if n_in_vain * OTHERS_AT_ONCE >= len(free):
            break
    return placement


def _pass(
    problem: Problem, placement: Placement, others: set[int], n_pieces: int
) -> tuple[Placement, int]:
    """Every piece once, from the front, and how many those were, at most ``n_pieces``;
    neighbouring ones overlap by half."""
    begin = n_placed = 0
    while n_placed < n_pieces and (not begin or begin + RUNS_AT_ONCE // 2 < len(placement.runs)):
        runs = placement.runs
        end = min(begin + RUNS_AT_ONCE, len(runs))
        elsewhere = {device for device, _ in (*runs[:begin], *runs[end:])}
        devices = sorted({*(device for device, _ in runs[begin:end]), *others} - elsewhere)
        piece = _piece(problem, placement, (begin, end), devices)
        found = cheapest(piece, _states_of(len(devices)))
        assert found is not None, "a piece of a chain has no chain"
        start = runs[begin - 1][1] if begin else 0
        anew = [(devices[device], start + run_end) for device, run_end in found.runs]
        entry_end = placement.entry_end if begin else found.entry_end
        placement = problem.placed(entry_end, [*runs[:begin], *anew, *runs[end:]])
        begin += (RUNS_AT_ONCE + 1) // 2
        n_placed += 1
    return placement, n_placed


@cache
def _states_of(n_devices: int) -> States:
    return States([[device] for device in range(n_devices)])


def _piece(
    problem: Problem, placement: Placement, place: tuple[int, int], devices: list[int]
) -> Problem:
    """The runs of ``place``, as a problem of ``devices`` between what comes before and after."""
    (_, entry_end, runs), (begin, end) = placement, place
    is_first, is_last = begin == 0, end == len(runs)
    start = 0 if is_first else runs[begin - 1][1]
    stop = problem.n_units if is_last else runs[end - 1][1]
    units = slice(start, stop + 1)
    entry = problem.entry[units] if is_first else np.zeros_like(problem.entry[units])
    longest = problem.longest[units] if is_first else np.zeros_like(problem.longest[units])
    finish = problem.finish[units].copy()
    if not is_last:
        finish[:], finish[-1] = UNREACHABLE, 0
        if is_first:
            tail_start = runs[-1][1]
            longest = np.full_like(longest, min(int(problem.longest[tail_start]), stop - 1))
    elif not is_first:
        finish[problem.longest[units] < entry_end] = UNREACHABLE
    return Problem(
        entry=entry,
        finish=finish,
        units=problem.units[devices, units],
        enter=problem.enter[devices] if is_first else problem.hop[runs[begin - 1][0], devices],
        hop=problem.hop[np.ix_(devices, devices)],
        leave=problem.leave[devices] if is_last else problem.hop[devices, runs[end][0]],
        shortest=problem.shortest if is_first else 0,
        longest=longest,
        ends=np.minimum(problem.ends[devices, units], stop) - start,
    )
