"""Everything that crosses the wire between peers.

Control messages are small and travel to a peer's control port; frames carry tensors and travel
to its data port (the next one).  Bounds stand in the types: what does not fit them is refused
before anyone believes it.  Knows nothing of bytes or sockets.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from msgspec import Meta, Struct

from edgeshard_p2p.core.ids import Count, Name, PeerId, PlanId, RequestId, UnitRange
from edgeshard_p2p.core.records import Record, Setting, Text
from edgeshard_p2p.core.sampling import Sampling

WIRE_MIN = 1
WIRE_MAX = 1
"""Lowest and highest wire version that this program speaks."""

Version = Annotated[int, Meta(ge=0, le=65535)]
Small = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class Address(Struct, frozen=True, order=True, array_like=True):
    """Where a peer's control port is; its data port is the next one."""

    host: Annotated[str, Meta(min_length=1, max_length=253)]
    port: Annotated[int, Meta(ge=1, le=65534)]

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Identity(Struct, frozen=True, array_like=True):
    peer: PeerId
    install_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    """Random, made once per state directory: tells two peers of one name apart."""
    address: Address

    def is_same_device(self, other: Identity) -> bool:
        """One state directory, or one address: then a lost state directory was begun anew."""
        return self.install_id == other.install_id or self.address == other.address


class MemberState(IntEnum):
    """In order of precedence at equal generation and incarnation."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


class Update(Struct, frozen=True, array_like=True):
    """News of one member.  Only the member itself raises its incarnation."""

    identity: Identity
    incarnation: Count
    state: MemberState


Updates = Annotated[tuple[Update, ...], Meta(max_length=512)]
Records = Annotated[tuple[Record, ...], Meta(max_length=2048)]
Settings = Annotated[tuple[Setting, ...], Meta(max_length=64)]


# --- membership ---------------------------------------------------------------------------


class Hello(Struct, frozen=True, array_like=True, tag=1):
    """Asks to be taken in.  Sent to join addresses, discovered ones and those of the dead."""

    identity: Identity
    incarnation: Count
    wire_min: Version = WIRE_MIN
    wire_max: Version = WIRE_MAX


class Welcome(Struct, frozen=True, array_like=True, tag=2):
    identity: Identity
    incarnation: Count
    known_generation: Count
    """Of another life of the asker's name that is known here, or 0: it has to be a later one."""
    updates: Updates
    settings: Settings
    uptime_ms: Count = 0
    """How long the sender has been up: of two that meet, the younger one's flags yield."""
    wire_min: Version = WIRE_MIN
    wire_max: Version = WIRE_MAX


class Refused(Struct, frozen=True, array_like=True, tag=3):
    """Why a Hello was not taken: ``wire_version``, ``name_taken``, ``other_swarm``."""

    reason: Annotated[str, Meta(max_length=40)]
    detail: Text


class Ping(Struct, frozen=True, array_like=True, tag=4):
    nonce: Count
    updates: Updates


class Ack(Struct, frozen=True, array_like=True, tag=5):
    """Answers a Ping; sent on by the helper when the ping was on another's behalf.  Names the life
    that answers: another one at the same address says nothing of the one that was asked."""

    nonce: Count
    target: PeerId
    updates: Updates


class PingReq(Struct, frozen=True, array_like=True, tag=6):
    nonce: Count
    target: Name
    updates: Updates


class Nack(Struct, frozen=True, array_like=True, tag=8):
    """A helper's answer to a PingReq: it does not get an answer from this life either."""

    nonce: Count
    target: PeerId


class News(Struct, frozen=True, array_like=True, tag=7):
    """Updates that should not wait for the next probe: a departure, a verdict, a refutation."""

    updates: Updates


# --- gossip -------------------------------------------------------------------------------


class OwnerVersion(Struct, frozen=True, array_like=True):
    owner: PeerId
    kind: Annotated[int, Meta(ge=1, le=16)]
    """The tag of the record's type."""
    version: Count


