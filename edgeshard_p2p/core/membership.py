"""Who is here: SWIM (Das, Gupta, Motivala 2002, sections 3 and 4) with incarnations.

Beliefs about members, probing, suspicion and refutation.  A belief changes only to one that is
newer in (generation, incarnation, state); only a member itself raises its incarnation.

Silence takes its time; a port that refuses is evidence at once.  A suspicion is short where this
peer was refused and a helper gets no answer either: one peer alone may stand before a firewall.
Knows nothing of plans, settings or how a peer was found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil, log2
from random import Random

from edgeshard_p2p.core.effects import Effect, Log, SaveGeneration, Send
from edgeshard_p2p.core.events import ConnectionLost
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.member import (
    PRESENT,
    Member,
    MemberChanged,
    Probe,
    first_to_tell,
    is_clash,
    neighbours,
    supersedes,
)
from edgeshard_p2p.core.messages import (
    Ack,
    Address,
    Identity,
    MemberState,
    Nack,
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


@dataclass(slots=True)
class Membership:
    me: Identity
    timing: Timing
    rng: Random
    incarnation: int = 0
    refutations: int = 0
    members: dict[str, Member] = field(default_factory=dict)
    changes: list[MemberChanged] = field(default_factory=list)
    circle: tuple[str, ...] = ()
    """Members that depend on each other, in the same order for all.  If this peer is one of them
    it probes its neighbours there in every period, however large the swarm, and tells these
    members its news first."""
    _probes: dict[int, Probe] = field(default_factory=dict)
    _next_probe_at: float | None = None
    _order: list[str] = field(default_factory=list)
    _nonce: int = 0
    _rumours: dict[str, tuple[Update, int]] = field(default_factory=dict)

    # --- questions ------------------------------------------------------------------------

    def present(self) -> list[Member]:
        return [member for _, member in sorted(self.members.items()) if member.state in PRESENT]

    def revision(self) -> tuple[int | str, ...]:
        """Changes with everything here that this peer's records or plans depend on."""
        return (len(self.changes), self.incarnation, *self.silent())

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
        return (self.own_update(), *(known.update() for _, known in sorted(self.members.items())))

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
        if member.state is not MemberState.SUSPECT:
            return member.since + self.timing.forget_s
        timing, is_gone = self.timing, self._is_gone(member)
        return member.since + (timing.gone_suspicion_s if is_gone else timing.suspicion_s)

    def _is_gone(self, member: Member) -> bool:
        """Whether this peer was refused and somebody else gets no answer either; with nobody to
        ask its own word has to do."""
        if member.is_missed or not member.is_refused:
            return member.is_refused
        return all(m.is_refused or m.state is MemberState.SUSPECT for m in self.present())

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
        if member is not None:
            member.answered(is_direct=sender == member.peer)
        if probe.on_behalf_of is not None:
            asker, nonce = probe.on_behalf_of
            return [*effects, Send(asker, Ack(nonce, ack.target, self._updates()))]
        return effects

    def on_nack(self, _: PeerId, nack: Nack, now: float) -> list[Effect]:
        probe, member = self._probes.get(nack.nonce), self.members.get(nack.target.name)
        if probe is None or member is None or not probe.target == member.peer == nack.target:
            return []
        member.is_missed = True
        return self._suspect_gone(member, now)

    def on_ping_req(self, sender: PeerId, req: PingReq, now: float) -> list[Effect]:
        effects = self.apply_all(req.updates, now)
        asker, target = self.address_of(sender), self.members.get(req.target)
        if asker is None or target is None:
            return effects
        if target.is_refused:
            return [*effects, Send(asker, Nack(req.nonce, target.peer))]
        ends_at = now + self.timing.probe_period_s
        return [*effects, self._ping(target, Probe(target.peer, None, ends_at, (asker, req.nonce)))]

    def on_news(self, news: News, now: float) -> list[Effect]:
        return self.apply_all(news.updates, now)

    def on_connection_lost(self, event: ConnectionLost, now: float) -> list[Effect]:
        """Ask at once about the member that was there, this peer's helpers too."""
        effects: list[Effect] = []
        for member in [member for member in self.present() if member.address == event.address]:
            if event.is_refused:
                member.is_refused = True
                for probe in self._probes.values():
                    probe.end_for_asker(member.peer, now)
                # One that could have been asked may be gone as well.
                effects += [e for m in self.present() for e in self._suspect_gone(m, now)]
            if not any(p.is_asking_helpers(member.peer) for p in self._probes.values()):
                effects += self._probe(member, now, helps_at=now)
        return [*effects, *self._tick_probes(now)]

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
        if is_clash(update, known):
            # It does not know that it lived before: tell it, and it takes a later generation.
            return [Send(known.address, News((known.update(),)))]
        return self._believe(update, known, now) if supersedes(update, known) else []

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
        member = Member.of(update, known, now)
        self.members[member.peer.name] = member
        self._spread(update)
        if was is update.state:
            return []
        self.changes.append(MemberChanged(member, was, replaced))
        before = was.name if was is not None else (f"instead of {replaced}" if replaced else "new")
        return [Log(f"{member.peer} {before} -> {member.state.name} (inc {member.incarnation})")]

    def broadcast(self, update: Update) -> list[Effect]:
        """Tell up to eight present members now, and a suspect; the rest hears by piggyback."""
        self._spread(update)
        chosen = self.first_to_tell()
        suspect = self.members.get(update.identity.peer.name)
        if suspect is not None and suspect.is_present and suspect not in chosen:
            # Of many it would hear by chance, and perhaps too late to refute.
            chosen = [suspect, *chosen]
        return [Send(member.address, News((update,))) for member in chosen]

    def first_to_tell(self) -> list[Member]:
        return first_to_tell(self.present(), self.circle, self.rng)

    def leave(self) -> list[Effect]:
        return self.broadcast(Update(self.me, self.incarnation, MemberState.LEFT))

    # --- time -----------------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        self._allow_for_lateness(now)
        return [
            *self._tick_probes(now),
            *self._tick_suspects(now),
            *self._tick_next_probe(now),
        ]

    def _allow_for_lateness(self, now: float) -> None:
        """While this peer itself did not run, or ran late, it could not have heard the others: that
        time does not count against them (as "local health" in Dadgar, Phillips, Currey 2018)."""
        due = self.next_deadline()
        late_s = now - due if due is not None else 0.0
        if late_s <= 0:
            return
        for probe in self._probes.values():
            probe.put_off(late_s)
        for member in self.members.values():
            if member.state is MemberState.SUSPECT:
                member.since += late_s

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
        if probe.on_behalf_of is not None:
            return _nack(probe)
        if member is None or member.peer != probe.target:
            return []
        return self._suspect(member, now)

    def _suspect_gone(self, member: Member, now: float) -> list[Effect]:
        return self._suspect(member, now) if self._is_gone(member) else []

    def _suspect(self, member: Member, now: float) -> list[Effect]:
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
        targets = self._neighbours()
        following = self._next_target()
        if following is not None and following not in targets:
            targets.append(following)
        helps_at = now + self.timing.ack_timeout_s
        return [e for target in targets for e in self._probe(target, now, helps_at)]

    def _neighbours(self) -> list[Member]:
        """Of the present members of the circle, the one before this peer and the one after it."""
        here = {self.me.peer.name, *(member.peer.name for member in self.present())}
        ring = [name for name in self.circle if name in here]
        return [self.members[name] for name in neighbours(ring, self.me.peer.name)]

    def _probe(self, target: Member, now: float, helps_at: float) -> list[Effect]:
        ends_at = now + 2 * self.timing.probe_period_s
        return [self._ping(target, Probe(target.peer, helps_at, ends_at))]

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


def _nack(probe: Probe) -> list[Effect]:
    """To whoever asked for this probe, in vain."""
    assert probe.on_behalf_of is not None
    asker, nonce = probe.on_behalf_of
    return [Send(asker, Nack(nonce, probe.target))]
