"""The cheapest chain of runs: which device runs which units, at most one run per device.

    sources --enter--> run --hop--> run --hop--> ... run --leave--> sources
    [0, e0)            [e0, e1)     [e1, e2)         [.., n)

Exact, after EdgeShard (arXiv 2405.14371, section IV) with the used devices in the state, so that
no device is visited twice and memory is exact.  Devices that could change places form a kind, and
the state counts how many of each kind are used: fifteen devices of three kinds have 78 such
states instead of 2^15.  Costs are integers that only add up, and ``UNREACHABLE`` stands for what
cannot be.  Knows nothing of models, bytes or microseconds: the planner turns those into costs and
ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

UNREACHABLE = 1 << 60
"""More than any real cost.  Three of them still fit into 64 bits, so sums cannot wrap."""

Placement = tuple[int, list[tuple[int, int]]]
"""The end of the entry, then (device, end of its run) in order."""

Costs = npt.NDArray[np.int64]
Places = npt.NDArray[np.intp]


class Chain(Struct, frozen=True):
    """Costs of one problem.  Devices are indices, in the order that decides ties."""

    entry: tuple[int, ...]
    """By end of the entry: what running ``[0, end)`` at the sources costs."""
    units: tuple[tuple[int, ...], ...]
    """By device, by n: what running units ``[0, n)`` costs (prefix sums)."""
    enter: tuple[int, ...]
    hop: tuple[tuple[int, ...], ...]
    leave: tuple[int, ...]

    @property
    def n_units(self) -> int:
        return len(self.entry) - 1

    def fully_linked(self) -> Chain:
        """The same devices, as if every pair of them had a link."""
        free = (0,) * len(self.units)
        return replace(self, enter=free, hop=(free,) * len(self.units), leave=free)

    def largest_sum(self) -> int:
        """No plan costs more than this."""
        devices = range(len(self.units))
        hops = (self.enter, self.leave, *self.hop)
        dearest = max((cost for row in hops for cost in row if cost < UNREACHABLE), default=0)
        slowest = max([self.entry[-1], *(self.units[device][-1] for device in devices)])
        return (len(devices) + 1) * (slowest + dearest)


class Fit(Struct, frozen=True):
    """What the memory of sources and devices allows."""

    entry_ends: range
    ends: tuple[tuple[int, ...], ...]
    """By device, by start: the farthest end of a run; not past the start where none fits."""


def kinds_of(chain: Chain, fit: Fit) -> list[list[int]]:
    """The devices, those together that could change places without changing any cost or end."""
    kinds: dict[tuple[Any, ...], list[list[int]]] = {}
    for device in range(len(chain.units)):
        own = chain.units[device], fit.ends[device], chain.enter[device], chain.leave[device]
        alike = kinds.setdefault(own, [])
        kind = next((kind for kind in alike if _change_places(chain, kind[0], device)), None)
        if kind is None:
            alike.append([device])
        else:
            kind.append(device)
    return sorted(kind for alike in kinds.values() for kind in alike)


def _change_places(chain: Chain, a: int, b: int) -> bool:
    hop, others = chain.hop, [c for c in range(len(chain.units)) if c not in (a, b)]
    return hop[a][b] == hop[b][a] and all(
        hop[a][c] == hop[b][c] and hop[c][a] == hop[c][b] for c in others
    )


def n_states(kinds: Sequence[Sequence[int]]) -> int:
    """Rows of the table for devices of these kinds: (used of each kind, kind of the last)."""
    return prod(len(kind) + 1 for kind in kinds) * len(kinds)


class _States:
    """Numbers the states: how many devices of each kind are used, in mixed radix."""

    def __init__(self, chain: Chain, fit: Fit) -> None:
        self.kinds = kinds_of(chain, fit)
        sizes = [len(kind) for kind in self.kinds]
        self.strides = [prod(size + 1 for size in sizes[:k]) for k in range(len(sizes))]
        states = np.arange(prod(size + 1 for size in sizes), dtype=np.intp)
        pairs = zip(self.strides, sizes, strict=True)
        self.used = [states // stride % (size + 1) for stride, size in pairs]
        n_used = sum(self.used, start=np.zeros(len(states), dtype=np.intp))
        self.levels = [np.flatnonzero(n_used == level) for level in range(sum(sizes) + 1)]
        """The states by the number of devices used."""
        firsts = [kind[0] for kind in self.kinds]
        self.units = [np.array(chain.units[first], dtype=np.int64) for first in firsts]
        self.ends = [np.array(fit.ends[first], dtype=np.intp) for first in firsts]
        self.enter = [chain.enter[first] for first in firsts]
        self.leave = [chain.leave[first] for first in firsts]
        self.hop = [[chain.hop[a[0]][b[a is b and len(a) > 1]] for b in self.kinds]
                    for a in self.kinds]  # fmt: skip

    def free(self, level: Places, kind: int) -> Places:
        """Where in ``level`` a device of ``kind`` is left."""
        return np.flatnonzero(self.used[kind][level] < len(self.kinds[kind]))

    def inside(self, level: Places, kind: int) -> Places:
        """Where in ``level`` a device of ``kind`` may have been the last."""
        return np.flatnonzero(self.used[kind][level] > 0)


def is_feasible(chain: Chain, fit: Fit) -> bool:
    """Whether any chain reaches the last unit and comes back.

    Forward over the same states as ``cheapest``, but with a truth value per number of units done
    instead of a cost, and it stops at the first chain.
    """
    if chain.n_units in fit.entry_ends:
        return True
    states = _States(chain, fit)
    width = chain.n_units + 1
    reached = np.zeros((len(states.kinds), prod(len(k) + 1 for k in states.kinds), width), bool)
    begin = np.zeros(width, dtype=bool)
    begin[fit.entry_ends.start : fit.entry_ends.stop] = True
    starts = [_first_starts(ends) for ends in states.ends]
    for level in states.levels[:-1]:
        for kind, stride in enumerate(states.strides):
            at = level[states.free(level, kind)]
            arriving = np.zeros((len(at), width), dtype=bool)
            if level[0] == 0 and states.enter[kind] < UNREACHABLE:
                arriving |= begin
            for last, hops in enumerate(states.hop):
                if hops[kind] < UNREACHABLE:
                    arriving |= reached[last, at]
            done = _extended(arriving, starts[kind])
            reached[kind, at + stride] = done
            if states.leave[kind] < UNREACHABLE and done[:, -1].any():
                return True
    return False


def _first_starts(ends: Places) -> Places:
    """By end, the smallest start from which a run gets there; the end itself where none does."""
    places = np.arange(len(ends))
    return np.minimum(np.searchsorted(np.maximum(ends, places), places, side="left"), places)


def _extended(starts: npt.NDArray[np.bool_], first: Places) -> npt.NDArray[np.bool_]:
    """Ends that runs reach from any of ``starts``: is there one in ``[first[end], end)``?"""
    n_before = np.zeros((starts.shape[0], starts.shape[1] + 1), dtype=np.int32)
    np.cumsum(starts, axis=1, out=n_before[:, 1:])
    extended: npt.NDArray[np.bool_] = n_before[:, :-1] > n_before[:, first]
    return extended


def cheapest(chain: Chain, fit: Fit) -> Placement | None:
    """The placement of least cost; among equals the smallest end of the entry, then the smallest
    sequence of (device, end).

    Backward, so that the table holds the cost of the rest; the placement is then read off it
    forward, always taking the first move that keeps the least cost.  That makes the tie rule
    hold without comparing paths: of devices of one kind the first that is left comes first.
    O(S K^2 N) for S states, K kinds and N units.
    """
    assert chain.largest_sum() < UNREACHABLE, "costs beyond what can be added up"
    states = _States(chain, fit)
    rest = _rest_costs(chain, states)
    options = [(chain.entry[end] + int(rest[1][end]), end) for end in fit.entry_ends]
    cost, entry_end = min(options, default=(UNREACHABLE, 0))
    if cost >= UNREACHABLE:
        return None
    return entry_end, _followed(states, rest, entry_end, cost - chain.entry[entry_end])


Rest = tuple[Costs, Costs]
"""By (kind of the last device, state, units done), the least cost of what follows; and, by units
done at the sources, that of all shared runs."""


def _rest_costs(chain: Chain, states: _States) -> Rest:
    """Full states first: what comes after a run uses only devices that are still free."""
    width, n_kinds = chain.n_units + 1, len(states.kinds)
    rest = np.full((n_kinds, prod(len(k) + 1 for k in states.kinds), width), UNREACHABLE, np.int64)
    first = np.full(width, UNREACHABLE, dtype=np.int64)
    first[-1] = 0
    windows = [_Windows(ends) for ends in states.ends]
    for level in reversed(states.levels):
        best = np.full((n_kinds, len(level), width), UNREACHABLE, dtype=np.int64)
        for last in range(n_kinds):
            best[last, :, -1] = states.leave[last]
        for kind, stride in enumerate(states.strides):
            at = states.free(level, kind)
            if not len(at):
                continue
            costs = windows[kind].run_costs(states.units[kind], rest[kind, level[at] + stride])
            for last in range(n_kinds):
                if (hop := states.hop[last][kind]) < UNREACHABLE:
                    best[last, at] = np.minimum(best[last, at], costs + hop)
            if level[0] == 0:
                first = np.minimum(first, costs[0] + states.enter[kind])
        for last in range(n_kinds):
            at = states.inside(level, last)
            rest[last, level[at]] = np.minimum(best[last, at], UNREACHABLE)
    return rest, np.minimum(first, UNREACHABLE)


class _Windows:
    """The least of a sliding window whose width differs from start to start.

    A run from ``start`` may end anywhere in ``(start, ends[start]]``.  The least of that window is
    the least of two overlapping ones of a power of two, of which there are only as many as there
    are powers.
    """

    def __init__(self, ends: Places) -> None:
        widths = ends - np.arange(len(ends))
        self._starts = [
            (power, np.flatnonzero((widths >> power) == 1))
            for power in range(max(1, int(widths.max())).bit_length())
        ]
        self._ends = ends

    def run_costs(self, units: Costs, rest: Costs) -> Costs:
        """By start, the least cost of a run from there and of all that follows it."""
        least = units + rest
        costs = np.full(least.shape, UNREACHABLE, dtype=np.int64)
        for power, starts in self._starts:
            if power:
                half = 1 << (power - 1)
                least = np.minimum(least[:, :-half], least[:, half:])
            if len(starts):
                ends = self._ends[starts] - (1 << power) + 1
                costs[:, starts] = np.minimum(least[:, starts + 1], least[:, ends]) - units[starts]
        return costs


def _followed(states: _States, rest: Rest, done: int, cost: int) -> list[tuple[int, int]]:
    """The runs from ``done`` on whose cost is exactly ``cost``, the smallest sequence of them."""
    runs: list[tuple[int, int]] = []
    left = [list(kind) for kind in states.kinds]
    state, hops, n_units = 0, states.enter, len(states.units[0]) - 1 if left else done
    while done < n_units:
        kind, done, cost = _next_run(states, rest[0], state, left, hops, done, cost)
        runs.append((left[kind].pop(0), done))
        state, hops = state + states.strides[kind], states.hop[kind]
    return runs


def _next_run(
    states: _States,
    rest: Costs,
    state: int,
    left: list[list[int]],
    hops: Sequence[int],
    done: int,
    cost: int,
) -> tuple[int, int, int]:
    """(kind, end, cost of the rest) of the first run that keeps ``cost``."""
    for kind in sorted((kind for kind, free in enumerate(left) if free), key=left.__getitem__):
        units, after = states.units[kind], rest[kind, state + states.strides[kind]]
        spent = hops[kind] - int(units[done])
        for end in range(done + 1, int(states.ends[kind][done]) + 1):
            if spent + int(units[end]) + int(after[end]) == cost:
                return kind, end, int(after[end])
    raise AssertionError("the table holds a cost that no run has")
