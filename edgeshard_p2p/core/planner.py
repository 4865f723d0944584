"""Which peer runs which units: a pure function of a snapshot, so that every peer finds the same.

Objectives: the latency of one decode token (mean over the sources, the return hop included), or
how much a pipeline of micro-batches can bear; each with what the plan still has to load.
Knows nothing of how a plan comes into force.
"""

from __future__ import annotations

from bisect import bisect_left

from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.core.footprint import entry_of, needed_bytes, offered_bytes, own_bytes
from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.latency_dp import UNREACHABLE, Chain, Placement, Problem
from edgeshard_p2p.core.layout import Layout, Prediction, predict
from edgeshard_p2p.core.narrowest import Pipeline, least_busy, limits_kept
from edgeshard_p2p.core.plan import Choice, Device, Snapshot, Stage
from edgeshard_p2p.core.pool import (
    Pool,
    busy_of,
    chain_of,
    dearest_load,
    everyone_of,
    fit_of,
    in_us,
)
from edgeshard_p2p.core.solvers import Solver, solver_for


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
    """Proved: no plan of this set is below it, in latency of one token (with its part of the
    prefill where that counts) or, for ``throughput``, in its busiest resource at this
    micro-batch."""
    is_best: bool = False
    """Of all plans, and not only of those that were searched."""


def choose(snapshot: Snapshot) -> Choice:
    """The best plan for ``snapshot`` to be served, or why there is none (see ``answer``)."""
    found, model = answer(snapshot), snapshot.model
    if found.layout is None or found.prediction is None:
        return Choice(snapshot.id, None, reason=found.reason, missing_bytes=found.missing_bytes)
    workload = replace(snapshot.workload, batch=found.batch)
    plan = found.layout.plan(model.digest, workload, model.n_units)
    return Choice(snapshot.id, plan, found.prediction.latency_us, found.reason)


def answer(snapshot: Snapshot) -> Answer:
    """The best layout for ``snapshot``, or why there is none.

    Plans: each source runs ``[0, entry_end)`` for its own prompts, then shared stages follow,
    one contiguous run per device.  Several sources keep the default entry, taken from their
    budgets first, and may hold one shared stage each.  A single source may run on beyond the
    default entry and holds no other stage.  With a private head the head is each source's own as
    well, and a single source may hold more units before it.  A source that cannot hold what is its
    own for one sequence is none in the plan, as long as another one can.

    The batch is the largest up to the wish that some plan can hold.  Among the plans for it the
    order is total.  ``latency``: cost, devices, stages, entry, then (peer, units) of the stages.
    ``throughput``: the least busy bottleneck, then as for latency, for each size of micro-batch,
    or where the batch does not fill that pipeline the one of most tokens per second; of these the
    most tokens per second with the batch in flight, then the smaller micro-batch.
    So the answer depends on nothing but the snapshot.

    It is the best as long as no more than CANDIDATES_MAX different devices could hold a shared
    stage (see ``solvers``).  Beyond, the search is a local one: still nothing but the snapshot
    decides, ``reason`` says so, and ``bound_us`` how much better a plan could be at most.
    """
    devices = _devices(snapshot)
    model, workload = snapshot.model, snapshot.workload
    if workload.context > model.max_context:
        return _refused(f"context {workload.context} exceeds the model's {model.max_context}")
    willing = [device for device in devices if device.is_source]
    if not willing:
        return _refused("no source: no device of the swarm takes prompts")
    least = own_bytes(snapshot, 1)
    sources = [device for device in willing if device.budget_bytes >= least]
    if not sources:
        return _no_entry(snapshot, willing)
    pool = everyone_of(snapshot, devices, sources)
    most_rows = workload.batch if snapshot.goal.objective == "throughput" else 1
    if chain_of(pool, most_rows).largest_sum() >= UNREACHABLE:
        return _refused("the times or links are too slow to be planned with")
    solver, chain = solver_for(pool.kinds), chain_of(pool)
    batch = _largest_batch(pool, solver, chain)
    if not batch:
        reason, missing_bytes = _obstacle(pool, solver, chain)
        return _refused("; ".join([reason, *pool.notes]), missing_bytes)
    if snapshot.goal.objective == "throughput":
        return _most_tokens(pool, solver, batch)
    problem = Problem.of(chain, fit_of(pool, batch), solver.kinds)
    placement = solver.refined(problem, _found(solver.first(problem)))
    least = solver.least_cost(problem, placement)
    # NOTE: the least cost is of time and loading together; any other plan may load less.
    bound_us = max(0, in_us(pool, least - dearest_load(pool)))
    return replace(_answered(pool, solver, placement, batch, 1), bound_us=bound_us)


