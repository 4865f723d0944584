"""What no plan can cost less than, for more devices than can be searched; and which of them matter.

The rule of one run per device is given up and paid for instead (Lagrangian relaxation): each visit
of a device costs its price, each device gives its price back once.  Whatever the prices, no plan
costs less than the cheapest walk under them.  Prices rise where the walk comes back and fall where
it stays away, for a fixed count of steps, in integers: every machine finds the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from edgeshard_p2p.core.latency_dp import UNREACHABLE, Chain, Fit

STEPS = 240
PRICE_MAX = UNREACHABLE >> 8
"""So that no walk under these prices outgrows 64 bits."""
_SHORTER_AFTER = 12
"""Steps without a better bound until the steps are made shorter."""

_NOBODY = -1

Costs = npt.NDArray[np.int64]


class Bound(Struct, frozen=True):
    cost: int
    """No plan costs less."""
    visits: tuple[int, ...]
    """By device, how often the walks came by: those that matter most."""


def lower_bound(chain: Chain, fit: Fit) -> Bound | None:
    """None where not even a walk that may come back reaches the last unit."""
    walks = _Walks(chain, fit)
    prices = np.zeros(len(chain.units), dtype=np.int64)
    total = np.zeros(len(chain.units), dtype=np.int64)
    best, stuck, scale = -UNREACHABLE, 0, 16
    for _ in range(STEPS):
        cost, visits = walks.cheapest(prices)
        if cost >= UNREACHABLE:
            return None
        total += visits
        bound = cost - int(prices.sum())
        stuck = 0 if bound > best else stuck + 1
        best = max(best, bound)
        if (visits <= 1).all() and not prices[visits == 0].any():
            break  # The walk is a plan, and pays for all that it is given back.
        if stuck >= _SHORTER_AFTER:
            stuck, scale = 0, scale * 2
        step = max(1, abs(best) // (scale * max(1, int(((visits - 1) ** 2).sum()))))
        prices = np.clip(prices + step * (visits - 1), 0, PRICE_MAX)
    return Bound(best, tuple(int(n) for n in total))


class _Walks:
    """The cheapest walks of one problem, for one set of prices after another."""

    def __init__(self, chain: Chain, fit: Fit) -> None:
        n_devices, width = len(chain.units), chain.n_units + 1
        ends = [end for end, cost in enumerate(chain.finish) if cost < UNREACHABLE]
        # NOTE: that entry and tail share the sources' memory is left out, as one more relaxation.
        self._entry, longest = chain.entry, max((fit.longest[end] for end in ends), default=-1)
        self._entry_ends = range(fit.shortest, min(longest, chain.n_units - 1) + 1)
        may_be_alone = fit.longest[-1] == chain.n_units
        self._alone = chain.entry[-1] if may_be_alone else UNREACHABLE
        self._units = np.array(chain.units, dtype=np.int64)
        self._hop = np.array(chain.hop, dtype=np.int64)
        np.fill_diagonal(self._hop, UNREACHABLE)
        self._enter = np.array(chain.enter, dtype=np.int64)
        leave = np.array(chain.leave, dtype=np.int64)[:, None]
        self._stop = np.minimum(leave + np.array(chain.finish, dtype=np.int64), UNREACHABLE)
        last, places = np.array(fit.ends), np.arange(width)
        self._beyond = [places[None, :] > last[:, start : start + 1] for start in range(width)]
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
