"""Getting in, and getting together again: the addresses this peer calls on until somebody there
is a present member.

Join addresses and those of dead members are tried for ever, backing off, so that a healed
partition meets again.  Knows nothing of probing or of plans.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeshard_p2p.core.effects import Effect, Log, SaveGeneration, Send, Stop
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.member import Member
from edgeshard_p2p.core.membership import BELIEVABLE_MAX, Membership
from edgeshard_p2p.core.messages import (
    WIRE_MAX,
    WIRE_MIN,
    Address,
    Hello,
    Identity,
    MemberState,
    Refused,
    Update,
    Welcome,
)
from edgeshard_p2p.core.records import Setting
from edgeshard_p2p.core.timing import Timing

CONTACTS_MAX = 256
DOUBT_AFTER = 5


@dataclass(slots=True)
class Contact:
    next_at: float
    backoff_s: float
    is_join: bool
    """Named by the operator: kept however long it stays silent."""
    n_calls: int = 0


@dataclass(slots=True)
class Join:
    timing: Timing
    started_at: float = 0.0
    has_met: bool = False
    """Somebody has welcomed this peer: from now on nothing it hears ends it."""
    contacts: dict[Address, Contact] = field(default_factory=dict)

    def add(self, address: Address, now: float, is_join: bool = False) -> None:
        known = self.contacts.get(address)
        if known is not None:
            known.is_join |= is_join
            known.next_at = min(known.next_at, now)
        elif len(self.contacts) < CONTACTS_MAX:
            self.contacts[address] = Contact(now, self.timing.contact_first_s, is_join)

    # --- messages -------------------------------------------------------------------------

    def on_hello(
        self, hello: Hello, settings: tuple[Setting, ...], membership: Membership, now: float
    ) -> list[Effect]:
        them = hello.identity
        if them.install_id == membership.me.install_id:
            return []
        refusal = self._refusal(hello, membership)
        if refusal is not None:
            text = f"refused {them.peer} at {them.address}: {refusal.detail}"
            return [Send(them.address, refusal), Log(text, "warning")]
        known_generation = _generation_of_another_life(membership.members.get(them.peer.name), them)
        effects = membership.apply(Update(them, hello.incarnation, MemberState.ALIVE), now)
        welcome = Welcome(
            membership.me,
            membership.incarnation,
            known_generation,
            membership.all_updates(),
            settings,
            max(0, round((now - self.started_at) * 1e3)),
        )
        effects.append(Send(them.address, welcome))
        if not self.has_met:
            self.add(them.address, now)
            effects.append(self._hello(them.address, membership))
        return effects

    def _refusal(self, hello: Hello, membership: Membership) -> Refused | None:
        them = hello.identity
        if hello.wire_min > WIRE_MAX or hello.wire_max < WIRE_MIN:
            detail = (
                f"{them.peer} speaks wire versions {hello.wire_min}-{hello.wire_max}, "
                f"this swarm {WIRE_MIN}-{WIRE_MAX}; install the same release on both"
            )
            return Refused("wire_version", detail)
        known = membership.members.get(them.peer.name)
        is_same_name = them.peer.name == membership.me.peer.name or (
            known is not None and known.is_present
        )
        holder = membership.me if known is None else known.identity
        if is_same_name and not holder.is_same_device(them):
            detail = (
                f"the name {them.peer.name} belongs to the peer at {holder.address}; "
                "start this one with another --name"
            )
            return Refused("name_taken", detail)
        return None

    def on_welcome(self, welcome: Welcome, membership: Membership, now: float) -> list[Effect]:
        self.has_met = True
        effects: list[Effect] = []
        known = welcome.known_generation
        if membership.me.peer.generation <= known <= BELIEVABLE_MAX:
            # The state directory was lost: take a life later than any that was seen.
            effects.append(SaveGeneration(known + 1))
        them = Update(welcome.identity, welcome.incarnation, MemberState.ALIVE)
        return effects + membership.apply_all((*welcome.updates, them), now)

    def on_refused(self, sender: PeerId, refused: Refused) -> list[Effect]:
        if self.has_met:
            return [Log(f"{sender} refused this peer: {refused.detail}", "warning")]
        return [Stop(2, f"{sender} refused this peer: {refused.detail}")]

    # --- time -----------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        return min((contact.next_at for contact in self.contacts.values()), default=None)

    def tick(self, membership: Membership, now: float) -> list[Effect]:
        effects: list[Effect] = []
        present = {member.address for member in membership.present()} | {membership.me.address}
        for address, contact in sorted(self.contacts.items()):
            if contact.next_at > now:
                continue
            contact.next_at = now + contact.backoff_s
            contact.backoff_s = min(2 * contact.backoff_s, self.timing.contact_max_s)
            if address not in present:
                effects.append(self._hello(address, membership))
                effects += self._doubt(address, contact)
            elif not contact.is_join:
                del self.contacts[address]
        return effects

    def _doubt(self, address: Address, contact: Contact) -> list[Effect]:
        """Say once, after some calls, that a join address has not answered."""
        contact.n_calls += 1
        if contact.n_calls != DOUBT_AFTER or not contact.is_join:
            return []
        causes = "is a peer running there, can it be reached, is it the same --swarm?"
        return [Log(f"no answer from {address} yet: {causes}", "warning")]

    def _hello(self, address: Address, membership: Membership) -> Send:
        return Send(address, Hello(membership.me, membership.incarnation))


def _generation_of_another_life(known: Member | None, them: Identity) -> int:
    """The generation under which ``known`` stands in the way of ``them``, or 0: a later one of
    the same device, or one of a device (or a state directory) that is gone."""
    if known is None:
        return 0
    is_other_device = known.identity.install_id != them.install_id
    is_later = known.peer.generation > them.peer.generation
    return known.peer.generation if is_other_device or is_later else 0
