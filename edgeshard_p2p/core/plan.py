"""What a plan is made from (Snapshot) and what it is (Plan).

A Snapshot holds every input of the planner, as integers, sorted; its id is a digest of all of
them.  A Plan holds what is served; its id changes only when that changes, so a new measurement
that moves no unit keeps the plan.  Knows nothing of how a plan is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from hashlib import blake2b
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from edgeshard_p2p.core.ids import Count, Name, PeerId, PlanId, UnitRange
from edgeshard_p2p.core.model_spec import DtypeName, ModelSpec, weight_bytes_of
from edgeshard_p2p.core.pin import Pin

PLANNER_VERSION = 7

FRAME_OVERHEAD_BYTES = 128
"""What a frame adds to its tensor on the wire, at most, for one row."""

CHUNK_ROWS = 128
"""Rows of a prefill chunk: long enough to fill the matrix kernels, short enough that the stages
work on one prompt at the same time."""

KV_POSITIONS = 64
"""KV is reserved in whole runs of so many positions, which is how attention reads it."""

OBJECTIVES = ("latency", "throughput")
FIRST_LAYERS = ("embedding", "block")
ALGORITHMS = ("exact", "paper", "edge-solo", "cloud-edge-even", "cloud-edge-opt", "even")

Objective = Annotated[str, Meta(pattern=r"^(latency|throughput)\Z")]
Numerics = Annotated[str, Meta(pattern=r"^(exact|fast)\Z")]


def digest(value: object) -> str:
    """16 hex digits of BLAKE2b over the canonical msgpack of ``value``."""
    return blake2b(msgspec.msgpack.encode(value, order="deterministic"), digest_size=8).hexdigest()


class Workload(Struct, frozen=True, array_like=True):
    """The swarm's settings as far as the planner and the served numbers depend on them."""

    dtype: DtypeName
    numerics: Numerics
    tile_rows: Count
    """Rows of a padded tile in ``exact``; 0 in ``fast``."""
    context: Annotated[int, Meta(ge=1, le=2**24)]
    batch: Annotated[int, Meta(ge=1, le=4096)]
    """Sequences wished for; the plan holds the largest number up to it that fits."""
    first_layer: Annotated[str, Meta(pattern=r"^(block|embedding)\Z")] = "block"
    """The last unit that a source keeps for its own prompts: the first block, or (the paper's
    rule) the embedding alone."""


class Goal(Struct, frozen=True, array_like=True):
    """What a plan is to be good at.  An input of the choice and no part of what is served."""

    objective: Objective = "latency"
    prompt: Annotated[int, Meta(ge=0, le=2**24)] = 0
    """Tokens of the expected prompt; with ``generate`` its prefill counts, spread over them."""
    generate: Annotated[int, Meta(ge=0, le=2**16)] = 0
    micro_batch: Annotated[int, Meta(ge=0, le=4096)] = 0
    """Rows of a micro-batch in ``throughput``; 0: whatever gives most tokens per second."""
    private_head: bool = False
    """The last run stands on the sources, as the first one does."""


class Framing(Struct, frozen=True, array_like=True):
    """What a row takes on the wire beside its hidden states, and what its token takes back."""

    row_bytes: Count = FRAME_OVERHEAD_BYTES
    token_bytes: Count = FRAME_OVERHEAD_BYTES


DEFAULT_GOAL, DEFAULT_FRAMING = Goal(), Framing()


class RowTimes(Struct, frozen=True, array_like=True):
    """Time of each unit of a model for ``rows`` rows at once, microseconds."""

    rows: Annotated[int, Meta(ge=1, le=65536)]
    unit_us: tuple[Count, ...]


