"""What comes out of the sockets, turned into events; what cannot be read is counted by kind and
goes no further.

Knows nothing of sockets, nor of what an event does.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgeshard_p2p.core import events as ev
from edgeshard_p2p.core.ids import PeerId
from edgeshard_p2p.core.messages import FrameHeader, FrameKind
from edgeshard_p2p.core.work import TensorRef
from edgeshard_p2p.wire.client import (
    ClientAnswer,
    ClientRequest,
    Failed,
    decode_request,
)
from edgeshard_p2p.wire.codec import decode_control
from edgeshard_p2p.wire.errors import WireError
from edgeshard_p2p.wire.frames import Buffer, decode_frame


@dataclass(slots=True)
class Arrivals:
    me: PeerId
    swarm_keys: tuple[bytes, ...]
    post: Callable[[ev.Event], None]
    keep: Callable[[FrameHeader, Buffer], TensorRef]
    """Holds the hidden states of a frame, whose size fits its dtype and shape."""
    request: Callable[[bytes, ClientRequest], None]
    """What a client asks for."""
    answer: Callable[[bytes, ClientAnswer], object]
    refused: Counter[str] = field(default_factory=Counter)
    """What arrived and was dropped, by kind."""
    is_deaf: bool = False
    """Whatever arrives is dropped unread."""

    def on_peer(self, data: Buffer) -> bool:
        """False for what cannot be read."""
        if self.is_deaf:
            return True
        for swarm_key in self.swarm_keys:
            try:
                sender, message = decode_control(swarm_key, data)
            except WireError as error:
                if error.kind != "other_swarm":
                    self.refused[error.kind] += 1
                    return False
            else:
                self.post(ev.MessageReceived(sender, message))
                return True
        self.refused["other_swarm"] += 1
        return True

    def on_frame(self, parts: Sequence[Buffer]) -> None:
        if self.is_deaf:
            return
        try:
            header, payload, body = decode_frame(parts)
        except WireError as error:
            self.refused[error.kind] += 1
            return
        tensor, tokens = None, ()
        if header.kind is FrameKind.HIDDEN and len(payload):
            tensor = self.keep(header, payload)
        elif header.kind is FrameKind.TOKENS:
            tokens = struct.unpack(f"<{len(payload) // 4}i", payload)
        self.post(ev.FrameReceived(header, tensor, tokens, body))

    def on_client(self, identity: bytes, data: Buffer) -> bool:
        """False for what cannot be read; either way the client is told."""
        if self.is_deaf:
            return True
        try:
            swarm_key, request = decode_request(data)
        except WireError as error:
            self.refused[error.kind] += 1
            text = f"{self.me} does not understand this request; is it of another release?"
            self.answer(identity, Failed(text, is_usage=True))
            return False
        if swarm_key not in self.swarm_keys:
            self.refused["other_swarm"] += 1
            text = f"{self.me} belongs to another swarm; give the same --swarm"
            self.answer(identity, Failed(text, is_usage=True))
            return True
        self.request(identity, request)
        return True
