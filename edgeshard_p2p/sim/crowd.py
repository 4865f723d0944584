"""Hundreds of peers that know each other, and how the news of a death goes round.

    run_death(7)           one crash; when the first peer was sure of it, and when all were
    run_steady(7, 200)     bytes that a peer sends in a second while nothing happens

What keeps a peer in the swarm is real: membership, anti-entropy of records, calls on the dead, the
codec that counts the bytes.  Everybody knows everybody at the start, so nobody joins.  A crash is
silent, as of a device without power: no connection ends, no port refuses.  Left out is what a peer
sends for its own device and plans: probes of links, records that change, frames; and the neighbours
that those who serve together probe besides.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from edgeshard_p2p.core import messages as msg
from edgeshard_p2p.core.effects import Effect, Send
from edgeshard_p2p.core.gossip import Gossip
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.join import Join
from edgeshard_p2p.core.member import Member
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.records import (
    DeviceRecord,
    FailuresRecord,
    HeldRecord,
    LinksRecord,
    Record,
    RecordValue,
)
from edgeshard_p2p.core.timing import Timing
from edgeshard_p2p.sim.network import Network
from edgeshard_p2p.wire.codec import decode_control, encode_control

SWARM = b"simulate"
N_PEERS = 200
LOSS = 0.02
QUIET_S = 3.0
"""Before the crash: pings, acknowledgements and what is lost of them, as in any swarm."""
LIMIT_S = 30.0
PERIODS_OF_VERDICT, PERIODS_OF_CRASH = 8, 15
"""Within so many periods of the first verdict, and of the crash, everybody is to know."""

Handler = Callable[[PeerId, Any, float], list[Effect]]


@dataclass(slots=True)
class CrowdPeer:
    membership: Membership
    join: Join
    gossip: Gossip | None
    is_alive: bool = True
    rings_at: float | None = None
    handlers: dict[type, Handler] = field(default_factory=dict)

    def __post_init__(self) -> None:
        membership, join, gossip = self.membership, self.join, self.gossip
        self.handlers = {
            msg.Ping: membership.on_ping,
            msg.Ack: membership.on_ack,
            msg.PingReq: membership.on_ping_req,
            msg.Nack: membership.on_nack,
            msg.News: lambda _, m, now: membership.on_news(m, now),
            msg.Hello: lambda _, m, now: join.on_hello(m, (), membership, now),
            msg.Welcome: lambda _, m, now: join.on_welcome(m, membership, now),
        }
        if gossip is not None:
            self.handlers[msg.Digest] = lambda sender, m, _: gossip.on_digest(sender, m, membership)
            self.handlers[msg.Delta] = self._on_delta

    def _on_delta(self, _: PeerId, delta: msg.Delta, __: float) -> list[Effect]:
        assert self.gossip is not None
        self.gossip.on_delta(delta, self.membership)
        return []

    @property
    def id(self) -> PeerId:
        return self.membership.me.peer

    def on_message(self, sender: PeerId, message: msg.ControlMessage, now: float) -> list[Effect]:
        effects = self.handlers[type(message)](sender, message, now)
        return effects + self.membership.verdict_on(sender)

    def tick(self, now: float) -> list[Effect]:
        effects = self.membership.tick(now) + self.join.tick(self.membership, now)
        return effects + (self.gossip.tick(self.membership, now) if self.gossip else [])

    def next_deadline(self) -> float | None:
        times = [self.membership.next_deadline(), self.join.next_deadline()]
        if self.gossip is not None:
            times.append(self.gossip.next_deadline())
        return min((time for time in times if time is not None), default=None)


class Crowd:
    def __init__(
        self, seed: int, n_peers: int = N_PEERS, loss: float = LOSS, has_records: bool = False
    ) -> None:
        self.rng = Random(seed)
        self.timing = Timing()
        self.network = Network(Random(seed + 1), loss=loss)
        self.now = 0.0
        self.n_bytes: Counter[str] = Counter()
        """Sent so far by all together, by kind of message."""
        self.verdicts: list[tuple[float, PeerId, PeerId]] = []
        """When, by whom and on whom."""
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self.peers = self._acquainted(n_peers, has_records)

    def _acquainted(self, n_peers: int, has_records: bool) -> dict[str, CrowdPeer]:
        """Peers that have been members for long; each begins its periods when it happens to."""
        identities = [_identity(index) for index in range(n_peers)]
        peers: dict[str, CrowdPeer] = {}
        for me in identities:
            rng = Random(self.rng.random())
            membership, gossip = Membership(me, self.timing, rng), None
            others = (other for other in identities if other != me)
            membership.members = {
                other.peer.name: Member(other, 0, msg.MemberState.ALIVE, 0.0) for other in others
            }
            if has_records:
                gossip = Gossip(me.peer, rng, self.timing.gossip_period_s)
                gossip.records = {other.peer: _records_of(other.peer) for other in identities}
            peer = CrowdPeer(membership, Join(self.timing, has_met=True), gossip)
            peers[me.address.host] = peer
            self._at(self.rng.random() * self.timing.probe_period_s, self._ringing(peer, None))
        return peers

    # --- the clock ------------------------------------------------------------------------

    def run(self, until: float) -> None:
        self.run_until(lambda: False, until)

    def run_until(self, condition: Callable[[], bool], until: float) -> bool:
        while not condition():
            if self._queue[0][0] > until:
                self.now = until
                return False
            self.now, _, action = heapq.heappop(self._queue)
            action()
        return True

    def _at(self, time: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (time, self._order, action))

    def _ringing(self, peer: CrowdPeer, deadline: float | None) -> Callable[[], None]:
        def act() -> None:
            if peer.is_alive and peer.rings_at == deadline:
                self._perform(peer, peer.tick(self.now))

        return act

    # --- the network ----------------------------------------------------------------------

    def _perform(self, peer: CrowdPeer, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._send(peer, effect)
        changes, peer.membership.changes = peer.membership.changes, []
        for change in changes:
            if change.member.state is msg.MemberState.DEAD:
                self.verdicts.append((self.now, peer.id, change.member.peer))
                peer.join.add(change.member.address, self.now)
        deadline = peer.next_deadline()
        if deadline is not None and deadline != peer.rings_at:
            peer.rings_at = deadline
            self._at(max(deadline, self.now), self._ringing(peer, deadline))

    def _send(self, peer: CrowdPeer, effect: Send) -> None:
        data = encode_control(SWARM, peer.id, effect.message)
        self.n_bytes[type(effect.message).__name__] += len(data)
        host = effect.to.host
        receiver = self.peers[host]
        for transit_s in self.network.transits_s(peer.membership.me.address.host, host, len(data)):
            self._at(self.now + transit_s, lambda: self._arrive(receiver, data))

    def _arrive(self, receiver: CrowdPeer, data: bytes) -> None:
        if receiver.is_alive:
            sender, message = decode_control(SWARM, data)
            self._perform(receiver, receiver.on_message(sender, message, self.now))


def _identity(index: int) -> msg.Identity:
    """As long as they are where nobody has chosen a name."""
    address = msg.Address(f"192.168.{index // 250}.{index % 250 + 1}", 7911)
    return msg.Identity(PeerId(f"raspberrypi-{index:04x}", 3), f"{index:016x}", address)


def _records_of(owner: PeerId) -> dict[type[RecordValue], Record]:
    values: list[RecordValue] = [
        DeviceRecord(True, 10**9, None, True), LinksRecord(), HeldRecord(), FailuresRecord(),
    ]  # fmt: skip
    return {type(value): Record(owner, n, value) for n, value in enumerate(values, start=1)}


@dataclass(frozen=True, slots=True)
class Death:
    """How the news of one death went round: seconds since the crash."""

    first_verdict_s: float
    all_know_s: float
    """Infinite when somebody still did not know at the end."""
    n_wrong: int
    """Verdicts on peers that lived."""
    bytes_per_s: float
    """That a peer sent from the crash until everybody knew, its records left out."""

    def is_in_time(self, period_s: float) -> bool:
        of_verdict = self.all_know_s - self.first_verdict_s
        return (
            of_verdict <= PERIODS_OF_VERDICT * period_s
            and self.all_know_s <= PERIODS_OF_CRASH * period_s
        )


def run_death(seed: int, n_peers: int = N_PEERS, loss: float = LOSS) -> Death:
    """One peer loses its power, at some moment of its period and of everybody else's."""
    crowd = Crowd(seed, n_peers, loss)
    crowd.run(QUIET_S + crowd.rng.random() * crowd.timing.probe_period_s)
    victim = crowd.rng.choice(sorted(crowd.peers))
    dead, crashed_at = crowd.peers[victim], crowd.now
    dead.is_alive = False
    sent_before = crowd.n_bytes.total()
    knowing: set[PeerId] = set()
    n_seen = 0

    def is_known() -> bool:
        nonlocal n_seen
        knowing.update(by for _, by, on in crowd.verdicts[n_seen:] if on == dead.id)
        n_seen = len(crowd.verdicts)
        return len(knowing) == n_peers - 1

    is_complete = crowd.run_until(is_known, crashed_at + LIMIT_S)
    on_dead = [time for time, _, on in crowd.verdicts if on == dead.id and time >= crashed_at]
    took_s = crowd.now - crashed_at
    return Death(
        first_verdict_s=min(on_dead, default=float("inf")) - crashed_at,
        all_know_s=took_s if is_complete else float("inf"),
        n_wrong=sum(1 for _, _, on in crowd.verdicts if on != dead.id),
        bytes_per_s=(crowd.n_bytes.total() - sent_before) / took_s / (n_peers - 1),
    )


