"""Strangers, slow ones and greedy ones at the sockets of a whole peer that answers a prompt.

Each is counted under a kind that says where it was stopped; the peer goes on, and takes no more
memory than what libzmq holds of messages that are not complete.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
import zmq

from edgeshard_p2p.core.sampling import Sampling
from edgeshard_p2p.net import handshakes
from edgeshard_p2p.net import security as net_security
from edgeshard_p2p.net.offences import OFFENCES_MAX
from edgeshard_p2p.net.security import Security, open_security
from edgeshard_p2p.net.transport import FROM_CLIENT, FROM_PEER
from edgeshard_p2p.wire.client import Done, Run, Status, StatusReport, Text
from edgeshard_p2p.wire.codec import CONTROL_BYTES_MAX
from edgeshard_p2p.wire.frames import HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX
from tests.fuzz import callers
from tests.fuzz.tally import Tally
from tests.runtime.living import ask, live_apart, peer, whole_model
from tests.runtime.waiting import until_async

SECRET = open_security("tests", (b"the secret of this swarm",))
OTHER = open_security("tests", (b"a secret of another one",))
OPEN = open_security("tests", ())
HANDSHAKE_MS = 500
N_TOKENS = 60
GROWTH_MIB_MAX = 64
"""Of this whole process, with whoever calls in it."""
MANY_PARTS = 50_000
ENDLESS_PARTS = 400_000
"""libzmq holds each in a message of its own, of 64 bytes, until the last has come."""
NOT_IN = (handshakes.FAILED, handshakes.NONE)
N_UNREADABLE = OFFENCES_MAX + 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live_apart(tmp_path, monkeypatch)
    monkeypatch.setattr(net_security, "HANDSHAKE_TIMEOUT_MS", HANDSHAKE_MS)


def rss_mib() -> float:
    n_bytes: int = psutil.Process().memory_info().rss
    return n_bytes / 2**20


@asynccontextmanager
async def admitted(port: int) -> AsyncIterator[socket.socket]:
    """As a PUSH.  In a thread: the peer's loop has a say in it."""
    line = callers.admitted(port, b"PUSH")
    connection = await asyncio.to_thread(line.__enter__)
    try:
        yield connection
    finally:
        line.__exit__(None, None, None)


class Besieged:
    """A peer that serves, whom one calls at both ports."""

    def __init__(self, life: Any, security: Security) -> None:
        self.life, self.security = life, security
        self.at = life.core.membership.me.address
        self.ports = (self.at.port, self.at.port + 1)

    @property
    def counted(self) -> Counter[str]:
        driver = self.life.driver
        return Counter(driver.arrivals.refused) + Counter(self.life.transport.dropped)

    async def answers(self) -> list[int]:
        """The tokens of a prompt."""
        run = Run("hello", True, N_TOKENS, Sampling())
        told = await asyncio.to_thread(ask, self.at, run, Done, self.security)
        assert told[-1].failovers == 0
        return [token for t in told if isinstance(t, Text) for token in t.token_ids]

    async def count(self, kinds: tuple[str, ...], n: int, before: Counter[str]) -> None:
        def are_counted() -> bool:
            return sum(self.counted[kind] - before[kind] for kind in kinds) >= n

        await until_async(are_counted, f"{n} of {kinds} in {self.counted - before}")
        n_counted = sum(self.counted[kind] - before[kind] for kind in kinds)
        assert n_counted == n, f"{n_counted} of {n} in {self.counted - before}"

    async def call(self, *calls: tuple[Callable[[int], None], int]) -> None:
        """All at once, each at its port."""
        await asyncio.gather(*(asyncio.to_thread(caller, port) for caller, port in calls))


@pytest.mark.parametrize("security", [OPEN, SECRET], ids=["no secret", "secret"])
def test_a_peer_outlives_strangers_and_nonsense(
    security: Security, tmp_path: Path, model: Path, tally: Tally
) -> None:
    async def main() -> None:
        async with peer(tmp_path, model, security=security) as life:
            plan_of = life.core.planning.dispatchable
            await until_async(lambda: plan_of() is not None, "a plan that serves")
            besieged = Besieged(life, security)
            expected = await besieged.answers()
            for siege in (strangers, unknown_keys, nonsense):
                rss_before = rss_mib()
                answering = asyncio.create_task(besieged.answers())
                await siege(besieged)
                assert await answering == await besieged.answers() == expected
                growth_mib = rss_mib() - rss_before
                assert growth_mib < GROWTH_MIB_MAX
                tally.say(f"{siege.__doc__} {growth_mib:.1f} MiB more")

    uvloop.run(main())


