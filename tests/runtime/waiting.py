"""Free ports, and waiting for a condition: with a deadline that only a broken program reaches."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from edgeshard_p2p.core.messages import Address

T = TypeVar("T")

DEADLINE_S = 60.0
LOOPBACK = "127.0.0.1"
_POLL_S = 0.02

# NOTE: below the range from which systems take the ports of outgoing connections: one of those
# could be in the way by the time a test binds.
_PORTS = itertools.count(random.SystemRandom().randrange(12_000, 30_000, 2), 2)


def free_address() -> Address:
    """Two neighbouring ports on loopback that nobody listens on, each given once."""
    port = next(port for port in _PORTS if _is_free(port) and _is_free(port + 1))
    return Address(LOOPBACK, port)


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((LOOPBACK, port))
        return True
    return False


def until(question: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
    """The first answer that is not None, False or empty."""
    ends_at = time.monotonic() + deadline_s
    while not (answer := question()):
        assert time.monotonic() < ends_at, f"not within {deadline_s:.0f} s: {what}"
        threading.Event().wait(_POLL_S)
    return answer


async def until_async(
    question: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S
) -> T:
    ends_at = time.monotonic() + deadline_s
    while not (answer := question()):
        assert time.monotonic() < ends_at, f"not within {deadline_s:.0f} s: {what}"
        await asyncio.sleep(_POLL_S)
    return answer