class Digest(Struct, frozen=True, array_like=True, tag=10):
    """What the sender has; the receiver answers with what is newer and asks for the rest."""

    versions: Annotated[tuple[OwnerVersion, ...], Meta(max_length=2048)]
    settings_digest: Annotated[str, Meta(max_length=16)]
    wants_reply: bool
    versions_digest: Annotated[str, Meta(max_length=16)] = ""
    """In place of ``versions`` where they are many: whoever has others answers with all of its
    own."""


class Delta(Struct, frozen=True, array_like=True, tag=11):
    records: Records
    settings: Settings


# --- links, edges, admission --------------------------------------------------------------


class LinkEcho(Struct, frozen=True, array_like=True, tag=20):
    """Answers a probe frame."""

    nonce: Count


class EdgeAnswer(Struct, frozen=True, array_like=True, tag=21):
    """The receiver has computed this plan and takes frames of this epoch."""

    plan: PlanId
    edge: Small
    epoch: Count


class FrameAck(Struct, frozen=True, array_like=True, tag=22):
    """Cumulative acknowledgement and credit of one edge."""

    plan: PlanId
    edge: Small
    epoch: Count
    acked: Count  # Every frame up to this sequence has arrived.
    credit: Count  # The highest sequence that may be sent.
    chunks: Count = 0  # So many frames of chunks have been computed.


class Slow(Struct, frozen=True, array_like=True, tag=30):
    """To who sends frames of this plan: they took so much of the time that its record promises."""

    plan: PlanId
    percent: Annotated[int, Meta(ge=1, le=10_000)]


class FrameRefused(Struct, frozen=True, array_like=True, tag=23):
    """Nothing of this frame was computed: ``no_such_plan``, ``plan_retired``, ``not_my_edge``."""

    plan: PlanId
    edge: Small
    epoch: Count
    sequence: Count
    reason: Annotated[str, Meta(max_length=40)]


class AttemptRefused(Struct, frozen=True, array_like=True, tag=24):
    """To the source: a stage cannot go on with this attempt."""

    request: RequestId
    attempt: Small
    stage: Small
    reason: Annotated[str, Meta(max_length=40)]
    detail: Text = ""


class SlotAsk(Struct, frozen=True, array_like=True, tag=25):
    """To the admitting stage of a plan; repeated until it is answered."""

    plan: PlanId
    request: RequestId
    attempt: Small
    """The one that is to begin with this slot."""
    waited_ms: Count
    is_running: bool
    """The request has produced tokens before: it goes ahead of new ones."""


class SlotAnswer(Struct, frozen=True, array_like=True, tag=26):
    """``granted``, ``queued``, ``overloaded`` or ``no_such_plan``."""

    plan: PlanId
    request: RequestId
    attempt: Small
    verdict: Annotated[str, Meta(pattern=r"^(granted|queued|overloaded|no_such_plan)\Z")]
    retry_ms: Small = 0


class SlotReturn(Struct, frozen=True, array_like=True, tag=27):
    """The slot of an attempt that was asked for but never opened is no longer wanted."""

    plan: PlanId
    request: RequestId
    attempt: Small


class CachedUnits(Struct, frozen=True, order=True, array_like=True):
    """KV of these units for the first ``length`` positions of a request."""

    units: UnitRange
    length: Small


class LoggedRows(Struct, frozen=True, order=True, array_like=True):
    """Hidden states of positions ``[start, end)`` before unit ``unit``, as they were computed."""

    unit: Count
    start: Small
    end: Small


class CacheAsk(Struct, frozen=True, array_like=True, tag=28):
    """The source to each stage of the plan on which a request is to go on."""

    plan: PlanId
    request: RequestId
    continues: Count = 0  # As in ``Open``.


class CacheReport(Struct, frozen=True, array_like=True, tag=29):
    """What the stage has of the request that is of use in its part of this plan."""

    plan: PlanId
    request: RequestId
    stage: Small
    cached: Annotated[tuple[CachedUnits, ...], Meta(max_length=64)] = ()
    logs: Annotated[tuple[LoggedRows, ...], Meta(max_length=8)] = ()


