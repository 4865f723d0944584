"""Peers on one network find each other without being told."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

import pytest

from tests.e2e.swarm import Machine, Swarm, eventually

pytestmark = pytest.mark.timeout(300)

MDNS_GROUP = "224.0.0.251"
LOOPBACK = socket.inet_aton("127.0.0.1")


def _why_no_multicast() -> str:
    """What this machine lacks; empty when a datagram to the group comes back over loopback."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.settimeout(2)
        receiver.bind(("", 0))
        group = socket.inet_aton(MDNS_GROUP) + LOOPBACK
        try:
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, LOOPBACK)
            sender.sendto(b"?", (MDNS_GROUP, receiver.getsockname()[1]))
            receiver.recv(1)
        except OSError as error:
            return f"no multicast on loopback: {error}"
    return ""


def test_three_peers_find_each_other(machine: Machine, tmp_path: Path) -> None:
    if missing := _why_no_multicast():
        pytest.skip(missing)
    names = ("amy", "ben", "cat")
    with Swarm(machine, tmp_path, name=f"test-{secrets.token_hex(4)}") as swarm:
        for name in names:
            swarm.start(name, "--mdns", "--min-members", len(names))
        eventually(lambda: swarm.are(**dict.fromkeys(names, "alive")), swarm.story)
        assert [peer.interrupt() for peer in swarm.peers] == [0, 0, 0]
        assert "Traceback" not in swarm.story()
