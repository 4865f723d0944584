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

from edgeshard_p2p.core.answers import Answer, answered, iteration_us
from edgeshard_p2p.core.bottleneck import Pipeline, least_busy, limits_kept
from edgeshard_p2p.core.latency_dp import UNREACHABLE, Chain, Placement
from edgeshard_p2p.core.pool import Pool, busy_of, chain_of, dearest_load, fit_of, in_us
from edgeshard_p2p.core.solvers import LocalSearch, Solver

BOUND_STEPS = 40
"""Of the relaxation, for each of the sizes of micro-batch."""


class _Round(Struct, frozen=True):
    """A plan for one size of micro-batch, under a limit on its busiest resource."""

    answer: Answer
    placement: Placement
    limit: int
    is_tightest: bool
    """No plan for this size keeps a smaller limit, as far as was searched."""


def most_tokens(pool: Pool, solver: Solver, batch: int) -> Answer | None:
    """The best of all sizes of micro-batch; the smaller one where two are as good.  None where all
    are too slow to be added up."""
    goal = pool.snapshot.goal
    rows = [min(batch, goal.micro_batch)] if goal.micro_batch else micro_batches(batch)
    best: tuple[_Round, _Size] | None = None
    least_us = []
    for chain, n_rows in ((chain_of(pool, n_rows), n_rows) for n_rows in rows):
        if chain.largest_sum() >= UNREACHABLE:
            continue
        size = _Size(pool, solver, chain, batch, n_rows)
        tried, bound_us = size.rounds(iteration_us(best[0].answer) if best else None)
        least_us.append(bound_us)
        others = [best] if best else []
        best = min([*others, *((one, size) for one in tried)], key=_iteration_us)
    if best is None:
        return None
    found, size = best
    refined = size.refined(found)
    return replace(refined, bound_us=min(iteration_us(refined), *least_us))


def _iteration_us(found: tuple[_Round, _Size]) -> int:
    return iteration_us(found[0].answer)


def micro_batches(batch: int) -> list[int]:
    """Sizes that are tried: powers of two, and all at once."""
    return sorted({batch, *(1 << power for power in range(batch.bit_length()))})


class _Size:
    """One size of micro-batch."""

    def __init__(self, pool: Pool, solver: Solver, chain: Chain, batch: int, rows: int) -> None:
        self._pool, self._solver, self._batch, self._rows = pool, solver, batch, rows
        self._n_sources, self._n_micro_batches = len(pool.sources), -(-batch // rows)
        busy, fit = busy_of(pool, rows), fit_of(pool, batch)
        self._pipeline = Pipeline.of(chain, busy, fit, solver.kinds)

    def rounds(self, best_us: int | None) -> tuple[list[_Round], int]:
        """The plans of this size among which the best one is, none where that is not below
        ``best_us``; and a time that no plan of this size is below, unless ``best_us`` is."""
        quickest = self._solver.first(self._pipeline.problem)
        assert quickest is not None, "feasible, but no placement"
        quickest_us = self._latency_us(quickest.cost)
        if best_us is not None and self._solver.is_exact and quickest_us >= best_us:
            return [], quickest_us
        below = None if best_us is None else self._limit(best_us)
        limits = limits_kept(self._pipeline, self._solver.is_feasible, below)
        tried, least_us = self._where_they_meet(limits, quickest_us) if limits else ([], None)
        if isinstance(self._solver, LocalSearch):
            return tried, self._least_us(self._solver, quickest)
        return tried, min(us for us in (least_us, best_us) if us is not None)

    def _where_they_meet(self, limits: list[int], quickest_us: int) -> tuple[list[_Round], int]:
        """Plans under limits on both sides of the one that the batch just fills, or under the
        tightest if it fills that; and what none under any of ``limits`` takes less than."""
        placements: dict[int, _Round] = {}

        def tried(limit: int) -> _Round:
            if limit not in placements:
                # What keeps the tightest limit keeps this one; a local search may not find better.
                tightest = placements[limits[0]].placement if placements else None
                within = self._pipeline.within(limit)
                placement = self._solver.first(within) or tightest
                assert placement is not None, "feasible, but no placement"
                found = answered(self._pool, self._solver, placement, self._batch, self._rows)
                placements[limit] = _Round(found, placement, limit, limit == limits[0])
            return placements[limit]

        narrow = tried(limits[0])
        if self._is_filled(narrow):
            return [narrow], self._round_us(narrow.limit)
        assert narrow.answer.prediction is not None
        too_tight = bisect_left(limits, self._limit(quickest_us))
        surely_filled = bisect_left(limits, self._limit(narrow.answer.prediction.pipeline_us))
        at = bisect_left(
            limits,
            True,
            lo=max(1, too_tight),
            hi=max(1, too_tight, surely_filled),
            key=lambda limit: self._is_filled(tried(limit)),
        )
        # Whoever keeps a tighter limit has this latency at least, all others this round.
        least_us = [self._latency_us(tried(limits[at - 1]).placement.cost)]
        if at < len(limits):
            least_us.append(max(quickest_us, self._round_us(tried(limits[at]).limit)))
        return [placements[limit] for limit in sorted(placements)], min(least_us)

    def _is_filled(self, one: _Round) -> bool:
        assert one.answer.prediction is not None
        return one.answer.prediction.pipeline_us <= self._round_us(one.limit)

    def _round_us(self, limit: int) -> int:
        """Of all micro-batches, on a resource that each occupies for ``limit``."""
        return -(-limit * self._n_micro_batches // self._n_sources)

    def _limit(self, us: int) -> int:
        """Of which a round takes ``us`` or more."""
        return -(-us * self._n_sources // self._n_micro_batches)

    def _latency_us(self, cost: int) -> int:
        """No plan of this cost or a higher one has less latency, however little it loads."""
        return max(0, in_us(self._pool, cost - dearest_load(self._pool)))

    def _least_us(self, solver: LocalSearch, quickest: Placement) -> int:
        cost = solver.least_cost(self._pipeline.problem, quickest, BOUND_STEPS)
        busy = least_busy(self._pipeline, list(map(len, solver.kinds)))
        return max(self._latency_us(cost), self._round_us(busy))

    def refined(self, one: _Round) -> Answer:
        within = self._pipeline.within(one.limit)
        placement = self._solver.refined(within, one.placement)
        found = answered(self._pool, self._solver, placement, self._batch, self._rows)
        # Less latency may go with a busier bottleneck, as far as the limit.
        found = min(one.answer, found, key=iteration_us)
        if one.is_tightest:
            return found
        note = "too few sequences to fill the pipeline of least bottleneck: another one is better"
        return replace(found, reason="; ".join(filter(None, [note, found.reason])))
