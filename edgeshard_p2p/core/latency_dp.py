"""The cheapest chain of runs: which device runs which units, at most one run per device.

    sources --enter--> run --hop--> run --hop--> ... run --leave--> sources
    [0, e0)            [e0, e1)     [e1, e2)         [.., h)        [h, n)

Exact, after EdgeShard (arXiv 2405.14371, section IV) with the used devices in the state, so that
no device is visited twice and memory is exact (see ``kinds`` for how few states that takes where
devices are alike).  ``h`` is ``n`` unless the sources keep the last units as well (private head).
Costs are integers that only add up, and ``UNREACHABLE`` stands for what cannot be.  Knows nothing
of models, bytes or microseconds: the planner turns those into costs and ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.core.kinds import Kinds, Places, States

UNREACHABLE = 1 << 60
"""More than any real cost.  Three of them still fit into 64 bits, so sums cannot wrap."""

Runs = list[tuple[int, int]]
"""(device, end of its run) in order."""
Costs = npt.NDArray[np.int64]


class Placement(NamedTuple):
    """Of two the better one is the smaller."""

    cost: int
    entry_end: int
    runs: Runs
    """The tail starts at the last end."""


class Chain(Struct, frozen=True):
    """Costs of one problem.  Devices are indices, in the order that decides ties."""

    entry: tuple[int, ...]
    """By end of the entry: what running ``[0, end)`` at the sources costs."""
    units: tuple[tuple[int, ...], ...]
    """By device, by n: what running units ``[0, n)`` costs (prefix sums)."""
    enter: tuple[int, ...]
    hop: tuple[tuple[int, ...], ...]
    leave: tuple[int, ...]
    finish: tuple[int, ...]
    """By end of the last run: what the sources' running of the rest costs; UNREACHABLE where no
    run may be the last."""

    @property
    def n_units(self) -> int:
        return len(self.entry) - 1

    def fully_linked(self) -> Chain:
        """The same devices, as if every pair of them had a link."""
        free = (0,) * len(self.units)
        return replace(self, enter=free, hop=(free,) * len(self.units), leave=free)

    def largest_sum(self) -> int:
        """No plan costs more than this, nor any sum that leads to one."""
        hops = (self.enter, self.leave, *self.hop)
        dearest = max((cost for row in hops for cost in row if cost < UNREACHABLE), default=0)
        runs = [[end - start for start, end in pairwise(done)] for done in self.units]
        slowest = sum(max(map(int, of_unit)) for of_unit in zip(*runs, strict=True))
        tail = max((cost for cost in self.finish if cost < UNREACHABLE), default=0)
        return self.entry[-1] + slowest + tail + (len(self.units) + 1) * dearest


class Fit(Struct, frozen=True):
    """What the memory of sources and devices allows."""

    shortest: int
    """The end of the shortest entry."""
    longest: tuple[int, ...]
    """By end of the last run: the end of the longest entry that has room beside the tail, below
    ``shortest`` where none has; it grows with a shorter tail."""
    ends: tuple[tuple[int, ...], ...]
    """By device, by start: the farthest end of a run; not past the start where none fits."""


@dataclass(frozen=True)
class Problem:
    """A chain and what fits, as arrays by kind of device."""

    entry: Costs
    finish: Costs
    units: Costs
    enter: Costs
    hop: Costs
    leave: Costs
    shortest: int
    longest: Places
    ends: Places

    @classmethod
    def of(cls, chain: Chain, fit: Fit, kinds: Kinds) -> Problem:
        assert chain.largest_sum() < UNREACHABLE, "costs beyond what can be added up"
        firsts, width = [kind[0] for kind in kinds], chain.n_units + 1
        return cls(
            entry=np.array(chain.entry, np.int64),
            finish=np.array(chain.finish, np.int64),
            units=np.array([chain.units[kind] for kind in firsts], np.int64).reshape(-1, width),
            enter=np.array([chain.enter[kind] for kind in firsts], np.int64),
            hop=by_kind(chain.hop, kinds),
            leave=np.array([chain.leave[kind] for kind in firsts], np.int64),
            shortest=fit.shortest,
            longest=np.array(fit.longest, np.intp),
            ends=np.array([fit.ends[kind] for kind in firsts], np.intp).reshape(-1, width),
        )

    @property
    def n_units(self) -> int:
        return len(self.entry) - 1

    @property
    def may_be_alone(self) -> bool:
        """Whether the sources may run everything by themselves."""
        return bool(self.longest[-1] == self.n_units)

    def placed(self, entry_end: int, runs: Runs) -> Placement:
        """With its cost, where every device is a kind of its own."""
        cost, hops, end = self.entry[entry_end], self.enter, entry_end
        for device, run_end in runs:
            cost += hops[device] + self.units[device, run_end] - self.units[device, end]
            hops, end = self.hop[device], run_end
        cost += self.leave[runs[-1][0]] + self.finish[end] if runs else 0
        return Placement(int(cost), entry_end, runs)


def by_kind(pairs: Sequence[Sequence[int]], kinds: Kinds) -> Costs:
    """Of two devices of the same kind the first and the second one's."""
    rows = [[pairs[a[0]][b[a is b and len(a) > 1]] for b in kinds] for a in kinds]
    return np.array(rows, dtype=np.int64).reshape(len(kinds), len(kinds))