class _Round(Struct, frozen=True):
    """A plan for throughput, and the problem that it came from."""

    answer: Answer
    placement: Placement
    pipeline: Pipeline
    limit: int
    """On the busiest resource."""
    tightest: int
    """The smallest limit that a plan with so many rows keeps."""

    @property
    def note(self) -> str:
        if self.limit == self.tightest:
            return ""
        return "too few sequences to fill the pipeline of least bottleneck: another one is better"


def _most_tokens(pool: Pool, solver: Solver, batch: int) -> Answer:
    """The best of all sizes of micro-batch; the smaller one where two are as good."""
    goal, fit = pool.snapshot.goal, fit_of(pool, batch)
    sizes = [min(batch, goal.micro_batch)] if goal.micro_batch else micro_batches(batch)
    best: _Round | None = None
    for rows in sizes:
        pipeline = Pipeline.of(chain_of(pool, rows), busy_of(pool, rows), fit, solver.kinds)
        if best is not None and solver.is_exact:
            least = _found(solver.first(pipeline.problem)).cost - dearest_load(pool)
            if in_us(pool, least) >= iteration_us(best.answer):
                continue
        best = _of_size(pool, solver, pipeline, batch, rows, best)
    assert best is not None, "feasible, but no placement"
    return _refined(pool, solver, best)


