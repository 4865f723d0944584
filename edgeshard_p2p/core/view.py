"""What this peer knows, as the planner's snapshot; and who is left out of it, and why.

The snapshot depends only on members and records, so peers that have heard the same build the
same.  Knows nothing of the planner.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeshard_p2p.core.gossip import Gossip
from edgeshard_p2p.core.ids import PeerId, UnitRange
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.pin import Pin, parse_pin
from edgeshard_p2p.core.plan import (
    DEFAULT_GOAL,
    Device,
    Goal,
    Link,
    Numerics,
    RowTimes,
    Snapshot,
    Workload,
    snapshot,
)
from edgeshard_p2p.core.records import (
    DeviceRecord,
    FailuresRecord,
    HeldRecord,
    LinksRecord,
    UnitTimes,
)

DEFAULT_CONTEXT = 2048
DEFAULT_BATCH = 4


@dataclass(frozen=True, slots=True)
class View:
    """``snapshot`` is None while there is nothing to plan; ``waiting_for`` then says why."""

    snapshot: Snapshot | None
    waiting_for: str = ""
    excluded: dict[str, str] = field(default_factory=dict)
    """Why a present member is not planned, by name."""


def model_of(gossip: Gossip) -> ModelSpec | None:
    value = gossip.setting("model")
    return value if isinstance(value, ModelSpec) else None


def workload_of(gossip: Gossip, model: ModelSpec, tile_rows: int) -> Workload:
    """The swarm's settings, defaults where nobody has set them."""
    numerics: Numerics = _text(gossip, "numerics", "exact")
    return Workload(
        dtype=_text(gossip, "dtype", "fp32"),
        numerics=numerics,
        tile_rows=tile_rows if numerics == "exact" else 0,
        context=_number(gossip, "context", min(DEFAULT_CONTEXT, model.max_context)),
        batch=_number(gossip, "batch", DEFAULT_BATCH),
        first_layer=_text(gossip, "first_layer", "block"),
    )


def _text(gossip: Gossip, key: str, default: str) -> str:
    value = gossip.setting(key)
    return value if isinstance(value, str) else default


def _number(gossip: Gossip, key: str, default: int) -> int:
    value = gossip.setting(key)
    return value if isinstance(value, int) else default


def view(membership: Membership, gossip: Gossip, tile_rows: int) -> View:
    model = model_of(gossip)
    if model is None:
        return View(None, "nobody has named a model; start a peer with --model")
    workload = workload_of(gossip, model, tile_rows)
    peers = sorted([membership.me.peer, *(member.peer for member in membership.present())])
    failed = _failures(gossip, peers)
    devices: list[Device] = []
    excluded: dict[str, str] = {}
    for peer in peers:
        reason = _reason_against(gossip, peer, model, workload)
        if ("cannot_load", peer, None) in failed:
            reason = "it could not load its part, and is left out for a while"
        if reason:
            excluded[peer.name] = reason
        else:
            devices.append(_device(gossip, peer, model))
    if not devices:
        return View(None, "no peer is ready to be planned yet", excluded)
    links = _links(gossip, [device.peer for device in devices], failed)
    pin = _pin(membership, gossip)
    goal = _goal(gossip, workload)
    return View(snapshot(model, workload, devices, links, goal, pin=pin), "", excluded)


def _goal(gossip: Gossip, workload: Workload) -> Goal:
    prompt = min(_number(gossip, "prompt", 0), workload.context)
    return Goal(
        objective=_text(gossip, "objective", DEFAULT_GOAL.objective),
        prompt=prompt,
        generate=min(_number(gossip, "generate", 0), workload.context - prompt),
        micro_batch=_number(gossip, "micro_batch", 0),
    )


def _pin(membership: Membership, gossip: Gossip) -> Pin | None:
    """The swarm's pin, while all of its peers and the life that set it are there."""
    setting = gossip.settings.get("pin")
    pin = parse_pin(setting.value) if setting and isinstance(setting.value, str) else None
    if setting is None or pin is None:
        return None
    here = {membership.me.peer, *(member.peer for member in membership.present())}
    names = {peer.name for peer in here}
    return pin if setting.by in here and names.issuperset(pin.names()) else None


def _reason_against(gossip: Gossip, peer: PeerId, model: ModelSpec, workload: Workload) -> str:
    record = gossip.of(peer, DeviceRecord)
    if not isinstance(record, DeviceRecord):
        return "its figures have not arrived yet"
    if record.model != model.digest:
        return record.note or f"it does not have the files of {model.name}"
    if not record.eligible:
        return record.note or "it is not settled yet"
    if (record.dtype, record.numerics) != (workload.dtype, workload.numerics):
        return f"it is not measured for {workload.dtype} {workload.numerics} yet"
    return "" if record.decode else "it is not measured yet"


def _device(gossip: Gossip, peer: PeerId, model: ModelSpec) -> Device:
    record = gossip.of(peer, DeviceRecord)
    held = gossip.of(peer, HeldRecord)
    assert isinstance(record, DeviceRecord)
    one_row, *more_rows = (_row_times(figures, model) for figures in record.decode)
    return Device(
        peer,
        record.is_source,
        record.budget_bytes,
        one_row.unit_us,
        held.units if isinstance(held, HeldRecord) else (),
        decode=tuple(more_rows),
        prefill=tuple(_row_times(figures, model) for figures in record.prefill),
        pass_us=record.pass_us,
        rested_us=record.rested_us,
    )


def promised_us(gossip: Gossip, peer: PeerId, units: UnitRange, rows: int) -> int:
    """What these units take for a decode step of so many rows, by the record of ``peer``; 0 where
    it does not say."""
    record, model = gossip.of(peer, DeviceRecord), model_of(gossip)
    if not isinstance(record, DeviceRecord) or model is None or not record.decode:
        return 0
    times = next((t for t in record.decode if t.rows >= rows), record.decode[-1])
    has_embedding, has_head = 0 in units, model.head_unit in units
    n_blocks = len(units) - has_embedding - has_head
    ends_us = has_embedding * times.embedding_us + has_head * times.head_us
    return (ends_us + n_blocks * times.block_us) * max(times.rows, rows) // times.rows


def _row_times(figures: UnitTimes, model: ModelSpec) -> RowTimes:
    blocks = (figures.block_us,) * model.n_blocks
    return RowTimes(figures.rows, (figures.embedding_us, *blocks, figures.head_us))


def _links(
    gossip: Gossip, peers: list[PeerId], failed: set[tuple[str, PeerId, PeerId | None]]
) -> list[Link]:
    by_name = {peer.name: peer for peer in peers}
    links: dict[tuple[str, str], Link] = {}
    for peer in peers:
        record = gossip.of(peer, LinksRecord)
        for link in record.links if isinstance(record, LinksRecord) else ():
            other = by_name.get(link.to)
            if other in (None, peer) or ("no_edge", peer, other) in failed:
                continue
            links[peer.name, link.to] = Link(
                peer.name, link.to, link.delay_us, link.per_message_us, link.bytes_per_s
            )
    return list(links.values())


def _failures(gossip: Gossip, peers: list[PeerId]) -> set[tuple[str, PeerId, PeerId | None]]:
    records = [gossip.of(peer, FailuresRecord) for peer in peers]
    found = [r.failures for r in records if isinstance(r, FailuresRecord)]
    return {(failure.kind, failure.a, failure.b) for failures in found for failure in failures}