def is_feasible(problem: Problem, states: States) -> bool:
    """Whether any chain comes to an end.

    Forward over the same states as ``cheapest``, but instead of a cost with the end of the
    shortest entry from which so many units get done: the shorter the entry, the longer the tail
    that has room beside it.  Stops at the first chain.
    """
    if problem.may_be_alone:
        return True
    if not is_within_reach(problem, [len(kind) for kind in states.kinds]):
        return False
    width = problem.n_units + 1
    ends_here = problem.finish < UNREACHABLE
    may_end = np.where(ends_here, problem.longest, -1)
    begin = np.full(width, width, dtype=np.int16)
    entry_ends = np.arange(problem.shortest, max(may_end, default=-1) + 1)
    begin[entry_ends] = entry_ends
    windows = _Windows.ending(problem.ends)
    reached = np.full((states.count, len(states.kinds), width), width, dtype=np.int16)
    joined, may_leave = problem.hop < UNREACHABLE, problem.leave < UNREACHABLE
    entered = np.where(problem.enter[:, None] < UNREACHABLE, begin[None, :], np.int16(width))
    for level, moves in enumerate(states.moves):
        before = reached[states.levels[level]]
        arriving = before.min(axis=1, initial=width)[moves.place] if level else entered
        for kind in np.flatnonzero(~joined.all(axis=0)) if level else ():
            own = moves.of[kind]
            arriving[own] = before[moves.place[own]][:, joined[:, kind]].min(axis=1, initial=width)
        done = windows.least(arriving, moves.kind)
        if (done[may_leave[moves.kind]] <= may_end).any():
            return True
        reached[moves.after, moves.kind] = done
    return False


def is_within_reach(problem: Problem, sizes: Sequence[int]) -> bool:
    """Whether the longest runs of all devices together, so many of each kind, would do, whatever
    is linked.  Quick, and where it is false there is no chain."""
    if problem.may_be_alone:
        return True
    longest_runs = (problem.ends - np.arange(problem.n_units + 1)).max(axis=1, initial=0)
    most = (longest_runs * np.array(sizes, dtype=np.intp)).sum()
    return bool(fewest_units(problem) <= most)


def fewest_units(problem: Problem) -> int:
    """What is left for shared runs beside the most that sources can hold; more than there are
    where they cannot hold their own."""
    may_end = (problem.finish < UNREACHABLE) & (problem.longest >= problem.shortest)
    left = (np.arange(problem.n_units + 1) - problem.longest)[may_end]
    return int(left.min(initial=problem.n_units + 1))


