"""Input that asks for as much memory as it can, and how much reading it takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import msgspec

from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import (
    Address,
    Delta,
    FrameKind,
    Identity,
    MemberState,
    OwnerVersion,
    RowGroupHeader,
    Update,
)
from edgeshard_p2p.core.records import HeldRecord, Record
from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.core.work import TensorRef
from edgeshard_p2p.runtime.arrivals import Arrivals
from edgeshard_p2p.sim.simulator import SWARM
from edgeshard_p2p.wire.client import Run, encode_request
from edgeshard_p2p.wire.codec import CONTROL_BYTES_MAX, encode_control
from edgeshard_p2p.wire.frames import HEADER_BYTES_MAX, encode_probe
from tests.fuzz.wired import CLIENT, CONTROL, DATA, Input

ME = PeerId("a", 1)
SMALL = Update(Identity(ME, "0" * 16, Address("h", 1)), 0, MemberState.ALIVE)
GROUP = RowGroupHeader(0, 0, 0, 0, 0, 0, 0, 0)


def peak_bytes(given: Input) -> int:
    """Of Python's memory while this is read, up to the event that comes of it."""
    arrivals = Arrivals(
        ME,
        (SWARM,),
        post=lambda event: None,
        keep=lambda header, payload: TensorRef(0, 0),
        request=lambda identity, request: None,
        answer=lambda identity, answer: None,
    )
    tracemalloc.start()
    try:
        if given.door == CONTROL:
            arrivals.on_peer(memoryview(given.parts[0]))
        elif given.door == CLIENT:
            arrivals.on_client(b"client", memoryview(given.parts[0]))
        else:
            arrivals.on_frame([memoryview(part) for part in given.parts])
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def one_of_each() -> Iterator[Input]:
    record = Record(ME, 1, HeldRecord())
    yield Input(CONTROL, (encode_control(SWARM, ME, Delta((record,), ())),))
    yield Input(DATA, (bytes(encode_probe(ME, 1, 0)[0]), b""))
    yield Input(CLIENT, (encode_request(SWARM, Run("hello", True, 3, Sampling())),))


def largest() -> Iterator[Input]:
    """As many of the smallest elements as a message has room for, allowed or not."""
    for tag, rest, one in (
        (7, [], SMALL),
        (11, [[]], Record(ME, 0, HeldRecord())),
        (10, ["", False], OwnerVersion(ME, 1, 0)),
        (11, [[]], []),
        (7, [], None),
    ):
        for n in (512, CONTROL_BYTES_MAX // len(msgspec.msgpack.encode(one)) - 100):
            body = (tag, [one] * n, *rest)
            yield Input(CONTROL, (msgspec.msgpack.encode((1, SWARM, ME, body)),))
    yield Input(CONTROL, (bytes(CONTROL_BYTES_MAX),))
    yield Input(
        CLIENT, (msgspec.msgpack.encode((SWARM, {"type": "run", "prompt": "\u20ac" * 300_000})),)
    )
    yield Input(CLIENT, (msgspec.msgpack.encode((SWARM, {"type": "run", "x": [[]] * 900_000})),))
    for n in (4_096, HEADER_BYTES_MAX // 9 - 100):
        yield Input(DATA, (_header([GROUP] * n), b""))
    yield Input(DATA, (_header([[]] * (HEADER_BYTES_MAX - 100)), b""))


def _header(groups: list[Any]) -> bytes:
    plain: list[Any] = msgspec.msgpack.decode(encode_probe(ME, 1, 0)[0])
    plain[1], plain[-1] = FrameKind.RELEASE, groups
    return msgspec.msgpack.encode(plain)