def tally(deaths: list[Death]) -> dict[str, float]:
    """What many deaths say together; times in periods of probing."""
    period_s = Timing().probe_period_s
    after_verdict = sorted((d.all_know_s - d.first_verdict_s) / period_s for d in deaths)
    after_crash = sorted(d.all_know_s / period_s for d in deaths)
    last = len(deaths) - 1
    return {
        "seeds": len(deaths),
        "in_time": sum(death.is_in_time(period_s) for death in deaths),
        "after_verdict_p50": round(after_verdict[last // 2], 2),
        "after_verdict_max": round(after_verdict[last], 2),
        "after_crash_p50": round(after_crash[last // 2], 2),
        "after_crash_p99": round(after_crash[int(last * 0.99)], 2),
        "after_crash_max": round(after_crash[last], 2),
        "wrong_verdicts": sum(death.n_wrong for death in deaths),
        "bytes_per_s_meanwhile": round(max(death.bytes_per_s for death in deaths)),
    }


def run_steady(seed: int, n_peers: int, for_s: float = QUIET_S) -> dict[str, float]:
    """Bytes that a peer sends in a second while nobody comes or goes, by kind of message."""
    crowd = Crowd(seed, n_peers, has_records=True)
    crowd.run(1.0)
    before = crowd.n_bytes.copy()
    crowd.run(crowd.now + for_s)
    return {kind: (n - before[kind]) / for_s / n_peers for kind, n in sorted(crowd.n_bytes.items())}
