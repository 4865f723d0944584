"""What a snapshot's plans take of memory: who holds which units at least, and what they weigh."""

from __future__ import annotations

from edgeshard_p2p.core.ids import UnitRange
from edgeshard_p2p.core.plan import Snapshot, entry_units, kv_bytes, weight_bytes


def entry_of(snapshot: Snapshot) -> UnitRange:
    return entry_units(snapshot.model, snapshot.workload.first_layer)


def own_units(snapshot: Snapshot) -> list[int]:
    """What every source holds at least: the default entry, and the head where that is private."""
    head = [snapshot.model.head_unit] if snapshot.goal.private_head else []
    return [*entry_of(snapshot), *head]


def last_ends(snapshot: Snapshot, n_sources: int) -> range:
    """Where the last shared run may end.  A single source may keep a longer tail than the head."""
    head = snapshot.model.head_unit
    if not snapshot.goal.private_head:
        return range(head + 1, head + 2)
    return range(head if n_sources > 1 else entry_of(snapshot).end + 1, head + 1)


def unit_weights(snapshot: Snapshot, is_source: bool) -> list[int]:
    """Bytes of each unit's weights on a device.  A source holds the embedding, so a tied head is
    free of its matrix there: sizes are per unit and add up whatever else the device runs."""
    model, dtype = snapshot.model, snapshot.workload.dtype
    units = [UnitRange(unit, unit + 1) for unit in range(model.n_units)]
    return [weight_bytes(model, unit, dtype, is_source) for unit in units]


def unit_bytes(snapshot: Snapshot, is_source: bool, batch: int) -> list[int]:
    """Of each unit on a device, weights and the KV of ``batch`` sequences."""
    model, workload = snapshot.model, snapshot.workload
    block = kv_bytes(model, UnitRange(1, 2), workload, batch)
    return [
        n_bytes + block * model.is_block(unit)
        for unit, n_bytes in enumerate(unit_weights(snapshot, is_source))
    ]


def own_bytes(snapshot: Snapshot, batch: int) -> int:
    """What a source's own units take at least."""
    sizes = unit_bytes(snapshot, True, batch)
    return sum(sizes[unit] for unit in own_units(snapshot))


def needed_bytes(snapshot: Snapshot, n_sources: int, batch: int) -> int:
    """The least that any plan takes: their own units for each source, everything else once."""
    return sum(unit_bytes(snapshot, True, batch)) + (n_sources - 1) * own_bytes(snapshot, batch)


def offered_bytes(snapshot: Snapshot) -> int:
    return sum(device.budget_bytes for device in snapshot.devices)
