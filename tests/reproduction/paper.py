"""The paper's pool as a swarm would have measured it: times in its proportions, a small model."""

from __future__ import annotations

from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.plan import Device, Snapshot, Workload, snapshot
from edgeshard_p2p.reproduction import pool

SMALL = ModelSpec(
    name="small",
    digest="0" * 64,
    family="llama",
    hidden_size=576,
    vocab_size=49_152,
    max_context=2048,
    embedding_params=49_152 * 576,
    block_params=(3_540_000,) * 30,
    head_params=49_152 * 576 + 576,
    tied_params=49_152 * 576,
    kv_width=384,
)
WORKLOAD = Workload("fp32", "exact", 0, context=64, batch=8, first_layer="embedding")
SCALE = 2.5
HEAD = 0.17
"""Of the whole time: the vocabulary is large for so small a model."""


def swarm(source: str = "agx-1", mbps: float = 1.0) -> Snapshot:
    links = pool.links(source, mbps, SMALL.hidden_bytes("fp32"), SCALE)
    devices = [_device(name, name == source) for name in pool.DEVICES]
    return snapshot(SMALL, WORKLOAD, devices, links.values())


def _device(name: str, is_source: bool) -> Device:
    kind = pool.DEVICES[name]
    whole_us = kind.whole_ms * SCALE * 1e3
    block_us, head_us = round(whole_us * (1 - HEAD) / SMALL.n_blocks), round(whole_us * HEAD)
    unit_us = (1, *(block_us,) * SMALL.n_blocks, head_us)
    budget = pool.memory_bytes(kind, SMALL, WORKLOAD)
    return Device(PeerId(name, 1), is_source, budget, unit_us)
