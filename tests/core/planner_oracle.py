"""An exhaustive planner for tiny swarms, and the random swarms that it judges.

Written from the definition of a plan, on purpose unlike the planner: it lists whole plans, adds
up memory by the set of units a device would hold, walks each source's token along its route and
compares fractions.  Shares no code with the planner but the types and one constant.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations, pairwise, permutations
from math import ceil
from typing import Any

from msgspec.structs import replace

from edgeshard_p2p.core.ids import PeerId, UnitRange, unit_ranges
from edgeshard_p2p.core.layout import Layout
from edgeshard_p2p.core.model_spec import DTYPE_BYTES, ModelSpec
from edgeshard_p2p.core.plan import (
    FRAME_OVERHEAD_BYTES,
    Device,
    Link,
    Snapshot,
    Stage,
    Workload,
    snapshot,
)
from edgeshard_p2p.core.pool import LOAD_BYTES_PER_US


def best_layout(swarm: Snapshot) -> tuple[Layout, int] | None:
    """What must be chosen, with its batch: the largest one, then least in the order of ``rank``."""
    for batch, fitting in by_batch(swarm):
        if fitting:
            return min(fitting, key=lambda layout: rank(swarm, layout)), batch
    return None


def by_batch(swarm: Snapshot) -> Iterator[tuple[int, list[Layout]]]:
    """The batches up to the wish, largest first, with all layouts that hold them."""
    sources = [
        device
        for device in swarm.devices
        if device.is_source and bytes_used(swarm, own(swarm), 1) <= device.budget_bytes
    ]
    layouts = [layout for layout in all_layouts(swarm, sources) if is_linked(swarm, layout)]
    for batch in range(swarm.workload.batch, 0, -1):
        yield batch, [layout for layout in layouts if fits(swarm, layout, batch)]


def all_layouts(swarm: Snapshot, sources: list[Device]) -> Iterator[Layout]:
    """Every one that the rules on runs allow, whatever memory and links say."""
    n_units, default_end = len(swarm.model.block_params) + 2, len(entry(swarm))
    source_ids = tuple(sorted(source.peer for source in sources))
    if len(sources) > 1:
        free = [device.peer for device in swarm.devices]
        ends = [(default_end, n_units - 1 if swarm.goal.private_head else n_units)]
    else:
        free = [device.peer for device in swarm.devices if device.peer not in source_ids]
        tails = range(default_end + 1, n_units) if swarm.goal.private_head else [n_units]
        ends = [(end, tail) for end in range(default_end, n_units) for tail in tails if end < tail]
        if sources:
            yield Layout(source_ids, n_units, (), n_units)
    if len(sources) > 1 and len(own(swarm)) == n_units:
        yield Layout(source_ids, n_units, (), n_units)
    for entry_end, tail_start in ends if sources else []:
        for stages in all_stages(free, entry_end, tail_start):
            if stages:
                yield Layout(source_ids, entry_end, stages, tail_start)


def all_stages(free: list[PeerId], start: int, end: int) -> Iterator[tuple[Stage, ...]]:
    if start == end:
        yield ()
        return
    for n_stages in range(1, min(len(free), end - start) + 1):
        for cuts in combinations(range(start + 1, end), n_stages - 1):
            bounds = (start, *cuts, end)
            for peers in permutations(free, n_stages):
                yield tuple(
                    Stage(peer, UnitRange(*bounds[i : i + 2])) for i, peer in enumerate(peers)
                )


def entry(swarm: Snapshot) -> list[int]:
    return [0] if swarm.workload.first_layer == "embedding" else [0, 1]


def own(swarm: Snapshot) -> set[int]:
    """What a source holds at least."""
    head = len(swarm.model.block_params) + 1
    return {*entry(swarm), head} if swarm.goal.private_head else set(entry(swarm))


def units_held(swarm: Snapshot, plan: Layout, peer: PeerId) -> set[int]:
    units = set()
    if peer in plan.sources:
        tail = range(plan.tail_start, len(swarm.model.block_params) + 2)
        units = {*range(plan.entry_end), *tail}
    for stage in plan.stages:
        if stage.peer == peer:
            units |= set(range(stage.units.start, stage.units.end))
    return units


def unit_weights(model: ModelSpec, units: set[int], element_bytes: int) -> dict[int, int]:
    """Bytes by unit; the head of a device that holds the embedding goes without a tied matrix."""
    params = [model.embedding_params, *model.block_params, model.head_params]
    if 0 in units:
        params[-1] -= model.tied_params
    return {unit: params[unit] * element_bytes for unit in units}


def bytes_used(swarm: Snapshot, units: set[int], batch: int) -> int:
    model, element_bytes = swarm.model, DTYPE_BYTES[swarm.workload.dtype]
    blocks = units - {0, len(model.block_params) + 1}
    positions = swarm.workload.context + -swarm.workload.context % 64
    per_block = batch * positions * model.kv_width * element_bytes
    return sum(unit_weights(model, units, element_bytes).values()) + len(blocks) * per_block


def fits(swarm: Snapshot, plan: Layout, batch: int) -> bool:
    return all(
        bytes_used(swarm, units_held(swarm, plan, device.peer), batch) <= device.budget_bytes
        for device in swarm.devices
    )


def back(swarm: Snapshot, plan: Layout) -> str:
    """What comes back to a source."""
    return "last row" if plan.tail_start < len(swarm.model.block_params) + 2 else "token"


def hops(swarm: Snapshot, plan: Layout, source: PeerId) -> list[tuple[str, str, str]]:
    """(from, to, what travels: a ``row`` of hidden states, a ``last row`` or a ``token``) along
    one source's token."""
    route = [source, *(stage.peer for stage in plan.stages), source]
    pairs = [
        (a.name, b.name, "row" if i < len(plan.stages) else back(swarm, plan))
        for i, (a, b) in enumerate(pairwise(route))
    ]
    return [(a, b, what) for a, b, what in pairs if a != b]


