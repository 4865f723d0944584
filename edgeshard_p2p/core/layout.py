"""Where the units stand, and what the cost model says of it.

A Layout is any placement that can be compared: a plan, a plan with a private head, or one of the
paper's that comes back to a device.  ``predict`` walks its tokens and adds up, without knowing how
it was found; so what a search promises can be checked against what its layout costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import ceil

from msgspec import Struct
from msgspec.structs import replace

from edgeshard_p2p.core.ids import PeerId, UnitRange
from edgeshard_p2p.core.plan import (
    Link,
    Plan,
    Snapshot,
    Stage,
    Workload,
    chunks_of,
    digest,
    kv_bytes,
    weight_bytes,
)


class Layout(Struct, frozen=True):
    """Each source runs ``[0, entry_end)`` for its own prompts, the shared ``stages`` follow in
    order, and ``[tail_start, n_units)`` is again the sources' own (private head)."""

    sources: tuple[PeerId, ...]
    entry_end: int
    stages: tuple[Stage, ...]
    tail_start: int
    """The number of units where no source holds a last run."""

    def runs(self, n_units: int, source: PeerId) -> tuple[Stage, ...]:
        """What a token of ``source`` passes, in order."""
        entry = Stage(source, UnitRange(0, self.entry_end))
        tail = Stage(source, UnitRange(self.tail_start, n_units))
        return (entry, *self.stages, *([tail] if tail.units else []))

    def units_of(self, n_units: int, peer: PeerId) -> tuple[UnitRange, ...]:
        ranges = [stage.units for stage in self.stages if stage.peer == peer]
        if peer in self.sources:
            ranges += [UnitRange(0, self.entry_end), UnitRange(self.tail_start, n_units)]
        return tuple(sorted(units for units in ranges if units))

    def peers(self) -> tuple[PeerId, ...]:
        return tuple(sorted({*self.sources, *(stage.peer for stage in self.stages)}))

    @property
    def revisits(self) -> bool:
        """Whether a token comes back to a device it has left, other than to a private head."""
        shared = [stage.peer for stage in self.stages]
        is_entry_again = len(self.sources) == 1 and self.sources[0] in shared
        return is_entry_again or len(set(shared)) < len(shared)

    def plan(self, model_digest: str, workload: Workload, n_units: int) -> Plan | None:
        """As it would be served; None for what no peer serves."""
        if self.revisits or self.tail_start < n_units:
            return None
        return Plan(model_digest, workload, self.sources, self.entry_end, self.stages)

    def id(self, model_digest: str, workload: Workload, n_units: int) -> str:
        """The plan's id, where it is one."""
        plan = self.plan(model_digest, workload, n_units)
        return plan.id if plan else digest((model_digest, workload, self))


class Leg(Struct, frozen=True):
    """One thing that a micro-batch passes: a device or one direction of a link."""

    resource: str
    """The device's name, or ``a->b``.  What has the same name takes turns."""
    busy_us: int
    """Time for which it is occupied."""
    delay_us: int = 0
    """Time that passes besides, occupying nothing."""
    units: UnitRange = UnitRange(0, 0)
    """What is computed; none on a link."""
    beside_us: int = 0
    """Time for which it is occupied besides: with frames, acknowledgements, tokens."""
    ahead_us: int = 0
    """By how much sooner it goes on where it finds the device at rest: alone."""


class Prediction(Struct, frozen=True):
    latency_us: int
    """L of one decode token of one sequence alone, mean over the sources, return hop included."""
    ttft_us: int
    """Time to the first token of the expected prompt, alone in the swarm."""
    iteration_us: int
    """Time between two tokens of a sequence with ``n_micro_batches`` in flight (no-bubbles)."""
    micro_batch: int
    n_micro_batches: int
    bottleneck: str
    bottleneck_us: int
    """How long one micro-batch occupies the busiest device or link."""
    pipeline_us: int
    """L of a micro-batch."""


def links_of(snapshot: Snapshot) -> dict[tuple[str, str], Link]:
    return {(link.a, link.b): link for link in snapshot.links}


def decode_legs(snapshot: Snapshot, layout: Layout, source: PeerId, rows: int) -> list[Leg]:
    """What one micro-batch of ``rows`` rows passes for one token each, the way back included."""
    unit_us = {device.peer: device.decode_us(rows) for device in snapshot.devices}
    return _ahead(snapshot, _legs(snapshot, layout, source, unit_us, (rows,)))


def prefill_legs(snapshot: Snapshot, layout: Layout, source: PeerId, tokens: int) -> list[Leg]:
    """What a prompt passes, chunk after chunk, with one token on the way back."""
    unit_us = {device.peer: device.prefill_us(tokens) for device in snapshot.devices}
    legs = _legs(snapshot, layout, source, unit_us, chunks_of(tokens))
    # A token comes back over a link, unless the last run is the source's own.
    is_token = not legs[-1].units
    legs = [*legs[:-1], decode_legs(snapshot, layout, source, 1)[-1]] if is_token else legs
    return _ahead(snapshot, legs)


def _legs(
    snapshot: Snapshot,
    layout: Layout,
    source: PeerId,
    unit_us: dict[PeerId, tuple[int, ...]],
    messages: tuple[int, ...],
) -> list[Leg]:
    """``messages``: rows of each message that crosses a link."""
    links, n_units = links_of(snapshot), snapshot.model.n_units
    row = snapshot.model.hidden_bytes(snapshot.workload.dtype) + snapshot.framing.row_bytes
    beside_us = {device.peer: len(messages) * device.pass_us for device in snapshot.devices}
    legs: list[Leg] = []
    runs, at = layout.runs(n_units, source), source
    for place, run in enumerate(runs):
        if run.peer != at:
            legs.append(_hop(links[at.name, run.peer.name], messages, row))
        at = run.peer
        busy = sum(unit_us[at][run.units.start : run.units.end])
        # What comes back to a source, to its own last run or as a token, is one thing with what
        # sets out: it stands with its last run, where it has one.
        is_counted_later = place == 0 and len(runs) > 1 + len(layout.stages)
        beside = 0 if is_counted_later else beside_us[at]
        legs.append(Leg(at.name, busy, units=run.units, beside_us=beside))
    if at != source:
        back = snapshot.framing.token_bytes
        legs.append(_hop(links[at.name, source.name], messages, back))
    return legs


