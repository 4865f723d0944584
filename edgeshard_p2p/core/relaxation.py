"""What no plan can cost less than, for more devices than can be searched.

The rule of one run per device is given up and paid for instead (Lagrangian relaxation): each visit
of a device costs its price, each device gives its price back once.  Whatever the prices, no plan
costs less than the cheapest walk under them.  Prices rise where the walk comes back and fall where
it stays away, for a fixed count of steps, in integers: every machine finds the same.
"""

from __future__ import annotations

import numpy as np

from edgeshard_p2p.core.latency_dp import UNREACHABLE, Costs, Problem

STEPS_MAX = 140
PRICE_MAX = UNREACHABLE >> 8
"""So that no walk under these prices outgrows 64 bits."""
_SHORTER_AFTER = 12
"""Steps without a better bound until the steps are made shorter."""

_BEYOND = 4
"""Steps are as long as if a known cost and so much of it could be proved: that converges sooner."""

_NOBODY = -1


def lower_bound(problem: Problem, known: int, n_steps: int = STEPS_MAX) -> int:
    """What no chain costs less than, at most ``known``; the nearer that is to the least, the
    sooner."""
    walks = _Walks(problem)
    prices = np.zeros(len(problem.units), dtype=np.int64)
    best, in_vain, scale = -UNREACHABLE, 0, 1
    for _ in range(n_steps):
        cost, visits = walks.cheapest(prices)
        bound = cost - int(prices.sum())
        in_vain = 0 if bound > best else in_vain + 1
        best = max(best, bound)
        if best >= known or ((visits <= 1).all() and not prices[visits == 0].any()):
            break  # All is proved, or the walk is a plan and pays for all that it is given back.
        if in_vain >= _SHORTER_AFTER:
            in_vain, scale = 0, scale * 2
        length = scale * max(1, int(((visits - 1) ** 2).sum()))
        step = max(1, (known + known // _BEYOND - bound) // length)
        prices = np.clip(prices + step * (visits - 1), 0, PRICE_MAX)
    return min(best, known)


class _Walks:
    """The cheapest walks of one problem, for one set of prices after another."""

    def __init__(self, problem: Problem) -> None:
        n_devices, width = problem.units.shape
        may_end = problem.finish < UNREACHABLE
        # NOTE: that entry and tail share the sources' memory is left out, as one more relaxation.
        longest = int(problem.longest[may_end].max(initial=-1))
        self._entry = problem.entry.tolist()
        self._entry_ends = range(problem.shortest, min(longest, problem.n_units - 1) + 1)
        self._alone = self._entry[-1] if problem.may_be_alone else UNREACHABLE
        self._units, self._enter = problem.units, problem.enter
        self._hop = problem.hop.copy()
        np.fill_diagonal(self._hop, UNREACHABLE)
        self._stop = np.minimum(problem.leave[:, None] + problem.finish, UNREACHABLE)
        places = np.arange(width)
        self._beyond = [places > problem.ends[:, start : start + 1] for start in range(width)]
        self._run = np.full((n_devices, width), UNREACHABLE, dtype=np.int64)
        self._end = np.zeros((n_devices, width), dtype=np.intp)
        self._next = np.full((n_devices, width), _NOBODY, dtype=np.intp)

    def cheapest(self, prices: Costs) -> tuple[int, Costs]:
        """(cost, visits by device) of the cheapest walk."""
        self._fill(prices)
        firsts = self._enter[:, None] + self._run
        options = [
            (self._entry[end] + int(firsts[device, end]), end, device)
            for end in self._entry_ends
            for device in [int(firsts[:, end].argmin())]
        ]
        cost, at, device = min(options, default=(UNREACHABLE, 0, _NOBODY))
        if cost >= self._alone:
            cost, device = self._alone, _NOBODY
        visits = np.zeros(len(prices), dtype=np.int64)
        while device != _NOBODY:
            visits[device] += 1
            at = int(self._end[device, at])
            device = int(self._next[device, at])
        return cost, visits

    def _fill(self, prices: Costs) -> None:
        """By (device, start), the cheapest run from there with all that follows, backward."""
        devices, n_units = np.arange(len(prices)), self._units.shape[1] - 1
        totals = self._units + self._stop
        self._next.fill(_NOBODY)
        for start in range(n_units - 1, -1, -1):
            open_totals = totals[:, start + 1 :]
            ends = np.where(self._beyond[start][:, start + 1 :], UNREACHABLE, open_totals)
            self._end[:, start] = best = ends.argmin(axis=1) + start + 1
            cost = ends[devices, best - start - 1]
            run = np.where(cost < UNREACHABLE, cost - self._units[:, start] + prices, UNREACHABLE)
            self._run[:, start] = run
            hops = self._hop + run[None, :]
            following = hops.argmin(axis=1)
            goes_on = hops[devices, following] < self._stop[:, start]
            self._next[goes_on, start] = following[goes_on]
            rest = np.where(goes_on, hops[devices, following], self._stop[:, start])
            totals[:, start] = np.minimum(self._units[:, start] + rest, UNREACHABLE)