def hop_bytes(swarm: Snapshot, what: str) -> int:
    row = swarm.model.hidden_size * DTYPE_BYTES[swarm.workload.dtype] + FRAME_OVERHEAD_BYTES
    return FRAME_OVERHEAD_BYTES if what == "token" else row


def computed(swarm: Snapshot, plan: Layout, source: PeerId) -> list[tuple[PeerId, range]]:
    """What one source's token passes, in order."""
    tail = range(plan.tail_start, len(swarm.model.block_params) + 2)
    shared = [(stage.peer, range(stage.units.start, stage.units.end)) for stage in plan.stages]
    return [(source, range(plan.entry_end)), *shared, (source, tail)]


def besides(swarm: Snapshot, peer: PeerId) -> int:
    """What one pass takes of that device besides its units."""
    return next(device.pass_us for device in swarm.devices if device.peer == peer)


def is_linked(swarm: Snapshot, plan: Layout) -> bool:
    known = {(link.a, link.b) for link in swarm.links}
    return all((a, b) in known for source in plan.sources for a, b, _ in hops(swarm, plan, source))


def latency(swarm: Snapshot, plan: Layout, rows: int = 1) -> Fraction:
    """Mean over the sources of the time of one micro-batch of ``rows`` tokens, in microseconds."""
    links = {(link.a, link.b): link for link in swarm.links}
    unit_us = {device.peer: device.unit_us for device in swarm.devices}
    total = 0
    for source in plan.sources:
        for peer, units in computed(swarm, plan, source):
            total += rows * sum(unit_us[peer][unit] for unit in units)
        ways = {(b, what): (a, b) for a, b, what in hops(swarm, plan, source)}
        arrivals = [*((stage.peer, "row") for stage in plan.stages), (source, back(swarm, plan))]
        for peer, what in arrivals:
            device, way_us = swarm.devices[[d.peer for d in swarm.devices].index(peer)], 0
            if (peer.name, what) in ways:
                link = links[ways[peer.name, what]]
                transfer = Fraction(rows * hop_bytes(swarm, what) * 10**6, link.bytes_per_s)
                way_us = ceil(transfer) + link.per_message_us + link.delay_us - device.rested_us
            total += max(0, way_us + device.pass_us)
    return Fraction(total, len(plan.sources))


