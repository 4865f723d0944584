"""What can be done to the devices of a swarm, wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from edgeshard_p2p.core.messages import Address
from edgeshard_p2p.net.security import Security

T = TypeVar("T")


class FaultError(Exception):
    """Why a fault cannot be done, or a swarm not be made, in one line.  ``exit_code`` 1 failed,
    2 wrong usage."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Devices(Protocol):
    """A context manager: at its end nothing that was begun here goes on."""

    network: str
    """What joins them, in a word."""
    security: Security

    def __enter__(self) -> Devices: ...

    def __exit__(self, *_: object) -> None: ...

    def address(self, name: str) -> Address: ...

    def enter(self, name: str) -> None:
        """Move the calling thread to where that peer can be reached, for good."""

    def reach(self, name: str, work: Callable[[], T]) -> T:
        """What ``work`` returns, done where that peer can be reached."""

    def start(self, name: str) -> None: ...

    def kill(self, name: str) -> None:
        """As a loss of power would."""

    def leave(self, name: str) -> None:
        """Ctrl-C."""

    def stop(self, name: str) -> None:
        """As the system asks a program to end."""

    def freeze(self, name: str) -> None: ...

    def thaw(self, name: str) -> None: ...

    def slow(self, name: str, by: float) -> str:
        """How it was done."""

    def restore(self, name: str) -> None: ...

    def partition(self, names: Iterable[str], way: str) -> None:
        """These reach each other and none of the rest; one of ``scenario.WAYS`` says whether
        anything passes the other way."""

    def link(self, a: str, b: str, mbps: float | None, delay_ms: float | None) -> None:
        """Another rate and delay between two, both ways, from now on; None: as before."""

    def heal(self) -> None:
        """Everybody reaches everybody, over the links that there were at first."""

    def why_ended(self) -> str:
        """Which peer ended though nothing was done to it, and its last word; empty: none."""
