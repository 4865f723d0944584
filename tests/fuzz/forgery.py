"""What can be read and is not true: messages again, of strangers, for other plans, edges, epochs
and attempts, and what the core has to say to each.

A frame that a member's own edge would carry next, or that it would carry wrongly, can be told
from a true one by nobody: who knows the swarm's secret can lie.  Those are ``None`` here.
"""

from __future__ import annotations

import struct
from random import Random

from msgspec.structs import replace

from edgeshard_p2p.core import messages as msg
from edgeshard_p2p.core.events import FrameReceived
from edgeshard_p2p.core.ids import PeerId, RequestId
from edgeshard_p2p.core.messages import FrameHeader, FrameKind, MemberState
from edgeshard_p2p.core.peer import PeerCore
from edgeshard_p2p.core.records import HeldRecord, Record, Setting
from edgeshard_p2p.core.work import TensorRef
from edgeshard_p2p.sim.simulator import SWARM
from edgeshard_p2p.wire.codec import decode_control, encode_control
from edgeshard_p2p.wire.frames import decode_frame, encode_header
from tests.fuzz.wired import CONTROL, DATA, Input, Wired

STRANGER = PeerId("stranger", 3)
FOREIGN = b"foreign!"
HARMLESS = "harmless"
"""Taken for what it is, with nothing to refuse: a repeat, or news that are none."""


def verdict_on_frame(swarm: Wired, core: PeerCore, parts: tuple[bytes, ...]) -> str | None:
    """Under which kind the core counts a frame that can be read; None where it is believed."""
    header, payload, body = decode_frame(parts)
    if isinstance(body, msg.ProbeBody):
        return None if _is_awaited(swarm, body) else HARMLESS
    flow = core.serving.flows.get(header.plan_id)
    if flow is None:
        is_retired = header.plan_id in core.serving.retired
        return "plan_retired" if is_retired else "no_such_plan"
    if header.kind is not FrameKind.EDGE and not core.planning.is_loaded(header.plan_id):
        return "not_loaded"
    edge = flow.in_.get(header.edge)
    if edge is None or header.sender != edge.sender_tag:
        return "not_my_edge"
    if header.kind is FrameKind.EDGE:
        if header.epoch == edge.epoch:
            return HARMLESS
        return "out_of_turn" if header.epoch < edge.epoch else None
    tensor = TensorRef(0, 0) if header.kind is FrameKind.HIDDEN and payload else None
    tokens = ()
    if header.kind is FrameKind.TOKENS:
        tokens = struct.unpack(f"<{len(payload) // 4}i", payload)
    fits = flow._fits(edge.spec, FrameReceived(header, tensor, tokens, body))
    if header.epoch == edge.epoch and (header.sequence == edge.received + 1 or not fits):
        return None
    if not fits:
        return "does_not_fit"
    return "edge_not_open" if header.epoch > edge.epoch else "out_of_turn"


def _is_awaited(swarm: Wired, probe: msg.ProbeBody) -> bool:
    """Whether the peer whose name is on it waits for the echo: then it would time the wrong one."""
    asking = [peer.core for peer in swarm.lives() if peer.id == probe.sender]
    awaited = [core.links._outstanding for core in asking if core is not None]
    return any(one is not None and one.nonce == probe.nonce for one in awaited)


def forged_frame(rng: Random, swarm: Wired, good: Input) -> Input:
    """A true frame with other names or numbers on it."""
    header = decode_frame(good.parts)[0]
    members = [peer.id.tag for peer in swarm.peers.values()]
    plans = [bytes(8), rng.randbytes(8), header.plan]
    changes: dict[str, object] = {
        "kind": rng.choice(list(FrameKind)),
        "sender": rng.choice([*members, STRANGER.tag, bytes(8)]),
        "plan": rng.choice(plans),
        "edge": rng.choice((header.edge + 1, rng.randrange(12), 2**32 - 1)),
        "epoch": max(0, header.epoch + rng.choice((-2, -1, 1, 2, 2**40))),
        "sequence": max(0, header.sequence + rng.choice((-9, -1, 1, 2, 9, 2**40))),
        "numerics": rng.choice((0, 2, 2**32 - 1)),
        "dtype": rng.choice((0, 1, 2, 3, 9)),
        "shape": rng.choice(((), (0,), (0, 8), (1, 2**20), (2**32 - 1, 2**32 - 1), (3, 7))),
        "version": rng.choice((0, 2, 65535)),
        "groups": rng.choice(((), header.groups * 2, header.groups * 40)),
    }
    chosen = rng.sample(sorted(changes), rng.choice((1, 1, 2, 3)))
    forged = replace(header, **{name: changes[name] for name in chosen})
    payload = _fitting(rng, forged, good.parts[1])
    return Input(DATA, (encode_header(forged), payload))


def _fitting(rng: Random, header: FrameHeader, payload: bytes) -> bytes:
    """Mostly of the size that the header announces, so that more than the size is looked at."""
    item = {1: 4, 2: 2, 3: 4}.get(header.dtype, 1)
    n_bytes = item
    for extent in header.shape:
        n_bytes *= extent
    if header.kind in (FrameKind.HIDDEN, FrameKind.TOKENS):
        return (
            payload
            if rng.random() < 0.2 or n_bytes > 2**16
            else payload[:n_bytes].ljust(n_bytes, b"\1")
        )
    return payload if header.kind in (FrameKind.OPEN, FrameKind.PROBE) else b""


