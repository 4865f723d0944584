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
from edgeshard_p2p.core.kinds import States
from edgeshard_p2p.core.large import floor_us, searched
from edgeshard_p2p.core.latency_dp import (
    UNREACHABLE,
    Chain,
    Placement,
    Problem,
    alike,
    cheapest,
    is_feasible,
)
from edgeshard_p2p.core.layout import Layout, Prediction, predict
from edgeshard_p2p.core.narrowest import Pipeline, narrowest
from edgeshard_p2p.core.plan import Choice, Device, Snapshot, Stage
from edgeshard_p2p.core.pool import Pool, busy_of, chain_of, everyone_of, fit_of


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
    default entry and holds no other stage.  A source that cannot hold the default entry for one
    sequence is none in the plan, as long as another one can.

    The batch is the largest up to the wish that some plan can hold.  Among the plans for it the
    order is total.  ``latency``: cost, devices, stages, entry, then (peer, units) of the stages.
    ``throughput``: the least busy bottleneck, then as for latency, for each size of micro-batch;
    of these the most tokens per second with the batch in flight, then the smaller micro-batch.
    So the answer depends on nothing but the snapshot.

    It is optimal over up to CANDIDATES_MAX different devices that could hold a shared stage.
    Beyond, only so many take part (see ``pool``): deterministic, said in ``reason``, and for
    ``latency`` with a proved bound on what that can cost.
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
    everyone = everyone_of(snapshot, devices, sources)
    most_rows = workload.batch if snapshot.goal.objective == "throughput" else 1
    if chain_of(everyone, most_rows).largest_sum() >= UNREACHABLE:
        return _refused("the times or links are too slow to be planned with")
    pool = searched(everyone)
    chain = chain_of(pool)
    batch = _largest_batch(pool, chain)
    if not batch:
        reason, missing_bytes = _obstacle(pool, chain)
        return _refused("; ".join([reason, *pool.notes]), missing_bytes)
    if snapshot.goal.objective == "latency":
        placement = cheapest(_problem(pool, chain, batch))
        assert placement is not None, "feasible, but no placement"
        found = _answered(pool, placement, batch, 1)
        return replace(found, bound_us=_least_latency_us(pool, found))
    return _most_tokens(pool, batch)


def _most_tokens(pool: Pool, batch: int) -> Answer:
    """For each size of micro-batch the plan of the least busy bottleneck; where the batch cannot
    fill that pipeline, the one of least latency too; of these the best."""
    goal, fit, n_sources = pool.snapshot.goal, fit_of(pool, batch), len(pool.sources)
    sizes = [min(batch, goal.micro_batch)] if goal.micro_batch else micro_batches(batch)
    best: Answer | None = None
    for rows in sizes:
        pipeline = Pipeline.of(chain_of(pool, rows), busy_of(pool, rows), fit)
        # What is as busy as this, so many micro-batches long, gives no more tokens.
        below = None if best is None else -(-iteration_us(best) * n_sources // -(-batch // rows))
        placement = narrowest(pipeline, below)
        if placement is None:
            continue
        narrow = _answered(pool, placement, batch, rows)
        prediction = narrow.prediction
        assert prediction is not None
        bound_us = None if pool.left_out else prediction.bottleneck_us
        found = [narrow]
        if prediction.pipeline_us >= prediction.iteration_us:
            quickest = cheapest(pipeline.problem)
            assert quickest is not None
            note = (
                f"{batch} sequences do not fill the pipeline: the plan of least latency is better"
            )
            found.append(_answered(pool, quickest, batch, rows, note))
        others = [best] if best is not None else []
        best = min([*others, *(replace(one, bound_us=bound_us) for one in found)], key=iteration_us)
    assert best is not None, "feasible, but no placement"
    return best


def micro_batches(batch: int) -> list[int]:
    """Sizes that are tried: powers of two, and all at once."""
    return sorted({batch, *(1 << power for power in range(batch.bit_length()))})


def iteration_us(found: Answer) -> int:
    assert found.prediction is not None
    return found.prediction.iteration_us


def _answered(pool: Pool, placement: Placement, batch: int, rows: int, note: str = "") -> Answer:
    layout = _layout(pool, placement)
    reason = "; ".join([*([note] if note else []), *pool.notes])
    prediction = predict(pool.snapshot, layout, batch, rows)
    return Answer(layout, batch, prediction, reason)


def _least_latency_us(pool: Pool, found: Answer) -> int | None:
    """The plan's own where all plans were searched."""
    if pool.left_out:
        return floor_us(pool, found.batch)
    assert found.prediction is not None
    goal, said = pool.snapshot.goal, found.prediction
    is_whole = goal.prompt and goal.generate
    return said.latency_us + (said.ttft_us // goal.generate if is_whole else 0)


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


def _largest_batch(pool: Pool, chain: Chain) -> int:
    """The largest batch that some plan holds, 0 where none does.  A plan that holds a batch holds
    every smaller one, and the sources are those of batch 1: so halving finds it."""
    batches = range(1, pool.snapshot.workload.batch + 1)
    return bisect_left(batches, True, key=lambda batch: not _has_plan(pool, chain, batch))


def _has_plan(pool: Pool, chain: Chain, batch: int) -> bool:
    need = needed_bytes(pool.snapshot, len(pool.sources), batch)
    return need <= offered_bytes(pool.snapshot) and is_feasible(_problem(pool, chain, batch))


def _problem(pool: Pool, chain: Chain, batch: int) -> Problem:
    fit = fit_of(pool, batch)
    return Problem.of(chain, fit, States(alike(chain, fit)))


def _layout(pool: Pool, placement: Placement) -> Layout:
    start, stages = placement[0], []
    for device, end in placement[1]:
        stages.append(Stage(pool.shared[device].peer, UnitRange(start, end)))
        start = end
    return Layout(
        sources=tuple(source.peer for source in pool.sources),
        entry_end=placement[0],
        stages=tuple(stages),
        tail_start=start if stages else pool.snapshot.model.n_units,
    )


def _refused(reason: str, missing_bytes: int = 0) -> Answer:
    return Answer(None, reason=reason, missing_bytes=missing_bytes)


def _no_entry(snapshot: Snapshot, willing: list[Device]) -> Answer:
    context, entry = snapshot.workload.context, entry_of(snapshot)
    short = own_bytes(snapshot, 1) - max(device.budget_bytes for device in willing)
    lack = needed_bytes(snapshot, 1, 1) - offered_bytes(snapshot)
    return _refused(
        f"no source can hold units {entry}, which a source keeps for its own prompts: the largest"
        f" lacks {in_units(short)} at context {context}",
        max(short, lack),
    )


def _obstacle(pool: Pool, chain: Chain) -> tuple[str, int]:
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
    if not is_feasible(_problem(pool, chain.fully_linked(), 1)):
        if pool.left_out:
            # NOTE: it may be those left out who are missing, not memory.
            return f"found no cut into one run per device that fits {figures}", 0
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
