"""Multicast DNS between peers of one machine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from secrets import token_hex

import pytest
import uvloop

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.net.discovery import Discovery, is_loopback, lan_address
from edgeshard_p2p.net.security import open_security
from tests.runtime.waiting import LOOPBACK, free_address, until, until_async

GROUP = "224.0.0.251"
SECRET = b"a secret of this swarm"
SWARM, OTHER = f"tests-{token_hex(8)}", f"others-{token_hex(8)}"
"""NOTE: tests that run beside these are heard as well."""


def _why_not() -> str:
    """Why multicast cannot be had on loopback here, or nothing."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    loopback = socket.inet_aton("127.0.0.1")
    try:
        listener.bind(("", 0))
        listener.settimeout(2)
        listener.setsockopt(
            socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + loopback
        )
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
        sender.sendto(b"?", (GROUP, listener.getsockname()[1]))
        listener.recv(10)
    except OSError as error:
        return f"multicast does not work on the loopback interface here: {error}"
    finally:
        listener.close()
        sender.close()
    return ""


@pytest.fixture(scope="module", autouse=True)
def _needs_multicast() -> None:
    if reason := _why_not():
        pytest.skip(reason)


class Peer:
    def __init__(
        self,
        name: str,
        swarm: str = SWARM,
        secrets: tuple[bytes, ...] = (),
        host: str = LOOPBACK,
    ) -> None:
        self.address = Address(host, free_address().port)
        self.found: set[Address] = set()
        self.tasks: list[asyncio.Task[None]] = []
        keys = open_security(swarm, secrets).swarm_keys
        self.discovery = Discovery(name, self.address, keys, self.found.add, self._spawn)

    def _spawn(self, coroutine: object, name: str) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(coroutine, name=name))  # type: ignore[arg-type]


@asynccontextmanager
async def _open(*peers: Peer) -> AsyncIterator[None]:
    try:
        await asyncio.gather(*[peer.discovery.open() for peer in peers])
        yield
    finally:
        await asyncio.gather(*[peer.discovery.close() for peer in peers])
        tasks = [task for peer in peers for task in peer.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_peers_find_each_other_and_no_foreign_swarm() -> None:
    """Everyone hears everyone; a swarm is told by its name and its secret."""

    async def main() -> None:
        a, b = Peer("a"), Peer("b")
        foreign = Peer("foreign", swarm=OTHER)
        hidden, friend = Peer("hidden", secrets=(SECRET,)), Peer("friend", secrets=(SECRET,))
        async with _open(a, b, foreign, hidden, friend):
            await until_async(lambda: a.found and b.found, "a and b to meet")
            await until_async(lambda: hidden.found and friend.found, "the others to meet")
            resolving = [task for peer in (a, foreign) for task in peer.tasks]
            await until_async(lambda: len(foreign.tasks) >= 5, "the foreign peer to hear of all")
            await asyncio.gather(*resolving, *foreign.tasks, *a.tasks)
            assert (a.found, b.found) == ({b.address}, {a.address})
            assert (hidden.found, friend.found) == ({friend.address}, {hidden.address})
            assert foreign.found == set()

    uvloop.run(main())


def test_a_host_is_advertised_by_its_address() -> None:
    """Also one that was given by its name; one without an address is like no multicast."""

    async def main() -> None:
        a, b = Peer("a", host="localhost"), Peer("b")
        async with _open(a, b):
            await until_async(lambda: a.found and b.found, "both to meet")
            assert b.found == {Address(LOOPBACK, a.address.port)}
            assert a.found == {b.address}
        with pytest.raises(socket.gaierror):
            await Peer("c", host="[::1]").discovery.open()

    uvloop.run(main())


def test_the_same_name_twice_is_no_error() -> None:
    async def main() -> None:
        a, b = Peer("same"), Peer("same")
        async with _open(a, b):
            await until_async(lambda: a.found and b.found, "both to meet")

    uvloop.run(main())


def test_a_peer_with_an_overlapping_list_of_secrets_is_found() -> None:
    async def main() -> None:
        a = Peer("a", secrets=(SECRET, b"the next secret, as well"))
        b = Peer("b", secrets=(b"the next secret, as well", SECRET))
        async with _open(a, b):
            await until_async(lambda: a.found and b.found, "both to meet")

    uvloop.run(main())


def test_addresses_are_told_apart() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "localhost", "::1")] == [
        True
    ] * 4
    assert not any(is_loopback(host) for host in ("0.0.0.0", "192.0.2.1", "example.org", ""))
    address = until(lambda: [lan_address()], "an answer")[0]
    assert address is None or not is_loopback(address)