class Device(Struct, frozen=True, array_like=True):
    """One eligible peer as the planner sees it.  Owner of the numbers: the peer itself."""

    peer: PeerId
    is_source: bool
    budget_bytes: Count
    """For weights and KV; the process's own base and head-room are already taken off."""
    unit_us: tuple[Count, ...]
    """Decode time of each unit for one row, microseconds; one entry per unit of the model."""
    held: tuple[UnitRange, ...] = ()
    decode: tuple[RowTimes, ...] = ()
    """Decode times of more rows than one, where known; by rows."""
    prefill: tuple[RowTimes, ...] = ()
    """Prefill times, where known; by tokens of the chunk."""
    pass_us: Count = 0
    """What a pass takes of the device besides its units."""
    rested_us: Count = 0
    """By how much sooner a pass ends that finds the device at rest: a share of a core comes in
    slices, and one is free by then."""

    def decode_us(self, rows: int) -> tuple[int, ...]:
        """Time of each unit for one token of each of ``rows`` sequences."""
        return times_for(rows, self._decode_rows)

    def prefill_us(self, tokens: int) -> tuple[int, ...]:
        """Time of each unit for a prompt, in chunks; as so many rows of decode where no prefill
        times are known."""
        known, (whole, rest) = self.prefill or self._decode_rows, divmod(tokens, CHUNK_ROWS)
        last = times_for(rest, known) if rest else (0,) * len(self.unit_us)
        pairs = zip(times_for(CHUNK_ROWS, known), last, strict=True)
        return tuple(whole * us + last_us for us, last_us in pairs)

    @property
    def _decode_rows(self) -> tuple[RowTimes, ...]:
        return (RowTimes(1, self.unit_us), *self.decode)


BYTES_PER_MBIT = 125_000
"""A Mbit has 10^6 bits."""


