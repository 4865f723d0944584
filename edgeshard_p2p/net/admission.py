"""Who may connect: answers what libzmq asks about the key of each client (ZAP, ZeroMQ RFC 27)."""

from __future__ import annotations

import zmq
from zmq.utils import z85

from edgeshard_p2p.net.receiver import Receiver
from edgeshard_p2p.net.security import ZAP_DOMAIN, Security

ZAP_ENDPOINT = "inproc://zeromq.zap.01"


class Admission:
    """Of one context; open it before the sockets that bind."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], security: Security) -> None:
        self._security = security
        self._socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(ZAP_ENDPOINT)
        self._receiver = Receiver(self._socket, self._on_request)

    def close(self) -> None:
        self._receiver.close()
        self._socket.close()

    def _on_request(self, parts: list[zmq.Frame]) -> None:
        version, request, domain, _address, _identity, mechanism, *keys = (p.bytes for p in parts)
        if self._security.keys:
            is_of_ours = (domain, mechanism) == (ZAP_DOMAIN, b"CURVE")
            is_admitted = is_of_ours and self._security.admits(z85.encode(keys[0]))
        else:
            is_admitted = (domain, mechanism) == (ZAP_DOMAIN, b"NULL")
        verdict = [b"200", b"OK"] if is_admitted else [b"400", b"not a key of this swarm"]
        self._socket.send_multipart([version, request, *verdict, b"", b""])
