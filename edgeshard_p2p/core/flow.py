"""The edges of one plan that touch this peer: frames offered here leave in order, frames that
arrive are accepted once, and an edge from this peer to itself costs no socket.

Knows nothing of requests; it moves frames.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from edgeshard_p2p.core.edges import (
    AHEAD_BYTES,
    WINDOW,
    Due,
    EdgeKind,
    EdgeSpec,
    InEdge,
    OutEdge,
    edges_of,
)
from edgeshard_p2p.core.effects import CloseEdge, DropTensor, Effect, Send, SendFrame
from edgeshard_p2p.core.events import FrameReceived
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.messages import (
    WIRE_MAX,
    EdgeAnswer,
    FrameAck,
    FrameHeader,
    FrameKind,
    FrameRefused,
    Open,
    RowFlag,
    RowGroupHeader,
)
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.plan import FRAME_OVERHEAD_BYTES, Plan
from edgeshard_p2p.core.timing import Timing
from edgeshard_p2p.core.work import TensorRef

CarryS = Callable[[PeerId, int], float]
"""For how long so many bytes occupy the link to a peer; 0 where nobody has measured it."""

DTYPE_CODES = {"": 0, "fp32": 1, "bf16": 2, "int32": 3}


@dataclass(frozen=True, slots=True)
class Frame:
    """What travels an edge, without the edge's own numbering."""

    kind: FrameKind
    groups: tuple[RowGroupHeader, ...]
    micro_batch: int = 0
    service_us: int = 0
    tensor: TensorRef | None = None
    tokens: tuple[int, ...] = ()
    body: Open | None = None

    @property
    def n_rows(self) -> int:
        return sum(group.rows for group in self.groups)

    @property
    def is_chunk(self) -> bool:
        """Of a prompt, or rows that are computed again: not one row for each request."""
        return self.kind is FrameKind.HIDDEN and any(map(is_of_chunk, self.groups))


@dataclass(frozen=True, slots=True)
class LostEdge:
    """An edge that was given up, with what was on its way."""

    spec: EdgeSpec
    frames: list[Frame]
    was_open: bool