def _of_size(
    pool: Pool, solver: Solver, pipeline: Pipeline, batch: int, rows: int, best: _Round | None
) -> _Round | None:
    """The plan of the least busy bottleneck.  Where the batch does not fill that pipeline, another
    one may give more tokens: the looser the limit on the bottleneck, the less the latency, so the
    best plan is where latency and the round of all micro-batches meet.  ``best`` if that is as
    good."""
    n_sources, n_micro_batches = len(pool.sources), -(-batch // rows)
    # What is as busy as this, so many micro-batches long, gives no more tokens.
    below = None if best is None else -(-iteration_us(best.answer) * n_sources // n_micro_batches)
    limits = limits_kept(pipeline, solver.is_feasible, below)
    tried = [best] if best is not None else []

    def is_filled(limit: int) -> bool:
        placement = _found(solver.first(pipeline.within(limit)))
        found = _answered(pool, solver, placement, batch, rows)
        tried.append(_Round(found, placement, pipeline, limit, limits[0]))
        assert found.prediction is not None
        return found.prediction.pipeline_us * n_sources <= n_micro_batches * limit

    if limits and not is_filled(limits[0]):
        bisect_left(limits, True, lo=1, key=is_filled)
    return min(tried, key=lambda one: iteration_us(one.answer), default=None)


def _refined(pool: Pool, solver: Solver, best: _Round) -> Answer:
    said, pipeline = best.answer.prediction, best.pipeline
    assert said is not None
    placement = solver.refined(pipeline.within(best.limit), best.placement)
    found = _answered(pool, solver, placement, best.answer.batch, said.micro_batch)
    is_exact = solver.is_exact
    least = best.tightest if is_exact else least_busy(pipeline, list(map(len, solver.kinds)))
    reason = "; ".join(filter(None, [best.note, found.reason]))
    return replace(found, reason=reason, bound_us=-(-least // len(pool.sources)))


def _found(placement: Placement | None) -> Placement:
    assert placement is not None, "feasible, but no placement"
    return placement


def micro_batches(batch: int) -> list[int]:
    """Sizes that are tried: powers of two, and all at once."""
    return sorted({batch, *(1 << power for power in range(batch.bit_length()))})


def iteration_us(found: Answer) -> int:
    assert found.prediction is not None
    return found.prediction.iteration_us


def _answered(pool: Pool, solver: Solver, placement: Placement, batch: int, rows: int) -> Answer:
    layout = _layout(pool, placement)
    in_part = f"{len(pool.shared)} devices are too many different ones to search all plans"
    notes = [*([] if solver.is_exact else [in_part]), *pool.notes]
    prediction = predict(pool.snapshot, layout, batch, rows)
    return Answer(layout, batch, prediction, "; ".join(notes), is_best=solver.is_exact)


def _devices(snapshot: Snapshot) -> list[Device]:
    """The devices in the order that decides ties, by name; impossible input stops here."""
    devices = sorted(snapshot.devices, key=lambda device: device.peer)
    assert len({device.peer.name for device in devices}) == len(devices), "a name stands twice"
    assert len({(link.a, link.b) for link in snapshot.links}) == len(snapshot.links), (
        "a link stands twice"
    )
    for device in devices:
        assert len(device.unit_us) == snapshot.model.n_units, f"{device.peer}: one time per unit"
    return devices


def _largest_batch(pool: Pool, solver: Solver, chain: Chain) -> int:
    """The largest batch that some plan holds, 0 where none does.  A plan that holds a batch holds
    every smaller one, and the sources are those of batch 1: so halving finds it."""
    batches = range(1, pool.snapshot.workload.batch + 1)
    return bisect_left(batches, True, key=lambda batch: not _has_plan(pool, solver, chain, batch))


def _has_plan(pool: Pool, solver: Solver, chain: Chain, batch: int) -> bool:
    if needed_bytes(pool.snapshot, len(pool.sources), batch) > offered_bytes(pool.snapshot):
        return False
    return solver.is_feasible(Problem.of(chain, fit_of(pool, batch), solver.kinds))


def _layout(pool: Pool, placement: Placement) -> Layout:
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


def _refused(reason: str, missing_bytes: int = 0) -> Answer:
    return Answer(None, reason=reason, missing_bytes=missing_bytes)


def _no_entry(snapshot: Snapshot, willing: list[Device]) -> Answer:
    context, entry = snapshot.workload.context, str(entry_of(snapshot))
    own = f"{entry} and the head" if snapshot.goal.private_head else entry
    short = own_bytes(snapshot, 1) - max(device.budget_bytes for device in willing)
    lack = needed_bytes(snapshot, 1, 1) - offered_bytes(snapshot)
    return _refused(
        f"no source can hold units {own}, which a source keeps for its own prompts: the largest"
        f" lacks {in_units(short)} at context {context}",
        max(short, lack),
    )


def _obstacle(pool: Pool, solver: Solver, chain: Chain) -> tuple[str, int]:
    """What stands in the way at batch 1 (memory, its shape or links), and the bytes missing."""
    snapshot, n_devices = pool.snapshot, len(pool.snapshot.devices)
    need, have = needed_bytes(snapshot, len(pool.sources), 1), offered_bytes(snapshot)
    figures = (
        f"(have {in_units(have)}, need {in_units(need)} at context {snapshot.workload.context})"
    )
    if need > have:
        offer = "the only device offers" if n_devices == 1 else f"the {n_devices} devices offer"
        lack = f"{in_units(need - have)} more memory than {offer}"
        return f"the model needs {lack} {figures}", need - have
    if not solver.is_exact:
        # NOTE: there may be a cut all the same, and what is missing may be a link.
        return f"found no cut into one run per device that fits {figures}", 0
    if not solver.is_feasible(Problem.of(chain.fully_linked(), fit_of(pool, 1), solver.kinds)):
        return f"no cut into one run per device fits the {n_devices} devices' memory {figures}", 1
    return _link_obstacle(pool, chain), 0


def _link_obstacle(pool: Pool, chain: Chain) -> str:
    sources = "+".join(str(source.peer) for source in pool.sources)
    if min(chain.enter) >= UNREACHABLE:
        return f"no measured link from {sources} to a device that could take the next stage"
    if min(chain.leave) >= UNREACHABLE:
        return f"no measured link back to {sources} from a device that could end the model"
    return "the links measured so far join too few devices to hold the model"


def in_units(n_bytes: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if 10 * n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes} bytes"
