"""Peers' sockets on this machine, and how to wait for what they do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import uvloop

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.net.security import Security, open_security
from edgeshard_p2p.net.transport import Callbacks, Transport

DEADLINE_S = 60.0
"""For what takes milliseconds on an idle machine."""
POLL_S = 0.005
HOST = "127.0.0.1"
SWARM = "tests"
A, B, C = b"a secret of some length", b"another secret of some length", b"a third one, never told"

# NOTE: below the ports that the system gives to outgoing connections, and another start for each
# process, so that tests that run side by side seldom meet.
_ports = itertools.count(random.Random(os.getpid()).randrange(20_000, 32_000, 2), 2)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """As a peer runs; what never ends fails."""
    uvloop.run(_with_deadline(coroutine))


async def _with_deadline(coroutine: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(2 * DEADLINE_S):
        await coroutine


async def until(condition: Callable[[], object], again: Callable[[], object] = int) -> None:
    """Wait until ``condition`` holds, doing ``again`` meanwhile."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        again()
        await asyncio.sleep(POLL_S)


def free_address() -> Address:
    """A port that is free together with the next one."""
    for number in _ports:
        port = 20_000 + number % 12_000
        if _is_free(port) and _is_free(port + 1):
            return Address(HOST, port)
    raise AssertionError("no free port")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


@dataclass(slots=True)
class Peer:
    """A transport, and all that came to it."""

    address: Address
    transport: Transport = field(init=False)
    messages: list[bytes] = field(default_factory=list)
    clients: list[tuple[bytes, bytes]] = field(default_factory=list)
    frames: list[list[bytes]] = field(default_factory=list)
    failures: list[tuple[Address, str]] = field(default_factory=list)

    def say(self, to: Peer, data: bytes) -> None:
        self.transport.send_control(to.address, data)


def made(security: Security, address: Address | None = None) -> Peer:
    """Not open yet."""
    peer = Peer(address or free_address())
    callbacks = Callbacks(
        on_peer=lambda data: peer.messages.append(bytes(data)),
        on_client=lambda identity, data: peer.clients.append((identity, bytes(data))),
        on_frame=lambda parts: peer.frames.append([bytes(part) for part in parts]),
        on_contact_failed=lambda to, reason: peer.failures.append((to, reason)),
    )
    peer.transport = Transport(peer.address, security, callbacks)
    return peer


@contextlib.asynccontextmanager
async def opened(*secrets: bytes, at: Address | None = None) -> AsyncIterator[Peer]:
    peer = made(open_security(SWARM, secrets), at)
    try:
        await peer.transport.open()
        yield peer
    finally:
        await peer.transport.close()