@dataclass(slots=True)
class Flow:
    plan: Plan
    model: ModelSpec
    me: PeerId
    membership: Membership
    timing: Timing
    epochs: dict[str, int]
    """The last epoch that this process used, shared by all flows."""
    carry_s: CarryS
    out: dict[int, OutEdge[Frame]] = field(default_factory=dict)
    in_: dict[int, InEdge] = field(default_factory=dict)
    arrived: deque[tuple[Due, Frame]] = field(default_factory=deque)
    """Accepted frames, for the peer to hand on."""
    lost: list[LostEdge] = field(default_factory=list)
    """Edges found lost, for the peer to act on."""
    revision: int = 0
    """Rises when an edge opens or is lost."""
    refused: Counter[str] = field(default_factory=Counter)
    """Frames that were not taken, by reason."""
    _tag: bytes = field(init=False)
    """Of this peer."""
    _specs: dict[int, EdgeSpec] = field(default_factory=dict)
    _owed: dict[int, list[Frame]] = field(default_factory=dict)
    """Releases that an edge was lost with: they go first when it is open again."""
    _reopen_at: dict[int, float] = field(default_factory=dict)
    """When an edge that was lost may be opened again: a receiver that refuses what it has just
    opened for would otherwise be asked as fast as it answers."""
    _promised: dict[int, int] = field(default_factory=dict)
    """Credit last told, by incoming edge, but for what can wait and may not have gone."""

    def __post_init__(self) -> None:
        self._tag = self.me.tag
        for spec in edges_of(self.plan):
            self._specs[spec.index] = spec
            if spec.receiver == self.me and spec.sender != self.me:
                self.in_[spec.index] = InEdge(spec)

    # --- questions ------------------------------------------------------------------------

    def outgoing(self) -> list[EdgeSpec]:
        """Edges that leave this peer for another."""
        specs = self._specs.values()
        return [s for s in specs if s.sender == self.me and s.receiver != self.me]

    def all_open(self) -> bool:
        return all(s.index in self.out and self.out[s.index].is_open for s in self.outgoing())

    def find(self, kind: EdgeKind, stage: int, source: int = -1) -> EdgeSpec:
        """The edge of this kind that leads to ``stage`` (a return edge: that leaves it)."""
        for spec in self._specs.values():
            if spec.kind is kind and spec.stage == stage and spec.source in (source, -1):
                return spec
        raise AssertionError(f"plan {self.plan.id} has no {kind.value} edge at stage {stage}")

    def onward(self, peer: PeerId, stage: int) -> EdgeSpec:
        """The edge on which ``peer`` sends hidden states to ``stage``."""
        if stage > 0:
            return self.find(EdgeKind.INNER, stage)
        return self.find(EdgeKind.ENTRY, 0, self.plan.sources.index(peer))

    def chunks_ahead(self, spec: EdgeSpec) -> int:
        """Frames of chunks on an edge that leaves this peer for another."""
        return self.out[spec.index].chunks_ahead if spec.index in self.out else 0

    def next_deadline(self) -> float | None:
        times = [edge.next_deadline() for edge in self.out.values()]
        times += self._reopen_at.values()
        return min((time for time in times if time is not None), default=None)

    # --- sending --------------------------------------------------------------------------

    def open_edges(self, now: float) -> list[Effect]:
        """Open, each with a new epoch, the outgoing edges that are not there."""
        effects: list[Effect] = []
        for spec in self.outgoing():
            if spec.index not in self.out and now >= self._reopen_at.get(spec.index, now):
                self._reopen_at.pop(spec.index, None)
                self.epochs["last"] += 1
                ahead_s = self.carry_s(spec.receiver, AHEAD_BYTES)
                self.out[spec.index] = OutEdge(
                    self.plan.id, spec, self.epochs["last"], self.timing, now, ahead_s
                )
                for frame in self._owed.pop(spec.index, ()):
                    self.out[spec.index].offer(frame)
                effects += self._tick_edge(self.out[spec.index], now)
        return effects

    def offer(self, spec: EdgeSpec, frame: Frame, now: float) -> list[Effect]:
        if spec.receiver == self.me:
            self.arrived.append((Due(spec), frame))
            return []
        edge = self.out.get(spec.index)
        if edge is None or edge.is_lost:
            # Between a loss and the next opening: the owner of the frame hears of the loss.
            if frame.kind is FrameKind.RELEASE:
                self._owed.setdefault(spec.index, []).append(frame)
                return []
            self.lost.append(LostEdge(spec, [frame], was_open=True))
            return []
        edge.offer(frame, frame.is_chunk, self.carry_s(spec.receiver, _size_of(frame)))
        return self._send(edge, edge.take_sendable(now))

    def _send(self, edge: OutEdge[Frame], numbered: list[tuple[int, Frame]]) -> list[Effect]:
        address = self.membership.address_of(edge.spec.receiver)
        if address is None:
            return []
        return [
            SendFrame(
                address,
                self._header(edge, sequence, frame),
                frame.tensor,
                frame.tokens,
                frame.body,
            )
            for sequence, frame in numbered
        ]

    def _header(self, edge: OutEdge[Frame], sequence: int, frame: Frame) -> FrameHeader:
        dtype, shape = "", tuple[int, ...]()
        if frame.kind is FrameKind.HIDDEN:
            dtype, shape = self.plan.workload.dtype, (frame.n_rows, self.model.hidden_size)
        elif frame.kind is FrameKind.TOKENS:
            dtype, shape = "int32", (len(frame.tokens),)
        return FrameHeader(
            WIRE_MAX,
            frame.kind,
            self._tag,
            bytes.fromhex(self.plan.id),
            edge.spec.index,
            edge.epoch,
            sequence,
            0,
            frame.micro_batch,
            frame.service_us,
            self.plan.workload.tile_rows,
            DTYPE_CODES[dtype],
            shape,
            frame.groups,
        )

    def tick(self, now: float) -> list[Effect]:
        return [e for edge in list(self.out.values()) for e in self._tick_edge(edge, now)]

    def _tick_edge(self, edge: OutEdge[Frame], now: float) -> list[Effect]:
        effects: list[Effect] = []
        if edge.wants_opening(now):
            effects += self._send(edge, [(0, Frame(FrameKind.EDGE, ()))])
        effects += self._send(edge, edge.take_resends(now))
        if edge.is_lost:
            del self.out[edge.spec.index]
            frames = edge.drain()
            owed = [frame for frame in frames if frame.kind is FrameKind.RELEASE]
            self._owed.setdefault(edge.spec.index, []).extend(owed)
            others = [frame for frame in frames if frame.kind is not FrameKind.RELEASE]
            self.lost.append(LostEdge(edge.spec, others, edge.is_open))
            self._reopen_at[edge.spec.index] = now + self.timing.edge_retry_s
            self.revision += 1
            effects.append(CloseEdge(self.plan.id, edge.spec.index))
        return effects

    def on_answer(self, answer: EdgeAnswer, now: float) -> list[Effect]:
        edge = self.out.get(answer.edge)
        if edge is None or not edge.on_answer(answer.epoch):
            return []
        self.revision += 1
        return self._send(edge, edge.take_sendable(now))

    def on_ack(self, ack: FrameAck, now: float) -> list[Effect]:
        edge = self.out.get(ack.edge)
        if edge is None:
            return []
        confirmed = edge.on_ack(ack.epoch, ack.acked, ack.credit, ack.chunks, now)
        dropped = [DropTensor(frame.tensor) for frame in confirmed if frame.tensor is not None]
        return [*dropped, *self._send(edge, edge.take_sendable(now))]

    def on_refused(self, refused: FrameRefused, now: float) -> list[Effect]:
        """The other end does not take frames of this edge: it is lost as it stands."""
        edge = self.out.get(refused.edge)
        if edge is None or edge.epoch != refused.epoch or not edge.is_open:
            return []
        edge.is_lost = True
        return self._tick_edge(edge, now)

    # --- receiving ------------------------------------------------------------------------

    def on_frame(self, event: FrameReceived, now: float) -> list[Effect]:
        header = event.header
        edge = self.in_.get(header.edge)
        if edge is None or header.sender != edge.sender_tag:
            return self._refuse(event, "not_my_edge")
        if header.kind is FrameKind.EDGE:
            return self._on_opening(edge, header)
        if not self._fits(edge.spec, event):
            return self._refuse(event, "does_not_fit")
        if header.epoch > edge.epoch:
            # This end began anew since the edge was opened.
            return self._refuse(event, "edge_not_open")
        if not edge.accepts(header.epoch, header.sequence):
            self.refused["out_of_turn"] += 1
            return [*_drop(event), *self._ack(edge)]
        body = event.body if isinstance(event.body, Open) else None
        frame = Frame(
            header.kind,
            header.groups,
            header.micro_batch,
            header.service_us,
            event.tensor,
            event.tokens,
            body,
        )
        self.arrived.append((Due(edge.spec, header.epoch, frame.is_chunk), frame))
        return self._ack(edge, can_wait=True)

    def _refuse(self, event: FrameReceived, reason: str) -> list[Effect]:
        self.refused[reason] += 1
        return [*_drop(event), *refuse(event.header, reason, self.membership)]

    def _on_opening(self, edge: InEdge, header: FrameHeader) -> list[Effect]:
        if not edge.on_open(header.epoch):
            self.refused["out_of_turn"] += 1
            return []
        address = self.membership.address_of(edge.spec.sender)
        if address is None:
            return []
        answer = EdgeAnswer(self.plan.id, edge.spec.index, header.epoch)
        return [Send(address, answer), *self._ack(edge)]

    def _fits(self, spec: EdgeSpec, event: FrameReceived) -> bool:
        """Whether the frame is one that this edge of this plan may carry."""
        header, groups = event.header, event.header.groups
        owners = range(len(self.plan.sources)) if spec.source < 0 else (spec.source,)
        if header.numerics != self.plan.workload.tile_rows:
            return False
        if (header.kind is FrameKind.TOKENS) != (spec.kind is EdgeKind.RETURN):
            return False
        if any(group.source_index not in owners for group in groups):
            return False
        if header.kind is FrameKind.HIDDEN:
            rows = sum(group.rows for group in groups)
            dtype = DTYPE_CODES[self.plan.workload.dtype]
            is_right = header.dtype == dtype and header.shape == (rows, self.model.hidden_size)
            return is_right and event.tensor is not None
        if header.kind is FrameKind.TOKENS:
            is_in_vocabulary = all(0 <= t < self.model.vocab_size for t in event.tokens)
            return len(event.tokens) == len(groups) and is_in_vocabulary
        if header.kind is FrameKind.OPEN:
            return isinstance(event.body, Open)
        return header.kind is FrameKind.RELEASE

    def consumed(self, due: Due) -> list[Effect]:
        """One accepted frame of this edge has been dealt with: renew the sender's credit."""
        edge = self.in_.get(due.spec.index)
        if edge is None:
            return []
        edge.consume(due)
        stale = self._promised.get(due.spec.index, 0)
        is_time = due.is_chunk or edge.credit - stale >= WINDOW // 2
        return self._ack(edge) if is_time else []

    def _ack(self, edge: InEdge, can_wait: bool = False) -> list[Effect]:
        address = self.membership.address_of(edge.spec.sender)
        if address is None or edge.epoch == 0:
            return []
        if not can_wait:
            self._promised[edge.spec.index] = edge.credit
        numbers = (edge.epoch, edge.received, edge.credit, edge.chunks)
        return [Send(address, FrameAck(self.plan.id, edge.spec.index, *numbers), can_wait)]

    # --- the end --------------------------------------------------------------------------

    def close(self) -> list[Effect]:
        effects: list[Effect] = []
        for index, edge in self.out.items():
            effects += [DropTensor(f.tensor) for f in edge.drain() if f.tensor is not None]
            effects.append(CloseEdge(self.plan.id, index))
        self.out.clear()
        self._reopen_at.clear()
        return effects


def _size_of(frame: Frame) -> int:
    return FRAME_OVERHEAD_BYTES + (frame.tensor.n_bytes if frame.tensor is not None else 0)


def is_of_chunk(group: RowGroupHeader) -> bool:
    return group.rows > 1 or is_replay(group)


def is_replay(group: RowGroupHeader) -> bool:
    return bool(group.flags & RowFlag.REPLAY)


def refuse(header: FrameHeader, reason: str, membership: Membership) -> list[Effect]:
    """Tell the sender of this frame that nothing of it was computed, and why."""
    for member in membership.present():
        if member.peer.tag == header.sender:
            refused = FrameRefused(
                header.plan_id, header.edge, header.epoch, header.sequence, reason
            )
            return [Send(member.address, refused)]
    return []


def _drop(event: FrameReceived) -> list[Effect]:
    return [DropTensor(event.tensor)] if event.tensor is not None else []
