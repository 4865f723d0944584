"""Who is here: SWIM (Das, Gupta, Motivala 2002, sections 3 and 4) with incarnations.

Beliefs about members, probing, suspicion and refutation.  A belief changes only to one that is
newer in (generation, incarnation, state); only a member itself raises its incarnation.
Knows nothing of plans, settings or how a peer was found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil, log2
from random import Random

from edgeshard_p2p.core.effects import Effect, Log, SaveGeneration, Send
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import (
    Ack,
    Address,
    Identity,
    MemberState,
    News,
    Ping,
    PingReq,
    Update,
)
from edgeshard_p2p.core.timing import Timing

UPDATES_PER_MESSAGE = 8
INDIRECT_PROBES = 3
SILENT_AFTER = 3
"""Direct probes in a row that only a helper got answered: the member is seen one way only."""
MEMBERS_MAX = 500
BELIEVABLE_MAX = 2**40
"""Incarnations and generations count events; a number beyond this was made up, and believing it
would leave its owner no room above."""

PRESENT = (MemberState.ALIVE, MemberState.SUSPECT)


@dataclass(slots=True)
class Member:
    """What this peer believes of another."""

    identity: Identity
    incarnation: int
    state: MemberState
    since: float
    missed_direct: int = 0

    @property
    def peer(self) -> PeerId:
        return self.identity.peer

    @property
    def address(self) -> Address:
        return self.identity.address

    @property
    def is_present(self) -> bool:
        """Suspects count as present until they are dead."""
        return self.state in PRESENT

    def update(self) -> Update:
        return Update(self.identity, self.incarnation, self.state)


@dataclass(slots=True)
class Probe:
    """One probe of one member: ``ask_helpers_at`` ends the direct part, ``ends_at`` the whole."""

    target: PeerId
    ask_helpers_at: float | None
    ends_at: float
    on_behalf_of: tuple[Address, int] | None = None


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """A belief changed, or a departure was forgotten (then ``was`` is the member's state still);
    ``was`` is None for a member that was not known."""

    member: Member
    was: MemberState | None
    replaced: PeerId | None = None
    """The older generation that this one takes the place of."""


@dataclass(slots=True)
class Membership:
    me: Identity
    timing: Timing
    rng: Random
    incarnation: int = 0
    refutations: int = 0
    members: dict[str, Member] = field(default_factory=dict)
    changes: list[MemberChanged] = field(default_factory=list)
    _probes: dict[int, Probe] = field(default_factory=dict)
    _next_probe_at: float | None = None
    _order: list[str] = field(default_factory=list)
    _nonce: int = 0
    _rumours: dict[str, tuple[Update, int]] = field(default_factory=dict)

    # --- questions ------------------------------------------------------------------------

    def present(self) -> list[Member]:
        return [self.members[name] for name in sorted(self.members) if self._present(name)]

    def _present(self, name: str) -> bool:
        return self.members[name].is_present

    def is_present(self, peer: PeerId) -> bool:
        if peer == self.me.peer:
            return True
        member = self.members.get(peer.name)
        return member is not None and member.peer == peer and member.is_present

    def address_of(self, peer: PeerId) -> Address | None:
        """Where ``peer`` (this very generation) is, dead or alive."""
        if peer == self.me.peer:
            return self.me.address
        member = self.members.get(peer.name)
        return member.address if member is not None and member.peer == peer else None

    def silent(self) -> tuple[str, ...]:
        """Present members that answer helpers but not this peer."""
        return tuple(m.peer.name for m in self.present() if m.missed_direct >= SILENT_AFTER)

    def own_update(self) -> Update:
        return Update(self.me, self.incarnation, MemberState.ALIVE)

    def all_updates(self) -> tuple[Update, ...]:
        known = [self.members[name].update() for name in sorted(self.members)]
        return (self.own_update(), *known)

    def next_deadline(self) -> float | None:
        times = [self._next_probe_at] if self._next_probe_at is not None else []
        for probe in self._probes.values():
            times.append(probe.ends_at if probe.ask_helpers_at is None else probe.ask_helpers_at)
        belief_ends = (self._belief_ends_at(member) for member in self.members.values())
        times += [time for time in belief_ends if time is not None]
        return min(times, default=None)

    def _belief_ends_at(self, member: Member) -> float | None:
        """When a suspicion becomes a verdict, or a departure is forgotten."""
        if member.state is MemberState.ALIVE:
            return None
        is_suspect = member.state is MemberState.SUSPECT
        return member.since + (self.timing.suspicion_s if is_suspect else self.timing.forget_s)

    # --- messages -------------------------------------------------------------------------

    def on_ping(self, sender: PeerId, ping: Ping, now: float) -> list[Effect]:
        effects = self.apply_all(ping.updates, now)
        address = self.address_of(sender)
        if address is None:
            return effects
        return [*effects, Send(address, Ack(ping.nonce, self.me.peer, self._updates()))]

    def on_ack(self, sender: PeerId, ack: Ack, now: float) -> list[Effect]:
        effects = self.apply_all(ack.updates, now)
        probe = self._probes.get(ack.nonce)
        if probe is None or probe.target != ack.target:
            return effects
        del self._probes[ack.nonce]
        member = self.members.get(ack.target.name)
        if probe.on_behalf_of is not None:
            asker, nonce = probe.on_behalf_of
            return [*effects, Send(asker, Ack(nonce, ack.target, self._updates()))]
        if member is not None:
            member.missed_direct = 0 if sender == member.peer else member.missed_direct + 1
        return effects

    def on_ping_req(self, sender: PeerId, req: PingReq, now: float) -> list[Effect]:
        effects = self.apply_all(req.updates, now)
        asker, target = self.address_of(sender), self.members.get(req.target)
        if asker is None or target is None:
            return effects
        ends_at = now + self.timing.probe_period_s
        return [*effects, self._ping(target, Probe(target.peer, None, ends_at, (asker, req.nonce)))]

    def on_news(self, news: News, now: float) -> list[Effect]:
        return self.apply_all(news.updates, now)

    def verdict_on(self, sender: PeerId) -> list[Effect]:
        """A message from a member held dead is answered with that verdict, so it can refute.

        NOTE: this peer's own state goes with it, and first.  Where each holds the other dead, the
        refutation is then sent back at once; without it both would answer verdict with verdict
        until the next Hello.
        """
        member = self.members.get(sender.name)
        if member is None or member.peer != sender or member.state is not MemberState.DEAD:
            return []
        return [Send(member.address, News((self.own_update(), member.update())))]

    # --- beliefs --------------------------------------------------------------------------

    def apply_all(self, updates: tuple[Update, ...], now: float) -> list[Effect]:
        return [effect for update in updates for effect in self.apply(update, now)]

    def apply(self, update: Update, now: float) -> list[Effect]:
        peer = update.identity.peer
        if max(update.incarnation, peer.generation) > BELIEVABLE_MAX:
            return []
        if peer.name == self.me.peer.name:
            return self._apply_own(update)
        known = self.members.get(peer.name)
        if known is None:
            is_news = update.state in PRESENT and len(self.members) < MEMBERS_MAX
            return self._believe(update, None, now) if is_news else []
        if _is_clash(update, known):
            # It does not know that it lived before: tell it, and it takes a later generation.
            return [Send(known.address, News((known.update(),)))]
        return self._believe(update, known, now) if _supersedes(update, known) else []

    def _apply_own(self, update: Update) -> list[Effect]:
        """Somebody's word about this peer: refute it, or learn that a life was forgotten."""
        if not self.me.is_same_device(update.identity):
            return []
        generation = update.identity.peer.generation
        is_other_install = update.identity.install_id != self.me.install_id
        if generation + is_other_install > self.me.peer.generation:
            return [SaveGeneration(generation + 1)]
        if generation < self.me.peer.generation or update.state is MemberState.ALIVE:
            return []
        if update.incarnation < self.incarnation:
            return []
        self.incarnation = update.incarnation + 1
        self.refutations += 1
        text = f"refuting {update.state.name}: incarnation is now {self.incarnation}"
        return [Log(text), *self.broadcast(self.own_update())]

    def _believe(self, update: Update, known: Member | None, now: float) -> list[Effect]:
        was = known.state if known is not None else None
        replaced = None
        if known is not None and known.peer != update.identity.peer:
            was, replaced = None, known.peer
        member = Member(update.identity, update.incarnation, update.state, now)
        self.members[member.peer.name] = member
        self._spread(update)
        if was is update.state:
            return []
        self.changes.append(MemberChanged(member, was, replaced))
        before = was.name if was is not None else (f"instead of {replaced}" if replaced else "new")
        return [Log(f"{member.peer} {before} -> {member.state.name} (inc {member.incarnation})")]

    def broadcast(self, update: Update) -> list[Effect]:
        """Tell up to eight present members now; the rest hears by piggyback."""
        self._spread(update)
        present = self.present()
        chosen = present if len(present) <= 8 else self.rng.sample(present, 8)
        return [Send(member.address, News((update,))) for member in chosen]

    def leave(self) -> list[Effect]:
        return self.broadcast(Update(self.me, self.incarnation, MemberState.LEFT))

    # --- time -----------------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        return [
            *self._tick_probes(now),
            *self._tick_suspects(now),
            *self._tick_next_probe(now),
        ]

    def _tick_probes(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for nonce, probe in sorted(self._probes.items()):
            if probe.ends_at <= now:
                del self._probes[nonce]
                effects += self._probe_failed(probe, now)
            elif probe.ask_helpers_at is not None and probe.ask_helpers_at <= now:
                probe.ask_helpers_at = None
                effects += self._ask_helpers(nonce, probe)
        return effects

    def _ask_helpers(self, nonce: int, probe: Probe) -> list[Effect]:
        others = [m for m in self.present() if m.peer != probe.target]
        helpers = self.rng.sample(others, min(INDIRECT_PROBES, len(others)))
        request = PingReq(nonce, probe.target.name, self._updates())
        return [Send(helper.address, request) for helper in helpers]

    def _probe_failed(self, probe: Probe, now: float) -> list[Effect]:
        member = self.members.get(probe.target.name)
        if probe.on_behalf_of is not None or member is None or member.peer != probe.target:
            return []
        if member.state is not MemberState.ALIVE:
            return []
        suspicion = Update(member.identity, member.incarnation, MemberState.SUSPECT)
        return [*self._believe(suspicion, member, now), *self.broadcast(suspicion)]

    def _tick_suspects(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for name in sorted(self.members):
            member = self.members[name]
            ends_at = self._belief_ends_at(member)
            if ends_at is None or now < ends_at:
                continue
            if member.state is MemberState.SUSPECT:
                verdict = Update(member.identity, member.incarnation, MemberState.DEAD)
                effects += self._believe(verdict, member, now) + self.broadcast(verdict)
            else:
                # Its records go too: a later life under the same name counts them anew.
                del self.members[name]
                self.changes.append(MemberChanged(member, member.state))
        return effects

    def _tick_next_probe(self, now: float) -> list[Effect]:
        if self._next_probe_at is not None and now < self._next_probe_at:
            return []
        self._next_probe_at = now + self.timing.probe_period_s
        target = self._next_target()
        if target is None:
            return []
        ask_at = now + self.timing.ack_timeout_s
        ends_at = now + 2 * self.timing.probe_period_s
        return [self._ping(target, Probe(target.peer, ask_at, ends_at))]

    def _next_target(self) -> Member | None:
        """Round robin over a shuffled list (SWIM section 4.3): every member within 2n - 1."""
        while self._order:
            member = self.members.get(self._order.pop())
            if member is not None and member.is_present:
                return member
        self._order = [member.peer.name for member in self.present()]
        self.rng.shuffle(self._order)
        return self.members[self._order.pop()] if self._order else None

    def _ping(self, target: Member, probe: Probe) -> Send:
        self._nonce += 1
        self._probes[self._nonce] = probe
        # A suspect is told of the suspicion, whatever else there is to tell.
        about = () if target.state is MemberState.ALIVE else (target.update(),)
        return Send(target.address, Ping(self._nonce, self._updates(about)))

    # --- rumours --------------------------------------------------------------------------

    def _spread(self, update: Update) -> None:
        copies = 3 * ceil(log2(len(self.members) + 2))
        self._rumours[update.identity.peer.name] = (update, copies)

    def _updates(self, first: tuple[Update, ...] = ()) -> tuple[Update, ...]:
        """This peer's own state, then the rumours told least so far."""
        return (self.own_update(), *first, *self._take_rumours(UPDATES_PER_MESSAGE))

    def _take_rumours(self, n: int) -> Iterator[Update]:
        freshest = sorted(self._rumours.items(), key=lambda item: (-item[1][1], item[0]))[:n]
        for name, (update, copies) in freshest:
            if copies <= 1:
                del self._rumours[name]
            else:
                self._rumours[name] = (update, copies - 1)
            yield update


def _supersedes(update: Update, known: Member) -> bool:
    """Whether ``update`` is newer than what is believed."""
    new, old = update.identity.peer.generation, known.peer.generation
    if not update.identity.is_same_device(known.identity):
        # Another device under this name: only once the first is gone, and as a later life.
        return not known.is_present and new > old and update.state in PRESENT
    if new != old:
        return new > old
    if known.state is MemberState.LEFT:
        return False
    return (update.incarnation, update.state) > (known.incarnation, known.state)


def _is_clash(update: Update, known: Member) -> bool:
    """Whether a device that lost its state directory uses a generation that it had before."""
    mine, theirs = known.identity, update.identity
    is_device = mine.address == theirs.address and mine.install_id != theirs.install_id
    return is_device and theirs.peer.generation <= mine.peer.generation
