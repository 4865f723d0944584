"""Multicast DNS: say that this peer is here, hear of others of the same swarm.

Where multicast is blocked nothing is heard and nothing breaks; ``--join`` is the other way in.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable

import ifaddr
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from edgeshard_p2p.core.messages import Address

SERVICE = "_edgeshard._tcp.local."
LABEL_CHARS = 56
"""Of the name: a label of DNS has at most 63, and the port follows."""
RESOLVE_TIMEOUT_MS = 3_000
LOOPBACK = "127.0.0.1"


class Discovery:
    def __init__(
        self,
        name: str,
        advertised: Address,
        swarm_keys: tuple[bytes, ...],
        on_found: Callable[[Address], None],
        spawn: Callable[..., None],
    ) -> None:
        self._name = name
        self._advertised = advertised
        self._swarm_keys = {key.hex() for key in swarm_keys}
        self._active_key = swarm_keys[0].hex()
        self._on_found = on_found
        self._spawn = spawn
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None

    async def open(self) -> None:
        """Raises OSError where multicast cannot be had at all, or the host has no address."""
        self._advertised = Address(await _ip_of(self._advertised.host), self._advertised.port)
        is_local = is_loopback(self._advertised.host)
        interfaces = [LOOPBACK] if is_local else [self._advertised.host]
        self._zeroconf = AsyncZeroconf(interfaces=interfaces, ip_version=IPVersion.V4Only)
        label = f"{self._name[:LABEL_CHARS]}-{self._advertised.port}"
        info = AsyncServiceInfo(
            SERVICE,
            f"{label}.{SERVICE}",
            port=self._advertised.port,
            properties={"swarm": self._active_key},
            addresses=[ipaddress.ip_address(self._advertised.host).packed],
            server=f"{label}.local.",
        )
        await self._zeroconf.async_register_service(info, allow_name_change=True)
        self._browser = AsyncServiceBrowser(
            self._zeroconf.zeroconf, [SERVICE], handlers=[self._on_change]
        )

    def _on_change(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is not ServiceStateChange.Removed:
            self._spawn(self._resolve(zeroconf, service_type, name), name=f"resolve {name}")

    async def _resolve(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        info = AsyncServiceInfo(service_type, name)
        if not await info.async_request(zeroconf, RESOLVE_TIMEOUT_MS):
            return
        swarm = info.properties.get(b"swarm") or b""
        if swarm.decode(errors="replace") not in self._swarm_keys or info.port is None:
            return
        for host in info.parsed_addresses(IPVersion.V4Only):
            found = Address(host, info.port)
            if found != self._advertised and is_loopback(host) == is_loopback(
                self._advertised.host
            ):
                self._on_found(found)

    async def close(self) -> None:
        if self._browser is not None:
            await self._browser.async_cancel()
        if self._zeroconf is not None:
            await self._zeroconf.async_unregister_all_services()
            await self._zeroconf.async_close()


async def _ip_of(host: str) -> str:
    """Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, family=socket.AF_INET)
    return str(found[0][4][0])


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def lan_address() -> str | None:
    """This machine's first address that others can reach, for a peer that listens on all."""
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            if ip.is_IPv4 and isinstance(ip.ip, str) and not is_loopback(ip.ip):
                return ip.ip
    return None
