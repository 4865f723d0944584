"""The chain whose busiest device or link is least busy, and among those the cheapest.

EdgeShard's second problem (arXiv 2405.14371, section IV, algorithm 2) with links, the way back and
memory counted: a limit on the busiest resource only shortens runs and cuts hops, so whether a limit
can be kept is the question whether any chain is left; halving finds the smallest.  Exact.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.core.latency_dp import (
    UNREACHABLE,
    Chain,
    Fit,
    Placement,
    cheapest,
    is_feasible,
)


class Busy(Struct, frozen=True):
    """For how long one micro-batch occupies what it passes.  What is each source's own counts with
    its share, the rest in full: all times are multiplied by the number of sources."""

    entry: tuple[int, ...]
    """By end of the entry, of the busiest source."""
    units: tuple[tuple[int, ...], ...]
    """By device, prefix sums."""
    own: tuple[int, ...]
    """By device, of its own entry where it is a source beside its stage."""
    enter: tuple[int, ...]
    hop: tuple[tuple[int, ...], ...]
    leave: tuple[int, ...]

    def of(self, placement: Placement) -> int:
        """The busiest resource of a placement."""
        entry_end, runs = placement
        busiest, start, last = self.entry[entry_end], entry_end, -1
        for device, end in runs:
            hop = self.enter[device] if last < 0 else self.hop[last][device]
            run = self.units[device][end] - self.units[device][start] + self.own[device]
            busiest, start, last = max(busiest, hop, run), end, device
        return max(busiest, self.leave[last]) if runs else busiest


def narrowest(chain: Chain, busy: Busy, fit: Fit) -> Placement | None:
    """Least in (busiest resource, cost, then as ``cheapest`` orders)."""
    widest = cheapest(chain, fit)
    if widest is None:
        return None
    limits = range(busy.of(widest))
    limit = bisect_left(
        limits, True, key=lambda limit: is_feasible(*_within(chain, busy, fit, limit))
    )
    return cheapest(*_within(chain, busy, fit, limit))


def _within(chain: Chain, busy: Busy, fit: Fit, limit: int) -> tuple[Chain, Fit]:
    """What is left of the problem when nothing may be occupied for longer than ``limit``."""
    longest = bisect_right(busy.entry, limit) - 1
    entry_ends = range(fit.entry_ends.start, min(fit.entry_ends.stop, longest + 1))
    ends = tuple(
        tuple(
            min(end, bisect_right(done, done[start] + limit - own) - 1)
            for start, end in enumerate(fit_ends)
        )
        for fit_ends, done, own in zip(fit.ends, busy.units, busy.own, strict=True)
    )
    kept = replace(
        chain,
        enter=_cut(chain.enter, busy.enter, limit),
        hop=tuple(_cut(*row, limit) for row in zip(chain.hop, busy.hop, strict=True)),
        leave=_cut(chain.leave, busy.leave, limit),
    )
    return kept, Fit(entry_ends, ends)


def _cut(costs: tuple[int, ...], busy: tuple[int, ...], limit: int) -> tuple[int, ...]:
    pairs = zip(costs, busy, strict=True)
    return tuple(cost if occupied <= limit else UNREACHABLE for cost, occupied in pairs)