def loading(swarm: Snapshot, plan: Layout) -> Fraction:
    """Its price in microseconds, each unit's rounded up to 1/64 us."""
    total = Fraction(0)
    for device in swarm.devices:
        units = units_held(swarm, plan, device.peer)
        weights = unit_weights(swarm.model, units, DTYPE_BYTES[swarm.workload.dtype])
        held = {unit for units in device.held for unit in range(units.start, units.end)}
        for unit in units - held:
            total += Fraction(ceil(Fraction(64 * weights[unit], LOAD_BYTES_PER_US)), 64)
    return total


def cost(swarm: Snapshot, plan: Layout, rows: int = 1) -> Fraction:
    return latency(swarm, plan, rows) + loading(swarm, plan)


def rank(swarm: Snapshot, plan: Layout, rows: int = 1) -> tuple[Any, ...]:
    peers = {*plan.sources, *(stage.peer for stage in plan.stages)}
    stages = [(stage.peer, stage.units.start, stage.units.end) for stage in plan.stages]
    return cost(swarm, plan, rows), len(peers), len(stages), plan.entry_end, stages


def with_loaded(swarm: Snapshot, plan: Layout) -> Snapshot:
    """The swarm once every device holds its part of ``plan`` and nothing else."""
    devices = [
        replace(device, held=unit_ranges(units_held(swarm, plan, device.peer)))
        for device in swarm.devices
    ]
    return replace(swarm, devices=tuple(devices))


def random_swarm(seed: int) -> Snapshot:
    """Up to 6 blocks on up to 4 devices.  Half the swarms take their numbers from so few that
    plans tie; memory runs from too little to plenty; links may be missing and units held."""
    rng = random.Random(seed)
    model = random_model(rng)
    workload = Workload(
        dtype=rng.choice(["fp32", "bf16"]),
        numerics="exact",
        tile_rows=16,
        context=100,
        batch=rng.choice([1, 2, 5, 9, 30]),
        first_layer=rng.choice(["block", "embedding"]),
    )
    devices = random_devices(rng, model, workload)
    names, p_link = [device.peer.name for device in devices], rng.choice([1.0, 1.0, 0.8, 0.5])
    links = [random_link(rng, a, b) for a, b in permutations(names, 2) if rng.random() < p_link]
    return snapshot(model, workload, devices, links)


def with_twins(swarm: Snapshot, seed: int) -> Snapshot:
    """With two or more devices that are no sources made alike, where there are as many."""
    rng = random.Random(seed)
    free = [device for device in swarm.devices if not device.is_source]
    if len(free) < 2:
        return swarm
    first, *others = rng.sample(free, rng.randint(2, len(free)))
    twins = {other.peer.name for other in others}
    devices = [
        replace(first, peer=device.peer) if device.peer.name in twins else device
        for device in swarm.devices
    ]
    group, links = {first.peer.name, *twins}, {(link.a, link.b): link for link in swarm.links}
    between = Link(first.peer.name, first.peer.name, rng.randint(0, 9), 1, 10**8)
    made = [link for link in swarm.links if not {link.a, link.b} & group]
    for outer in (device.peer.name for device in devices if device.peer.name not in group):
        for name in sorted(group):
            if (there := links.get((first.peer.name, outer))) is not None:
                made.append(replace(there, a=name))
            if (back := links.get((outer, first.peer.name))) is not None:
                made.append(replace(back, b=name))
    made += [replace(between, a=a, b=b) for a, b in permutations(sorted(group), 2)]
    return snapshot(swarm.model, swarm.workload, devices, made, swarm.goal)


def random_model(rng: random.Random) -> ModelSpec:
    is_even = rng.random() < 0.5
    blocks = [
        200_000 if is_even else rng.randint(50_000, 500_000)
        for _ in range(rng.choice([1, 2, 3, 4, 5, 6, 6]))
    ]
    return model_of(rng, blocks, rng.randint(0, 400_000), kv_widths=[0, 200, 1000])


def model_of(
    rng: random.Random, blocks: list[int], embedding: int, kv_widths: list[int]
) -> ModelSpec:
    return ModelSpec(
        name="random",
        digest="0" * 64,
        family="llama",
        hidden_size=rng.choice([64, 1024]),
        vocab_size=1000,
        max_context=4096,
        embedding_params=embedding,
        block_params=tuple(blocks),
        head_params=embedding + 1_000,
        tied_params=rng.choice([0, embedding]),
        kv_width=rng.choice(kv_widths),
    )


