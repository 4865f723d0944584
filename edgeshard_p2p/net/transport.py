"""The sockets of a peer.

    control   ROUTER on the listen port: peers' messages (from their DEALERs), clients' requests
              and the answers to clients
    data      PULL on the next port: frames; one PUSH for each edge of each plan, and one for
              probes to each peer, on the sending side

A send never waits and proves nothing: what a full queue refuses is dropped and counted, and the
protocol above confirms, repeats or gives up.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import parse_monitor_message

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.net import handshakes
from edgeshard_p2p.net.admission import Admission
from edgeshard_p2p.net.monitor import monitor_of
from edgeshard_p2p.net.offences import Offences
from edgeshard_p2p.net.receiver import Receiver
from edgeshard_p2p.net.security import Security
from edgeshard_p2p.wire.codec import CONTROL_BYTES_MAX
from edgeshard_p2p.wire.frames import PAYLOAD_BYTES_MAX, Buffer

CONTROL_QUEUE = 1_000
DATA_QUEUE = 64
"""NOTE: ZeroMQ counts parts, not messages, and hears late of what was read: a queue of few parts
is full when nothing is on its way."""
MORE_TO_COME = zmq.NOBLOCK | zmq.SNDMORE
BIND_TRIES = 20
BIND_PAUSE_S = 0.1
FROM_PEER, FROM_CLIENT = b"p", b"c"

CONTACTS_MAX = 128
"""Peers to which sockets are kept open; each takes about six descriptors."""
SOCKETS_MAX = 4_096
SECRETS_PAUSE_S = 1.0
"""Between two rounds through the list of secrets (one, or none), all of which were refused."""
ROUNDS_TO_TELL = 3
"""One round may fail because the other end is just coming up or going away."""

HANDSHAKE_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)

LOOKS_AFTER_S = (0.01, 0.04, 0.1)
"""Pauses before one looks whether a port takes no connection: that of a process that is being
ended may still take one."""
LOOK_S = 1.0


async def _is_refused(at: Address) -> bool:
    """Whether that machine says that nobody listens there.

    NOTE: libzmq tries again by itself, but does not say what became of it: a refusal and a time
    out are the same event of its monitor."""
    try:
        async with asyncio.timeout(LOOK_S):
            _, writer = await asyncio.open_connection(at.host, at.port)
    except ConnectionRefusedError:
        return True
    except (OSError, UnicodeError):
        return False
    writer.close()
    return False


def why_refused(has_secret: bool) -> str:
    """A handshake failed: what the other end has, seen from this one, and what to do.

    NOTE: libzmq says no more than that it failed: which of its events comes depends on who hangs
    up first, not on whose secret is wrong."""
    if has_secret:
        cause = "it uses no secret, or another one; give both the same --secret-file"
    else:
        cause = "it asks for a secret; give the swarm's with --secret-file"
    return f"{cause} (or it is no edgeshard peer at all)"


class BindError(Exception):
    """The operator's: a port that cannot be had."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Where what arrives goes.  Parts are buffers that live as long as they are held.
    ``on_peer`` and ``on_client`` say whether they could read it."""

    on_peer: Callable[[memoryview], bool]
    on_client: Callable[[bytes, memoryview], bool]
    on_frame: Callable[[list[memoryview]], None]
    on_contact_failed: Callable[[Address, str], None]
    on_connection_lost: Callable[[Address, bool], None]
    """A connection that stood has ended from the other end; whether a new one is refused."""
    refusal: Callable[[], bytes]
    """What a connection is told of which nothing is read any more: a message of a peer."""


class Transport:
    def __init__(self, listen: Address, security: Security, callbacks: Callbacks) -> None:
        self.listen = listen
        self.dropped: Counter[str] = Counter()
        self.shaping: Counter[str] = Counter()  # Of what is held up on purpose; nothing here.
        self._security = security
        self._callbacks = callbacks
        self._context = zmq.Context()
        self._context.max_sockets = SOCKETS_MAX
        self._offences = Offences()
        self._receivers: list[Receiver] = []
        self._monitored: list[zmq.Socket[bytes]] = []
        self._control: zmq.Socket[bytes] | None = None
        self._data: zmq.Socket[bytes] | None = None
        self._contacts: dict[Address, Contact] = {}
        self._edges: dict[tuple[bytes, int], tuple[int, zmq.Socket[bytes]]] = {}
        self._probes: dict[Address, zmq.Socket[bytes]] = {}
        self._admission: Admission | None = None
        self._looks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Bind both ports.  Raises BindError."""
        self._admission = Admission(self._context, self._security)
        self._control = self._socket(zmq.ROUTER, CONTROL_QUEUE, CONTROL_BYTES_MAX)
        self._control.router_mandatory = True
        self._data = self._socket(zmq.PULL, DATA_QUEUE, PAYLOAD_BYTES_MAX)
        for socket in (self._control, self._data):
            self._count_refused_handshakes(socket)
        await self._bind(self._control, self.listen.port)
        await self._bind(self._data, self.listen.port + 1)
        self._router = Receiver(self._control, self._on_control)
        self._receivers += [self._router, Receiver(self._data, self._on_data)]

    def _count_refused_handshakes(self, socket: zmq.Socket[bytes]) -> None:
        """What libzmq refuses by itself never gets to a receiver."""
        monitor = monitor_of(socket, handshakes.EVENTS)
        known = handshakes.Handshakes()

        def on_event(parts: list[zmq.Frame]) -> None:
            event = parse_monitor_message([part.bytes for part in parts])
            kind = known.on_event(event["event"], event["value"])
            if kind is not None:
                self.dropped[kind] += 1

        self._monitored.append(socket)
        self._receivers.append(Receiver(monitor, on_event))

    def _socket(self, kind: int, queue: int, bytes_max: int) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = queue
        socket.maxmsgsize = bytes_max
        return socket

    async def _bind(self, socket: zmq.Socket[bytes], port: int) -> None:
        self._security.serve(socket)
        host = "*" if self.listen.host == "0.0.0.0" else self.listen.host
        for _ in range(BIND_TRIES):
            try:
                socket.bind(f"tcp://{host}:{port}")
                return
            except zmq.ZMQError as error:
                # NOTE: a socket of an earlier life closes in the background; its port may be
                # free in a moment.
                if error.errno != zmq.EADDRINUSE:
                    raise BindError(
                        f"cannot listen on {self.listen.host}:{port}: {error}"
                    ) from error
            await asyncio.sleep(BIND_PAUSE_S)
        raise BindError(
            f"port {port} on {self.listen.host} is in use (a peer needs two: {self.listen.port} "
            f"and {self.listen.port + 1}); choose others with --listen {self.listen.host}:PORT"
        )

    async def close(self) -> None:
        for look in self._looks:
            look.cancel()
        for receiver in self._receivers:
            receiver.close()
        for socket in self._monitored:
            socket.disable_monitor()
        for contact in self._contacts.values():
            contact.close()
        if self._admission is not None:
            self._admission.close()
        self._context.destroy(linger=200)

    def note_end(self, address: Address) -> None:
        """The other end has ended a connection.  Whether it is there no more it says itself."""
        self._callbacks.on_connection_lost(address, False)
        look = asyncio.get_running_loop().create_task(self._look_after(address))
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)

    async def _look_after(self, address: Address) -> None:
        for pause_s in LOOKS_AFTER_S:
            await asyncio.sleep(pause_s)
            if await _is_refused(address):
                self._callbacks.on_connection_lost(address, True)
                return

    # --- receiving ------------------------------------------------------------------------

    def _on_control(self, parts: list[zmq.Frame]) -> None:
        if len(parts) != 3:
            self.dropped["control: not three parts"] += 1
            self._offended(parts[0].bytes)
            return
        identity, kind, payload = parts[0].bytes, parts[1].bytes, parts[2].buffer
        if self._offences.is_refused(identity):
            self.dropped["control: refused connection"] += 1
            return
        if kind == FROM_PEER:
            is_read = self._callbacks.on_peer(payload)
        elif kind == FROM_CLIENT:
            is_read = self._callbacks.on_client(identity, payload)
        else:
            self.dropped["control: unknown kind"] += 1
            is_read = False
        if not is_read:
            self._offended(identity)

    def _offended(self, identity: bytes) -> None:
        if self._offences.note(identity):
            self._tell(identity, FROM_PEER, self._callbacks.refusal())

    def _on_data(self, parts: list[zmq.Frame]) -> None:
        self._callbacks.on_frame([part.buffer for part in parts])

    # --- sending --------------------------------------------------------------------------

    def send_control(self, to: Address, data: bytes) -> None:
        contact = self._contacts.pop(to, None)
        if contact is None:
            contact = Contact(self, to)
            self._forget_beyond(CONTACTS_MAX - 1)
        self._contacts[to] = contact  # At the end: the one used last is forgotten last.
        self._send(contact.socket, [FROM_PEER, data], "control: queue full")
        contact.hears.poke()

    def _forget_beyond(self, n_contacts: int) -> None:
        while len(self._contacts) > n_contacts:
            self.forget(next(iter(self._contacts)))

    def answer_client(self, identity: bytes, data: bytes) -> bool:
        """False when the client is gone, or does not read."""
        return self._tell(identity, FROM_CLIENT, data)

    def _tell(self, identity: bytes, kind: bytes, data: bytes) -> bool:
        assert self._control is not None
        try:
            self._control.send_multipart([identity, kind, data], zmq.NOBLOCK)
        except zmq.ZMQError:
            self.dropped["answer: nobody reads it"] += 1
            return False
        finally:
            self._router.poke()
        return True

    def send_frame(
        self, plan: bytes, edge: int, epoch: int, to: Address, parts: Sequence[Buffer]
    ) -> None:
        """Over the edge's own socket; a new epoch starts with a new one."""
        known = self._edges.get((plan, edge))
        if known is None or known[0] != epoch:
            self._drop_edge(plan, edge)
            known = (epoch, self._connect(zmq.PUSH, to, DATA_QUEUE, data_port=True))
            self._edges[plan, edge] = known
        self._send(known[1], parts, "frame: queue full")

    def _drop_edge(self, plan: bytes, edge: int) -> None:
        known = self._edges.pop((plan, edge), None)
        if known is not None:
            known[1].close(linger=200)

    close_edge = _drop_edge

    def send_probe(self, to: Address, parts: Sequence[Buffer]) -> None:
        if to not in self._probes:
            self._probes[to] = self._connect(zmq.PUSH, to, DATA_QUEUE, data_port=True)
        self._send(self._probes[to], parts, "probe: queue full")

    def _send(self, socket: zmq.Socket[bytes], parts: Sequence[Buffer], if_full: str) -> None:
        *others, last = parts
        try:
            for part in others:
                socket.send(part, MORE_TO_COME, copy=False)
            socket.send(last, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self.dropped[if_full] += 1

    def _connect(
        self, kind: int, to: Address, queue: int, data_port: bool = False
    ) -> zmq.Socket[bytes]:
        socket = self._socket(kind, queue, CONTROL_BYTES_MAX)
        index = self._contacts[to].secret_index if to in self._contacts else 0
        self._security.connect(socket, index)
        self._connect_to(socket, to.host, to.port + 1 if data_port else to.port)
        return socket

    def _connect_to(self, socket: zmq.Socket[bytes], host: str, port: int) -> None:
        """What is no address at all is like one where nobody answers, but counted: it may have
        come from another peer."""
        try:
            socket.connect(f"tcp://{host}:{port}")
        except (zmq.ZMQError, UnicodeError):
            self.dropped["connect: no such address"] += 1

    def forget(self, address: Address) -> None:
        """Close the sockets to a peer; the next send opens them again."""
        contact = self._contacts.pop(address, None)
        if contact is not None:
            contact.close()
        self.forget_probe(address)

    def forget_probe(self, address: Address) -> None:
        probe = self._probes.pop(address, None)
        if probe is not None:
            probe.close()


class Contact:
    """The DEALER to one address.  Watches its handshakes: a refused one tries the next secret,
    and when none is left says why.  And watches for the end of a connection that stood."""

    def __init__(self, transport: Transport, address: Address) -> None:
        self.address = address
        self.secret_index = 0
        self._transport = transport
        self._refusals = 0
        self._stands = False
        self._next_round: asyncio.TimerHandle | None = None
        self._open()

    def _open(self) -> None:
        transport = self._transport
        self.socket = transport._socket(zmq.DEALER, CONTROL_QUEUE, CONTROL_BYTES_MAX)
        transport._security.connect(self.socket, self.secret_index)
        self.hears = Receiver(self.socket, self._on_message)
        self._monitor = monitor_of(self.socket, HANDSHAKE_EVENTS | zmq.EVENT_DISCONNECTED)
        self._watch = Receiver(self._monitor, self._on_event)
        transport._connect_to(self.socket, self.address.host, self.address.port)

    def close(self) -> None:
        self._cancel_next_round()
        self.hears.close()
        self._watch.close()
        self.socket.disable_monitor()
        self.socket.close(linger=200)

    def _cancel_next_round(self) -> None:
        if self._next_round is not None:
            self._next_round.cancel()
            self._next_round = None

    def _on_message(self, parts: list[zmq.Frame]) -> None:
        """The other end speaks on this connection only to refuse it."""
        if len(parts) == 2 and parts[0].bytes == FROM_PEER:
            self._transport._callbacks.on_peer(parts[1].buffer)
        else:
            self._transport.dropped["control: not a refusal"] += 1

    def _on_event(self, parts: list[zmq.Frame]) -> None:
        event = parse_monitor_message([part.bytes for part in parts])["event"]
        if event == zmq.EVENT_DISCONNECTED:
            if self._stands:
                self._stands = False
                self._transport.note_end(self.address)
            return
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._refusals, self._stands = 0, True
            self._cancel_next_round()
            return
        if self._next_round is not None:
            return  # libzmq tries again by itself, in vain.
        self._refusals += 1
        n_secrets = max(1, len(self._transport._security.keys))
        if self._refusals == ROUNDS_TO_TELL * n_secrets:
            reason = why_refused(bool(self._transport._security.keys))
            self._transport._callbacks.on_contact_failed(self.address, reason)
        if self._refusals % n_secrets:
            self._try_next_secret()
        else:
            # NOTE: libzmq itself gives up for good after some refusals, even with one secret.
            loop = asyncio.get_running_loop()
            self._next_round = loop.call_later(SECRETS_PAUSE_S, self._try_next_secret)

    def _try_next_secret(self) -> None:
        self.close()
        self.secret_index = (self.secret_index + 1) % max(1, len(self._transport._security.keys))
        self._transport.forget_probe(self.address)  # It was opened with the secret before.
        self._open()
