"""The simulated network: delay, loss, doubling, reordering, cuts and slow links, all drawn from one
seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from random import Random
from typing import NamedTuple


class Pace(NamedTuple):
    """Every message of a link takes its own time; none waits for the one before it."""

    delay_s: float
    bytes_per_s: float


@dataclass(slots=True)
class Network:
    rng: Random
    delay_s: float = 0.001
    jitter_s: float = 0.001
    loss: float = 0.0
    doubled: float = 0.0
    """Share of the messages that arrive twice."""
    overtaken: float = 0.0
    """Share of the messages that are held up, so that later ones overtake them."""
    held_up_s: float = 0.3
    bytes_per_s: float = 1e8
    cuts: set[tuple[str, str]] = field(default_factory=set)
    """Ordered pairs (from, to) between which nothing passes."""
    slow: dict[tuple[str, str], Pace] = field(default_factory=dict)
    """Ordered pairs that have a pace of their own."""

    def cut(self, sender: str, receiver: str) -> None:
        """One way only."""
        self.cuts.add((sender, receiver))

    def partition(self, a: Iterable[str], b: Iterable[str]) -> None:
        for x, y in product(list(a), list(b)):
            self.cuts |= {(x, y), (y, x)}

    def are_joined(self, a: str, b: str) -> bool:
        return not {(a, b), (b, a)} & self.cuts

    def repair(self) -> None:
        self.cuts.clear()

    def slow_down(self, sender: str, receiver: str, pace: Pace) -> None:
        """One way only."""
        self.slow[sender, receiver] = pace

    def calm(self) -> None:
        """From now on every message arrives, once and in order of its delay."""
        self.repair()
        self.slow.clear()
        self.loss = self.doubled = self.overtaken = 0.0

    def transits_s(self, sender: str, receiver: str, n_bytes: int) -> list[float]:
        """When the copies of a message sent now arrive, from now; none when it is lost."""
        if (sender, receiver) in self.cuts or self.rng.random() < self.loss:
            return []
        copies = 2 if self.rng.random() < self.doubled else 1
        usual = Pace(self.delay_s, self.bytes_per_s)
        pace = self.slow.get((sender, receiver), usual) if self.slow else usual
        return [self._transit_s(n_bytes, pace) for _ in range(copies)]

    def _transit_s(self, n_bytes: int, pace: Pace) -> float:
        held_up_s = self.rng.random() * self.held_up_s if self._is_overtaken() else 0.0
        jitter_s = self.rng.random() * self.jitter_s
        return pace.delay_s + jitter_s + n_bytes / pace.bytes_per_s + held_up_s

    def _is_overtaken(self) -> bool:
        return self.rng.random() < self.overtaken
