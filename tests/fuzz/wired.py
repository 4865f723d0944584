"""The simulated swarm with bytes between its peers: what one sends goes through the other's real
doors, and anybody can put something else there.

    control   a peer's message          data   the parts of a frame          client   a request
"""

from __future__ import annotations

import struct
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import cast

from edgeshard_p2p.core import effects as fx
from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core.messages import Address, FrameHeader
from edgeshard_p2p.core.peer import PeerCore
from edgeshard_p2p.core.work import TensorRef
from edgeshard_p2p.net.transport import Transport
from edgeshard_p2p.runtime.arrivals import Arrivals
from edgeshard_p2p.runtime.clients import Clients
from edgeshard_p2p.sim.compute import State
from edgeshard_p2p.sim.device import SimPeer
from edgeshard_p2p.sim.simulator import SWARM, Simulator
from edgeshard_p2p.wire.codec import encode_control
from edgeshard_p2p.wire.frames import Buffer, encode_body, encode_header, encode_probe

CONTROL, DATA, CLIENT = DOORS = ("control", "data", "client")
CAUGHT_MAX = 3_000
ROW_BYTES = 8
"""Of the simulated model in fp32; as many as a state has."""


@dataclass(frozen=True, slots=True)
class Input:
    """What arrives at a door."""

    door: str
    parts: tuple[bytes, ...]


@dataclass(slots=True)
class Answers:
    """Takes the place of the transport for clients: what it is given is counted."""

    n: int = 0

    def answer_client(self, identity: bytes, data: bytes) -> bool:
        self.n += 1
        return True


@dataclass(slots=True)
class Doors:
    """Of one life of a peer."""

    core: PeerCore
    arrivals: Arrivals = field(init=False)
    answers: Answers = field(default_factory=Answers)

    def refused(self) -> Counter[str]:
        return self.arrivals.refused + self.core.serving.refused


class Wired(Simulator):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.caught: deque[tuple[str, Input]] = deque(maxlen=CAUGHT_MAX)
        """What travelled lately, and to whom."""
        self._doors: dict[tuple[str, int], Doors] = {}

    def doors(self, host: str) -> Doors:
        peer = self.peers[host]
        key = (host, peer.life)
        if key not in self._doors:
            assert peer.core is not None
            self._doors[key] = self._build(peer, peer.core)
        return self._doors[key]

    def _build(self, peer: SimPeer, core: PeerCore) -> Doors:
        doors = Doors(core)

        def post(event: ev.Event) -> None:
            # A client may set what it likes: that would be an order, not bad input.
            if not isinstance(event, ev.SettingAsked):
                self._feed(peer, event)

        def keep(header: FrameHeader, payload: Buffer) -> TensorRef:
            return peer.keep(_states(header, payload))

        clients = Clients(core, cast(Transport, doors.answers), post, dict, lambda _: None)
        doors.arrivals = Arrivals(
            core.me,
            (SWARM,),
            post,
            keep,
            lambda identity, request: clients.on_request(identity, request, None),
            clients.answer,
        )
        return doors

    def knock(self, host: str, given: Input) -> None:
        """Whatever it is, it arrives now."""
        if self.peers[host].core is None:
            return
        arrivals = self.doors(host).arrivals
        if given.door == CONTROL:
            arrivals.on_peer(memoryview(given.parts[0]))
        elif given.door == CLIENT:
            arrivals.on_client(b"client", memoryview(given.parts[0]))
        else:
            arrivals.on_frame([memoryview(part) for part in given.parts])

    # --- what peers send --------------------------------------------------------------------

    def _carry(self, sender: SimPeer, to: Address, n_bytes: int, sent: Input) -> None:
        receiver = self.peers.get(to.host)
        if receiver is None:
            return
        self.caught.append((receiver.host, sent))

        def arrive() -> None:
            self._when_awake(receiver, receiver.life, lambda: self.knock(receiver.host, sent))

        for transit_s in self.network.transits_s(sender.host, to.host, n_bytes):
            self._at(self.now + transit_s, arrive)

    def _send(self, peer: SimPeer, effect: fx.Send) -> None:
        self.safety.check_chatter(peer, effect, self.now)
        data = encode_control(SWARM, peer.id, effect.message)
        self._carry(peer, effect.to, len(data), Input(CONTROL, (data,)))

    def _send_frame(self, peer: SimPeer, effect: fx.SendFrame) -> None:
        payload = b""
        if effect.tensor is not None:
            states = peer.tensors[effect.tensor.id]
            payload = b"".join(state.ljust(ROW_BYTES, b"\0") for state in states)
        elif effect.tokens:
            payload = struct.pack(f"<{len(effect.tokens)}i", *effect.tokens)
        elif effect.body is not None:
            payload = encode_body(effect.body)
        sent = Input(DATA, (encode_header(effect.header), payload))
        self._carry(peer, effect.to, len(payload) + 64, sent)

    def _send_probe(self, peer: SimPeer, effect: fx.SendProbe) -> None:
        header, body, _ = encode_probe(peer.id, effect.nonce, 0)
        sent = Input(DATA, (bytes(header), bytes(body), b""))
        self._carry(peer, effect.to, effect.n_bytes, sent)


def _states(header: FrameHeader, payload: Buffer) -> list[State]:
    n_rows = header.shape[0]
    width = len(payload) // n_rows
    return [bytes(payload[row * width : row * width + 8]) for row in range(n_rows)]