def _hop(link: Link, messages: tuple[int, ...], bytes_per_row: int) -> Leg:
    busy = sum(link.occupancy_us(rows * bytes_per_row) for rows in messages)
    return Leg(f"{link.a}->{link.b}", busy, link.delay_us)


def _ahead(snapshot: Snapshot, legs: list[Leg]) -> list[Leg]:
    """With what is gained where something comes to a device over a link: it has been at rest, as
    others computed meanwhile.  At most what the way there and the rest of the pass take."""
    rested_us = {device.peer.name: device.rested_us for device in snapshot.devices}
    found = []
    for place, leg in enumerate(legs):
        way = legs[place - 1]  # Before the first one, the last: what comes back sets out again.
        if leg.units and not way.units:
            most_us = way.busy_us + way.delay_us + leg.beside_us
            leg = replace(leg, ahead_us=min(rested_us[leg.resource], most_us))
        found.append(leg)
    return found


def is_linked(snapshot: Snapshot, layout: Layout) -> bool:
    known, n_units = links_of(snapshot), snapshot.model.n_units
    for source in layout.sources:
        stops = [*(run.peer for run in layout.runs(n_units, source)), source]
        if any(a != b and (a.name, b.name) not in known for a, b in pairwise(stops)):
            return False
    return True


def total_us(legs: Sequence[Leg], n: int = 1) -> int:
    """For one of ``n`` micro-batches that are on their way, without waiting for others.  Among
    several it hardly finds a device at rest."""
    crowded_us = sum(leg.busy_us + leg.beside_us + leg.delay_us for leg in legs)
    return crowded_us if n > 1 else crowded_us - sum(leg.ahead_us for leg in legs)


def loads(snapshot: Snapshot, layout: Layout, rows: int) -> dict[str, Fraction]:
    """How long each device and link is occupied by one micro-batch of ``rows`` rows, which comes
    from each source equally often.  What all sources pass counts once, the rest by its share.

    NOTE: what comes back to a source counts apart from what enters on the same direction.  The two
    meet only where the first and the last stage are both sources, and stand then under two names.
    """
    busy: dict[str, Fraction] = {}
    for source in layout.sources:
        legs = decode_legs(snapshot, layout, source, rows)
        last_hop = legs[-1 if layout.tail_start == snapshot.model.n_units else -2]
        for leg in legs:
            is_return = leg is last_hop and not leg.units
            name = f"{leg.resource} (back)" if is_return else leg.resource
            occupied = Fraction(leg.busy_us + leg.beside_us, len(layout.sources))
            busy[name] = busy.get(name, Fraction(0)) + occupied
    return busy


def latency_us(snapshot: Snapshot, layout: Layout, rows: int = 1, n: int = 1) -> int:
    """L of one of ``n`` micro-batches, mean over the sources."""
    sums = [total_us(decode_legs(snapshot, layout, source, rows), n) for source in layout.sources]
    return sum(sums) // len(sums)


def ttft_us(snapshot: Snapshot, layout: Layout, tokens: int) -> int:
    sums = [total_us(prefill_legs(snapshot, layout, source, tokens)) for source in layout.sources]
    return sum(sums) // len(sums)


def predict(snapshot: Snapshot, layout: Layout, batch: int, micro_batch: int) -> Prediction:
    """What ``batch`` sequences in flight would see, ``micro_batch`` rows at a time (no-bubbles)."""
    busy = loads(snapshot, layout, micro_batch)
    bottleneck = max(sorted(busy), key=lambda name: busy[name])
    n_micro_batches = -(-batch // micro_batch)
    pipeline_us = latency_us(snapshot, layout, micro_batch, n_micro_batches)
    return Prediction(
        latency_us=latency_us(snapshot, layout),
        ttft_us=ttft_us(snapshot, layout, max(1, snapshot.goal.prompt)),
        iteration_us=max(pipeline_us, ceil(n_micro_batches * busy[bottleneck])),
        micro_batch=micro_batch,
        n_micro_batches=n_micro_batches,
        bottleneck=bottleneck,
        bottleneck_us=ceil(busy[bottleneck]),
        pipeline_us=pipeline_us,
    )


def bytes_on(snapshot: Snapshot, layout: Layout, peer: PeerId, batch: int) -> tuple[int, int]:
    """(weights, KV) that ``peer`` holds for ``batch`` sequences."""
    model, workload = snapshot.model, snapshot.workload
    weights = kv = 0
    for units in layout.units_of(model.n_units, peer):
        # Unit by unit, as a search adds them up: bytes of a dtype below 8 bits are rounded.
        weights += sum(
            weight_bytes(model, UnitRange(unit, unit + 1), workload.dtype, peer in layout.sources)
            for unit in units
        )
        kv += kv_bytes(model, units, workload, batch)
    return weights, kv


def missing_bytes(snapshot: Snapshot, layout: Layout, batch: int) -> dict[str, int]:
    """By device, what it lacks to hold its part."""
    missing = {}
    for device in snapshot.devices:
        lack = sum(bytes_on(snapshot, layout, device.peer, batch)) - device.budget_bytes
        if lack > 0:
            missing[device.peer.name] = lack
    return missing
