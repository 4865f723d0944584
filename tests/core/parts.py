"""What core tests are built from: identities, members, a plan on three peers, and who got what."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

from edgeshard_p2p.core.effects import Effect, Send
from edgeshard_p2p.core.gossip import Gossip
from edgeshard_p2p.core.ids import PeerId, RequestId, UnitRange
from edgeshard_p2p.core.membership import Membership
from edgeshard_p2p.core.messages import (
    Address,
    ControlMessage,
    Delta,
    Identity,
    MemberState,
    Update,
)
from edgeshard_p2p.core.model_spec import ModelSpec
from edgeshard_p2p.core.plan import Plan, Stage, Workload
from edgeshard_p2p.core.records import Record, RecordValue
from edgeshard_p2p.core.timing import Timing

TIMING = Timing()
A, B, C, D = (PeerId(name, 1) for name in "abcd")

MODEL = ModelSpec(
    name="tiny",
    digest="0" * 64,
    family="llama",
    hidden_size=8,
    vocab_size=100,
    max_context=256,
    embedding_params=1000,
    block_params=(1000,) * 4,
    head_params=1000,
    tied_params=0,
    kv_width=8,
)
WORKLOAD = Workload("fp32", "exact", 4, context=256, batch=2)

PLAN = Plan(
    MODEL.digest,
    WORKLOAD,
    sources=(A,),
    entry_end=2,
    stages=(Stage(B, UnitRange(2, 4)), Stage(C, UnitRange(4, 6))),
)
"""0-1 a | 2-3 b | 4-5 c"""
SOLO = Plan(MODEL.digest, WORKLOAD, sources=(A,), entry_end=6, stages=())
"""0-5 a"""

T = TypeVar("T")


def address(name: str) -> Address:
    return Address(name, 7911)


def identity(peer: PeerId, install: str = "", host: str = "") -> Identity:
    install_id = (install or peer.name).encode().hex().ljust(16, "0")[:16]
    return Identity(peer, install_id, address(host or peer.name))


def membership(*others: PeerId, me: PeerId = A, seed: int = 1) -> Membership:
    """Of ``me``, who believes ``others`` alive and has no news of them to tell."""
    made = Membership(identity(me), TIMING, Random(seed))
    for peer in others:
        made.apply(alive(peer), 0.0)
    made.changes.clear()
    made._rumours.clear()
    return made


def gossip(me: PeerId = A) -> Gossip:
    return Gossip(me, Random(1), TIMING.gossip_period_s)


def update(peer: PeerId, incarnation: int, state: MemberState, **who: str) -> Update:
    return Update(identity(peer, **who), incarnation, state)


def alive(peer: PeerId, incarnation: int = 0, **who: str) -> Update:
    return update(peer, incarnation, MemberState.ALIVE, **who)


def suspect(peer: PeerId, incarnation: int = 0) -> Update:
    return update(peer, incarnation, MemberState.SUSPECT)


def dead(peer: PeerId, incarnation: int = 0) -> Update:
    return update(peer, incarnation, MemberState.DEAD)


def left(peer: PeerId, incarnation: int = 0) -> Update:
    return update(peer, incarnation, MemberState.LEFT)


def publish_as(owner: PeerId, value: RecordValue, version: int, into: Gossip) -> None:
    """Have ``into`` know this record of ``owner`` (whom its membership must know)."""
    known = membership(owner, me=into.me)
    into.on_delta(Delta((Record(owner, version, value),), ()), known)


def request(sequence: int = 1, source: PeerId = A) -> RequestId:
    return RequestId(source, sequence)


def of(kind: type[T], effects: Sequence[Any]) -> list[T]:
    """The effects (or steps) of one kind, in order."""
    return [effect for effect in effects if isinstance(effect, kind)]


def sent(effects: Sequence[Effect], kind: type[T]) -> list[tuple[str, T]]:
    """(host, message) of the control messages of one kind, in order."""
    found: list[tuple[str, T]] = []
    for effect in of(Send, effects):
        message: ControlMessage = effect.message
        if isinstance(message, kind):
            found.append((effect.to.host, message))
    return found


def some(value: T | None) -> T:
    """``value``, which must be there."""
    assert value is not None
    return value