class Link(Struct, frozen=True, order=True, array_like=True):
    """One direction of a pair, as measured by ``a``.  Absent pairs are unusable."""

    a: Name
    b: Name
    delay_us: Count
    """One-way delay: adds to the latency, occupies nothing."""
    per_message_us: Count
    bytes_per_s: Annotated[int, Meta(ge=1, le=2**48)]

    def occupancy_us(self, n_bytes: int) -> int:
        """Time for which one message of ``n_bytes`` occupies the link, rounded up."""
        return self.per_message_us + -(-n_bytes * 1_000_000 // self.bytes_per_s)

    def cost_us(self, n_bytes: int) -> int:
        return self.occupancy_us(n_bytes) + self.delay_us


class Snapshot(Struct, frozen=True, dict=True):
    """All inputs of ``planner.choose``.  Build with ``snapshot()``, which sorts."""

    model: ModelSpec
    workload: Workload
    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    goal: Goal = DEFAULT_GOAL
    framing: Framing = DEFAULT_FRAMING
    pin: Pin | None = None
    """While its peers and whoever set it are there."""

    @cached_property
    def id(self) -> str:
        return digest(self)


def snapshot(
    model: ModelSpec,
    workload: Workload,
    devices: Iterable[Device],
    links: Iterable[Link],
    goal: Goal = DEFAULT_GOAL,
    framing: Framing = DEFAULT_FRAMING,
    pin: Pin | None = None,
) -> Snapshot:
    """A Snapshot with its inputs in their one order, whatever order they came in."""
    in_order = tuple(sorted(devices, key=lambda device: device.peer))
    return Snapshot(model, workload, in_order, tuple(sorted(links)), goal, framing, pin)


def without(whole: Snapshot, name: Name) -> Snapshot:
    """As if the device of this name were gone, with its links."""
    devices = tuple(device for device in whole.devices if device.peer.name != name)
    links = tuple(link for link in whole.links if name not in (link.a, link.b))
    return replace(whole, devices=devices, links=links)


def times_for(rows: int, known: tuple[RowTimes, ...]) -> tuple[int, ...]:
    """Time of each unit for ``rows`` rows, from the row counts that are known, in ascending order:
    as many as the smallest at least, on a straight line between two, in proportion beyond."""
    above = next((times for times in known if times.rows >= rows), None)
    if above is None:
        last = known[-1]
        return tuple(-(-us * rows // last.rows) for us in last.unit_us)
    below = next((times for times in reversed(known) if times.rows <= rows), above)
    if above.rows == below.rows:
        return above.unit_us
    span, part = above.rows - below.rows, rows - below.rows
    pairs = zip(below.unit_us, above.unit_us, strict=True)
    return tuple(-(-(low * (span - part) + high * part) // span) for low, high in pairs)


def chunks_of(tokens: int) -> tuple[int, ...]:
    """The chunks that a prompt is cut into."""
    whole, rest = divmod(tokens, CHUNK_ROWS)
    return (CHUNK_ROWS,) * whole + ((rest,) if rest else ())


class Stage(Struct, frozen=True, array_like=True):
    """A shared stage: one contiguous run of units on one peer, for every source's requests."""

    peer: PeerId
    units: UnitRange


class Plan(Struct, frozen=True, dict=True):
    """What is served, by whom.

    Every source runs ``[0, entry_end)`` for its own requests; then the shared ``stages`` follow
    in order, up to the head.  A plan without stages runs wholly on its (one) source.
    """

    model_digest: str
    workload: Workload
    """With ``batch`` replaced by what fits: the KV promise."""
    sources: Annotated[tuple[PeerId, ...], Meta(min_length=1)]
    entry_end: Count
    stages: tuple[Stage, ...]
    planner_version: int = PLANNER_VERSION

    @cached_property
    def id(self) -> PlanId:
        return digest(self)

    @property
    def entry(self) -> UnitRange:
        return UnitRange(0, self.entry_end)

    def peers(self) -> tuple[PeerId, ...]:
        """Everyone who has a part in the plan, each once, sorted."""
        return tuple(sorted({*self.sources, *(stage.peer for stage in self.stages)}))

    @property
    def n_units(self) -> int:
        return self.stages[-1].units.end if self.stages else self.entry.end

    @property
    def admitting(self) -> PeerId:
        """Admission has one place: the first shared stage, or the source that runs everything."""
        return self.stages[0].peer if self.stages else self.sources[0]

    def units_of(self, peer: PeerId) -> tuple[UnitRange, ...]:
        """What ``peer`` must hold: its entry as a source, its shared stage, or both."""
        ranges = [self.entry] if peer in self.sources else []
        ranges += [stage.units for stage in self.stages if stage.peer == peer]
        return tuple(ranges)

    def __str__(self) -> str:
        entry = f"{self.entry} {'+'.join(str(source) for source in self.sources)}"
        stages = [f"{stage.units} {stage.peer}" for stage in self.stages]
        return f"{self.id[:6]}: {' | '.join([entry, *stages])}"


class Choice(Struct, frozen=True):
    """The planner's answer for one snapshot: a plan, or why there is none."""

    snapshot_id: str
    plan: Plan | None
    latency_us: int = 0
    """Predicted time of one decode token, mean over the sources, the return hop included."""
    reason: str = ""
    missing_bytes: int = 0
    """When infeasible for want of memory: how much more the swarm needs, at least."""


def entry_units(model: ModelSpec, first_layer: str) -> UnitRange:
    """The units every source keeps for its own prompts (the paper's privacy constraint)."""
    return UnitRange(0, 1 if first_layer == "embedding" else 2)


def weight_bytes(model: ModelSpec, units: UnitRange, dtype: str, has_embedding: bool) -> int:
    """Bytes of the weights of ``units`` on a device; a tied head matrix counts once where the
    device already holds the embedding (``has_embedding``, or unit 0 in ``units``)."""
    params = sum(model.unit_params(unit) for unit in units)
    if model.head_unit in units and (has_embedding or 0 in units):
        params -= model.tied_params
    return weight_bytes_of(params, dtype)


def kv_bytes(model: ModelSpec, units: UnitRange, workload: Workload, batch: int) -> int:
    """KV bytes that ``batch`` sequences of the whole context reserve in ``units``."""
    blocks = sum(1 for unit in units if model.is_block(unit))
    positions = -(-workload.context // KV_POSITIONS) * KV_POSITIONS
    return blocks * batch * positions * model.kv_bytes_per_token(workload.dtype)
