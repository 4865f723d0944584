"""A transport whose links take the time that they are told to: emulated devices without root.

What is sent waits in here, control messages and frames alike, until the link would have delivered
it (``Lane``), and is only then given to the sockets.  What these say to each other by themselves,
and to clients, is not held up.  Nothing of this is on the way of a peer that is not shaped.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.net.lane import Lane
from edgeshard_p2p.net.security import Security
from edgeshard_p2p.net.transport import CONTROL_QUEUE, Callbacks, Transport
from edgeshard_p2p.wire.frames import Buffer

Lanes = Mapping[Address, Lane | None]
"""By the address that it leads to; None: it is cut, and what is sent is lost."""
Send = Callable[[], None]


@dataclass(slots=True)
class Held:
    """What waits, and for how long.  Has no clock."""

    lanes: dict[Address, Lane | None]
    counters: Counter[str] = field(default_factory=Counter)
    _due: list[tuple[float, int, Address, Send]] = field(default_factory=list)
    _last: dict[Address, float] = field(default_factory=dict)
    _waiting: Counter[Address] = field(default_factory=Counter)
    _n: int = 0

    def hold(self, to: Address, n_bytes: int, send: Send, now: float) -> str:
        """Why it is lost; empty: it waits, and follows whatever waits for the same link."""
        lane = self.lanes[to]
        if lane is None:
            return "shaper: cut"
        if self._waiting[to] >= CONTROL_QUEUE:
            return "shaper: queue full"
        self.counters["messages"] += 1
        self.counters["bytes"] += n_bytes
        self.follow(to, send, lane.deliver_at(n_bytes, now))
        return ""

    def follow(self, to: Address, send: Send, at: float) -> None:
        """At that time, but not before what was sent there earlier."""
        at = self._last[to] = max(at, self._last.get(to, at))
        self._n += 1
        self._waiting[to] += 1
        heapq.heappush(self._due, (at, self._n, to, send))

    def is_waiting(self, to: Address) -> bool:
        return self._waiting[to] > 0

    def next_due(self) -> float | None:
        return self._due[0][0] if self._due else None

    def take_due(self, now: float) -> list[Send]:
        taken = []
        while self._due and self._due[0][0] <= now:
            at, _, to, send = heapq.heappop(self._due)
            self._waiting[to] -= 1
            late_us = int((now - at) * 1e6)
            self.counters["late_us_max"] = max(self.counters["late_us_max"], late_us)
            taken.append(send)
        return taken

    def reshape(self, lanes: Lanes) -> None:
        """From now on; what waits keeps its time."""
        for to, lane in lanes.items():
            old = self.lanes.get(to)
            if lane is not None and old is not None:
                lane.free_at = old.free_at
        self.lanes = dict(lanes)


class ShapedTransport(Transport):
    def __init__(
        self, listen: Address, security: Security, callbacks: Callbacks, lanes: Lanes
    ) -> None:
        super().__init__(listen, security, callbacks)
        self._held = Held(dict(lanes))
        self.shaping = self._held.counters
        self.shaping["links"] = len(lanes)
        self._ends: dict[tuple[bytes, int], Address] = {}
        """Where the edges lead that frames have been sent on."""
        self._alarm: _Alarm | None = None

    async def open(self) -> None:
        self._alarm = _Alarm(self._release)
        await super().open()

    async def close(self) -> None:
        if self._alarm is not None:
            self._alarm.close()
        await super().close()

    def reshape(self, lanes: Lanes) -> None:
        self._held.reshape(lanes)
        self.shaping["links"] = len(lanes)

    def send_control(self, to: Address, data: bytes) -> None:
        self._hold(to, len(data), partial(super().send_control, to, data))

    def send_probe(self, to: Address, parts: Sequence[Buffer]) -> None:
        self._hold(to, _size(parts), partial(super().send_probe, to, parts))

    def send_frame(
        self, plan: bytes, edge: int, epoch: int, to: Address, parts: Sequence[Buffer]
    ) -> None:
        self._ends[plan, edge] = to
        self._hold(to, _size(parts), partial(super().send_frame, plan, edge, epoch, to, parts))

    def close_edge(self, plan: bytes, edge: int) -> None:
        to, close = self._ends.pop((plan, edge), None), partial(super().close_edge, plan, edge)
        if to is not None and self._held.is_waiting(to):
            self._held.follow(to, close, 0.0)  # Or what waits would open it again.
        else:
            close()

    def _hold(self, to: Address, n_bytes: int, send: Send) -> None:
        assert self._alarm is not None
        if to not in self._held.lanes:
            send()
            return
        lost = self._held.hold(to, n_bytes, send, time.monotonic())
        if lost:
            self.dropped[lost] += 1
        self._alarm.set(self._held.next_due())

    def _release(self) -> None:
        assert self._alarm is not None
        for send in self._held.take_due(time.monotonic()):
            send()
        self._alarm.set(self._held.next_due())


def _size(parts: Sequence[Buffer]) -> int:
    return sum(memoryview(part).nbytes for part in parts)


class _Alarm:
    """Calls ``ring`` on the loop at a time of the monotonic clock, never before it.

    NOTE: a thread, because uvloop's own clock counts whole milliseconds, and may be one behind."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring, self._loop = ring, asyncio.get_running_loop()
        self._at: float | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="shaper", daemon=True)
        self._thread.start()

    def set(self, at: float | None) -> None:
        with self._changed:
            self._at = at
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self._is_closed:
                wait_s = None if self._at is None else self._at - time.monotonic()
                if wait_s is None or wait_s > 0:
                    self._changed.wait(wait_s)
                else:
                    self._at = None
                    self._loop.call_soon_threadsafe(self._ring)
