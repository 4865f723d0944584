"""Which peer runs which units: a pure function of a snapshot, so that every peer finds the same.

Objectives: the latency of one decode token (mean over the sources, the return hop included), or
how much a pipeline of micro-batches can bear; each with what the plan still has to load.
Knows nothing of how a plan comes into force.
"""

from __future__ import annotations

from bisect import bisect_left

from msgspec.structs import replace

from edgeshard_p2p.core.answers import Answer, answered, in_units
from edgeshard_p2p.core.footprint import entry_of, needed_bytes, offered_bytes, own_bytes
from edgeshard_p2p.core.latency_dp import UNREACHABLE, Chain, Problem
from edgeshard_p2p.core.pinned import pinned_answer
from edgeshard_p2p.core.plan import Choice, Device, Snapshot
from edgeshard_p2p.core.pool import (
    Pool,
    chain_of,
    dearest_load,
    fit_of,
    in_us,
    pool_of,
)
from edgeshard_p2p.core.solvers import Solver, solver_for
from edgeshard_p2p.core.throughput import most_tokens


def choose(snapshot: Snapshot) -> Choice:
    """The best plan for ``snapshot`` to be served, or why there is none (see ``answer``)."""
    found, model = answer(snapshot), snapshot.model
    if found.layout is None or found.prediction is None:
        return Choice(snapshot.id, None, reason=found.reason, missing_bytes=found.missing_bytes)
    workload = replace(snapshot.workload, batch=found.batch)
    plan = found.layout.plan(model.digest, workload, model.n_units)
    return Choice(snapshot.id, plan, found.prediction.latency_us, found.reason)


def answer(snapshot: Snapshot) -> Answer:
    """The pinned layout where there is one that can be served, else the best (see ``best``)."""
    if snapshot.pin is None:
        return best(snapshot)
    pinned = pinned_answer(snapshot, snapshot.pin)
    if pinned.layout is not None:
        return pinned
    found = best(snapshot)
    notes = [f"the pin is not followed: {pinned.reason}", *([found.reason] if found.reason else [])]
    return replace(found, reason="; ".join(notes))


def best(snapshot: Snapshot) -> Answer:
    """The best layout for ``snapshot``, or why there is none; a pin is not looked at.

    Plans: each source runs ``[0, entry_end)`` for its own prompts, then shared stages follow,
    one contiguous run per device.  Several sources keep the default entry, taken from their
    budgets first, and may hold one shared stage each.  A single source may run on beyond the
    default entry and holds no other stage.  With a private head the head is each source's own as
    well, and a single source may hold more units before it.  A source that cannot hold what is its
    own for one sequence is none in the plan, as long as another one can.

    The batch is the largest up to the wish that some plan can hold.  Among the plans for it the
    order is total.  ``latency``: cost, devices, stages, entry, then (peer, units) of the stages.
    ``throughput``: the most tokens per second with the batch in flight, of sizes of micro-batch
    that are as good the smallest; where the batch fills that pipeline the least busy bottleneck,
    then as for latency (see ``throughput``).
    So the answer depends on nothing but the snapshot.

    It is the best, with what is still to be loaded counted as a cost, as long as no more than
    CANDIDATES_MAX different devices could hold a shared stage (see ``solvers``).  Beyond, the
    search is a local one: still nothing but the snapshot decides, ``reason`` says so, and
    ``bound_us`` how much better a plan could be at most.
    """
    devices = _devices(snapshot)
    model, workload = snapshot.model, snapshot.workload
    if workload.context > model.max_context:
        return _refused(f"context {workload.context} exceeds the model's {model.max_context}")
    if snapshot.goal.prompt + snapshot.goal.generate > workload.context:
        return _refused(f"prompt and answer are longer than the context of {workload.context}")
    willing = [device for device in devices if device.is_source]
    if not willing:
        return _refused("no source: no device of the swarm takes prompts")
    least = own_bytes(snapshot, 1)
    sources = [device for device in willing if device.budget_bytes >= least]
    if not sources:
        return _no_entry(snapshot, willing)
    pool = pool_of(snapshot, devices, sources)
    solver, chain = solver_for(pool.kinds), chain_of(pool)
    if chain.largest_sum() >= UNREACHABLE:
        return _refused("the times or links are too slow to be planned with")
    batch = _largest_batch(pool, solver, chain)
    if not batch:
        reason, missing_bytes = _obstacle(pool, solver, chain)
        return _refused("; ".join([reason, *pool.notes]), missing_bytes)
    if snapshot.goal.objective == "throughput":
        found = most_tokens(pool, solver, batch)
        return found or _refused("the times or links are too slow for so many rows at once")
    problem = Problem.of(chain, fit_of(pool, batch), solver.kinds)
    first = solver.first(problem)
    assert first is not None, "feasible, but no placement"
    placement = solver.refined(problem, first)
    least = solver.least_cost(problem, placement.cost)
    # NOTE: the least cost is of time and loading together; any other plan may load less.
    bound_us = max(0, in_us(pool, least - dearest_load(pool)))
    return replace(answered(pool, solver, placement, batch, 1), bound_us=bound_us)


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
