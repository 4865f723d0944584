"""What this peer believes of one other, which news changes it, and one question put to it.

Knows nothing of when to ask, or of who is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import Address, Identity, MemberState, Update

PRESENT = (MemberState.ALIVE, MemberState.SUSPECT)
NEWS_FANOUT = 8
"""Members that are told what should not wait for the next probe."""


@dataclass(slots=True)
class Member:
    """What this peer believes of another."""

    identity: Identity
    incarnation: int
    state: MemberState
    since: float
    missed_direct: int = 0
    is_refused: bool = False
    """Its port has refused this peer, and nothing was heard of it since."""
    is_missed: bool = False
    """A helper got no answer from it either, and nothing was heard of it since."""

    @classmethod
    def of(cls, update: Update, known: Member | None, now: float) -> Member:
        """As ``update`` says.  What was found out about it since it spoke last stays found out."""
        member = cls(update.identity, update.incarnation, update.state, now)
        if known is not None and (known.peer, known.incarnation) == (
            member.peer,
            update.incarnation,
        ):
            member.is_refused, member.is_missed = known.is_refused, known.is_missed
        return member

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

    def answered(self, is_direct: bool) -> None:
        self.missed_direct = 0 if is_direct else self.missed_direct + 1
        self.is_refused = self.is_missed = False


@dataclass(slots=True)
class Probe:
    """One probe of one member: ``ask_helpers_at`` ends the direct part, ``ends_at`` the whole."""

    target: PeerId
    ask_helpers_at: float | None
    ends_at: float
    on_behalf_of: tuple[Address, int] | None = None

    def is_asking_helpers(self, target: PeerId) -> bool:
        is_own = self.on_behalf_of is None and self.target == target
        return is_own and self.ask_helpers_at is None

    def end_for_asker(self, target: PeerId, now: float) -> None:
        """Whoever asked need not wait for a silence to last that has been explained."""
        if self.on_behalf_of is not None and self.target == target:
            self.ends_at = now

    def put_off(self, by_s: float) -> None:
        self.ends_at += by_s
        if self.ask_helpers_at is not None:
            self.ask_helpers_at += by_s


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """A belief changed, or a departure was forgotten (then ``was`` is the member's state still);
    ``was`` is None for a member that was not known."""

    member: Member
    was: MemberState | None
    replaced: PeerId | None = None
    """The older generation that this one takes the place of."""


def neighbours(ring: list[str], me: str) -> list[str]:
    """The one before ``me`` in ``ring`` and the one after it; nobody where ``me`` is not in it."""
    if me not in ring:
        return []
    here = ring.index(me)
    return sorted({ring[here - 1], ring[(here + 1) % len(ring)]} - {me})


def first_to_tell(present: list[Member], circle: Sequence[str], rng: Random) -> list[Member]:
    """Members of the circle before others, which are drawn."""
    if len(present) <= NEWS_FANOUT:
        return present
    near = [member for member in present if member.peer.name in circle]
    if len(near) >= NEWS_FANOUT:
        return rng.sample(near, NEWS_FANOUT)
    others = [member for member in present if member.peer.name not in circle]
    return near + rng.sample(others, NEWS_FANOUT - len(near))


def supersedes(update: Update, known: Member) -> bool:
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


def is_clash(update: Update, known: Member) -> bool:
    """Whether a device that lost its state directory uses a generation that it had before."""
    mine, theirs = known.identity, update.identity
    is_device = mine.address == theirs.address and mine.install_id != theirs.install_id
    return is_device and theirs.peer.generation <= mine.peer.generation
