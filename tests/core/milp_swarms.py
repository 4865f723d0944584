"""Random swarms for comparisons of the planner with a mixed-integer program."""

from __future__ import annotations

import random
from itertools import permutations

from msgspec.structs import replace

from edgeshard_p2p.core.ids import PeerId, UnitRange, unit_ranges
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.plan import (
    Device,
    Framing,
    Goal,
    Link,
    RowTimes,
    Snapshot,
    Workload,
    kv_bytes,
    snapshot,
    weight_bytes,
)
from tests.core.planner_oracle import model_of


def large_swarm(seed: int, objective: str, private_head: bool = False) -> Snapshot:
    """20 to 34 blocks on 6 to 8 devices, of which 1 to all are sources.  Memory runs from too
    little to plenty, for less than the wished batch in some; links may be missing and units held.
    In some, so that plans tie, the devices are of two kinds, and so are all links but one.  For
    ``throughput`` the batch is large enough to fill any pipeline."""
    rng = random.Random(seed)
    rows = rng.choice([1, 1, 4]) if objective == "throughput" else 1
    model, workload = _model(rng), _workload(rng, rows if objective == "throughput" else 0)
    n_devices = rng.randint(6, 8)
    n_sources = rng.choice([1, 1, 2, 3, n_devices])
    if rng.random() < 0.2:
        devices, links = _of_two_kinds(rng, model, n_devices)
    else:
        devices, links = _all_different(rng, model, n_devices)
    return snapshot(
        model,
        workload,
        _with_memory(rng, model, workload, devices, n_sources),
        links,
        Goal(objective, micro_batch=rows, private_head=private_head),
        rng.choice([Framing(), Framing(row_bytes=0, token_bytes=4)]),
    )


def _model(rng: random.Random) -> ModelSpec:
    """Of so many parameters that loading a block weighs as much as running it."""
    is_even, embedding = rng.random() < 0.5, rng.randint(0, 8_000_000)
    n_blocks, few, many = rng.randint(20, 34), 1_000_000, 4_000_000
    blocks = [few if is_even else rng.randint(few, many) for _ in range(n_blocks)]
    return model_of(rng, blocks, embedding, kv_widths=[0, 1_000, 10_000])


def _workload(rng: random.Random, rows: int) -> Workload:
    return Workload(
        dtype=rng.choice(["fp32", "bf16", "int8"]),
        numerics="exact",
        tile_rows=16,
        context=rng.choice([64, 100]),
        batch=64 * rows if rows else rng.choice([1, 1, 12]),
        first_layer=rng.choice(["block", "embedding"]),
    )


def _all_different(
    rng: random.Random, model: ModelSpec, n_devices: int
) -> tuple[list[Device], list[Link]]:
    p_link, p_held = rng.choice([1, 1, 0.9, 0.7]), rng.choice([0, 0.4])
    devices = []
    for index in range(n_devices):
        held = unit_ranges(unit for unit in range(model.n_units) if rng.random() < p_held)
        devices.append(replace(_device(rng, model), peer=PeerId(f"p{index}", 1), held=held))
    names = [device.peer.name for device in devices]
    links = [_link(rng, a, b) for a, b in permutations(names, 2) if rng.random() < p_link]
    return devices, links


def _of_two_kinds(
    rng: random.Random, model: ModelSpec, n_devices: int
) -> tuple[list[Device], list[Link]]:
    kinds = [_device(rng, model), _device(rng, model)]
    by_kind = [[_link(rng, "a", "b") for _ in kinds] for _ in kinds]
    kind_of = {f"p{index}": rng.randrange(2) for index in range(n_devices)}
    devices = [replace(kinds[kind], peer=PeerId(name, 1)) for name, kind in kind_of.items()]
    links = [
        replace(by_kind[kind_of[a]][kind_of[b]], a=a, b=b) for a, b in permutations(kind_of, 2)
    ]
    odd = rng.randrange(len(links))
    links[odd] = replace(links[odd], delay_us=links[odd].delay_us // 2)
    return devices, links


def _device(rng: random.Random, model: ModelSpec) -> Device:
    """Without memory.  Eight rows take as long as two to six, where that is known."""
    speed, spread = rng.randint(5, 60), rng.choice([0, 20])
    unit_us = tuple(speed + rng.randint(0, spread) for _ in range(model.n_units))
    eight = RowTimes(8, tuple(us * rng.randint(2, 6) for us in unit_us))
    decode = (eight,) if rng.random() < 0.5 else ()
    draw = random.Random(unit_us[-1])
    pass_us, rested_us = draw.choice([0, 20, 200]), draw.choice([0, 10, 300])
    return Device(PeerId("p", 1), False, 0, unit_us, (), decode, (), pass_us, rested_us)


def _link(rng: random.Random, a: str, b: str) -> Link:
    per_message_us = rng.randint(0, rng.choice([20, 20, 800]))
    return Link(a, b, rng.randint(0, 200), per_message_us, rng.randint(2 * 10**6, 2 * 10**8))


def _with_memory(
    rng: random.Random, model: ModelSpec, workload: Workload, devices: list[Device], n_sources: int
) -> list[Device]:
    """The first ones are sources, the last of several sometimes too small to be one."""
    batch = -(-workload.batch // rng.choice([1, 2]))
    entry, shared = UnitRange(0, 2), UnitRange(2, model.n_units)
    head = UnitRange(model.head_unit, model.n_units)
    entry_bytes, shared_bytes = (
        weight_bytes(model, units, workload.dtype, False) + kv_bytes(model, units, workload, batch)
        for units in (entry, shared)
    )
    head_bytes = weight_bytes(model, head, workload.dtype, True)
    shares = [rng.choice([1.0, 1.0, rng.uniform(0.4, 1.6)]) for _ in devices]
    whole = rng.choice([1.1, 1.2, 1.4, 2.5, 6]) * shared_bytes / sum(shares)
    budgets = [int(share * whole) for share in shares]
    for place in range(n_sources):
        budgets[place] += entry_bytes + head_bytes
    if n_sources > 2 and rng.random() < 0.3:
        budgets[n_sources - 1] = model.embedding_params // 2
    return [
        replace(device, is_source=place < n_sources, budget_bytes=budgets[place])
        for place, device in enumerate(devices)
    ]
