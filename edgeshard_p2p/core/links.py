"""Measuring this peer's links: round trips of small and of large probes, one at a time.

The probes travel the data path, as frames will; the answers come back as control messages.
    bandwidth = what is more in a large one / (fastest large round trip - fastest small one)
    delay     = half of the fastest small round trip, less what a token's frame occupies the link
On a link so quick that the payload hardly shows, a larger one is tried.
The fastest trips are those of the last few measurements together: while its ends compute, a link
looks worse than it is, and plans that followed that would move running requests for nothing.
Knows nothing of what the figures are used for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from edgeshard_p2p.core.edges import AHEAD_BYTES
from edgeshard_p2p.core.effects import Effect, Log, SendProbe
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.member import Member
from edgeshard_p2p.core.plan import FRAME_OVERHEAD_BYTES
from edgeshard_p2p.core.records import LinkFigures
from edgeshard_p2p.core.timing import Timing

SMALL_BYTES = 64
BIG_BYTES = (2**12, 2**14, 2**17, 2**20, 2**22)
"""The third is about 32 rows of hidden states of a 1024-wide model in fp32: well beyond TCP's first
window, and a second on a 1 Mbit/s line.  The smaller ones are for lines on which it would take
longer than a probe may, and hold up whatever else is on its way."""
SHOWS_US = (200_000, 200_000, 1_000, 1_000)
"""A payload that takes less than this on top of a small probe says little: try the next size, if
there is one."""
ROUNDS = 4
"""Probes of each size; the first of each warms the connection up and does not count."""
ATTEMPTS = 3
REMEMBERED = 3
"""Measurements of a link: so many have to agree on that it is worse."""
BUSY_SHARE = 0.01
"""Of the time for which large probes may occupy a link that has frames to carry."""
MOVED_BY = 0.25
"""A figure is published again only when it moved by more than this share."""
BYTES_PER_S_MAX = 2**35


@dataclass(slots=True)
class Target:
    """The state of measuring one link."""

    peer: PeerId
    next_at: float
    busy_next_at: float
    """The same while the link may have frames to carry."""
    small_us: list[int] = field(default_factory=list)
    big_us: list[int] = field(default_factory=list)
    size_index: int = 0
    """Which of BIG_BYTES is being tried."""
    taken_s: float = 0.0
    """By the large probes of the present measurement."""
    found: deque[LinkFigures] = field(default_factory=lambda: deque(maxlen=REMEMBERED - 1))
    """By the measurements before this one."""
    failures: int = 0
    settled: bool = False
    """Measured, or given up for now: either way this link keeps nobody waiting."""


@dataclass(slots=True)
class Outstanding:
    nonce: int
    name: str
    n_bytes: int
    sent_at: float
    ends_at: float


@dataclass(slots=True)
class LinkProber:
    timing: Timing
    known: dict[str, LinkFigures] = field(default_factory=dict)
    """By name of the other end: a link outlives the lives of its ends."""
    is_paused: bool = False
    """While this device measures itself its links would look slower than they are."""
    is_busy: bool = False
    """While requests run, probes get a small share of a link."""
    _targets: dict[str, Target] = field(default_factory=dict)
    _outstanding: Outstanding | None = None
    _nonce: int = 0

    # --- questions ------------------------------------------------------------------------

    def is_settled(self) -> bool:
        """Every tracked link has been measured, or did not answer."""
        return all(target.settled for target in self._targets.values())

    def figures(self) -> tuple[LinkFigures, ...]:
        """Of links to present members, sorted by name."""
        return tuple(self.known[name] for name in sorted(self._targets) if name in self.known)

    def next_deadline(self) -> float | None:
        if self._outstanding is not None:
            return self._outstanding.ends_at
        if self.is_paused:
            return None
        return min(map(self._due_at, self._targets.values()), default=None)

    def _due_at(self, target: Target) -> float:
        return target.busy_next_at if self.is_busy else target.next_at

    # --- events ---------------------------------------------------------------------------

    def track(self, members: Iterable[Member], now: float) -> bool:
        """Measure the links to these members and to nobody else; True when one is new."""
        peers = {member.peer.name: member.peer for member in members}
        for name in [name for name in self._targets if name not in peers]:
            del self._targets[name]
        is_new = False
        for name, peer in peers.items():
            if name not in self._targets or self._targets[name].peer != peer:
                is_known = name in self.known
                self._targets[name] = Target(peer, now, now, settled=is_known)
                if is_known:
                    self._targets[name].found.append(self.known[name])
                is_new = True
        return is_new

    def on_echo(self, nonce: int, now: float) -> None:
        """Returns at once for an answer that is late, doubled or unasked."""
        waiting = self._outstanding
        if waiting is None or waiting.nonce != nonce:
            return
        self._outstanding = None
        target = self._targets.get(waiting.name)
        if target is None:
            return
        # A round trip of 0 us is impossible, whatever a coarse clock says.
        times = target.small_us if waiting.n_bytes == SMALL_BYTES else target.big_us
        times.append(max(1, round((now - waiting.sent_at) * 1e6)))
        if len(target.big_us) >= ROUNDS:
            self._conclude(target, now)

    def tick(self, members: dict[str, Member], now: float) -> list[Effect]:
        effects: list[Effect] = []
        waiting = self._outstanding
        if waiting is not None:
            if waiting.ends_at > now:
                return []
            self._outstanding = None
            effects += self._missed(waiting.name, now)
        due = [t for name, t in sorted(self._targets.items()) if self._due_at(t) <= now]
        if due and not self.is_paused:
            # Links that keep somebody waiting go first, then the one waiting for longest.
            target = min(due, key=lambda t: (t.settled, self._due_at(t), t.peer))
            effects.append(self._probe(target, members[target.peer.name], now))
        return effects

    # --- measuring ------------------------------------------------------------------------

    def _probe(self, target: Target, member: Member, now: float) -> SendProbe:
        is_small = len(target.small_us) < ROUNDS
        n_bytes = SMALL_BYTES if is_small else BIG_BYTES[target.size_index]
        timing, known = self.timing, self.known.get(target.peer.name)
        patience = timing.probe_small_timeout_s if is_small else timing.probe_big_timeout_s
        patience += known.carry_s(AHEAD_BYTES) if known is not None else 0.0
        self._nonce += 1
        ends_at = now + patience
        self._outstanding = Outstanding(self._nonce, target.peer.name, n_bytes, now, ends_at)
        return SendProbe(member.address, self._nonce, n_bytes)

    def _missed(self, name: str, now: float) -> list[Effect]:
        target = self._targets.get(name)
        if target is None:
            return []
        target.failures += 1
        if target.failures < ATTEMPTS:
            return []
        self.known.pop(name, None)
        target.failures, target.settled = 0, True
        target.small_us, target.big_us, target.size_index = [], [], 0
        target.found.clear()
        target.taken_s = 0.0
        target.next_at = target.busy_next_at = now + self.timing.contact_max_s
        text = f"link to {target.peer}: no answer to {ATTEMPTS} probes, held unusable"
        return [Log(text, "warning")]

    def _conclude(self, target: Target, now: float) -> None:
        small_us, big_us = min(target.small_us[1:]), min(target.big_us[1:])
        target.taken_s += sum(target.big_us) * 1e-6
        n_bytes = BIG_BYTES[target.size_index]
        target.big_us = []
        is_largest = target.size_index == len(SHOWS_US)
        if not is_largest and big_us - small_us < SHOWS_US[target.size_index]:
            target.size_index += 1
            return
        target.small_us, target.size_index = [], 0
        target.failures, target.settled = 0, True
        new = _figures(target.peer.name, n_bytes, small_us, big_us)
        trips_us = [_trips_us(one, n_bytes) for one in target.found]
        smalls_us, bigs_us = zip((small_us, big_us), *trips_us, strict=True)
        best = _figures(target.peer.name, n_bytes, min(smalls_us), min(bigs_us))
        target.found.append(new)
        is_doubtful = _is_far_off(best, new)
        wait_s = self.timing.link_doubt_s if is_doubtful else self.timing.link_refresh_s
        target.next_at = now + wait_s
        target.busy_next_at = now + max(wait_s, target.taken_s / BUSY_SHARE)
        target.taken_s = 0.0
        old = self.known.get(target.peer.name)
        if old is None or _has_moved(old, best):
            self.known[target.peer.name] = best


def _figures(to: str, n_bytes: int, small_us: int, big_us: int) -> LinkFigures:
    """From a small round trip and one of so many bytes."""
    transfer_us = max(1, big_us - small_us)
    bytes_per_s = (n_bytes - SMALL_BYTES) * 1_000_000 // transfer_us
    bytes_per_s = min(max(1, bytes_per_s), BYTES_PER_S_MAX)
    # A small probe is about as long as a frame with a token, and so is its answer.
    delay_us = small_us // 2 - FRAME_OVERHEAD_BYTES * 1_000_000 // bytes_per_s
    return LinkFigures(to, max(1, delay_us), 0, bytes_per_s)


def _trips_us(figures: LinkFigures, n_bytes: int) -> tuple[int, int]:
    """What they say that a small round trip takes, and one of so many bytes."""
    small_us = 2 * (figures.delay_us + FRAME_OVERHEAD_BYTES * 1_000_000 // figures.bytes_per_s)
    return small_us, small_us + (n_bytes - SMALL_BYTES) * 1_000_000 // figures.bytes_per_s


def _is_far_off(best: LinkFigures, new: LinkFigures) -> bool:
    """More than noise is."""
    return new.delay_us > 2 * best.delay_us or 2 * new.bytes_per_s < best.bytes_per_s


def _has_moved(old: LinkFigures, new: LinkFigures) -> bool:
    pairs = ((old.delay_us, new.delay_us), (old.bytes_per_s, new.bytes_per_s))
    return any(abs(b - a) > MOVED_BY * a for a, b in pairs)
