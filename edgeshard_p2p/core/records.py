"""Facts that one peer owns and everyone may read: its device, its links, what it holds, its
failures.  And the swarm's settings, which everyone may write.

Each record carries a version that only its owner raises; the newest version wins everywhere.
Knows nothing of how records travel.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from edgeshard_p2p.core.ids import Count, Name, PeerId, PlanId, UnitRange
from edgeshard_p2p.core.model_spec import ModelSpec

Microseconds = Annotated[int, Meta(ge=1, le=3_600_000_000)]
Text = Annotated[str, Meta(max_length=300)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
PlanIds = Annotated[tuple[PlanId, ...], Meta(max_length=8)]


class UnitTimes(Struct, frozen=True, array_like=True):
    """Measured time of each kind of unit for ``rows`` rows at once, microseconds."""

    rows: Annotated[int, Meta(ge=1, le=65536)]
    embedding_us: Microseconds
    block_us: Microseconds
    head_us: Microseconds


Figures = Annotated[tuple[UnitTimes, ...], Meta(min_length=1, max_length=16)]


class DeviceRecord(Struct, frozen=True, array_like=True, tag=1):
    """What the owner is and can do.  ``eligible`` is the owner's own word that its figures are
    measured and that it has been quiet for long enough to be planned."""

    is_source: bool
    budget_bytes: Count
    """For weights and KV; the process's base and head-room are taken off already."""
    model: Digest | None
    """Manifest digest of the model whose files this peer has; None: it has none."""
    eligible: bool
    note: Text = ""
    """Why it is not eligible, in words."""
    dtype: Annotated[str, Meta(max_length=8)] = ""
    numerics: Annotated[str, Meta(max_length=8)] = ""
    decode: Annotated[tuple[UnitTimes, ...], Meta(max_length=16)] = ()
    """Decode figures by rows; empty until measured for the swarm's model, dtype and numerics."""
    prefill: Annotated[tuple[UnitTimes, ...], Meta(max_length=16)] = ()
    """Prefill figures by chunk."""
    pass_us: Annotated[int, Meta(ge=0, le=3_600_000_000)] = 0
    """What a pass takes of the device besides its units, as far as it was learned."""
    rested_us: Annotated[int, Meta(ge=0, le=3_600_000_000)] = 0
    """By how much sooner a pass ends that finds the device at rest."""


CARRY_MAX_S = 120.0
"""A chunk of a prompt at 20 kbit/s and 2 KiB a row, or at 80 kbit/s and 8 KiB."""


class LinkFigures(Struct, frozen=True, order=True, array_like=True):
    """One link as measured from its owner's side, towards ``to``."""

    to: Name
    delay_us: Annotated[int, Meta(ge=1, le=60_000_000)]
    per_message_us: Annotated[int, Meta(ge=0, le=60_000_000)]
    bytes_per_s: Annotated[int, Meta(ge=1, le=2**44)]

    def carry_s(self, n_bytes: int) -> float:
        """For how long so many bytes occupy it; no figure, true or not, gets more patience than
        CARRY_MAX_S."""
        return min(n_bytes / self.bytes_per_s, CARRY_MAX_S)


class LinksRecord(Struct, frozen=True, array_like=True, tag=2):
    links: Annotated[tuple[LinkFigures, ...], Meta(max_length=512)] = ()
    silent: Annotated[tuple[Name, ...], Meta(max_length=512)] = ()
    """Members that are alive by others' word but do not answer this peer directly."""


class ReadyPlan(Struct, frozen=True, array_like=True):
    """A plan whose weights, KV and edges stand on the owner.  ``begun`` numbers its beginnings
    there: a plan may come back under the same id, but not what ran on it before."""

    plan: PlanId
    begun: Count


class HeldRecord(Struct, frozen=True, array_like=True, tag=3):
    """Where the owner stands in the life of plans."""

    units: Annotated[tuple[UnitRange, ...], Meta(max_length=64)] = ()
    """Units loaded now."""
    computed: PlanId | None = None
    """The plan it computed last."""
    ready: Annotated[tuple[ReadyPlan, ...], Meta(max_length=8)] = ()
    active: PlanId | None = None
    """As a source: the plan that it starts requests on.  It starts none on any other."""
    running: PlanIds = ()
    """As a source: plans that still run requests of its own."""
    must_drain: PlanIds = ()
    """Plans that have to end here before the computed one fits into memory."""
    oldest_live: Count = 0
    """As a source: the lowest sequence of its requests that may still be running."""

    def begun(self, plan: PlanId) -> int | None:
        """Which beginning of ``plan`` is ready on the owner; None: it is not."""
        return next((ready.begun for ready in self.ready if ready.plan == plan), None)


class Failure(Struct, frozen=True, order=True, array_like=True):
    """``cannot_load`` (a) or ``no_edge`` (a -> b); expires at its owner."""

    kind: Annotated[str, Meta(pattern=r"^(cannot_load|no_edge)\Z")]
    a: PeerId
    b: PeerId | None = None
    detail: Text = ""


class FailuresRecord(Struct, frozen=True, array_like=True, tag=4):
    failures: Annotated[tuple[Failure, ...], Meta(max_length=64)] = ()


RecordValue = DeviceRecord | LinksRecord | HeldRecord | FailuresRecord


class Record(Struct, frozen=True, array_like=True):
    owner: PeerId
    version: Count
    """Counts all changes of all records of this owner: one number says what is missing."""
    value: RecordValue


class Setting(Struct, frozen=True, array_like=True):
    """One setting of the swarm: the highest (counter, by) wins.  Counter 0 is a default and
    yields to anything that was set."""

    key: Annotated[str, Meta(max_length=40)]
    counter: Count
    by: PeerId
    value: ModelSpec | str | int
