"""One edge of a plan: frames in order, once each, confirmed by the other end.

A ZeroMQ send proves nothing, so each edge has its own sequence numbers, cumulative
acknowledgements, credits and resends.  The sender chooses an epoch at each opening; the receiver
starts anew with it and drops frames of older ones.

    sender                                receiver
      EDGE epoch 7            ->
                              <-          EdgeAnswer 7            (plan computed there)
      seq 1, 2, 3             ->
                              <-          FrameAck 3, credit 11

Knows nothing of what the frames carry, but which of them take long to compute (chunks).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Generic, TypeVar

from edgeshard_p2p.core.ids import PeerId, PlanId
from edgeshard_p2p.core.plan import Plan
from edgeshard_p2p.core.timing import Timing

WINDOW = 8
"""Frames that may be on their way on one edge."""
CHUNKS_AHEAD = 2
"""Frames of chunks that may be on an edge without being computed at its end: the one that is, and
one to follow it without a gap.  What comes after them is not held up by more."""
ACK_HELD_S = 0.1
"""An acknowledgement that can wait (`flow`) does so for so long at most: without one a frame is
sent again after five times as long."""
WAITING_MAX = 4096
"""Frames that may wait for credit.  Nobody who keeps to the protocol gets there; an edge that
does is given up, with a reason for each request on it."""


AHEAD_BYTES = 2**17
"""What may be on its way before anything else on a link that serves: a chunk of a prompt."""
CARRY_FACTOR = 2.0
"""Others use the link too: so many times what frames occupy it for they may be on their way."""
TRAVEL_MAX_S = 300.0
"""Longer nobody waits for what is on its way, whatever was measured of the link."""
RESEND_PATIENCE = 1 / 3
"""The longer nothing is heard, so much of that time the next resend waits at least: the word may
be waiting behind what goes the other way, of which this end knows nothing."""


Item = TypeVar("Item")


class EdgeKind(Enum):
    ENTRY = "entry"
    INNER = "inner"
    RETURN = "return"


@dataclass(frozen=True, slots=True)
class EdgeSpec:
    """An edge of a plan; ``index`` names it on the wire."""

    index: int
    kind: EdgeKind
    sender: PeerId
    receiver: PeerId
    stage: int
    """The shared stage that it leads to; of a return edge the one that it leaves."""
    source: int
    """The source that an entry or return edge belongs to; -1 for inner ones."""


def edges_of(plan: Plan) -> tuple[EdgeSpec, ...]:
    """All edges of a plan: one in from each source, those between stages, one back to each."""
    if not plan.stages:
        return ()
    first, last = plan.stages[0].peer, plan.stages[-1].peer
    ends: list[tuple[EdgeKind, PeerId, PeerId, int, int]] = []
    for i, source in enumerate(plan.sources):
        ends.append((EdgeKind.ENTRY, source, first, 0, i))
    for k in range(len(plan.stages) - 1):
        here, there = plan.stages[k].peer, plan.stages[k + 1].peer
        ends.append((EdgeKind.INNER, here, there, k + 1, -1))
    for i, source in enumerate(plan.sources):
        ends.append((EdgeKind.RETURN, last, source, len(plan.stages) - 1, i))
    return tuple(EdgeSpec(index, *end) for index, end in enumerate(ends))


@dataclass(frozen=True, slots=True)
class Due:
    """A frame that was accepted: once it is dealt with, its sender is told."""

    spec: EdgeSpec
    epoch: int = 0
    is_chunk: bool = False


@dataclass(slots=True)
class OutEdge(Generic[Item]):
    """The sending end.  ``Item`` is whatever a frame is to its owner."""

    plan: PlanId
    spec: EdgeSpec
    epoch: int
    timing: Timing
    opened_at: float
    ahead_s: float = 0.0
    """For how long an opening, and every answer, may wait for what is on the link already."""
    is_open: bool = False
    is_lost: bool = False
    _next_open_at: float = 0.0
    chunks_ahead: int = 0
    """Frames of chunks that were offered and are not computed at the other end."""
    _chunks_told: int = 0
    _sequence: int = 0
    _credit: int = WINDOW
    _unacked: deque[tuple[int, Item]] = field(default_factory=deque)
    _waiting: deque[Item] = field(default_factory=deque)
    _carry_s: deque[float] = field(default_factory=deque)
    """Of those unconfirmed, then of those that wait."""
    _progress_at: float = 0.0
    _resend_at: float = 0.0

    def offer(self, item: Item, is_chunk: bool = False, carry_s: float = 0.0) -> None:
        """``carry_s``: for how long the item occupies the link."""
        self._waiting.append(item)
        self._carry_s.append(carry_s)
        self.chunks_ahead += is_chunk
        if len(self._waiting) > WAITING_MAX:
            self.is_lost = True

    def take_sendable(self, now: float) -> list[tuple[int, Item]]:
        """What the credit allows to send now, numbered."""
        sendable: list[tuple[int, Item]] = []
        while self.is_open and self._waiting and self._sequence < self._credit:
            self._sequence += 1
            if not self._unacked:
                self._progress_at, self._resend_at = now, now + self.timing.resend_s
            entry = (self._sequence, self._waiting.popleft())
            self._unacked.append(entry)
            sendable.append(entry)
        return sendable

    def _on_their_way_s(self) -> float:
        """What is unconfirmed may still be travelling for so long: sent again it would only be in
        its own way."""
        return min(CARRY_FACTOR * sum(islice(self._carry_s, len(self._unacked))), TRAVEL_MAX_S)

    def on_answer(self, epoch: int) -> bool:
        """True when this answer opened the edge."""
        if epoch != self.epoch or self.is_open:
            return False
        self.is_open = True
        return True

    def on_ack(self, epoch: int, acked: int, credit: int, chunks: int, now: float) -> list[Item]:
        """The items that are confirmed now; their owner may let go of them.  ``chunks``: how many
        frames of chunks the other end has computed."""
        if epoch != self.epoch or acked > self._sequence:
            return []
        n_new = min(max(0, chunks - self._chunks_told), self.chunks_ahead)
        self._chunks_told += n_new
        self.chunks_ahead -= n_new
        confirmed: list[Item] = []
        while self._unacked and self._unacked[0][0] <= acked:
            self._carry_s.popleft()
            confirmed.append(self._unacked.popleft()[1])
        if confirmed:
            self._progress_at, self._resend_at = now, now + self.timing.resend_s
        self._credit = max(self._credit, min(credit, acked + WINDOW))
        return confirmed

    def next_deadline(self) -> float | None:
        if self.is_lost:
            return None
        if not self.is_open:
            return self._next_open_at
        if not self._unacked:
            return self._resend_at if self._waits_for_word else None
        return min(self._resend_at, self._lost_at()) + self._on_their_way_s()

    def _lost_at(self) -> float:
        """Without a word by then, and so much later as what is unconfirmed takes."""
        return self._progress_at + self.timing.edge_lost_s + self.ahead_s

    def wants_opening(self, now: float) -> bool:
        """True when the EDGE frame is to be sent (again) now: to open the edge, or to ask how
        far the other end is, since its word may have been lost."""
        if self.is_lost:
            return False
        if self.is_open:
            return self._wants_credit(now)
        if now < self._next_open_at:
            return False
        if now >= self.opened_at + self.timing.edge_deadline_s + self.ahead_s:
            self.is_lost = True
            return False
        self._next_open_at = now + self.timing.edge_retry_s
        return True

    @property
    def _waits_for_word(self) -> bool:
        return bool(self._waiting or self.chunks_ahead)

    def _wants_credit(self, now: float) -> bool:
        if self._unacked or not self._waits_for_word or now < self._resend_at:
            return False
        self._resend_at = now + self.timing.resend_s
        return True

    def take_resends(self, now: float) -> list[tuple[int, Item]]:
        """Everything unconfirmed, once more, when its time has come; may find the edge lost."""
        if not self._unacked or self.is_lost:
            return []
        travel_s = self._on_their_way_s()
        if now >= self._lost_at() + travel_s:
            self.is_lost = True
            return []
        if now < self._resend_at + travel_s:
            return []
        self._resend_at = now + max(
            self.timing.resend_s, RESEND_PATIENCE * (now - self._progress_at)
        )
        return list(self._unacked)

    def drain(self) -> list[Item]:
        """All items still here, for an edge that is given up."""
        items = [item for _, item in self._unacked] + list(self._waiting)
        self._unacked.clear()
        self._waiting.clear()
        self._carry_s.clear()
        return items


@dataclass(slots=True)
class InEdge:
    """The receiving end: accepts each sequence number once and in order."""

    spec: EdgeSpec
    sender_tag: bytes = field(init=False)
    epoch: int = 0
    received: int = 0
    consumed: int = 0
    chunks: int = 0
    """Of those consumed, frames of chunks."""

    def __post_init__(self) -> None:
        self.sender_tag = self.spec.sender.tag

    def on_open(self, epoch: int) -> bool:
        """False for an opening that is older than the one in force."""
        if epoch < self.epoch:
            return False
        if epoch > self.epoch:
            self.epoch, self.received, self.consumed, self.chunks = epoch, 0, 0, 0
        return True

    def accepts(self, epoch: int, sequence: int) -> bool:
        """True for the next frame; a late, doubled or overtaking one changes nothing."""
        if epoch != self.epoch or epoch == 0 or sequence != self.received + 1:
            return False
        self.received = sequence
        return True

    def consume(self, due: Due) -> None:
        """An accepted frame has been dealt with."""
        if due.epoch == self.epoch:
            self.consumed += 1
            self.chunks += due.is_chunk

    @property
    def credit(self) -> int:
        return self.consumed + WINDOW
