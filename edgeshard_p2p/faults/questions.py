"""What the peers of a swarm say when they are asked, wherever they are."""

from __future__ import annotations

from typing import Any

from edgeshard_p2p.core.plan import Snapshot
from edgeshard_p2p.faults.devices import Devices, FaultError
from edgeshard_p2p.net.asking import ask
from edgeshard_p2p.wire.client import (
    ClientAnswer,
    ClientRequest,
    Okay,
    Set,
    Status,
    StatusReport,
    SwarmView,
    View,
)

REPORT_TIMEOUT_S = 2.0
VIEW_TIMEOUT_S = 10.0


class Questions:
    def __init__(self, devices: Devices) -> None:
        self._devices = devices

    def ask(self, name: str, request: ClientRequest, wait_s: float) -> ClientAnswer | None:
        """The last word of the conversation; None: there is none."""
        devices = self._devices
        return devices.reach(
            name, lambda: ask(devices.address(name), devices.security, request, wait_s)
        )

    def report(self, name: str) -> dict[str, Any]:
        """Empty without an answer."""
        answer = self.ask(name, Status(), REPORT_TIMEOUT_S)
        return answer.report if isinstance(answer, StatusReport) else {}

    def snapshot(self, name: str) -> Snapshot:
        """What it plans with.  Raises FaultError."""
        seen = self.ask(name, View(), VIEW_TIMEOUT_S)
        if not isinstance(seen, SwarmView) or seen.snapshot is None:
            raise FaultError(f"{name} does not say what it plans with")
        return seen.snapshot

    def set(self, name: str, key: str, value: str) -> None:
        """Of the whole swarm, by that peer.  Raises FaultError."""
        answer = self.ask(name, Set(key, value), VIEW_TIMEOUT_S)
        if not isinstance(answer, Okay):
            raise FaultError(f"{name} does not take {key}={value}: {answer}")
