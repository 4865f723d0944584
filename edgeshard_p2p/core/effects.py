"""What to do.  The shell performs each without waiting for it; results come back as events."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeshard_p2p.core.ids import NO_UNITS, PlanId, RequestId, UnitRange
from edgeshard_p2p.core.messages import Address, ControlMessage, FrameHeader, LoggedRows, Open
from edgeshard_p2p.core.plan import Snapshot
from edgeshard_p2p.core.records import LinkFigures
from edgeshard_p2p.core.work import CacheKey, Job, RowGroup, TensorRef


@dataclass(frozen=True, slots=True)
class Send:
    """A control message."""

    to: Address
    message: ControlMessage
    can_wait: bool = False
    """Only of a FrameAck: it confirms, and its sender has credit left, so that it may as well go
    together with a later one."""


@dataclass(frozen=True, slots=True)
class SendFrame:
    """A frame over the socket of its (plan, edge); a new epoch replaces the socket."""

    to: Address
    header: FrameHeader
    tensor: TensorRef | None = None
    tokens: tuple[int, ...] = ()
    body: Open | None = None


@dataclass(frozen=True, slots=True)
class SendProbe:
    """A probe frame with ``n_bytes`` of padding, to measure the link with."""

    to: Address
    nonce: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class CloseEdge:
    plan: PlanId
    edge: int


@dataclass(frozen=True, slots=True)
class OpenModel:
    """Find the model of this digest on disk and read what it is."""

    digest: str


@dataclass(frozen=True, slots=True)
class MeasureDevice:
    dtype: str
    numerics: str
    tile_rows: int


@dataclass(frozen=True, slots=True)
class ComputePlan:
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class KvPromise:
    """KV to reserve in the blocks among ``units`` for one role."""

    role: str
    units: tuple[int, ...]
    slots: int
    context: int


@dataclass(frozen=True, slots=True)
class LoadUnits:
    """Hold exactly ``units`` and ``kv`` (one promise a role), keeping what is there already and
    dropping the rest."""

    load: int
    model: str
    """Manifest digest; empty where nothing is held."""
    dtype: str
    tile_rows: int
    units: tuple[UnitRange, ...]
    kv: tuple[KvPromise, ...]


@dataclass(frozen=True, slots=True)
class OpenCache:
    """Take a KV slot, or keep the one held, under this name or that of ``adopts``: cut to what is
    said here."""

    key: CacheKey
    units: UnitRange
    """The last of them is followed by the boundary at which the key's rows are logged."""
    position: int
    replayed: UnitRange = NO_UNITS
    """Among ``units``, those that are cut to ``replay_position`` instead."""
    replay_position: int = 0
    adopts: CacheKey | None = None
    logs: tuple[LoggedRows, ...] = ()
    """Logs to keep, cut so; any other is dropped."""
    is_logged: bool = False
    """Whether rows that leave ``units`` are logged from now on."""


@dataclass(frozen=True, slots=True)
class ReleaseCache:
    key: CacheKey


@dataclass(frozen=True, slots=True)
class RunForward:
    job: Job
    units: UnitRange
    groups: tuple[RowGroup, ...]
    tokens: tuple[int, ...] = ()
    """Input where the units start at the embedding."""
    tensors: tuple[TensorRef, ...] = ()
    """Input elsewhere, one below the other; dropped by the shell when the pass is done."""
    spans: tuple[tuple[int, int], ...] = ()
    """(first row, rows) of the input that take part, one for each group; empty: all rows do."""
    is_from_log: bool = False
    """Input are the one group's rows as they were logged before ``units``.  Without units nothing
    is computed: they are what comes out."""


@dataclass(frozen=True, slots=True)
class DropTensor:
    tensor: TensorRef


@dataclass(frozen=True, slots=True)
class Accepted:
    """The prompt of ``client`` is now this request."""

    client: str
    request: RequestId


@dataclass(frozen=True, slots=True)
class Rejected:
    """The prompt of ``client`` is not taken; ``retry_ms`` > 0 says when to try again."""

    client: str
    reason: str
    retry_ms: int = 0


@dataclass(frozen=True, slots=True)
class EmitToken:
    request: RequestId
    token: int


@dataclass(frozen=True, slots=True)
class RequestNotice:
    """Something the user should read while waiting."""

    request: RequestId
    text: str


@dataclass(frozen=True, slots=True)
class RequestStats:
    plan_id: PlanId | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    ttft_ms: float = 0.0
    ms_per_token: float = 0.0
    failovers: int = 0
    replayed_tokens: int = 0
    recovery_ms: float = 0.0
    cached_tokens: int = 0
    """Of the prompt, that were still cached of a request before."""


@dataclass(frozen=True, slots=True)
class FinishRequest:
    """``stop``, ``length``, ``cancelled`` or ``error``; an error names peer, stage and cause."""

    request: RequestId
    finish_reason: str
    stats: RequestStats
    error: str = ""
    tokens: tuple[int, ...] = field(default=())
    retry_ms: int = 0
    """Of an error that need not come again: after what time to try."""


@dataclass(frozen=True, slots=True)
class SaveGeneration:
    generation: int


@dataclass(frozen=True, slots=True)
class SaveLinks:
    """Keep these figures of this peer's links on disk, by name of the other end."""

    links: tuple[LinkFigures, ...]


@dataclass(frozen=True, slots=True)
class SavePassTime:
    """Keep on disk what a pass takes of this device besides its units."""

    us: int


@dataclass(frozen=True, slots=True)
class Log:
    """A transition, for the story that the log tells."""

    text: str
    level: str = "info"


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process."""

    exit_code: int
    text: str = ""


Effect = (
    Send
    | SendFrame
    | SendProbe
    | CloseEdge
    | OpenModel
    | MeasureDevice
    | ComputePlan
    | LoadUnits
    | OpenCache
    | ReleaseCache
    | RunForward
    | DropTensor
    | Accepted
    | Rejected
    | EmitToken
    | RequestNotice
    | FinishRequest
    | SaveGeneration
    | SaveLinks
    | SavePassTime
    | Log
    | Stop
)
