"""Who knocked and did not get in, from what libzmq's monitor tells of one listening socket.

Handshakes that fail are told.  A stranger that libzmq takes for an old or another kind of ZeroMQ
socket (TLS, zeros, a socket of a wrong type) is hung up on without a word: it is one that ends
before its handshake.  A part beyond the size limit ends a connection in the same way later on,
which cannot be told from a peer that hangs up.
"""

from __future__ import annotations

import zmq

FAILED = "connection: handshake failed"
NONE = "connection: no handshake"
FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
EVENTS = FAILURES | zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


class Handshakes:
    """NOTE: only ACCEPTED and DISCONNECTED name their connection, by its descriptor.  A handshake
    is put down to the connection that waits for longest: where several do, that may be another
    one, but each is put down to one, and the counts are right once all have ended."""

    def __init__(self) -> None:
        self._waiting: dict[int, None] = {}
        """Descriptors, in order of their coming; no more than the process may have open."""
        self._has_failed = False

    def on_event(self, event: int, value: int) -> str | None:
        """What is to be counted now."""
        if event == zmq.EVENT_ACCEPTED:
            self._waiting[value] = None
        elif event == zmq.EVENT_DISCONNECTED:
            was_waiting = self._waiting.pop(value, value) is None
            # All events come from one thread: that of a failure is followed by its own end.
            has_failed, self._has_failed = self._has_failed, False
            if has_failed:
                return self._on_failed(was_waiting)
            return NONE if was_waiting else None
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._forget_oldest()
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._forget_oldest()
            return FAILED
        elif event & FAILURES:
            self._has_failed = True
        return None

    def _on_failed(self, was_waiting: bool) -> str | None:
        """One whose place another one's handshake was put down to is put down to that one's; if
        that has ended already, it was counted then."""
        if not was_waiting:
            if not self._waiting:
                return None
            self._forget_oldest()
        return FAILED

    def _forget_oldest(self) -> None:
        if self._waiting:
            del self._waiting[next(iter(self._waiting))]
