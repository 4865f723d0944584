"""How little busy the busiest device or link of a chain can be.

EdgeShard's second problem (arXiv 2405.14371, section IV, algorithm 2) with links, the way back and
memory counted: a limit on the busiest resource only shortens runs and cuts hops, so whether a limit
can be kept is the question whether any chain is left.  Only what some device or link can be busy
for is a limit worth trying; halving finds the smallest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from msgspec import Struct

from edgeshard_p2p.core.kinds import Kinds
from edgeshard_p2p.core.latency_dp import (
    UNREACHABLE,
    Chain,
    Costs,
    Fit,
    Problem,
    by_kind,
    is_within_reach,
)


class Busy(Struct, frozen=True):
    """For how long one micro-batch occupies what it passes.  What is each source's own counts with
    its share, the rest in full: all times are multiplied by the number of sources."""

    entry: tuple[int, ...]
    """By end of the entry, of the busiest source."""
    tail: tuple[int, ...]
    """By end of the last run, of what a source runs after it, besides its entry."""
    units: tuple[tuple[int, ...], ...]
    """By device, prefix sums."""
    own: tuple[int, ...]
    """By device, of what comes to its stage's units: a pass's own, and its entry and tail where it
    is a source as well."""
    enter: tuple[int, ...]
    hop: tuple[tuple[int, ...], ...]
    leave: tuple[int, ...]


@dataclass(frozen=True)
class Pipeline:
    """The problem of one size of micro-batch: costs, what fits, and how busy everything gets."""

    problem: Problem
    entry: Costs
    tail: Costs
    units: Costs
    own: Costs
    enter: Costs
    hop: Costs
    leave: Costs

    @classmethod
    def of(cls, chain: Chain, busy: Busy, fit: Fit, kinds: Kinds) -> Pipeline:
        firsts, width = [kind[0] for kind in kinds], chain.n_units + 1
        return cls(
            Problem.of(chain, fit, kinds),
            entry=np.array(busy.entry, np.int64),
            tail=np.array(busy.tail, np.int64),
            units=np.array([busy.units[kind] for kind in firsts], np.int64).reshape(-1, width),
            own=np.array([busy.own[kind] for kind in firsts], np.int64),
            enter=np.array([busy.enter[kind] for kind in firsts], np.int64),
            hop=by_kind(busy.hop, kinds),
            leave=np.array([busy.leave[kind] for kind in firsts], np.int64),
        )

    def within(self, limit: int) -> Problem:
        """What is left when nothing may be occupied for longer than ``limit``."""
        given = self.problem
        longest = np.searchsorted(self.entry, limit - self.tail, side="right") - 1
        latest = [
            np.searchsorted(units, units + (limit - own), side="right") - 1
            for units, own in zip(self.units, self.own.tolist(), strict=True)
        ]
        return replace(
            given,
            longest=np.minimum(given.longest, longest),
            ends=np.minimum(given.ends, np.array(latest, np.intp).reshape(given.ends.shape)),
            enter=np.where(self.enter <= limit, given.enter, UNREACHABLE),
            hop=np.where(self.hop <= limit, given.hop, UNREACHABLE),
            leave=np.where(self.leave <= limit, given.leave, UNREACHABLE),
        )

    @cached_property
    def limits(self) -> Costs:
        """All that anything could be occupied for, in order."""
        width = len(self.entry)
        start, end = np.triu_indices(width, 1)
        runs = self.units[:, end] - self.units[:, start] + self.own[:, None]
        ends_here = self.problem.finish < UNREACHABLE
        sources = self.entry[:, None] + self.tail[None, ends_here]
        parts = (runs, self.entry, sources, self.enter, self.hop, self.leave)
        return np.unique(np.concatenate([part.ravel() for part in parts]))


def limits_kept(
    pipeline: Pipeline, is_feasible: Callable[[Problem], bool], below: int | None = None
) -> list[int]:
    """The limits on the busiest resource that some chain keeps, the smallest first, up to
    ``below``; as far as ``is_feasible`` finds the chains."""
    found = pipeline.limits
    limits = found if below is None else found[found < below]

    def can_be_kept(limit: int) -> bool:
        return is_feasible(pipeline.within(limit))

    if not len(limits) or not can_be_kept(limits[-1]):
        return []
    kept: list[int] = limits[
        bisect_left(limits, True, hi=len(limits) - 1, key=can_be_kept) :
    ].tolist()
    return kept


def least_busy(pipeline: Pipeline, sizes: Sequence[int]) -> int:
    """Proved: the busiest resource of no chain is less busy, with so many devices of each kind."""
    limits = pipeline.limits
    at = bisect_left(limits, True, key=lambda limit: is_within_reach(pipeline.within(limit), sizes))
    return int(limits[min(at, len(limits) - 1)])
