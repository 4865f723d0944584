"""Pools of devices that are all different, from a seed: what the planner is timed on.

Devices are drawn so that fast ones tend to be large: memory spans a factor of sixteen (the source
is a middling one), speed more, and the whole holds the model one and a half times.  Links run from
50 Mbps to 1 Gbps, both ways alike.
"""

from __future__ import annotations

import random
from itertools import combinations

from msgspec.structs import replace

from edgeshard_p2p.core.footprint import needed_bytes, offered_bytes
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.model_spec import ModelSpec, weight_bytes_of
from edgeshard_p2p.core.plan import BYTES_PER_MBIT, Device, Goal, Link, Snapshot, Workload, snapshot

SLACK = 1.5
PARAMS_PER_US = 20_000
"""Of a device of middling speed: about what a mini PC reads from memory in fp32."""


def different_devices(n_devices: int, seed: int, model: ModelSpec, goal: Goal) -> Snapshot:
    """One source among ``n_devices``; the workload is one sequence of 1,024 tokens in fp32."""
    rng = random.Random(seed)
    workload = Workload("fp32", "exact", 0, context=1024, batch=1)
    sizes = [1.0, *(2 ** rng.uniform(-2, 2) for _ in range(n_devices - 1))]
    weights = weight_bytes_of(sum(map(model.unit_params, range(model.n_units))), workload.dtype)
    budget = SLACK * weights / sum(sizes)
    devices = [
        Device(
            peer=PeerId(f"d{index:02}", 1),
            is_source=index == 0,
            budget_bytes=int(size * budget),
            unit_us=_times(rng, model, size * 2 ** rng.uniform(-1, 1)),
        )
        for index, size in enumerate(sizes)
    ]
    links: list[Link] = []
    for a, b in combinations(devices, 2):
        bytes_per_s = int(BYTES_PER_MBIT * 50 * 20 ** rng.random())
        delay_us, per_message_us = rng.randint(100, 3000), rng.randint(100, 2000)
        for one, other in ((a, b), (b, a)):
            names = one.peer.name, other.peer.name
            links.append(Link(*names, delay_us, per_message_us, bytes_per_s))
    return snapshot(model, workload, devices, links, goal)


def with_memory(made: Snapshot, times: float) -> Snapshot:
    """The same devices, their memory scaled alike so that together they hold the model and the KV
    of the wished batch ``times`` times."""
    n_sources = sum(device.is_source for device in made.devices)
    wanted = times * needed_bytes(made, n_sources, made.workload.batch)
    share = wanted / offered_bytes(made)
    return replace(
        made,
        devices=tuple(
            replace(device, budget_bytes=int(share * device.budget_bytes))
            for device in made.devices
        ),
    )


def _times(rng: random.Random, model: ModelSpec, speed: float) -> tuple[int, ...]:
    read = [0, *model.block_params, model.head_params]
    return tuple(int(n / PARAMS_PER_US / speed * rng.uniform(0.98, 1.02)) for n in read)