async def strangers(besieged: Besieged) -> None:
    """Strangers of every kind and a port scan of 200 connections:"""
    before = besieged.counted
    calls = [(caller, port) for caller in callers.STRANGERS.values() for port in besieged.ports]
    await besieged.call(*calls)
    await besieged.count(NOT_IN, len(calls), before)
    before = besieged.counted
    for _ in range(10):
        await besieged.call(*[(callers.scan, port) for port in besieged.ports] * 10)
    await besieged.count(NOT_IN, 200, before)


async def unknown_keys(besieged: Besieged) -> None:
    """Those of another secret, or of none:"""
    before = besieged.counted
    foreign = (OTHER,) if besieged.security is OPEN else (OTHER, OPEN)
    for keys in foreign:
        for kind, port in zip((zmq.DEALER, zmq.PUSH), besieged.ports, strict=True):
            await besieged.call((callers.is_refused(kind, keys), port))
    await besieged.count(NOT_IN, 2 * len(foreign), before)


async def nonsense(besieged: Besieged) -> None:
    """Nonsense of those within, two messages of 50,000 parts in it:"""
    control, data = besieged.ports

    async def count(kind: str, n: int, port: int, *messages: list[bytes]) -> None:
        before = besieged.counted
        socket_kind = zmq.DEALER if port == control else zmq.PUSH
        await besieged.call((callers.sends(socket_kind, besieged.security, *messages), port))
        await besieged.count((kind,), n, before)

    before = besieged.counted
    await count("malformed", OFFENCES_MAX, control, *[[FROM_PEER, b"\xc1"]] * N_UNREADABLE)
    await besieged.count(("control: refused connection",), N_UNREADABLE - OFFENCES_MAX, before)
    await count("malformed", 5, control, *[[FROM_CLIENT, b"\x91" * 5_000]] * 5)
    await count("control: unknown kind", 2, control, [b"?", b""], [b"", b"x"])
    await count("malformed", 3, data, [b""], [b"a", b"b"], [b"a", b"b", b"c", b"d"])
    await count("oversized", 1, data, [bytes(HEADER_BYTES_MAX + 1), b""])
    await count("control: not three parts", 1, control, [b"x"] * MANY_PARTS)
    await count("malformed", 1, data, [b"x"] * MANY_PARTS)
    # A part above the limit ends its connection, unread; the next one is heard.
    too_large = [FROM_PEER, bytes(CONTROL_BYTES_MAX + 1)]
    await besieged.call((callers.sends(zmq.DEALER, besieged.security, too_large), control))
    await count("malformed", 1, control, [FROM_PEER, b""])


def test_what_is_announced_and_never_comes_takes_no_memory(tmp_path: Path, tally: Tally) -> None:
    """Sizes are refused, or reserved and not touched; parts without end are held by libzmq."""

    async def main() -> None:
        async with peer(tmp_path) as life:
            besieged = Besieged(life, OPEN)
            ports = {b"DEALER": besieged.at.port, b"PUSH": besieged.at.port + 1}
            beyond = {b"DEALER": CONTROL_BYTES_MAX + 1, b"PUSH": PAYLOAD_BYTES_MAX + 1}
            rss_before = rss_mib()
            for kind, port in ports.items():
                for n_bytes in (beyond[kind], 2**40, 2**63 - 1):
                    await besieged.call((callers.announces(kind, n_bytes), port))
            async with admitted(ports[b"PUSH"]) as stalled:
                stalled.sendall(bytes([callers.LONG]) + PAYLOAD_BYTES_MAX.to_bytes(8, "big") + b"x")
                (report,) = await asyncio.to_thread(ask, besieged.at, Status(), StatusReport)
                assert report.report["self"]["name"] == "peer"
                assert rss_mib() - rss_before < GROWTH_MIB_MAX / 4
            before, rss_before = besieged.counted, rss_mib()
            part, last = callers.frame(callers.MORE, b"x"), callers.frame(0, b"x")
            peak = [rss_before]

            def is_counted() -> bool:
                peak.append(rss_mib())
                return (besieged.counted - before)["malformed"] > 0

            async with admitted(ports[b"PUSH"]) as endless:
                await asyncio.to_thread(endless.sendall, part * ENDLESS_PARTS)
                await asyncio.to_thread(ask, besieged.at, Status(), StatusReport)
                assert not is_counted()
                endless.sendall(last)
                await until_async(is_counted, "the end of a long message")
            grown = max(peak) - rss_before
            tally.say(f"{ENDLESS_PARTS:,} parts of a byte before the last: {grown:.1f} MiB held")
            assert grown < GROWTH_MIB_MAX

    uvloop.run(main())
