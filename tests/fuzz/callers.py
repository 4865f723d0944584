"""Who calls at a peer's ports without being a peer: raw TCP, and ZeroMQ put to wrong use.  They
block, and say what they saw."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq

from edgeshard_p2p.net.security import Security
from tests.runtime.waiting import DEADLINE_S, LOOPBACK

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
"""ZMTP 3.0 (ZeroMQ RFC 23), mechanism NULL."""
MORE, LONG, COMMAND = 1, 2, 4
PAUSE_S = 0.02

Caller = Callable[[int], None]


@contextmanager
def line(port: int) -> Iterator[socket.socket]:
    with socket.create_connection((LOOPBACK, port), DEADLINE_S) as connection:
        yield connection


def until_hung_up(connection: socket.socket) -> None:
    """Reads to the end; a peer that does not hang up fails the test by its deadline."""
    connection.settimeout(DEADLINE_S)
    try:
        while connection.recv(65_536):
            pass
    except ConnectionError:
        pass


# --- before any handshake -------------------------------------------------------------------


def scan(port: int) -> None:
    with line(port):
        pass


def says(data: bytes) -> Caller:
    """Says this, and goes."""

    def call(port: int) -> None:
        with line(port) as connection:
            connection.sendall(data)

    return call


def waits_after(data: bytes) -> Caller:
    """Says this, and waits to be hung up on."""

    def call(port: int) -> None:
        with line(port) as connection:
            connection.sendall(data)
            until_hung_up(connection)

    return call


def drips(data: bytes) -> Caller:
    """A byte at a time."""

    def call(port: int) -> None:
        with line(port) as connection:
            connection.settimeout(PAUSE_S)
            for place in range(len(data)):
                try:
                    connection.sendall(data[place : place + 1])
                    if connection.recv(100) == b"":
                        return
                except TimeoutError:
                    continue
                except ConnectionError:
                    return
            until_hung_up(connection)

    return call


HTTP = b"GET / HTTP/1.1\r\nHost: peer\r\nUser-Agent: " + b"x" * 300 + b"\r\n\r\n"
TLS = bytes.fromhex("160301020001000001fc0303") + os.urandom(500)
STRANGERS: dict[str, Caller] = {
    "port scan": scan,
    "HTTP": says(HTTP),
    "short HTTP": says(b"GET / HTTP/1.0\r\n\r\n"),
    "TLS": waits_after(TLS),
    "zeros": waits_after(bytes(200)),
    "ones": waits_after(b"\xff" * 200),
    "half a greeting": waits_after(GREETING[:20]),
    "a greeting and no more": waits_after(GREETING),
    "a greeting and garbage": waits_after(GREETING + b"\xff" * 300),
    "no such mechanism": waits_after(GREETING.replace(b"NULL", b"NONE")),
    "a byte at a time": drips(GREETING[:20] + bytes(1_000)),
}
"""Each is one connection that never gets through its handshake."""


# --- after it, where there is no secret: a ZMTP line by hand ----------------------------------


def frame(flags: int, body: bytes) -> bytes:
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | LONG]) + struct.pack(">Q", len(body)) + body


def ready(kind: bytes) -> bytes:
    return frame(COMMAND, b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind)


@contextmanager
def admitted(port: int, kind: bytes) -> Iterator[socket.socket]:
    """Through the handshake as a socket of this kind."""
    with line(port) as connection:
        connection.sendall(GREETING + ready(kind))
        heard = b""
        while b"READY" not in heard:
            more = connection.recv(4_096)
            assert more, "hung up during the handshake"
            heard += more
        yield connection


def announces(kind: bytes, n_bytes: int) -> Caller:
    """A part of a size that is not allowed, of which not a byte is sent."""

    def call(port: int) -> None:
        with admitted(port, kind) as connection:
            connection.sendall(bytes([LONG]) + struct.pack(">Q", n_bytes))
            until_hung_up(connection)

    return call


# --- after it, through libzmq: who knows the secret -------------------------------------------


@contextmanager
def zmq_line(port: int, kind: int, security: Security) -> Iterator[zmq.Socket[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        made = context.socket(kind)
        made.linger = int(DEADLINE_S * 1e3)
        made.sndtimeo = int(DEADLINE_S * 1e3)
        security.connect(made)
        made.connect(f"tcp://{LOOPBACK}:{port}")
        yield made
    finally:
        context.destroy()


def sends(kind: int, security: Security, *messages: list[bytes]) -> Caller:
    def call(port: int) -> None:
        with zmq_line(port, kind, security) as made:
            for parts in messages:
                made.send_multipart(parts)

    return call


def is_refused(kind: int, security: Security) -> Caller:
    """By its keys, which libzmq tells it."""

    def call(port: int) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            made = context.socket(kind)
            made.linger = 0
            made.reconnect_ivl = -1
            security.connect(made)
            failures = (
                zmq.EVENT_HANDSHAKE_FAILED_AUTH
                | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
                | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
                | zmq.EVENT_DISCONNECTED
            )
            monitor = made.get_monitor_socket(failures)
            made.connect(f"tcp://{LOOPBACK}:{port}")
            assert monitor.poll(int(DEADLINE_S * 1e3)), "it was not refused"
        finally:
            context.destroy(0)

    return call
