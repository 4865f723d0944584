"""The command line's side of a conversation with one peer.  Synchronous."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from math import ceil

import zmq
from zmq.utils.monitor import parse_monitor_message

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.net.monitor import monitor_of
from edgeshard_p2p.net.security import Security
from edgeshard_p2p.net.transport import FROM_CLIENT, HANDSHAKE_EVENTS, why_refused
from edgeshard_p2p.wire.client import (
    ClientAnswer,
    ClientRequest,
    decode_answer,
    encode_request,
)

CONNECT_TIMEOUT_S = 3.0
LINGER_MS = 200
LOOK_S = 0.2
ANSWER_BYTES_MAX = 1 << 26
"""Of one answer; the largest is what a swarm of hundreds plans with."""


class NoAnswer(Exception):
    """The peer cannot be reached, or refuses the connection."""


class Client:
    """Use as a context manager.  Tries each secret of the list in turn.

    ``context``: shared by the clients of one process where there are many; whoever made it ends
    it.  Else each has its own, whose connections are of the network namespace it was made in."""

    def __init__(
        self,
        peer: Address,
        security: Security,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self._peer = peer
        self._security = security
        self._is_shared = context is not None
        self._context = context if context is not None else zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        """Tells when the peer hangs up: ZeroMQ itself would only try to connect again."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_shared:
            self._context.destroy(linger=LINGER_MS)
            return
        for socket in (self._monitor, self._socket):
            if socket is not None:
                socket.close(linger=LINGER_MS)

    def send(self, request: ClientRequest) -> None:
        if self._socket is None:
            self._socket = self._connected()
        data = encode_request(self._security.swarm_key, request)
        self._socket.send_multipart([FROM_CLIENT, data])

    def answers(
        self, timeout_s: float, is_over: Callable[[], bool] | None = None
    ) -> Iterator[ClientAnswer]:
        """Answers as they come; NoAnswer when none comes for ``timeout_s``.  Ends soon after
        ``is_over`` says that no more are wanted."""
        assert self._socket is not None
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        ends_at = time.monotonic() + timeout_s
        while is_over is None or not is_over():
            left_s = max(0.0, ends_at - time.monotonic())
            wait_s = left_s if is_over is None else min(left_s, LOOK_S)
            ready = dict(poller.poll(ceil(wait_s * 1e3)))
            if self._socket in ready:
                ends_at = time.monotonic() + timeout_s
                yield decode_answer(self._socket.recv_multipart()[-1])
            elif ready:
                raise NoAnswer(f"{self._peer} is gone, before the answer was complete")
            elif time.monotonic() >= ends_at:
                raise NoAnswer(f"no word from {self._peer} for {timeout_s:.0f} s; is it stuck?")

    def _connected(self) -> zmq.Socket[bytes]:
        reason = f"nobody answers at {self._peer}; is a peer running there? (edgeshard peer)"
        for index in range(max(1, len(self._security.keys))):
            socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
            socket.linger = 0
            socket.maxmsgsize = ANSWER_BYTES_MAX
            self._security.connect(socket, index)
            self._socket = socket  # Closed whatever comes.
            failure = self._handshake(socket)
            if failure is None:
                return socket
            self._socket = None
            reason = failure or reason
            socket.disable_monitor()
            socket.close()
        raise NoAnswer(reason)

    def _handshake(self, socket: zmq.Socket[bytes]) -> str | None:
        """None when the peer takes this client; else why not, or empty when nobody is there."""
        self._monitor = monitor_of(socket, HANDSHAKE_EVENTS | zmq.EVENT_DISCONNECTED)
        socket.connect(f"tcp://{self._peer.host}:{self._peer.port}")
        if not self._monitor.poll(int(CONNECT_TIMEOUT_S * 1e3)):
            return ""
        event = parse_monitor_message(self._monitor.recv_multipart())["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            return None
        return f"{self._peer} refuses the connection: {why_refused(bool(self._security.keys))}"