def random_devices(rng: random.Random, model: ModelSpec, workload: Workload) -> list[Device]:
    n_devices = rng.choice([1, 2, 3, 3, 4, 4])
    n_sources = rng.randint(1, n_devices) if rng.random() < 0.97 else 0
    element_bytes = DTYPE_BYTES[workload.dtype]
    cache = rng.randint(1, 6) * workload.context * model.kv_width
    blocks = (sum(model.block_params) + len(model.block_params) * cache) * element_bytes
    entry_bytes = (model.embedding_params + model.block_params[0] + cache) * element_bytes
    slack, p_held = rng.uniform(0.7, 2.5), rng.choice([0, 0.4])
    is_coarse = rng.random() < 0.5
    devices = []
    for index in range(n_devices):
        budget = slack * blocks * rng.uniform(0.3, 1.7) / n_devices
        if index < n_sources and rng.random() < 0.9:
            budget += entry_bytes
        devices.append(
            Device(
                peer=PeerId(f"p{index}", rng.randint(1, 3)),
                is_source=index < n_sources,
                budget_bytes=int(budget),
                unit_us=random_times(rng, model.n_units, is_coarse),
                held=unit_ranges(u for u in range(model.n_units) if rng.random() < p_held),
                pass_us=rng.choice([0, rng.randint(0, 2 if is_coarse else 30)]),
                rested_us=rng.choice([0, rng.randint(0, 2 if is_coarse else 60)]),
            )
        )
    return devices


def random_times(rng: random.Random, n_units: int, is_coarse: bool) -> tuple[int, ...]:
    if is_coarse:
        return (rng.randint(0, 2),) * n_units
    return tuple(rng.randint(0, 40) for _ in range(n_units))


def random_link(rng: random.Random, a: str, b: str) -> Link:
    if rng.random() < 0.5:
        return Link(a, b, delay_us=1, per_message_us=0, bytes_per_s=10**9)
    return Link(a, b, rng.randint(0, 20), rng.randint(0, 5), rng.randint(10**7, 10**9))


def busiest(swarm: Snapshot, plan: Layout, rows: int) -> Fraction:
    """How long one micro-batch of ``rows`` rows, a source's as often as another's, occupies the
    busiest device or direction of a link, on which the way back counts apart."""
    links = {(link.a, link.b): link for link in swarm.links}
    unit_us = {device.peer: device.unit_us for device in swarm.devices}
    busy: dict[Any, Fraction] = {}
    share = Fraction(1, len(plan.sources))
    for source in plan.sources:
        for peer in (source, *(stage.peer for stage in plan.stages)):
            busy[peer] = busy.get(peer, Fraction(0)) + share * besides(swarm, peer)
        for peer, units in computed(swarm, plan, source):
            spent = share * rows * sum(unit_us[peer][unit] for unit in units)
            busy[peer] = busy.get(peer, Fraction(0)) + spent
        for a, b, what in hops(swarm, plan, source):
            n_bytes, link = rows * hop_bytes(swarm, what), links[a, b]
            occupied = ceil(Fraction(n_bytes * 10**6, link.bytes_per_s)) + link.per_message_us
            key = a, b, what == "row"
            busy[key] = busy.get(key, Fraction(0)) + share * occupied
    return max(busy.values())


def pipelines(swarm: Snapshot, rows: int) -> tuple[Layout, int, int, int] | None:
    """For ``rows`` rows per micro-batch: the plan of the least busy bottleneck, its time between
    two tokens, and the least such time of all plans; microseconds, rounded up.  Last the batch."""
    batch, fitting = next(((n, some) for n, some in by_batch(swarm) if some), (0, []))
    if not fitting:
        return None
    rows = min(rows, batch)
    if batch > rows:  # Among others no micro-batch finds a device at rest.
        devices = tuple(replace(device, rested_us=0) for device in swarm.devices)
        swarm = replace(swarm, devices=devices)
    narrow = min(fitting, key=lambda plan: (busiest(swarm, plan, rows), rank(swarm, plan, rows)))

    def iteration(plan: Layout) -> int:
        in_flight = ceil(Fraction(batch, rows))
        return max(int(latency(swarm, plan, rows)), ceil(in_flight * busiest(swarm, plan, rows)))

    return narrow, iteration(narrow), min(map(iteration, fitting)), batch
