"""The plan that gives the most tokens per second with a batch in flight.

T, the time from one token of a sequence to its next, is the larger of L, the latency, and of m
micro-batches' time on the busiest resource.  A limit on that resource costs latency, the tighter
the more.  So T is least where the two meet: at the tightest limit that can be kept where the
batch fills that pipeline (EdgeShard's second objective, arXiv 2405.14371, section IV), else at a
looser one.
"""

from __future__ import annotations

from bisect import bisect_left

from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.core.answers import Answer, answered, iteration_us, layout_of
from edgeshard_p2p.core.bottleneck import Pipeline, least_busy, limits_kept
from edgeshard_p2p.core.latency_dp import UNREACHABLE, Chain, Placement, is_within_reach
from edgeshard_p2p.core.layout import latency_us
from edgeshard_p2p.core.pool import Pool, busy_of, chain_of, cost_of, dearest_load, fit_of, in_us
from edgeshard_p2p.core.solvers import LocalSearch, Solver

REFINEMENTS, PIECES = 2, 10
"""Limits under which a local search looks for a better plan than the best of all sizes; and pieces
that it places anew, for each."""
PROBE_STEPS, PROBES = 64, 2
"""Of the relaxation, for each time that is tried; and how many are, beside one for each size."""


class _Round(Struct, frozen=True):
    """A plan for one size of micro-batch, under a limit on its busiest resource."""

    placement: Placement
    pipeline_us: int
    """Latency of a micro-batch."""
    limit: int


