"""Slow devices, judged from downstream: what a stage's frames report against what its owner's
record promises.

    Judge       at whoever receives the frames: two stretches in a row that took more than twice
                the promised time, and long enough for anybody to care, are told to the owner, in
                per cent
    Slowness    at the owner: publishes figures that are so much slower, and after a while the
                measured ones again

The frames are the measurement.  A quota or a busy neighbour takes its share of long stretches; a
short measurement fits between two of them and shows nothing.
Knows nothing of how plans are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from edgeshard_p2p.core.edges import EdgeKind, EdgeSpec
from edgeshard_p2p.core.effects import Effect, Log, Send
from edgeshard_p2p.core.flow import Flow
from edgeshard_p2p.core.ids import PeerId, PlanId, UnitRange
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.messages import FrameHeader, FrameKind, RowGroupHeader, Slow
from edgeshard_p2p.core.plan import Plan
from edgeshard_p2p.core.records import UnitTimes
from edgeshard_p2p.core.timing import Timing

SLOW_PERCENT = 200
SLOW_BY_US = 5_000
"""So much longer a frame takes at least, on average: next to nothing, as an embedding is, takes
several times as long where a quota lets go of a device between, and nobody waits for it."""
FRAMES = 8
"""A stretch has so many frames at least."""
STREAMS_REMEMBERED = 64
PERCENT_MAX = 10_000
US_MAX = 3_600_000_000
TRUSTED_AGAIN_MAX = 16
"""One that keeps turning out slow is trusted again after at most so many times as long."""

Promise = Callable[[PeerId, UnitRange, int], int]
"""Microseconds that a peer's record says these units take for so many rows of decode; 0: it does
not say."""


@dataclass(slots=True)
class Stretch:
    since: float
    last_at: float
    frames: int = 0
    service_us: int = 0
    promised_us: int = 0
    were_slow: bool = False
    """The stretch before this one was slow."""


@dataclass(slots=True)
class Judge:
    membership: Membership
    timing: Timing
    promise: Promise
    _stretches: dict[PeerId, Stretch] = field(default_factory=dict)
    _next_positions: dict[tuple[PlanId, int, int, int], int] = field(default_factory=dict)
    """By plan, source, sequence and attempt."""

    def on_frame(self, header: FrameHeader, flow: Flow | None, now: float) -> list[Effect]:
        edge = flow.in_.get(header.edge) if flow is not None else None
        if (
            flow is None
            or edge is None
            or header.sender != edge.sender_tag
            or not self._is_decode(header)
        ):
            return []
        sender = edge.spec.sender
        units = _units_behind(flow.plan, edge.spec)
        promised_us = self.promise(sender, units, len(header.groups))
        percent = self._note(sender, header.service_us, promised_us, now) if promised_us else 0
        address = self.membership.address_of(sender)
        if not percent or address is None:
            return []
        text = f"{sender} takes {percent} % of the time that it promises"
        return [Log(text, "warning"), Send(address, Slow(flow.plan.id, percent))]

    def _is_decode(self, header: FrameHeader) -> bool:
        """Whether the pass behind this frame had one row for each of its groups."""
        if header.kind is FrameKind.HIDDEN:
            return all(group.rows == 1 for group in header.groups)
        if header.kind is not FrameKind.TOKENS:
            return False
        # Each is looked at, so that its next token is known for what it is.
        going_on = [self._goes_on(header.plan_id, group) for group in header.groups]
        return all(going_on)

    def _goes_on(self, plan: PlanId, group: RowGroupHeader) -> bool:
        """The first token of an attempt comes of its whole prompt."""
        key = (plan, group.source_index, group.sequence, group.attempt)
        goes_on = self._next_positions.pop(key, None) == group.position
        while len(self._next_positions) >= STREAMS_REMEMBERED:
            del self._next_positions[next(iter(self._next_positions))]
        self._next_positions[key] = group.position + 1
        return goes_on

    def _note(self, peer: PeerId, service_us: int, promised_us: int, now: float) -> int:
        """The per cent to tell the owner now; 0: nothing to tell."""
        stretch = self._stretches.get(peer)
        if stretch is None or now - stretch.last_at > self.timing.slow_stretch_s:
            # Other peers, whose stretches are long over, are forgotten on the way.
            fresh = now - self.timing.slow_stretch_s
            self._stretches = {p: s for p, s in self._stretches.items() if s.last_at >= fresh}
            stretch = self._stretches[peer] = Stretch(now, now)
        stretch.last_at = now
        stretch.frames += 1
        stretch.service_us += service_us
        stretch.promised_us += promised_us
        if stretch.frames < FRAMES or now - stretch.since < self.timing.slow_stretch_s:
            return 0
        percent = 100 * stretch.service_us // stretch.promised_us
        longer_us = (stretch.service_us - stretch.promised_us) // stretch.frames
        is_slow = percent > SLOW_PERCENT and longer_us >= SLOW_BY_US
        tells = is_slow and stretch.were_slow
        self._stretches[peer] = Stretch(now, now, were_slow=is_slow and not tells)
        return min(percent, PERCENT_MAX) if tells else 0


def _units_behind(plan: Plan, spec: EdgeSpec) -> UnitRange:
    """What the sender computed for a frame on this edge."""
    if spec.kind is EdgeKind.ENTRY:
        return plan.entry
    last = spec.stage if spec.kind is EdgeKind.RETURN else spec.stage - 1
    return plan.stages[last].units


@dataclass(slots=True)
class Slowness:
    timing: Timing
    percent: int = 100
    """Of the measured figures."""
    _ends_at: float | None = None
    _heeds_at: float = 0.0
    _times: int = 0

    def next_deadline(self) -> float | None:
        return self._ends_at

    def on_slow(self, sender: PeerId, told: Slow, flow: Flow | None, now: float) -> list[Effect]:
        """From whoever receives this peer's frames of that plan, and at most once in a while: the
        figures have to get round, and plans to follow them."""
        receivers = [spec.receiver for spec in flow.outgoing()] if flow is not None else []
        if sender not in receivers or now < self._heeds_at:
            return []
        self._times += 1
        self._heeds_at = now + self.timing.slow_heed_s
        patience = min(2 ** (self._times - 1), TRUSTED_AGAIN_MAX)
        self._ends_at = now + patience * self.timing.slow_expiry_s
        self.percent = min(max(100, self.percent * told.percent // 100), PERCENT_MAX)
        text = f"this device is slower than it was measured: {self.percent} % of those times"
        return [Log(text, "warning")]

    def tick(self, now: float) -> list[Effect]:
        if self._ends_at is None or now < self._ends_at:
            return []
        self.percent, self._ends_at = 100, None
        return [Log("this device goes by its measured times again")]

    def of(self, figures: tuple[UnitTimes, ...]) -> tuple[UnitTimes, ...]:
        """The figures to publish."""
        return figures if self.percent == 100 else tuple(map(self._slower, figures))

    def _slower(self, times: UnitTimes) -> UnitTimes:
        return replace(
            times,
            embedding_us=self.us(times.embedding_us),
            block_us=self.us(times.block_us),
            head_us=self.us(times.head_us),
        )

    def us(self, us: int) -> int:
        return min(us * self.percent // 100, US_MAX)
