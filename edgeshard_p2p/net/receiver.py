"""Reading a ZeroMQ socket from the event loop, without a task per socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq

BURST = 96
"""Parts taken in one go before the loop gets to do something else; a message has two or three."""
PARTS_MAX = 8
"""No message that is meant for us has more.  Of one that has, so many are handed on and one, which
is enough to refuse it by; the rest is dropped as it is read.
NOTE: libzmq itself holds all parts until the last has come, however many; it has no limit."""
READABLE = int(zmq.POLLIN)
"""A flag of an enumeration takes several times as long to test."""


class Receiver:
    """Calls ``on_parts`` for each message.

    NOTE: the descriptor of a ZeroMQ socket announces changes, not readiness: it must be drained
    until nothing comes, and looked at again after every send on the same socket (``poke``).
    Whether something is there is asked, and not found out by receiving: that would hand the
    interpreter to the compute thread, and wait to have it back.
    """

    def __init__(
        self, socket: zmq.Socket[bytes], on_parts: Callable[[list[zmq.Frame]], None]
    ) -> None:
        self._socket = socket
        self._on_parts = on_parts
        self._loop = asyncio.get_running_loop()
        self._fd = socket.fileno()
        self._is_closed = False
        self._parts: list[zmq.Frame] = []
        """Of the message that is being read."""
        self._loop.add_reader(self._fd, self._drain)
        self.poke()

    def poke(self) -> None:
        if not self._is_closed and self._is_there():
            self._loop.call_soon(self._drain)

    def _is_there(self) -> bool:
        """A whole message: ZeroMQ hands on no part before it has the last."""
        return bool(int(self._socket.get(zmq.EVENTS)) & READABLE)

    def close(self) -> None:
        self._is_closed = True
        self._loop.remove_reader(self._fd)

    def _drain(self) -> None:
        for _ in range(BURST):
            if self._is_closed or not (self._parts or self._is_there()):
                return
            part = self._socket.recv(zmq.NOBLOCK, copy=False)
            if len(self._parts) <= PARTS_MAX:
                self._parts.append(part)
            if not part.more:
                parts, self._parts = self._parts, []
                self._on_parts(parts)
        self.poke()