def cheapest(problem: Problem, states: States) -> Placement | None:
    """The placement of least cost; among equals the smallest end of the entry, then the smallest
    sequence of (device, end).

    Backward, so that the table holds the cost of the rest; the placement is then read off it
    forward, always taking the first move that keeps the least cost.  That makes the tie rule
    hold without comparing paths: of devices of one kind the first that is left comes first.
    O(S K^2 N) for S states, K kinds and N units.

    Entry and tail share the sources' memory.  That is ignored at first; where what is found does
    not fit, it either has to keep a tail as long and a shorter entry, or a shorter tail: these are
    the two problems that are left.
    """
    found: list[Placement] = []
    if problem.may_be_alone:
        found.append(Placement(int(problem.entry[-1]), problem.n_units, []))
    open_ends = np.flatnonzero(problem.finish < UNREACHABLE)
    pending = [(int(open_ends[0]), int(open_ends[-1]))] if len(open_ends) else []
    while pending:
        first, last = pending.pop()
        best = _cheapest_between(problem, states, first, last)
        if best is None or (found and best.cost > min(found).cost):
            continue
        end = best.runs[-1][1]
        if best.entry_end <= problem.longest[end]:
            found.append(best)
        else:
            pending += [(first, end), (end + 1, last)]
    return min(found, default=None)


def _cheapest_between(problem: Problem, states: States, first: int, last: int) -> Placement | None:
    """With the last run's end in ``[first, last]``, and an entry that has room beside the shortest
    of these tails."""
    if first > last:
        return None
    finish = problem.finish.copy()
    finish[:first] = finish[last + 1 :] = UNREACHABLE
    rest, start = _rest_costs(problem, states, finish)
    entry_ends = range(problem.shortest, int(problem.longest[last]) + 1)
    options = [(int(problem.entry[end]) + int(start[end]), end) for end in entry_ends]
    cost, entry_end = min(options, default=(UNREACHABLE, 0))
    if cost >= UNREACHABLE:
        return None
    left = cost - int(problem.entry[entry_end])
    runs = _followed(problem, states, rest, finish, entry_end, left)
    return Placement(cost, entry_end, runs)


def _rest_costs(problem: Problem, states: States, finish: Costs) -> tuple[Costs, Costs]:
    """By (kind of the last device, state, units done) the least cost of what follows, and by end
    of the entry that of all runs.  Full states first: what comes after a run uses only devices
    that are still free."""
    width, n_kinds = problem.n_units + 1, len(states.kinds)
    rest = np.full((n_kinds, states.count, width), UNREACHABLE, np.int64)
    start = np.full(width, UNREACHABLE, dtype=np.int64)
    windows = _Windows.starting(problem.ends)
    leaving = np.minimum(problem.leave[:, None] + finish[None, :], UNREACHABLE)
    for level in range(len(states.levels) - 1, -1, -1):
        places, moves = states.levels[level], states.moves[level]
        best = np.repeat(leaving[:, None, :], len(places), axis=1)
        units = problem.units[moves.kind]
        costs = windows.least(units + rest[moves.kind, moves.after], moves.kind) - units
        for kind, own in enumerate(moves.of):
            at, hops = moves.place[own], problem.hop[:, kind]
            for before in np.flatnonzero(hops < UNREACHABLE):
                best[before, at] = np.minimum(best[before, at], costs[own] + hops[before])
        if level == 0:
            start = (costs + problem.enter[:, None]).min(axis=0, initial=UNREACHABLE)
        for last, at in enumerate(states.inside[level]):
            rest[last, places[at]] = np.minimum(best[last, at], UNREACHABLE)
    return rest, start


