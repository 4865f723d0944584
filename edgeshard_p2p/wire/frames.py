"""Frames on the data plane: a msgpack header, then the payload as it lies in memory.

    part 0   FrameHeader
    part 1   HIDDEN, TOKENS: the tensor's bytes, row-major; OPEN, PROBE: a msgpack body; else empty
    part 2   PROBE only: padding of the size that is being measured

Sizes are checked against the header before anything is built from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import msgspec

from edgeshard_p2p.core.ids import NO_PLAN, PeerId
from edgeshard_p2p.core.messages import (
    WIRE_MAX,
    WIRE_MIN,
    FrameHeader,
    FrameKind,
    Open,
    ProbeBody,
)
from edgeshard_p2p.wire.errors import UNREADABLE, WireError

HEADER_BYTES_MAX = 1 << 18
PAYLOAD_BYTES_MAX = 1 << 26
ITEM_BYTES = {FrameKind.HIDDEN: {1: 4, 2: 2}, FrameKind.TOKENS: {3: 4}}
"""Bytes of an element by the dtype codes that a kind of frame may carry."""

Buffer = bytes | memoryview

_encoder = msgspec.msgpack.Encoder()
_header = msgspec.msgpack.Decoder(FrameHeader)
_open = msgspec.msgpack.Decoder(Open)
_probe = msgspec.msgpack.Decoder(ProbeBody)


def encode_header(header: FrameHeader) -> bytes:
    return _encoder.encode(header)


def encode_body(body: Open | ProbeBody) -> bytes:
    return _encoder.encode(body)


def encode_probe(sender: PeerId, nonce: int, n_bytes: int) -> list[Buffer]:
    """All parts of a probe frame with ``n_bytes`` of padding."""
    header = FrameHeader(
        version=WIRE_MAX,
        kind=FrameKind.PROBE,
        sender=sender.tag,
        plan=bytes.fromhex(NO_PLAN),
        edge=0,
        epoch=0,
        sequence=0,
        acked=0,
        micro_batch=0,
        service_us=0,
        numerics=0,
        dtype=0,
        shape=(),
        groups=(),
    )
    body = ProbeBody(sender, nonce)
    return [encode_header(header), encode_body(body), bytes(n_bytes)]


def decode_frame(parts: Sequence[Buffer]) -> tuple[FrameHeader, Buffer, Open | ProbeBody | None]:
    """Header, payload and body of a frame.  Raises WireError: ``malformed``, ``oversized``,
    ``wire_version`` or ``wrong_size``."""
    if not 2 <= len(parts) <= 3:
        raise WireError("malformed", f"a frame of {len(parts)} parts")
    if len(parts[0]) > HEADER_BYTES_MAX or len(parts[1]) > PAYLOAD_BYTES_MAX:
        raise WireError("oversized", f"a frame of {len(parts[0])} + {len(parts[1])} bytes")
    try:
        header = _header.decode(parts[0])
        body = _decode_body(header, parts[1])
    except UNREADABLE as error:
        raise WireError("malformed", str(error)) from error
    if not WIRE_MIN <= header.version <= WIRE_MAX:
        raise WireError("wire_version", str(header.version))
    expected = _tensor_bytes(header)
    if body is None and len(parts[1]) != expected:
        raise WireError("wrong_size", f"{len(parts[1])} bytes where {expected} are announced")
    return header, parts[1], body


def _decode_body(header: FrameHeader, payload: Buffer) -> Open | ProbeBody | None:
    if header.kind is FrameKind.OPEN:
        return _open.decode(payload)
    if header.kind is FrameKind.PROBE:
        return _probe.decode(payload)
    return None


def _tensor_bytes(header: FrameHeader) -> int:
    if header.kind not in ITEM_BYTES:
        return 0
    item_bytes = ITEM_BYTES[header.kind].get(header.dtype)
    if item_bytes is None or not header.shape:
        raise WireError("malformed", f"a tensor of dtype {header.dtype}, shape {header.shape}")
    return item_bytes * prod(header.shape)