def most_tokens(pool: Pool, solver: Solver, batch: int) -> Answer | None:
    """The best of all sizes of micro-batch; the smaller one where two are as good.  None where all
    are too slow to be added up."""
    goal = pool.snapshot.goal
    rows = [min(batch, goal.micro_batch)] if goal.micro_batch else micro_batches(batch)
    sizes: list[_Size] = []
    best: tuple[Answer, _Size] | None = None
    for n_rows in rows:
        chain = chain_of(pool, n_rows, -(-batch // n_rows))
        if chain.largest_sum() >= UNREACHABLE:
            continue
        size = _Size(pool, solver, chain, batch, n_rows)
        found = size.best(iteration_us(best[0]) if best else None)
        others = [best] if best else []
        best = min(
            [*others, *((one, size) for one in found)], key=lambda pair: iteration_us(pair[0])
        )
        sizes.append(size)
    if best is None:
        return None
    answer, size = best
    if isinstance(solver, LocalSearch):
        answer = size.refined(answer, solver)
        bound_us = _bound_us(sizes, solver, iteration_us(answer))
    else:
        bound_us = min(iteration_us(answer), *(size.least_us for size in sizes))
    return replace(answer, bound_us=bound_us)


def micro_batches(batch: int) -> list[int]:
    """Sizes that are tried: powers of two, and all at once."""
    return sorted({batch, *(1 << power for power in range(batch.bit_length()))})


def _bound_us(sizes: list[_Size], solver: LocalSearch, found_us: int) -> int:
    """Proved for all sizes: a time that no plan is below, at most ``found_us``.  Raised by halving
    for whichever size has the lowest."""
    open_us = []
    for n, size in enumerate(sizes):
        proved_us = max(size.least_round_us(solver), size.proved_us(solver, found_us))
        open_us.append((min(proved_us, found_us), found_us, n))
    for _ in range(PROBES):
        least_us, most_us, n = min(open_us)
        middle_us = (least_us + most_us) // 2
        proved_us = sizes[n].proved_us(solver, middle_us)
        most_us = most_us if proved_us == middle_us else middle_us
        open_us[n] = (max(least_us, proved_us), most_us, n)
    return min(least_us for least_us, _, _ in open_us)


class _Size:
    """One size of micro-batch."""

    def __init__(self, pool: Pool, solver: Solver, chain: Chain, batch: int, rows: int) -> None:
        self._pool, self._solver, self._batch, self._rows = pool, solver, batch, rows
        self._n_sources, self._n_micro_batches = len(pool.sources), -(-batch // rows)
        busy, fit = busy_of(pool, rows), fit_of(pool, batch)
        self._pipeline = Pipeline.of(chain, busy, fit, solver.kinds)
        self.least_us = 0
        """What no plan takes less than, unless that is the best of other sizes; where all plans
        are searched."""

    def best(self, best_us: int | None) -> list[Answer]:
        """The plans of this size among which the best one is, none where that is not below
        ``best_us``."""
        quickest = self._solver.first(self._pipeline.problem)
        assert quickest is not None, "feasible, but no placement"
        quickest_us = self._latency_us(quickest.cost)
        self.least_us = quickest_us
        if best_us is not None and self._solver.is_exact and quickest_us >= best_us:
            return []
        below = None if best_us is None else self._limit(best_us)
        limits = limits_kept(self._pipeline, self._solver.is_feasible, below)
        if not limits:
            assert best_us is not None
            self.least_us = best_us
            return []
        return self._where_they_meet(limits, quickest_us)

    def _where_they_meet(self, limits: list[int], quickest_us: int) -> list[Answer]:
        """The plan under the tightest limit, and, if the batch does not fill that, those under the
        limits on both sides of the one that it just fills."""
        rounds: dict[int, _Round] = {}

        def tried(limit: int) -> _Round:
            if limit not in rounds:
                # What keeps the tightest limit keeps this one; a local search may not find better.
                tightest = rounds[limits[0]].placement if rounds else None
                placement = self._solver.first(self._pipeline.within(limit)) or tightest
                assert placement is not None, "feasible, but no placement"
                layout = layout_of(self._pool, placement)
                pipeline_us = latency_us(
                    self._pool.snapshot, layout, self._rows, self._n_micro_batches
                )
                rounds[limit] = _Round(placement, pipeline_us, limit)
            return rounds[limit]

        narrow = tried(limits[0])
        if self._is_filled(narrow):
            self.least_us = self._round_us(narrow.limit)
            return [self._answered(narrow.placement)]
        too_tight = bisect_left(limits, self._limit(quickest_us))
        surely_filled = bisect_left(limits, self._limit(narrow.pipeline_us))
        at = bisect_left(
            limits,
            True,
            lo=max(1, too_tight),
            hi=max(1, too_tight, surely_filled),
            key=lambda limit: self._is_filled(tried(limit)),
        )
        # Whoever keeps a tighter limit has this latency at least, all others this round.
        sides = [tried(limit) for limit in limits[at - 1 : at + 1]]
        self.least_us = self._latency_us(sides[0].placement.cost)
        if at < len(limits):
            self.least_us = min(self.least_us, max(quickest_us, self._round_us(limits[at])))
        note = "with so few sequences in flight this plan beats that of the least busy bottleneck"
        others = [one for one in sides if one is not narrow]
        return [
            self._answered(narrow.placement),
            *(self._answered(one.placement, note) for one in others),
        ]

    def _answered(self, placement: Placement, note: str = "") -> Answer:
        found = answered(self._pool, self._solver, placement, self._batch, self._rows)
        return replace(found, reason="; ".join(filter(None, [note, found.reason])))

    def _is_filled(self, one: _Round) -> bool:
        return one.pipeline_us <= self._round_us(one.limit)

    def _round_us(self, limit: int) -> int:
        """Of all micro-batches, on a resource that each occupies for ``limit``."""
        return -(-limit * self._n_micro_batches // self._n_sources)

    def _limit(self, us: int) -> int:
        """Of which a round takes ``us`` or more."""
        return -(-us * self._n_sources // self._n_micro_batches)

    def _latency_us(self, cost: int) -> int:
        """No plan of this cost or a higher one has less latency, however little it loads."""
        return max(0, in_us(self._pool, cost - dearest_load(self._pool)))

    def refined(self, answer: Answer, solver: LocalSearch) -> Answer:
        """A better plan of this size, where one is found piece by piece."""
        best = answer
        for number in range(REFINEMENTS):
            said = best.prediction
            assert said is not None
            if number and said.iteration_us == said.pipeline_us:
                break  # A tighter limit costs latency, a looser one is broken by the round.
            limit_us = (said.pipeline_us + said.iteration_us) // 2 if number else said.iteration_us
            within = self._pipeline.within(self._limit(limit_us))
            if (first := solver.first(within)) is None:
                break
            found = self._answered(solver.refined(within, first, PIECES))
            best = min(best, replace(found, reason=answer.reason), key=iteration_us)
        return best

    def least_round_us(self, solver: LocalSearch) -> int:
        """What a round of no plan takes less than, whatever its latency."""
        return self._round_us(least_busy(self._pipeline, list(map(len, solver.kinds))))

    def proved_us(self, solver: LocalSearch, us: int) -> int:
        """A time that no plan is below, at most ``us``: of those that take less, none is busier
        than a round of ``us`` allows, and this latency is the least under that limit."""
        within = self._pipeline.within(self._limit(us) - 1)
        if not is_within_reach(within, list(map(len, solver.kinds))):
            return us
        cost = solver.least_cost(within, cost_of(self._pool, us), PROBE_STEPS)
        return min(us, self._latency_us(cost))