class _Windows:
    """The least of a sliding window whose width differs from place to place and kind to kind.

    The least of a window is the least of two overlapping ones of a power of two, of which there
    are only as many as there are powers.
    """

    def __init__(self, begins: Places, ends: Places) -> None:
        """By kind and place, the window ``[begin, end)``."""
        widths = np.maximum(ends - begins, 0)
        self._n_powers = max(1, int(widths.max(initial=0)).bit_length())
        powers = sum(
            (widths >> power > 0 for power in range(1, self._n_powers)), start=np.zeros_like(widths)
        )
        n_places = begins.shape[1]
        nothing = self._n_powers * n_places
        self._left = np.where(widths, powers * n_places + begins, nothing)
        self._right = np.where(widths, powers * n_places + ends - (1 << powers), nothing)

    @classmethod
    def starting(cls, ends: Places) -> _Windows:
        """By start, the ends of runs from there."""
        starts = np.arange(ends.shape[1])
        return cls(np.broadcast_to(starts + 1, ends.shape), ends + 1)

    @classmethod
    def ending(cls, ends: Places) -> _Windows:
        """By end, the starts of runs that get there."""
        places = np.arange(ends.shape[1])
        first = [np.searchsorted(np.maximum(of_kind, places), places) for of_kind in ends]
        begins = np.array(first, dtype=np.intp).reshape(ends.shape)
        return cls(begins, np.broadcast_to(places, ends.shape))

    def least(self, values: npt.NDArray[Any], kinds: Places) -> npt.NDArray[Any]:
        """By row, which is of its kind, and place, the least of its window; more than any number
        where that is empty."""
        result = np.empty_like(values)
        for row in range(0, len(values), _ROWS_AT_ONCE):
            part = slice(row, row + _ROWS_AT_ONCE)
            self._fill(result[part], values[part], kinds[part])
        return result

    def _fill(self, result: npt.NDArray[Any], values: npt.NDArray[Any], kinds: Places) -> None:
        n_rows, n_places = values.shape
        table = np.full((n_rows, self._n_powers * n_places + 1), _NONE[values.dtype], values.dtype)
        table[:, :n_places] = values
        for power in range(1, self._n_powers):
            half, begin = 1 << (power - 1), power * n_places
            halves = table[:, begin - n_places : begin]
            wholes = table[:, begin : begin + n_places - half]
            np.minimum(halves[:, :-half], halves[:, half:], out=wholes)
        rows = np.arange(0, table.size, table.shape[1])[:, None]
        np.minimum(
            table.take(self._left[kinds] + rows), table.take(self._right[kinds] + rows), out=result
        )


_NONE = {np.dtype(np.int64): 2 * UNREACHABLE, np.dtype(np.int16): np.iinfo(np.int16).max}
_ROWS_AT_ONCE = 256
"""So that a table of windows stays in the processor's cache."""


def _followed(
    problem: Problem, states: States, rest: Costs, finish: Costs, done: int, cost: int
) -> Runs:
    """The runs from ``done`` on whose cost is exactly ``cost``, the smallest sequence of them."""
    runs: Runs = []
    left = [list(kind) for kind in states.kinds]
    state, hops, last = 0, problem.enter, -1
    while last < 0 or int(problem.leave[last]) + int(finish[done]) != cost:
        last, done, cost = _next_run(problem, states, rest, state, left, hops, done, cost)
        runs.append((left[last].pop(0), done))
        state, hops = state + states.strides[last], problem.hop[last]
    return runs


def _next_run(
    problem: Problem,
    states: States,
    rest: Costs,
    state: int,
    left: list[list[int]],
    hops: Costs,
    done: int,
    cost: int,
) -> tuple[int, int, int]:
    """(kind, end, cost of the rest) of the first run that keeps ``cost``."""
    for kind in sorted((kind for kind, free in enumerate(left) if free), key=left.__getitem__):
        units = problem.units[kind].tolist()
        after = rest[kind, state + states.strides[kind]].tolist()
        spent = int(hops[kind]) - units[done]
        for end in range(done + 1, int(problem.ends[kind][done]) + 1):
            if spent + units[end] + after[end] == cost:
                return kind, end, after[end]
    raise AssertionError("the table holds a cost that no run has")
