"""Control messages between peers as msgpack.

    [version, swarm key, sender, body]

The swarm key is a digest of the swarm's name and secret: messages of foreign swarms are told
apart before their body is read.  The layout of the envelope, of Hello and of Refused never changes,
so that peers of different releases can at least refuse each other by name.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import WIRE_MAX, WIRE_MIN, ControlMessage, Hello, Refused, Version
from edgeshard_p2p.wire.errors import UNREADABLE, WireError

CONTROL_BYTES_MAX = 1 << 20


class Envelope(Struct, frozen=True, array_like=True):
    version: Version
    swarm: Annotated[bytes, Meta(min_length=8, max_length=8)]
    sender: PeerId
    body: msgspec.Raw


_encoder = msgspec.msgpack.Encoder()
_envelope = msgspec.msgpack.Decoder(Envelope)
_body = msgspec.msgpack.Decoder(ControlMessage)
_of_any_version: msgspec.msgpack.Decoder[Hello | Refused] = msgspec.msgpack.Decoder(Hello | Refused)


def encode_control(swarm: bytes, sender: PeerId, message: ControlMessage) -> bytes:
    return _encoder.encode((WIRE_MAX, swarm, sender, message))


def decode_control(swarm: bytes, data: bytes | memoryview) -> tuple[PeerId, ControlMessage]:
    """Raises WireError: ``oversized``, ``malformed`` or ``other_swarm``."""
    if len(data) > CONTROL_BYTES_MAX:
        raise WireError("oversized", f"control message of {len(data)} bytes")
    try:
        envelope = _envelope.decode(data)
        if envelope.swarm != swarm:
            raise WireError("other_swarm")
        if WIRE_MIN <= envelope.version <= WIRE_MAX:
            return envelope.sender, _body.decode(envelope.body)
        return envelope.sender, _of_any_version.decode(envelope.body)
    except UNREADABLE as error:
        raise WireError("malformed", str(error)) from error
