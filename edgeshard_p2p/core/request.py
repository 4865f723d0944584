"""One request as its source knows it, and what a source may want done for it.

Knows nothing of when to do what.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from edgeshard_p2p.core.cached import Slot
from edgeshard_p2p.core.effects import Effect, RequestStats
from edgeshard_p2p.core.ended import Continued
from edgeshard_p2p.core.events import PromptSubmitted
from edgeshard_p2p.core.flow import Frame
from edgeshard_p2p.core.ids import PeerId, PlanId, RequestId, UnitRange
from edgeshard_p2p.core.messages import CacheReport
from edgeshard_p2p.core.plan import CHUNK_ROWS, Plan
from edgeshard_p2p.core.recovery import Resumption
from edgeshard_p2p.core.timing import Timing
from edgeshard_p2p.core.work import CacheKey, RowGroup

ROLE = "entry"


class Phase(Enum):
    WAITING = "waiting for a plan"
    ASKING = "waiting for a slot"
    RUNNING = "running"


@dataclass(slots=True)
class Request:
    id: RequestId
    prompt: PromptSubmitted
    created_at: float
    model_digest: str
    """Whose tokens these are."""
    generated: list[int] = field(default_factory=list)
    attempt: int = 0
    """Counts the asks for a slot (an ask repeated is the same one), granted or not: an ask that
    was withdrawn and one that followed it must not be taken for each other."""
    phase: Phase = Phase.WAITING
    plan: Plan | None = None
    not_before: float = 0.0
    """The next attempt waits for this time, longer each time that nothing came of one; 0: none."""
    fruitless: int = 0
    """Attempts in a row that yielded no token."""
    begun: dict[PeerId, int] = field(default_factory=dict)
    """Which beginning of the plan this attempt relies on, for each peer of it."""
    slot: Slot | None = None
    """What this attempt has cached here, while it runs."""
    may_resume: bool = False
    """An earlier attempt may have left something to go on with."""
    continues: Continued | None = None
    """Another request, that is over, has left something to begin with."""
    is_granted: bool = False
    reports: dict[int, CacheReport] = field(default_factory=dict)
    """What the stages of the plan say that they have, by stage."""
    begin_by: float = 0.0
    """When an attempt that has its slot waits no longer for reports."""
    left_on: Plan | None = None
    """The plan along whose stages an earlier attempt has left something, its slot as well."""
    lost: str = ""
    """What ended the attempt before this one."""
    is_computing: bool = False
    pass_number: int | None = None
    """The pass in which its newest row set out, until that row's token is here."""
    parked_at: float | None = None
    """When the attempt before this one ended, until the first token after it."""
    cause: str = ""
    """Why it is waiting, in words for its user."""
    retry_ms: int = 0
    """After what time another try has a chance, by the last word of who grants slots."""
    phase_since: float = 0.0
    progress_at: float = 0.0
    travel_s: float = 0.0
    """What a chunk of its prompt may take on the way along the plan's links."""
    ask_at: float = 0.0
    first_token_at: float | None = None
    last_token_at: float = 0.0
    failovers: int = 0
    replayed_tokens: int = 0
    cached_tokens: int = 0
    """Of its prompt, that nobody had to compute."""
    recovery_s: float = 0.0

    @property
    def known(self) -> tuple[int, ...]:
        return (*self.prompt.prompt, *self.generated)

    def tokens(self, start: int, end: int) -> tuple[int, ...]:
        """Of those known, without a copy of the rest: decoding asks for the last one each time."""
        n_prompt = len(self.prompt.prompt)
        if end <= n_prompt:
            return self.prompt.prompt[start:end]
        if start >= n_prompt:
            return tuple(self.generated[start - n_prompt : end - n_prompt])
        return self.known[start:end]

    @property
    def n_known(self) -> int:
        return len(self.prompt.prompt) + len(self.generated)

    @property
    def key(self) -> CacheKey:
        return CacheKey(self.id, ROLE)

    @property
    def plan_id(self) -> PlanId | None:
        return self.plan.id if self.plan is not None else None

    @property
    def asks_caches(self) -> bool:
        return self.may_resume or self.continues is not None

    def ask_caches(self) -> AskCaches:
        assert self.plan is not None
        continues = self.continues.request.sequence if self.continues is not None else 0
        return AskCaches(self.plan, self.id, frozenset(self.reports), continues)

    @property
    def goes_on_from(self) -> RequestId:
        return self.continues.request if self.continues is not None else self.id

    @property
    def is_prefilling(self) -> bool:
        """Whether it runs, and no token has come of this attempt."""
        return self.phase is Phase.RUNNING and self.last_token_at <= self.phase_since

    @property
    def is_decoding(self) -> bool:
        return self.phase is Phase.RUNNING and not self.is_prefilling

    @property
    def n_chunks(self) -> int:
        """Of its known tokens, that have still to set out."""
        if self.slot is None or not self.is_prefilling:
            return 0
        return self.is_computing + -(-(self.n_known - self.slot.length) // CHUNK_ROWS)

    def wakes_at(self, timing: Timing) -> float:
        if self.phase is Phase.ASKING:
            at = self.begin_by if self.is_granted else self.ask_at
            return min(self.ends_at(timing), self.ask_at, at)
        if self.phase is Phase.WAITING and self.not_before:
            return self.not_before
        return self.ends_at(timing)

    def ends_at(self, timing: Timing) -> float:
        """When what it waits for is given up."""
        if self.phase is Phase.RUNNING:
            return self.progress_at + self.patience_s(timing)
        wait_s = timing.begun_wait_s if self.generated else timing.request_wait_s
        return self.phase_since + wait_s

    def patience_s(self, timing: Timing) -> float:
        """An attempt that yields nothing for so long is given up."""
        return timing.progress_s + self.travel_s

    def asks_for(self, plan: PlanId, attempt: int) -> bool:
        """Whether it waits for a slot for this very attempt on this plan."""
        is_asking = self.phase is Phase.ASKING and self.plan_id == plan
        return is_asking and attempt == self.attempt


@dataclass(frozen=True, slots=True)
class EntryRows:
    """Consecutive rows of one attempt that pass the source's own units, or are read from its
    log."""

    plan: Plan
    request: RequestId
    attempt: int
    units: UnitRange
    group: RowGroup
    tokens: tuple[int, ...] = ()
    """Empty where the rows were logged here."""
    flags: int = 0
    stop: int = 0
    """Of a replay, the unit before which it ends."""
    is_chunk: bool = True
    """Travels alone, as all rows of a prompt do: at a later stage the last of them waits for those
    before it."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Wanted: these rows computed, when their turn comes."""

    rows: EntryRows


@dataclass(frozen=True, slots=True)
class Flush:
    """Wanted: what waits of this request computed before anything else is done here."""

    request: RequestId
    attempt: int
    plan: PlanId | None


@dataclass(frozen=True, slots=True)
class AskSlot:
    """Wanted: a slot of ``plan`` for this request."""

    plan: Plan
    request: RequestId
    attempt: int
    waited_s: float
    is_running: bool


@dataclass(frozen=True, slots=True)
class AskCaches:
    """Wanted: what each stage of ``plan`` but those in ``known`` has of this request, or of the one
    that it continues (0: of none)."""

    plan: Plan
    request: RequestId
    known: frozenset[int]
    continues: int = 0


@dataclass(frozen=True, slots=True)
class OfferFrame:
    """Wanted: this frame on the source's entry edge of ``plan``."""

    plan: Plan
    frame: Frame


@dataclass(frozen=True, slots=True)
class ReturnSlot:
    """Wanted: the slot, or the place in the queue, that no RELEASE frame will give back."""

    plan: Plan
    request: RequestId
    attempt: int


SourceStep = Effect | AskSlot | AskCaches | Compute | Flush | OfferFrame | ReturnSlot


def is_back(pass_number: int | None, requests: Iterable[Request]) -> None:
    """A token of that pass is here: those of its other rows came with it, or never will."""
    if pass_number is None:
        return
    for request in requests:
        if request.pass_number == pass_number:
            request.pass_number = None


def story(request: Request, found: Resumption, n_replayed: int) -> str:
    """What is done to go on, for the user who waits for it."""
    plan = request.plan
    assert plan is not None
    if not found.position:
        return f"recovering {request.lost}, prefilling {n_replayed} tokens again"
    units = {unit for replay in found.replays for unit in range(replay.start, replay.end)}
    peers = [stage.peer.name for stage in plan.stages if units & set(stage.units)]
    peers += [request.id.source.name] if units & set(plan.entry) else []
    if not n_replayed or not peers:
        return f"recovering {request.lost}, nothing has to be computed again"
    return f"recovering {request.lost}, replaying {n_replayed} tokens on {', '.join(peers)}"


def stats_of(request: Request) -> RequestStats:
    first, n = request.first_token_at, len(request.generated)
    ttft_s = first - request.created_at if first is not None else 0.0
    decode_s = request.last_token_at - first if first is not None else 0.0
    return RequestStats(
        request.plan_id,
        len(request.prompt.prompt),
        n,
        ttft_s * 1e3,
        decode_s * 1e3 / (n - 1) if n > 1 else 0.0,
        request.failovers,
        request.replayed_tokens,
        request.recovery_s * 1e3,
        request.cached_tokens,
    )
