"""One end of the sockets under test, and what has arrived there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.net.security import Security, open_security
from edgeshard_p2p.net.shaper import Lanes, ShapedTransport
from edgeshard_p2p.net.transport import Callbacks, Transport
from tests.runtime.waiting import free_address

UNREADABLE = b"unreadable"
OPEN = open_security("tests", ())


class Endpoint:
    def __init__(self, address: Address, security: Security, lanes: Lanes | None = None) -> None:
        self.address = address
        self.messages: list[bytes] = []
        self.requests: list[tuple[bytes, bytes]] = []
        self.frames: list[list[bytes]] = []
        self.failures: list[tuple[Address, str]] = []
        self.lost: list[tuple[Address, bool]] = []
        callbacks = Callbacks(
            on_peer=self._on_peer,
            on_client=self._on_client,
            on_frame=lambda parts: self.frames.append([bytes(part) for part in parts]),
            on_contact_failed=lambda address, reason: self.failures.append((address, reason)),
            on_connection_lost=lambda address, is_refused: self.lost.append((address, is_refused)),
            refusal=lambda: b"refused",
        )
        self.transport = (
            Transport(address, security, callbacks)
            if lanes is None
            else ShapedTransport(address, security, callbacks, lanes)
        )

    def _on_peer(self, data: memoryview) -> bool:
        self.messages.append(bytes(data))
        return bytes(data) != UNREADABLE

    def _on_client(self, who: bytes, data: memoryview) -> bool:
        self.requests.append((who, bytes(data)))
        return True


@asynccontextmanager
async def endpoint(
    security: Security = OPEN, address: Address | None = None, lanes: Lanes | None = None
) -> AsyncIterator[Endpoint]:
    end = Endpoint(address or free_address(), security, lanes)
    try:
        await end.transport.open()
        yield end
    finally:
        await end.transport.close()
