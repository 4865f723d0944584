"""One direction of an emulated link: store and forward, at its rate and with its delay."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Lane:
    """done = max(now, link free) + bytes / rate          delivered at done + delay"""

    bytes_per_s: float
    delay_s: float
    free_at: float = 0.0

    def deliver_at(self, n_bytes: int, now: float) -> float:
        self.free_at = max(now, self.free_at) + n_bytes / self.bytes_per_s
        return self.free_at + self.delay_s
