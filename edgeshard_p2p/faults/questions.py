"""What the peers of a swarm say when they are asked, wherever they are."""

from __future__ import annotations

import threading
import time
from typing import Any

from edgeshard_p2p.core.plan import Snapshot
from edgeshard_p2p.faults.devices import Devices, FaultError
from edgeshard_p2p.net.asking import ask
from edgeshard_p2p.wire.client import (
    ClientAnswer,
    ClientRequest,
    Failed,
    Okay,
    Set,
    Status,
    StatusReport,
    SwarmView,
    View,
)

REPORT_TIMEOUT_S = 2.0
VIEW_TIMEOUT_S = 10.0
PATIENCE_S, PAUSE_S = 30.0, 0.5
"""A device with a small part of a core may stand still for seconds; one that serves may still have
to open its tokenizer."""


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
        seen = self.insist(name, View(), VIEW_TIMEOUT_S)
        if not isinstance(seen, SwarmView) or seen.snapshot is None:
            raise FaultError(f"{name} does not say what it plans with")
        return seen.snapshot

    def set(self, name: str, key: str, value: str) -> None:
        """Of the whole swarm, by that peer.  Raises FaultError."""
        answer = self.insist(name, Set(key, value), VIEW_TIMEOUT_S)
        if not isinstance(answer, Okay):
            why = answer.error if isinstance(answer, Failed) else "it does not answer"
            raise FaultError(f"{name} does not take {key}={value}: {why}")

    def insist(self, name: str, request: ClientRequest, wait_s: float) -> ClientAnswer | None:
        """As ``ask``, again where there is no answer, or one to come again later."""
        ends_at, pause = time.monotonic() + PATIENCE_S, threading.Event()
        while True:
            answer = self.ask(name, request, wait_s)
            is_last = time.monotonic() > ends_at
            is_later = answer is None or (isinstance(answer, Failed) and answer.retry_ms > 0)
            if is_last or not is_later:
                return answer
            pause.wait(PAUSE_S)
