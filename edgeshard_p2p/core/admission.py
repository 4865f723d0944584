"""Who may hold a KV slot of a plan: decided in one place, the plan's first shared stage.

Every stage reserves the promised slots, so one place counts for all.  First in, first out, fair
by source, running requests before new ones, bounded.  An ask is repeated by its source until it
is answered, so nothing here needs to be remembered by anyone else.

A slot belongs to an attempt of a request.  The ask for the next attempt may overtake the release of
the one before: it takes the slot over, and that release then frees nothing.
Knows nothing of plans' lives or of KV itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from edgeshard_p2p.core.ids import PeerId, RequestId

QUEUE_MAX = 64
RETRY_MS = 2_000
"""For who is refused before any request here has come to its end."""
RETRY_MIN_MS, RETRY_MAX_MS = 500, 30_000
LATEST = 0.25
"""What the latest request counts for in how long requests hold their slots."""


@dataclass(frozen=True, slots=True)
class Waiting:
    request: RequestId
    attempt: int
    is_running: bool
    since: float


@dataclass(frozen=True, slots=True)
class Grant:
    attempt: int
    """That holds the request's slot."""
    at: float


@dataclass(slots=True)
class Admission:
    slots: int
    granted: dict[RequestId, Grant] = field(default_factory=dict)
    _held_s: float | None = None
    """How long requests hold a slot, on average."""
    queue: dict[RequestId, Waiting] = field(default_factory=dict)

    def on_ask(self, ask: Waiting, now: float) -> str:
        """``granted``, ``queued`` or ``overloaded``; the same answer to the same ask again."""
        request = ask.request
        if (grant := self.granted.get(request)) is not None:
            self.granted[request] = replace(grant, attempt=max(ask.attempt, grant.attempt))
            return "granted"
        if request not in self.queue and len(self.queue) >= QUEUE_MAX and not ask.is_running:
            return "overloaded"
        known = self.queue.get(request)
        if known is not None:
            ask = replace(ask, since=min(ask.since, known.since))
        self.queue[request] = ask
        return "granted" if any(w.request == request for w in self.grant_next(now)) else "queued"

    def retry_ms(self) -> int:
        """In what time a place is likely to be free: slots come back that often."""
        if self._held_s is None:
            return RETRY_MS
        return round(min(max(RETRY_MIN_MS, 1e3 * self._held_s / self.slots), RETRY_MAX_MS))

    def give_back(self, request: RequestId, attempt: int, now: float) -> None:
        """Attempts up to this one want neither a slot nor a place in the queue any more."""
        grant = self.granted.get(request)
        if grant is not None and grant.attempt <= attempt:
            del self.granted[request]
            held_s = now - grant.at
            known_s = self._held_s if self._held_s is not None else held_s
            self._held_s = known_s + LATEST * (held_s - known_s)
        if request in self.queue and self.queue[request].attempt <= attempt:
            del self.queue[request]

    def forget_source(self, source: PeerId) -> None:
        """Grants and asks lapse with their source."""
        for request in [r for r in (*self.granted, *self.queue) if r.source == source]:
            self._forget(request)

    def forget_below(self, source: PeerId, oldest_live: int) -> None:
        """The source no longer knows of its requests below this sequence."""
        for request in [*self.granted, *self.queue]:
            if request.source == source and request.sequence < oldest_live:
                self._forget(request)

    def _forget(self, request: RequestId) -> None:
        self.granted.pop(request, None)
        self.queue.pop(request, None)

    def grant_next(self, now: float) -> list[Waiting]:
        """Grant as many as there are slots; the new grants, for their sources to be told."""
        new: list[Waiting] = []
        while self.queue and len(self.granted) < self.slots:
            chosen = min(self.queue.values(), key=self._rank)
            del self.queue[chosen.request]
            self.granted[chosen.request] = Grant(chosen.attempt, now)
            new.append(chosen)
        return new

    def _rank(self, waiting: Waiting) -> tuple[bool, int, float, RequestId]:
        held = sum(1 for request in self.granted if request.source == waiting.request.source)
        return (not waiting.is_running, held, waiting.since, waiting.request)
