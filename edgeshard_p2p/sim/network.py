"""The simulated network: delay, loss and cuts between pairs, all drawn from one seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random


@dataclass(slots=True)
class Network:
    rng: Random
    delay_s: float = 0.001
    jitter_s: float = 0.001
    loss: float = 0.0
    bytes_per_s: float = 1e8
    cuts: set[tuple[str, str]] = field(default_factory=set)
    """Ordered pairs (from, to) between which nothing passes."""

    def partition(self, a: list[str], b: list[str]) -> None:
        for x in a:
            for y in b:
                self.cuts |= {(x, y), (y, x)}

    def repair(self) -> None:
        self.cuts.clear()

    def transit_s(self, sender: str, receiver: str, n_bytes: int) -> float | None:
        """When a message sent now arrives, from now; None when it is lost."""
        if (sender, receiver) in self.cuts or self.rng.random() < self.loss:
            return None
        return self.delay_s + self.rng.random() * self.jitter_s + n_bytes / self.bytes_per_s
