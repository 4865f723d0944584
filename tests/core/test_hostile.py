"""What a peer inside the secret could send to do harm, and does not."""

from __future__ import annotations

from random import Random

import pytest

from edgeshard_p2p.core import messages as msg
from edgeshard_p2p.core.effects import Send
from edgeshard_p2p.core.events import FrameReceived, MessageReceived, Started
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import Address, Identity, MemberState, Update
from edgeshard_p2p.core.peer import CoreConfig, PeerCore
from edgeshard_p2p.core.records import HeldRecord, Record, Setting
from edgeshard_p2p.core.serving import Serving

ME = Identity(PeerId("me", 1), "1" * 16, Address("127.0.0.1", 7911))
THEM = Identity(PeerId("them", 1), "2" * 16, Address("127.0.0.1", 7921))


@pytest.fixture
def core() -> PeerCore:
    """A peer that has met one other."""
    core = PeerCore(CoreConfig(ME, True, 10**9, 2), Random(1))
    core.handle(Started(), 0.0)
    core.handle(MessageReceived(THEM.peer, msg.Hello(THEM, 0)), 0.1)
    return core


def sent(core: PeerCore, sender: PeerId, message: msg.ControlMessage) -> list[Send]:
    effects = core.handle(MessageReceived(sender, message), 0.2)
    return [effect for effect in effects if isinstance(effect, Send)]


def test_a_namesake_in_its_first_generation_is_refused(core: PeerCore) -> None:
    namesake = Identity(PeerId("me", 1), "3" * 16, Address("127.0.0.1", 7931))
    answers = sent(core, namesake.peer, msg.Hello(namesake, 0))
    refused = [answer for answer in answers if isinstance(answer.message, msg.Refused)]
    assert [(answer.to, answer.message.reason) for answer in refused] == [  # type: ignore[union-attr]
        (namesake.address, "name_taken")
    ]


def test_numbers_that_leave_no_room_above_are_not_believed(core: PeerCore) -> None:
    made_up = Update(ME, 2**48, MemberState.DEAD)
    sent(core, THEM.peer, msg.News((made_up,)))
    assert core.membership.incarnation == 0
    setting = Setting("batch", 2**48, THEM.peer, 9)
    sent(core, THEM.peer, msg.Delta((), (setting,)))
    assert "batch" not in core.gossip.settings


def test_a_probe_is_echoed_to_members_only(core: PeerCore) -> None:
    def probe(sender: PeerId) -> FrameReceived:
        header = msg.FrameHeader(
            1, msg.FrameKind.PROBE, sender.tag, bytes(8), 0, 0, 0, 0, 0, 0, 0, 0, (), ()
        )
        return FrameReceived(header, body=msg.ProbeBody(sender, 7))

    echoes = core.handle(probe(THEM.peer), 0.2)
    assert Send(THEM.address, msg.LinkEcho(7)) in echoes
    stranger = core.handle(probe(PeerId("stranger", 1)), 0.2)
    assert not any(isinstance(e, Send) and isinstance(e.message, msg.LinkEcho) for e in stranger)


def test_a_record_that_is_not_believed_frees_nothing(
    core: PeerCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older one, one of a stranger, and one of this peer itself."""
    freed: list[tuple[PeerId, int]] = []

    def free_below(self: Serving, owner: PeerId, below: int, now: float) -> list[Send]:
        freed.append((owner, below))
        return []

    monkeypatch.setattr(Serving, "free_below", free_below)
    true = Record(THEM.peer, 7, HeldRecord(oldest_live=3))
    for owner, version in ((THEM.peer, 6), (PeerId("stranger", 1), 9), (ME.peer, 2**48)):
        made_up = Record(owner, version, HeldRecord(oldest_live=2**48))
        sent(core, THEM.peer, msg.Delta((true, made_up), ()))
    assert set(freed) == {(THEM.peer, 3)}
