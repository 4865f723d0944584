"""Which peer runs which units: a pure function of a snapshot, so that every peer finds the same.

Objective: the latency of one decode token (mean over the sources, the return hop included) plus
what the plan still has to load.  Memory: weights and the KV of the promised batch and context.
Translates a snapshot into the costs and limits of ``latency_dp`` and its answer into a plan.
Knows nothing of how a plan comes into force.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate

from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.latency_dp import UNREACHABLE, Chain, Fit, cheapest, is_feasible
from edgeshard_p2p.core.plan import (
    FRAME_OVERHEAD_BYTES,
    Choice,
    Device,
    Link,
    Plan,
    Snapshot,
    Stage,
    entry_units,
    kv_bytes,
    weight_bytes,
)

LOAD_BYTES_PER_US = 500_000
"""How many bytes still to be loaded weigh as much as one microsecond of every token.

A new plan must win 1 us per token for each 0.5 MB that it loads anew.  At a loading speed of v
bytes/s it then has earned its loading time back after LOAD_BYTES_PER_US * 1e6 / v tokens at the
latest: 1,000 tokens at 500 MB/s, 5,000 at 100 MB/s.
"""

CANDIDATES_MAX = 12
"""Devices among which shared stages are placed exactly; the table doubles with each."""

_DEVICE_RANK, _STAGE_RANK, _RANKS = 16, 1, 256
"""Of plans that cost the same the one with fewer devices wins, then the one with fewer stages:
each run on a device that is no source adds both ranks, on a source the second.  All ranks of a
plan (at most 12 * 17) stay below one step of the cost, which is counted in units of ``_RANKS``."""


class _Pool(Struct, frozen=True):
    """Who takes part: the devices by role, in the order that decides ties, and their links."""

    snapshot: Snapshot
    sources: tuple[Device, ...]
    shared: tuple[Device, ...]
    """Those that may hold a shared stage."""
    n_shared_left_out: int
    links: dict[tuple[str, str], Link]

    @property
    def notes(self) -> list[str]:
        """What the operator should know about who takes part."""
        notes = [
            f"{device.peer} cannot hold a source's part and is no source"
            for device in sorted(self.snapshot.devices, key=lambda device: device.peer)
            if device.is_source and device not in self.sources
        ]
        if self.n_shared_left_out:
            n_all = len(self.shared) + self.n_shared_left_out
            notes.append(f"shared stages planned over {len(self.shared)} of {n_all} devices")
        return notes


def choose(snapshot: Snapshot) -> Choice:
    """The best plan for ``snapshot``, or why there is none.

    Plans: each source runs ``[0, entry_end)`` for its own prompts, then shared stages follow,
    one contiguous run per device.  Several sources keep the default entry, taken from their
    budgets first, and may hold one shared stage each.  A single source may run on beyond the
    default entry and holds no other stage.  A source that cannot hold the default entry for one
    sequence is none in the plan, as long as another one can.

    The batch is the largest up to the wish that some plan can hold.  Among the plans for it the
    order is total: cost, devices, stages, entry, then (peer, units) of the stages; so the answer
    depends on nothing but the snapshot.

    It is optimal over up to CANDIDATES_MAX devices that could hold a shared stage.  Beyond, only
    so many take part (see ``_reduced``): deterministic, said in ``reason``, without a bound on
    what that costs.
    """
    devices = _devices(snapshot)
    model, workload = snapshot.model, snapshot.workload
    if workload.context > model.max_context:
        return _refused(
            snapshot, f"context {workload.context} exceeds the model's {model.max_context}"
        )
    willing = [device for device in devices if device.is_source]
    if not willing:
        return _refused(snapshot, "no source: no device of the swarm takes prompts")
    sources = [device for device in willing if _spare_bytes(snapshot, device, True, 1) >= 0]
    if not sources:
        return _no_entry(snapshot, willing)
    pool = _pool(snapshot, devices, sources)
    chain = _chain(pool)
    batch = _largest_batch(pool, chain)
    if not batch:
        reason, missing_bytes = _obstacle(pool, chain)
        return _refused(snapshot, "; ".join([reason, *pool.notes]), missing_bytes)
    plan = _plan(pool, chain, batch)
    return Choice(snapshot.id, plan, _latency_us(pool, plan), "; ".join(pool.notes))


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


def _pool(snapshot: Snapshot, devices: list[Device], sources: list[Device]) -> _Pool:
    free = [device for device in devices if len(sources) > 1 or device not in sources]
    able = [device for device in free if _holds_some_unit(snapshot, device, device in sources)]
    shared = _reduced(snapshot, able, sources)
    links = {(link.a, link.b): link for link in snapshot.links}
    return _Pool(snapshot, tuple(sources), tuple(shared), len(able) - len(shared), links)


def _holds_some_unit(snapshot: Snapshot, device: Device, is_source: bool) -> bool:
    smallest = min(_unit_bytes(snapshot, is_source, 1)[_entry(snapshot).end :])
    return _spare_bytes(snapshot, device, is_source, 1) >= smallest


def _reduced(snapshot: Snapshot, able: list[Device], sources: list[Device]) -> list[Device]:
    """At most CANDIDATES_MAX of ``able``: the fastest, of which the smallest are exchanged for the
    largest others, one by one, until together they surely hold the shared units at the wished
    batch.  Surely: a run leaves less than its largest unit unused, taken off for each.
    """
    if len(able) <= CANDIDATES_MAX:
        return able
    batch = snapshot.workload.batch
    sizes = _unit_bytes(snapshot, False, batch)[_entry(snapshot).end :]
    wanted = sum(sizes) + CANDIDATES_MAX * max(sizes)
    spare = {
        device.peer: _spare_bytes(snapshot, device, device in sources, batch) for device in able
    }
    ranked = sorted(able, key=lambda device: (sum(device.unit_us), device.peer))
    kept, others = ranked[:CANDIDATES_MAX], ranked[CANDIDATES_MAX:]
    for larger in sorted(others, key=lambda device: (-spare[device.peer], device.peer)):
        smallest = min(kept, key=lambda device: (spare[device.peer], device.peer))
        enough = sum(spare[device.peer] for device in kept) >= wanted
        if enough or spare[larger.peer] <= spare[smallest.peer]:
            break
        kept[kept.index(smallest)] = larger
    return sorted(kept, key=lambda device: device.peer)


def _entry(snapshot: Snapshot) -> UnitRange:
    return entry_units(snapshot.model, snapshot.workload.first_layer)


def _unit_bytes(snapshot: Snapshot, is_source: bool, batch: int) -> list[int]:
    """Memory of each unit on a device.  A source holds the embedding, so a tied head is free of
    its matrix there: sizes are per unit and add up whatever else the device runs."""
    model, workload = snapshot.model, snapshot.workload
    units = [UnitRange(unit, unit + 1) for unit in range(model.n_units)]
    return [
        weight_bytes(model, unit, workload.dtype, is_source)
        + kv_bytes(model, unit, workload, batch)
        for unit in units
    ]


def _spare_bytes(snapshot: Snapshot, device: Device, is_source: bool, batch: int) -> int:
    """What the budget leaves for a shared stage; below 0 where the entry does not fit."""
    if not is_source:
        return device.budget_bytes
    return device.budget_bytes - sum(_unit_bytes(snapshot, True, batch)[: _entry(snapshot).end])


def _chain(pool: _Pool) -> Chain:
    """Costs in 1 / (LOAD_BYTES_PER_US * _RANKS) us, summed over the sources instead of averaged:
    what every source's token passes counts once for each of them, bytes to load likewise.
    """
    n_sources, token = len(pool.sources), FRAME_OVERHEAD_BYTES
    row = pool.snapshot.model.hidden_bytes(pool.snapshot.workload.dtype) + FRAME_OVERHEAD_BYTES
    one_us = LOAD_BYTES_PER_US * _RANKS
    rank = [_STAGE_RANK + _DEVICE_RANK * (d not in pool.sources) for d in pool.shared]
    entries = [_unit_costs(pool, source, 1) for source in pool.sources]
    enter = [sum(_hop_us(pool, source, d, row) for source in pool.sources) for d in pool.shared]
    leave = [sum(_hop_us(pool, d, source, token) for source in pool.sources) for d in pool.shared]
    hops = [[n_sources * _hop_us(pool, a, b, row) for b in pool.shared] for a in pool.shared]
    return Chain(
        entry=_prefix_sums(map(sum, zip(*entries, strict=True))),
        units=tuple(_prefix_sums(_unit_costs(pool, d, n_sources)) for d in pool.shared),
        enter=tuple(us * one_us + r for us, r in zip(enter, rank, strict=True)),
        hop=tuple(tuple(us * one_us + r for us, r in zip(hop, rank, strict=True)) for hop in hops),
        leave=tuple(us * one_us for us in leave),
    )


def _unit_costs(pool: _Pool, device: Device, n_tokens: int) -> list[int]:
    """Cost of each unit: its time for ``n_tokens`` of one per source, and its loading."""
    model, dtype = pool.snapshot.model, pool.snapshot.workload.dtype
    costs = []
    for unit, unit_us in enumerate(device.unit_us):
        is_held = any(unit in units for units in device.held)
        size = weight_bytes(model, UnitRange(unit, unit + 1), dtype, device in pool.sources)
        load = 0 if is_held else size * len(pool.sources)
        costs.append((n_tokens * unit_us * LOAD_BYTES_PER_US + load) * _RANKS)
    return costs


def _hop_us(pool: _Pool, a: Device, b: Device, n_bytes: int) -> int:
    if a.peer == b.peer:
        return 0
    link = pool.links.get((a.peer.name, b.peer.name))
    return link.cost_us(n_bytes) if link else UNREACHABLE


def _prefix_sums(costs: Iterable[int]) -> tuple[int, ...]:
    return tuple(accumulate(costs, initial=0))


def _fit(pool: _Pool, batch: int) -> Fit:
    snapshot, entry_end = pool.snapshot, _entry(pool.snapshot).end
    sizes = {role: _prefix_sums(_unit_bytes(snapshot, role, batch)) for role in (False, True)}
    spare = [_spare_bytes(snapshot, source, True, batch) for source in pool.sources]
    if len(pool.sources) > 1:
        longest = entry_end if min(spare) >= 0 else 0
    else:
        longest = bisect_right(sizes[True], pool.sources[0].budget_bytes) - 1
    ends = []
    for device in pool.shared:
        is_source = device in pool.sources
        free, done = _spare_bytes(snapshot, device, is_source, batch), sizes[is_source]
        ends.append(tuple(bisect_right(done, start + free) - 1 for start in done))
    return Fit(range(entry_end, longest + 1), tuple(ends))


def _largest_batch(pool: _Pool, chain: Chain) -> int:
    """The largest batch that some plan holds, 0 where none does.  A plan that holds a batch holds
    every smaller one, and the sources are those of batch 1: so halving finds it."""
    batches = range(1, pool.snapshot.workload.batch + 1)
    return bisect_left(batches, True, key=lambda batch: not _has_plan(pool, chain, batch))


def _has_plan(pool: _Pool, chain: Chain, batch: int) -> bool:
    need = _needed_bytes(pool.snapshot, len(pool.sources), batch)
    return need <= _offered_bytes(pool.snapshot) and is_feasible(chain, _fit(pool, batch))


def _needed_bytes(snapshot: Snapshot, n_sources: int, batch: int) -> int:
    """The least that any plan takes: an entry for each source, everything else once."""
    sizes, entry_end = _unit_bytes(snapshot, True, batch), _entry(snapshot).end
    return n_sources * sum(sizes[:entry_end]) + sum(sizes[entry_end:])


def _offered_bytes(snapshot: Snapshot) -> int:
    return sum(device.budget_bytes for device in snapshot.devices)


def _plan(pool: _Pool, chain: Chain, batch: int) -> Plan:
    placement = cheapest(chain, _fit(pool, batch))
    assert placement is not None, "feasible, but no placement"
    start, stages = placement[0], []
    for device, end in placement[1]:
        stages.append(Stage(pool.shared[device].peer, UnitRange(start, end)))
        start = end
    return Plan(
        model_digest=pool.snapshot.model.digest,
        workload=replace(pool.snapshot.workload, batch=batch),
        sources=tuple(source.peer for source in pool.sources),
        entry_end=placement[0],
        stages=tuple(stages),
    )


def _latency_us(pool: _Pool, plan: Plan) -> int:
    """Walks one token of each source through the plan and takes the mean."""
    row = pool.snapshot.model.hidden_bytes(plan.workload.dtype) + FRAME_OVERHEAD_BYTES
    devices = {device.peer: device for device in (*pool.sources, *pool.shared)}
    total = 0
    for source in pool.sources:
        at = source
        total += sum(source.unit_us[: plan.entry_end])
        for stage in plan.stages:
            device = devices[stage.peer]
            total += _hop_us(pool, at, device, row)
            total += sum(device.unit_us[stage.units.start : stage.units.end])
            at = device
        total += _hop_us(pool, at, source, FRAME_OVERHEAD_BYTES)
    return total // len(pool.sources)


def _refused(snapshot: Snapshot, reason: str, missing_bytes: int = 0) -> Choice:
    return Choice(snapshot.id, None, reason=reason, missing_bytes=missing_bytes)


def _no_entry(snapshot: Snapshot, willing: list[Device]) -> Choice:
    context, entry = snapshot.workload.context, _entry(snapshot)
    short = min(-_spare_bytes(snapshot, device, True, 1) for device in willing)
    lack = _needed_bytes(snapshot, 1, 1) - _offered_bytes(snapshot)
    return _refused(
        snapshot,
        f"no source can hold units {entry}, which a source keeps for its own prompts: the largest"
        f" lacks {_size(short)} at context {context}",
        max(short, lack),
    )


def _obstacle(pool: _Pool, chain: Chain) -> tuple[str, int]:
    """What stands in the way at batch 1 (memory, its shape or links), and the bytes missing."""
    snapshot, n_devices = pool.snapshot, len(pool.snapshot.devices)
    need, have = _needed_bytes(snapshot, len(pool.sources), 1), _offered_bytes(snapshot)
    figures = f"(have {_size(have)}, need {_size(need)} at context {snapshot.workload.context})"
    if need > have:
        offer = "the only device offers" if n_devices == 1 else f"the {n_devices} devices offer"
        lack = f"{_size(need - have)} more memory than {offer}"
        return f"the model needs {lack} {figures}", need - have
    if not is_feasible(chain.fully_linked(), _fit(pool, 1)):
        reason = f"no cut into one run per device fits the {n_devices} devices' memory {figures}"
        # NOTE: with devices left out it may be they who are missing, not memory.
        return reason, 0 if pool.n_shared_left_out else 1
    return _link_obstacle(pool, chain), 0


def _link_obstacle(pool: _Pool, chain: Chain) -> str:
    sources = "+".join(str(source.peer) for source in pool.sources)
    if min(chain.enter) >= UNREACHABLE:
        return f"no measured link from {sources} to a device that could take the next stage"
    if min(chain.leave) >= UNREACHABLE:
        return f"no measured link back to {sources} from a device that could end the model"
    return "the links measured so far join too few devices to hold the model"


def _size(n_bytes: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if 10 * n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes} bytes"
