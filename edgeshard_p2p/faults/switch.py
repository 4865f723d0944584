"""An Ethernet switch in user space, whose links take the time that they are told to.

A process of its own: it makes a TAP in each of the network namespaces it is given and passes frames
between them, for each ordered pair store and forward:

    done = max(now, link free) + bytes / rate          delivered at done + delay

A token bucket of the kernel would let what comes after idle time through at full speed, and that is
just the message that matters here: one token's.  Told on stdin, a JSON object a line, who is cut
off and which links are others from now on; ends with its stdin, and then says what it did.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import select
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from edgeshard_p2p.net.lane import Lane

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
TUN = "/dev/net/tun"
INTERFACE = "eth0"
ETHERNET_BYTES = 14
"""Of a frame's header, which a rate does not count: it is of what IP sees."""
FRAME_BYTES_MAX = 65_536
FRAMES_AT_ONCE = 64
STDIN = 0
PRIORITY = -10
CLONE_NEWNET = 0x40000000


@dataclass(slots=True)
class Fabric:
    """Which frame goes where, and when.  Ports are numbered; a station's address ends with its
    port's number plus one."""

    lanes: dict[tuple[int, int], Lane]
    cut_off: frozenset[int] = frozenset()
    one_way: frozenset[tuple[int, int]] = frozenset()
    """From, to: nothing passes between these, in that direction."""
    counters: Counter[str] = field(default_factory=Counter)
    _due: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    _n_frames: int = 0

    def arrive(self, port: int, frame: bytes, now: float) -> None:
        for to in self._targets(port, frame):
            lane = self.lanes.get((port, to))
            is_cut = (port in self.cut_off) != (to in self.cut_off) or (port, to) in self.one_way
            if lane is None or is_cut:
                self.counters["dropped"] += 1
                continue
            self._n_frames += 1
            n_bytes = max(1, len(frame) - ETHERNET_BYTES)
            heapq.heappush(self._due, (lane.deliver_at(n_bytes, now), self._n_frames, to, frame))

    def _targets(self, port: int, frame: bytes) -> Iterable[int]:
        ports = {b for a, b in self.lanes if a == port}
        if frame[0] & 1:  # Broadcast or multicast.
            return sorted(ports)
        to = frame[5] - 1
        return [to] if to in ports else []

    def obey(self, order: dict[str, Any]) -> None:
        """``cut_off`` and ``one_way``: in place of those before; ``lanes``: as ``main`` takes them,
        and only those that change.  What is on its way arrives as it would have."""
        if "cut_off" in order:
            self.cut_off = frozenset(order["cut_off"])
        if "one_way" in order:
            self.one_way = frozenset((a, b) for a, b in order["one_way"])
        for a, b, bytes_per_s, delay_s in order.get("lanes", ()):
            lane = self.lanes[a, b]
            lane.bytes_per_s, lane.delay_s = bytes_per_s, delay_s

    def next_due(self) -> float | None:
        return self._due[0][0] if self._due else None

    def take_due(self, now: float) -> Iterator[tuple[int, bytes]]:
        while self._due and self._due[0][0] <= now:
            at, _, to, frame = heapq.heappop(self._due)
            self.counters["frames"] += 1
            self.counters["bytes"] += len(frame)
            late_us = int((now - at) * 1e6)
            self.counters["late_us"] += late_us
            self.counters["late_us_max"] = max(self.counters["late_us_max"], late_us)
            yield to, frame


def address_of(port: int) -> str:
    return f"02:00:00:00:00:{port + 1:02x}"


def _tap_in(namespace: str) -> int:
    """The file of a new TAP in that network namespace."""
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(namespace, os.O_RDONLY)
    try:
        _enter(there)
        tap = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
        wanted = struct.pack("16sH22x", INTERFACE.encode(), IFF_TAP | IFF_NO_PI)
        fcntl.ioctl(tap, TUNSETIFF, wanted)
    finally:
        _enter(here)
        os.close(here)
        os.close(there)
    return tap


def _enter(namespace: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _run(fabric: Fabric, taps: list[int]) -> None:
    port_of = {tap: port for port, tap in enumerate(taps)}
    rest = b""
    while True:
        due = fabric.next_due()
        wait_s = None if due is None else max(0.0, due - time.monotonic())
        # NOTE: select() sleeps to the microsecond, poll() and epoll only to the millisecond.
        ready, _, _ = select.select([*taps, STDIN], [], [], wait_s)
        if STDIN in ready:
            told = os.read(STDIN, FRAME_BYTES_MAX)
            if not told:
                return
            *orders, rest = (rest + told).split(b"\n")
            for order in orders:
                fabric.obey(json.loads(order))
        for tap in ready:
            if tap in port_of:
                _read(fabric, tap, port_of[tap])
        for to, frame in fabric.take_due(time.monotonic()):
            with suppress(OSError):  # The interface is down: as a cable that is pulled out.
                os.write(taps[to], frame)


def _read(fabric: Fabric, tap: int, port: int) -> None:
    with suppress(BlockingIOError):
        for _ in range(FRAMES_AT_ONCE):
            fabric.arrive(port, os.read(tap, FRAME_BYTES_MAX), time.monotonic())


def main(wiring: dict[str, Any]) -> None:
    """``namespaces``: their files, by port; ``lanes``: [from, to, bytes per second, delay in s]."""
    lanes = {(a, b): Lane(bytes_per_s, delay_s) for a, b, bytes_per_s, delay_s in wiring["lanes"]}
    with suppress(OSError):
        os.nice(PRIORITY)
    try:
        taps = [_tap_in(namespace) for namespace in wiring["namespaces"]]
    except OSError as error:
        print(json.dumps({"error": f"no TAP can be made: {error.strerror}"}), flush=True)
        return
    fabric = Fabric(lanes)
    print(json.dumps({"ready": True}), flush=True)
    with suppress(KeyboardInterrupt):
        _run(fabric, taps)
    told = json.dumps({**fabric.counters, "cpu_s": time.process_time()})
    with suppress(BrokenPipeError):  # Whoever began this may be gone.
        os.write(sys.stdout.fileno(), f"{told}\n".encode())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