ControlMessage = (
    Hello
    | Welcome
    | Refused
    | Ping
    | Ack
    | PingReq
    | Nack
    | News
    | Digest
    | Delta
    | LinkEcho
    | EdgeAnswer
    | FrameAck
    | Slow
    | FrameRefused
    | AttemptRefused
    | SlotAsk
    | SlotAnswer
    | SlotReturn
    | CacheAsk
    | CacheReport
)


# --- frames -------------------------------------------------------------------------------


class FrameKind(IntEnum):
    PROBE = 0
    """Payload: padding of the size that will travel.  Belongs to no plan."""
    EDGE = 1
    """Opens an edge with a new epoch; asked again until it is answered."""
    OPEN = 2
    """Payload: an Open.  Goes along all stages ahead of the request's first rows."""
    HIDDEN = 3
    """Payload: hidden states, ``R`` rows."""
    TOKENS = 4
    """Payload: int32 token ids, one per group, from the last stage to a source."""
    RELEASE = 5
    """No payload.  The groups name requests whose KV is to be freed, along all stages."""


class RowFlag(IntEnum):
    LAST_CHUNK = 1
    """The last row of this group is the last known token: sample from it."""
    REPLAY = 2
    """Fills caches again: never truncates, emits nothing."""
    NO_EMIT = 4
    KEEP = 8  # Of a RELEASE: what is cached of it may stay, for another one to go on from.


class RowGroupHeader(Struct, frozen=True, array_like=True):
    """The rows of one request inside a frame; its source is one of the plan's ``sources``."""

    source_index: Small
    sequence: Count
    attempt: Small
    position: Small
    """Of the group's first row; in a TOKENS frame the position of the token."""
    rows: Annotated[int, Meta(ge=0, le=65536)]
    cached_len: Small
    """What the receiver must have cached of this request before these rows."""
    stop_unit: Small
    """Replay ends before this unit; otherwise the number of units."""
    flags: Small


class FrameHeader(Struct, frozen=True, array_like=True):
    version: Version
    kind: FrameKind
    sender: Annotated[bytes, Meta(min_length=8, max_length=8)]
    """``PeerId.tag`` of the peer that sends, so that a refusal finds its way."""
    plan: Annotated[bytes, Meta(min_length=8, max_length=8)]
    edge: Small
    """Which edge of the plan (see ``topology``)."""
    epoch: Count
    sequence: Count
    acked: Count
    """Reserved, 0: acknowledgements are messages of their own."""
    micro_batch: Count
    service_us: Small
    """What the sender's own forward pass of these rows took."""
    numerics: Small
    """Tile rows of ``exact``; 0 in ``fast``."""
    dtype: Small
    """0 none, 1 fp32, 2 bf16, 3 int32."""
    shape: Annotated[tuple[Small, ...], Meta(max_length=2)]
    groups: Annotated[tuple[RowGroupHeader, ...], Meta(max_length=4096)]

    @property
    def plan_id(self) -> PlanId:
        return self.plan.hex()


class Replay(Struct, frozen=True, array_like=True):
    """Units ``[start, end)`` compute positions from ``position`` on again, from logged rows."""

    holder: Annotated[int, Meta(ge=-1, le=2**16)]
    """The stage that has the log; -1 is the source."""
    start: Count
    end: Count
    position: Small


class Open(Struct, frozen=True, array_like=True):
    """What is constant for an attempt of a request.  New fields are appended, with defaults."""

    sampling: Sampling
    position: Small
    """Where normal frames of this attempt start; what is cached beyond it is cut."""
    oldest_live: Count
    """The source's lowest live sequence: anything below is freed."""
    replays: Annotated[tuple[Replay, ...], Meta(max_length=256)] = ()
    """What is cached to less than ``position``; all other units must be cached to it."""
    continues: Count = 0
    """The source's request, over by now, of which this is cached; 0: it is this request."""


class ProbeBody(Struct, frozen=True, array_like=True):
    sender: PeerId
    nonce: Count
