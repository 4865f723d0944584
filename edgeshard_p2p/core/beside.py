"""What a pass takes of this device besides its units: frames, acknowledgements, tokens to clients.

It shows only where computing has to wait for it, with a processor or less for all of the process,
and only while it serves, so it is learned then.
Knows nothing of how it is timed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median_low

from edgeshard_p2p.core.effects import Effect, Log, SavePassTime

STRETCHES = 3
"""What is learned is the middle of so many stretches."""
MOVED_BY = 3
"""It is told again once it has moved by more than a third: each time may bring another plan."""
LEAST_US = 500
"""No plan depends on less."""


@dataclass(slots=True)
class Beside:
    us: int = 0
    """As told to others."""
    _stretches: deque[int] = field(default_factory=lambda: deque(maxlen=STRETCHES))

    def on_timed(self, us: int) -> list[Effect]:
        """What each pass of the latest stretch took."""
        self._stretches.append(us)
        middle = median_low(self._stretches)
        moved = abs(middle - self.us)
        if len(self._stretches) < STRETCHES or moved < LEAST_US or moved * MOVED_BY <= self.us:
            return []
        self.us = middle
        text = f"a pass takes {middle / 1e3:.1f} ms of this device besides its units"
        return [Log(text), SavePassTime(middle)]
