"""What happened.  The shell puts everything it sees into one of these, failures included."""

from __future__ import annotations

from dataclasses import dataclass

from edgeshard_p2p.core.ids import PeerId, RequestId
from edgeshard_p2p.core.messages import (
    Ack,
    Address,
    ControlMessage,
    Delta,
    Digest,
    FrameAck,
    FrameHeader,
    News,
    Open,
    Ping,
    PingReq,
    ProbeBody,
)
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.plan import Choice
from edgeshard_p2p.core.records import UnitTimes
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.work import Job, TensorRef


@dataclass(frozen=True, slots=True)
class Started:
    """The sockets are bound."""


@dataclass(frozen=True, slots=True)
class DeadlineReached:
    """The time that ``next_deadline`` named has come."""


@dataclass(frozen=True, slots=True)
class PeerDiscovered:
    """Multicast showed a peer of this swarm."""

    address: Address


@dataclass(frozen=True, slots=True)
class ContactFailed:
    """A join address refused the connection for good: ``secret``, ``protocol``."""

    address: Address
    reason: str


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """A connection that stood has ended from the other end; ``is_refused``: the port there takes
    no new one, as that of a process that is gone."""

    address: Address
    is_refused: bool


@dataclass(frozen=True, slots=True)
class MessageReceived:
    sender: PeerId
    message: ControlMessage


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """A frame with its payload decoded: a tensor kept by the shell, token ids, or a body."""

    header: FrameHeader
    tensor: TensorRef | None = None
    tokens: tuple[int, ...] = ()
    body: Open | ProbeBody | None = None


@dataclass(frozen=True, slots=True)
class ModelOpened:
    """The swarm's model is on this device's disk (or, with None, is not)."""

    digest: str
    spec: ModelSpec | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DeviceMeasured:
    """Times of the units on this device, for the model, dtype and numerics named."""

    digest: str
    dtype: str
    numerics: str
    decode: tuple[UnitTimes, ...]
    prefill: tuple[UnitTimes, ...]
    pass_us: int = 0
    """What a pass takes besides, as far as it was learned in an earlier life."""
    rested_us: int = 0
    """By how much sooner a pass ends that finds the device at rest."""


@dataclass(frozen=True, slots=True)
class PassesTimed:
    """What each pass of a stretch took of this device besides its units, microseconds."""

    us: int


@dataclass(frozen=True, slots=True)
class MeasureFailed:
    detail: str


@dataclass(frozen=True, slots=True)
class PlanComputed:
    choice: Choice


@dataclass(frozen=True, slots=True)
class UnitsLoaded:
    """What was asked for by the ``load`` numbered so stands in memory, KV reserved."""

    load: int


@dataclass(frozen=True, slots=True)
class LoadFailed:
    load: int
    detail: str


@dataclass(frozen=True, slots=True)
class ForwardDone:
    job: Job
    service_us: int
    hidden: TensorRef | None
    tokens: tuple[int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class ForwardFailed:
    job: Job
    detail: str


@dataclass(frozen=True, slots=True)
class PromptSubmitted:
    """A user's prompt, tokenised on this peer."""

    client: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    request: RequestId


@dataclass(frozen=True, slots=True)
class SettingAsked:
    """The operator sets a setting of the swarm at this peer; or this peer offers a default, which
    yields to anything that was set."""

    key: str
    value: ModelSpec | str | int
    is_default: bool = False
    for_s: int = 0
    """After so long it is lifted again; 0: it stays."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Leave: say so, hand over, exit."""


Event = (
    Started
    | DeadlineReached
    | PeerDiscovered
    | ContactFailed
    | ConnectionLost
    | MessageReceived
    | FrameReceived
    | ModelOpened
    | DeviceMeasured
    | PassesTimed
    | MeasureFailed
    | PlanComputed
    | UnitsLoaded
    | LoadFailed
    | ForwardDone
    | ForwardFailed
    | PromptSubmitted
    | RequestCancelled
    | SettingAsked
    | StopAsked
)


GOSSIP = Ping | Ack | PingReq | News | Digest | Delta
"""Of members and of records."""


def is_flow(event: Event) -> bool:
    """Whether this event belongs to the steady flow of tokens."""
    is_ack = isinstance(event, MessageReceived) and isinstance(event.message, FrameAck)
    return is_ack or isinstance(event, FrameReceived | ForwardDone)


def is_routine(event: Event) -> bool:
    """Whether it belongs to that or to gossip, which by itself mostly changes neither members nor
    records: bringing them up to date would cost more than the event."""
    is_gossip = isinstance(event, MessageReceived) and isinstance(event.message, GOSSIP)
    return is_gossip or is_flow(event)
