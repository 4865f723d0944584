"""Free ports, and waiting for a condition: with a deadline that only a broken program reaches."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from edgeshard_p2p.core.messages import Address

T = TypeVar("T")

DEADLINE_S = 60.0
LOOPBACK = "127.0.0.1"
_POLL_S = 0.02
_given: set[int] = set()


def free_address() -> Address:
    """Two neighbouring ports on loopback that nobody listens on, each given once."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind((LOOPBACK, 0))
            port = first.getsockname()[1]
            try:
                second.bind((LOOPBACK, port + 1))
            except (OSError, OverflowError):
                continue
        if not {port, port + 1} & _given and port + 1 < 65535:
            _given.update((port, port + 1))
            return Address(LOOPBACK, port)


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
