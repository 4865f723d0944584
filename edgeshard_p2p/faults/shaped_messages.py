"""Links that peers emulate themselves, measured: lone messages through two such transports."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import uvloop

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.core.plan import Link
from edgeshard_p2p.faults.lone_messages import (
    IDLE_S,
    SIZES,
    TIMEOUT_S,
    TRIES,
    WARM_BYTES,
    Say,
    Trial,
    working,
)
from edgeshard_p2p.faults.machine import free_ports
from edgeshard_p2p.net.lane import Lane
from edgeshard_p2p.net.security import open_security
from edgeshard_p2p.net.shaper import ShapedTransport
from edgeshard_p2p.net.transport import Callbacks


def check_shaped_links(links: Mapping[tuple[str, str], Link], say: Say) -> list[Trial]:
    """A message of each size over each link, one after another.  Raises FaultError."""
    trials: list[Trial] = []
    with working():
        for (a, b), link in links.items():
            say(f"{a} -> {b}")
            trials += uvloop.run(_trials(link))
    return trials


class _End:
    def __init__(self, address: Address, lanes: dict[Address, Lane | None]) -> None:
        self.address = address
        self._came = asyncio.Event()
        self._at = 0.0
        callbacks = Callbacks(
            on_peer=lambda _: True,
            on_client=lambda _, __: True,
            on_frame=lambda _: self._note(),
            on_contact_failed=lambda _, __: None,
            on_connection_lost=lambda _, __: None,
            refusal=lambda: b"",
        )
        self.transport = ShapedTransport(address, open_security("check", ()), callbacks, lanes)

    def _note(self) -> None:
        self._at = time.monotonic()
        self._came.set()

    async def hears(self) -> float:
        async with asyncio.timeout(TIMEOUT_S):
            await self._came.wait()
        self._came.clear()
        return self._at


@asynccontextmanager
async def _open(end: _End) -> AsyncIterator[_End]:
    try:
        await end.transport.open()
        yield end
    finally:
        await end.transport.close()


async def _trials(link: Link) -> list[Trial]:
    here, there = (Address("127.0.0.1", port) for _, port in zip("ab", free_ports(), strict=False))
    lane = Lane(link.bytes_per_s, link.delay_us / 1e6)
    async with _open(_End(here, {there: lane})) as a, _open(_End(there, {})) as b:
        await _took_s(a, b, WARM_BYTES)
        found = []
        for n_bytes in SIZES:
            ideal_ms = n_bytes / link.bytes_per_s * 1e3 + link.delay_us / 1e3
            tries = []
            for _ in range(TRIES):
                await asyncio.sleep(IDLE_S)
                took_ms = await _took_s(a, b, n_bytes) * 1e3
                tries.append(Trial(link.a, link.b, n_bytes, ideal_ms, took_ms))
                if tries[-1].is_right:
                    break
            found.append(min(tries, key=lambda trial: trial.off_ms))
        return found


async def _took_s(sender: _End, receiver: _End, n_bytes: int) -> float:
    begun = time.monotonic()
    sender.transport.send_probe(receiver.address, [bytes(n_bytes)])
    return await receiver.hears() - begun
