"""One shared secret per swarm: CURVE keys for every socket and the key that names the swarm.

From each secret come a server key pair and a client key pair.  A client must know the server's
public key to be heard at all, and ZAP lets in only the client keys of the listed secrets; so both
sides prove that they know a secret.  The first secret of the list is the active one: it makes the
keys that this peer listens with.  Two peers can talk when each lists the other's active one.  So
a secret is rotated in three rounds, each done at every peer before the next begins: add the new
one at the end, move it to the front, take the old one out.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import zmq
from zmq.utils import z85

ZAP_DOMAIN = b"edgeshard"
SECRET_BYTES_MIN = 16
HANDSHAKE_TIMEOUT_MS = 5_000


class SecretError(Exception):
    """The operator's: a secret file that cannot be used."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    public: bytes
    secret: bytes


@dataclass(frozen=True, slots=True)
class Keys:
    """What follows from one secret."""

    server: KeyPair
    client: KeyPair


@dataclass(frozen=True, slots=True)
class Security:
    """Empty ``keys``: no encryption, loopback only."""

    swarm_keys: tuple[bytes, ...]
    """8 bytes for each secret; the first goes into messages, any is accepted."""
    keys: tuple[Keys, ...] = ()

    @property
    def swarm_key(self) -> bytes:
        return self.swarm_keys[0]

    def serve(self, socket: zmq.Socket[bytes]) -> None:
        """Make a socket that binds ask for a client key; before bind.

        NOTE: also without keys it asks who may connect.  Otherwise libzmq takes whatever does not
        begin like ZeroMQ (TLS, HTTP) for its version 1.0, which knows no handshake and hence no
        end to it, and keeps the connection.
        """
        socket.handshake_ivl = HANDSHAKE_TIMEOUT_MS
        socket.zap_domain = ZAP_DOMAIN
        if self.keys:
            socket.curve_server = True
            socket.curve_secretkey = self.keys[0].server.secret
            socket.curve_publickey = self.keys[0].server.public

    def connect(self, socket: zmq.Socket[bytes], index: int = 0) -> None:
        """Make a socket that connects prove the secret at ``index``; before connect."""
        socket.handshake_ivl = HANDSHAKE_TIMEOUT_MS
        if self.keys:
            keys = self.keys[index % len(self.keys)]
            socket.curve_serverkey = keys.server.public
            socket.curve_secretkey = keys.client.secret
            socket.curve_publickey = keys.client.public

    def admits(self, client_public_z85: bytes) -> bool:
        return any(keys.client.public == client_public_z85 for keys in self.keys)


def open_security(swarm: str, secrets: tuple[bytes, ...]) -> Security:
    if not secrets:
        return Security((_derive(b"", b"swarm", swarm.encode())[:8],))
    swarm_keys = tuple(_derive(s, b"swarm", swarm.encode())[:8] for s in secrets)
    keys = tuple(Keys(_key_pair(s, b"server"), _key_pair(s, b"client")) for s in secrets)
    return Security(swarm_keys, keys)


def read_secrets(path: Path) -> tuple[bytes, ...]:
    """One secret a line, the active one first.  Raises SecretError."""
    try:
        lines = [line.strip() for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise SecretError(f"cannot read the secret file {path}: {error.strerror}") from error
    secrets = tuple(line for line in lines if line and not line.startswith(b"#"))
    if not secrets:
        raise SecretError(f"{path} holds no secret; make one with: edgeshard secret > {path}")
    if any(len(secret) < SECRET_BYTES_MIN for secret in secrets):
        raise SecretError(
            f"a secret in {path} is shorter than {SECRET_BYTES_MIN} characters and could be "
            f"guessed; make one with: edgeshard secret > {path}"
        )
    return secrets


def _derive(secret: bytes, purpose: bytes, salt: bytes = b"") -> bytes:
    key = blake2b(secret, digest_size=32).digest()
    return blake2b(purpose + b"\0" + salt, key=key, digest_size=32, person=b"edgeshard1").digest()


def _key_pair(secret: bytes, purpose: bytes) -> KeyPair:
    private = z85.encode(_derive(secret, purpose))
    return KeyPair(zmq.curve_public(private), private)
