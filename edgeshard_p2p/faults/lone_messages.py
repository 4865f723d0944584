"""Emulated links, measured: what a lone message after idle time takes, against what it should.

That is the message that matters here, one token's; bulk transfers look right where it does not.
"""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from edgeshard_p2p.core.plan import Link
from edgeshard_p2p.faults.devices import FaultError
from edgeshard_p2p.faults.janitor import janitor
from edgeshard_p2p.faults.namespaces import Namespaces, Switched

SIZES = (100, 2 * 2**10, 16 * 2**10, 2 * 10**6)
IDLE_S = 0.1
TRIES = 5
WARM_BYTES = 2**16
"""Or what takes a second, where that is less."""
TOLERANCE, TOLERANCE_MS = 0.1, 0.5
PORT = 7900
TIMEOUT_S = 120.0

Say = Callable[[str], None]


class Trial(Struct, frozen=True):
    a: str
    b: str
    n_bytes: int
    ideal_ms: float
    took_ms: float

    @property
    def off_ms(self) -> float:
        return abs(self.took_ms - self.ideal_ms)

    @property
    def is_right(self) -> bool:
        return self.off_ms <= max(TOLERANCE * self.ideal_ms, TOLERANCE_MS)

    def __str__(self) -> str:
        return (
            f"{self.a} -> {self.b}: {self.n_bytes} bytes took {self.took_ms:.2f} ms, "
            f"should take {self.ideal_ms:.2f}"
        )


def check_switched_links(
    names: Sequence[str],
    links: Mapping[tuple[str, str], Link],
    say: Say,
    sizes: Sequence[int] = SIZES,
) -> tuple[list[Trial], dict[str, Any]]:
    """Through a switch of their own; and what that did.  Raises FaultError."""
    with working(), tempfile.TemporaryDirectory() as scratch, janitor(Path(scratch)) as run:
        namespaces = Switched(run, names, links)
        try:
            trials = check_links(namespaces, links, say, sizes)
        finally:
            namespaces.close()
    return trials, namespaces.said


@contextmanager
def working() -> Iterator[None]:
    """What the system says of sockets meanwhile as a FaultError."""
    try:
        yield
    except OSError as error:
        raise FaultError(f"a link does not work: {error}") from None


def check_links(
    namespaces: Namespaces,
    links: Mapping[tuple[str, str], Link],
    say: Say,
    sizes: Sequence[int] = SIZES,
) -> list[Trial]:
    """A message of each size over each link; no device is in two trials at once."""
    names = sorted({name for pair in links for name in pair})
    trials: list[Trial] = []
    for number, pairs in enumerate(rounds(names), start=1):
        say(f"links, round {number} of {len(rounds(names))}: {', '.join(map('-'.join, pairs))}")
        with ThreadPoolExecutor(max(1, len(pairs))) as pool:
            done = pool.map(lambda pair: list(_both_ways(namespaces, links, sizes, *pair)), pairs)
            trials += [trial for of_pair in done for trial in of_pair]
    return trials


def rounds(names: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Everybody meets everybody once, as in a tournament."""
    ring: list[str | None] = [*names, *([None] if len(names) % 2 else [])]
    found = []
    for _ in range(len(ring) - 1):
        half = len(ring) // 2
        meetings = zip(ring[:half], reversed(ring[half:]), strict=True)
        found.append([(a, b) for a, b in meetings if a is not None and b is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return [pairs for pairs in found if pairs]


def _both_ways(
    namespaces: Namespaces,
    links: Mapping[tuple[str, str], Link],
    sizes: Sequence[int],
    a: str,
    b: str,
) -> Iterator[Trial]:
    if (a, b) not in links or (b, a) not in links:
        return
    with _listening(namespaces, b) as listener:
        here = _inside(namespaces, a, lambda: _connected(namespaces.host(b)))
        there, _ = listener.accept()
        with here, there:
            for end in (here, there):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                end.settimeout(TIMEOUT_S)
            _pass(here, there, min(WARM_BYTES, links[a, b].bytes_per_s))
            _pass(there, here, min(WARM_BYTES, links[b, a].bytes_per_s))
            ways = ((a, b, here, there), (b, a, there, here))
            for n_bytes in sizes:
                for name_from, name_to, sender, receiver in ways:
                    link = links[name_from, name_to]
                    ideal_ms = n_bytes / link.bytes_per_s * 1e3 + link.delay_us / 1e3
                    tries = (
                        Trial(name_from, name_to, n_bytes, ideal_ms, took_ms)
                        for took_ms in _times_ms(sender, receiver, n_bytes)
                    )
                    yield _nearest(tries)


def _nearest(tries: Iterator[Trial]) -> Trial:
    """The first that is right, else the one that is least off: whoever shares the machine may hold
    one up, and what is wrong with a link is so every time."""
    found: list[Trial] = []
    for trial in tries:
        found.append(trial)
        if trial.is_right:
            break
    return min(found, key=lambda trial: trial.off_ms)


def _inside(namespaces: Namespaces, name: str, make: Callable[[], socket.socket]) -> socket.socket:
    """A socket belongs to the namespace it was made in, whoever uses it."""
    with ThreadPoolExecutor(1, initializer=namespaces.enter, initargs=(name,)) as thread:
        return thread.submit(make).result()


def _listening(namespaces: Namespaces, name: str) -> socket.socket:
    address = (namespaces.host(name), PORT)
    return _inside(namespaces, name, lambda: socket.create_server(address))


def _connected(host: str) -> socket.socket:
    return socket.create_connection((host, PORT), timeout=TIMEOUT_S)


def _times_ms(sender: socket.socket, receiver: socket.socket, n_bytes: int) -> Iterator[float]:
    """Of a few messages, each after idle time."""
    for _ in range(TRIES):
        threading.Event().wait(IDLE_S)
        yield _pass(sender, receiver, n_bytes) * 1e3


def _pass(sender: socket.socket, receiver: socket.socket, n_bytes: int) -> float:
    """Seconds from before the first byte is given to the system until the last one is there."""
    begun: list[float] = []

    def send() -> None:
        data = bytes(n_bytes)
        begun.append(time.monotonic())
        sender.sendall(data)

    thread = threading.Thread(target=send)
    thread.start()
    n_here = 0
    while n_here < n_bytes:
        piece = receiver.recv(2**16)
        if not piece:
            raise ConnectionError("the other end is gone")
        n_here += len(piece)
    ended = time.monotonic()
    thread.join()
    return ended - begun[0]
