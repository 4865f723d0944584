"""What a planning algorithm says: a layout with its promise, or why there is none."""

from __future__ import annotations

from fractions import Fraction

from msgspec import Struct

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.latency_dp import Placement
from edgeshard_p2p.core.layout import Layout, Prediction, predict
from edgeshard_p2p.core.plan import Goal, Stage
from edgeshard_p2p.core.pool import Pool
from edgeshard_p2p.core.solvers import Solver


class Answer(Struct, frozen=True):
    """What a planning algorithm found for a snapshot: a layout and its promise, or why not."""

    layout: Layout | None
    batch: int = 0
    """Sequences that fit, up to the wish."""
    prediction: Prediction | None = None
    reason: str = ""
    missing_bytes: int = 0
    """When infeasible for want of memory: how much more the swarm needs, at least."""
    bound_us: int | None = None
    """Proved: no plan of this set takes less for a token, with its part of the prefill where that
    counts; for ``throughput`` from one token of a sequence to its next with this batch."""
    is_best: bool = False
    """All plans were searched."""


def answered(pool: Pool, solver: Solver, placement: Placement, batch: int, rows: int) -> Answer:
    layout = layout_of(pool, placement)
    in_part = f"{len(pool.shared)} devices are too many different ones to search all plans"
    notes = [*([] if solver.is_exact else [in_part]), *pool.notes]
    prediction = predict(pool.snapshot, layout, batch, rows)
    return Answer(layout, batch, prediction, "; ".join(notes), is_best=solver.is_exact)


def layout_of(pool: Pool, placement: Placement) -> Layout:
    start, stages = placement.entry_end, []
    for device, end in placement.runs:
        stages.append(Stage(pool.shared[device].peer, UnitRange(start, end)))
        start = end
    return Layout(
        sources=tuple(source.peer for source in pool.sources),
        entry_end=placement.entry_end,
        stages=tuple(stages),
        tail_start=start if stages else pool.snapshot.model.n_units,
    )


def objective_us(goal: Goal, found: Answer) -> Fraction:
    """What is minimised: see ``Answer.bound_us``."""
    said = found.prediction
    assert said is not None
    if goal.objective == "throughput":
        return Fraction(said.iteration_us)
    prefill_us = Fraction(said.ttft_us, goal.generate) if goal.prompt and goal.generate else 0
    return said.latency_us + Fraction(prefill_us)


def iteration_us(found: Answer) -> int:
    assert found.prediction is not None
    return found.prediction.iteration_us


def in_units(n_bytes: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if 10 * n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes} bytes"