def forged_message(rng: Random, swarm: Wired, host: str) -> tuple[Input, str]:
    """A message that nobody should act on, and the kind under which it is counted."""
    core = swarm.doors(host).core
    others = sorted(member.peer for member in core.membership.present())
    sender = rng.choice(others)
    asked = sorted(core.serving.source.requests)
    request = rng.choice(asked) if asked else RequestId(core.me, 1)
    plan = core.planning.rollout.active or "0" * 16
    n_edges = 12
    far = rng.choice((2**30, 2**32 - 1))
    stranger = core.membership.me.__class__(STRANGER, "f" * 16, msg.Address("nowhere", 9))
    me = core.membership.me
    known = core.membership.members[sender.name]
    update = known.update()
    forgeries: list[tuple[msg.ControlMessage, PeerId, str]] = [
        # Of edges: of no plan, of no edge, by others than its receiver, of another epoch.
        (msg.EdgeAnswer("f" * 16, 0, 1), sender, "not_their_edge"),
        (msg.EdgeAnswer(plan, rng.randrange(n_edges), 1), STRANGER, "not_their_edge"),
        (msg.EdgeAnswer(plan, rng.randrange(n_edges), 2**40), sender, ""),
        (msg.FrameAck(plan, rng.randrange(n_edges), 1, 0, far), STRANGER, "not_their_edge"),
        (msg.FrameAck(plan, rng.randrange(n_edges), 2**40, far, far), sender, ""),
        (msg.FrameAck(plan, n_edges + 1, 1, 1, 9), sender, "not_their_edge"),
        (msg.FrameRefused(plan, 0, 1, 1, "not_my_edge"), STRANGER, "not_their_edge"),
        (msg.FrameRefused(plan, rng.randrange(n_edges), 2**40, 1, "x"), sender, ""),
        # Of requests: not by their stages, of other attempts, of nobody's.
        (msg.AttemptRefused(request, 1, 0, "missing_kv"), STRANGER, "not_theirs_to_say"),
        (msg.AttemptRefused(request, 1, far, "missing_kv"), sender, "not_theirs_to_say"),
        (msg.AttemptRefused(request, far, rng.randrange(4), "missing_kv"), sender, ""),
        (msg.AttemptRefused(RequestId(STRANGER, 1), 1, 0, "no"), sender, "not_theirs_to_say"),
        (msg.SlotAnswer(plan, request, far, "granted"), STRANGER, "not_theirs_to_say"),
        (msg.SlotAnswer(plan, request, 1, "overloaded"), STRANGER, "not_theirs_to_say"),
        (msg.SlotAnswer("f" * 16, request, 1, "overloaded"), sender, "not_theirs_to_say"),
        (msg.SlotReturn(plan, request, far), STRANGER, "not_theirs_to_say"),
        (msg.SlotReturn("f" * 16, RequestId(sender, 1), 1), sender, ""),
        (msg.SlotAsk(plan, request, 1, 0, True), sender, ""),
        (msg.SlotAsk("f" * 16, RequestId(sender, far), 1, far, True), sender, ""),
        (msg.SlotAsk(plan, RequestId(STRANGER, 1), 1, 0, True), STRANGER, ""),
        # Of members: old, impossible, about this peer, from nobody.
        (msg.Ack(2**40, sender, ()), sender, ""),
        (msg.Ack(1, STRANGER, ()), STRANGER, ""),
        (msg.Ping(1, ()), STRANGER, ""),
        (msg.PingReq(1, "nobody", ()), sender, ""),
        (msg.PingReq(1, sender.name, ()), STRANGER, ""),
        (msg.News((replace(update, incarnation=2**48, state=MemberState.DEAD),)), sender, ""),
        (msg.News((update,) * 512), sender, ""),
        (msg.News((msg.Update(stranger, 1, MemberState.DEAD),)), sender, ""),
        (msg.News((msg.Update(me, 2**48, MemberState.LEFT),)), sender, ""),
        (msg.Hello(replace(stranger, peer=me.peer), 0), STRANGER, ""),
        (msg.Hello(stranger, 0, 9, 9), STRANGER, ""),
        (msg.Refused("name_taken", "go away"), STRANGER, ""),
        # Of records and settings: this peer's own, of strangers, impossible ones.
        (msg.Delta((Record(me.peer, 2**48, HeldRecord()),), ()), sender, ""),
        (msg.Delta((Record(STRANGER, 1, HeldRecord()),), ()), sender, ""),
        (msg.Delta((Record(sender, 0, HeldRecord(oldest_live=2**48)),), ()), STRANGER, ""),
        (msg.Delta((), (Setting("batch", 2**48, sender, 9),)), sender, ""),
        (
            msg.Delta((), (Setting("batch", 9, sender, 10**6), Setting("x", 9, sender, 1))),
            sender,
            "",
        ),
        (msg.Digest((msg.OwnerVersion(STRANGER, 3, 2**48),) * 2048, "", False), sender, ""),
        (msg.Digest((), "0" * 16, True), STRANGER, ""),
        (msg.LinkEcho(2**40), sender, ""),
    ]
    message, by, kind = rng.choice(forgeries)
    return Input(CONTROL, (encode_control(SWARM, by, message),)), kind or HARMLESS


def of_another_swarm(good: Input) -> Input:
    sender, message = decode_control(SWARM, good.parts[0])
    return Input(CONTROL, (encode_control(FOREIGN, sender, message),))
