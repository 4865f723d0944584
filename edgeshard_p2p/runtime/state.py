"""What a peer keeps on disk: who it is, how often it has started, what it has measured.

STATE/lock          held while the peer runs
STATE/identity.json install id and generation
STATE/links.json    link figures by name of the other end
STATE/pass.json     what a pass takes besides its units, us, by processors at the start
STATE/profiles/     device figures by model, dtype, numerics and device
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

from msgspec import Meta, Struct

from edgeshard_p2p.core.ids import Count
from edgeshard_p2p.core.records import Figures, LinkFigures
from edgeshard_p2p.model import memo

T = TypeVar("T")


class StateError(Exception):
    """The operator's: a state directory that cannot be used."""


class Identity(Struct, frozen=True):
    install_id: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    generation: Count


class Profile(Struct, frozen=True):
    decode: Figures
    prefill: Figures
    rested_us: Count
    """By how much sooner a pass ends that finds the device at rest."""


class State:
    """One peer's directory, locked for as long as this object lives."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StateError(
                f"cannot use the state directory {directory}: {error.strerror}; "
                "name another with --state-dir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateError(
                f"another peer runs with the state directory {directory}; give this one its own "
                "--state-dir, or another port (each has its own): --listen HOST:PORT"
            ) from error

    def close(self) -> None:
        os.close(self._lock)

    def begin_life(self, at_least: int = 0) -> Identity:
        """The identity of this start: one generation higher than the last, written first.
        Raises StateError."""
        known = self._read("identity.json", Identity)
        install_id = known.install_id if known is not None else secrets.token_hex(8)
        generation = max(known.generation + 1 if known is not None else 1, at_least)
        identity = Identity(install_id, generation)
        try:
            memo.write(self.directory / "identity.json", identity)
        except OSError as error:
            raise StateError(
                f"cannot write {self.directory / 'identity.json'}: {error.strerror}; "
                "name another directory with --state-dir"
            ) from error
        return identity

    def links(self) -> tuple[LinkFigures, ...]:
        return self._read("links.json", tuple[LinkFigures, ...]) or ()

    def save_links(self, links: tuple[LinkFigures, ...]) -> None:
        merged = {link.to: link for link in (*self.links(), *links)}
        self._keep("links.json", tuple(merged[name] for name in sorted(merged)))

    def pass_us(self, cores: float) -> int:
        """As learned with so much of the machine's processors; 0: nothing was."""
        return self._pass_times().get(f"{cores:.3g}", 0)

    def save_pass_us(self, cores: float, us: int) -> None:
        self._keep("pass.json", {**self._pass_times(), f"{cores:.3g}": us})

    def _pass_times(self) -> dict[str, Count]:
        return self._read("pass.json", dict[str, Count]) or {}

    def profile(self, key: str) -> Profile | None:
        return self._read(f"profiles/{key}.json", Profile)

    def save_profile(self, key: str, profile: Profile) -> None:
        self._keep(f"profiles/{key}.json", profile)

    def _keep(self, name: str, value: object) -> None:
        memo.keep(self.directory / name, value)

    def _read(self, name: str, kind: type[T]) -> T | None:
        return memo.read(self.directory / name, kind)


@contextmanager
def alone_on_this_machine(on_wait: Callable[[], None]) -> Iterator[None]:
    """Held by one process of this machine at a time: several peers on one machine would only
    measure each other."""
    path = Path(tempfile.gettempdir()) / f"edgeshard-measuring-{os.getuid()}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def default_directory(port: int) -> Path:
    """One per listen port, so that several peers on one machine keep apart."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "edgeshard" / f"peer-{port}"


def default_name(install_id: str) -> str:
    """Host name and 4 digits of the install id: three raspberrypi do not replace each other."""
    host = "".join(c if c.isalnum() or c == "-" else "-" for c in socket.gethostname().lower())
    host = host.split(".")[0].strip("-") or "peer"
    return f"{host[:50]}-{install_id[:4]}"
