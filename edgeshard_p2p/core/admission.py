"""Who may hold a KV slot of a plan: decided in one place, the plan's first shared stage.

Every stage reserves the promised slots, so one place counts for all.  First in, first out, fair
by source, running requests before new ones, bounded.  An ask is repeated by its source until it
is answered, so nothing here needs to be remembered by anyone else.
Knows nothing of plans' lives or of KV itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeshard_p2p.core.ids import PeerId, RequestId

QUEUE_MAX = 64
RETRY_MS = 2_000


@dataclass(frozen=True, slots=True)
class Waiting:
    request: RequestId
    is_running: bool
    since: float


@dataclass(slots=True)
class Admission:
    slots: int
    granted: set[RequestId] = field(default_factory=set)
    queue: dict[RequestId, Waiting] = field(default_factory=dict)

    def on_ask(self, request: RequestId, waited_s: float, is_running: bool, now: float) -> str:
        """``granted``, ``queued`` or ``overloaded``; the same answer to the same ask again."""
        if request in self.granted:
            return "granted"
        if request not in self.queue and len(self.queue) >= QUEUE_MAX:
            return "overloaded"
        since = now - waited_s
        if request in self.queue:
            since = min(since, self.queue[request].since)
        self.queue[request] = Waiting(request, is_running, since)
        return "granted" if request in self.grant_next() else "queued"

    def give_back(self, request: RequestId) -> None:
        self.granted.discard(request)
        self.queue.pop(request, None)

    def forget_source(self, source: PeerId) -> None:
        """Grants and asks lapse with their source."""
        for request in [r for r in (*self.granted, *self.queue) if r.source == source]:
            self.give_back(request)

    def forget_below(self, source: PeerId, oldest_live: int) -> None:
        """The source no longer knows of its requests below this sequence."""
        for request in [*self.granted, *self.queue]:
            if request.source == source and request.sequence < oldest_live:
                self.give_back(request)

    def grant_next(self) -> list[RequestId]:
        """Grant as many as there are slots; the new grants, for their sources to be told."""
        new: list[RequestId] = []
        while self.queue and len(self.granted) < self.slots:
            chosen = min(self.queue.values(), key=self._rank).request
            del self.queue[chosen]
            self.granted.add(chosen)
            new.append(chosen)
        return new

    def _rank(self, waiting: Waiting) -> tuple[bool, int, float, RequestId]:
        held = sum(1 for request in self.granted if request.source == waiting.request.source)
        return (not waiting.is_running, held, waiting.since, waiting.request)
